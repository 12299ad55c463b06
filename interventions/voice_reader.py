"""A voice: a model that reads along, with a prefix of its own or its adapter turned up or down."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from interventions.other_models import OtherModel, Reader
from interventions.weightspace.adapter_scale import AdapterScale
from workbench.engine.context import ForwardContext
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.typing import Int, Tensor


@dataclass(frozen=True)
class Voice:
    """One voice of a :class:`LogitMix` or :class:`LogitFusion`."""

    model: Any
    """A model; of a recipe file its name and hash."""
    weight: float = 1.0
    prefix: str = ""
    """Text that this voice alone reads, behind the beginning-of-text token and before the prompt."""
    adapter_scale: float = 1.0
    """How much of the model's adapter is in effect for this voice."""

    def __post_init__(self) -> None:
        for name in ("weight", "adapter_scale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(f"A voice's {name} is {value!r}: give a finite number.")
            object.__setattr__(self, name, float(value))
        if not isinstance(self.prefix, str):
            raise UserError("A voice's prefix is text.")

    def validate(self) -> None:
        """Raise :class:`UserError` where the prefix cannot be written or there is no adapter to scale."""
        if self.prefix and self.model.tokenizer is None:
            raise UserError(f"{self.model.name} has no tokenizer to read the prefix with: load it with one.")
        if self.adapter_scale != 1:
            AdapterScale(self.adapter_scale).validate(self.model)

    def key(self, running: AdaptedModel) -> Hashable:
        """What tells distinct voices apart; None for the running model as it is."""
        plain = not self.prefix and self.adapter_scale == 1
        if plain and self.model.inner is running.inner and self.model.role == running.role:
            return None
        return (id(self.model.inner), self.model.role, self.prefix, self.adapter_scale)

    def plain(self) -> dict[str, Any]:
        """For a recipe file: the model by name and hash."""
        return {**vars(self), "model": vars(OtherModel.of(self.model))}


class VoiceReader(Reader):
    """Gives a voice's logits for whatever the running model is given, column for column."""

    def __init__(self, voice: Voice) -> None:
        super().__init__(voice.model)
        self.voice = voice
        words = voice.model.tokenizer
        self.prefix: list[int] = words(voice.prefix, add_special_tokens=False)["input_ids"] if voice.prefix else []
        self.bos: int | None = None if words is None else words.bos_token_id

    def logits(self, kwargs: Mapping[str, Any], ctx: ForwardContext, cache: Any) -> Tensor:
        if not self.prefix:
            return super().logits(kwargs, ctx, cache)
        if ctx.input_ids is None:
            raise UserError("The model was given embeddings, which mean nothing to the other models: give token ids.")
        if isinstance(kwargs.get("logits_to_keep", 0), Tensor):
            raise NotSupported("A voice with a prefix gives logits of the last columns or of all, not of chosen ones.")
        past = None if cache is None or ctx.start == 0 else self._past(cache, ctx.start)
        ids, mask, places = self._with_prefix(ctx)
        keep = int(kwargs.get("logits_to_keep", 0) or 0) or ctx.length
        with self._alone(), torch.no_grad():
            out = self.model.inner(
                input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=past,
                use_cache=cache is not None, logits_to_keep=keep,
            )  # fmt: skip
        if cache is not None and past is None:
            self._follow(cache, out.past_key_values)
        return out.logits

    def _with_prefix(self, ctx: ForwardContext) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, mask and positions with the prefix put behind each row's first token (its BOS), or before it."""
        device, extra = self.model.device, len(self.prefix)
        mask = ctx.attention_mask
        whole = ctx.start + ctx.length
        full = torch.ones(ctx.batch, whole, dtype=torch.long, device=device)
        if mask is not None:
            full[:, : mask.shape[1]] = mask.to(device).long()[:, :whole]
        mask = torch.stack([_inserted(row, torch.ones(extra).to(row), _first(row)) for row in full])
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        assert ctx.input_ids is not None
        ids = ctx.input_ids.to(device)
        if ctx.start:
            return ids, mask, places[:, -ctx.length :]
        prefix = torch.tensor(self.prefix, device=device)
        rows = []
        for row, real in zip(ids, full, strict=True):
            first = _first(real)
            behind_bos = self.bos is not None and first < len(row) and int(row[first]) == self.bos
            rows.append(_inserted(row, prefix, first + behind_bos))
        return torch.stack(rows), mask, places

    @property
    def plain(self) -> bool:
        return not self.prefix and self.voice.adapter_scale == 1

    @property
    def extra(self) -> int:
        return len(self.prefix)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with super()._alone():
            if self.voice.adapter_scale == 1:
                yield
                return
            with AdapterScale(self.voice.adapter_scale).entered(self.model):
                yield


class Heard:
    """Every distinct voice, read once per forward pass."""

    def __init__(self, readers: Mapping[Hashable, VoiceReader]) -> None:
        self.readers = dict(readers)

    def logits(self, kwargs: dict[str, Any], ctx: ForwardContext, cache: Any) -> dict[Hashable, Tensor]:
        return {key: reader.logits(kwargs, ctx, cache) for key, reader in self.readers.items()}


def _first(mask: Int[Tensor, " pos"]) -> int:
    """The first real column."""
    return int(mask.argmax())


def _inserted(row: Int[Tensor, " pos"], new: Int[Tensor, " more"], at: int) -> Int[Tensor, " longer"]:
    return torch.cat([row[:at], new, row[at:]])
