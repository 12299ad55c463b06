"""How far tuning moves the residual stream on the first tokens of unrelated text, by layer and text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.models.null_adapters import null_adapter
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode, pad_left
from workbench.recording.record_pair import record
from workbench.typing import Float, Tensor

FIRST = 5
"""Tokens of a text that are read, behind its very first: that one is where many models put a stream of a hundred times
the length, whose change would be all that a mean shows. What comes behind changes nothing there, and is not computed.
"""


@dataclass(frozen=True)
class StreamChanges:
    """Changes of resid_post, and how long the base's stream is there."""

    by_text: Float[Tensor, "layer text d_model"]
    """The mean over a text's first tokens."""
    base_rms: Float[Tensor, " layer"]
    base_median: Float[Tensor, " layer"]

    @property
    def mean(self) -> Float[Tensor, "layer d_model"]:
        """The activation difference of each layer."""
        return self.by_text.mean(1)

    def at_stream_length(self, directions: Float[Tensor, "row d_model"], layer: int) -> Float[Tensor, "row d_model"]:
        """Directions at the median length of the base's stream at a layer; zeros stay zeros."""
        return directions / directions.norm(dim=-1, keepdim=True).clamp_min(1e-30) * self.base_median[layer]


def stream_changes(pair: ModelPair, texts: Prompts, progress: Progress | None) -> StreamChanges:
    """The change on every text.

    Args:
        pair: Both models.
        texts: Texts, of which :data:`FIRST` tokens are read.
        progress: A bar.
    """
    base, tuned = (_first_tokens(model, pair, texts, progress) for model in (pair.base, pair.tuned))
    lengths = [layer.norm(dim=-1) for layer in base[0]]
    return StreamChanges(
        by_text=_by_text(tuned, len(texts)) - _by_text(base, len(texts)),
        base_rms=torch.stack([length.square().mean().sqrt() for length in lengths]),
        base_median=torch.stack([length.median() for length in lengths]),
    )


def null_changes(
    pair: ModelPair, texts: Prompts, draws: int, seed: int, progress: Progress | None
) -> Float[Tensor, "draw layer d_model"] | None:
    """The mean change under adapters of random numbers; None for a pair that no null adapter can be made of.

    Args:
        pair: Both models.
        texts: The texts of :func:`stream_changes`.
        draws: Null adapters.
        seed: Of the first; the others have the next ones.
        progress: A bar.
    """
    ids = [row[: FIRST + 1] for row in encode(texts, pair.tuned.tokenizer, pair.tuned.max_positions)]
    bar, means = progress or Silent(), []
    try:
        bar.start("null adapters", draws)
        base = _hooked(pair.base, ids)
        for draw in range(draws):
            with null_adapter(pair, seed + draw) as stand_in:
                means.append(_hooked(stand_in.tuned, ids) - base)
            bar.advance()
        bar.finish()
    except (UserError, NotSupported):  # two whole models, another kind of adapter, an engine that holds the adapter
        return None
    return torch.stack(means)


@torch.no_grad()
def _hooked(model: AdaptedModel, ids: list[list[int]]) -> Float[Tensor, "layer d_model"]:
    """The mean stream at the first tokens of all texts, without the hash of the weights that a recording has."""
    seen: dict[int, Tensor] = {}

    def read(layer: int, value: Tensor, _ctx: ForwardContext) -> None:
        rows = [row[-len(text) :][len(text) > 1 :] for row, text in zip(value, ids, strict=True)]
        seen[layer] = torch.stack([row.float().mean(0) for row in rows]).mean(0).cpu()

    sites = model.expand("resid_post")
    hooks = [SiteHook(site, partial(read, place)) for place, site in enumerate(sites)]
    with model.hooked(hooks, stop=True):
        model.forward(pad_left(ids, pad_id(model.tokenizer)), logits=None)
    return torch.stack([seen[place] for place in range(len(sites))])


def _first_tokens(
    model: AdaptedModel, pair: ModelPair, texts: Prompts, progress: Progress | None
) -> tuple[list[Float[Tensor, "token d_model"]], Tensor]:
    """Of every layer the stream at the first tokens of all texts, and the text [token] of each."""
    ids = encode(texts, pair.tuned.tokenizer, pair.tuned.max_positions)
    cut = Prompts.of([row[: FIRST + 1] for row in ids])
    recording = record(model, cut, "resid_post", positions="all", progress=progress)
    numbers, places = (torch.tensor(recording.index[name].to_numpy()) for name in ("prompt", "position"))
    alone = torch.bincount(numbers)[numbers] == 1
    (role,) = recording.roles
    layers = [recording[role][name].float()[(places > 0) | alone] for name in recording.sites]
    return layers, numbers[(places > 0) | alone]


def _by_text(read: tuple[list[Tensor], Tensor], texts: int) -> Float[Tensor, "layer text d_model"]:
    layers, numbers = read
    return torch.stack([torch.stack([layer[numbers == text].mean(0) for text in range(texts)]) for layer in layers])
