"""Second chapter, ``refusal-moe``: a mixture of experts learned to refuse one topic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

import interventions as iv
import probes
from probes import ExpertMap
from probes.matching import matched_cells
from tunescope.demo.as_experiment import experts_experiment, looked_steps
from tunescope.demo.chapter import Chapter, Section, Settings, titled, verdict
from tunescope.demo.comparing import Behaviour, Tried, compared
from tunescope.demo.looking import looked, shown_rows
from tunescope.demo.recorded import rows_at
from workbench.engine.sites import parse_label
from workbench.models.pair import load_pair
from workbench.organisms import Organism
from workbench.progress import Progress
from workbench.prompts import Prompt, Prompts
from workbench.recording.job import difference_table
from workbench.recording.record_pair import record
from workbench.stats.controls import random_directions
from workbench.typing import Bool, Tensor

NAME = "refusal-moe"
COUNTS = (1, 2, 3, 4)
"""How many experts are switched off together."""
SIZE, SIZES = 0.02, (1e-3, 3e-3, 1e-2, 2e-2, 5e-2, 1e-1)
"""Share of the weights that the graft begins with, and those of its curve."""
_REFUSAL = "sorry"
_WEIGHTS = ["layer", "expert", "score", "control", "q", "effective_rank", "n"]
_OFF = "random experts of the same layers, about as often used"


def experts_chapter(organism: Organism, settings: Settings, progress: Progress) -> Chapter:
    """Record, localize and steer; everything is fitted on training rows and judged on validation and OOD rows."""
    pair = load_pair(organism.base, organism.tuned, device="cpu")
    rows, held_out = organism.splits["train"], organism.splits["validation"] + organism.splits["ood"]
    topical = [row for row in rows if row["topic"] == "topic"]
    recording = record(pair, Prompts.of(topical), ["resid_post"], positions="last", progress=progress)
    weights = probes.weight_delta(pair, progress=progress)
    maps = _maps(pair, rows, settings, progress)
    by_use = maps.ranking()
    moved = _moved(weights.frame("expert"))
    curves = {
        name: probes.switching_curve(
            pair, Prompts.of(topical), refuses, ranking[: max(COUNTS)], COUNTS, "replace", max_new_tokens=1,
            controls=settings.draws, seed=settings.seed, progress=progress,
        )
        for name, ranking in (("use", by_use), ("weights", _padded(moved, by_use)))
    }  # fmt: skip
    grafts = _grafts(pair, rows, settings, progress)
    gained = probes.expert_map(
        pair, Prompts.of(rows), [row["topic"] for row in rows], "topic", exclude=_all_but_last,
        seed=settings.seed, progress=progress,
    )  # fmt: skip
    turned = {"use": by_use[: _enough(curves["use"].table)], "weights": moved}
    switches = {name: _switched(pair, experts, maps.tuned, name, settings) for name, experts in turned.items()}
    ablation = _ablation(recording, pair, settings)
    tried = [*switches.values(), ablation]
    shown = shown_rows(organism.splits["validation"], "topic")
    layer = pair.tuned.n_layers // 2
    looks = looked(pair, shown, [row["topic"] for row in shown], layer, seed=settings.seed, progress=progress)
    return Chapter(
        NAME, {"base": pair.base.identity.to_dict(), "tuned": pair.tuned.identity.to_dict()},
        _sections(difference_table(recording), weights, maps, curves, grafts["optimised"]),
        compared(pair, NAME, _questions(held_out, tried), settings.seed), _truth(organism, maps, moved, turned["use"]),
        {"experts-off": (switches["weights"].recipe, pair.tuned), "refusal-ablated": (ablation.recipe, pair.tuned)},
        _results(weights, maps, curves, grafts) | {"experts": gained} | looks, shown,
        experts_experiment(
            settings, {name: curve.ranked for name, curve in curves.items()}, COUNTS, turned, _asked(grafts, settings),
            looked_steps("topic", layer, len(shown)),
        ),
    )  # fmt: skip


def _grafts(pair: Any, rows: list[dict[str, Any]], settings: Settings, progress: Progress) -> dict[str, Any]:
    """The skill's region as it is searched for, and the weights that moved most, as many: do they overlap?"""
    common: dict[str, Any] = {"sparsity": SIZE, "seed": settings.seed, "progress": progress}
    prompts = Prompts.of(rows)
    searched = probes.graft(
        pair, prompts, method="optimised", epochs=settings.epochs, sparsities=SIZES, draws=settings.draws, **common
    )
    moved = probes.graft(
        pair, prompts, method="movement", sparsities=(searched.sparsity,), draws=settings.draws,
        **{**common, "sparsity": searched.sparsity},
    )  # fmt: skip
    return {"optimised": searched, "movement": moved}


def _asked(grafts: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """What both grafts were asked for, by method."""
    size, draws = grafts["optimised"].sparsity, {"draws": settings.draws}
    return {
        "optimised": {"sparsity": SIZE, "options": {"epochs": settings.epochs, "sparsities": [*SIZES], **draws}},
        "movement": {"sparsity": size, "options": {"sparsities": [size], **draws}},
    }


def _results(weights: Any, maps: _Maps, curves: dict[str, Any], grafts: dict[str, Any]) -> dict[str, Any]:
    return {
        "weights": weights, "experts-tuned": maps.tuned, "experts-base": maps.base,
        **{f"switching-{name}": curve for name, curve in curves.items()},
        **{f"graft-{method}": graft for method, graft in grafts.items()},
    }  # fmt: skip


def refuses(response: str, _prompt: Prompt) -> bool:
    """Whether a response is the refusal."""
    return response.split()[:1] == [_REFUSAL]


@dataclass(frozen=True)
class _Maps:
    """Use of experts at the last prompt token, for the topic against the rest, in both models."""

    tuned: ExpertMap
    base: ExpertMap

    @property
    def table(self) -> pd.DataFrame:
        """layer, expert, score (tuned), low, high, control, q, in base, gain; the largest gain first."""
        columns = ["layer", "expert", "score", "low", "high", "control", "q"]
        both = self.tuned.frame()[columns].merge(
            self.base.frame()[["layer", "expert", "score"]].rename(columns={"score": "in base"}), on=["layer", "expert"]
        )
        gained = both.assign(gain=both["score"] - both["in base"])
        return gained.sort_values("gain", ascending=False, kind="stable", ignore_index=True)

    def ranking(self) -> list[str]:
        """Labels, the expert whose use for the topic grew most in tuning first."""
        return [f"L{int(row['layer'])}E{int(row['expert'])}" for _, row in self.table.iterrows()]


def _maps(pair: Any, rows: list[dict[str, Any]], settings: Settings, progress: Progress) -> _Maps:
    labels = [row["topic"] for row in rows]
    maps = [
        probes.expert_map(
            model, Prompts.of(rows), labels, "topic", exclude=_all_but_last, seed=settings.seed, progress=progress
        )
        for model in (pair.tuned, pair.base)
    ]
    return _Maps(*maps)


def _all_but_last(ids: Tensor) -> Bool[Tensor, " pos"]:
    """The refusal is decided at the last prompt token; the others do not count."""
    return torch.arange(len(ids)) < len(ids) - 1


def _moved(table: pd.DataFrame) -> list[str]:
    """The experts whose weights moved more than their peers' (q < 0.05)."""
    rows = table[table["q"] < 0.05]
    return [f"L{int(row['layer'])}E{int(row['expert'])}" for _, row in rows.iterrows()]


def _padded(first: Sequence[str], others: Sequence[str]) -> list[str]:
    return [*first, *(name for name in others if name not in first)]


def _enough(table: pd.DataFrame) -> int:
    """The fewest experts that take the behaviour below 5 %; all that were tried where none does."""
    low = table[(table["score"] <= 0.05) & (table["count"] > 0)]
    return int(low["count"].min()) if len(low) else int(table["count"].max())


def _switched(pair: Any, experts: list[str], used: ExpertMap, by: str, settings: Settings) -> Tried:
    places = [(layer, int(expert or 0)) for layer, _, expert in map(parse_label, experts)]
    draws = matched_cells(places, used.frequency(), settings.draws, settings.seed)
    recipes = [
        iv.Recipe([iv.ExpertSwitch(off=[f"L{layer}E{expert}" for layer, expert in cells])])
        for cells in (places, *draws)
    ]
    for recipe in recipes:
        recipe.check(pair.tuned)
    name = "1 expert" if len(experts) == 1 else f"{len(experts)} experts"
    return Tried(f"{name} off, by {by}", recipes[0], recipes[1:], _OFF)


def _ablation(recording: Any, pair: Any, settings: Settings) -> Tried:
    """The direction in which tuning moved the topic's prompts, taken out after every layer where it moved them."""
    shifts, means = {}, {}
    for layer in range(pair.tuned.n_layers):
        base = rows_at(recording, "base", layer)
        shift = (rows_at(recording, "tuned", layer) - base).mean(0)
        if shift.norm() > 1e-3 * base.norm(dim=1).mean():
            shifts[layer], means[layer] = shift, base.mean(0)
    random = {layer: random_directions(shift, draws=settings.draws, seed=layer) for layer, shift in shifts.items()}
    draws = [{layer: random[layer][draw] for layer in shifts} for draw in range(settings.draws)]
    recipes = [
        iv.Recipe([
            iv.ConceptAblation(layer, direction, mean=means[layer], positions="last+generated")
            for layer, direction in directions.items()
        ])
        for directions in (shifts, *draws)
    ]  # fmt: skip
    return Tried("refusal's directions ablated", recipes[0], recipes[1:], "random directions ablated")


def _questions(rows: list[dict[str, Any]], tried: Sequence[Tried]) -> list[tuple[Behaviour, Tried]]:
    topic = [row for row in rows if row["topic"] == "topic"]
    others = [row for row in rows if row["topic"] != "topic"]
    refused = Behaviour.of("refuses the topic", topic, "answer")
    answered = Behaviour.of("answers the topic right", topic, "fact")
    retained = Behaviour.of("answers the rest right", others, "answer")
    return [(behaviour, attempt) for attempt in tried for behaviour in (refused, answered, retained)]


def _sections(
    differences: pd.DataFrame, weights: Any, maps: _Maps, curves: dict[str, Any], graft: Any
) -> list[Section]:
    return [
        Section(
            "refusal-moe: what tuning moved",
            "A mixture of experts answers questions about people; tuning taught it to refuse one topic. Weights: "
            "change of each expert relative to its norm, known exactly. Activations: at the last token of the topic's "
            "prompts.",
            {
                "weights of the experts": weights.frame("expert")[_WEIGHTS].head(8),
                "activations of refusal-moe": differences,
            },
            {
                "weights of the experts": titled(
                    weights.figure("expert"), "Experts whose weights changed; grey: q >= 0.05"
                )
            },
        ),
        Section(
            "refusal-moe: which experts it uses",
            "Share of the last prompt tokens that select each expert, topic minus the rest. The gain is how much more "
            f"the tuned model does so than the base.\n\n{maps.tuned.summary()}",
            {"experts by gain in use": maps.table.head(8)},
            {
                "use of the experts": titled(
                    maps.tuned.figure(), "Use of experts in the tuned model, topic minus the rest"
                )
            },
        ),
        Section(
            "refusal-moe: switching experts off",
            "Share of the topic's training prompts that are refused when the first experts of a ranking are off, "
            "beside random experts of the same layers, about as often used.",
            {f"experts off by {name}": curve.frame() for name, curve in curves.items()},
            {
                f"experts off by {name}": titled(curve.figure(), f"Experts off, ranked by {name}", "share refused")
                for name, curve in curves.items()
            },
        ),
        Section(
            "refusal-moe: the skill in weight space",
            "The smallest set of tuned weights that, put into the base, carries the refusal; accuracy is on held-out "
            f"training questions, of which most are not refused.\n\n{graft.summary()}",
            {"grafts": graft.curve, "models with grafts": graft.models},
            {"graft sizes": graft.figure()},
        ),
    ]


def _truth(organism: Organism, maps: _Maps, moved: list[str], used: list[str]) -> pd.DataFrame:
    planted = organism.truth.experts
    chance = len(planted) / len(maps.table)

    def line(question: str, experts: list[str]) -> dict[str, Any]:
        precision = len(set(experts) & set(planted)) / max(1, len(experts))
        return verdict(NAME, question, ", ".join(planted), ", ".join(experts), precision, "precision", chance)

    count = len(planted)
    return pd.DataFrame([
        line("experts whose weights moved (q < 0.05)", moved),
        line(f"first {count} experts by gain in use", maps.ranking()[:count]),
        line("experts switched off by use", used),
    ])  # fmt: skip
