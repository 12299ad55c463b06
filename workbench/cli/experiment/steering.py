"""Steps that apply recipes: generate, diff and dose, each recipe beside random stand-ins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interventions.sweep import steered_texts
from workbench.behaviour import behaviour_diff
from workbench.cli.experiment import steps
from workbench.cli.experiment.controls import stand_ins
from workbench.cli.experiment.kept import Outcome, metric_rows
from workbench.stats.bootstrap import difference_interval, mean_interval

if TYPE_CHECKING:
    import interventions as iv
    from workbench.cli.experiment.doing import Bench

RANDOM = "random "
"""Begins the name of a control."""
CHANGES = ("change", "change_low", "change_high")
NUMBERS = ("estimate", "low", "high", "n", *CHANGES)
"""What a line says about one model and metric; the change is from the model without the recipe."""


def generate(step: steps.Generate, bench: Bench) -> Outcome:
    """Greedy continuations; the metric is the share of prompts whose text a recipe changed."""
    rows = bench.rows(step.prompts)
    length = step.max_new_tokens
    texts = {role: model.generate(rows, max_new_tokens=length) for role, model in bench.pair.models.items()}
    lines = [_text_lines(role, None, rows, answers) for role, answers in texts.items()]
    metrics = []
    for name in step.recipes:
        side = bench.pair.models[step.on]
        steered = steered_texts(side, bench.recipe(name), rows, step.strengths, max_new_tokens=length)
        for place, strength in enumerate(step.strengths):
            answers = [one[place] for one in steered]
            lines.append(_text_lines(_named(name, step.on), strength, rows, answers))
            moved = np.array([new != old for new, old in zip(answers, texts[step.on], strict=True)], dtype=float)
            found = mean_interval(moved, clusters=rows.clusters, seed=bench.seed)
            metrics.append(
                {"of": _named(name, step.on), "strength": strength, "metric": "texts changed",
                 "estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n}
            )  # fmt: skip
    table = pd.concat(lines, ignore_index=True).astype({"strength": "float64"})
    return Outcome(f"{len(rows)} prompts, {length} new tokens each", table, metric_rows(metrics))


def diff(step: steps.Diff, bench: Bench) -> Outcome:
    """base | tuned | each recipe, with the mean of its random stand-ins."""
    tuned, base = ({(name, 1.0): bench.recipe(name) for name in names} for names in (step.recipes, step.base_recipes))
    parts = [_compared(bench, step, tuned, "tuned")]
    if base:
        inside = _compared(bench, step, base, "base")
        parts.append(inside[~inside["model"].isin(["base", "tuned"])])
    table = pd.concat(parts, ignore_index=True)
    return Outcome(_summary(table, [*step.recipes, *step.base_recipes], step.controls), table, _metrics(table))


def dose(step: steps.Dose, bench: Bench) -> Outcome:
    """One recipe at every strength, with the mean of its random stand-ins at the same strength."""
    recipe = bench.recipe(step.recipe)
    table = _compared(bench, step, {(step.recipe, one): recipe * one for one in step.strengths}, step.on)
    return Outcome(_summary(table, [step.recipe], step.controls), table, _metrics(table))


def _compared(bench: Bench, step: Any, variants: Mapping[tuple[str, float], iv.Recipe], on: str) -> pd.DataFrame:
    """One line per model, strength and metric: base, tuned, the recipes, and the mean of each one's stand-ins."""
    rows, side = bench.rows(step.prompts), bench.pair.models[on]
    shown, applied, random = {}, {}, {}
    for (name, strength), recipe in variants.items():
        recipe.check(side)
        draws = stand_ins(recipe, side, rows, step.controls, bench.seed)
        label = _named(name, on)
        shown[f"{label} {strength!r}"] = (label, strength, 1)
        applied[f"{label} {strength!r}"] = recipe
        if draws:
            shown[f"{RANDOM}{label} {strength!r}"] = (RANDOM + label, strength, len(draws))
            random[f"{RANDOM}{label} {strength!r}"] = draws
    call = _on_tuned if on == "tuned" else _on_base
    table = call(bench, step, applied, random)
    told = [shown.get(name, (name, float("nan"), 1)) for name in table["model"]]
    table = table.assign(
        model=[label for label, _, _ in told],
        strength=np.array([strength for _, strength, _ in told], dtype=float),
        draws=[count for _, _, count in told],
    )
    return table[["model", "strength", "metric", *NUMBERS, "draws"]].reset_index(drop=True)


def _on_tuned(bench: Bench, step: Any, applied: dict[str, Any], random: dict[str, list[Any]]) -> pd.DataFrame:
    found = behaviour_diff(
        bench.pair, bench.rows(step.prompts), applied, metrics=step.metrics, controls=random, seed=bench.seed
    )
    return found.table


def _on_base(bench: Bench, step: Any, applied: dict[str, Any], random: dict[str, list[Any]]) -> pd.DataFrame:
    """As on the tuned model; changes are from the base, and the stand-ins are averaged here, per prompt."""
    rows = bench.rows(step.prompts)
    each = {f"{name} #{number}": one for name, draws in random.items() for number, one in enumerate(draws)}
    found = behaviour_diff(bench.pair, rows, base_recipes={**applied, **each}, metrics=step.metrics, seed=bench.seed)
    per_prompt = {str(model): one for model, one in found.rows.groupby("model", sort=False)}
    known = {(str(one["model"]), one["metric"]): one for one in found.table.to_dict("records")}
    lines = []
    for name in ("base", "tuned", *applied, *random):
        draws = [f"{name} #{number}" for number in range(len(random[name]))] if name in random else [name]
        for metric in step.metrics:
            numbers = _averaged([known[one, metric] for one in draws])
            if metric in found.rows:
                values = np.mean([per_prompt[one][metric].to_numpy(dtype=float) for one in draws], axis=0)
                before = per_prompt["base"][metric].to_numpy(dtype=float)
                numbers |= _changed(values, before, rows.clusters, bench.seed, drawn=len(draws) > 1)
            lines.append({"model": name, "metric": metric, **numbers})
    return pd.DataFrame(lines)


def _averaged(lines: list[dict[Any, Any]]) -> dict[str, float]:
    """Of one line its own numbers; of several the mean estimate, without an interval."""
    if len(lines) == 1:
        return {**{name: lines[0][name] for name in NUMBERS}, **dict.fromkeys(CHANGES, float("nan"))}
    found = dict.fromkeys(NUMBERS, float("nan"))
    return {**found, "estimate": float(np.mean([one["estimate"] for one in lines])), "n": lines[0]["n"]}


def _changed(
    values: np.ndarray, before: np.ndarray, clusters: np.ndarray, seed: int, *, drawn: bool
) -> dict[str, float]:
    """The change with its 95 % interval over prompts; of averaged draws also the estimate's own."""
    change = difference_interval(values, before, paired=True, clusters=clusters, seed=seed)
    found = {"change": change.estimate, "change_low": change.low, "change_high": change.high}
    if drawn:
        own = mean_interval(values, clusters=clusters, seed=seed)
        found |= {"estimate": own.estimate, "low": own.low, "high": own.high}
    return found


def _metrics(table: pd.DataFrame) -> pd.DataFrame:
    """The long table's rows; ``control`` of a recipe is what its random stand-ins came to on average."""
    lines = table.rename(columns={"model": "of"}).drop(columns="draws").to_dict("records")
    random = {(one["of"], one["strength"], one["metric"]): one["estimate"] for one in lines}
    return metric_rows([
        {**{str(name): value for name, value in one.items()},
         "control": random.get((f"{RANDOM}{one['of']}", one["strength"], one["metric"]))}
        for one in lines
    ])  # fmt: skip


def _named(recipe: str, on: str) -> str:
    return recipe if on == "tuned" else f"{recipe}, in the base"


def _text_lines(model: str, strength: float | None, rows: Any, answers: Sequence[str]) -> pd.DataFrame:
    prompts = [str(row) for row in rows]
    return pd.DataFrame({"prompt": prompts, "model": model, "strength": strength, "text": list(answers)})


def _summary(table: pd.DataFrame, recipes: Sequence[str], draws: int) -> str:
    """How many prompts and draws, and which recipes stand without a control."""
    n = int(table["n"].max())
    beside = {str(name) for name in table["model"] if str(name).startswith(RANDOM)}
    alone = [name for name in recipes if not any(one.startswith(f"{RANDOM}{name}") for one in beside)]
    control = f"; {draws} random draws per recipe" if beside else ""
    missing = f"; no random stand-in exists for {', '.join(alone)}" if alone and draws else ""
    return f"{n} prompts{control}{missing}"
