"""A model's ``generation_config``: what of it is kept when models are compared, and what of it changes greedy texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""Kept: which tokens begin, end and pad a text."""
_WITHOUT_EFFECT = {
    "_from_model_config", "transformers_version", "use_cache", "cache_implementation", "output_attentions",
    "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate", "do_sample", "temperature",
    "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "renormalize_logits", *TOKENS,
}  # fmt: skip
"""Tokens, how a text is computed, and what matters to sampling alone."""


def neutral(config: Any) -> Any:
    """A ``GenerationConfig`` with the token ids of ``config`` and nothing else of it."""
    from transformers import GenerationConfig

    return GenerationConfig(**{name: value for name in TOKENS if (value := getattr(config, name, None)) is not None})


@contextmanager
def neutralised(hf: Any) -> Iterator[None]:
    """``hf`` generates by :func:`neutral` settings inside the context, and by its own afterwards."""
    own = hf.generation_config
    hf.generation_config = neutral(own)
    try:
        yield
    finally:
        hf.generation_config = own


def of_effect(hf: Any) -> dict[str, Any]:
    """The settings of ``hf``'s own ``generation_config`` that change its greedy texts."""
    own = getattr(hf, "generation_config", None)
    if own is None:
        return {}
    plain = {**neutral(None).to_dict()}
    return {
        name: value
        for name, value in own.to_diff_dict().items()
        if name not in _WITHOUT_EFFECT and value is not None and value != plain.get(name)
    }


def ends_of(hf: Any) -> list[int]:
    """The ids that end a text, by ``hf``'s own ``generation_config``."""
    ends = getattr(getattr(hf, "generation_config", None), "eos_token_id", None)
    return sorted(ends) if isinstance(ends, list) else [] if ends is None else [ends]
