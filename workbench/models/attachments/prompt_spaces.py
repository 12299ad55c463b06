"""A soft prompt made of a short prompt and a low-rank one, fused, and seen through several gated spaces (EPT)."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import nn

from workbench.engine.hub import Hub
from workbench.models.attachments.attachment import Attachment, Handle, check_width
from workbench.prompts.prompt_rows import PromptRows, rows_read
from workbench.typing import Float, Tensor


class PromptSpaces(Attachment):
    """Rows = F + sum_k g_k (F D_k) U_k in the place of placeholders in front of a prompt (Lan et al. 2024).

    F = P + softmax(P K' / sqrt(d)) K is the fused prompt: P [row, d_model] is short, and K are the rows of A B (of low
    rank, standing for a longer prompt) and those of P. g is a softmax over the spaces, from each row of F. A B and U
    start at 0. The low-rank part is a source of the fusion and is not added to the words of the text, whose positions
    a decoder's answer would go on counting.
    """

    kind = "prompt spaces"

    def __init__(
        self, d_model: int, placeholder: int, tokens: int = 8, length: int = 32, rank: int = 4, spaces: int = 3,
        width: int = 8, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self._settings = {"d_model": d_model, "placeholder": placeholder, "tokens": tokens, "length": length,
                          "rank": rank, "spaces": spaces, "width": width}  # fmt: skip
        self.rows = PromptRows(placeholder, tokens)
        self.short = nn.Parameter(torch.zeros(tokens, d_model))
        self.low_left = nn.Parameter(torch.randn(length, rank, generator=generator) / rank**0.5)
        self.low_right = nn.Parameter(torch.zeros(rank, d_model))
        self.space_down = nn.Parameter(torch.randn(spaces, d_model, width, generator=generator) / d_model**0.5)
        self.space_up = nn.Parameter(torch.zeros(spaces, width, d_model))
        self.gate = nn.Parameter(torch.randn(d_model, spaces, generator=generator) / d_model)

    def settings(self) -> dict[str, Any]:
        return dict(self._settings)

    def parts(self) -> dict[str, tuple[str, int | None]]:
        """The short prompt, the low-rank one, and every space."""
        spaces: dict[str, tuple[str, int | None]] = {f"space {k}": ("space_up", k) for k in range(len(self.space_up))}
        return {"short prompt": ("short", None), "low-rank prompt": ("low_right", None), **spaces}

    def check(self, hub: Hub) -> None:
        check_width(hub, self._settings["d_model"])

    def installed(self, hub: Hub) -> list[Handle]:
        def put(_module: nn.Module, args: Any, embedded: Tensor) -> Tensor | None:
            return rows_read(args[0], self._settings["placeholder"], self.vectors(), embedded)

        return [hub.hf.get_input_embeddings().register_forward_hook(put, prepend=True)]

    def fused(self) -> Float[Tensor, "row d_model"]:
        """The short prompt with what it takes from the low-rank one and from itself."""
        known = torch.cat([self.low_left @ self.low_right, self.short])
        return self.short + (self.short @ known.T / known.shape[1] ** 0.5).softmax(-1) @ known

    def gate_weights(self) -> Float[Tensor, "row space"]:
        """The weight of each space in each row; rows sum to 1."""
        fused = self.fused()
        return (nn.functional.normalize(fused, dim=-1) * fused.shape[1] ** 0.5 @ self.gate).softmax(-1)

    def vectors(self) -> Float[Tensor, "row d_model"]:
        """What stands in the place of the placeholders."""
        fused = self.fused()
        seen = torch.einsum("td,kdw,kwe->tke", fused, self.space_down, self.space_up)
        return fused + (self.gate_weights()[..., None] * seen).sum(1)

    @torch.no_grad()
    def gates(self) -> pd.DataFrame:
        """A line per row and space: ``weight`` of the gate, ``even`` (what a gate that prefers none gives), ``size``:
        the norm of what the space adds, in norms of the fused row."""
        weights, fused = self.gate_weights().cpu(), self.fused().cpu()
        seen = torch.einsum("td,kdw,kwe->tke", fused, self.space_down.cpu(), self.space_up.cpu())
        size = weights * seen.norm(dim=-1) / fused.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        lines = [{"row": t, "space": k, "weight": float(weights[t, k]), "even": 1 / weights.shape[1],
                  "size": float(size[t, k])} for t in range(len(weights)) for k in range(weights.shape[1])]  # fmt: skip
        return pd.DataFrame(lines)
