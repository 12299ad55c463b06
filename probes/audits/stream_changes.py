"""How far tuning moves the residual stream on the first tokens of unrelated text, by layer and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
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
from workbench.recording.sink_rows import averaged_rows, massive_rows
from workbench.typing import Float, Tensor

FIRST = 5
"""Tokens of a text that are read, behind its very first; what follows them changes nothing there."""


@dataclass(frozen=True)
class StreamChanges:
    """Changes of resid_post, and how long the base's stream is there."""

    by_text: Float[Tensor, "layer text d_model"]
    """The mean over a text's first tokens, without attention sinks, whose streams are a hundred times as long."""
    places: list[list[int]]
    """Of every text the positions that are read."""
    base_rms: Float[Tensor, " layer"]
    base_median: Float[Tensor, " layer"]
    by_position: Mapping[int, Float[Tensor, "layer text d_model"]] = field(default_factory=dict)
    """Position -> the change there on the texts that are read at it, in their order."""

    def texts_at(self, position: int) -> list[int]:
        """The texts that are read at a position."""
        return [text for text, own in enumerate(self.places) if position in own]

    def of_first(self, texts: int) -> StreamChanges:
        """The changes on the first so many texts."""
        counts = {place: sum(text < texts for text in self.texts_at(place)) for place in self.by_position}
        return replace(
            self, by_text=self.by_text[:, :texts], places=self.places[:texts],
            by_position={place: change[:, : counts[place]] for place, change in self.by_position.items()},
        )  # fmt: skip

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
    cut = Prompts.of(_first_tokens(pair, texts))
    recording = record(pair, cut, "resid_post", positions="all", progress=progress)
    read = averaged_rows(recording.index, "content", massive_rows(recording)).rows
    places = recording.index[["prompt", "position"]][read]
    numbers = torch.tensor(places["prompt"].to_numpy())
    base, tuned = (
        torch.stack([recording[role][name].float()[torch.from_numpy(read)] for name in recording.sites])
        for role in ("base", "tuned")
    )
    lengths, change = base.norm(dim=-1), tuned - base
    positions = places["position"].to_numpy()
    return StreamChanges(
        by_text=torch.stack([change[:, numbers == text].mean(1) for text in range(len(texts))], 1),
        places=[places["position"][places["prompt"] == text].tolist() for text in range(len(texts))],
        base_rms=lengths.square().mean(1).sqrt(),
        base_median=lengths.median(1).values,
        by_position={int(place): change[:, torch.from_numpy(positions == place)] for place in np.unique(positions)},
    )


@dataclass(frozen=True)
class NullChanges:
    """The mean changes under adapters of random numbers."""

    mean: Float[Tensor, "draw layer d_model"]
    by_position: Mapping[int, Float[Tensor, "draw layer d_model"]]


def null_changes(
    pair: ModelPair, texts: Prompts, places: Sequence[Sequence[int]], draws: int, seed: int, progress: Progress | None
) -> NullChanges | None:
    """The mean change under adapters of random numbers; None for a pair that no null adapter can be made of.

    Args:
        pair: Both models.
        texts: Texts.
        places: Of every text the positions that :func:`stream_changes` read.
        draws: Null adapters.
        seed: Of the first; the others have the next ones.
        progress: A bar.
    """
    ids = _first_tokens(pair, texts)
    bar, means = progress or Silent(), []
    try:
        bar.start("null adapters", draws)
        base = _hooked(pair.base, ids, places)
        for draw in range(draws):
            with null_adapter(pair, seed + draw) as stand_in:
                means.append(_hooked(stand_in.tuned, ids, places) - base)
            bar.advance()
        bar.finish()
    except (UserError, NotSupported):  # two whole models, another kind of adapter, an engine that holds the adapter
        return None
    mean, *at = torch.stack(means).unbind(2)
    return NullChanges(mean, dict(zip(_positions(places), at, strict=True)))


def _positions(places: Sequence[Sequence[int]]) -> list[int]:
    """The positions that are read in some text."""
    return sorted({place for own in places for place in own})


@torch.no_grad()
def _hooked(
    model: AdaptedModel, ids: list[list[int]], places: Sequence[Sequence[int]]
) -> Float[Tensor, "layer reading d_model"]:
    """The mean stream of all texts, at their own places and then position by position, without the hash of the weights
    that a recording has."""
    seen: dict[int, Tensor] = {}

    def read(layer: int, value: Tensor, _ctx: ForwardContext) -> None:
        texts = [row[-len(text) :].float() for row, text in zip(value, ids, strict=True)]
        means = [torch.stack([text[list(own)].mean(0) for text, own in zip(texts, places, strict=True)]).mean(0)]
        for place in _positions(places):
            at = [text[place] for text, own in zip(texts, places, strict=True) if place in own]
            means.append(torch.stack(at).mean(0))
        seen[layer] = torch.stack(means).cpu()

    sites = model.expand("resid_post")
    hooks = [SiteHook(site, partial(read, place)) for place, site in enumerate(sites)]
    with model.hooked(hooks, stop=True):
        model.forward(pad_left(ids, pad_id(model.tokenizer)), logits=None)
    return torch.stack([seen[place] for place in range(len(sites))])


def _first_tokens(pair: ModelPair, texts: Prompts) -> list[list[int]]:
    ids = encode(texts, pair.tuned.tokenizer, pair.tuned.max_positions)
    return [row[: FIRST + 1] for row in ids]
