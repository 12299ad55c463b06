"""Instructions in words that tuning saw and in words that it did not: score, distance of states, and a soft prefix."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import nn

from interventions.training.examples import examples_of
from interventions.training.soft_prompt import SoftPrompt, reading, starting_vectors, unused_token, with_placeholders
from interventions.training.trainer import Schedule, train_on_frozen
from probes.effects.answers import Measure, answer_scores
from probes.effects.panel import CHANGE, EffectPanel, scored_line, table_of
from probes.effects.rewriting import column_of
from probes.replay import counted
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.method_options import Within
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.recording.record_pair import record
from workbench.typing import Float, Tensor

DROP = "unobserved - observed"
WITH_PREFIX = "unobserved with prefix - observed"


@method(
    "phrasings",
    group="retention",
    question="Does the tuned model do worse when instructions are worded as its training data never did?",
    papers=("Evaluating the Zero-shot Robustness of Instruction-tuned Language Models",),
    needs=Needs(columns=("answer",)),
    cost="a scored pass and a recording of each model; with a prefix a short training of a soft prompt",
    example="--items item --phrasing phrasing",
)
def phrasing_robustness(  # noqa: PLR0913 (a public call)
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    items: str = "item",
    phrasing: str = "phrasing",
    layer: int | float = 0.75,
    prefix_tokens: Annotated[int, Within(0, None)] = 0,
    epochs: int | float = 5,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> EffectPanel:
    """The same items under observed and unobserved instructions (Sun et al. 2024).

    Per item: the score under unobserved phrasings less that under observed ones, and how far the last token's residual
    lies from the item's mean under observed phrasings. ``numbers`` hold the rank correlation of distance and drop. With
    ``prefix_tokens`` a soft prefix is trained on half of the items to close the distance (not on answers), and scored
    on the other half. The control of a distance is that between observed phrasings of one item; of the prefix, the drop
    without it.

    Args:
        pair: Both models.
        prompts: Rows with an answer, an item, and whether their phrasing is observed or unobserved.
        items: The column that names the item, which is asked in several phrasings.
        phrasing: The column that says observed or unobserved (true or false also does).
        layer: Where distances are measured: an index, or a fraction of the depth.
        prefix_tokens: Vectors of the soft prefix; 0 for none.
        epochs: Passes over the training half.
        metric: What is scored.
        max_new_tokens: Length of a generated answer.
        seed: Of halves, training and intervals.

    Returns:
        An :class:`EffectPanel` over items; ``group`` is observed, unobserved, "unobserved - observed", distance,
        spread over phrasings, and with a prefix "unobserved with prefix - observed" on the held-out items.

    Raises:
        UserError: No item has both kinds of phrasing.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    table = _Items.read(rows, items, phrasing)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    site = pair.tuned.expand("resid_post", [layer])[0]
    bar = progress or Silent()
    bar.start("phrasings", 2)
    numbers: dict[str, float] = {}
    values: dict[str, np.ndarray] = {}
    with counted(pair.base, pair.tuned) as passes:
        recording = record(pair, rows, site.name, batch_size=batch_size)
        for role in ("base", "tuned"):
            score = answer_scores(pair.models[role], rows, metric, **options)
            states = recording[role][site.name][:].float().numpy()
            own = table.measured(score, states)
            values |= {f"{role}, {name}": scores for name, scores in own.items()}
            numbers |= {f"distance against drop, {role}": _rho(own["distance"], -own[DROP])}
            if prefix_tokens:
                closed = _with_prefix(pair.models[role], rows, table, site, states, prefix_tokens, epochs, metric,
                                      options, seed, score)  # fmt: skip
                values |= {f"{role}, {name}": scores for name, scores in closed.items()}
            bar.advance()
    bar.finish()
    compared = table_of(phrasing_lines(values, seed))
    return EffectPanel(
        table=compared,
        control="the distance between observed phrasings of one item; for the prefix, the drop without it; else 0",
        provenance=Provenance.of("phrasing_robustness", pair, rows, seed=seed, forward_passes=passes.forward),
        values=pd.DataFrame({name: pd.Series(value) for name, value in values.items()}),
        measured=metric,
        units={name: "of the state's length" for name in compared["group"] if name.startswith("distance")},
        heading="Observed and unobserved phrasings",
        numbers=numbers,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Items:
    """Which rows ask which item, and which of them in observed words; items without both are left out."""

    names: list[str]
    of: np.ndarray
    """[row] number of the item; -1 for a row of an item that is left out."""
    observed: np.ndarray
    """[row]"""

    @classmethod
    def from_values(cls, item: Sequence[Any], seen: Sequence[bool]) -> _Items:
        observed = np.array(seen, dtype=bool)
        names = [str(value) for value in item]
        both = [
            name for name in dict.fromkeys(names)
            if {bool(flag) for other, flag in zip(names, observed, strict=True) if other == name} == {True, False}
        ]  # fmt: skip
        if len(both) < 2:
            raise UserError(
                f"{len(both)} items have both observed and unobserved phrasings: give two or more that have both."
            )
        number = {name: place for place, name in enumerate(both)}
        return cls(both, np.array([number.get(name, -1) for name in names]), observed)

    @classmethod
    def read(cls, rows: Prompts, items: str, phrasing: str) -> _Items:
        column = column_of(rows, phrasing, what="observed or unobserved")
        seen = [value if isinstance(value, bool) else str(value).casefold() == "observed" for value in column]
        return cls.from_values(column_of(rows, items, what="the item it asks"), seen)

    def measured(self, score: np.ndarray, states: np.ndarray) -> dict[str, np.ndarray]:
        """[item] mean scores, their drop, relative distances, and the spread of scores over phrasings."""
        measures: dict[str, list[float]] = {}
        for number in range(len(self.names)):
            seen, new = (np.flatnonzero((self.of == number) & kind) for kind in (self.observed, ~self.observed))
            centre = states[seen].mean(0)
            length = float(np.linalg.norm(centre)) or 1.0
            inside = [
                float(np.linalg.norm(states[row] - states[seen[seen != row]].mean(0))) / length
                for row in seen if len(seen) > 1
            ]  # fmt: skip
            line = {
                "observed": score[seen].mean(), "unobserved": score[new].mean(),
                DROP: score[new].mean() - score[seen].mean(),
                "distance": float(np.linalg.norm(states[new] - centre, axis=1).mean()) / length,
                "distance within observed": float(np.mean(inside)) if inside else 0.0,
                "spread over phrasings": float(np.ptp(score[self.of == number])),
            }  # fmt: skip
            for name, value in line.items():
                measures.setdefault(name, []).append(float(value))
        return {name: np.array(values) for name, values in measures.items()}


def phrasing_lines(values: dict[str, np.ndarray], seed: int) -> list[dict[str, Any]]:
    """Lines over items for both models and their difference."""
    controls = {"distance": "distance within observed", WITH_PREFIX: "held-out drop"}
    names = [name.removeprefix("base, ") for name in values if name.startswith("base, ")]
    lines = []
    for name in names:
        if name in controls.values():
            continue
        sides = {role: values[f"{role}, {name}"] for role in ("base", "tuned")}
        beside = {
            role: values[f"{role}, {controls[name]}"] if name in controls else np.zeros(len(sides[role]))
            for role in sides
        }
        clusters = np.arange(len(sides["base"]))
        lines += [scored_line(name, role, sides[role], beside[role], clusters, seed) for role in sides]
        change, control = (side["tuned"] - side["base"] for side in (sides, beside))
        lines.append(scored_line(name, CHANGE, change, control, clusters, seed))
    return lines


def _rho(first: np.ndarray, second: np.ndarray) -> float:
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(stats.spearmanr(first, second).statistic)


def _with_prefix(  # noqa: PLR0913 (everything a trained prefix needs)
    model: AdaptedModel, rows: Prompts, table: _Items, site: Site, states: np.ndarray, tokens: int, epochs: int | float,
    metric: Measure, options: dict[str, Any], seed: int, score: np.ndarray,
) -> dict[str, np.ndarray]:  # fmt: skip
    """[held-out item] the drop with the prefix, the drop without, and the distance with the prefix."""
    order = np.random.default_rng(seed).permutation(len(table.names))
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    targets = np.stack([states[(table.of == n) & table.observed].mean(0) for n in range(len(table.names))])
    used = np.flatnonzero(np.isin(table.of, train) & ~table.observed)
    prefix = close_distance(model, rows[used], targets[table.of[used]], site, tokens, rows,
                            Schedule(epochs=epochs, seed=seed))  # fmt: skip
    held = np.flatnonzero(np.isin(table.of, test) & ~table.observed)
    read = prefix.before(rows[held], model.tokenizer)
    with prefix.applied(model):
        moved = record(model, read, site.name, batch_size=options["batch_size"])
    near = moved[model.role][site.name][:].float().numpy()
    again = answer_scores(model, read, metric, recipe=prefix, **options)
    drops, before, distance = [], [], []
    for number in test:
        own = table.of[held] == number
        seen = score[(table.of == number) & table.observed].mean()
        drops.append(again[own].mean() - seen)
        before.append(score[(table.of == number) & ~table.observed].mean() - seen)
        length = np.linalg.norm(targets[number]) or 1.0
        distance.append(float(np.linalg.norm(near[own] - targets[number], axis=1).mean() / length))
    return {
        WITH_PREFIX: np.array(drops), "held-out drop": np.array(before),
        "distance with prefix": np.array(distance),
    }  # fmt: skip


def close_distance(
    model: AdaptedModel,
    rows: Prompts,
    targets: Float[np.ndarray, "row d_model"],
    site: Site,
    tokens: int,
    also_read: Prompts,
    schedule: Schedule,
) -> SoftPrompt:
    """A soft prefix under which the last token's residual of each row comes nearest to its target (relative squared
    distance); answers take no part."""
    placeholder = unused_token(model, also_read)
    before = with_placeholders(rows, model.tokenizer, placeholder, tokens)
    examples = [
        dataclasses.replace(example, prompt=list(row.input_ids or ()), reference=tuple(map(float, target)))
        for example, row, target in zip(examples_of(rows, model.tokenizer), before, targets, strict=True)
    ]
    learned = nn.Parameter(starting_vectors(model, rows, tokens, schedule.seed))
    seen: list[Tensor] = []

    def keep(value: Tensor, _ctx: Any) -> None:
        seen[:] = [value]

    def objective(logits: Tensor, labels: Tensor, reference: Tensor) -> Tensor:  # noqa: ARG001
        place = (labels != -100).long().argmax(1) - 1
        states = seen[0][torch.arange(len(place), device=seen[0].device), place.to(seen[0].device)].float()
        wanted = reference.to(states)
        return ((states - wanted).square().sum(-1) / wanted.square().sum(-1).clamp_min(1e-12)).mean()

    with reading(model, placeholder, learned), model.hooked([SiteHook(site, keep)]):
        history = train_on_frozen(
            model, {"soft": learned}, examples, objective, schedule=schedule, what="soft prefix", progress=Silent()
        )
    return SoftPrompt(learned.detach().cpu(), placeholder, history)
