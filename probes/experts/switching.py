"""Behaviour against the number of experts switched off (or forced on), beside frequency-matched random experts.

After "Mixture of Tunable Experts" (Dahlke et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.call_settings import call_settings
from probes.experts.counting import content, count_experts, require_experts
from probes.experts.labels import respond
from probes.experts.mapping import ExpertMap
from probes.matching import Place, matched_cells
from probes.results import SHARED, ProbeResult, Provenance
from probes.scored import count_columns
from workbench.argument_checks import check_subject, read_options
from workbench.engine.sites import parse_label
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress
from workbench.prompts import Prompt, Prompts
from workbench.stats.bootstrap import mean_intervals
from workbench.typing import Float

Behaviour = Callable[[str, Prompt], Any]
"""Scores a response (and the prompt it answers): true/false, or a number."""
Mode = Literal["replace", "drop", "drop_renorm", "force"]


@dataclass(frozen=True)
class SwitchOptions:
    """Options of :func:`switching_curve`."""

    max_new_tokens: int = 32
    controls: int = 10
    """How many draws of random experts; each is fixed for the whole curve."""
    draws: int = 1000
    batch_size: int = 16
    seed: int = 0
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class SwitchingCurve(ProbeResult):
    """Mean behaviour at every count of switched experts.

    ``score`` (``low``, ``high``) is the behaviour with the ranked experts switched, ``control`` (``control_low``,
    ``control_high``) its mean and 95 % range over draws of random experts, ``change`` (``change_low``,
    ``change_high``) the paired difference from no switching; ``q`` tests ranked against random by prompt.
    """

    ranked: list[str]
    random: list[list[str]]
    mode: str
    values: Float[np.ndarray, "count prompt"]
    random_values: Float[np.ndarray, "draw count prompt"]
    title: ClassVar[str] = "Switching curve"
    unit: ClassVar[str] = "mean behaviour"

    def frame(self) -> pd.DataFrame:
        """The table, best score first. Its cells are counts, so there is no layer column."""
        return (
            super()
            .frame()
            .drop(columns="layer")[["count", *SHARED, *self.table.columns.difference(["count", *SHARED])]]
        )

    def figure(self) -> go.Figure:
        """Behaviour against count, with the band of random experts."""
        from workbench.figures.experts import switching_lines

        verb = "forced on" if self.mode == "force" else f"switched off ({self.mode})"
        return switching_lines(self.table, title=f"Experts {verb}, n = {self.values.shape[1]} prompts")


@method(
    "switching",
    group="experts",
    question="How does the behaviour change as ranked experts are switched?",
    papers=("Mixture of Tunable Experts -- Behavior Modification of DeepSeek-R1 at Inference Time",),
    needs=Needs(experts=True),
    cost="one generation per count and control",
    example="--behaviour begins:sorry --ranking L1E4,L2E1 --counts 1,2",
)
def switching_curve(
    subject: Any,
    prompts: Any,
    behaviour: Annotated[Behaviour, As("behaviour")],
    ranking: Annotated[ExpertMap | Sequence[str], As("experts")],
    counts: Sequence[int] = (1, 2, 4, 8),
    mode: Mode = "drop_renorm",
    **options: Any,
) -> SwitchingCurve:
    """Generate with the first n experts of ``ranking`` switched, for every n of ``counts``, and score the responses.

    ``subject``: a model, or a pair (its tuned model). ``behaviour(response, prompt)`` is true/false or a number.
    ``mode``: how an expert is switched off (see ``interventions.ExpertSwitch``; by default as in the paper, weight 0
    and the rest renormalised), or ``force`` for on, with the highest weight of the token.
    ``options``: see :class:`SwitchOptions`. Counts above the length of the ranking are a :class:`UserError`.

    Args:
        behaviour: What is measured of a response, as in begins:sorry; in Python a function of response and prompt.
        ranking: Experts, the first to be switched first: labels, or the first of a map.
        counts: How many of them are switched.
        mode: How an expert is switched off (replace, drop, drop_renorm), or force for on (weight: the token's highest).
    """
    check_subject(subject)
    settings = read_options(SwitchOptions, options)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    require_experts(model)
    rows = Prompts.of(prompts)
    steps = sorted({0, *counts})
    ranked = _experts(ranking, steps[-1])
    frequency, counted = _frequency(model, rows, ranking, settings)
    random = matched_cells(ranked, frequency, settings.controls, settings.seed)
    trial = _Trial(model, rows, behaviour, mode, settings)
    start = trial.values([])
    values = np.stack([start, *(trial.values(ranked[:n]) for n in steps[1:])])
    drawn = np.stack([np.stack([start, *(trial.values(draw[:n]) for n in steps[1:])]) for draw in random])
    return SwitchingCurve(
        table=_table(steps, values, drawn, rows.clusters, settings),
        control=f"{settings.controls} draws of as many random experts of the same layers, matched in frequency of use",
        provenance=Provenance.of(
            "switching_curve",
            model,
            rows,
            seed=settings.seed,
            forward_passes=counted + trial.passes,
            settings=call_settings(settings),
        ),
        ranked=_labels(ranked),
        random=[_labels(draw) for draw in random],
        mode=mode,
        values=values,
        random_values=drawn,
    )


class _Trial:
    """Generation with a set of experts switched, scored per prompt."""

    def __init__(
        self, model: AdaptedModel, rows: Prompts, behaviour: Behaviour, mode: Mode, settings: SwitchOptions
    ) -> None:
        self.model, self.rows, self.behaviour, self.mode, self.settings = model, rows, behaviour, mode, settings
        self.passes = 0

    def values(self, experts: Sequence[Place]) -> Float[np.ndarray, " prompt"]:
        """The behaviour of each prompt's response with ``experts`` switched."""
        from interventions import ExpertSwitch, Recipe

        names = _labels(experts)
        if self.mode == "force":  # by its own weight an expert that the router would not choose is nearly silent
            switch = ExpertSwitch(on=names, mode=self.mode, weight="max")
        else:
            switch = ExpertSwitch(off=names, mode=self.mode)
        with Recipe([switch] if experts else []).applied(self.model):
            ids, passes = respond(
                self.model, self.rows, self.settings.max_new_tokens, self.settings.batch_size, self.settings.progress
            )
        self.passes += passes
        texts = [self.model.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in ids]
        return np.array([float(self.behaviour(text, row)) for text, row in zip(texts, self.rows, strict=True)])


def _experts(ranking: ExpertMap | Sequence[str], needed: int) -> list[Place]:
    names = ranking.ranking() if isinstance(ranking, ExpertMap) else list(ranking)
    if needed > len(names) or needed < 1:
        raise UserError(
            f"The counts ask for {needed} experts but the ranking holds {len(names)}: use 1 to {len(names)}."
        )
    places = []
    for name in names[:needed]:
        layer, kind, expert = parse_label(name)
        if kind != "expert" or expert is None:
            raise UserError(f"{name!r} is not an expert: write labels such as L3E12.")
        places.append((layer, expert))
    return places


def _frequency(
    model: AdaptedModel, rows: Prompts, ranking: ExpertMap | Sequence[str], settings: SwitchOptions
) -> tuple[dict[Place, float], int]:
    """How often each expert is selected by prompt tokens, and the forward passes spent to learn it."""
    if isinstance(ranking, ExpertMap):
        return ranking.frequency(), 0
    ids = [model.encode(rows[[number]]).input_ids[0].tolist() for number in range(len(rows))]
    (counts,) = count_experts(model, ids, [content(ids, "none", [])], batch_size=settings.batch_size)
    shares = counts.shares.mean(0)
    frequency = {
        (layer, expert): float(shares[place, expert])
        for place, layer in enumerate(counts.layers)
        for expert in range(model.n_experts)
    }
    return frequency, counts.passes


def _labels(experts: Sequence[Place]) -> list[str]:
    return [f"L{layer}E{expert}" for layer, expert in experts]


def _table(
    steps: Sequence[int],
    values: Float[np.ndarray, "count prompt"],
    drawn: Float[np.ndarray, "draw count prompt"],
    clusters: np.ndarray,
    settings: SwitchOptions,
) -> pd.DataFrame:
    change = mean_intervals((values - values[0]).T, clusters=clusters, draws=settings.draws, seed=settings.seed)
    return pd.DataFrame({
        **count_columns(steps, values, drawn, clusters, seed=settings.seed, draws=settings.draws),
        "change": change.estimate, "change_low": change.low, "change_high": change.high,
    })  # fmt: skip
