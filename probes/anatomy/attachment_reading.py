"""What an attachment's parts do: each taken out, the paths between side modules, and the rows made of each input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from probes.lens import kl
from probes.scored import beside_control, scored, with_q
from workbench.errors import UserError
from workbench.models.attachments.attachment import Attachment
from workbench.models.attachments.instruction_prompts import InstructionPrompts
from workbench.models.attachments.side_path import SidePath
from workbench.prompts.collection import Prompts
from workbench.typing import Float, Tensor


@torch.no_grad()
def part_effects(pair: Any, prompts: Any, *, seed: int = 0) -> pd.DataFrame:
    """Take every part of an attachment out: modules and links, prompts and spaces, or what each layer makes.

    Args:
        pair: A pair whose tuned model is its base with an attachment.
        prompts: Any prompts.
        seed: Of the random parts and the intervals.

    Returns:
        A row per part: ``score``, the KL (nats) of the next word without it from the word with all, the mean over
        prompts with ``low`` and ``high``; ``control``, the same with a Gaussian part of its norm in its place; ``q`` of
        the difference.

    Raises:
        UserError: The tuned model is no attachment.

    Example:
        ``probes.part_effects(pair, prompts)``
    """
    attachment, rows = _attachment(pair, Attachment), Prompts.of(prompts)
    batch = pair.tuned.encode(rows)
    whole, lines = _next_words(pair, batch), []
    for number, part in enumerate(attachment.parts()):
        moved = []
        for random in (None, seed + 1 + number):
            with attachment.without(part, random=random):
                moved.append(kl(whole, _next_words(pair, batch)).numpy())
        lines.append({"part": part, **beside_control(moved[0], moved[1], rows.clusters, seed=seed)})
    return with_q(lines, keep_p=False)


@torch.no_grad()
def side_shares(pair: Any, prompts: Any, *, seed: int = 0) -> pd.DataFrame:
    """The path view of side-connected modules: what each one has a share in at each later one.

    The side state is a sum, so the shares of all sources at a layer add up to what is added there, exactly.

    Args:
        pair: A pair whose tuned model is its base with a side path.
        prompts: Any prompts; their last tokens are read.
        seed: Of the intervals and of the random links.

    Returns:
        A row per source and target layer: ``score``, the norm of the share in norms of all that is added there, the
        mean over prompts with ``low`` and ``high``; ``control``, the same with Gaussian links of the trained norms.

    Raises:
        UserError: The tuned model is no side path.

    Example:
        ``probes.side_shares(pair, prompts)``
    """
    path, rows = _attachment(pair, SidePath), Prompts.of(prompts)
    pair.tuned.forward(pair.tuned.encode(rows), logits=None)
    read = [values[:, -1].clone() for values in path.read]
    shares = _shares(path, read)
    other = path.random_like(seed)
    assert isinstance(other, SidePath)
    other.up.data.copy_(path.up)
    chance = _shares(other, read)
    return pd.DataFrame([
        {"source": path.layers[i], "target": path.layers[k], **scored(value, seed=seed, clusters=rows.clusters),
         "control": float(chance[i, k].mean())}
        for (i, k), value in shares.items()
    ])  # fmt: skip


@torch.no_grad()
def realised_prompts(
    pair: Any, prompts: Any, *, seed: int = 0
) -> tuple[Float[Tensor, "prompt layer row d_model"], pd.DataFrame]:
    """Record the prompt rows that instruction prompts make of each input, and how much of them the input decides.

    Args:
        pair: A pair whose tuned model is its base with instruction prompts.
        prompts: Any prompts, two or more.
        seed: Of the intervals and of the random generator.

    Returns:
        The rows, and a table with a row per layer: ``score``, the share of a row's squared norm that differs from the
        mean over inputs, with ``low`` and ``high``; ``control``, that of generators with Gaussian parameters of the
        trained ones' norms; ``norm``, of the rows.

    Raises:
        UserError: The tuned model has no instruction prompts, or there is one prompt alone.

    Example:
        ``rows, table = probes.realised_prompts(pair, prompts)``
    """
    attachment, rows = _attachment(pair, InstructionPrompts), Prompts.of(prompts)
    if len(rows) < 2:
        raise UserError("What differs between inputs shows on two prompts or more: give more.")
    batch = pair.tuned.encode(rows)
    pair.tuned.forward(batch, logits=None)
    made = torch.stack([attachment.realised[k] for k in sorted(attachment.realised)], 1).cpu()
    other = attachment.random_like(seed).state_dict()
    before = {name: values.clone() for name, values in attachment.state_dict().items()}
    try:
        attachment.load_state_dict(other)
        pair.tuned.forward(batch, logits=None)
        chance = torch.stack([attachment.realised[k] for k in sorted(attachment.realised)], 1).cpu()
    finally:
        attachment.load_state_dict(before)
    own, random = _varying(made), _varying(chance)
    return made, pd.DataFrame([
        {"layer": k, **scored(own[:, k], seed=seed, clusters=rows.clusters), "control": float(random[:, k].mean()),
         "norm": float(made[:, k].norm(dim=-1).mean())}
        for k in range(made.shape[1])
    ])  # fmt: skip


def _attachment(pair: Any, kind: Any) -> Any:
    attachment = getattr(pair, "attachment", None)
    if not isinstance(attachment, kind):
        wanted = getattr(kind, "kind", "attachment")
        raise UserError(f"The tuned model has no {wanted}: give a pair from load_pair(base, trained) with one.")
    return attachment


def _next_words(pair: Any, batch: Any) -> Float[Tensor, "prompt vocab"]:
    logits = pair.tuned.forward(batch, logits="last")
    return logits[:, -1].float().cpu()


def _shares(path: SidePath, read: list[Tensor]) -> dict[tuple[int, int], np.ndarray]:
    """(source, target) -> the norm of the share in that of the whole, [prompt]."""
    shares: dict[tuple[int, int], np.ndarray] = {}
    for k in range(len(read)):
        parts = [path.shares(i, k, read[i]) for i in range(k + 1)]
        size = torch.stack(parts).sum(0).norm(dim=-1).clamp_min(1e-12)
        shares |= {(i, k): (part.norm(dim=-1) / size).cpu().numpy() for i, part in enumerate(parts)}
    return shares


def _varying(made: Float[Tensor, "prompt layer row d_model"]) -> np.ndarray:
    """[prompt, layer]"""
    apart = (made - made.mean(0, keepdim=True)).square().sum((-1, -2))
    return (apart / made.square().sum((-1, -2)).clamp_min(1e-12)).numpy()
