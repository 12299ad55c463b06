"""One linear probe on each of 32 x 32 heads, 2,000 prompts: all at once, against a scikit-learn loop in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from probes.linear.heads import BUDGET, GPU_BUDGET
from probes.linear.logistic import cell_chunks, fit

LAYERS, HEADS, WIDTH, ROWS, TRAIN = 32, 32, 64, 2000, 1600
THREADS = 2


def heads_of(layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """z [row, head, d_head] whose heads carry the label from not at all to clearly, and the labels."""
    random = torch.Generator().manual_seed(layer)
    y = torch.rand(ROWS, generator=random) < 0.5
    along = torch.nn.functional.normalize(torch.randn(HEADS, WIDTH, generator=random), dim=-1)
    strength = torch.linspace(0.0, 1.5, HEADS)[:, None] * along
    z = torch.randn(ROWS, HEADS, WIDTH, generator=random) + (2.0 * y - 1)[:, None, None] * strength
    return z, y


def ours(z: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """Held-out accuracy of every head."""
    found = []
    for part in cell_chunks(HEADS, ROWS, WIDTH, GPU_BUDGET if z.is_cuda else BUDGET):
        x = z[:, part].transpose(0, 1).contiguous()
        probes = fit(x[:, :TRAIN], y[:TRAIN])
        found.append(((probes.logits(x[:, TRAIN:]) > 0) == y[TRAIN:]).float().mean(1))
    return torch.cat(found).cpu().numpy()


def theirs(z: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """The same from one ``LogisticRegression`` after another."""
    x, labels = z.numpy(), y.numpy()
    return np.array(
        [
            LogisticRegression().fit(x[:TRAIN, head], labels[:TRAIN]).score(x[TRAIN:, head], labels[TRAIN:])
            for head in range(HEADS)
        ]
    )


def measure() -> dict[str, Any]:
    """Seconds for all heads, taken layer by layer in turn, so that a busy machine slows both alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    ours(*heads_of(0)), theirs(*heads_of(0))  # the first call pays for start-up
    seconds: dict[str, list[float]] = {"tunescope": [], "scikit-learn": [], "tunescope, cuda": []}
    apart = []
    for layer in range(LAYERS):
        z, y = heads_of(layer)
        mine = _timed(ours, z, y, seconds["tunescope"])
        peer = _timed(theirs, z, y, seconds["scikit-learn"])
        apart.append(np.abs(mine - peer).max())
        if torch.cuda.is_available():
            _timed(ours, z.cuda(), y.cuda(), seconds["tunescope, cuda"])
    torch.set_num_threads(before)
    ratios = [b / a for a, b in zip(seconds["tunescope"], seconds["scikit-learn"], strict=True)]
    found = {name: round(sum(times), 3) for name, times in seconds.items() if times}
    result: dict[str, Any] = {
        "heads": f"{LAYERS} x {HEADS} of {WIDTH}, {ROWS} prompts",
        "threads": THREADS,
        "seconds": found,
        "times_faster": round(statistics.median(ratios), 2),
        "largest_difference_in_accuracy": round(float(max(apart)), 4),
    }
    if cuda := seconds["tunescope, cuda"]:
        on_gpu = [b / a for a, b in zip(cuda, seconds["scikit-learn"], strict=True)]
        result |= {"gpu": torch.cuda.get_device_name(), "times_faster_on_gpu": round(statistics.median(on_gpu[1:]), 1)}
    return result


def _timed(run: Callable[..., np.ndarray], z: torch.Tensor, y: torch.Tensor, seconds: list[float]) -> np.ndarray:
    start = time.perf_counter()
    found = run(z, y)
    seconds.append(time.perf_counter() - start)
    return found
