"""Greedy answers to needle trials, with the position each head looks at most while each token is written."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from probes.needles.trials import Trial
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.typing import Float, Int, Tensor


@dataclass(frozen=True)
class Answer:
    """One greedy answer."""

    inputs: list[int]
    """The token read at each step."""
    outputs: list[int]
    """The token written at each step."""
    attended: Int[np.ndarray, "step layer head"] | None
    """The context position with the largest weight; None when not asked for."""
    passes: int


def answer(
    model: AdaptedModel, trial: Trial, max_new_tokens: int, *, watch: bool = True, hooks: Sequence[SiteHook] = ()
) -> Answer:
    """Prefill all but the last prompt token, then decode greedily until a line break or the end of text.

    Only the single-row decoding steps run eager attention; the prefill keeps the model's own. ``hooks`` act in both.
    """
    looked: list[dict[int, Tensor]] = []
    readers = (
        [SiteHook(Site("pattern", layer), _look(looked, layer)) for layer in range(model.n_layers)] if watch else []
    )
    ids = torch.tensor([trial.ids], device=model.device)
    token, written, read = int(ids[0, -1]), list[int](), list[int]()
    with model.hooked(hooks), torch.no_grad():
        past = model.inner.base_model(input_ids=ids[:, :-1], use_cache=True).past_key_values
        with model.hooked(readers):
            for _ in range(max_new_tokens):
                looked.append({})
                step = torch.tensor([[token]], device=model.device)
                logits = model.inner(input_ids=step, past_key_values=past, use_cache=True).logits
                read.append(token)
                token = int(logits[0, -1].argmax())
                written.append(token)
                if _ends(model, token):
                    break
    attended = None
    if watch:
        attended = torch.stack(
            [torch.stack([layers_read[layer] for layer in range(model.n_layers)]) for layers_read in looked]
        ).numpy()
    return Answer(read, written, attended, 1 + len(written))


def check_room(model: AdaptedModel, trials: Sequence[Trial], max_new_tokens: int) -> None:
    """Raises :class:`UserError` when the longest trial and its answer do not fit into the model's positions."""
    longest, limit = max((len(trial.ids) for trial in trials), default=0), model.max_positions
    if limit is not None and longest + max_new_tokens - 1 > limit:
        raise UserError(
            f"The longest trial has {longest} tokens and an answer of {max_new_tokens} would pass the {limit} "
            f"positions of the {model.role} model: ask for shorter lengths, or for fewer new tokens."
        )


def _look(looked: list[dict[int, Tensor]], layer: int) -> Callable[[Tensor, ForwardContext], None]:
    def reader(value: Tensor, ctx: ForwardContext) -> None:
        # A sliding layer keeps only the end of the context, so its keys start later.
        skipped = ctx.start + ctx.length - value.shape[-1]
        looked[-1][layer] = value[0, :, -1].argmax(-1).cpu() + max(0, skipped)

    return reader


def _ends(model: AdaptedModel, token: int) -> bool:
    if model.tokenizer is None:
        return False
    return token == model.tokenizer.eos_token_id or "\n" in model.tokenizer.decode([token])


def copy_scores(
    attended: Int[np.ndarray, "step layer head"], tokens: Sequence[int], ids: Sequence[int], start: int, end: int
) -> Float[np.ndarray, "layer head"]:
    """The share of positions in ``start:end`` that each head looked at while the token there was in ``tokens``.

    ``tokens`` are the tokens WRITTEN at each step. A position counts once, so that a stuck head cannot exceed it.
    """
    copied = np.zeros((end - start, *attended.shape[1:]), dtype=bool)
    for token, looked in zip(tokens, attended, strict=True):
        for place in range(start, end):
            if ids[place] == token:
                copied[place - start] |= looked == place
    return copied.mean(0)


def recall(model: AdaptedModel, trial: Trial, outputs: Sequence[int]) -> float:
    """ROUGE-1 recall: the share of the needle's words (tokens, without a tokenizer) that the answer holds."""
    wanted = _units(model, trial.ids[trial.start : trial.end])
    units = set(_units(model, outputs))
    return float(np.mean([unit in units for unit in wanted])) if wanted else 0.0


def _units(model: AdaptedModel, ids: Sequence[int]) -> list[Any]:
    if model.tokenizer is None:
        return list(ids)
    return re.findall(r"\w+", model.tokenizer.decode(list(ids), skip_special_tokens=True).lower())
