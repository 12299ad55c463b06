"""``behaviour_diff``: base | tuned | tuned under each recipe, on the same prompts, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.behaviour.scores import AppliedRecipe, next_token_logits, score_answers
from workbench.errors import UserError
from workbench.models.pair import ModelPair
from workbench.prompts.collection import Prompts
from workbench.stats.bootstrap import difference_interval, mean_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

DEFAULT_METRICS = ("accuracy", "prob", "kl")


@dataclass(frozen=True, eq=False)
class BehaviourDiff:
    """Behaviour of the compared models on the same prompts.

    ``table``: one line per model and metric: estimate, low, high, n, and ``change`` (against the tuned model, paired by
    prompt) with its own interval. ``rows``: the value of every metric for every prompt and model.
    """

    table: pd.DataFrame
    rows: pd.DataFrame
    prompts: str
    """Content hash of the prompts."""
    seed: int

    def frame(self) -> pd.DataFrame:
        """The table."""
        return self.table.copy()

    def value(self, model: str, metric: str) -> float:
        """One estimate."""
        found = self.table[(self.table["model"] == model) & (self.table["metric"] == metric)]
        if found.empty:
            raise UserError(f"No {metric!r} of {model!r} here: models are {', '.join(self.table['model'].unique())}.")
        return float(found["estimate"].iloc[0])

    def figure(self) -> go.Figure:
        """Every metric as a row of dots with intervals, one colour per model."""
        from workbench.figures.behaviour import behaviour_figure

        return behaviour_figure(self.table)

    def __str__(self) -> str:
        """One line per model, one column per metric, as estimate [low, high]."""
        shown = self.table.assign(
            text=[
                f"{e:.3g} [{low:.3g}, {high:.3g}]"
                for e, low, high in self.table[["estimate", "low", "high"]].to_numpy()
            ]
        )
        wide = shown.pivot(index="model", columns="metric", values="text")
        ordered = wide.loc[list(dict.fromkeys(shown["model"])), list(dict.fromkeys(shown["metric"]))]
        ordered.index.name = ordered.columns.name = None
        return f"{ordered.to_string()}\n(95 % intervals over {int(self.table['n'].max())} prompts)"

    def _repr_html_(self) -> str:
        return self.table.to_html(escape=True, index=False, float_format=lambda value: f"{value:.3g}")


def behaviour_diff(
    pair: ModelPair,
    prompts: Any,
    recipe: AppliedRecipe | Mapping[str, AppliedRecipe] | None = None,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    controls: Mapping[str, Sequence[AppliedRecipe]] | None = None,
    base_recipes: Mapping[str, AppliedRecipe] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> BehaviourDiff:
    """Compare base, tuned, and the tuned model under any number of recipes.

    ``recipe``: one recipe, or named ones. ``controls``: named lists of random recipes matched to a recipe; each list is
    averaged over its draws per prompt. ``base_recipes``: recipes applied to the base instead. Intervals are 95 %
    bootstraps over prompts (over groups where prompts have them), seeded.
    """
    rows = Prompts.of(prompts)
    named: Mapping[str, AppliedRecipe] = (
        {} if recipe is None else recipe if isinstance(recipe, Mapping) else {"tuned + recipe": recipe}
    )
    base = next_token_logits(pair.base, rows, batch_size=batch_size)

    def score(logits: Any) -> pd.DataFrame:
        return score_answers(logits, rows, pair.tokenizer, metrics, base)

    scores = {"base": score(base), "tuned": score(next_token_logits(pair.tuned, rows, batch_size=batch_size))}
    for name, one in named.items():
        scores[name] = score(next_token_logits(pair.tuned, rows, one, batch_size))
    for name, one in (base_recipes or {}).items():
        scores[name] = score(next_token_logits(pair.base, rows, one, batch_size))
    for name, draws in (controls or {}).items():
        each = [score(next_token_logits(pair.tuned, rows, draw, batch_size)) for draw in draws]
        scores[name] = pd.concat(each).groupby(level=0).mean()
    return BehaviourDiff(_table(scores, rows, seed), _long(scores), rows.hash, seed)


def _table(scores: Mapping[str, pd.DataFrame], prompts: Prompts, seed: int) -> pd.DataFrame:
    clusters = prompts.clusters
    lines = []
    for model, frame in scores.items():
        for metric in frame:
            values, tuned = frame[metric].to_numpy(), scores["tuned"][metric].to_numpy()
            found = mean_interval(values, clusters=clusters, seed=seed)
            change = difference_interval(values, tuned, paired=True, clusters=clusters, seed=seed)
            lines.append(
                {"model": model, "metric": metric, "estimate": found.estimate, "low": found.low, "high": found.high,
                 "n": found.n, "change": change.estimate, "change_low": change.low, "change_high": change.high}
            )  # fmt: skip
    return pd.DataFrame(lines)


def _long(scores: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    frames = [frame.assign(model=model, prompt=range(len(frame))) for model, frame in scores.items()]
    return pd.concat(frames, ignore_index=True)
