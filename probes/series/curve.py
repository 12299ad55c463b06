"""When a series of fine-tunes learnt an answer, and what its members left as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd

from probes.call_settings import call_settings
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, scored, with_q
from probes.series.answers import Answers, pair_members, updates_of
from probes.series.change_point import change_point
from probes.series.training_perplexity import perplexities, predicted, training_sets
from workbench.argument_checks import check_pair
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.typing import Float

_FEWEST_STEPS = 4
TRACE = ["member", "layer", "score", "low", "high", "base"]
PERPLEXITY = ["member", "perplexity", "low", "high", "rows"]


@dataclass(frozen=True, kw_only=True)
class SeriesCurve(ProbeResult):
    """A line per member of a series, in order.

    ``table``: ``module`` is the member, ``score`` the share of prompts that it answers right, ``control`` the base's
    share, ``q`` of the difference; ``kl_to_base`` and ``kl_to_final`` (nats, of the next word) with their intervals;
    ``retained``: the base's part of the mean log-odds of the answer that the final model changed and this member did
    not (1: as the base, 0: as the final model), NaN where the two do not differ.
    ``change``: when the log-odds of the answers changed; None for fewer than four members.
    ``trace``: with ``lens``, per member and layer (the base first) the probability of the answer that the logit lens
    reads there, with its interval; ``base`` is the base's. ``perplexity``: with ``trained_on``, per member the base's
    perplexity of what it was trained on; ``predictor``: its rank correlation with the members' scores, with the
    interval over members and p against the scores in random order.
    """

    change: dict[str, float] | None
    trace: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=TRACE))
    perplexity: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=PERPLEXITY))
    predictor: dict[str, float] | None = None
    notes: tuple[str, ...] = ()

    title: ClassVar[str] = "Answers over a series"
    unit: ClassVar[str] = "share of prompts answered right"

    def summary(self) -> str:
        last = self.table.iloc[-1]
        text = f"{len(self.table)} members; the last answers {last['score']:.2f} right (base {last['control']:.2f})"
        if self.change is not None:
            names = self.table["module"].tolist()
            at, low, high = (names[int(self.change[part])] for part in ("index", "low", "high"))
            text += (
                f"; the answers' log-odds change at {at} [{low}, {high}], {self.change['before']:.2f} before, "
                f"{self.change['after']:.2f} after, p = {self.change['p']:.2g} against members in random order"
            )
        if self.predictor is not None:
            found = self.predictor
            text += (
                f"; the base's perplexity of their training sets goes with the scores: rho {found['rho']:.2f} "
                f"[{found['low']:.2f}, {found['high']:.2f}], p = {found['p']:.2g} against scores in random order"
            )
        return f"{text}. Control: {self.control}.{''.join(f' {note}' for note in self.notes)}"


@method(
    "series-curve",
    group="weights",
    question="When in a series of checkpoints did the answers change, and what did a member leave as the base had it?",
    papers=(
        "Low-rank finetuning for LLMs: A fairness perspective",
        "Massive Supervised Fine-tuning Experiments Reveal How Data, Layer, and Training Factors Shape LLM Alignment "
        "Quality",
    ),
    needs=Needs(columns=("answer",)),
    cost="two forward passes of each member and of the base",
    example="--checkpoints ./adapter",
)
def series_curve(
    pair: Any,
    prompts: Any,
    *,
    checkpoints: Sequence[str] = (),
    lens: bool = False,
    trained_on: Annotated[Mapping[str, Any] | None, As("prompt sets")] = None,
    draws: int = 1000,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> SeriesCurve:
    """Right answers, KL to the base and to the final model, and what is retained, for each member of a series.

    Members are put into the base's weights one at a time. With adapters of rising rank as checkpoints and the full
    fine-tune as the tuned model it shows what low rank failed to change (``retained``, ``kl_to_final``).

    Args:
        pair: Base and final model.
        prompts: Rows with an answer (and a distractor): for fairness, the unwanted word.
        checkpoints: The members before the final one: folders or hub ids, or a Trainer's output folder.
        lens: Also trace the answer (the unwanted word) through the layers of every member with the logit lens.
        trained_on: Member (checkpoint-500, ..., tuned) -> the rows it was trained on: whether the base's perplexity of
            them predicts the scores. Needs three members at least.
        draws: Resamples of the change's interval and random orders of its test.
        seed: Their seed.

    Raises:
        UserError: Fewer than two members, prompts without answers or too few, members without a training set.
    """
    check_pair(pair)
    rows = Prompts.of(prompts)
    members = pair_members(pair, checkpoints)
    learnt = None if trained_on is None else {name: Prompts.of(rows) for name, rows in trained_on.items()}
    sets = None if learnt is None else training_sets(pair.base, members.names, learnt)
    vectors, models = updates_of(pair.base, members)
    answers = Answers.of(pair.base, rows, batch_size)
    task = answers.task()
    clusters = task.clusters if task.clusters is not None else np.arange(len(answers.rows.ids))
    watch = progress or Silent()
    watch.start("series", len(vectors) + 1)
    base = _Asked.of(answers, task, None)
    watch.advance()
    asked_of = {}
    for name, vector in vectors.items():
        asked_of[name] = _Asked.of(answers, task, vector)
        watch.advance()
    watch.finish()
    trace = _trace(answers, task, vectors, clusters, seed) if lens else pd.DataFrame(columns=TRACE)
    final = list(asked_of.values())[-1]
    table = pd.DataFrame([
        {"module": name, **_measures(member, base, final, clusters, seed)} for name, member in asked_of.items()
    ])  # fmt: skip
    perplexity = pd.DataFrame(columns=PERPLEXITY) if sets is None else perplexities(pair.base, sets)
    return SeriesCurve(
        table=with_q(table, keep_p=False),
        control="the base, on the same prompts",
        provenance=Provenance.of(
            "series_curve", models, rows, seed=seed, device=str(pair.base.device), forward_passes=answers.passes,
            settings=call_settings(None, trained_on=learnt),
        ),
        trace=trace,
        perplexity=perplexity,
        predictor=None if sets is None else predicted(perplexity["perplexity"], table["score"], draws, seed),
        change=_dated([member.odds for member in asked_of.values()], draws, seed),
        notes=members.notes,
    )  # fmt: skip


def _trace(answers: Answers, task: Any, vectors: Mapping[str, Any], clusters: np.ndarray, seed: int) -> pd.DataFrame:
    base = answers.lens(task, None)
    rows = []
    for name, vector in {"base": None, **vectors}.items():
        read = base if vector is None else answers.lens(task, vector)
        for layer in range(read.shape[1]):
            line = scored(read[:, layer], seed=seed, clusters=clusters)
            rows.append({"member": name, "layer": layer, **line, "base": float(base[:, layer].mean())})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Asked:
    right: np.ndarray
    odds: Float[np.ndarray, " row"]
    words: Float[np.ndarray, "row vocab"]

    @classmethod
    def of(cls, answers: Answers, task: Any, vector: Any) -> _Asked:
        outcome = answers.outcome(task, vector)
        words = answers.log_probabilities(task, vector)
        candidates = np.concatenate([candidates.numpy() for _, candidates, _ in task.batches])
        labels = np.concatenate([label.numpy() for _, _, label in task.batches])
        among = np.take_along_axis(words, candidates, 1)
        own = among[np.arange(len(labels)), labels]
        among[np.arange(len(labels)), labels] = -np.inf
        return cls(outcome.right, own - among.max(1), words)


def _measures(answers: _Asked, base: _Asked, final: _Asked, clusters: np.ndarray, seed: int) -> dict[str, float]:
    gap = float(base.odds.mean() - final.odds.mean())
    kl_base, kl_final = _kl(answers.words, base.words), _kl(answers.words, final.words)
    return {
        **beside_control(answers.right, base.right, clusters, seed=seed, share=True),
        **_named("kl_to_base", scored(kl_base, seed=seed, clusters=clusters)),
        **_named("kl_to_final", scored(kl_final, seed=seed, clusters=clusters)),
        "retained": float(answers.odds.mean() - final.odds.mean()) / gap if abs(gap) > 1e-6 else np.nan,
        "n": len(answers.right),
    }


def _named(name: str, columns: dict[str, float]) -> dict[str, float]:
    return {name: columns["score"], f"{name}_low": columns["low"], f"{name}_high": columns["high"]}


def _kl(p: Float[np.ndarray, "row vocab"], q: Float[np.ndarray, "row vocab"]) -> Float[np.ndarray, " row"]:
    return np.maximum((np.exp(p) * (p - q)).sum(1), 0.0)


def _dated(odds: list[Float[np.ndarray, " row"]], draws: int, seed: int) -> dict[str, float] | None:
    if len(odds) < _FEWEST_STEPS:
        return None
    change = change_point(np.stack(odds), draws=draws, seed=seed)
    return {name: float(getattr(change, name)) for name in ("index", "low", "high", "p", "before", "after")}
