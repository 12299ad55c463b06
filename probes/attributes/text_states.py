"""Texts as points: the mean state over a text's tokens, as the clouds and dials of attributes are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.prompts.encode import batches, pad_left
from workbench.typing import Float, Tensor


def text_states(
    model: AdaptedModel, before: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], layers: Sequence[int],
    batch_size: int = 16,
) -> Float[Tensor, "text layer d_model"]:  # fmt: skip
    """The mean of resid_post over the tokens of each text, which is read behind ``before``."""
    means = torch.zeros(len(texts), len(layers), model.d_model)
    rows = [[*prompt, *text] for prompt, text in zip(before, texts, strict=True)]
    for members in batches([len(row) for row in rows], batch_size):
        batch = pad_left([rows[member] for member in members], pad_id(model.tokenizer))
        sizes = torch.tensor([max(1, len(texts[member])) for member in members])

        def keep(place: int, members: list[int] = members, sizes: Tensor = sizes) -> Any:
            def read(value: Tensor, _ctx: Any) -> None:
                width = value.shape[1]
                inside = (torch.arange(width)[None] >= width - sizes[:, None]).to(value.device)
                total = (value.detach().float() * inside[..., None]).sum(1)
                means[members, place] = (total / inside.sum(1, keepdim=True)).cpu()

            return read

        hooks = [SiteHook(Site("resid_post", layer), keep(place)) for place, layer in enumerate(layers)]
        with model.hooked(hooks, stop=True):
            model.forward(batch, logits=None)
    return means


def mean_size(states: Float[Tensor, "text d_model"]) -> float:
    """The mean norm of the states: the unit in which strengths are given."""
    return float(states.norm(dim=-1).mean())
