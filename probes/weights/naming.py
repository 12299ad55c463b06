"""Where a tensor sits, from its name (layer, module, expert), and which of its rows belong to which head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from einops import rearrange

from workbench.engine.families import FAMILIES, LLAMA, Family
from workbench.errors import NotSupported
from workbench.typing import Tensor

_IN_LAYER = re.compile(r"(?:^|\.)(?:layers|h|layer|blocks)\.(\d+)\.(.+)$")
_EXPERT = re.compile(r"^(.*experts)\.(\d+)\.(.+)$")
_CONV1D = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


@dataclass(frozen=True)
class Place:
    """``module`` is the path inside the layer (in the model, when ``layer`` is None) without ``.weight``."""

    layer: int | None
    module: str
    expert: int | None = None


def place_of(name: str) -> Place:
    """``model.layers.3.mlp.experts.5.w1.weight`` -> layer 3, module ``mlp.experts.w1``, expert 5."""
    match = _IN_LAYER.search(name)
    rest = (match[2] if match else key_of(name)).removesuffix(".weight")
    layer = int(match[1]) if match else None
    if expert := _EXPERT.match(rest):
        return Place(layer, f"{expert[1]}.{expert[3]}", int(expert[2]))
    return Place(layer, rest)


def key_of(name: str) -> str:
    """The name without the wrapper some checkpoints leave out (``transformer.h.0...`` and ``h.0...``)."""
    return name.removeprefix("base_model.model.").removeprefix("transformer.").removeprefix("model.")


@dataclass(frozen=True)
class Layout:
    """How a family lays its heads out in its attention weights, and which weights it keeps transposed."""

    n_heads: int
    n_kv_heads: int
    family: Family = LLAMA
    transposed: bool = False
    """GPT-2 keeps [into, out]."""
    experts_transposed: bool = False
    """GPT-OSS keeps [expert, into, out]."""
    no_heads: str = ""
    """Why no weight can be split by head; empty where it can."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Layout:
        """From a config.json or a config's ``to_dict()``; multimodal configs by their text part."""
        text = {**config, **(config.get("text_config") or {})}
        heads = text.get("num_attention_heads") or text.get("n_head") or 0
        kind = text.get("model_type", "")
        if kind not in FAMILIES:
            return cls._resolved(config)
        return cls(
            n_heads=heads,
            n_kv_heads=text.get("num_key_value_heads") or heads,
            family=FAMILIES[kind],
            transposed=kind == "gpt2",
            experts_transposed=kind == "gpt_oss",
        )

    @classmethod
    def _resolved(cls, config: Mapping[str, Any]) -> Layout:
        """Outside the table, as the engine resolves it; without heads where the engine does not know their place."""
        from workbench.engine.from_config import head_map

        try:
            heads = head_map(config)
        except NotSupported as error:
            return cls(n_heads=0, n_kv_heads=0, no_heads=str(error))
        return cls(heads.n_heads, heads.n_kv_heads, heads.family, heads.transposed)

    def turned(self, module: str, ndim: int) -> bool:
        """Whether the module keeps its weight as [into, out]."""
        if self.transposed and ndim == 2:
            return module in _CONV1D
        return self.experts_transposed and ndim == 3 and "experts" in module

    def oriented(self, module: str, tensor: Tensor) -> Tensor:
        """The tensor as [out, into] (or [expert, out, into]); a view."""
        return tensor.mT if self.turned(module, tensor.ndim) else tensor

    def is_output(self, module: str) -> bool:
        """Whether the module is the attention output projection, whose columns are the heads."""
        return module == self.family.output and self.n_heads > 0

    def head_rows(self, module: str, rows: int) -> dict[str, tuple[int, ...]]:
        """Part -> the shape the first axis of q, k, v weights takes, heads first; empty for other modules.

        ``("q", (heads, d_head))`` says that reshaping the rows so puts head h at index h.
        """
        name = module.removesuffix(".bias")
        heads, shared = self.n_heads, self.n_kv_heads
        family = self.family
        if not heads:
            return {}
        if name.endswith((".q_b_proj", ".kv_b_proj")) and rows % heads == 0:
            return {"q" if ".q_b" in name else "kv": (heads, rows // heads)}
        if name not in (family.query, family.key, family.value):
            return {}
        if family.fused == "separate":
            part = "q" if name == family.query else "k" if name == family.key else "v"
            count = heads if part == "q" else shared
            return {part: (count, rows // count)} if rows % count == 0 else {}
        width = rows // (heads + 2 * shared)
        return {"q": (heads, width), "k": (shared, width), "v": (shared, width)}

    def split(self, module: str, per_row: Tensor) -> dict[str, Tensor]:
        """Part -> [head, row, ...] views of what has an entry (or row) per output row of a q, k, v weight."""
        shapes = self.head_rows(module, per_row.shape[0])
        if len(shapes) == 3 and self.family.fused == "per_head":
            by_part = rearrange(per_row, "(head part d_head) ... -> part head d_head ...", head=shapes["q"][0], part=3)
            return dict(zip("qkv", by_part, strict=True))
        parts, start = {}, 0
        for part, (count, width) in shapes.items():
            rows = per_row[start : start + count * width]
            parts[part] = rearrange(rows, "(head d_head) ... -> head d_head ...", head=count)
            start += count * width
        return parts
