"""The scope panel: whether a recipe changes what it should, and leaves alone what it should not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import pandas as pd

from workbench.argument_checks import check_pair, read_options
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.scorers import Behaviour, behaviour, is_behaviour_text
from workbench.behaviour.scores import logits_of
from workbench.behaviour.subject import AppliedRecipe, Subject, Work
from workbench.behaviour.texts import TextRule
from workbench.errors import UserError, unknown_name
from workbench.method_options import As
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.results import Provenance, Result
from workbench.stats.controls import MIN_DRAWS
from workbench.stats.shares import share_difference, share_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

SCOPES = ("in scope", "near scope", "out of scope")
Changed = str | TextRule | Behaviour
"""What counts as a change: another most likely next token ("next_token"), another greedy text ("text"), or another
score of a behaviour ("refusal", "contains:sorry") or of a rule."""


@dataclass(frozen=True)
class ScopeOptions:
    """Options of :func:`scope_panel`."""

    max_new_tokens: int = 32
    progress: Progress | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class ScopePanel(Result):
    """How often behaviour changes under each recipe, in scope and beyond.

    ``table``: one line per recipe and set of prompts: ``rate`` ("applied" in scope, "over-generalisation" beyond),
    estimate (share of prompts whose behaviour changed), low, high, n; ``control``, ``control_low``, ``control_high``:
    mean and 95 % range over random recipes. ``selective``: per recipe the share in scope minus that beyond, with its
    interval. ``rows``: recipe, scope, prompt, changed.
    """

    selective: pd.DataFrame
    rows: pd.DataFrame
    changed: str
    """What counted as a change."""

    title: ClassVar[str] = "Scope"

    def figure(self) -> go.Figure:
        """One group of bars per set of prompts, with intervals and the control's range."""
        from workbench.figures.behaviour_scope import scope_figure

        return scope_figure(self.table, changed=self.changed)

    def summary(self) -> str:
        """Applied rate against over-generalisation, recipe by recipe."""
        said = []
        for recipe, lines in self.table.groupby("recipe", sort=False):
            shares = ", ".join(
                f"{row['scope']} {row['estimate']:.0%} [{row['low']:.0%}, {row['high']:.0%}]{_beside(row)}"
                for row in lines.to_dict("records")
            )
            said.append(f"{recipe}: {shares}")
        return f"Share of prompts whose behaviour changed ({self.changed}). {'; '.join(said)}"


def _beside(row: dict[Any, Any]) -> str:
    control = float(row.get("control", np.nan))  # no column where no recipe has random stand-ins
    return "" if np.isnan(control) else f" (random recipes {control:.0%})"


@method(
    "scope-panel",
    group="behaviour",
    question="Does a recipe change what it should, and nothing near it?",
    kind="behaviour",
    papers=("RLVF: Learning from Verbal Feedback without Overgeneralization",),
    cost="two passes per batch and set of prompts for each recipe and each of its controls",
    reads="in_scope",
    example="--recipe offset.safetensors --near-scope prompts.jsonl --out-of-scope prompts.jsonl",
)
def scope_panel(
    pair: ModelPair,
    recipe: Annotated[AppliedRecipe | Mapping[str, AppliedRecipe], As("recipes")],
    in_scope: Any,
    near_scope: Annotated[Any, As("prompts")],
    out_of_scope: Annotated[Any, As("prompts")],
    *,
    changed: Annotated[Changed, As("text")] = "next_token",
    controls: Annotated[Mapping[str, Sequence[AppliedRecipe]] | Sequence[AppliedRecipe], As("controls")] = (),
    on: str = "tuned",
    seed: int = 0,
    **options: Any,
) -> ScopePanel:
    """Share of prompts whose behaviour a recipe changes, in three sets of prompts (``near_scope`` may be None).

    Intervals: bootstrap over prompts, seeded.

    Args:
        pair: Base and tuned.
        recipe: One recipe, or named ones.
        in_scope: Prompts whose behaviour should change.
        near_scope: Prompts near those; None for none.
        out_of_scope: Prompts whose behaviour should not change.
        changed: "next_token", "text" (greedy), a behaviour such as "refusal" or "contains:sorry", or a rule
            ``rule(text, prompt)`` whose answer must change, such as :func:`is_refusal`.
        controls: At least ten random recipes matched to the recipe (by its name where there are several); on the
            command line how many.
        on: The model that recipes are applied to: "base" or "tuned".
        seed: Of intervals.
        **options: See :class:`ScopeOptions`.
    """
    check_pair(pair)
    if on not in pair.models:
        raise unknown_name("side", on, pair.models)
    settings = read_options(ScopeOptions, options)
    sets = zip(SCOPES, (in_scope, near_scope, out_of_scope), strict=True)
    scopes = {name: Prompts.of(rows) for name, rows in sets if rows is not None}
    if isinstance(changed, str) and is_behaviour_text(changed):
        changed = behaviour(changed)
    named = recipe if isinstance(recipe, Mapping) else {"recipe": recipe}
    random = _controls(controls, named)
    behaves = _behaviour(pair.models[on], changed, settings)
    lines, rows, draws = [], [], {}
    for scope, prompts in scopes.items():
        before = behaves(prompts, None)
        for name, applied in named.items():
            values = behaves(prompts, applied) != before
            rows.append(pd.DataFrame({"recipe": name, "scope": scope, "prompt": range(len(values)), "changed": values}))
            drawn = np.array([(behaves(prompts, draw) != before).mean() for draw in random[name]])
            draws[name] = len(drawn)
            lines.append(_line(name, scope, values, drawn, prompts.clusters, seed))
    rule = changed if isinstance(changed, str) else getattr(changed, "__qualname__", getattr(changed, "name", "a rule"))
    return ScopePanel(
        table=_by_recipe(pd.DataFrame(lines), list(named)),
        selective=_selective(pd.concat(rows), scopes, seed),
        rows=pd.concat(rows, ignore_index=True),
        changed={"next_token": "most likely next token", "text": "greedy text"}.get(rule, rule),
        provenance=Provenance.of(
            "scope_panel", pair.models, scopes["in scope"], seed=seed, device=str(pair.models[on].device),
            settings={"changed": rule, "on": on, "draws": draws, "prompts": {n: p.hash for n, p in scopes.items()}},
        ),
    )  # fmt: skip


def _by_recipe(table: pd.DataFrame, recipes: list[str]) -> pd.DataFrame:
    """Recipes in the order given, each with its sets of prompts."""
    return table.sort_values("recipe", kind="stable", key=lambda names: names.map(recipes.index), ignore_index=True)


def _controls(
    controls: Mapping[str, Sequence[AppliedRecipe]] | Sequence[AppliedRecipe], named: Mapping[str, AppliedRecipe]
) -> dict[str, Sequence[AppliedRecipe]]:
    if not isinstance(controls, Mapping):
        if controls and len(named) > 1:
            raise UserError("There are several recipes: give controls by name, {'recipe': [random recipes]}.")
        controls = dict.fromkeys(named, controls)
    for name, draws in controls.items():
        if name not in named:
            raise unknown_name("recipe of a control", name, named)
        if draws and len(draws) < MIN_DRAWS:
            raise UserError(f"A control needs at least {MIN_DRAWS} random recipes; {name!r} has {len(draws)}.")
    return {name: controls.get(name, ()) for name in named}


def _behaviour(
    model: AdaptedModel, changed: Changed, options: ScopeOptions
) -> Callable[[Prompts, AppliedRecipe | None], np.ndarray]:
    """(prompts, recipe) -> one value per prompt; unequal values are a change."""
    work = Work(progress=options.progress)
    if isinstance(changed, str) and changed not in ("next_token", "text"):
        raise unknown_name("kind of change", changed, ("next_token", "text"))

    def behaves(prompts: Prompts, recipe: AppliedRecipe | None) -> np.ndarray:
        subject = Subject("scope", model, recipe)
        if changed == "next_token":
            return logits_of(subject, prompts, work).argmax(-1).numpy()
        replies = generate_replies(subject, prompts, Decoding(options.max_new_tokens), work)
        if isinstance(changed, str):
            return np.array([" ".join(map(str, reply[0].ids)) for reply in replies])
        return np.array([float(changed(reply[0].text, row)) for reply, row in zip(replies, prompts, strict=True)])

    return behaves


def _line(
    recipe: str, scope: str, values: np.ndarray, drawn: np.ndarray, clusters: np.ndarray, seed: int
) -> dict[str, Any]:
    bounds = share_interval(values, clusters=clusters, seed=seed)
    rate = "applied" if scope == SCOPES[0] else "over-generalisation"
    line = {"recipe": recipe, "scope": scope, "rate": rate, "estimate": bounds.estimate, "low": bounds.low}
    line |= {"high": bounds.high, "n": bounds.n}
    if len(drawn):
        low, high = np.quantile(drawn, (0.025, 0.975))
        line |= {"control": float(drawn.mean()), "control_low": float(low), "control_high": float(high)}
    return {**line, "draws": len(drawn)}


def _selective(rows: pd.DataFrame, scopes: Mapping[str, Prompts], seed: int) -> pd.DataFrame:
    """recipe, against, estimate, low, high, n: applied rate minus over-generalisation, prompts drawn on either side."""
    lines = []
    for recipe, own in rows.groupby("recipe", sort=False):
        values = {name: part["changed"].to_numpy(np.float64) for name, part in own.groupby("scope", sort=False)}
        for scope in list(scopes)[1:]:
            both = (scopes[SCOPES[0]].clusters, scopes[scope].clusters)
            difference = share_difference(values[SCOPES[0]], values[scope], clusters=both, seed=seed)
            lines.append({"recipe": recipe, "against": scope, **difference._asdict()})
    return pd.DataFrame(lines)
