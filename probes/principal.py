"""Principal directions of differences, and what a direction says through the unembedding."""

from __future__ import annotations

from typing import NamedTuple

import torch

from probes.replay import read_out
from workbench.models.adapted import AdaptedModel
from workbench.typing import Float, Tensor


class Principal(NamedTuple):
    """Unit directions, the most important first, with the share of all squared length each accounts for."""

    directions: Float[Tensor, "k d"]
    share: Float[Tensor, " k"]


def principal(rows: Float[Tensor, "row d"], k: int, *, centred: bool) -> Principal:
    """The top ``k`` principal directions of ``rows``.

    Centred: of what varies between rows; the mean, often the strongest single direction of tuning, is taken out.
    Uncentred: of the rows themselves, mean included. Each points to where the rows' sum (uncentred) or its largest
    row (centred) lies.
    """
    data = rows.double()
    data = data - data.mean(0) if centred else data
    small = data.shape[0] < data.shape[1]
    _, sizes, right = torch.linalg.svd(data, full_matrices=False) if small else _from_covariance(data)
    total = sizes.square().sum().clamp_min(1e-300)
    rank = min(k, int((sizes > sizes.max() * 1e-7).sum()) if len(sizes) else 0)
    along = data @ right[:rank].T
    lean = along.sum(0) if not centred else along.gather(0, along.abs().argmax(0, keepdim=True))[0]
    signs = torch.where(lean < 0, -1.0, 1.0)[:, None]
    return Principal((right[:rank] * signs).float(), (sizes[:rank].square() / total).float())


def _from_covariance(data: Tensor) -> tuple[None, Tensor, Tensor]:
    """The same factors from the small [d, d] matrix."""
    values, vectors = torch.linalg.eigh(data.T @ data)
    return None, values.flip(0).clamp_min(0).sqrt(), vectors.flip(1).T


class Reading(NamedTuple):
    """Tokens that a direction makes more and less likely, with the change of their logits."""

    up: list[tuple[str, float]]
    down: list[tuple[str, float]]


def direction_readings(
    model: AdaptedModel,
    directions: Float[Tensor, "k d_model"],
    centre: Float[Tensor, " d_model"],
    scale: float,
    tokens: int = 8,
) -> list[Reading]:
    """What each direction says: the model's own final norm and unembedding at ``centre`` plus ``scale`` times the
    direction, less the same with minus, halved. ``centre`` and ``scale`` are best the layer's mean residual and the
    size of a typical step along the direction.
    """
    unit = torch.nn.functional.normalize(directions.float(), dim=-1) * scale
    there, back = read_out(model, centre + unit), read_out(model, centre - unit)
    change = (there - back).float().cpu() / 2
    change = change - change.mean(-1, keepdim=True)  # a constant over the vocabulary says nothing
    return [_reading(row, model, tokens) for row in change]


def _reading(change: Float[Tensor, " vocab"], model: AdaptedModel, tokens: int) -> Reading:
    sides = []
    for sign in (1.0, -1.0):
        best = (sign * change).topk(min(tokens, len(change)))
        words = [model.tokenizer.decode([token]) for token in best.indices.tolist()]
        sides.append(list(zip(words, (sign * best.values).tolist(), strict=True)))
    return Reading(*sides)


def shown(words: list[tuple[str, float]]) -> str:
    """``'word' +1.2; ...`` for a table."""
    return "; ".join(f"{word!r} {value:+.2f}" for word, value in words)
