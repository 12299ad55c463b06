"""A small set of experts found by what switching them does, not only by how often they are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

import interventions as iv
from probes.experts.counting import count_experts, require_experts
from probes.halves import halves
from probes.matching import matched_cells
from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from workbench.argument_checks import check_subject
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.scorers import Behaviour
from workbench.behaviour.scorers import behaviour as read_behaviour
from workbench.behaviour.subject import Subject, Work
from workbench.engine.sites import parse_label
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.stats.controls import check_draws
from workbench.typing import Float


@dataclass(frozen=True, kw_only=True)
class ExpertSets(ProbeResult):
    """What switching the first n experts of a searched set does, on prompts that it was not searched on.

    ``table``: n, experts; ``score``, the fall of the behaviour with interval; ``control``, its fall under random sets
    of the same size, layers and frequency of use; ``left``, the behaviour that is left; ``q`` of the difference.
    """

    alone: pd.DataFrame
    """expert, use (share of tokens in responses that show the behaviour minus the others'), effect (fall of the
    behaviour when it alone is switched, on the searching half)."""
    experts: list[str]
    mode: str
    resampled: str = "prompts"

    title: ClassVar[str] = "Experts by effect"
    unit: ClassVar[str] = "fall of the behaviour"

    @property
    def recipe(self) -> iv.Recipe:
        """The whole set off."""
        return iv.Recipe([iv.ExpertSwitch(self.experts, mode=self.mode)])  # type: ignore[arg-type]

    def figure(self) -> go.Figure:
        """Use against effect, expert by expert."""
        drawn = go.Figure(
            go.Scatter(x=self.alone["use"], y=self.alone["effect"], text=self.alone["expert"], mode="markers+text",
                       textposition="top center")
        )  # fmt: skip
        drawn.update_layout(
            title=self.title, xaxis_title="use beyond other responses", yaxis_title="fall when switched off alone"
        )
        return drawn

    def summary(self) -> str:
        """The set, its effect, and whether use foretold it."""
        last = self.table.sort_values("n").iloc[-1]
        ranks = self.alone[["use", "effect"]].rank()
        rho = float(ranks["use"].corr(ranks["effect"])) if len(ranks) > 2 and ranks["effect"].nunique() > 1 else np.nan
        return (
            f"{last['experts']} off: the behaviour falls by {last['score']:.2f} "
            f"[{last['low']:.2f}, {last['high']:.2f}] (random sets {last['control']:.2f}); rank correlation of use and "
            f"effect {rho:.2f}; intervals over {self.resampled}; control: {self.control}"
        )


@method(
    "expert-sets",
    group="experts",
    question="Which few experts does a behaviour need, by what happens without them?",
    papers=("Mixture of Tunable Experts -- Behavior Modification of DeepSeek-R1 at Inference Time",),
    needs=Needs(experts=True),
    cost="one generation per candidate and place in the set, then one per control",
    example="--behaviour begins:sorry --size 2 --tried 8",
)
def expert_sets(  # noqa: PLR0913
    subject: Any,
    prompts: Prompts | Sequence[object],
    behaviour: Annotated[str | Behaviour, As("behaviour")] = "refusal",
    *,
    size: int = 3,
    tried: int = 16,
    mode: Literal["replace", "drop", "drop_renorm"] = "drop_renorm",
    controls: int = 10,
    max_new_tokens: int = 16,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> ExpertSets:
    """Search a small set of experts greedily by the behaviour that is left when they are off.

    As in the paper, one model is looked at, prompts are parted by its own responses, and off means weight 0 with the
    other weights renormalised. Unlike there, use only nominates: of the ``tried`` experts that prompts whose responses
    show the behaviour use most beyond others, each is switched off, the best is kept, and the next is searched beside
    it. Half of the prompts are searched on, the other half reported.

    Args:
        subject: A model, or a pair (its tuned model).
        prompts: Prompts of which the model's responses to some show the behaviour.
        behaviour: What should fall, such as refusal or begins:sorry.
        size: Experts in the set at most; the search ends where no further one helps.
        tried: Experts that are nominated by use.
        mode: What off means; see ``iv.ExpertSwitch``.
        controls: Random sets, ten or more; 0: none.
        max_new_tokens: Tokens of a response.
        seed: Of halves, random sets and resampling.

    Returns:
        An :class:`ExpertSets`; ``.recipe`` switches the set off.

    Raises:
        UserError: A dense model, or no response that shows the behaviour.
    """
    check_subject(subject)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    require_experts(model)
    if size < 1 or tried < 1:
        raise UserError("Give a size of 1 or more, and one expert or more to try.")
    if controls:
        check_draws(controls)
    rule, rows, work = read_behaviour(behaviour), Prompts.of(prompts), Work(batch_size, progress)
    searching, reported = halves(rows, seed)
    with counted(model) as passes:
        search = _Trial(model, searching, rule, mode, Decoding(max_new_tokens), work)
        nominated = search.nominated(tried)
        members, alone = search.greedy(list(nominated), size)
        table = _Trial(model, reported, rule, mode, Decoding(max_new_tokens), work).table(members, controls, seed)
    return ExpertSets(
        table=table,
        control=f"{controls} random sets of experts of the same layers, matched in frequency of use",
        provenance=Provenance.of("expert_sets", model, rows, seed=seed, forward_passes=passes.forward),
        alone=pd.DataFrame([
            {"expert": name, "use": nominated[name], "effect": effect} for name, effect in alone.items()
        ]),
        experts=members, mode=mode, resampled=units_of(reported.clusters),
    )  # fmt: skip


class _Trial:
    """Responses of one half with experts off."""

    def __init__(
        self, model: AdaptedModel, rows: Prompts, rule: Behaviour, mode: str, decoding: Decoding, work: Work
    ) -> None:
        self.model, self.rows, self.rule, self.mode = model, rows, rule, mode
        self.decoding, self.work = decoding, work
        self.ids = encode(rows, model.tokenizer, model.max_positions)
        self.plain = self.values([])

    def values(self, experts: Sequence[str]) -> Float[np.ndarray, " prompt"]:
        """The behaviour of each response."""
        switch = [iv.ExpertSwitch(list(experts), mode=self.mode)] if experts else []  # type: ignore[arg-type]
        subject = Subject("experts off", self.model, iv.Recipe(switch))
        replies = generate_replies(subject, self.rows, self.decoding, self.work)
        return np.array([self.rule(reply[0].text, row) for reply, row in zip(replies, self.rows, strict=True)])

    def use(self) -> tuple[tuple[int, ...], Float[np.ndarray, "prompt layer expert"]]:
        masks = [np.ones(len(row), dtype=bool) for row in self.ids]
        (counts,) = count_experts(self.model, self.ids, [masks], batch_size=self.work.batch_size)
        return counts.layers, counts.shares

    def nominated(self, tried: int) -> dict[str, float]:
        """Experts by use beyond the responses that do not show the behaviour (of all, where all show it)."""
        shows = self.plain > 0.5
        if not shows.any():
            raise UserError(f"No response of the searching half shows {self.rule.name!r}: give prompts that bring it.")
        layers, shares = self.use()
        apart = shares[shows].mean(0) - (shares[~shows].mean(0) if (~shows).any() else 0.0)
        order = np.argsort(-apart, axis=None, kind="stable")[:tried]
        places = [divmod(int(number), apart.shape[1]) for number in order]
        return {f"L{layers[layer]}E{expert}": float(apart[layer, expert]) for layer, expert in places}

    def greedy(self, names: list[str], size: int) -> tuple[list[str], dict[str, float]]:
        """(the set, what each does alone)."""
        members: list[str] = []
        alone: dict[str, float] = {}
        best = self.plain.mean()
        while len(members) < size:
            left = {name: self._mean([*members, name]) for name in names if name not in members}
            if not members:
                alone = {name: float(self.plain.mean() - share) for name, share in left.items()}
            name = min(left, key=lambda expert: left[expert], default="")
            if members and (not name or left[name] >= best - 1e-9):
                break
            members.append(name)
            best = left[name]
        return members, alone

    def _mean(self, experts: list[str]) -> float:
        try:
            return float(self.values(experts).mean())
        except UserError:
            return float("inf")  # a layer would be left with too few experts

    def table(self, members: list[str], controls: int, seed: int) -> pd.DataFrame:
        """The first n of the set, beside random sets."""
        layers, shares = self.use()
        mean = shares.mean(0)
        frequency = {
            (layer, expert): float(mean[place, expert])
            for place, layer in enumerate(layers) for expert in range(mean.shape[1])
        }  # fmt: skip
        places = [(layer, int(expert or 0)) for layer, _, expert in map(parse_label, members)]
        random = matched_cells(places, frequency, controls, seed) if controls else []
        names = [[f"L{layer}E{expert}" for layer, expert in cells] for cells in random]
        lines = []
        for n in range(1, len(members) + 1):
            fall = self.plain - self.values(members[:n])
            chance = np.mean([self.plain - self.values(name[:n]) for name in names], axis=0) if names else 0 * fall
            line = beside_control(fall, chance, self.rows.clusters, seed=seed)
            control = line["control"] if names else float("nan")
            left = float((self.plain - fall).mean())
            lines.append({"n": n, "experts": " ".join(members[:n]), **line, "control": control, "left": left})
        return with_q(lines)
