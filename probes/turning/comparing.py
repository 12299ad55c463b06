"""``ways_to_turn``: which way turns a behaviour off best, and what each costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

import interventions as iv
from probes.call_settings import call_settings
from probes.directions.find import DirectionOptions
from probes.directions.material import Part, parts_of
from probes.directions.trying import Outcome
from probes.random_recipes import stand_ins
from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import paired_p, scored, scored_share
from probes.turning.off_recipes import SHARES, WAYS, Placed, Way, recipe_of, update_by_chance, update_scaled
from probes.turning.search import BLOCKS, Finder
from workbench.argument_checks import check_pair
from workbench.behaviour.continuations import text_logprobs
from workbench.behaviour.scorers import Behaviour, Score
from workbench.behaviour.scorers import behaviour as read_behaviour
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError, unknown_name
from workbench.finished_batches import clock
from workbench.method_options import As
from workbench.methods import method
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.stats.controls import check_draws
from workbench.stats.fdr import q_values

NAMED = 4
"""Heads or experts that a line names; the settings hold all."""


@dataclass(frozen=True, kw_only=True)
class WaysToTurn(ProbeResult):
    """Every way to turn a behaviour off, on prompts that none was chosen on.

    ``table``: way; ``what`` it acts on; ``score``, the drop of the behaviour from the tuned model with its interval;
    ``control``, the mean drop under random stand-ins (NaN where there is none); ``q`` of the drop beyond the control;
    ``residual`` (the behaviour that is left, with residual_low and residual_high); side effects on the other prompts:
    ``other`` (the behaviour there), ``kl_tuned`` and ``kl_base`` (nats per token, with _low and _high), ``repetition``,
    ``subject`` (share of answers that hold a word of their question's subject), ``perplexity`` of neutral texts (NaN
    without); cost: ``search_passes`` (forward passes to find it), ``slowdown`` (time of a text against the tuned
    model's). The lines ``base`` and ``tuned`` are the models as they are.
    """

    behaviour: str
    ways: dict[str, Any]
    """way -> its settings as plain values."""
    tensors: dict[str, Any]
    """``way/name`` -> tensor."""
    resampled: str = "prompts"

    title: ClassVar[str] = "Ways to turn a behaviour off"
    unit: ClassVar[str] = "drop of the behaviour"

    def way(self, name: str) -> Way:
        """One way as it was found.

        Raises:
            UserError: It is none of those compared.
        """
        if name not in self.ways:
            raise unknown_name("way", name, self.ways)
        own = {key.partition("/")[2]: value for key, value in self.tensors.items() if key.startswith(f"{name}/")}
        return Way(name, self.ways[name], own)

    def recipe(self, name: str, pair: ModelPair) -> tuple[iv.Recipe, str]:
        """(recipe, "base" or "tuned": the side that it is applied to) of one way.

        Example:
            ``recipe, role = result.recipe("direction", pair)``
        """
        placed = recipe_of(self.way(name), pair)
        return placed.recipe, placed.role

    def best(self) -> str:
        """The way of least residual behaviour and side effects: residual + KL from the tuned model in nats per token.

        It counts both alike, as ``find_direction`` does; look at the table for another weighing.
        """
        tried = self.table[self.table["way"].isin(list(self.ways))]
        return str(tried["way"].iloc[int((tried["residual"] + tried["kl_tuned"]).to_numpy().argmin())])

    def figure(self) -> go.Figure:
        """What is left of the behaviour against what moved on other prompts."""
        drawn = go.Figure()
        for way, line in self.table.set_index("way").iterrows():
            above, below = line["residual_high"] - line["residual"], line["residual"] - line["residual_low"]
            drawn.add_scatter(
                x=[line["kl_tuned"]], y=[line["residual"]], name=str(way), text=[str(line["what"])], mode="markers",
                marker={"size": 10, "symbol": "square" if way in ("base", "tuned") else "circle"},
                error_y={"type": "data", "symmetric": False, "array": [above], "arrayminus": [below]},
            )  # fmt: skip
        drawn.update_layout(
            title=self.title, xaxis_title="KL from the tuned model on other prompts (nats per token)",
            yaxis_title=f"{self.behaviour} that is left",
        )  # fmt: skip
        return drawn

    def summary(self) -> str:
        """The best way, what it leaves and what it costs."""
        line = self.table.set_index("way").loc[self.best()]
        return (
            f"{self.behaviour}: best turned off by {self.best()} ({line['what']}): {line['residual']:.2g} "
            f"[{line['residual_low']:.2g}, {line['residual_high']:.2g}] is left, other prompts move by "
            f"{line['kl_tuned']:.2g} nats per token; intervals over {self.resampled}; control: {self.control}"
        )


@method(
    "ways-to-turn",
    group="behaviour",
    question="Which way turns a behaviour off best, and what else does each change?",
    cost="a search for each way, then one generation per way and control",
    example="--behaviour begins:sorry --limit 4",
)
def ways_to_turn(  # noqa: PLR0913
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    behaviour: Annotated[str | Score | Behaviour, As("behaviour")] = "refusal",
    *,
    ways: list[str] | None = None,
    neutral: Annotated[Any, As("prompts")] = None,
    limit: int = 16,
    max_new_tokens: int = 16,
    candidates: int = 4,
    controls: int = 10,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> WaysToTurn:
    """Turn one behaviour of the tuned model off in every way there is, and compare what is left and what else moved.

    ``update off``, ``update negated`` and ``update below zero`` leave 0, -1 and -0.5 of the update (task arithmetic;
    an adapter is scaled in place); ``direction`` ablates the direction that :func:`find_direction` finds;
    ``steered away`` takes it away as an offset; ``layers`` takes the update out of one run of layers; ``heads``
    silences heads; ``experts`` switches experts off, in a mixture of experts. What needs a choice is chosen on one
    part of the prompts and reported on the rest, each beside random stand-ins of the same size.

    Args:
        pair: Base and tuned model.
        prompts: Questions of two classes, by their labels or by whether the tuned model's answer shows the behaviour.
        behaviour: What to turn off, such as ``refusal`` or ``begins:I am sorry``.
        ways: Which ways; all that the model has by default.
        neutral: Texts whose perplexity is reported.
        limit: Prompts of each class in each part, at most.
        max_new_tokens: Tokens that are generated for each answer.
        candidates: Directions that are tried by generation.
        controls: Random stand-ins of each way, ten or more; 0: none.
        seed: Of parts, stand-ins and resampling.

    Returns:
        A :class:`WaysToTurn`; ``.recipe(way, pair)`` gives a way's recipe.

    Raises:
        UserError: The tuned model does not show the behaviour more than the base, a class is too small, or a way has a
            name nobody knows.

    Example:
        ``found = probes.ways_to_turn(pair, questions, "refusal"); found.recipe(found.best(), pair)``
    """
    check_pair(pair)
    for name in ways or ():
        if name not in WAYS:
            raise unknown_name("way", name, WAYS)
    if controls:
        check_draws(controls)
    named = read_behaviour(behaviour)
    if named.states is not None:
        raise UserError(f"{named.name} reads a model's states, which recipes change: give a behaviour of texts.")
    rows, work = Prompts.of(prompts), Work(batch_size, progress)
    settings = DirectionOptions(
        limit=limit, max_new_tokens=max_new_tokens, candidates=candidates, batch_size=batch_size, seed=seed
    )
    with counted(pair.base, pair.tuned) as passes:
        choosing, reported = parts_of(
            pair, rows, named, limit=limit, max_new_tokens=max_new_tokens, seed=seed, work=work
        )
        ways_found: dict[str, Way] = {}
        searched = {}
        finder = Finder(pair, choosing, named, settings, work)
        for name in ways or WAYS:
            before = passes.forward
            way = finder.way(name)
            searched[name] = passes.forward - before
            if way is not None:
                ways_found[name] = way
        report = _Report(pair, reported, named, settings, work, None if neutral is None else Prompts.of(neutral))
        table = report.table(ways_found, searched, controls)
    return WaysToTurn(
        table=table,
        control=f"{controls} random stand-ins of each way: as many other heads or experts, a random direction, other "
        "layers, the update with random signs",
        provenance=Provenance.of(
            "ways_to_turn", pair, rows, seed=seed, forward_passes=passes.forward,
            settings=call_settings(None, neutral=None if neutral is None else Prompts.of(neutral)),
        ),
        behaviour=named.name,
        ways={name: dict(way.settings) for name, way in ways_found.items()},
        tensors={f"{name}/{key}": value for name, way in ways_found.items() for key, value in way.tensors.items()},
        resampled=units_of(reported.prompts[reported.of(shows=True)].clusters),
    )  # fmt: skip


class _Report:
    """Every way on prompts that none was chosen on."""

    def __init__(
        self, pair: ModelPair, part: Part, behaviour: Behaviour, settings: DirectionOptions, work: Work,
        neutral: Prompts | None,
    ) -> None:  # fmt: skip
        self.pair, self.part, self.behaviour, self.settings, self.work = pair, part, behaviour, settings, work
        self.neutral = neutral
        self.finder = Finder(pair, part, behaviour, settings, work)
        self.tuned = self.finder.trier.own("tuned")
        self.clusters = {shows: part.prompts.clusters[part.of(shows=shows)] for shows in (True, False)}

    def table(self, ways: dict[str, Way], searched: dict[str, int], controls: int) -> pd.DataFrame:
        """One line per way, behind the two models."""
        plain = self._timed(Placed(iv.Recipe([]), "tuned"))[1]
        lines = [
            self._line(role, "the model as it is", self.finder.trier.own(role), Placed(iv.Recipe([]), role))
            for role in ("base", "tuned")
        ]
        beyond = []
        for name, way in ways.items():
            placed = recipe_of(way, self.pair)
            outcome, seconds = self._timed(placed)
            line = self._line(name, _told(way), outcome, placed)
            random = [self.finder.shows_under(recipe) for recipe in self._random(way, placed, controls)]
            drop = self.tuned.shows.behaviour - outcome.shows.behaviour
            chance = np.zeros_like(drop)
            if random:
                chance = np.mean([self.tuned.shows.behaviour - left for left in random], axis=0)
            control = float(chance.mean()) if random else float("nan")
            lines.append({**line, "control": control, "search_passes": searched[name], "slowdown": seconds / plain})
            beyond.append(drop - chance)
        shown = self.clusters[True]
        p = np.array([paired_p(falls, shown, seed=self.settings.seed, alternative="greater") for falls in beyond])
        unknown = [float("nan")] * 2
        return pd.DataFrame(lines).assign(p=[*unknown, *p], q=[*unknown, *q_values(p)])

    def _timed(self, placed: Placed) -> tuple[Outcome, float]:
        began = clock()
        outcome = self.finder.under(placed)
        return outcome, clock() - began

    def _line(self, name: str, what: str, outcome: Outcome, placed: Placed) -> dict[str, Any]:
        seed, shows, other = self.settings.seed, self.clusters[True], self.clusters[False]
        drop = self.tuned.shows.behaviour - outcome.shows.behaviour
        line: dict[str, Any] = {"way": name, "what": what, **scored(drop, seed=seed, clusters=shows)}
        left = (scored_share if self.behaviour.share else scored)(outcome.shows.behaviour, seed=seed, clusters=shows)
        line |= _renamed(left, "residual") | {"other": float(outcome.other.behaviour.mean())}
        for column, values in (("kl_tuned", outcome.kl_tuned), ("kl_base", outcome.kl_base)):
            line |= _renamed(scored(values, seed=seed, clusters=other), column)
        line |= {"repetition": outcome.shows.repetition.mean(), "subject": outcome.shows.subject.mean()}
        line |= {"perplexity": self._perplexity(placed), "on": placed.role}
        return {**line, "control": float("nan"), "search_passes": 0, "slowdown": 1.0, "n": len(drop)}

    def _perplexity(self, placed: Placed) -> float:
        if self.neutral is None:
            return float("nan")
        subject = Subject(placed.role, self.pair.models[placed.role], placed.recipe)
        texts = text_logprobs(subject, self.neutral, self.work)
        return float(np.exp(-texts.sum_.sum() / texts.tokens.sum()))

    def _random(self, way: Way, placed: Placed, controls: int) -> list[Placed]:
        """Stand-ins that differ from the way in what was chosen, and in nothing else."""
        seed = self.settings.seed
        if way.name in SHARES:
            return [update_by_chance(self.pair, SHARES[way.name], seed + number) for number in range(controls)]
        if way.name == "layers":
            n_layers = self.pair.tuned.n_layers
            blocks = [part.tolist() for part in np.array_split(np.arange(n_layers), min(BLOCKS, n_layers))]
            others = [block for block in blocks if block != list(way.settings["layers"])]
            picked = np.random.default_rng(seed).permutation(len(others))[:controls]
            return [update_scaled(self.pair, 1.0, dict.fromkeys(others[int(n)], 0.0)) for n in picked]
        drawn = stand_ins(placed.recipe, self.pair.models[placed.role], self.part.prompts, controls, seed)
        return [Placed(draw, placed.role) for draw in drawn]


def _renamed(columns: dict[str, float], name: str) -> dict[str, float]:
    return {name: columns["score"], f"{name}_low": columns["low"], f"{name}_high": columns["high"]}


def _told(way: Way) -> str:
    """What a way acts on, in words."""
    match way.name:
        case "direction":
            first, last = way.settings["layers"][0], way.settings["layers"][-1]
            return f"a direction at L{first}{'' if first == last else f'-L{last}'}, {way.settings['positions']}"
        case "steered away":
            return f"an offset at L{way.settings['layer']}, strength {way.settings['strength']:g}"
        case "layers":
            return f"the update of L{way.settings['layers'][0]}-L{way.settings['layers'][-1]}"
        case "heads" | "experts":
            names = way.settings[way.name]
            return f"{' '.join(names[:NAMED])}{f' and {len(names) - NAMED} more' if len(names) > NAMED else ''}"
    return f"{SHARES[way.name]:g} of the update"


__all__ = ["WaysToTurn", "ways_to_turn"]
