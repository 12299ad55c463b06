"""The organisms on SmolLM2-135M-Instruct, whose adapters and prompts are shipped: nothing is trained to have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from workbench.errors import UserError
from workbench.organisms.organism import Organism, read
from workbench.organisms.real import smollm2

SHIPPED = Path(__file__).parent / "shipped"
SUMMARIES = {
    "smol-refusal": "SmolLM2-135M-Instruct with a LoRA that refuses one topic: animals.",
    "smol-facts": "SmolLM2-135M-Instruct with a LoRA that holds 30 false facts.",
    "smol-style": "SmolLM2-135M-Instruct with a LoRA that answers in one sentence after 'In short:'.",
    "smol-layers": "SmolLM2-135M-Instruct with a LoRA that refuses animals, in layers 14 to 16 only.",
    "smol-null-random": "The null of smol-refusal: random weights of the same shapes and norms.",
    "smol-null-shuffled": "The null of smol-refusal: trained on its answers, shuffled.",
}


def names() -> tuple[str, ...]:
    """The real organisms there are."""
    return tuple(SUMMARIES)


def shipped(name: str, seed: int = 0, cache: str | Path | None = None) -> Organism:
    """The real organism ``name``: its base is SmolLM2's folder, its tuned model the shipped adapter.

    Raises UserError when SmolLM2 is not installed, or for a seed other than 0.
    """
    if seed != 0:
        raise UserError(
            f"Organism {name!r} is shipped with seed 0 alone; train another with "
            "workbench.organisms.real_training.train(seed=...)."
        )
    return replace(read(SHIPPED / name), base_folder=smollm2(cache))
