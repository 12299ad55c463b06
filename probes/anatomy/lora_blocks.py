"""lora_blocks: blocks of a LoRA's rank as units: whether they share a down-projection, and what each one does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from interventions.weightspace.swapping import base_parameters
from interventions.weightspace.task_vector import TaskVector
from probes.lens import kl
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from probes.weights.naming import key_of, place_of
from probes.weights.sources import Factors, Opened, open_weights
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts
from workbench.typing import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class LoraBlocks(ProbeResult):
    """One row per block (``module``: block 0, block 1, ...), over all modules.

    ``score``: KL (nats) of the next word without the block from the word with the whole LoRA, the mean over prompts;
    ``control``: the same where the block's update, with random signs, is added instead; ``q`` of the difference.
    ``share``: of the blocks' squared norms, the mean over modules; ``shared_down``: mean absolute cosine of the
    block's rows of A with those of block 0 (1 for all blocks: one down-projection); ``overlap``: ||sum of blocks|| in
    the root of the sum of their squared norms, over modules (above 1: blocks add up, below: they cancel).
    """

    modules: pd.DataFrame
    """layer, module, block, share, shared_down."""
    resampled: str = "prompts"

    title: ClassVar[str] = "Blocks of a LoRA"
    unit: ClassVar[str] = "KL of the next word without the block (nats)"

    def summary(self) -> str:
        best = self.frame().iloc[0]
        one_down = bool((self.table["shared_down"] > 0.999).all())
        return (
            f"{len(self.table)} blocks {'with one shared' if one_down else 'with no common'} down-projection; "
            f"{best['module']} matters most: {best['score']:.3g} nats [{best['low']:.3g}, {best['high']:.3g}] (random "
            f"signs {best['control']:.3g}), {best['share']:.2f} of the squared norm; over {self.resampled}. Control: "
            f"{self.control}."
        )


@method(
    "lora-blocks",
    group="weights",
    question="Which blocks of a LoRA carry the change, and do they share what they read?",
    papers=("One Head Eight Arms: Block Matrix based Low Rank Adaptation for CLIP-based Few-Shot Learning",),
    needs=Needs(adapter=True),
    cost="two forward passes per block",
    example="--blocks 2",
    any_adapter="whether taking the block out differs from one random change of its size, whatever the block says",
)
def lora_blocks(
    pair: Any,
    prompts: Prompts | Sequence[object],
    *,
    blocks: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> LoraBlocks:
    """Split A (its rows) and B (its columns) in blocks of the rank, and switch each block off in all modules.

    The source adapts an image encoder with blocks that share their down-projection; stored as a LoRA, its A repeats one
    block of rows. What is carried over to language models is the block as the unit, of any plain LoRA.

    Args:
        pair: A pair whose tuned model is a plain LoRA.
        prompts: Any prompts.
        blocks: How many blocks the rank has.
        seed: Of the random signs and the intervals.

    Raises:
        UserError: No plain LoRA, or ranks that do not divide into the blocks.
    """
    check_pair(pair, prompts)
    if blocks < 2:
        raise UserError(f"blocks is {blocks}: a LoRA is split in two or more.")
    opened = open_weights(pair)
    if not opened.factors:
        raise UserError("The tuned model is no plain LoRA, and its factors are what is split: give a LoRA adapter.")
    if odd := [name for name, factor in opened.factors.items() if factor.down.shape[0] % blocks]:
        rank = opened.factors[odd[0]].down.shape[0]
        raise UserError(
            f"{odd[0]} has rank {rank}, which {blocks} blocks do not divide: give another number of blocks."
        )
    rows = Prompts.of(prompts)
    modules = pd.DataFrame([line for name, factor in opened.factors.items() for line in _lines(name, factor, blocks)])
    taken, passes = _effects(pair.base, rows, opened, blocks, seed, progress or Silent())
    table = pd.DataFrame([
        {"module": f"block {number}", **_row(*taken[number], rows, seed), **_sizes(modules, number)}
        for number in range(blocks)
    ])  # fmt: skip
    return LoraBlocks(
        table=with_q(table, keep_p=False).assign(overlap=_overlap(opened, blocks)),
        control="the block's own update with random signs added, nothing taken out",
        provenance=Provenance.of("lora_blocks", pair, rows, seed=seed, forward_passes=passes),
        modules=modules,
        resampled=units_of(rows.clusters),
    )  # fmt: skip


def block_of(factors: Factors, number: int, blocks: int) -> Factors:
    """The part of a change that one block of the rank makes."""
    width = factors.down.shape[0] // blocks
    inside = slice(number * width, (number + 1) * width)
    return Factors(factors.up[:, inside], factors.down[inside], factors.scaling)


def _lines(name: str, factors: Factors, blocks: int) -> list[dict[str, Any]]:
    parts = [block_of(factors, number, blocks) for number in range(blocks)]
    sizes = [float((part.up.float() @ part.down.float()).square().sum()) for part in parts]
    first = torch.nn.functional.normalize(parts[0].down.float(), dim=-1)
    place = place_of(name)
    return [
        {"layer": place.layer, "module": place.module, "block": number, "share": sizes[number] / max(sum(sizes), 1e-30),
         "shared_down": float((torch.nn.functional.normalize(part.down.float(), dim=-1) * first).sum(-1).abs().mean())}
        for number, part in enumerate(parts)
    ]  # fmt: skip


def _sizes(modules: pd.DataFrame, number: int) -> dict[str, float]:
    own = modules[modules["block"] == number]
    return {name: float(own[name].mean()) for name in ("share", "shared_down")}


def _overlap(opened: Opened, blocks: int) -> float:
    overlaps = []
    for factors in opened.factors.values():
        parts = [block_of(factors, number, blocks) for number in range(blocks)]
        apart = sum(float((part.up.float() @ part.down.float()).square().sum()) for part in parts) ** 0.5
        overlaps.append(float((factors.up.float() @ factors.down.float()).norm()) / max(apart, 1e-30))
    return float(np.mean(overlaps))


@torch.no_grad()
def _effects(
    base: AdaptedModel, rows: Prompts, opened: Opened, blocks: int, seed: int, watch: Progress
) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """Per block: KL without it and with its random signs added, [prompt]; and the forward passes."""
    names = {key_of(name): name for name in base_parameters(base.hf)}
    encoded = base.encode(rows)

    def words(change: TaskVector) -> Float[Tensor, "prompt vocab"]:
        with change.graft(base).entered(base):
            logits = base.forward(encoded, logits="last")
        assert logits is not None
        return logits[:, -1].float().cpu()

    whole_change = TaskVector(_changes(opened, names, opened.factors))
    whole, taken = words(whole_change), []
    watch.start("blocks", blocks)
    for number in tracked(range(blocks), watch):
        part = TaskVector(
            _changes(opened, names, {name: block_of(factor, number, blocks) for name, factor in opened.factors.items()})
        )
        without = words(whole_change + -part)
        random = words(whole_change + part.sign_shuffled(seed))
        taken.append((kl(whole, without).numpy(), kl(whole, random).numpy()))
    watch.finish()
    return taken, 1 + 2 * blocks


def _changes(opened: Opened, names: Mapping[str, str], factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """Factors as changes of the base's parameters, as they are stored."""
    changes = {}
    for key, factor in factors.items():
        product = (factor.up.float() @ factor.down.float()).cpu()
        changes[names[key]] = product.T if opened.layout.turned(place_of(key).module, 2) else product
    return changes


def _row(own: np.ndarray, random: np.ndarray, rows: Prompts, seed: int) -> dict[str, float]:
    return {**beside_control(own, random, rows.clusters, seed=seed), "n": len(own)}
