"""Fine-tunes of one base merged by several rules, each beside its ingredients and a sign-shuffled control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd

from interventions.weightspace.lora_lego import lego
from interventions.weightspace.merging import dare, greedy_soup, interpolated, model_stock, ties, uniform_soup
from interventions.weightspace.swapping import base_parameters
from interventions.weightspace.task_vector import TaskVector
from interventions.weightspace.tuned_values import as_stored
from probes.grafting.tasks import Task
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from probes.series.answers import Answers, pair_members, updates_of
from probes.series.lora_sets import read_adapters
from probes.series.members import Members
from probes.weights.naming import key_of, place_of
from workbench.argument_checks import check_pair
from workbench.errors import unknown_name
from workbench.method_options import Within
from workbench.methods import Needs, method
from workbench.models.weight_changes import Factors as LoraFactors
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts
from workbench.typing import Tensor

Rule = Literal["uniform", "greedy", "stock", "ties", "dare", "dare_ties", "lego"]
RULES: tuple[Rule, ...] = get_args(Rule)


@dataclass(frozen=True, kw_only=True)
class MergeTest(ProbeResult):
    """Base, members and merges on the same held-out prompts.

    ``table``: ``module`` names the model; ``score`` is its share of right answers, ``control`` that of the base with
    the same update under random signs, ``q`` of the difference; ``beyond_mean`` is the score minus the mean of the
    members' scores (interference where it is negative), ``loss`` the mean cross-entropy over the candidates in nats.
    ``angles``: cosine of every two members' updates by layer, with the ratio that Model Stock takes for the two.
    ``path``: loss and accuracy on the straight line between the first two members; no barrier means one basin.
    ``ingredients``: the members of the greedy soup.
    """

    angles: pd.DataFrame
    path: pd.DataFrame
    ingredients: tuple[str, ...] = ()

    title: ClassVar[str] = "Merged fine-tunes"
    unit: ClassVar[str] = "share of held-out prompts answered right"

    @property
    def barrier(self) -> float:
        """How far the loss rises above the straight line between its ends on the path (nats); NaN without one."""
        if self.path.empty:
            return float("nan")
        loss, share = self.path["loss"].to_numpy(float), self.path["share"].to_numpy(float)
        return float((loss - (loss[0] + share * (loss[-1] - loss[0]))).max())

    def summary(self) -> str:
        best = self.table.sort_values("score", kind="stable").iloc[-1]
        barrier = "" if self.path.empty else f"; loss barrier between the first two {self.barrier:.3g} nats"
        return (
            f"Best: {best['module']} {best['score']:.2f} [{best['low']:.2f}, {best['high']:.2f}] over {int(best['n'])} "
            f"prompts, control {best['control']:.2f} ({self.control}); mean cosine of two updates "
            f"{self.angles['cosine'].mean():.2f}{barrier}"
        )


@method(
    "merges",
    group="weights",
    question="Do several fine-tunes of one base merge into one model that keeps what each can do?",
    papers=(
        "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference "
        "time",
        "Model Stock: All we need is just a few fine-tuned models",
        "Merging LoRAs like Playing LEGO: Pushing the Modularity of LoRA to Extremes Through Rank-Wise Clustering",
    ),
    needs=Needs(columns=("answer",)),
    cost="a forward pass per member, merge and point of the path",
    example="--checkpoints ./adapter",
)
def merge_test(
    pair: Any,
    prompts: Any,
    *,
    checkpoints: Sequence[str] = (),
    rules: Sequence[str] = ("uniform", "greedy", "stock", "ties"),
    density: Annotated[float, Within(1e-6, 1)] = 0.2,
    points: int = 5,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> MergeTest:
    """Merge ``checkpoints`` and the tuned model by each rule and ask all models the same held-out prompts.

    Half of the prompts (whole groups) choose the greedy soup, the other half report everything. Updates are read and
    merged tensor by tensor.

    Args:
        pair: Base and one fine-tune.
        prompts: Rows with an answer: of all the tasks whose skills should be kept.
        checkpoints: The other fine-tunes: folders or hub ids.
        rules: uniform, greedy, stock, ties, dare, dare_ties, or lego (ranks clustered; plain LoRAs alone).
        density: Share of the entries that ties and dare keep of each update.
        points: Points of the path between the first two members; below 3: no path.
        seed: Of the split, of dare and of the control's signs.

    Raises:
        UserError: Fewer than two fine-tunes, an unknown rule, prompts without answers or too few.
    """
    check_pair(pair)
    for rule in rules:
        if rule not in RULES:
            raise unknown_name("rule", rule, RULES)
    rows = Prompts.of(prompts)
    members = pair_members(pair, checkpoints)
    vectors, models = updates_of(pair.base, members)
    bricks = lora_bricks(pair.base, members, seed) if "lego" in rules else None
    answers = Answers.of(pair.base, rows, batch_size)
    choosing, reporting = answers.halves(seed)
    bench = _Bench(answers, reporting, seed, progress or Silent())
    plain = [rule for rule in rules if rule != "lego"]
    merged, ingredients = _merged(
        vectors, plain, density, seed, lambda vector: answers.outcome(choosing, vector).accuracy
    )
    merged |= {} if bricks is None else {"lego": bricks}
    table, path = bench.table(vectors, merged), bench.path(list(vectors.values())[:2], points)
    return MergeTest(
        table=table,
        control="the base with the same update under random signs, entry by entry",
        provenance=Provenance.of(
            "merge_test", models, rows, seed=seed, device=str(pair.base.device), forward_passes=answers.passes,
        ),
        angles=angles(vectors),
        path=path,
        ingredients=tuple(ingredients),
    )  # fmt: skip


def lora_bricks(base: Any, members: Members, seed: int) -> TaskVector:
    """The LEGO merge of the members. Raises :class:`UserError` where one is no plain LoRA."""
    adapters, _ = read_adapters(members, Silent())
    names = {key_of(name): name for name in base_parameters(base.hf)}
    modules = [
        {
            names[key].removesuffix(".weight"): LoraFactors(factors.down.cpu(), factors.up.cpu(), 1.0)
            for key, factors in adapter.items()
        }
        for adapter in adapters.values()
    ]
    merged, weights = lego(modules, seed=seed), base_parameters(base.hf)
    return TaskVector(
        {
            name: as_stored(base.hf, name.removesuffix(".weight"), change, weights[name])
            for name, change in merged.changes.items()
        }
    )


def _merged(
    vectors: dict[str, TaskVector],
    rules: Sequence[str],
    density: float,
    seed: int,
    score: Callable[[TaskVector], float],
) -> tuple[dict[str, TaskVector], list[str]]:
    members, made, ingredients = list(vectors.values()), {}, []
    for rule in rules:
        if rule == "greedy":
            made[rule], places = greedy_soup(members, score)
            ingredients = [list(vectors)[place] for place in places]
        elif rule == "ties":
            made[rule] = ties(members, density)
        elif rule.startswith("dare"):
            made[rule] = dare(members, density, elect=rule == "dare_ties", seed=seed)
        else:
            made[rule] = uniform_soup(members) if rule == "uniform" else model_stock(members)
    return made, ingredients


@dataclass
class _Bench:
    answers: Answers
    task: Task
    seed: int
    watch: Progress

    def table(self, members: dict[str, TaskVector], merged: dict[str, TaskVector]) -> pd.DataFrame:
        """Base, members and merges, each with its sign-shuffled control."""
        everything: dict[str, TaskVector | None] = {"base": None, **members, **merged}
        self.watch.start("merges", len(everything))
        rows = []
        for name, vector in tracked(everything.items(), self.watch):
            rows.append({"module": name, **self._row(vector)})
        self.watch.finish()
        table = pd.DataFrame(rows)
        alone = table[table["module"].isin(list(members))]["score"].mean()
        return with_q(table, keep_p=False).assign(beyond_mean=table["score"] - alone)

    def _row(self, vector: TaskVector | None) -> dict[str, float]:
        outcome = self.answers.outcome(self.task, vector)
        shuffled = outcome if vector is None else self.answers.outcome(self.task, vector.sign_shuffled(self.seed))
        clusters = self.task.clusters if self.task.clusters is not None else np.arange(len(outcome.right))
        return {
            **beside_control(outcome.right, shuffled.right, clusters, seed=self.seed, share=True),
            "loss": outcome.loss,
            "n": len(outcome.right),
        }

    def path(self, ends: Sequence[TaskVector], points: int) -> pd.DataFrame:
        """Loss and accuracy on the straight line from one member to the other."""
        rows = []
        for share in np.linspace(0, 1, points) if points >= 3 else ():
            outcome = self.answers.outcome(self.task, interpolated(ends[0], ends[1], float(share)))
            rows.append({"share": float(share), "loss": outcome.loss, "accuracy": outcome.accuracy})
        return pd.DataFrame(rows, columns=["share", "loss", "accuracy"])


def angles(vectors: dict[str, TaskVector]) -> pd.DataFrame:
    """Cosine of every two updates by layer (NaN: outside the layers), and t = 2 cos / (1 + cos)."""
    products: dict[tuple[str, str, int | None], np.ndarray] = {}
    for name in dict.fromkeys(name for vector in vectors.values() for name in vector.changes):
        layer = place_of(name).layer
        held = {title: vector.changes[name].double() for title, vector in vectors.items() if name in vector.changes}
        for first, other in combinations(vectors, 2):
            sums = products.setdefault((first, other, layer), np.zeros(3))
            sums += _products(held.get(first), held.get(other))
    rows = []
    for (first, other, layer), (product, left, right) in products.items():
        if not left and not right:
            continue
        cosine = float(product / np.sqrt(left * right)) if left and right else 0.0
        ratio = 2 * max(cosine, 0.0) / (1 + max(cosine, 0.0))
        rows.append({"first": first, "second": other, "layer": layer, "cosine": cosine, "stock_ratio": ratio})
    return pd.DataFrame(rows, columns=["first", "second", "layer", "cosine", "stock_ratio"])


def _products(first: Tensor | None, second: Tensor | None) -> np.ndarray:
    """<first, second>, ||first||^2 and ||second||^2; None is all zeros."""
    both = float((first * second).sum()) if first is not None and second is not None else 0.0
    squares = [0.0 if change is None else float(change.square().sum()) for change in (first, second)]
    return np.array([both, *squares])
