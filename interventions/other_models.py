"""Other models that read along with the running one, token for token, each with a key/value cache of its own."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from workbench.engine.context import ForwardContext
from workbench.engine.hub import Hub
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor

_MIRRORED = ("reorder_cache", "crop", "batch_repeat_interleave", "batch_select_indices", "reset")
"""What generation does to a cache beside growing it: beams change places, rejected tokens are taken back."""


READING: weakref.WeakSet[Hub] = weakref.WeakSet()
"""Models that read along at this moment: shifts of logits do not answer to them (they may share a body)."""


@dataclass(frozen=True)
class OtherModel:
    """What a recipe file says of a model: its name and the hash of its weights and tokenizer."""

    name: str
    identity: str

    @classmethod
    def of(cls, model: Any) -> OtherModel:
        """Of a model that is at hand, or what is already known of one that is not."""
        return model if isinstance(model, OtherModel) else cls(model.name, model.identity.hash)

    def __repr__(self) -> str:
        return f"OtherModel({self.name!r}, {self.identity[:12]}…)"


def partner_key(model: AdaptedModel) -> tuple[str, int, str | None]:
    """Where a forward pass keeps what ``model`` says of it, if its rows were in the same batch."""
    return ("logits of the partner", id(model.inner), model.role)


class Reader:
    """A model that gives its logits for whatever the running model is given."""

    def __init__(self, model: AdaptedModel) -> None:
        self.model = model
        self._pasts: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def logits(self, kwargs: Mapping[str, Any], ctx: ForwardContext, cache: Any) -> Tensor:
        """Logits of the same rows and positions. ``cache``: the running model's, or None without one.

        Raises :class:`UserError` for embeddings in place of tokens, and for a cache begun before this model read along.
        """
        ready = self.shared(ctx)
        if ready is not None:
            return ready
        if ctx.input_ids is None:
            raise UserError("The model was given embeddings, which mean nothing to the other models: give token ids.")
        past = None if cache is None or ctx.start == 0 else self._past(cache, ctx.start)
        call = {name: _to(kwargs.get(name), self.model.device) for name in ("attention_mask", "position_ids")}
        with self._alone(), torch.no_grad():
            out = self.model.inner(
                input_ids=ctx.input_ids.to(self.model.device),
                past_key_values=past,
                use_cache=cache is not None,
                logits_to_keep=_to(kwargs.get("logits_to_keep", 0), self.model.device),
                **{name: value for name, value in call.items() if value is not None},
            )
        if cache is not None and past is None:
            self._follow(cache, out.past_key_values)
        return out.logits

    def shared(self, ctx: ForwardContext) -> Tensor | None:
        """The logits where this model's rows were in the running model's batch."""
        logits: Tensor | None = ctx.scratch.get(partner_key(self.model)) if self.plain else None
        return logits

    @property
    def plain(self) -> bool:
        """Whether this reads what the running model reads, as the model is."""
        return True

    @property
    def extra(self) -> int:
        """Tokens that this model has read and the running one has not."""
        return 0

    def _follow(self, cache: Any, past: Any) -> None:
        """From now on ``past`` goes with ``cache``, whatever is done to that."""
        self._pasts[cache] = past
        for name in _MIRRORED:
            self._mirror(cache, name)

    def _past(self, cache: Any, start: int) -> Any:
        past = self._pasts.get(cache)
        read = 0 if past is None else int(past.get_seq_length()) - self.extra
        if read != start:
            raise UserError(
                f"The cache holds {start} tokens and {self.model.name} has read {read} of them: begin the text inside "
                "the recipe's context."
            )
        return past

    def _mirror(self, cache: Any, name: str) -> None:
        """Whatever is done to ``cache`` is done to this model's. Nothing here keeps ``cache`` alive."""
        if not hasattr(cache, name):
            return
        before: Callable[..., Any] | None = cache.__dict__.get(name)  # another reader's
        held, pasts = weakref.ref(cache), self._pasts

        def both(*args: Any, **kwargs: Any) -> Any:
            there = held()
            past = pasts.get(there)
            if past is not None:
                getattr(past, name)(*args, **kwargs)
            return before(*args, **kwargs) if before else getattr(type(there), name)(there, *args, **kwargs)

        cache.__dict__[name] = both

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """This model's own view runs, and what is known of the running forward comes back after."""
        hub = self.model.hub
        running, ended, nested = hub.context, hub.ended, hub in READING
        READING.add(hub)
        try:
            with self.model.active():
                yield
        finally:
            hub.context, hub.ended = running, ended
            if not nested:
                READING.discard(hub)


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


class VocabularyWarning(UserWarning):
    """The models' logits have different widths, so the last columns are left as they are."""


def as_other(model: Any, name: str) -> AdaptedModel | OtherModel:
    """A model that is at hand, or what a recipe file says of it; ``name`` is how it is called in the error."""
    if isinstance(model, AdaptedModel | OtherModel):
        return model
    if isinstance(model, Mapping):
        if set(model) != {"name", "identity"}:
            raise UserError(f"The recipe says of its {name} model {sorted(model)}, not name and identity.")
        return OtherModel(str(model["name"]), str(model["identity"]))
    if hasattr(model, "base") and hasattr(model, "tuned"):
        raise UserError(f"{name} is a pair of models: give one of them, pair.base or pair.tuned.")
    if not hasattr(model, "generate"):
        raise UserError(f"{name} is {type(model).__name__}: give a model (pair.tuned, or a Hugging Face model).")
    return AdaptedModel(model, None)


def check_words(model: AdaptedModel, other: AdaptedModel) -> None:
    """The same id must be the same word in both, as far as both have it."""
    if model.tokenizer is None or other.tokenizer is None or model.tokenizer is other.tokenizer:
        return
    ours, theirs = model.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    size = min(len(ours), len(theirs))
    odd = [word for word, token in ours.items() if token < size and theirs.get(word) != token]
    if odd:
        raise UserError(
            f"{model.name} and {other.name} do not write the same words (token {ours[odd[0]]} is {odd[0]!r} in one "
            "alone), so their logits cannot be added: use models of one vocabulary."
        )


def tell_widths(*models: Any) -> None:
    """Warn where the models' logits have different widths."""
    sizes = [model.vocab_size for model in models]
    if len(set(sizes)) > 1:
        warnings.warn(
            f"The models' logits have {', '.join(map(str, sizes))} columns: those beyond the first {min(sizes)} are "
            "left as they are.",
            VocabularyWarning,
            stacklevel=4,
        )
