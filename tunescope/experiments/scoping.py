"""Steps that look at sets of prompts side by side: in scope and beyond, known and unknown, sure and unsure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from probes.random_recipes import stand_ins
from tunescope.experiments import steps
from tunescope.experiments.step_folder import Outcome, metric_rows
from workbench.behaviour import is_refusal, known_unknown, scope_panel, sure_unsure

if TYPE_CHECKING:
    from tunescope.experiments.execute import Bench


def scope(step: steps.Scope, bench: Bench) -> Outcome:
    """The share of prompts that each recipe changes in scope, near it and beyond, beside random stand-ins."""
    rows, side = bench.rows(step.prompts), bench.pair.models[step.on]
    recipes = {name: bench.recipe(name) for name in step.recipes}
    random = {name: stand_ins(recipe, side, rows, step.controls, bench.seed) for name, recipe in recipes.items()}
    changed: Any = is_refusal if step.changed == "refusal" else step.changed
    panel = scope_panel(
        bench.pair, recipes, rows, None if step.near is None else bench.rows(step.near), bench.rows(step.outside),
        changed=changed, controls={name: draws for name, draws in random.items() if draws}, on=step.on,
        seed=bench.seed, max_new_tokens=step.max_new_tokens, progress=bench.progress,
    )  # fmt: skip
    lines = [
        {"of": line["recipe"], "metric": f"changed {line['scope']}", "control": line.get("control"), **_numbers(line)}
        for line in panel.table.to_dict("records")
    ]
    lines += [
        {"of": line["recipe"], "metric": f"changed in scope - {line['against']}", **_numbers(line)}
        for line in panel.selective.to_dict("records")
    ]
    return Outcome(
        panel.summary(), panel.table, metric_rows(lines), panel, {"selective": panel.selective, "rows": panel.rows}
    )


def parts(step: steps.Parts, bench: Bench) -> Outcome:
    """Behaviour on either part of the prompts, and the difference of both parts."""
    ask = known_unknown if step.by == "known" else sure_unsure
    options: dict[str, Any] = {} if step.metrics is None else {"metrics": step.metrics}
    recipes = {name: bench.recipe(name) for name in step.recipes}
    parted = ask(
        bench.pair, bench.rows(step.prompts), recipes or None, seed=bench.seed, progress=bench.progress, **options,
        **step.options,
    )  # fmt: skip
    lines = [
        {"of": line["model"], "metric": f"{line['metric']}, {line['part']}", **_numbers(line)}
        for line in parted.table.to_dict("records")
    ]
    more = {"rows": parted.rows, "calibration": parted.calibration}
    summary = f"Divided by {parted.summary()}"
    return Outcome(
        summary, parted.table, metric_rows(lines), parted, {name: table for name, table in more.items() if len(table)}
    )


def _numbers(line: Any) -> dict[str, Any]:
    """What both long tables call alike."""
    shared = ("estimate", "low", "high", "n", "change", "change_low", "change_high")
    return {name: line[name] for name in shared if name in line and not pd.isna(line[name])}
