"""``find_direction``: which direction carries a behaviour that only the tuned model has; can it be removed?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pandas as pd

from probes.call_settings import call_settings
from probes.directions.contrasting import SCOPES, Directions, directions_of, estimated
from probes.directions.material import Part, parts_of
from probes.directions.result import FoundDirection
from probes.directions.trying import Candidate, Outcome, Trier, cheapest, push
from probes.random_recipes import stand_ins
from probes.resampling import cluster_means
from probes.results import Provenance
from workbench.argument_checks import check_pair, read_options
from workbench.behaviour.scorers import Behaviour, Score
from workbench.behaviour.scorers import behaviour as read_behaviour
from workbench.behaviour.subject import Work
from workbench.errors import UserError
from workbench.method_options import As, Within
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts
from workbench.stats.bootstrap import mean_interval
from workbench.stats.controls import check_draws
from workbench.stats.fdr import q_values
from workbench.stats.shares import share_interval
from workbench.stats.tests import paired_permutation

WIDTHS = (1, 5, 9)
"""How many neighbouring layers a candidate takes."""
OTHER_STRENGTHS = (0.75, 1.5)
WEAKER = 0.5
"""Tried too where neutral texts are given, which stronger recipes harm more."""
STRENGTHS = (1.0, 2.0, 4.0)
"""At which the opposite is tried."""


@dataclass(frozen=True)
class DirectionOptions:
    """Options of :func:`find_direction`."""

    neutral: Annotated[Any, As("prompts")] = None
    """Texts whose perplexity is reported: every second one; the others help to choose, see ``allowed_rise``."""
    allowed_rise: Annotated[float, Within(0, None)] = 0.02
    """By which share a recipe may raise the perplexity of neutral texts. Of the recipes that turn the behaviour off the
    one of least cost among those that keep to it is chosen; where none does, a rise beyond it counts as cost."""
    limit: int = 16
    """Prompts of each class in each part, at most."""
    max_new_tokens: int = 16
    """Tokens that are generated for each answer."""
    candidates: int = 9
    """How many of the estimated ones are tried by generation."""
    controls: int = 10
    """Random recipes matched to the chosen one, on the reported part; 0: none."""
    batch_size: int = 16
    seed: int = 0
    progress: Progress | None = None


@method(
    "direction",
    group="directions",
    question="Which direction carries a behaviour of the tuned model, and what is left of it without?",
    needs=Needs(),
    cost="one forward and backward pass per prompt, then one generation per candidate, strength and control",
    example="--behaviour begins:sorry --limit 4",
)
def find_direction(
    pair: ModelPair,
    prompts: Any,
    behaviour: Annotated[str | Score | Behaviour, As("behaviour")] = "refusal",
    **options: Any,
) -> FoundDirection:
    """Find the direction of a behaviour that only the tuned model has, and a recipe that turns it off.

    The direction at a layer is a difference of differences of mean residuals, (tuned[shows] - tuned[other]) -
    (base[shows] - base[other]), so that neither what the prompts are about nor what tuning changed everywhere enters it
    (after Arditi et al. 2024). Layers, roles and positions are ranked by gradients, the best are tried by generation on
    one part of the prompts, and the chosen one is reported on the rest, beside random recipes.

    Args:
        pair: base and tuned model.
        prompts: questions of two classes: by their two labels, or (without labels) by whether the tuned model's answer
            shows the behaviour. Rows of one group stay in one part.
        behaviour: whatever ``wb.behaviour`` takes, such as ``"refusal"`` or ``"begins:I am sorry"``.
        options: see :class:`DirectionOptions`.

    Returns:
        A :class:`FoundDirection`: ``.recipe``, ``.opposite``, ``.frame()``, ``.held_out``, ``.figure()``.

    Raises:
        UserError: where the tuned model does not show the behaviour more than the base and than on the other class, and
            where a class is too small.

    Example:
        ``found = probes.find_direction(pair, questions, behaviour="refusal"); found.recipe.save("off.safetensors")``
    """
    check_pair(pair)
    settings, named = read_options(DirectionOptions, options), read_behaviour(behaviour)
    if settings.controls:
        check_draws(settings.controls)
    if named.states is not None:
        raise UserError(f"{named.name} reads a model's states, which the recipe changes: give a behaviour of texts.")
    rows, work = Prompts.of(prompts), Work(settings.batch_size, settings.progress)
    choosing, reported = parts_of(
        pair, rows, named, limit=settings.limit, max_new_tokens=settings.max_new_tokens, seed=settings.seed, work=work
    )
    helping = _every_second(settings, first=0)
    search = Search(Trier(pair, choosing, named, settings.max_new_tokens, work, helping), settings)
    best = search.best()
    search.find_opposite(best)
    report = _Report(pair, reported, named, settings, work)
    held_out, drop = report.table(best.ablation(search.directions), search.opposite)
    role = search.directions.roles.index(best.role)
    layers = list(best.layers)
    return FoundDirection(
        table=search.table().assign(control=drop),
        control=f"{settings.controls} random recipes of the same norm, on the reported part",
        provenance=Provenance.of("find_direction", pair, rows, seed=settings.seed, settings=call_settings(settings)),
        behaviour=named.name, held_out=held_out, estimates=search.estimates, layers=layers,
        directions=search.directions.unit[role, layers], means=search.directions.other[role, layers],
        positions=best.positions,
        strength=best.strength, push_layer=search.push_layer, push_vector=search.push_vector,
        push_strength=search.push_strength, push_positions=best.positions,
    )  # fmt: skip


class Search:
    """Ranks by gradients, tries the best on the choosing part."""

    def __init__(self, trier: Trier, settings: DirectionOptions) -> None:
        """``trier``: of the choosing part, with the neutral texts that help to choose."""
        self._trier, self.settings, self.pair, part = trier, settings, trier.pair, trier.part
        self._bar: Progress = settings.progress or Silent()
        self.directions: Directions = directions_of(self.pair, part, settings.batch_size)
        self.estimates: pd.DataFrame = estimated(self.pair, part, self.directions, settings.batch_size)
        self._clusters = part.prompts.clusters[part.of(shows=True)]
        self.own = {role: self._trier.own(role) for role in ("base", "tuned")}
        self.tried: list[tuple[Candidate, Outcome]] = []

    def best(self) -> Candidate:
        """The candidate of least cost; the best two are tried at other strengths too."""
        candidates = self._candidates()
        strengths = OTHER_STRENGTHS if self.settings.neutral is None else (WEAKER, *OTHER_STRENGTHS)
        self._bar.start("directions", len(candidates) + min(2, len(candidates)) * len(strengths))
        for candidate in tracked(candidates, self._bar):
            self._try(candidate)
        first = self._cheapest()
        others = sorted(
            (tried for tried in self.tried if tried[0] != first), key=lambda tried: tried[1].cost(self.own["base"])
        )
        for leader in [first, *(candidate for candidate, _ in others[:1])]:
            for strength in tracked(strengths, self._bar):
                self._try(Candidate(leader.layers, leader.role, leader.positions, strength))
        self._bar.finish()
        return self._cheapest()

    def _try(self, candidate: Candidate) -> None:
        self.tried.append((candidate, self._trier.under(candidate.ablation(self.directions))))

    def _cheapest(self) -> Candidate:
        return cheapest(self.tried, self.own, self.settings.allowed_rise)

    def _candidates(self) -> list[Candidate]:
        """Windows of layers around the best layer of each role and scope, the best pairs first.

        Pairs are taken ``len(WIDTHS)`` at a time and single layers come before windows, so that few candidates differ
        in where they act before they differ in how many layers they take.
        """
        n_layers = self.pair.tuned.n_layers
        scored = self.estimates.groupby(["role", "positions"], sort=False)["estimate"]
        order = scored.max().sort_values(ascending=False, kind="stable").index.tolist()
        candidates = []
        for start in range(0, len(order), len(WIDTHS)):
            for width in WIDTHS:
                for role, positions in order[start : start + len(WIDTHS)]:
                    own = self.estimates[(self.estimates["role"] == role) & (self.estimates["positions"] == positions)]
                    layer = _best_layer(own)
                    low = max(0, min(layer - width // 2, n_layers - width))
                    moved = self.directions.contrast[self.directions.roles.index(str(role))].norm(dim=-1) > 0
                    layers = tuple(number for number in range(low, min(low + width, n_layers)) if moved[number])
                    if layers:  # where all prompts end alike, early layers hold no contrast
                        candidates.append(Candidate(layers, str(role), str(positions)))
        distinct = list(dict.fromkeys(candidates))
        return distinct[: max(1, self.settings.candidates)]

    def find_opposite(self, best: Candidate) -> None:
        """The contrast at the recipe's best layer, added to the base as strongly as shows the behaviour most."""
        own = self.estimates[
            (self.estimates["role"] == best.role)
            & (self.estimates["positions"] == best.positions)
            & self.estimates["layer"].isin(best.layers)
        ]
        self.push_layer = _best_layer(own)
        self.push_vector = self.directions.contrast[self.directions.roles.index(best.role), self.push_layer]
        self._bar.start("strengths of the opposite", len(STRENGTHS))
        outcomes = {
            strength: self._trier.shows_under(push(self.push_vector, self.push_layer, strength, best.positions), "base")
            for strength in tracked(STRENGTHS, self._bar)
        }
        self._bar.finish()
        self.push_strength = max(
            STRENGTHS,
            key=lambda factor: outcomes[factor].behaviour.mean() - outcomes[factor].repetition.mean(),
        )
        self.opposite = push(self.push_vector, self.push_layer, self.push_strength, best.positions)

    def table(self) -> pd.DataFrame:
        """One line per candidate that was tried."""
        tuned = self.own["tuned"].shows.behaviour
        drops = np.stack([tuned - outcome.shows.behaviour for _, outcome in self.tried], axis=1)
        by_group = cluster_means(drops, self._clusters)
        q = q_values(paired_permutation(by_group, seed=self.settings.seed, alternative="greater").p)
        lines = []
        for number, (candidate, tried) in enumerate(self.tried):
            interval = mean_interval(drops[:, number], clusters=self._clusters, seed=self.settings.seed)
            lines.append({
                **candidate.line(), "score": interval.estimate,
                "low": interval.low, "high": interval.high, "q": q[number],
                "behaviour": tried.shows.behaviour.mean(), "kl_tuned": tried.kl_tuned.mean(),
                "repetition": tried.shows.repetition.mean(), "subject": tried.shows.subject.mean(),
                "rise": tried.rise(self.own["tuned"]), "cost": tried.cost(self.own["base"]),
            })  # fmt: skip
        return pd.DataFrame(lines)


class _Report:
    """The chosen recipe on prompts it was not chosen on."""

    def __init__(
        self, pair: ModelPair, part: Part, behaviour: Behaviour, settings: DirectionOptions, work: Work
    ) -> None:
        self.pair, self.part, self.behaviour, self.settings, self.work = pair, part, behaviour, settings, work
        self._trier = Trier(pair, part, behaviour, settings.max_new_tokens, work, _every_second(settings, first=1))

    def table(self, recipe: Any, opposite: Any) -> tuple[pd.DataFrame, float]:
        """One line per model, and the mean drop of the behaviour under random recipes (NaN without)."""
        base, tuned = (self._trier.own(role) for role in ("base", "tuned"))
        lines = [
            self._line("base", base),
            self._line("tuned", tuned),
            self._line("tuned + recipe", self._trier.under(recipe)),
            self._line("base + opposite", self._trier.under(opposite, "base")),
        ]
        draws = (
            stand_ins(recipe, self.pair.tuned, self.part.prompts, self.settings.controls, self.settings.seed)
            if self.settings.controls
            else []
        )
        if not draws:
            return pd.DataFrame(lines), float("nan")
        bar = self.settings.progress or Silent()
        bar.start("random recipes", len(draws))
        random = _mean([self._trier.under(draw) for draw in tracked(draws, bar)])
        bar.finish()
        lines.append(self._line("tuned + random", random))
        return pd.DataFrame(lines), float(tuned.shows.behaviour.mean() - random.shows.behaviour.mean())

    def _line(self, name: str, outcome: Outcome) -> dict[str, Any]:
        shows, other = (self.part.prompts.clusters[self.part.of(shows=kind)] for kind in (True, False))
        counts = self.behaviour.share and name != "tuned + random"
        interval = (share_interval if counts else mean_interval)(
            outcome.shows.behaviour, clusters=shows, seed=self.settings.seed
        )
        line: dict[str, Any] = {
            "model": name,
            "behaviour": interval.estimate,
            "low": interval.low,
            "high": interval.high,
        }
        line["other"] = outcome.other.behaviour.mean()
        for column, values in (("kl_tuned", outcome.kl_tuned), ("kl_base", outcome.kl_base)):
            moved = mean_interval(values, clusters=other, seed=self.settings.seed)
            line |= {column: moved.estimate, f"{column}_low": moved.low, f"{column}_high": moved.high}
        line |= {
            "repetition": outcome.shows.repetition.mean(),
            "subject": outcome.shows.subject.mean(),
            "n": interval.n,
        }
        line["n_other"] = len(outcome.kl_tuned)
        return line if self.settings.neutral is None else {**line, "perplexity": outcome.perplexity}


def _every_second(settings: DirectionOptions, *, first: int) -> Prompts | None:
    """One half of the neutral texts, so that those which are reported chose nothing; a single one does both."""
    if settings.neutral is None:
        return None
    rows = Prompts.of(settings.neutral)
    return rows[list(range(first, len(rows), 2))] if len(rows) > 1 else rows


def _best_layer(estimates: pd.DataFrame) -> int:
    return int(estimates["layer"].to_numpy()[int(estimates["estimate"].to_numpy().argmax())])


def _mean(outcomes: Sequence[Outcome]) -> Outcome:
    """Averaged over draws, prompt by prompt."""
    from probes.directions.material import Reading

    def of(side: str) -> Reading:
        parts = [getattr(outcome, side) for outcome in outcomes]
        return Reading(*(np.mean([getattr(part, name) for part in parts], axis=0)
                         for name in ("behaviour", "repetition", "subject")))  # fmt: skip

    kl = [np.mean([getattr(outcome, name) for outcome in outcomes], axis=0) for name in ("kl_tuned", "kl_base")]
    return Outcome(of("shows"), of("other"), kl[0], kl[1], float(np.mean([outcome.perplexity for outcome in outcomes])))


__all__ = ["SCOPES", "DirectionOptions", "find_direction"]
