"""What each fine-tune of one base can do, skill by skill, and whether the updates collide where the skills do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from scipy.stats import spearmanr

from interventions.weightspace.task_vector import TaskVector
from probes.effects.panel import scored_line
from probes.effects.rewriting import column_of
from probes.results import ProbeResult, Provenance
from probes.scored import with_q
from probes.series.answers import Answers, pair_members, updates_of
from probes.series.composition import shared_entries, thinned
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.figures.series import labelled_points
from workbench.method_options import Within
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts

PERMUTATIONS = 5000


@dataclass(frozen=True, kw_only=True)
class AbilityCollisions(ProbeResult):
    """The skills of every member of a series, and what every two members share.

    ``table``: ``module`` (the member), ``group`` (the skill); ``score``, the change of the share of right answers
    against the base, paired by prompt, with interval; ``control``, the same for the update under random signs, ``q`` of
    the difference between both; ``right`` and ``base``, shares of right answers.
    ``pairs``: ``first``, ``second``; ``iou`` of their largest entries beside ``iou_chance``; ``sign_conflict`` among
    shared entries; ``apart``, the mean distance of their skill profiles; ``cost``, what adding both updates costs
    against the better one, mean over skills.
    ``agreement``: rank correlations over pairs, of excess overlap with ``cost`` ("overlap and cost") and with likeness
    of profiles ("overlap and likeness"), each with ``p``, members exchanged at random.
    """

    pairs: pd.DataFrame
    agreement: Mapping[str, float]

    title: ClassVar[str] = "Skills of a series"
    unit: ClassVar[str] = "change of the share of right answers"

    def profile(self) -> pd.DataFrame:
        """A row per member, a column per skill: shares of right answers."""
        table = self.table.pivot(index="module", columns="group", values="right")
        return table.loc[list(dict.fromkeys(self.table["module"])), list(dict.fromkeys(self.table["group"]))]

    def figure(self) -> go.Figure:
        """Every change with its interval, the control as a cross."""
        names = self.table["module"].astype(str) + ": " + self.table["group"].astype(str)
        return labelled_points(self.table.assign(line=names), "line", title=self.title, unit=self.unit)

    def summary(self) -> str:
        """What was gained and lost, and whether regions collide where skills do."""
        sure = self.table[self.table["q"] < 0.05]
        gained, lost = (sure[sure["score"] > 0], sure[sure["score"] < 0])
        named = ", ".join(f"{row['module']} on {row['group']}" for row in lost.to_dict("records"))
        worst = self.pairs.sort_values("cost", ascending=False, kind="stable").iloc[0]
        return (
            f"{len(gained)} gains and {len(lost)} losses beyond the control{f' ({named})' if named else ''}. Added up, "
            f"{worst['first']!r} and {worst['second']!r} lose most against the better one ({worst['cost']:.2f}; "
            f"entries shared: IoU {worst['iou']:.3f}, chance {worst['iou_chance']:.3f}). {self._agreed()}. Control: "
            f"{self.control}."
        )

    def _agreed(self) -> str:
        rho = self.agreement["overlap and cost"]
        if np.isnan(rho):
            return f"Overlap and cost: no rank correlation from {len(self.pairs)} pair{'s' * (len(self.pairs) != 1)}"
        p = self.agreement["p of overlap and cost"]
        return f"Overlap and cost over {len(self.pairs)} pairs: rank correlation {rho:.2f}, p = {p:.2g}"


@method(
    "ability-collisions",
    group="weights",
    question="Which abilities does each fine-tune of a base gain and lose, and do their weights collide when those do?",
    papers=(
        "How Abilities in Large Language Models are Affected by Supervised Fine-tuning Data Composition",
        "How Far Can Camels Go? Exploring the State of Instruction Tuning on Open Resources",
    ),
    needs=Needs(columns=("answer",)),
    cost="two forward passes per member and one per two members, on every skill's prompts",
    example="--checkpoints ./on_100,./on_1000 --skills skill",
)
def ability_collisions(
    pair: Any,
    prompts: Any,
    *,
    checkpoints: Sequence[str] = (),
    skills: str = "skill",
    density: Annotated[float, Within(1e-6, 1)] = 0.02,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> AbilityCollisions:
    """Score every member of a series on every skill beside the base, and compare members' updates two by two.

    With members from ``iv.tune_series(model, iv.compositions(...))`` it is the study of data composition (Dong et al.
    2023): conflict is what mixed loses against each ability alone, forgetting what sequential lost of the first one.
    With one member per data set it is that of Tulu (Wang et al. 2023): one update per data set, its mask against its
    profile.

    Args:
        pair: Base and one fine-tune.
        prompts: Rows with an answer and a skill.
        checkpoints: The other fine-tunes: folders or hub ids.
        skills: The column of the skill.
        density: Share of each tensor's entries, the largest, that are compared as a mask.
        seed: Of intervals, random signs and exchanges.

    Returns:
        An :class:`AbilityCollisions`; ``profile()`` is the table of shares.

    Raises:
        UserError: Fewer than two members, a row without a skill, or too few rows of one.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    named = np.array([str(value) for value in column_of(rows, skills)])
    vectors, models = updates_of(pair.base, pair_members(pair, checkpoints))
    bench = _Bench.of(pair.base, rows, named, batch_size, seed)
    watch = progress or Silent()
    watch.start("ability collisions", len(vectors) + len(vectors) * (len(vectors) - 1) // 2)
    right = {}
    for name, vector in vectors.items():
        right[name] = bench.right(vector)
        watch.advance()
    table = bench.table(vectors, right)
    lines = []
    for first, second in combinations(vectors, 2):
        lines.append(bench.collision((first, second), vectors, right, density))
        watch.advance()
    watch.finish()
    pairs = pd.DataFrame(lines)
    return AbilityCollisions(
        table=table,
        control="the same update under random signs, entry by entry",
        provenance=Provenance.of(
            "ability_collisions", models, rows, seed=seed, device=str(pair.base.device), forward_passes=bench.passes,
        ),
        pairs=pairs,
        agreement={
            **mantel("overlap and cost", pairs, "cost", list(vectors), seed),
            **mantel("overlap and likeness", pairs.assign(likeness=-pairs["apart"]), "likeness", list(vectors), seed),
        },
    )  # fmt: skip


Right = dict[str, np.ndarray]
"""Skill -> right answers [prompt], as 0 and 1."""


@dataclass(frozen=True)
class _Bench:
    skills: Mapping[str, Answers]
    seed: int

    @classmethod
    def of(cls, base: Any, rows: Prompts, named: np.ndarray, batch_size: int, seed: int) -> _Bench:
        skills = {}
        for name in dict.fromkeys(named.tolist()):
            try:
                skills[name] = Answers.of(base, rows[named == name], batch_size)
            except UserError as error:
                raise UserError(f"Skill {name!r}: {error}") from error
        return cls(skills, seed)

    @property
    def passes(self) -> int:
        return sum(answers.passes for answers in self.skills.values())

    def right(self, vector: TaskVector | None) -> Right:
        return {
            name: answers.outcome(answers.task(), vector).right.astype(float) for name, answers in self.skills.items()
        }

    def table(self, vectors: Mapping[str, TaskVector], right: Mapping[str, Right]) -> pd.DataFrame:
        """A line per member and skill."""
        before, lines = self.right(None), []
        for name, vector in vectors.items():
            shuffled = self.right(vector.sign_shuffled(self.seed))
            for skill, answers in self.skills.items():
                clusters = answers.task().clusters
                assert clusters is not None
                change, control = right[name][skill] - before[skill], shuffled[skill] - before[skill]
                line = scored_line(skill, name, change, control, clusters, self.seed, of="changes")
                lines.append({"module": line.pop("model"), **line, "right": float(right[name][skill].mean()),
                              "base": float(before[skill].mean())})  # fmt: skip
        return with_q(lines)

    def collision(
        self, names: tuple[str, str], vectors: Mapping[str, TaskVector], right: Mapping[str, Right], density: float
    ) -> dict[str, Any]:
        """What two members share, and what both together cost."""
        first, second = (vectors[name] for name in names)
        both, (first_alone, other) = self.right(first + second), (right[name] for name in names)
        shared = shared_entries(thinned(first, density), thinned(second, density))
        better = {skill: max(first_alone[skill].mean(), other[skill].mean()) for skill in self.skills}
        return {
            "first": names[0], "second": names[1], "iou": shared["iou"], "iou_chance": shared["iou_chance"],
            "sign_conflict": shared["conflict"],
            "apart": float(np.mean([abs(first_alone[skill].mean() - other[skill].mean()) for skill in self.skills])),
            "cost": float(np.mean([better[skill] - both[skill].mean() for skill in self.skills])),
        }  # fmt: skip


def mantel(what: str, pairs: pd.DataFrame, column: str, members: Sequence[str], seed: int) -> dict[str, float]:
    """Spearman's correlation over pairs of excess overlap with ``column``, and p with the members exchanged (Mantel).

    NaN for fewer than four members, or where one of both does not vary.
    """
    place = {name: number for number, name in enumerate(members)}
    where = pairs["first"].map(place).to_numpy(int), pairs["second"].map(place).to_numpy(int)
    excess, other = (pairs["iou"] - pairs["iou_chance"]).to_numpy(float), pairs[column].to_numpy(float)
    if len(members) < 4 or np.ptp(excess) == 0 or np.ptp(other) == 0:
        return {what: float("nan"), f"p of {what}": float("nan")}
    matrix = np.zeros((len(members), len(members)))
    matrix[where] = matrix[where[::-1]] = other
    seen, random = float(spearmanr(excess, other).statistic), np.random.default_rng(seed)
    reached = 0
    for _ in range(PERMUTATIONS):
        order = random.permutation(len(members))
        reached += abs(spearmanr(excess, matrix[order][:, order][where]).statistic) >= abs(seen) - 1e-12
    return {what: seen, f"p of {what}": (1 + reached) / (1 + PERMUTATIONS)}
