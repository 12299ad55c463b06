"""Many patches over all prompts: the change of the metric, prompt by prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from probes.patches.cells import Patch
from probes.patches.metrics import Metric
from probes.patches.runs import TargetRun, output_matrix, record, record_on_inputs, stream_sites
from probes.patches.task import Task
from probes.patches.vocabulary import can_narrow
from workbench.progress import Progress, Silent
from workbench.prompts.encode import batches
from workbench.typing import Float, Int, Tensor

MAX_ROWS = 512
"""Rows run together when each is a single token; their logits are held at once."""


@dataclass(frozen=True)
class Sweep:
    """What patches did."""

    effects: Float[np.ndarray, "prompt patch"]
    """Metric of the patched target run minus metric of the target run."""
    source: Float[np.ndarray, " prompt"]
    """Metric of the source run."""
    target: Float[np.ndarray, " prompt"]
    passes: float
    """Forward passes in units of one batch through one whole model."""
    exact_shortcuts: bool
    """False where replaying from the middle was not exact, so that every patch was a whole forward pass."""


@dataclass(frozen=True)
class Prepared:
    """One batch, recorded and ready to be patched."""

    members: list[int]
    run: TargetRun
    metric: Metric
    source: Float[Tensor, " prompt"]
    target: Float[Tensor, " prompt"]
    recorded: float
    """Forward passes spent on what is patched in."""


def prepared(task: Task, patches: Sequence[Patch], metric: str, batch_size: int) -> Iterator[Prepared]:
    """Each batch with the source recorded and the target run; two forward passes (or five on the target's inputs)."""
    cells = [cell for patch in patches for cell in patch]
    sites = sorted({cell.site for cell in cells}, key=lambda site: site.order)
    matrices = {
        layer: output_matrix(task.source, layer) for layer in sorted({c.layer for c in cells if c.kind == "write"})
    }
    for members in batches(task.lengths, batch_size):
        source_batch, target_batch = task.batch(members)
        judge, tokens = _judge(task, members, metric)
        own = [] if task.on_target_inputs else sites
        values, source_logits = record(task.source, source_batch, own, tokens=tokens)
        recorded = 1.0
        if task.on_target_inputs:
            streams = stream_sites(task.target, middle="mlp_out" in {cell.kind for cell in cells})
            inputs, _ = record(task.target, target_batch, streams)
            values, more = record_on_inputs(task.source, source_batch, sites, inputs)
            recorded += 1 + more
        values = {site: value.to(run_device(task)) for site, value in values.items()}
        run = TargetRun(task.target, target_batch, values, matrices, tokens)
        if tokens is None:
            clean = source_logits.to(run.logits.device) if task.clean_is_source else run.logits
            judge = replace(judge, clean=(clean if clean.dtype == torch.float64 else clean.float()).log_softmax(-1))
        source = judge(source_logits.to(run.logits.device)[:, None])[:, 0]
        yield Prepared(members, run, judge, source, judge(run.logits[:, None])[:, 0], recorded)


def _judge(task: Task, members: list[int], metric: str) -> tuple[Metric, Int[Tensor, "prompt token"] | None]:
    """The metric of a batch, and the two tokens of each prompt that it reads, if it reads two alone."""
    answers = None if task.answers is None else task.answers[members]
    distractors = None if task.distractors is None else task.distractors[members]
    narrow = metric == "logit_diff" and can_narrow(task.source) and can_narrow(task.target)
    if not narrow or answers is None or distractors is None:
        return Metric(metric, answers, distractors), None
    first = torch.zeros_like(answers)
    return Metric(metric, first, first + 1), torch.stack([answers, distractors], dim=1)


def run_device(task: Task) -> torch.device:
    """Where the target run lives."""
    return task.target.device


def sweep(
    task: Task,
    patches: Sequence[Patch],
    metric: str,
    *,
    batch_size: int = 16,
    max_tokens: int | None = None,
    shortcuts: bool = True,
    progress: Progress | None = None,
) -> Sweep:
    """Patch the target run with each of ``patches``, one forward pass (or the part that can change) each.

    ``max_tokens``: how many tokens run together as copies (default 512 on a CPU, whose caches are small, else 16384).
    ``shortcuts=False`` runs whole forward passes.
    """
    report = progress or Silent()
    at_once = max_tokens or (512 if task.target.device.type == "cpu" else 16_384)
    n = len(task.target_ids)
    effects = np.zeros((n, len(patches)))
    source, target = np.zeros(n), np.zeros(n)
    passes, exact = 0.0, shortcuts
    report.start("Patching", len(batches(task.lengths, batch_size)) * len(patches))
    for number, one in enumerate(prepared(task, patches, metric, batch_size)):
        if number == 0 and shortcuts:
            exact = all(one.run.exact(last) for last in _modes(patches))
        one.run.shortcuts = exact
        source[one.members], target[one.members] = _numbers(one.source), _numbers(one.target)
        for group in _groups(patches, one.run.batch.input_ids.numel(), len(one.members), at_once):
            logits = one.run.patched([patches[index] for index in group])
            # A patch that puts in what is there does nothing; replayed from the middle it would show rounding errors.
            unmoved = torch.stack([one.run.unmoved(patches[index]) for index in group], dim=1)
            effects[np.ix_(one.members, group)] = _numbers(
                (one.metric(logits) - one.target[:, None]).masked_fill(unmoved, 0.0)
            )
            report.advance(len(group))
        passes += one.run.passes + one.recorded
    report.finish()
    return Sweep(effects, source, target, passes, exact)


def _modes(patches: Sequence[Patch]) -> set[bool]:
    return {_last_only(patch) for patch in patches}


def _last_only(patch: Patch) -> bool:
    return all(cell.positions == (-1,) for cell in patch)


def _groups(patches: Sequence[Patch], tokens: int, rows: int, max_tokens: int) -> list[list[int]]:
    """Patches that run together: same first layer, same positions mode, at most ``max_tokens`` tokens."""
    by_start: dict[tuple[int, bool], list[int]] = {}
    for index, patch in enumerate(patches):
        by_start.setdefault((min(cell.layer for cell in patch), _last_only(patch)), []).append(index)
    groups = []
    for (_, last_only), members in sorted(by_start.items()):
        width = max(1, min(max_tokens, MAX_ROWS) // rows if last_only else max_tokens // tokens)
        groups += [members[start : start + width] for start in range(0, len(members), width)]
    return groups


def _numbers(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
