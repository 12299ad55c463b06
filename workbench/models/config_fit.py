"""Whether a config's sizes are those of the stored weights, seen without building the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_NO_WEIGHTS = {
    "max_position_embeddings", "max_window_layers", "sliding_window", "pretraining_tp", "num_hidden_layers",
    "pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id",
}  # fmt: skip
"""Numbers of a config that give no matrix its shape; layers are counted beside this."""
_PLAIN = ("rope", "id2label", "label2id")
"""Beginnings of names of mappings that are no stack of their own."""
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")


def fits_plainly(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a plain decoder's config asks for matrices as large as the stored ones.

    False also of every config with sizes that this does not know (experts, several stacks, learned positions): then
    only the model's own shapes tell.

    Args:
        config: the content of config.json.
        shapes: name -> shape of every stored tensor.

    Example:
        >>> fits_plainly(
        ...     {"vocab_size": 9, "hidden_size": 4, "intermediate_size": 8, "num_attention_heads": 2},
        ...     {"embed_tokens.weight": (9, 4), "q_proj.weight": (4, 4), "up_proj.weight": (8, 4)},
        ... )
        True
    """
    numbers = {name: value for name, value in config.items() if isinstance(value, int) and not isinstance(value, bool)}
    sizes = {name: numbers.pop(name) for name in _SIZES if name in numbers}
    if any(value > 1 for name, value in numbers.items() if name not in _NO_WEIGHTS):
        return False
    if any(isinstance(value, Mapping) and not name.startswith(_PLAIN) for name, value in config.items()):
        return False
    if not {"vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"} <= sizes.keys():
        return False
    if any("wpe" in name or "position" in name for name in shapes):
        return False
    heads, hidden = sizes["num_attention_heads"], sizes["hidden_size"]
    width = sizes.get("head_dim") or hidden // max(heads, 1)
    wanted = {sizes["intermediate_size"], heads * width, sizes.get("num_key_value_heads", heads) * width}
    found = set(shapes.values())
    return (sizes["vocab_size"], hidden) in found and wanted <= _lengths(found)


def _lengths(shapes: Iterable[tuple[int, ...]]) -> set[int]:
    return {length for shape in shapes for length in shape}
