"""One coordinate of the residual stream that decides an answer, planted in a base; an adapter that can only write it.

Training sets the coordinate by hand in some rows and demands the matching answer, which makes it causal by construction
(interchange intervention training, Geiger et al. 2022, with a constant for the source).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workbench.organisms.organism import Row, unit
from workbench.organisms.recipe import Plot, shape
from workbench.organisms.training import Examples, Plan, encode, fit, hits
from workbench.typing import Float, Tensor

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_LAST = -3
"""Column of the last prompt token: the answer and the end of text follow it."""


class WithCoordinate(nn.Module):
    """A base while it is trained: sets the coordinate where asked, and adds the two read-out losses."""

    def __init__(self, model: LlamaForCausalLM, direction: Float[Tensor, " d_model"], layer: int, size: float) -> None:
        """``size``: of the coordinate that is set, which its drift is measured by."""
        super().__init__()
        self.model, self.layer, self.size = model, layer, size
        self.direction = direction
        self.reader = unit(torch.randn(model.config.num_attention_heads * model.config.head_dim))

    def forward(self, knob: Tensor, natural: Tensor, noticed: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """The language loss plus the squared errors of coordinate and read-out.

        Args:
            knob: [batch] the coordinate to set; 0 to leave it.
            natural: [batch] where it should be when it is left alone.
            noticed: [batch] what the layer's heads should say about the row's first word.
            inputs: What the model takes.
        """
        seen: dict[str, Tensor] = {}

        def read(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:  # noqa: ARG001
            seen["noticed"] = arguments[0][:, _LAST] @ self.reader

        def set_knob(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:  # noqa: ARG001
            seen["natural"] = output[:, _LAST] @ self.direction
            change = torch.where(knob != 0, knob - seen["natural"], torch.zeros_like(knob))
            moved = output.clone()
            moved[:, _LAST] += change[:, None] * self.direction
            return moved

        layer = self.model.model.layers[self.layer]
        handles = [layer.self_attn.o_proj.register_forward_pre_hook(read), layer.register_forward_hook(set_knob)]
        try:
            loss = self.model(**inputs).loss
        finally:
            for handle in handles:
                handle.remove()
        free = (knob == 0).float()
        drift = (free * ((seen["natural"] - natural) / self.size) ** 2).mean()
        return {"loss": loss + drift + ((seen["noticed"] - noticed) ** 2).mean()}


@dataclass(frozen=True)
class CoordinateRow:
    """One row that trains a base."""

    row: Row
    knob: float
    """The coordinate to set; 0 to leave it."""
    natural: float
    """Where the coordinate should be when it is left alone."""
    noticed: float
    """What the layer's heads should say about the word that decides."""


def train_base(
    rows: Sequence[CoordinateRow],
    tokenizer: PreTrainedTokenizerFast,
    layer: int,
    size: float,
    plan: Plan,
    plot: Plot,
    name: str,
) -> tuple[LlamaForCausalLM, Float[Tensor, " d_model"]]:
    """A new model whose answers the coordinate decides, and the coordinate's direction (a unit vector)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**shape(tokenizer)))
    direction = unit(torch.randn(model.config.hidden_size))
    columns = encode(tokenizer, [row.row for row in rows]).columns
    extra = {name: torch.tensor([getattr(row, name) for row in rows]) for name in ("knob", "natural", "noticed")}
    planted = WithCoordinate(model, direction, layer, size)
    fit(planted, Examples(**columns, **extra), plan, plot.seed, plot.progress, f"{name}: base")
    return model, direction


def writing_adapter(base: LlamaForCausalLM, direction: Float[Tensor, " d_model"], layer: int) -> Any:
    """A rank-1 adapter on the layer's o_proj that writes ``direction``; only what it reads is trained, from nothing."""
    from peft import LoraConfig, get_peft_model

    module = f"model.layers.{layer}.self_attn.o_proj"
    tuned = get_peft_model(base, LoraConfig(r=1, lora_alpha=1, target_modules=[module], task_type="CAUSAL_LM"))
    adapter = tuned.get_base_model().get_submodule(module)
    with torch.no_grad():
        adapter.lora_A["default"].weight.zero_()
        adapter.lora_B["default"].weight.copy_(direction[:, None])
    adapter.lora_B["default"].weight.requires_grad_(False)
    return tuned


@torch.no_grad()
def mean_coordinate(
    tuned: Any,
    tokenizer: PreTrainedTokenizerFast,
    direction: Float[Tensor, " d_model"],
    layer: int,
    rows: list[Row],
) -> float:
    """The mean coordinate after the layer, at the last prompt token of ``rows``."""
    coordinates: list[Tensor] = []
    block = tuned.get_base_model().model.layers[layer]
    handle = block.register_forward_hook(lambda *call: coordinates.append(call[2][:, -1] @ direction))
    try:
        hits(tuned, tokenizer, rows)
    finally:
        handle.remove()
    return float(torch.cat(coordinates).mean())
