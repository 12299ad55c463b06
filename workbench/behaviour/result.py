"""What :func:`workbench.behaviour_diff` returns."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from workbench.errors import UserError
from workbench.jsonable import jsonable
from workbench.results import Result
from workbench.tables import with_intervals

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, kw_only=True)
class BehaviourDiff(Result):
    """Behaviour of the compared models on the same prompts.

    ``table``: one line per model and metric: estimate, low, high, n, and the differences ``change`` (from the tuned
    model) and ``from_base``, paired by prompt, each with its own interval. ``rows``: the value of every metric for
    every prompt and model. ``texts``: generated texts side by side (:func:`workbench.behaviour.texts.texts_table`).
    ``calibration``: the reliability curve of every model. ``neutral``: log-probability and tokens of every neutral
    text. Tables that no metric asked for are empty.
    """

    rows: pd.DataFrame
    texts: pd.DataFrame = field(default_factory=pd.DataFrame)
    calibration: pd.DataFrame = field(default_factory=pd.DataFrame)
    neutral: pd.DataFrame = field(default_factory=pd.DataFrame)
    scored: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Which tokens of every answer and distractor were scored: prompt, column, scored, tokens."""
    how: str = ""
    """How answers were scored, and what the intervals draw where prompts stand in groups, in words."""

    title: ClassVar[str] = "Behaviour"

    @property
    def prompts(self) -> str | None:
        """Content hash of the prompts."""
        return self.provenance.prompts

    @property
    def seed(self) -> int:
        """Seed of intervals and samples."""
        return self.provenance.seed or 0

    @property
    def models(self) -> list[str]:
        """Names of the compared models, base and tuned first."""
        return list(dict.fromkeys(self.table["model"]))

    def value(self, model: str, metric: str) -> float:
        """One estimate."""
        row = self.table[(self.table["model"] == model) & (self.table["metric"] == metric)]
        if row.empty:
            raise UserError(
                f"No {metric!r} of {model!r} here: models are {', '.join(self.models)}, metrics "
                f"{', '.join(dict.fromkeys(self.table['metric']))}."
            )
        return float(row["estimate"].iloc[0])

    def figure(self) -> go.Figure:
        """Every metric as a row of dots with intervals, one colour per model."""
        from workbench.figures.behaviour import behaviour_figure

        return behaviour_figure(self.table)

    def figures(self) -> dict[str, go.Figure]:
        """Every figure there is something to draw for: behaviour, calibration, texts."""
        from workbench.figures.behaviour_calibration import calibration_figure
        from workbench.figures.behaviour_texts import texts_figure

        drawn = {"behaviour": self.figure()}
        if len(self.calibration):
            drawn["calibration"] = calibration_figure(self.calibration)
        if len(self.texts):
            drawn["texts"] = texts_figure(self.texts)
        return drawn

    def to_json(self) -> str:
        """Table, texts, calibration and provenance as JSON with plain lists (NaN becomes null)."""
        more = {name: jsonable(getattr(self, name)) for name in ("texts", "calibration")}
        return json.dumps({"result": self.title, **self._plain(self.table), **more}, default=str)

    def summary(self) -> str:
        """How many prompts, models and metrics, and how answers were scored."""
        how = f"; {self.how}" if self.how else ""
        return f"{self.provenance.n_prompts} prompts, {len(self.models)} models; 95 % intervals over prompts{how}"

    def __str__(self) -> str:
        """One line per model, one column per metric, as estimate [low, high]."""
        shown = with_intervals(self.by_metric()).set_index("metric").drop(columns="n").T
        shown.columns.name = None
        how = f"; {self.how}" if self.how else ""
        return f"{shown.to_string()}\n(95 % intervals over {int(self.table['n'].max())} prompts{how})"

    def by_metric(self) -> pd.DataFrame:
        """One line per metric: n, and for every model its estimate, ``<model>_low`` and ``<model>_high``."""
        return side_by_side(self.table, ["metric"])

    def changes(self) -> pd.DataFrame:
        """The table without what is zero by construction: how far each model is from the base and the tuned model."""
        columns = ["metric", "model", *(name for name in self.table if str(name).startswith(("change", "from_base")))]
        changed = self.table[self.table["model"] != "base"][columns]
        order = {metric: place for place, metric in enumerate(dict.fromkeys(self.table["metric"]))}
        return changed.sort_values("metric", kind="stable", key=lambda names: names.map(order), ignore_index=True)

    def _html(self) -> str:
        from workbench.figures.behaviour_texts import texts_html

        shown = with_intervals(self.by_metric()).to_html(escape=True, index=False, border=0)
        return shown + (texts_html(self.texts) if len(self.texts) else "")


def side_by_side(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """One line per value of ``keys``: n, and for every model its estimate, ``<model>_low`` and ``<model>_high``."""
    lines = []
    for named, rows in table.groupby(keys, sort=False):
        line: dict[str, Any] = {**dict(zip(keys, named, strict=True)), "n": int(rows["n"].iloc[0])}
        for row in rows.to_dict("records"):
            name = row["model"]
            line |= {name: row["estimate"], f"{name}_low": row["low"], f"{name}_high": row["high"]}
        lines.append(line)
    return pd.DataFrame(lines)
