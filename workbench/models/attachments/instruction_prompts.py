"""Prompt rows at every layer, made anew from each instruction by a small generator of that layer (IAPT)."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pandas as pd
import torch
from torch import nn

from workbench.engine.hub import Hub
from workbench.errors import UserError
from workbench.models.attachments.attachment import Attachment, Handle, before_layer, check_width
from workbench.prompts.prompt_rows import PromptRows, row_numbers
from workbench.typing import Bool, Float, Int, Tensor

_DEGREES = (6, 4)
"""Coefficients of an activation's numerator (from the constant) and denominator (from x)."""


class InstructionPrompts(Attachment):
    """c_l + f_l(pool_l(h D_l)) U_l added at each layer to the placeholders behind an instruction (Zhu et al. 2024).

    pool_l: each row's learnt query attends over the instruction's tokens, those before the placeholders. f_l is a
    rational function, learnt for each layer, that starts at GELU. The paper's rows replace the former layer's; here
    they are added to what stands there, so that training starts at the base (U and c are 0 at first), and they stand
    behind the instruction, so that nothing read of it comes later than it and cached decoding is the same.
    """

    kind = "instruction prompts"

    def __init__(
        self, d_model: int, layers: int, placeholder: int, tokens: int = 4, width: int = 8, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self._settings = {"d_model": d_model, "layers": layers, "placeholder": placeholder, "tokens": tokens,
                          "width": width}  # fmt: skip
        self.rows = PromptRows(placeholder, tokens, behind=True)
        self.down = nn.Parameter(torch.randn(layers, d_model, width, generator=generator) / d_model**0.5)
        self.queries = nn.Parameter(torch.randn(layers, tokens, width, generator=generator))
        self.activation = nn.Parameter(_gelu_as_rational().repeat(layers, 1))
        self.up = nn.Parameter(torch.zeros(layers, width, d_model))
        self.constant = nn.Parameter(torch.zeros(layers, tokens, d_model))
        self.realised: dict[int, Float[Tensor, "batch row d_model"]] = {}
        """Layer -> the rows of the last pass that had placeholders."""
        self._here: Bool[Tensor, "batch pos"] | None = None
        self._instruction: Bool[Tensor, "batch pos"] | None = None

    def settings(self) -> dict[str, Any]:
        return dict(self._settings)

    def parts(self) -> dict[str, tuple[str, int | None]]:
        """Of each layer: what it makes of the instruction, and what it adds whatever the instruction is."""
        layers = range(len(self.up))
        own: dict[str, tuple[str, int | None]] = {f"L{k} instruction": ("up", k) for k in layers}
        return own | {f"L{k} constant": ("constant", k) for k in layers}

    def check(self, hub: Hub) -> None:
        check_width(hub, self._settings["d_model"], self._settings["layers"])

    def installed(self, hub: Hub) -> list[Handle]:
        begin = hub.hf.base_model.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True)
        return [begin, *(before_layer(hub, k, partial(self._write, k)) for k in range(len(self.up)))]

    def made(
        self, layer: int, stream: Float[Tensor, "batch pos d_model"], instruction: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch row d_model"]:
        """The rows of a layer for each instruction."""
        read = nn.functional.rms_norm(stream.float(), stream.shape[-1:]) @ self.down[layer]
        scores = torch.einsum("mw,btw->bmt", self.queries[layer], read) / read.shape[-1] ** 0.5
        hidden = ~instruction[:, None, :] & instruction.any(-1)[:, None, None]
        pooled = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ read
        return self.constant[layer] + rational(pooled, self.activation[layer]) @ self.up[layer]

    @torch.no_grad()
    def activations(self, points: int = 33) -> pd.DataFrame:
        """A line per layer and x in [-4, 4]: the learnt activation ``y``, and ``start``, that before training."""
        x = torch.linspace(-4, 4, points)
        start = rational(x, _gelu_as_rational())
        learnt = [rational(x, coefficients.cpu()) for coefficients in self.activation]
        return pd.DataFrame([
            {"layer": k, "x": float(x[n]), "y": float(learnt[k][n]), "start": float(start[n])}
            for k in range(len(learnt)) for n in range(points)
        ])  # fmt: skip

    def _begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids, mask = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask")
        here = None if ids is None else ids == self._settings["placeholder"]
        self._here = here if here is not None and bool(here.any()) else None
        if self._here is None or ids is None:
            return
        if mask is not None and (mask.ndim != 2 or mask.shape != ids.shape):
            raise UserError("Instruction prompts need the attention mask as one number per token: [batch, pos].")
        real = torch.ones_like(self._here) if mask is None else mask.bool()
        self._instruction = real & (self._here.long().cumsum(-1) == 0) & self._here.any(-1, keepdim=True)
        self.realised = {}

    def _write(self, layer: int, stream: Tensor) -> Tensor | None:
        here: Bool[Tensor, "batch pos"] | None = self._here
        if here is None or self._instruction is None:
            return None
        rows = self.made(layer, stream, self._instruction)
        self.realised[layer] = rows.detach()
        which: Int[Tensor, "batch pos"] = row_numbers(here, rows.shape[1])
        added = rows.gather(1, which[..., None].expand(-1, -1, rows.shape[-1]))
        return torch.where(here[..., None], stream + added.to(stream), stream)


def rational(x: Tensor, coefficients: Float[Tensor, " coefficient"]) -> Tensor:
    """P(x) / (1 + |Q(x)|), which has no pole; coefficients of P from the constant, then of Q from x."""
    over, under = coefficients[: _DEGREES[0]], coefficients[_DEGREES[0] :]
    top = sum(value * x**power for power, value in enumerate(over))
    return top / (1 + sum(value * x ** (power + 1) for power, value in enumerate(under)).abs())


@cache
def _gelu_as_rational() -> Float[Tensor, " coefficient"]:
    """The coefficients nearest to GELU on [-4, 4]; the denominator has even powers alone."""
    x = torch.linspace(-4, 4, 401, dtype=torch.float64)
    y = nn.functional.gelu(x)
    columns = [x**power for power in range(_DEGREES[0])] + [-y * x**2, -y * x**4]
    solved = torch.linalg.lstsq(torch.stack(columns, 1), y[:, None]).solution[:, 0]
    zero = torch.zeros(1, dtype=torch.float64)
    return torch.cat([solved[: _DEGREES[0]], zero, solved[-2:-1], zero, solved[-1:]]).float()
