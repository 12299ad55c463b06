"""Path patching: which heads reach the answer, or the inputs of chosen heads, directly.

After Wang et al. 2023 and Goldowsky-Dill et al. 2023, with the freezing convention of Prakash et al. 2024: every head
keeps its clean output at the sender's position and after it, MLPs recompute (``freeze_mlps`` freezes them too).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from probes.call_settings import call_settings
from probes.cells import mean_of_others
from probes.patches.metrics import Metric
from probes.patches.runs import record
from probes.patches.task import Task, make_task
from probes.paths.places import Head, Place, head_of, offsets_of
from probes.paths.result import PathPatching
from probes.paths.sending import PathRun, Receivers, at_positions
from probes.resampling import cluster_means
from probes.results import Provenance
from workbench.argument_checks import read_options
from workbench.engine.sites import Site, resolve_layers
from workbench.errors import UserError, unknown_name
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent
from workbench.prompts import Prompts
from workbench.prompts.encode import batches
from workbench.stats.bootstrap import mean_interval, mean_intervals
from workbench.stats.fdr import q_values
from workbench.stats.tests import paired_permutation
from workbench.typing import Float, Tensor

METRICS = ("prob_ratio", "logit_diff")
INPUTS = ("q", "k", "v")


@dataclass(frozen=True)
class PathOptions:
    """Options of :func:`path_patching`."""

    senders: Sequence[str] | None = None
    """Labels (L3H5) of the senders; by default every head of ``layers``."""
    layers: Any = None
    freeze_mlps: bool = False
    """MLPs keep their clean output too."""
    only_correct: bool | None = None
    """Keep only prompts whose answer is the patched run's first choice before patching; by default so, unless the base
    is patched, which need not show what tuning taught."""
    controls: int = 10
    batch_size: int = 16
    max_tokens: int | None = None
    """Tokens that run together as copies of a batch; by default what suits the device."""
    draws: int = 1000
    seed: int = 0
    progress: Progress | None = None


@method(
    "paths",
    group="paths",
    question="Which heads reach the answer, or the inputs of other heads, directly?",
    papers=("Fine-Tuning Enhances Existing Mechanisms: A Case Study on Entity Tracking",),
    needs=Needs(columns=("answer",), wants={"contrast": "patching within one model"}),
    cost="one forward pass per sending head and prompt",
    example="--receivers L1H0 --through q",
)
def path_patching(
    subject: Any,
    prompts: Any,
    receivers: str | Sequence[str] = "logits",
    through: Literal["q", "k", "v"] | str = "q",
    position: Place = "last",
    source: Literal["corrupted", "clean", "tuned", "base"] | str = "corrupted",
    target: Literal["clean", "corrupted", "base", "tuned"] | str = "clean",
    metric: Literal["prob_ratio", "logit_diff"] | str = "prob_ratio",
    **options: Any,
) -> PathPatching:
    """Replace each head's z at ``position`` by the source run's, let only ``receivers`` feel it, and read the answer.

    ``receivers``: ``"logits"``, or heads (``["L9H3"]``) that feel it through their ``"q"``, ``"k"`` or ``"v"`` at the
    same position; all other heads keep their clean output. A sender in the layer of a receiver or behind it has no
    path to it and scores 0. ``position``: a number (-1 is the last token), or the name of a column of the prompts with
    a number for each row. ``subject``: a model, or a pair (its tuned model), with a ``contrast`` for every prompt; or a
    pair with ``source="tuned", target="base"``, whose senders say what the tuned model's say on the same prompt.
    ``metric``: ``"prob_ratio"``, the mean of (p_patched - p_clean) / p_clean of the answer, or ``"logit_diff"``, the
    change of answer minus distractor. ``options``: see :class:`PathOptions`.

    Raises :class:`UserError` for unknown heads or positions, missing answers or contrasts, and when the
    patched run answers no prompt correctly (``only_correct``).

    Args:
        receivers: logits, or heads that feel it, as L9H3.
        through: How receiving heads feel it: their q, k or v.
        position: Where: last, a number (-1 is the last token), or a column of the prompts.
        source: The run that activations are taken from: corrupted or clean, across models tuned or base.
        target: The run that they are put into.
    """
    settings = read_options(PathOptions, options)
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    task = make_task(subject, prompts, source, target)
    settings = replace(
        settings, only_correct=task.names[1] != "base" if settings.only_correct is None else settings.only_correct
    )
    _check_answers(metric, task)
    reading = _receivers(receivers, through, task)
    senders = _senders(task, settings)
    sweep = _Sweep(task, senders, reading, position, metric, settings)
    effects = sweep.run()
    clusters = task.prompts.clusters[sweep.usable]
    return PathPatching(
        table=_table(senders, effects, clusters, settings),
        control=f"the mean of {settings.controls} random other senders",
        provenance=Provenance.of(
            "path_patching", task.models, task.prompts, seed=settings.seed, device=str(task.target.device),
            forward_passes=math.ceil(sweep.passes),
            settings={
                **call_settings(settings, prompts=Prompts.of(prompts), receivers=_labels(receivers),
                        source=task.names[0], target=task.names[1]),
                "frozen": "z of every head at the position and after it",
                "incorrect_dropped": int((~sweep.usable).sum()),
                "clashing_answers_dropped": task.dropped, "read_to_the_difference": task.read_on,
            },
        ),
        source=task.names[0],
        target=task.names[1],
        receivers=_labels(receivers),
        through="logits" if reading is None else through,
        place=str(position),
        metric=metric,
        freeze_mlps=settings.freeze_mlps,
        clean=sweep.clean_value(clusters),
        effects=effects,
    )  # fmt: skip


def _check_answers(metric: str, task: Task) -> None:
    if task.answers is None:
        raise UserError(f"metric={metric!r} reads an answer: give the prompts an 'answer' column.")
    if metric == "logit_diff" and task.distractors is None:
        raise UserError(
            "metric='logit_diff' compares an answer with a distractor: give the prompts both columns, or use "
            "metric='prob_ratio', which reads the answer alone."
        )


def _labels(receivers: str | Sequence[str]) -> list[str]:
    if receivers == "logits":
        return []
    return [receivers] if isinstance(receivers, str) else list(receivers)


def _receivers(receivers: str | Sequence[str], through: str, task: Task) -> Receivers | None:
    """The receiving heads, as places of the q, k or v they read; None for the logits."""
    names = _labels(receivers)
    if not names:
        if receivers != "logits":
            raise UserError("There are no receivers: give 'logits', or labels of heads such as ['L9H3'].")
        return None
    if through not in INPUTS:
        raise unknown_name("input of a head", through, INPUTS)
    model = task.target
    heads = [head_of(name, model) for name in names]
    shared = 1 if through == "q" else model.n_heads // model.n_kv_heads
    groups = dict.fromkeys((layer, head // shared) for layer, head in heads)
    model.expand([Site(through, layer) for layer, _ in groups])  # a model without such a site says so
    return Receivers(through, tuple(groups))


def _senders(task: Task, settings: PathOptions) -> list[Head]:
    model = task.target
    if settings.senders is not None:
        senders = list(dict.fromkeys(head_of(name, model) for name in settings.senders))
        if not senders:
            raise UserError("There are no senders: give labels such as ['L3H5'], or leave senders out for all heads.")
        return sorted(senders)
    layers = resolve_layers(settings.layers, model.n_layers)
    return [(layer, head) for layer in layers for head in range(model.n_heads)]


class _Sweep:
    """All senders over all prompts, and what it cost."""

    def __init__(
        self,
        task: Task,
        senders: Sequence[Head],
        receivers: Receivers | None,
        position: Place,
        metric: str,
        settings: PathOptions,
    ) -> None:
        self.task, self.senders, self.receivers = task, senders, receivers
        self.metric, self.settings = metric, settings
        self.at = offsets_of(position, task.prompts, task.lengths)
        source_lengths = [len(row) for row in task.source_ids]
        two_prompts = task.names[0] in ("clean", "corrupted")
        self.source_at = offsets_of(position, task.prompts, source_lengths, of_contrast=two_prompts)
        self.usable = np.ones(len(task.target_ids), dtype=bool)
        self._clean = np.zeros(len(task.target_ids))
        self.passes = 0.0

    def run(self) -> Float[np.ndarray, "prompt sender"]:
        """The effect of every sender on every kept prompt."""
        task, report = self.task, self.settings.progress or Silent()
        effects = np.zeros((len(task.target_ids), len(self.senders)))
        groups = batches(task.lengths, self.settings.batch_size)
        report.start("Path patching", len(groups) * len({layer for layer, _ in self.senders}))
        for members in groups:
            run = self._prepared(members)
            judge = self._judge(members)
            self._look_at(members, run.logits, judge)
            by_layer: dict[int, list[int]] = {}
            for column, (layer, _) in enumerate(self.senders):
                by_layer.setdefault(layer, []).append(column)
            for layer, columns in by_layer.items():
                for part in self._parts(columns, run):
                    effects[np.ix_(members, part)] = self._effects(run, layer, part, judge)
                report.advance()
            self.passes += run.passes + 1
        report.finish()
        self._check_usable()
        return effects[self.usable]

    def clean_value(self, clusters: np.ndarray) -> tuple[float, float, float]:
        """The patched run's own metric, before patching."""
        interval = mean_interval(
            self._clean[self.usable], clusters=clusters, draws=self.settings.draws, seed=self.settings.seed
        )
        return interval.estimate, interval.low, interval.high

    def _prepared(self, members: list[int]) -> PathRun:
        task, model = self.task, self.task.target
        source_batch, target_batch = task.batch(members)
        sites = [Site("z", layer) for layer in range(model.n_layers)]
        values, _ = record(task.source, source_batch, sites)
        there = torch.tensor([self.source_at[row] for row in members])
        sent = torch.stack([at_positions(values[site], there).to(model.device) for site in sites])
        at = torch.tensor([self.at[row] for row in members], device=model.device)
        return PathRun(model, target_batch, at, sent, freeze_mlps=self.settings.freeze_mlps)

    def _judge(self, members: list[int]) -> Metric:
        task = self.task
        assert task.answers is not None
        distractors = None if task.distractors is None else task.distractors[members]
        return Metric("log_prob" if self.metric == "prob_ratio" else self.metric, task.answers[members], distractors)

    def _look_at(self, members: list[int], logits: Tensor, judge: Metric) -> None:
        assert self.task.answers is not None
        values = judge(logits[:, None])[:, 0]
        self._clean[members] = (values.exp() if self.metric == "prob_ratio" else values).double().cpu().numpy()
        if self.settings.only_correct:
            self.usable[members] = (logits.argmax(-1).cpu() == self.task.answers[members]).numpy()

    def _effects(
        self, run: PathRun, layer: int, columns: list[int], judge: Metric
    ) -> Float[np.ndarray, "prompt sender"]:
        heads = [self.senders[column][1] for column in columns]
        if self.receivers is None:
            if not bool((run.at == -1).all()):  # what is said at another token reaches the last one through heads only
                return np.zeros((len(run.at), len(heads)))
            logits, nothing = run.to_logits(layer, heads), run.silent[:, layer, heads]
        else:
            if not self.receivers.after(layer):
                return np.zeros((len(run.at), len(heads)))
            logits, nothing = run.to_heads(layer, heads, self.receivers)
            nothing = nothing | run.silent[:, layer, heads].to(nothing.device)
        values = judge(logits)
        change = values[:, 1:] - values[:, :1]
        if self.metric == "prob_ratio":
            change = change.expm1()
        return change.masked_fill(nothing.to(change.device), 0.0).double().cpu().numpy()

    def _parts(self, columns: list[int], run: PathRun) -> Iterator[list[int]]:
        """Columns that run together: at most ``max_tokens`` tokens, or so many rows of one token."""
        small = self.task.target.device.type == "cpu"
        at_once = self.settings.max_tokens or (512 if small else 16_384)
        alone = self.receivers is None or bool((run.at == -1).all())
        tokens = len(run.at) if alone else run.batch.input_ids.numel()
        width = max(1, at_once // tokens - 1)
        for start in range(0, len(columns), width):
            yield columns[start : start + width]

    def _check_usable(self) -> None:
        if not self.usable.any():
            raise UserError(
                f"The {self.task.names[1]} run answers none of the {len(self.usable)} prompts correctly, so there is "
                "no behaviour to trace: check the answers, or only_correct=False."
            )


def _table(
    senders: Sequence[Head], effects: Float[np.ndarray, "prompt cell"], clusters: np.ndarray, settings: PathOptions
) -> pd.DataFrame:
    intervals = mean_intervals(effects, clusters=clusters, draws=settings.draws, seed=settings.seed)
    return pd.DataFrame({
        "layer": [layer for layer, _ in senders], "head": [head for _, head in senders],
        "score": intervals.estimate, "low": intervals.low, "high": intervals.high,
        "control": mean_of_others(intervals.estimate, settings.controls, settings.seed),
        "q": q_values(paired_permutation(cluster_means(effects, clusters), seed=settings.seed).p),
    })  # fmt: skip
