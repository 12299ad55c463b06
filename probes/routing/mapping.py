"""``routing_map``: where routers send tokens, what closing an adapter costs, and the regret against an oracle."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

import interventions as iv
from interventions.saved_loras import lora_bank
from probes.halves import answer_scores, halves
from probes.replay import counted
from probes.resampling import cluster_means, units_of
from probes.results import ProbeResult, Provenance
from probes.routing.reading import adapter_weights
from probes.routing.training import Fitting, random_router, trained_routers
from probes.scored import beside_control, scored, with_q
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.stats.tests import paired_permutation

Routing = Literal["phatgoose", "meteora", "smora", "mhr", "soft", "even"]
COMPOSED = 24
"""Prompts that are put together of two others."""


@dataclass(frozen=True, kw_only=True)
class RoutingMap(ProbeResult):
    """Which adapter works where, and how well the router serves.

    ``table``: adapter, domain, layer, module; ``score``, the adapter's mean weight on its tokens, with interval;
    ``control``, its weight under a random router; ``q`` of the difference.
    """

    routers: pd.DataFrame
    """router (none, routed, own: the row's own adapter, oracle: the best single one for each row, even, random, without
    NAME: that adapter closed), score (log-probability of the answer per token), low, high, regret (to the oracle) with
    regret_low, regret_high, p (of the difference from random)."""
    composite: pd.DataFrame
    """prompt, segment, domain, share of the segment's tokens whose heaviest adapter is the domain's, switch (where the
    second segment begins), control (one over the number of adapters)."""
    tokens: pd.DataFrame
    """Of the composite prompts: prompt, position, token, domain, adapter (the heaviest), weight."""
    adapters: list[str]
    resampled: str = "prompts"

    title: ClassVar[str] = "Routing"
    unit: ClassVar[str] = "weight of the adapter"

    def figure(self) -> go.Figure:
        """Adapter by domain, mean over modules."""
        grid = self.table.groupby(["adapter", "domain"])["score"].mean().unstack()
        drawn = go.Figure(go.Heatmap(z=grid.to_numpy(), x=list(grid), y=list(grid.index), zmin=0, zmax=1))
        drawn.update_layout(title=self.title, xaxis_title="domain of the prompt", yaxis_title="adapter")
        return drawn

    def summary(self) -> str:
        """Weights on own domains, scores and the switch points."""
        own = self.table[self.table["adapter"] == self.table["domain"]]["score"].mean()
        lines = self.routers.set_index("router")
        named = ("none", "routed", "random", "even", "oracle")
        shown = lines.loc[list(named), ["score", "low", "high"]].to_numpy(float)
        said = ", ".join(
            f"{name} {score:.2f} [{low:.2f}, {high:.2f}]" for name, (score, low, high) in zip(named, shown, strict=True)
        )
        return (
            f"Adapters get {own:.0%} of the weight on their own domain (even {1 / len(self.adapters):.0%}); in "
            f"composite prompts {self.composite['share'].mean():.0%} of tokens go to the segment's adapter; "
            f"answers: {said}; intervals over {self.resampled}; control: {self.control}"
        )


@method(
    "routing",
    group="routing",
    question="Which adapter does a router send each token to, and what does it lose to the best choice?",
    papers=(
        "Learning to Route Among Specialized Experts for Zero-Shot Generalization",
        "MeteoRA: Multiple-tasks Embedded LoRA for Large Language Models",
        "Multi-Head Adapter Routing for Cross-Task Generalization",
        "Each Rank Could be an Expert: Single-Ranked Mixture of Experts LoRA for Multi-Task Learning",
        "Mixture-of-Domain-Adapters: Decoupling and Injecting Domain Knowledge to Pre-trained Language Models Memories",
    ),
    needs=Needs(columns=("answer", "label")),
    cost="one forward and backward pass per step, then one pass per router, adapter and prompt",
    example="--adapters ./animals,./plants",
)
def routing_map(  # noqa: PLR0913
    model: Any,
    prompts: Prompts | Sequence[object],
    adapters: list[str],
    *,
    rule: Routing = "phatgoose",
    top_k: int = 2,
    steps: int = 100,
    lr: float = 0.01,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> RoutingMap:
    """Train a router over saved LoRAs on one half of the prompts; say where it sends the other half, and how well.

    Rows are labelled by the name (folder) of the adapter that they are for. The oracle gives every row the adapter that
    serves its answer best; regret is what a router loses to it. Composite prompts, two rows of different adapters one
    behind the other, have a known switch point.

    Args:
        model: The base that the adapters belong to, or a pair of which the base is taken.
        prompts: Rows with answers, and labels that name adapters.
        adapters: Folders of plain LoRAs.
        rule: phatgoose, meteora, smora (ranks), mhr (multi-head, by task), soft (all of them weighed), even.
        top_k: Adapters (for smora, ranks) at work on a token.
        steps: Training steps of the router (of each adapter's gate, for phatgoose).
        batch_size: Prompts per step and pass.
        seed: Of halves, gates, batches and resampling.

    Returns:
        A :class:`RoutingMap`. With rule=even nothing is routed, and every weight is one over the number of adapters.

    Raises:
        UserError: Adapters of another base, labels that name none, or rows without answers.
    """
    base: AdaptedModel = getattr(model, "base", model)
    rows, work = Prompts.of(prompts), Work(batch_size, progress)
    bank = lora_bank(adapters, base)
    iv.AdapterRouting(**bank).validate(base)
    training, reported = halves(rows, seed)
    fitting = Fitting(rule, top_k, steps, lr, batch_size, seed)
    with counted(base) as passes:
        routers = trained_routers(base, bank, training, fitting)
        if odd := {str(row.label) for row in reported} - set(bank["names"]):
            raise UserError(f"Rows are labelled by the name of their adapter, and one says {sorted(odd)[0]!r}.")
        random = random_router(bank, fitting)
        trial = _Trial(base, reported, bank, work)
        table = trial.weights(routers, random, seed)
        answers = trial.answers(routers, random, seed)
        composite, tokens = trial.composite(routers, seed)
    return RoutingMap(
        table=table, control="a random router by the same rule, with gates that nobody trained",
        provenance=Provenance.of(
            "routing_map", base, rows, seed=seed, forward_passes=passes.forward, backward_passes=steps,
        ),
        routers=answers, composite=composite, tokens=tokens, adapters=list(bank["names"]),
        resampled=units_of(reported.clusters),
    )  # fmt: skip


class _Trial:
    def __init__(self, model: AdaptedModel, rows: Prompts, bank: dict[str, Any], work: Work) -> None:
        self.model, self.rows, self.bank, self.work = model, rows, bank, work
        self.names, self.labels = list(bank["names"]), [str(row.label) for row in rows]
        self.ids = encode(rows, model.tokenizer, model.max_positions)

    def weights(self, routers: dict[str, iv.AdapterRouting], random: iv.AdapterRouting, seed: int) -> pd.DataFrame:
        """Mean weight of each adapter on each domain, module by module."""
        own = [
            adapter_weights(self.model, routers[label], ids) for label, ids in zip(self.labels, self.ids, strict=True)
        ]
        other = [adapter_weights(self.model, random, ids) for ids in self.ids]
        lines, clusters = [], self.rows.clusters
        stem = f"{self.model.hub.family.layers}."
        for path, (place, name), domain in itertools.product(own[0], enumerate(self.names), sorted(set(self.labels))):
            members = [row for row, label in enumerate(self.labels) if label == domain]
            values, chance = (
                np.array([routes[row][path][:, place].mean() for row in members]) for routes in (own, other)
            )
            layer, _, inside = path.removeprefix(stem).partition(".") if path.startswith(stem) else ("-1", "", path)
            lines.append({
                "adapter": name, "domain": domain, "layer": int(layer), "module": inside,
                **beside_control(values, chance, clusters[members], seed=seed),
            })  # fmt: skip
        return with_q(lines)

    def answers(self, routers: dict[str, iv.AdapterRouting], random: iv.AdapterRouting, seed: int) -> pd.DataFrame:
        """Every router's score and regret."""
        even = iv.AdapterRouting(**self.bank)
        single = np.stack([self._scores(even.with_forced(name)) for name in self.names])
        places = [self.names.index(label) for label in self.labels]
        scores = {
            "none": self._scores(None), "routed": self._by_label(routers), "random": self._scores(random),
            "even": self._scores(even), "own": single[places, np.arange(len(places))], "oracle": single.max(0),
        }  # fmt: skip
        if len(self.names) > 1:
            for name in self.names:
                without = {id(router): router.with_closed(name) for router in routers.values()}
                closed = {label: without[id(router)] for label, router in routers.items()}
                scores[f"without {name}"] = self._by_label(closed)
        lines, clusters = [], self.rows.clusters
        for name, values in scores.items():
            units = cluster_means((values - scores["random"])[:, None], clusters)
            regret = scored(scores["oracle"] - values, name="regret", seed=seed, clusters=clusters)
            lines.append({
                "router": name, **scored(values, seed=seed, clusters=clusters), "regret": regret["regret"],
                "regret_low": regret["low"], "regret_high": regret["high"],
                "p": float(paired_permutation(units, seed=seed).p[0]) if units.any() else 1.0,
            })  # fmt: skip
        return pd.DataFrame(lines)

    def _scores(self, router: iv.AdapterRouting | None) -> np.ndarray:
        recipe = None if router is None else iv.Recipe([router])
        return answer_scores(Subject("routed", self.model, recipe), self.rows, self.work)

    def _by_label(self, routers: dict[str, iv.AdapterRouting]) -> np.ndarray:
        """Each row under its label's router; one pass where all share it."""
        distinct = {id(router): router for router in routers.values()}
        if len(distinct) == 1:
            return self._scores(next(iter(distinct.values())))
        scores = np.zeros(len(self.rows))
        for label, router in routers.items():
            mine = np.array([name == label for name in self.labels])
            if mine.any():
                scores[mine] = answer_scores(
                    Subject(label, self.model, iv.Recipe([router])), self.rows[mine], self.work
                )
        return scores

    def composite(self, routers: dict[str, iv.AdapterRouting], seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Two rows of different domains, one behind the other: who is heaviest before and behind the switch."""
        pairs = [(a, b) for a, b in itertools.permutations(range(len(self.ids)), 2) if self.labels[a] != self.labels[b]]
        order = np.random.default_rng(seed).permutation(len(pairs))[:COMPOSED]
        lines, tokens = [], []
        for number, (first, second) in enumerate(pairs[int(draw)] for draw in sorted(order)):
            switch = len(self.ids[first])
            ids = [*self.ids[first], *self.ids[second]]
            mean = np.mean(list(adapter_weights(self.model, routers[self.labels[first]], ids).values()), axis=0)
            top = [self.names[int(index)] for index in mean.argmax(1)]
            for segment, row, part in ((0, first, slice(0, switch)), (1, second, slice(switch, None))):
                share = np.mean([name == self.labels[row] for name in top[part]])
                lines.append({"prompt": number, "segment": segment, "domain": self.labels[row], "share": share,
                              "switch": switch, "control": 1 / len(self.names)})  # fmt: skip
            tokens += [
                {"prompt": number, "position": place, "token": self.model.tokenizer.decode([token]),
                 "domain": self.labels[first if place < switch else second], "adapter": top[place],
                 "weight": float(mean[place].max())}
                for place, token in enumerate(ids)
            ]  # fmt: skip
        columns = ["prompt", "segment", "domain", "share", "switch", "control"]
        return pd.DataFrame(lines, columns=columns), pd.DataFrame(tokens)
