"""block_flips: every block's part of an update switched off alone and on alone (selective LoRA, Bafghi et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from interventions.weightspace.task_vector import TaskVector
from probes.call_settings import call_settings
from probes.partial_updates.bench import Bench
from probes.results import ProbeResult, Provenance
from probes.scored import with_q
from probes.weights.naming import place_of
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.method_options import As, Within
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts

Cut = Literal["layer", "part", "module"]


@dataclass(frozen=True, kw_only=True)
class BlockFlips(ProbeResult):
    """One row per block of the update.

    ``score``: share of prompts that are lost when the block alone is switched off (all on minus all but this);
    ``low``, ``high`` from the interval of the share without it; ``control``: the same for a part of the rest of the
    update with the block's norm, drawn entry by entry, ``q`` of the difference. ``alone``: share right with this block
    alone, beside ``base``; ``retained`` with the block off (NaN without ``retain``). ``size``: its part of the squared
    norm of the update.
    ``active``: how many of the model's blocks the update touches, of ``total``: what an indicator per block would say.
    """

    active: int
    total: int
    whole: float

    title: ClassVar[str] = "Blocks of the update"
    unit: ClassVar[str] = "share of right answers lost without the block"

    def summary(self) -> str:
        best = self.frame().iloc[0]
        needed = int((self.table["q"] < 0.05).sum())
        return (
            f"{self.active} of {self.total} blocks are touched, {needed} needed at q < 0.05; most at "
            f"L{best['layer']:.0f} {best['module']}: {best['score']:.2f} of {self.whole:.2f} lost without it "
            f"[{best['low']:.2f}, {best['high']:.2f}], {best['alone']:.2f} right with it alone. "
            f"Control: {self.control}."
        )


@method(
    "block-flips",
    group="weights",
    question="Which blocks of the update are needed, and which would do alone?",
    papers=("Fine Tuning without Catastrophic Forgetting via Selective Low Rank Adaptation",),
    needs=Needs(columns=("answer",)),
    cost="three forward passes per prompt and block",
)
def block_flips(
    pair: Any,
    prompts: Any,
    *,
    cut: Cut = "part",
    retain: Annotated[Any, As("prompts")] = None,
    threshold: Annotated[float, Within(0, 1)] = 0.0,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> BlockFlips:
    """Switch each block of the update off, and on, with everything else as it is, and ask the prompts.

    Args:
        pair: Base and tuned model.
        prompts: Rows with an answer.
        cut: What a block is: a layer, a part of a layer (attention or MLP), or a module.
        retain: Prompts with answers of what the base could do.
        threshold: Blocks with a smaller part of the squared norm are left on and not flipped.
        seed: Of the control and the intervals.

    Raises:
        UserError: Nothing differs inside the layers, prompts without answers or too few.
    """
    check_pair(pair)
    rows = Prompts.of(prompts)
    update = TaskVector.from_pair(pair).held()
    blocks = _blocks(update, cut)
    if not blocks:
        raise UserError("The two models do not differ inside the layers: there is no block to flip.")
    bench = Bench.of(pair.base, rows, retain, batch_size, seed)
    whole = bench.right(update)
    norm2 = update.norm() ** 2
    sizes = {block: _restricted(update, names).norm() ** 2 / norm2 for block, names in blocks.items()}
    watch = progress or Silent()
    flipped = [block for block in blocks if sizes[block] > threshold]
    watch.start("blocks", len(flipped))
    table = []
    for block in tracked(flipped, watch):
        table.append(_row(bench, update, blocks[block], block, whole) | {"size": sizes[block]})
    watch.finish()
    return BlockFlips(
        table=with_q(table, keep_p=False).assign(base=bench.right(None).mean()),
        control="entries of the rest of the update, drawn at random up to the block's norm, switched off instead",
        provenance=Provenance.of(
            "block_flips", pair, rows, seed=seed, forward_passes=bench.passes,
            settings=call_settings(None, retain=None if retain is None else Prompts.of(retain)),
        ),
        active=len(blocks),
        total=_total(pair.base, cut),
        whole=float(whole.mean()),
    )  # fmt: skip


Block = tuple[int, str]


def _block_of(name: str, cut: Cut) -> Block | None:
    place = place_of(name)
    if place.layer is None:
        return None
    module = place.module.removesuffix(".bias")
    return place.layer, {"layer": "layer", "part": module.split(".")[0], "module": module}[cut]


def _blocks(update: TaskVector, cut: Cut) -> dict[Block, list[str]]:
    """Block -> the tensors of it that moved."""
    blocks: dict[Block, list[str]] = {}
    for name, change in update.changes.items():
        block = _block_of(name, cut)
        if block is not None and bool((change != 0).any()):
            blocks.setdefault(block, []).append(name)
    return dict(sorted(blocks.items()))


def _total(base: Any, cut: Cut) -> int:
    from interventions.weightspace.swapping import base_parameters

    every = {_block_of(name, cut) for name, weight in base_parameters(base.hf).items() if weight.ndim >= 2}
    return len(every - {None})


def _restricted(update: TaskVector, names: list[str], factor: float = 0.0) -> TaskVector:
    """The update on ``names`` alone; ``factor`` times it elsewhere."""
    inside = set(names)
    return update.by_name(lambda name: 1.0 if name in inside else factor)


def _row(bench: Bench, update: TaskVector, names: list[str], block: Block, whole: np.ndarray) -> dict[str, Any]:
    inside = set(names)
    without = update.by_name(lambda name: 0.0 if name in inside else 1.0)
    share = _restricted(update, names).norm() ** 2 / max(without.norm() ** 2, 1e-30)
    thinned = without.thinned(min(1.0, share), bench.seed) + _restricted(update, names)
    row = bench.row(without, [thinned])
    alone = bench.right(_restricted(update, names))
    return {
        "layer": block[0], "module": block[1], "score": float(whole.mean()) - row["score"],
        "low": float(whole.mean()) - row["high"], "high": float(whole.mean()) - row["low"],
        "control": float(whole.mean()) - row["control"], "p": row["p"], "alone": float(alone.mean()),
        "retained": row["retained"], "n": row["n"],
    }  # fmt: skip
