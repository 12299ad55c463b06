"""update_parts: low rank, sparse rest, inside and outside the base's space, without intruders - each judged alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch

from interventions.weightspace.lazy_tensors import LazyTensors
from interventions.weightspace.swapping import base_parameters, find_parameter
from interventions.weightspace.task_vector import TaskVector
from probes.anatomy.spaces import INTRUDER_BELOW, Spaces, Svd, low_rank_sparse
from probes.call_settings import call_settings
from probes.partial_updates.bench import Bench
from probes.results import ProbeResult, Provenance
from probes.scored import with_q
from probes.weights.naming import place_of
from workbench.argument_checks import check_pair
from workbench.errors import UserError, unknown_name
from workbench.method_options import As, Within
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts
from workbench.typing import Float, Tensor

Part = Literal["whole", "low_rank", "sparse", "both", "inside", "outside", "intruders", "no_intruders"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, kw_only=True)
class UpdateParts(ProbeResult):
    """One row per part of the update, put on the base alone.

    ``score``: share of prompts answered right, ``control``: with random directions that have the part's singular
    values, matrix by matrix, ``q`` of the difference; ``retained`` of ``retain``'s prompts, beside
    ``retained_control``; ``energy``: the part's share of the squared norm of the update.
    """

    base: float

    title: ClassVar[str] = "Parts of the update"
    unit: ClassVar[str] = "share right with the part alone"

    def summary(self) -> str:
        said = ", ".join(
            f"{row['module']} {row['score']:.2f} ({row['energy']:.0%})" for _, row in self.table.iterrows()
        )
        return f"Right answers (share of the squared norm): {said}; base {self.base:.2f}. Control: {self.control}."


@method(
    "update-parts",
    group="weights",
    question="Which part of the update carries the skill: low rank, sparse rest, old or new directions, intruders?",
    papers=(
        "DSEE: Dually Sparsity-embedded Efficient Tuning of Pre-trained Language Models",
        "Hydra: Multi-head Low-rank Adaptation for Parameter Efficient Fine-tuning",
    ),
    needs=Needs(columns=("answer",)),
    cost="a singular value decomposition of every changed matrix per part, and two forward passes per prompt and part",
)
def update_parts(  # noqa: PLR0913
    pair: Any,
    prompts: Any,
    *,
    parts: Sequence[str] = ("whole", "low_rank", "sparse", "both", "inside", "outside"),
    rank: int = 8,
    share: Annotated[float, Within(1e-6, 1)] = 0.01,
    k: int = 64,
    retain: Annotated[Any, As("prompts")] = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> UpdateParts:
    """Split the update of every matrix and judge each part on the base.

    "low_rank" and "sparse" are the two halves of the DSEE split, "both" their sum; "inside" is the update within the
    base's ``k`` leading input and output directions, "outside" the rest; "intruders" is what it writes into
    those of the tuned weight's ``k`` leading output directions that are like none of the base's, "no_intruders" the
    rest (the mitigation).

    Args:
        pair: Base and tuned model.
        prompts: Rows with an answer.
        parts: whole, low_rank, sparse, both, inside, outside, intruders or no_intruders.
        rank: Rank of the low part.
        share: Share of each matrix's entries in the sparse part.
        k: Leading directions of the base's weight.
        retain: Prompts with answers of what the base could do.
        seed: Of the control and the intervals.

    Raises:
        UserError: An unknown part, nothing that differs, prompts without answers or too few.
    """
    check_pair(pair)
    for name in parts:
        if name not in PARTS:
            raise unknown_name("part", name, PARTS)
    rows = Prompts.of(prompts)
    update = TaskVector.from_pair(pair)
    matrices = _matrices(update)
    if not matrices:
        raise UserError("The two models do not differ in any matrix inside the layers: there is nothing to split.")
    bench = Bench.of(pair.base, rows, retain, batch_size, seed)
    splitter = _Splitter(pair.base, update, matrices, rank, share, k)
    watch = progress or Silent()
    watch.start("parts", len(parts))
    table = []
    norm2 = max(splitter.part("whole").norm() ** 2, 1e-30)
    for name in tracked(parts, watch):
        vector = splitter.part(name)
        row = bench.row(vector, [_random_like(vector, seed)])
        table.append({"module": name, **row, "energy": vector.norm() ** 2 / norm2})
    watch.finish()
    return UpdateParts(
        table=with_q(table, keep_p=False),
        control="random directions with the part's own singular values, in every matrix",
        provenance=Provenance.of(
            "update_parts", pair, rows, seed=seed, forward_passes=bench.passes,
            settings=call_settings(None, retain=None if retain is None else Prompts.of(retain)),
        ),
        base=float(bench.right(None).mean()),
    )  # fmt: skip


def _matrices(update: TaskVector) -> list[str]:
    return [
        name
        for name, change in update.changes.items()
        if place_of(name).layer is not None and change.ndim == 2 and bool((change != 0).any())
    ]


@dataclass(frozen=True)
class _Splitter:
    base: Any
    update: TaskVector
    names: list[str]
    rank: int
    share: float
    k: int

    def part(self, name: str) -> TaskVector:
        """One part, held in memory, of every matrix inside the layers."""
        rules: Mapping[str, Callable[[str, Tensor], Tensor]] = {
            "whole": lambda _, change: change,
            "low_rank": lambda _, change: low_rank_sparse(change, self.rank, self.share).low,
            "sparse": lambda _, change: low_rank_sparse(change, self.rank, self.share).sparse,
            "both": self._both,
            "inside": self._inside,
            "outside": lambda where, change: change - self._inside(where, change),
            "intruders": self._intruders,
            "no_intruders": lambda where, change: change - self._intruders(where, change),
        }
        rule = rules[name]
        return TaskVector(LazyTensors(self.names, lambda where: rule(where, self.update.changes[where].float()))).held()

    def _both(self, _: str, change: Tensor) -> Tensor:
        split = low_rank_sparse(change, self.rank, self.share)
        return split.low + split.sparse

    def _inside(self, name: str, change: Tensor) -> Tensor:
        spaces = self._spaces(name)
        left, right = spaces.left[:, : self.k], spaces.right[:, : self.k]
        return left @ (left.T @ change @ right) @ right.T

    def _intruders(self, name: str, change: Tensor) -> Tensor:
        return intruding(change, self._weight(name), self.k)

    def _weight(self, name: str) -> Tensor:
        return find_parameter(base_parameters(self.base.hf), name).detach().float().cpu()

    def _spaces(self, name: str) -> Spaces:
        return Spaces.of(self._weight(name))


def intruding(
    change: Float[Tensor, "out into"], weight: Float[Tensor, "out into"], k: int
) -> Float[Tensor, "out into"]:
    """The part of an update that writes into intruder dimensions: of the ``k`` leading output directions of the tuned
    weight, those like none of the base's (Shuttleworth et al. 2024)."""
    leading = torch.linalg.svd(weight + change, full_matrices=False)[0][:, :k]
    odd = leading[:, (Spaces.of(weight).left.T @ leading).abs().amax(0) < INTRUDER_BELOW]
    return odd @ (odd.T @ change)


def _random_like(vector: TaskVector, seed: int) -> TaskVector:
    def read(name: str) -> Tensor:
        change = vector.changes[name]
        if not bool((change != 0).any()):
            return change
        generator = torch.Generator().manual_seed(seed * 7919 + list(vector.changes).index(name))
        return Svd.of(change).random(generator).product()

    return TaskVector(LazyTensors(vector.changes, read)).held()
