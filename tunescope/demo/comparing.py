"""One line per behaviour and recipe: base, tuned and steered on the same prompts, beside random stand-ins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from interventions import Recipe
from workbench.behaviour import behaviour_diff
from workbench.jsonable import jsonable
from workbench.prompts import Prompts
from workbench.stats.shares import share_interval


@dataclass(frozen=True)
class Behaviour:
    """A share of prompts: those whose most likely next token begins the row's ``answer``."""

    what: str
    prompts: Prompts

    @classmethod
    def of(cls, what: str, rows: Sequence[dict[str, Any]], answer: str) -> Behaviour:
        """The rows with another column as the answer."""
        rows_without = [{name: row[name] for name in row if name != "distractor"} for row in rows]
        return cls(what, Prompts.of([{**row, "answer": row[answer]} for row in rows_without]))


@dataclass(frozen=True)
class Tried:
    """A recipe and its random stand-ins, on the tuned model or on the base."""

    name: str
    recipe: Recipe
    controls: Sequence[Recipe]
    control: str
    """What the stand-ins are."""
    on: str = "tuned"


def compare(pair: Any, organism: str, behaviour: Behaviour, tried: Tried, seed: int = 0) -> dict[str, Any]:
    """Shares of prompts that show ``behaviour``: base, tuned, steered and the mean of the controls, each with its 95 %
    interval over prompts (``_low``, ``_high``); ``n`` prompts, ``draws`` of the control."""
    recipes = {"steered": tried.recipe, **{f"control {n}": control for n, control in enumerate(tried.controls)}}
    sides: dict[str, Any] = {"recipe": recipes} if tried.on == "tuned" else {"base_recipes": recipes}
    scored = behaviour_diff(pair, behaviour.prompts, metrics=["accuracy"], seed=seed, **sides).rows
    per_prompt = {str(model): rows["accuracy"].to_numpy() for model, rows in scored.groupby("model", sort=False)}
    drawn = np.mean([per_prompt[name] for name in recipes if name != "steered"], axis=0)
    line: dict[str, Any] = {"organism": organism, "behaviour": behaviour.what}
    line |= _cells("base", per_prompt["base"], behaviour, seed) | _cells("tuned", per_prompt["tuned"], behaviour, seed)
    line["recipe"] = tried.name if tried.on == "tuned" else f"{tried.name}, in the base"
    line |= _cells("steered", per_prompt["steered"], behaviour, seed) | _cells("control", drawn, behaviour, seed)
    return {**line, "control is": tried.control, "draws": len(tried.controls), "n": len(behaviour.prompts)}


def compared(pair: Any, organism: str, behaviours: Sequence[tuple[Behaviour, Tried]], seed: int = 0) -> pd.DataFrame:
    """:func:`compare` for every pair of behaviour and recipe."""
    return pd.DataFrame([compare(pair, organism, behaviour, tried, seed) for behaviour, tried in behaviours])


def for_people(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The table as the command prints it: percent, intervals in brackets, a line of its own for each organism."""
    lines: list[dict[str, Any]] = []
    columns = ("behaviour", "base", "tuned", "recipe", "with it", "control", "n")
    for organism, rows in table.groupby("organism", sort=False):
        shown: dict[str, Any] = {"behaviour": rows["behaviour"], "recipe": rows["recipe"], "n": rows["n"]}
        shown |= {"base": _percent(rows, "base"), "tuned": _percent(rows, "tuned")}
        shown |= {"with it": _percent(rows, "steered"), "control": _percent(rows, "control")}
        lines.append({**dict.fromkeys(columns, ""), "behaviour": str(organism).upper(), "n": None})
        lines += jsonable(pd.DataFrame(shown)[list(columns)])
    return lines


def _percent(table: pd.DataFrame, name: str) -> list[str]:
    columns = (table[name], table[f"{name}_low"], table[f"{name}_high"])
    return [f"{value:.0%} [{low:.0%}, {high:.0%}]".replace("%", "") for value, low, high in zip(*columns, strict=True)]


def _cells(name: str, values: np.ndarray, behaviour: Behaviour, seed: int) -> dict[str, float]:
    share = share_interval(values, clusters=behaviour.prompts.clusters, seed=seed)
    return {name: share.estimate, f"{name}_low": share.low, f"{name}_high": share.high}
