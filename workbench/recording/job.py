"""Record a pair into a run folder: what the command line, the demo and scripts call."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from workbench.engine.positions import where as where_
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.recording.load_options import load_options, open_recording
from workbench.recording.record_pair import record
from workbench.recording.recording import Recording
from workbench.recording.sink_rows import averaged_rows, massive_rows
from workbench.runs.folder import Run
from workbench.typing import Bool
from workbench.vllm.route import executor_settings

ACTIVATIONS = "activations"
_CHUNK = 2**20
"""How many numbers of each model are widened to float64 at once (8 MiB)."""


class RecordedRun(NamedTuple):
    """A finished recording: its run, its rows, and how far apart the two models are at each site."""

    run: Run
    recording: Recording
    differences: pd.DataFrame


def record_run(  # noqa: PLR0913 (the options of the command)
    base: Any,
    tuned: Any,
    prompts: Any,
    *,
    sites: Sequence[str],
    layers: Any = None,
    positions: Any = "last",
    out: str | Path | None = None,
    statistics: bool = False,
    new_tokens: int = 0,
    batch_size: Any = "auto",
    device: Any = "auto",
    dtype: Any = "auto",
    progress: Progress | None = None,
    flags: Mapping[str, Any] | None = None,
    where: Mapping[str, Any] | None = None,
) -> RecordedRun:
    """Load a pair, record it into a run at ``out`` (default: a new folder in the runs' home), and compare.

    ``flags`` go to :func:`load_pair`; ``where`` (backend, executor, workers, engine_settings) to :func:`record`. The
    run keeps what of ``device``, ``dtype``, ``flags`` and the backend is not the default, and the engine if it is vLLM.

    Killed in mid-way, the same call resumes. Raises :class:`UserError` before anything is written when the input is
    wrong, and when ``out`` holds another recording.
    """
    rows = Prompts.load(prompts) if isinstance(prompts, str | Path) else Prompts.of(prompts)
    placed = dict(where or {})
    where_(positions)
    if new_tokens < 0:
        raise UserError(f"new_tokens is {new_tokens}; give 0 or more.")
    pair = load_pair(base, tuned, device=device, dtype=dtype, **(flags or {}))
    pair.base.expand(sites, layers)
    config = {
        "base": pair.base.identity.to_dict(), "tuned": pair.tuned.identity.to_dict(), "prompts": rows.hash,
        "sites": list(sites), "layers": layers, "positions": str(positions), "statistics": statistics,
        "new_tokens": new_tokens, **_engine(placed),
    }  # fmt: skip
    options = load_options({"device": device, "dtype": dtype, **(flags or {}), **placed})
    run = open_recording(out, config, options)
    fresh = not run.file(ACTIVATIONS).exists()
    run.hold()
    try:
        if run.is_complete:
            run.reopen()
    except UserError:
        run.let_go()
        raise
    try:
        with run:
            recording = record(
                pair, rows, sites, layers=layers, positions=positions,
                store=None if statistics else run.file(ACTIVATIONS), new_tokens=new_tokens, batch_size=batch_size,
                progress=progress, **placed,
            )  # fmt: skip
            differences = difference_table(recording)
            run.write_table("difference", differences)
            run.keep_pair(pair.base.name, pair.tuned.name, rows)
            run.write_json("pair", describe_pair(pair))
            if statistics:
                _write_moments(run, recording)
    except UserError:
        if fresh and not run.file(ACTIVATIONS).exists():
            shutil.rmtree(run.path)  # it never began; the folder would only be in the way of the next try
        raise
    return RecordedRun(run, recording, differences)


def _engine(where: Mapping[str, Any]) -> dict[str, Any]:
    """What a run keeps of vLLM, whose last bits are others; a cluster's workers change no number."""
    executor = where.get("executor", "local")
    return executor_settings(executor, where.get("engine_settings")) if executor == "vllm" else {}


def difference_table(recording: Recording) -> pd.DataFrame:
    """Per site: the norm of the mean difference tuned - base, relative to the base's root mean square, and n.

    Where the base is nothing but zeros, the difference is not divided.
    Attention sinks are left out of the means, where rows were kept (:func:`averaged_rows`).
    """
    averaged = None if recording.moments else averaged_rows(recording.index, massive=massive_rows(recording)).rows
    rows = []
    for site in recording.sites:
        difference = _difference(recording, site, averaged)
        if difference is not None:
            rows.append({"site": site, **difference, "n": len(recording) if averaged is None else int(averaged.sum())})
    table = pd.DataFrame(rows, columns=["site", "mean_shift", "mean_distance", "base_norm", "relative", "n"])
    return table.sort_values("relative", ascending=False, ignore_index=True)


def _difference(
    recording: Recording, site: str, averaged: Bool[np.ndarray, " row"] | None = None
) -> dict[str, float] | None:
    """Norms are over all features of a row; NaN rows are left out."""
    if recording.moments:
        if "difference" not in recording.moments or site not in recording.moments["difference"]:
            return None
        moved, base = recording.moments["difference"][site], recording.moments["base"][site]
        shift = float(moved.mean.norm())
        distance = float((moved.variance * (moved.count - 1) / moved.count + moved.mean**2).sum() ** 0.5)
        norm = float((base.variance * (base.count - 1) / base.count + base.mean**2).sum() ** 0.5)
    else:
        shift, distance, norm = _streamed(recording["base"][site], recording["tuned"][site], averaged)
    relative = distance / norm if norm > 0 else distance
    return {"mean_shift": shift, "mean_distance": distance, "base_norm": norm, "relative": relative}


def _streamed(base: Any, tuned: Any, averaged: Bool[np.ndarray, " row"] | None = None) -> tuple[float, float, float]:
    """Norm of the mean difference, root mean square of the difference and of the base, a few rows at a time.

    ``averaged``: the rows that count; None: all.
    """
    width = max(1, int(torch.Size(base.shape[1:]).numel()))
    rows = max(1, _CHUNK // width)
    total = torch.zeros(width, dtype=torch.float64)
    moved = squares = 0.0
    count = 0
    for start in range(0, len(base), rows):
        before = torch.as_tensor(base[start : start + rows]).flatten(1).double()
        change = torch.as_tensor(tuned[start : start + rows]).flatten(1).double() - before
        finite = torch.isfinite(change).all(1)
        if averaged is not None:
            finite &= torch.from_numpy(averaged[start : start + rows])
        if not bool(finite.all()):
            change, before = change[finite], before[finite]
        total += change.sum(0).cpu()
        moved += float(change.square().sum())
        squares += float(before.square().sum())
        count += len(change)
    if not count:
        return float("nan"), float("nan"), float("nan")
    return float((total / count).norm()), (moved / count) ** 0.5, (squares / count) ** 0.5


def describe_pair(pair: ModelPair) -> dict[str, Any]:
    """What a run says about its pair."""
    return {
        "base": repr(pair.base), "tuned": repr(pair.tuned), "one_copy": pair.one_copy,
        "differences": pair.differences.sentences(),
    }  # fmt: skip


def _write_moments(run: Run, recording: Recording) -> None:
    tensors = {
        f"{role}/{site}/{name}": tensor
        for role, sites in recording.moments.items()
        for site, moments in sites.items()
        for name, tensor in moments.as_tensors().items()
    }
    run.write_tensors("moments", tensors)
