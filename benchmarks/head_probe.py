"""Linear probes on 32 x 32 heads, 2,000 prompts: all at once, against scikit-learn's loop over heads, in one process.

Two comparisons. ``one_fit``: the solver alone, one fit to 1,600 rows tested on 400, on both sides. ``head_probe``: what
a call with its defaults costs: 5 folds and a fit to all rows, ten draws of shuffled labels with folds of their own (the
control, 50 more fits a head), intervals and q-values. The peer has no control, no intervals and no q-values; its time
is given for one fit a head, and for the same folds and the fit to all rows.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from threadpoolctl import threadpool_limits

from probes.linear.folds import make_folds
from probes.linear.heads import BUDGET, GPU_BUDGET, head_probe
from probes.linear.logistic import cell_chunks, fit
from workbench.recording.recording import Recording

LAYERS, HEADS, WIDTH, ROWS, TRAIN = 32, 32, 64, 2000, 1600
THREADS, CALLS = 2, 5
Found = TypeVar("Found")


def labels() -> torch.Tensor:
    """[row]"""
    return torch.rand(ROWS, generator=torch.Generator().manual_seed(0)) < 0.5


def heads_of(layer: int, y: torch.Tensor) -> torch.Tensor:
    """z [row, head, d_head] whose heads carry the label from not at all to clearly."""
    random = torch.Generator().manual_seed(1 + layer)
    along = torch.nn.functional.normalize(torch.randn(HEADS, WIDTH, generator=random), dim=-1)
    strength = torch.linspace(0.0, 1.5, HEADS)[:, None] * along
    return torch.randn(ROWS, HEADS, WIDTH, generator=random) + (2.0 * y - 1)[:, None, None] * strength


def recording_of(layers: list[torch.Tensor], y: torch.Tensor) -> Recording:
    """A recording that holds ``layers`` in memory; every prompt is a group of its own, in the order of rows."""
    groups = [f"{row:04d}" for row in range(ROWS)]
    columns = {"prompt": range(ROWS), "position": 0, "token": "x", "label": y.numpy().astype(str), "group": groups}
    tensors = {"tuned": {f"blocks.{number}.attn.hook_z": z for number, z in enumerate(layers)}}
    config = {"roles": ["tuned"], "sites": list(tensors["tuned"]), "n_prompts": ROWS}
    return Recording(pd.DataFrame(columns), config, tensors)


def ours(z: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """Held-out accuracy of every head, from one fit. z [row, head, d_head] of any number of heads."""
    accuracies = []
    for part in cell_chunks(z.shape[1], ROWS, WIDTH, GPU_BUDGET if z.is_cuda else BUDGET):
        x = z[:, part].transpose(0, 1)
        probes = fit(x[:, :TRAIN], y[:TRAIN])
        accuracies.append(((probes.logits(x[:, TRAIN:]) > 0) == y[TRAIN:]).float().mean(1))
    return torch.cat(accuracies).cpu().numpy()


def theirs(z: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """The same from one ``LogisticRegression`` after another."""
    x, target = z.numpy(), y.numpy()
    return np.array(
        [
            LogisticRegression().fit(x[:TRAIN, head], target[:TRAIN]).score(x[TRAIN:, head], target[TRAIN:])
            for head in range(HEADS)
        ]
    )


def theirs_by_folds(z: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """Cross-validated accuracy of every head on head_probe's folds; a fit to all rows gives the weights."""
    x, target = z.numpy(), y.numpy()
    folds = PredefinedSplit(make_folds(5, np.arange(ROWS), target, 0))
    accuracies = []
    for head in range(HEADS):
        LogisticRegression().fit(x[:, head], target)
        accuracies.append((cross_val_predict(LogisticRegression(), x[:, head], target, cv=folds) == target).mean())
    return np.array(accuracies)


def measure(device: str = "cpu") -> dict[str, Any]:
    """Seconds for all heads; both sides take turns, so that a busy machine slows both alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    y = labels()
    layers = [heads_of(layer, y) for layer in range(LAYERS)]
    figures: dict[str, Any] = {"heads": f"{LAYERS} x {HEADS} of {WIDTH}, {ROWS} prompts", "threads": THREADS}
    with threadpool_limits(THREADS):
        if device == "cpu":
            figures |= {"one_fit": _one_fit(layers, y), "head_probe": _whole_call(layers, y)}
        else:
            figures |= {"gpu": torch.cuda.get_device_name(), **_on_gpu(layers, y, device)}
    torch.set_num_threads(before)
    return figures


def _one_fit(layers: list[torch.Tensor], y: torch.Tensor) -> dict[str, Any]:
    ours(layers[0], y), theirs(layers[0], y)  # the first call pays for start-up
    seconds: dict[str, list[float]] = {"tunescope": [], "scikit-learn": []}
    apart = []
    for z in layers:
        mine = _timed(lambda: ours(z, y), seconds["tunescope"])  # noqa: B023
        peer = _timed(lambda: theirs(z, y), seconds["scikit-learn"])  # noqa: B023
        apart.append(np.abs(mine - peer).max())
    return {
        "seconds": {name: round(sum(times), 3) for name, times in seconds.items()},
        "times_faster": _median_ratio(seconds["scikit-learn"], seconds["tunescope"]),
        "largest_difference_in_accuracy": round(float(max(apart)), 4),
    }


def _on_gpu(layers: list[torch.Tensor], y: torch.Tensor, device: str) -> dict[str, Any]:
    """All heads at once on the GPU, from features that are there and from the processor's memory; a whole call."""
    seconds: dict[str, list[float]] = {}
    there, said = torch.cat(layers, 1).to(device), y.to(device)
    recording = recording_of(layers, y)
    variants: dict[str, Callable[[], Any]] = {
        "tunescope, features on the GPU": lambda: ours(there, said),
        "tunescope, features in the processor's memory": lambda: np.concatenate(
            [ours(z.to(device), said) for z in layers]
        ),
        "tunescope, head_probe(device)": lambda: head_probe(recording, device=device),
        "scikit-learn, one fit": lambda: np.concatenate([theirs(z, y) for z in layers]),
        "scikit-learn, folds and all rows": lambda: np.concatenate([theirs_by_folds(z, y) for z in layers]),
    }
    figures: dict[str, Any] = {}
    for name, run in variants.items():
        seconds[name] = []
        for _ in range(1 if "folds" in name else CALLS):
            if not seconds[name] and "tunescope" in name:
                run()  # the first call pays for start-up
            figures[name] = _timed(run, seconds[name])
    took = {name: statistics.median(times) for name, times in seconds.items()}
    here, copied, whole, single, folds = variants
    scores = figures[whole].table["score"]
    return {
        "seconds": {name: round(value, 4) for name, value in took.items()},
        "times_faster": round(took[single] / took[here], 1),
        "times_faster_with_the_copy": round(took[single] / took[copied], 1),
        "times_faster_head_probe_than_the_same_folds": round(took[folds] / took[whole], 1),
        "largest_difference_in_accuracy": round(float(np.abs(figures[here] - figures[single]).max()), 4),
        "largest_difference_in_accuracy_of_head_probe": round(float(np.abs(scores - figures[folds]).max()), 4),
    }


def _whole_call(layers: list[torch.Tensor], y: torch.Tensor) -> dict[str, Any]:
    """One call over all layers, several times, with the peer's layers in between."""
    head_probe(recording_of(layers[:1], y))
    recording, share = recording_of(layers, y), LAYERS // (CALLS - 1)
    calls: list[float] = []
    single_calls: list[float] = []
    folds: list[float] = []
    scores: list[np.ndarray] = []
    table = _timed(lambda: head_probe(recording), calls).table
    for start in range(0, LAYERS, share):
        for z in layers[start : start + share]:
            _timed(lambda: theirs(z, y), single_calls)  # noqa: B023
            scores.append(_timed(lambda: theirs_by_folds(z, y), folds))  # noqa: B023
        table = _timed(lambda: head_probe(recording), calls).table
    seconds = statistics.median(calls)
    return {
        "seconds": {
            "tunescope, folds, control and intervals": round(seconds, 3),
            "scikit-learn, one fit": round(sum(single_calls), 3),
            "scikit-learn, folds and all rows": round(sum(folds), 3),
        },
        "times_faster_than_one_fit": round(sum(single_calls) / seconds, 2),
        "times_faster_than_the_same_folds": round(sum(folds) / seconds, 2),
        "largest_difference_in_accuracy": round(float(np.abs(table["score"] - np.concatenate(scores)).max()), 4),
    }


def _median_ratio(slow: list[float], fast: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(slow, fast, strict=True)), 2)


def _timed(run: Callable[[], Found], seconds: list[float]) -> Found:
    start = time.perf_counter()
    accuracy = run()
    seconds.append(time.perf_counter() - start)
    return accuracy
