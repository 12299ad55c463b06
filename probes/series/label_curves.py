"""Accuracy over the number of labels: elicitation with weak and strong ones, and sample efficiency of two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from interventions.training.stages import Stage, tune_in_stages
from interventions.training.trainer import Schedule
from probes.call_settings import call_settings
from probes.effects.answers import Measure, answer_scores
from probes.effects.panel import CHANGE, EffectPanel, paired_lines, scored_line, spanned, table_of
from probes.effects.rewriting import column_of
from probes.results import Provenance
from probes.scored import with_q
from workbench.argument_checks import check_pair, check_subject
from workbench.engine.sites import resolve_layers
from workbench.errors import UserError
from workbench.method_options import As, Within
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.models.export import plain_copy
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.recording.record_pair import record

WEAK, STRONG, BOTH, PROBE = "weak only", "strong only", "weak, then strong", "probe of the untuned states"
UNCOUNTED = ("prob", "answer")
"""Measures that are no shares of right answers, which is all that a probe of the states has."""


@dataclass(frozen=True)
class Lora:
    """How a copy of a model is trained on some rows."""

    rank: int
    schedule: Schedule

    def trained(self, model: AdaptedModel, sets: Sequence[Prompts]) -> AdaptedModel:
        """A copy of ``model`` with a new LoRA trained on one set after the other; the model itself stays as it is."""
        from peft import LoraConfig

        with model.active():
            copied = AdaptedModel(plain_copy(model), model.tokenizer, role="model")
        lora = LoraConfig(r=self.rank, lora_alpha=2 * self.rank, target_modules="all-linear", task_type="CAUSAL_LM")
        stages = [Stage(rows) for rows in sets if len(rows)]
        made = tune_in_stages(copied, stages, lora=lora, end=False, schedule=self.schedule)
        return AdaptedModel(made.model.merge_and_unload().eval(), model.tokenizer, role="model")


@method(
    "elicitation",
    group="training",
    question="How many good labels does it take to bring out what the model knows, and do many bad ones help?",
    papers=("Balancing Label Quantity and Quality for Scalable Elicitation",),
    needs=Needs(columns=("answer",)),
    cost="two small trainings per number of strong labels, one of the weak ones, and a scored pass each",
    example="--strong train.jsonl --weak train.jsonl --counts 4,8 --epochs 1",
    any_adapter="whether the copies that are trained here do better, whatever the pair",
)
def elicitation_curve(  # noqa: PLR0913 (a public call)
    subject: Any,
    prompts: Prompts | Sequence[Any],
    *,
    strong: Annotated[Any, As("prompts")],
    weak: Annotated[Any, As("prompts")],
    counts: Sequence[int] = (8, 32, 128),
    layer: int | float | str = 0.75,
    rank: int = 8,
    epochs: int = 3,
    learning_rate: Annotated[float, Within(0, None)] = 1e-3,
    train_batch_size: int = 8,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> EffectPanel:
    """Train copies on few strong labels, on all weak ones, and on weak and then few strong ones (Mallen et al. 2024).

    For every count the first so many strong rows (in an order drawn by the seed) are used. Beside them stands a
    logistic probe of the untuned model's states at the last token, fitted on the same strong rows: what the labels can
    read out without any tuning, the latent knowledge; under ``metric`` prob and answer it is left out, as it has right
    answers alone. The control of every line is the weak labels alone; of those, the untuned model.

    Args:
        subject: A model, or a pair, whose base is trained.
        prompts: Test rows with true answers.
        strong: Rows with true answers.
        weak: Rows with answers that are cheap and may be wrong.
        counts: Numbers of strong labels.
        layer: Where the probe reads: an index, or a fraction of the depth.
        rank: Rank of the LoRAs.
        epochs: Passes over the rows of each stage.
        learning_rate: Their step size, falling linearly to 0.
        train_batch_size: Rows per step.
        metric: What is scored.
        max_new_tokens: Length of a generated answer.
        seed: Of the order, of training and of intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is "strong labels: n", ``model`` how they were used.

    Raises:
        UserError: Fewer strong rows than the largest count, or rows without answers.
    """
    check_subject(subject)
    model: AdaptedModel = getattr(subject, "base", subject)
    rows, good, poor = Prompts.of(prompts), Prompts.of(strong), Prompts.of(weak)
    sizes = _sizes(counts, len(good), "strong")
    ordered = good[np.random.default_rng(seed).permutation(len(good))]
    lora = Lora(rank, Schedule(epochs, train_batch_size, learning_rate, seed=seed))
    bar = progress or Silent()
    bar.start("elicitation", 1 + 2 * len(sizes))

    def scored(trained: AdaptedModel) -> np.ndarray:
        scores = answer_scores(trained, rows, metric, max_new_tokens=max_new_tokens, batch_size=batch_size)
        bar.advance()
        return scores

    untuned = answer_scores(model, rows, metric, max_new_tokens=max_new_tokens, batch_size=batch_size)
    after_weak = scored(lora.trained(model, [poor]))
    probe = _Probe(model, ordered, rows, layer, batch_size)
    lines = [scored_line("strong labels: 0", WEAK, after_weak, untuned, rows.clusters, seed)]
    values = {"untuned": untuned, WEAK: after_weak}
    for count in sizes:
        few = ordered[:count]
        by_training = {
            STRONG: scored(lora.trained(model, [few])), BOTH: scored(lora.trained(model, [poor, few])),
            PROBE: None if metric in UNCOUNTED else probe.right(count),
        }  # fmt: skip
        lines += [
            scored_line(f"strong labels: {count}", name, right, after_weak, rows.clusters, seed)
            for name, right in by_training.items() if right is not None
        ]  # fmt: skip
        values |= {f"{count}: {name}": right for name, right in by_training.items() if right is not None}
    bar.finish()
    table = pd.DataFrame(lines)
    return EffectPanel(
        table=with_q(table),
        control="the weak labels alone (of those: the untuned model)",
        provenance=Provenance.of(
            "elicitation_curve", model, rows, seed=seed, settings=call_settings(None, strong=good, weak=poor),
        ),
        values=pd.DataFrame(values),
        measured=metric,
        heading="Elicitation by labels",
        verdict=_best(with_q(table), metric),
        numbers={"untuned": float(untuned.mean())},
    )  # fmt: skip


def _sizes(counts: Sequence[int], most: int, what: str) -> list[int]:
    sizes = sorted(set(counts))
    if not sizes or sizes[0] < 1 or sizes[-1] > most:
        raise UserError(f"There are {most} {what} rows: counts must be numbers from 1 to {most}, got {list(counts)}.")
    return sizes


def _best(table: pd.DataFrame, measured: str) -> str:
    said = []
    for name, of in table.groupby("group", sort=False):
        best = of.sort_values("score", kind="stable").iloc[-1]
        beside = f"control {best['control']:.2f}, q = {best['q']:.2g}"
        said.append(f"{name}: {best['model']} {best['score']:.2f} [{best['low']:.2f}, {best['high']:.2f}] ({beside})")
    return f"best {measured} with {'; with '.join(said)}"


class _Probe:
    """A logistic probe of the answers on states of the untuned model; None where the answers are not of few classes."""

    def __init__(self, model: AdaptedModel, training: Prompts, test: Prompts, layer: Any, batch_size: int) -> None:
        self.classes = sorted({str(row.answer) for row in training})
        self.training, self.test = training, test
        (place,) = resolve_layers(layer, model.n_layers)
        self.states = [
            _states(record(model, rows, ["resid_post"], layers=[place], batch_size=batch_size))
            for rows in (training, test)
        ]

    def right(self, count: int) -> np.ndarray | None:
        """[prompt] whether the probe fitted on the first ``count`` rows says the answer."""
        answers = np.array([str(row.answer) for row in self.training[:count]])
        if len(set(answers)) < 2 or len(self.classes) > count:
            return None
        reader = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        said = reader.fit(self.states[0][:count], answers).predict(self.states[1])
        return np.array([answer == row.answer for answer, row in zip(said, self.test, strict=True)], dtype=float)


def _states(recording: Any) -> np.ndarray:
    (role,), (name,) = recording.roles, recording.sites
    return np.asarray(recording[role][name][:].float().flatten(1).double().numpy())


@method(
    "sample-efficiency",
    group="training",
    question="Does the tuned model learn a new task from fewer rows than the base, and which categories lose by it?",
    papers=("Instruction Tuned Models are Quick Learners",),
    needs=Needs(columns=("answer",)),
    cost="a small training of each model per number of rows, and a scored pass each",
    example="--training train.jsonl --counts 4,8 --category topic --epochs 1",
    any_adapter="whether the copies that are trained here do better, whatever the pair",
)
def sample_efficiency(  # noqa: PLR0913 (a public call)
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    training: Annotated[Any, As("prompts")],
    counts: Sequence[int] = (8, 32, 128),
    category: str = "",
    rank: int = 8,
    epochs: int = 3,
    learning_rate: Annotated[float, Within(0, None)] = 1e-3,
    train_batch_size: int = 8,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> EffectPanel:
    """Train copies of base and tuned model on the same few rows and compare them on test rows (Gupta et al. 2023).

    The control of a difference is no difference; of a model at n rows, itself without training. With ``category`` the
    difference after most rows is reported by category, the others as its control: what instruction tuning makes worse.

    Args:
        pair: The base and its instruction-tuned model.
        prompts: Test rows with answers.
        training: Rows with answers of the task to be learnt.
        counts: Numbers of training rows; 0 is always there.
        category: The column of a category of the test rows; empty for none.
        rank: Rank of the LoRAs.
        epochs: Passes over the rows.
        learning_rate: Their step size, falling linearly to 0.
        train_batch_size: Rows per step.
        metric: What is scored.
        max_new_tokens: Length of a generated answer.
        seed: Of the order, of training and of intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is "rows: n" or "category: c"; ``numbers`` hold the area under each curve.

    Raises:
        UserError: Fewer training rows than the largest count, or rows without answers or category.
    """
    check_pair(pair, prompts)
    rows, taught = Prompts.of(prompts), Prompts.of(training)
    sizes = _sizes(counts, len(taught), "training")
    kinds = np.array([str(value) for value in column_of(rows, category)]) if category else None
    ordered = taught[np.random.default_rng(seed).permutation(len(taught))]
    lora = Lora(rank, Schedule(epochs, train_batch_size, learning_rate, seed=seed))
    bar = progress or Silent()
    bar.start("sample efficiency", 2 * (1 + len(sizes)))
    curve: dict[int, dict[str, np.ndarray]] = {}
    for count in (0, *sizes):
        curve[count] = {}
        for role in ("base", "tuned"):
            model = pair.models[role] if count == 0 else lora.trained(pair.models[role], [ordered[:count]])
            curve[count][role] = answer_scores(
                model, rows, metric, max_new_tokens=max_new_tokens, batch_size=batch_size
            )
            bar.advance()
    bar.finish()
    lines = _curve_lines(curve, rows.clusters, seed)
    if kinds is not None:
        lines += _category_lines(curve[sizes[-1]], kinds, rows.clusters, seed)
    table = table_of(lines)
    return EffectPanel(
        table=table,
        control="each model untrained; of a category, the other categories",
        provenance=Provenance.of(
            "sample_efficiency", pair, rows, seed=seed, settings=call_settings(None, training=taught),
        ),
        values=pd.DataFrame({f"{count}: {role}": values for count, of in curve.items() for role, values in of.items()}),
        measured=metric,
        heading="Learning from few rows",
        verdict=_after(table, sizes[-1], metric),
        numbers={f"area of {role}": _area(curve, role) for role in ("base", "tuned")},
    )  # fmt: skip


def _after(table: pd.DataFrame, count: int, measured: str) -> str:
    """The difference after most rows, that before any, and the category where it is largest."""
    changes = {row["group"]: row for row in table[table["model"] == CHANGE].to_dict("records")}
    last, first = changes[f"rows: {count}"], changes["rows: 0"]
    said = (
        f"after {count} rows tuned - base {spanned(last)} {measured}, q = {last['q']:.2g}; untrained {spanned(first)}"
    )
    kinds = [row for group, row in changes.items() if group.startswith("category: ")]
    if not kinds:
        return said
    most = max(kinds, key=lambda row: abs(row["score"] - row["control"]))
    return f"{said}; most apart in {most['group']}: {spanned(most)}, others {most['control']:+.2g}, q = {most['q']:.2g}"


def _curve_lines(curve: dict[int, dict[str, np.ndarray]], clusters: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """A line per count and model against itself untrained, and of their difference against none."""
    lines = []
    for count, sides in curve.items():
        own_lines = paired_lines(f"rows: {count}", sides, {"base": 0.0, "tuned": 0.0}, clusters, seed)
        for role, line in zip(("base", "tuned"), own_lines[:2], strict=True):
            lines.append(scored_line(line["group"], role, sides[role], curve[0][role], clusters, seed))
        lines.append(own_lines[2])
    return lines


def _category_lines(
    sides: dict[str, np.ndarray], kinds: np.ndarray, clusters: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    apart, lines = sides["tuned"] - sides["base"], []
    for name in dict.fromkeys(kinds.tolist()):
        own = kinds == name
        line = scored_line(f"category: {name}", CHANGE, apart[own], 0.0, clusters[own], seed)
        lines.append({**line, "control": float(apart[~own].mean()) if (~own).any() else 0.0})
    return lines


def _area(curve: dict[int, dict[str, np.ndarray]], role: str) -> float:
    """Mean score over log2(1 + rows)."""
    places = np.log2(1 + np.array(list(curve)))
    heights = np.array([of[role].mean() for of in curve.values()])
    return float(np.trapezoid(heights, places) / (places[-1] - places[0]))
