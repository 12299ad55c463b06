"""Steps that apply recipes: generate, diff and dose, each recipe beside random stand-ins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interventions.sweep import steered_texts
from probes.random_recipes import stand_ins
from tunescope.experiments import steps
from tunescope.experiments.step_folder import Outcome, metric_rows
from workbench.behaviour import behaviour_diff
from workbench.behaviour.dosing import next_token_scores
from workbench.behaviour.held_logits import HeldLogits
from workbench.behaviour.subject import Subject, Work
from workbench.prompts.encode import readable
from workbench.stats.bootstrap import mean_interval
from workbench.stats.shares import share_interval

if TYPE_CHECKING:
    import interventions as iv
    from tunescope.experiments.execute import Bench

RANDOM = "random "
"""Begins the name of a control."""
OUTSIDE = "kl out of scope"
"""How far the next token moves on prompts that should not change, in nats."""
CHANGES = ("change", "change_low", "change_high")
_FROM_BASE = ("from_base", "from_base_low", "from_base_high")
NUMBERS = ("estimate", "low", "high", "n", *CHANGES)
"""What a line says about one model and metric; the change is from the model without the recipe."""


def generate(step: steps.Generate, bench: Bench) -> Outcome:
    """Greedy continuations; the metrics are the share of prompts whose text a recipe changed, and of answers that begin
    as the step asks."""
    rows = bench.rows(step.prompts)
    length = step.max_new_tokens
    texts = {role: model.generate(rows, max_new_tokens=length) for role, model in bench.pair.models.items()}
    questions = [readable(row, bench.pair.tokenizer) for row in rows]
    lines = [_text_lines(role, None, questions, answers) for role, answers in texts.items()]
    metrics = [_beginning(role, None, answers, step, bench) for role, answers in texts.items()]
    for name in step.recipes:
        side = bench.pair.models[step.on]
        steered = steered_texts(side, bench.recipe(name), rows, step.strengths, max_new_tokens=length)
        for place, strength in enumerate(step.strengths):
            answers = [texts_of_recipe[place] for texts_of_recipe in steered]
            lines.append(_text_lines(_named(name, step.on), strength, questions, answers))
            moved = np.array([new != old for new, old in zip(answers, texts[step.on], strict=True)], dtype=float)
            interval = mean_interval(moved, clusters=rows.clusters, seed=bench.seed)
            metrics.append(
                {"of": _named(name, step.on), "strength": strength, "metric": "texts changed",
                 "estimate": interval.estimate, "low": interval.low, "high": interval.high, "n": interval.n}
            )  # fmt: skip
            metrics.append(_beginning(_named(name, step.on), strength, answers, step, bench))
    metrics = [metric for metric in metrics if metric]
    table = pd.concat(lines, ignore_index=True).astype({"strength": "float64"})
    return Outcome(f"{len(rows)} prompts, {length} new tokens each", table, metric_rows(metrics))


def _beginning(
    of: str, strength: float | None, answers: Sequence[str], step: steps.Generate, bench: Bench
) -> dict[str, Any]:
    """The share of answers that begin as the step asks; empty where it does not ask."""
    if step.begins is None:
        return {}
    hits = [float(answer.strip().startswith(step.begins.strip())) for answer in answers]
    share = share_interval(hits, clusters=bench.rows(step.prompts).clusters, seed=bench.seed)
    return {"of": of, "strength": strength, "metric": f"begins with {step.begins.strip()}", **share._asdict()}


def diff(step: steps.Diff, bench: Bench) -> Outcome:
    """base | tuned | each recipe, with the mean of its random stand-ins; curves of calibration and texts, where the
    step's metrics or options make them."""
    tuned, base = ({(name, 1.0): bench.recipe(name) for name in names} for names in (step.recipes, step.base_recipes))
    tables = _compared(bench, step, tuned, "tuned")
    if base:
        inside = _compared(bench, step, base, "base")
        tables = {name: _below(tables[name], inside[name]) for name in tables}
    table = tables.pop("table")
    summary = _summary(table, [*step.recipes, *step.base_recipes], step.controls)
    return Outcome(summary, table, _metrics(table), more={name: rest for name, rest in tables.items() if len(rest)})


def _below(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """The second table's recipes below the first, which has both models already."""
    if second.empty:
        return first
    return pd.concat([first, second[~second["model"].isin(["base", "tuned"])]], ignore_index=True)


def dose(step: steps.Dose, bench: Bench) -> Outcome:
    """One recipe at every strength, with the mean of its random stand-ins at the same strength."""
    recipe = bench.recipe(step.recipe)
    variants = {(step.recipe, strength): recipe * strength for strength in step.strengths}
    table = _compared(bench, step, variants, step.on)["table"]
    if step.outside is not None:
        table = pd.concat([table, _out_of_scope(bench, step, variants)], ignore_index=True)
    return Outcome(_summary(table, [step.recipe], step.controls), table, _metrics(table))


def _out_of_scope(bench: Bench, step: steps.Dose, variants: Mapping[tuple[str, float], iv.Recipe]) -> pd.DataFrame:
    """KL(steered || as it is) of the next token, on prompts that should not change: a line per strength, and one for
    the mean over its stand-ins."""
    rows, inside, side = bench.rows(step.outside), bench.rows(step.prompts), bench.pair.models[step.on]
    work = Work(progress=bench.progress)
    plain = HeldLogits.of(Subject("as it is", side), rows, work)

    def moved(recipe: iv.Recipe) -> np.ndarray:
        return next_token_scores(Subject(OUTSIDE, side, recipe), rows, "kl", plain, range(len(rows)), work)

    lines = []
    for (name, strength), recipe in variants.items():
        drawn = [moved(stand_in) for stand_in in stand_ins(recipe, side, inside, step.controls, bench.seed)]
        label = _named(name, step.on)
        values = {label: (moved(recipe), 1)} | ({RANDOM + label: (np.mean(drawn, 0), len(drawn))} if drawn else {})
        for model, (each, draws) in values.items():
            interval = mean_interval(each, clusters=rows.clusters, seed=bench.seed)
            change = dict(zip(CHANGES, interval[:3], strict=True))  # as it is, the model is at 0
            line = {"model": model, "strength": strength, "metric": OUTSIDE, "draws": draws}
            lines.append({**line, **interval._asdict(), **change})
    return pd.DataFrame(lines)


def _compared(
    bench: Bench, step: Any, variants: Mapping[tuple[str, float], iv.Recipe], on: str
) -> dict[str, pd.DataFrame]:
    """``table``, one line per model, strength and metric: base, tuned, the recipes, and the mean of each one's
    stand-ins; ``calibration`` and ``texts``, empty where nothing asks for them."""
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
    recipes: dict[str, Any] = {"recipe" if on == "tuned" else "base_recipes": applied, **_options(bench, step)}
    result = behaviour_diff(
        bench.pair, rows, metrics=step.metrics, controls=random, controls_on=on, seed=bench.seed, **recipes
    )
    table = result.table
    if on == "base":
        table = table.drop(columns=list(CHANGES)).rename(columns=dict(zip(_FROM_BASE, CHANGES, strict=True)))
    shown_as = [shown.get(name, (name, float("nan"), 1)) for name in table["model"]]
    table = table.assign(
        model=[label for label, _, _ in shown_as],
        strength=np.array([strength for _, strength, _ in shown_as], dtype=float),
        draws=[count for _, _, count in shown_as],
    )
    return {
        "table": table[["model", "strength", "metric", *NUMBERS, "draws"]].reset_index(drop=True),
        **{
            name: _renamed(part, shown) for name, part in (("calibration", result.calibration), ("texts", result.texts))
        },
    }


def _renamed(table: pd.DataFrame, shown: Mapping[str, tuple[str, float, int]]) -> pd.DataFrame:
    """Models by the names that people gave."""
    return table if table.empty else table.assign(model=[shown.get(model, (model,))[0] for model in table["model"]])


def _options(bench: Bench, step: steps.Compared) -> dict[str, Any]:
    neutral = {} if step.neutral is None else {"neutral": bench.rows(step.neutral)}
    return {**step.options, **neutral, "progress": bench.progress}


def _metrics(table: pd.DataFrame) -> pd.DataFrame:
    """The long table's rows; ``control`` of a recipe is what its random stand-ins came to on average."""
    lines = table.rename(columns={"model": "of"}).drop(columns="draws").to_dict("records")
    random = {(line["of"], line["strength"], line["metric"]): line["estimate"] for line in lines}
    return metric_rows([
        {**{str(name): value for name, value in line.items()},
         "control": random.get((f"{RANDOM}{line['of']}", line["strength"], line["metric"]))}
        for line in lines
    ])  # fmt: skip


def _named(recipe: str, on: str) -> str:
    return recipe if on == "tuned" else f"{recipe}, in the base"


def _text_lines(model: str, strength: float | None, questions: Sequence[str], answers: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame({"prompt": questions, "model": model, "strength": strength, "text": list(answers)})


def _summary(table: pd.DataFrame, recipes: Sequence[str], draws: int) -> str:
    """How many prompts and draws, and which recipes stand without a control."""
    n = int(table["n"].max())
    beside = {str(name) for name in table["model"] if str(name).startswith(RANDOM)}
    alone = [name for name in recipes if not any(model.startswith(f"{RANDOM}{name}") for model in beside)]
    control = f"; {draws} random draws per recipe" if beside else ""
    missing = f"; no random stand-in exists for {', '.join(alone)}" if alone and draws else ""
    return f"{n} prompts{control}{missing}"
