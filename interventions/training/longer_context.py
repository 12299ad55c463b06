"""Continued training on longer texts than a model was made for (ProLong, Gao et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from interventions.recipe import as_adapted
from interventions.training.stages import Stage, tune_in_stages
from interventions.training.trainer import Schedule
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import method
from workbench.progress import Progress
from workbench.prompts.collection import Prompts


@dataclass(frozen=True)
class LongerContext:
    """A model that reads further than before."""

    model: Any
    """The model that was given, trained in place, with a new rotation base and more positions."""
    theta: float
    """Of the rotary embedding: its base after training."""
    positions: int
    histories: tuple[tuple[dict[str, float], ...], ...]
    """Of the continued training and, where there was one, of the fine-tuning."""


_SCHEDULE = Schedule(epochs=1, learning_rate=1e-5)
"""How long and how fast, where nothing else is said."""


@method(
    "lengthen-context",
    group="training",
    question="Which model does continued training on long texts, mixed with short ones, make?",
    kind="training",
    papers=("How to Train Long-Context Language Models (Effectively)",),
    cost="a forward and backward pass per batch of long texts",
    expands={"schedule": _SCHEDULE},
    example="--long long.jsonl --short p.jsonl --positions 512",
)
def lengthen_context(
    model: Any,
    long: Annotated[Any, As("prompts")],
    short: Annotated[Any, As("prompts")],
    *,
    positions: int,
    theta_factor: float = 16.0,
    long_share: float = 0.6,
    instructions: Annotated[Any, As("prompts")] = None,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> LongerContext:
    """Raise the rotary base, train on long and short texts together, then fine-tune on short instructions; in place.

    The paper's findings are the defaults: long texts make 60 % of the mix and high-quality short ones the rest, and
    fine-tuning takes short instructions alone. Texts should be longer than what is to be evaluated. What becomes of the
    retrieval heads tells ``probes.same_heads(pair, ...)``; give it the model before as the base.

    Args:
        model: A bare model with rotary positions; its weights and configuration are changed.
        long: Long texts (rows with answers: prompt and answer together).
        short: Short texts alike.
        positions: How many positions the model shall have.
        theta_factor: What the base of the rotation is multiplied by.
        long_share: Share of long texts in the mix; the larger set is cut to fit.
        instructions: Short rows with answers for the fine-tuning behind it; None for none.
        schedule: How long and how fast, both stages alike.

    Returns:
        The model with what was set.

    Raises:
        UserError: A model without rotary positions, fewer positions than it has, or a share out of range.
    """
    adapted = as_adapted(model)
    if not 0 < long_share <= 1:
        raise UserError(f"long_share is the share of long texts, above 0 and at most 1; got {long_share:g}.")
    schedule = schedule or _SCHEDULE
    mixed = mix(Prompts.of(long), Prompts.of(short), long_share, schedule.seed)
    theta = _stretched(adapted.hf, positions, theta_factor)
    stages = [Stage(mixed, "text"), *([] if instructions is None else [Stage(instructions)])]
    made = tune_in_stages(adapted, stages, schedule=schedule, progress=progress)
    return LongerContext(model, theta, positions, made.histories)


def mix(long: Prompts, short: Prompts, share: float, seed: int) -> Prompts:
    """Long and short texts with ``share`` of long ones, as many as there are, in an order drawn by the seed."""
    total = len(long) / share if share == 1 else min(len(long) / share, len(short) / (1 - share))
    counts = round(total * share), round(total * (1 - share))
    if counts[0] < 1:
        raise UserError("There are too few texts for this mix: give more long or short ones.")
    random = np.random.default_rng(seed)
    rows = [text for texts, count in zip((long, short), counts, strict=True)
            for text in texts[random.permutation(len(texts))[:count]]]  # fmt: skip
    return Prompts([rows[place] for place in random.permutation(len(rows))])


def _stretched(hf: Any, positions: int, factor: float) -> float:
    """Set the configuration and the rotary embedding's frequencies; the new base."""
    config = hf.config.get_text_config()
    known = getattr(config, "rope_parameters", None) or {}
    rotary = [module for module in hf.modules() if hasattr(module, "inv_freq") and hasattr(module, "original_inv_freq")]
    if "rope_theta" not in known or known.get("rope_type", "default") != "default" or not rotary:
        raise UserError("Only models with plain rotary positions (Llama, Qwen, Mistral, ...) can be lengthened here.")
    if positions < (config.max_position_embeddings or 0) or factor < 1:
        raise UserError(
            f"The model has {config.max_position_embeddings} positions: give as many or more, and a theta_factor of 1 "
            "or more."
        )
    config.rope_parameters = {**known, "rope_theta": float(known["rope_theta"]) * factor}
    config.max_position_embeddings = positions
    for module in rotary:
        fresh = type(module)(config)
        module.inv_freq.copy_(fresh.inv_freq.to(module.inv_freq))
        module.original_inv_freq = module.inv_freq.clone()
        module.max_seq_len_cached = module.original_max_seq_len = positions
    return float(config.rope_parameters["rope_theta"])
