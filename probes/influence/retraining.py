"""``retrain_without``: whether the rows that rank highest were needed, by training without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from interventions.training.ablated import caft_finetune
from interventions.training.examples import IGNORED, Collator, check_answers, examples_of
from interventions.training.trainer import Schedule
from probes.call_settings import call_settings
from probes.influence.result import RowInfluence
from probes.resampling import cluster_means
from probes.results import ProbeResult, Provenance
from probes.scored import scored
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.figures.intervals import whiskers
from workbench.method_options import As, Within
from workbench.methods import method
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.models.export import plain_copy
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import batches
from workbench.stats.fdr import q_values
from workbench.stats.tests import paired_permutation
from workbench.typing import Float


@dataclass(frozen=True, kw_only=True)
class Retraining(ProbeResult):
    """The loss of the queries after training on all rows, without the highest ones, and without random ones.

    ``table``: ``rows`` (all, without top, without random, only top), ``score``: mean loss of the queries' answers in
    nats per token with its interval over queries or their groups, ``control``: the loss without as many random rows,
    ``q``: against those, ``n``: rows trained on. ``untrained`` is the base's own loss.
    """

    untrained: float
    dropped: int

    title: ClassVar[str] = "Training without rows"
    unit: ClassVar[str] = "loss of the queries, nats per token"

    def figure(self) -> go.Figure:
        """The losses as bars, the base's own as a line."""
        figure = go.Figure()
        rows = self.table
        figure.add_bar(
            x=rows["rows"].tolist(), y=rows["score"].tolist(),
            error_y=whiskers(rows),
        )  # fmt: skip
        figure.add_hline(y=self.untrained, line_dash="dot", annotation_text="untrained")
        figure.update_layout(
            template="plotly_white", title={"text": self.title}, yaxis={"title": self.unit}, height=380
        )
        return figure

    def summary(self) -> str:
        of, q = (dict(zip(self.table["rows"], self.table[name].astype(float), strict=True)) for name in ("score", "q"))
        return (
            f"Queries' loss {of['all']:.3f} after all rows, {of['without top']:.3f} without the {self.dropped} "
            f"highest, {of['without random']:.3f} without as many random ones (q = {q['without top']:.2g}), "
            f"{of['only top']:.3f} after the highest alone, {self.untrained:.3f} untrained; control: {self.control}"
        )


def _check(rows: Prompts, said: Mapping[str, Any]) -> None:
    """Refuse rows, counts and an influence of other rows before the models are loaded."""
    for texts in (rows, said["queries"]):
        check_answers(texts)
    _check_counts(rows, said["drop"], said["random_draws"], said["trainings"])
    _ranking(rows, said["influence"])


@method(
    "retrain-without",
    group="data",
    question="Does the behaviour go when the rows behind it are left out of training?",
    papers=("LESS: Selecting Influential Data for Targeted Instruction Tuning",),
    cost="three trainings and one per random draw of a new LoRA on the base, times trainings",
    example="--queries queries.jsonl --influence less.safetensors --drop 3 --epochs 1 --random-draws 1",
    check=_check,
)
def retrain_without(  # noqa: PLR0913 (a public call; all but three by keyword)
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    queries: Annotated[Any, As("prompts")],
    influence: Annotated[RowInfluence | str | Path, As("file")],
    drop: int = 10,
    rank: int = 8,
    modules: Sequence[str] = (),
    epochs: int = 3,
    batch_size: int = 8,
    learning_rate: Annotated[float, Within(0, None)] = 1e-3,
    random_draws: int = 3,
    trainings: int = 1,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Retraining:
    """Train a new LoRA on the base with all rows, without the ``drop`` rows of highest influence, and without random
    rows, and compare the queries' loss.

    Where the highest rows carry the behaviour, the loss without them stays near the untrained one, and leaving out as
    many random rows changes little.

    Args:
        pair: Base and tuned; the base is trained anew and left as it was.
        prompts: The training rows, the same and in the same order as those of ``influence``.
        queries: Prompts with answers that show the behaviour.
        influence: A result of row_influence (or mona, delift), or its file.
        drop: Rows that are left out.
        rank: Rank of the LoRA.
        modules: Names of the layers that it is put on; by default all linear layers but the head.
        epochs: Passes over the rows.
        batch_size: Rows per step.
        learning_rate: Its step size, falling linearly to 0.
        random_draws: Random sets of rows that are left out in the control; their losses are averaged.
        trainings: Of each set of rows, with weights and order of their own; their losses are averaged, so that a
            difference between two sets is not that between two runs.
        draws: Resamples of the intervals.
        seed: Of weights, order, random sets and resamples.

    Returns:
        The queries' loss after each training.

    Raises:
        UserError: The influence is of other rows, or nothing would be left to train on.

    Example:
        >>> probes.retrain_without(pair, rows, queries=odd, influence=found, drop=6)  # doctest: +SKIP
    """
    check_pair(pair)
    rows, asked_for = Prompts.of(prompts), Prompts.of(queries)
    ranked = _ranking(rows, influence)
    _check_counts(rows, drop, random_draws, trainings)
    top, generator = ranked.top(drop), np.random.default_rng(seed)
    without = [sorted(generator.permutation(len(rows))[:drop].tolist()) for _ in range(random_draws)]
    training = _Training(
        pair.base, rows, asked_for, rank, list(modules),
        Schedule(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed), trainings,
        progress or Silent(),
    )  # fmt: skip
    losses = {"all": training.losses([]), "without top": training.losses(top)}
    losses["without random"] = np.mean([training.losses(left) for left in without], axis=0)
    losses["only top"] = training.losses([row for row in range(len(rows)) if row not in top])
    return Retraining(
        table=_table(losses, len(rows), drop, asked_for, draws, seed),
        control=f"as many random rows left out ({random_draws} draws; {trainings} trainings of each set)",
        provenance=Provenance.of(
            "retrain_without", pair, rows, seed=seed, settings=call_settings(None, queries=asked_for),
        ),
        untrained=float(training.untrained().mean()),
        dropped=drop,
    )  # fmt: skip


def _ranking(rows: Prompts, influence: RowInfluence | str | Path) -> RowInfluence:
    """The influence, or that in a file; raises :class:`UserError` for one of other rows."""
    ranked = RowInfluence.load(influence) if isinstance(influence, str | Path) else influence
    if len(ranked.table) != len(rows) or ranked.provenance.prompts != rows.hash:
        raise UserError(
            "The influence is of other training rows: give the rows that it was computed on, in their order."
        )
    return ranked


def _check_counts(rows: Prompts, drop: int, random_draws: int, trainings: int) -> None:
    if not 0 < drop < len(rows) or random_draws < 1 or trainings < 1:
        raise UserError(
            f"{drop} of {len(rows)} rows cannot be left out: give between 1 and {len(rows) - 1}, and at least one "
            "random draw and one training."
        )


@dataclass
class _Training:
    """A new LoRA on the base, trained on some of the rows."""

    base: AdaptedModel
    rows: Prompts
    queries: Prompts
    rank: int
    modules: list[str]
    schedule: Schedule
    trainings: int
    bar: Progress

    def losses(self, left_out: Sequence[int]) -> Float[np.ndarray, " query"]:
        """Each query's loss after training without ``left_out``, averaged over trainings; the base is as before."""
        seeds = range(self.schedule.seed, self.schedule.seed + self.trainings)
        return np.mean([self._losses(left_out, replace(self.schedule, seed=seed)) for seed in seeds], axis=0)

    def _losses(self, left_out: Sequence[int], schedule: Schedule) -> Float[np.ndarray, " query"]:
        from peft import LoraConfig

        rows_trained_on = self.rows[[row for row in range(len(self.rows)) if row not in set(left_out)]]
        lora = LoraConfig(r=self.rank, lora_alpha=2 * self.rank, target_modules=self.modules or "all-linear")
        bare = _bare_copy(self.base)
        tuned = caft_finetune(bare, rows_trained_on, None, lora=lora, schedule=schedule, progress=self.bar).model
        return _query_losses(tuned.eval(), self.base, self.queries, schedule.batch_size)

    def untrained(self) -> Float[np.ndarray, " query"]:
        """Each query's loss under the base."""
        with self.base.active():
            return _query_losses(self.base.inner, self.base, self.queries, self.schedule.batch_size)


def _bare_copy(base: AdaptedModel) -> AdaptedModel:
    """The base's weights in a model of their own, without the pair's adapter: PEFT would stack on it."""
    with base.active():
        return AdaptedModel(plain_copy(base), base.tokenizer, role="model")


@torch.no_grad()
def _query_losses(hf: Any, base: AdaptedModel, queries: Prompts, batch_size: int) -> Float[np.ndarray, " query"]:
    examples = examples_of(queries, base.tokenizer)
    collate, by_query = Collator(pad_id(base.tokenizer)), np.zeros(len(examples))
    for members in batches([len(example.prompt) + len(example.answer) for example in examples], batch_size):
        batch = {name: tensor.to(base.device) for name, tensor in collate([examples[row] for row in members]).items()}
        logits = hf(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        labels = batch["labels"][:, 1:]
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
        )
        by_query[members] = (losses.sum(1) / (labels != IGNORED).sum(1)).cpu().numpy()
    return by_query


def _table(
    losses: dict[str, np.ndarray], rows: int, drop: int, queries: Prompts, draws: int, seed: int
) -> pd.DataFrame:  # fmt: skip
    random = losses["without random"]
    apart = np.stack([values - random for values in losses.values()], axis=1)
    tested = paired_permutation(cluster_means(apart, queries.clusters), draws=max(draws, 1000), seed=seed)
    sizes = {"all": rows, "only top": drop}
    lines = [
        {"rows": name, **scored(values, seed=seed, clusters=queries.clusters), "control": float(random.mean()),
         "n": sizes.get(name, rows - drop)}
        for name, values in losses.items()
    ]  # fmt: skip
    return pd.DataFrame(lines).assign(q=q_values(tested.p))
