"""The batches of a patching call: source and target run once, and kept for what patches them next."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from probes.patches.cells import Cell
from probes.patches.gradients import Leaves, Place
from probes.patches.inputs import record_on_inputs, stream_sites
from probes.patches.metrics import Metric
from probes.patches.runs import TargetRun, output_matrix, record
from probes.patches.task import Task
from probes.patches.vocabulary import can_narrow
from probes.replay import frozen
from workbench.cluster.splitting import in_parts, split_width
from workbench.engine.sites import Site
from workbench.prompts.encode import Encoded, batches
from workbench.typing import Float, Int, Tensor

Answer = TypeVar("Answer")
Share = tuple[int, int]
"""Which share of a batch's work, of how many."""
AHEAD = 2
"""Shares of work for each worker, so that none waits for the slowest."""
KEPT_BYTES = 2**29
"""How much of what was recorded is held for the next sweep over the same prompts."""


@dataclass(frozen=True)
class Prepared:
    """One batch, recorded and ready to be patched."""

    members: list[int]
    run: TargetRun
    metric: Metric
    target: Float[Tensor, " prompt"]
    gradients: dict[Place, Tensor] = field(default_factory=dict)
    """d metric / d value [prompt, pos, ...] of the target run, at the places that were asked for."""


class Recorded:
    """Every batch of ``task``, recorded when a sweep first comes to it; what fits in ``keep`` bytes is kept."""

    def __init__(
        self, task: Task, cells: Sequence[Cell], metric: str, batch_size: int, *, keep: int = KEPT_BYTES
    ) -> None:
        """``cells``: all that will be patched."""
        self.task, self.metric = task, metric
        self.passes, self.backward = 0.0, 0.0
        """Forward and backward passes spent, in units of one batch through one whole model."""
        self.source, self.target = np.zeros(len(task.target_ids)), np.zeros(len(task.target_ids))
        """The metric of both runs, prompt by prompt, once a sweep has been through."""
        self.members = batches(task.lengths, batch_size)
        self._sites = sorted({cell.site for cell in cells}, key=lambda site: site.order)
        with_mlps = "mlp_out" in {cell.kind for cell in cells}
        self._streams = stream_sites(task.target, middle=with_mlps) if task.on_target_inputs else []
        writes = sorted({cell.layer for cell in cells if cell.kind == "write"})
        self._matrices = {layer: output_matrix(task.source, layer) for layer in writes}
        self._room = keep
        self._kept: dict[int, Prepared] = {}
        self._exact: dict[bool, bool] = {}

    def batches(self, places: Sequence[Place] = ()) -> Iterator[Prepared]:
        """Each batch; recorded in two forward passes (three or four on the target's inputs), or taken from before.

        ``places``: the target runs with gradients, and one backward pass gives those of the metric there.
        """
        for number in range(len(self.members)):
            with self.opened(number, places) as batch:
                yield batch

    def spread(
        self,
        work: Callable[[Recorded, Prepared, Share], Answer],
        take: Callable[[list[int], Share, Answer], None],
        places: Sequence[Place] = (),
        *,
        modes: Collection[bool] = (),
        divisible: str | None = None,
    ) -> None:
        """``work`` on every batch, shared out inside :func:`workbench.on_ray`.

        Args:
            work: Gets these runs, the batch, and which share of its work is meant.
            take: Gets the batch's prompts, the share and what came of it, in order.
            places: As :meth:`batches` takes them.
            modes: Modes of replay (``last_only``) whose exactness must be known, so that all workers replay alike.
            divisible: The hash of what is done, where a batch's work may be done in several shares. Each records the
                batch again, and is one of the run's finished batches.
        """
        width = split_width()
        count = max(1, math.ceil(AHEAD * width / len(self.members))) if divisible is not None else 1
        parts = [(number, (share, count)) for number in range(len(self.members)) for share in range(count)]
        if width > 1 and len(parts) > 1:
            self._learn(modes)

        def merged(part: tuple[int, Share], done: _Done) -> None:
            members, (answer, metrics, passes) = self.members[part[0]], done
            self.source[members], self.target[members] = metrics
            self.passes, self.backward = self.passes + passes[0], self.backward + passes[1]
            take(members, part[1], answer)

        def content(part: tuple[int, Share]) -> Any:
            ids = [self.task.batch(self.members[part[0]])[side].input_ids for side in (0, 1)]
            return ["patches", divisible, self.metric, self.task.names, ids, part]

        identity = (
            content if divisible is not None and width > 1 else None
        )  # in one process, ``work`` keeps smaller batches
        in_parts(partial(_done, self, work, list(places)), parts, merged, content=identity)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which records what it needs itself."""
        return {**self.__dict__, "_kept": {}}

    def _learn(self, modes: Collection[bool]) -> None:
        """Whether replays are exact, before any work; costs a recording of the first batch where it is not known."""
        unknown = [mode for mode in modes if mode not in self._exact]
        if unknown:
            with self.opened(0) as first:
                for mode in unknown:
                    self.exact(first.run, last_only=mode)

    @contextmanager
    def opened(self, number: int, places: Sequence[Place] = ()) -> Iterator[Prepared]:
        """One batch, and afterwards what it cost."""
        batch, before = self._kept.get(number), (0.0, 0.0)
        if batch is None or places:
            batch = self._prepared(self.members[number], places)
        else:
            before = (batch.run.passes, batch.run.backward)
        yield batch
        self.passes += batch.run.passes - before[0]
        self.backward += batch.run.backward - before[1]
        self._keep(number, batch)

    def exact(self, run: TargetRun, *, last_only: bool) -> bool:
        """Whether replays from the middle are exact for this model; tried on the first batch that asks."""
        if last_only not in self._exact:
            run.shortcuts = True
            self._exact[last_only] = run.exact(last_only)
        return self._exact[last_only]

    def _keep(self, number: int, batch: Prepared) -> None:
        if number not in self._kept and batch.run.nbytes <= self._room:
            self._kept[number] = batch
            self._room -= batch.run.nbytes

    def _prepared(self, members: list[int], places: Sequence[Place]) -> Prepared:
        if not places:
            return self._run(members, ())
        # Both, because torch multiplies by weights that want gradients in another order, and the two runs' logits are
        # compared.
        with frozen(self.task.source.hf), frozen(self.task.target.hf):
            return self._run(members, places)

    def _run(self, members: list[int], places: Sequence[Place]) -> Prepared:
        task = self.task
        source_batch, target_batch = task.batch(members)
        judge, tokens = _judge(task, members, self.metric)
        targets = None if task.whole is None else task.whole.targets(members)
        values, source_logits = record(
            task.source, source_batch, [] if self._streams else self._sites, tokens=tokens, targets=targets
        )
        values = {site: value.to(task.target.device) for site, value in values.items()}
        leaves, also = Leaves(places), [*self._sites, *self._streams]
        run = TargetRun(
            task.target, target_batch, values, self._matrices, tokens, also=also, leaves=leaves.hooks, targets=targets
        )
        run.passes += 1
        source_logits = source_logits.to(run.logits.device)
        if self.metric == "kl":
            clean = source_logits if task.clean_is_source else run.logits
            judge = replace(judge, clean=(clean if clean.dtype == torch.float64 else clean.float()).log_softmax(-1))
        gradients = {}
        if run.graded is not None:
            # Prompts do not touch each other, so one backward pass of the sum serves them all.
            gradients = leaves.gradients(judge(run.graded[:, None]).sum())
            run.graded, run.backward = None, run.backward + 1
        if self._streams:
            run.source = self._on_the_targets_inputs(run, source_batch)
        source, target = (judge(logits[:, None])[:, 0] for logits in (source_logits, run.logits))
        self.source[members], self.target[members] = numbers(source), numbers(target)
        return Prepared(members, run, judge, target, gradients)

    def _on_the_targets_inputs(self, run: TargetRun, batch: Encoded) -> dict[Site, Tensor]:
        inputs = {site: run.values[site] for site in self._streams}
        run.values = {site: value for site, value in run.values.items() if site not in inputs or site in self._sites}
        values, spent = record_on_inputs(self.task.source, batch, self._sites, inputs)
        run.passes += spent
        return {site: value.to(self.task.target.device) for site, value in values.items()}


_Done = tuple[Any, tuple[np.ndarray, np.ndarray], tuple[float, float]]
"""The answer, the metrics [prompt] of source and target, and the forward and backward passes."""


def _done(
    runs: Recorded, work: Callable[[Recorded, Prepared, Share], Any], places: Sequence[Place], part: tuple[int, Share]
) -> _Done:
    """One share of a batch. Passes are told, not counted: they may be another process's."""
    (number, share), before = part, (runs.passes, runs.backward)
    runs.passes, runs.backward = 0.0, 0.0
    with runs.opened(number, places) as batch:
        answer = work(runs, batch, share)
    passes, members = (runs.passes, runs.backward), runs.members[number]
    runs.passes, runs.backward = before
    return answer, (runs.source[members], runs.target[members]), passes


def _judge(task: Task, members: list[int], metric: str) -> tuple[Metric, Int[Tensor, "prompt token"] | None]:
    """The metric of a batch, and the two tokens of each prompt that it reads, if it reads two alone."""
    answers = None if task.answers is None else task.answers[members]
    distractors = None if task.distractors is None else task.distractors[members]
    if task.whole is not None:
        return Metric(metric, answers, distractors, rows_per_prompt=task.whole.per_prompt), None
    narrow = metric == "logit_diff" and can_narrow(task.source) and can_narrow(task.target)
    if not narrow or answers is None or distractors is None:
        return Metric(metric, answers, distractors), None
    first = torch.zeros_like(answers)
    return Metric(metric, first, first + 1), torch.stack([answers, distractors], dim=1)


def numbers(values: Tensor) -> np.ndarray:
    """A tensor on the CPU in double precision."""
    return values.detach().double().cpu().numpy()
