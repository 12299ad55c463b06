"""Recording through vLLM: its forward passes, our rows, shards and statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import pad

from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel
from workbench.prompts.encode import Encoded
from workbench.recording.capture import Capture, Captured
from workbench.recording.plan import Plan
from workbench.typing import Float, Int, Tensor
from workbench.vllm.layout import check_site
from workbench.vllm.route import route_of
from workbench.vllm.running import VllmEngine


@dataclass(frozen=True)
class VllmCapture(Capture):
    """Reads resid_post, attn_out and mlp_out of both models in the vLLM engine around it."""

    def run(self, model: AdaptedModel, batch: Encoded, prompt_lengths: Int[Tensor, " row"] | None) -> Captured:
        """One prefill of ``model``; nothing is generated but the token that vLLM always writes."""
        ids, mask = batch.input_ids, batch.attention_mask
        ctx = ForwardContext(ids.shape[0], 0, ids.shape[1], ids.device, ids, mask, given_prompt_lengths=prompt_lengths)
        rows = [row[marks.bool()].tolist() for row, marks in zip(ids, mask, strict=True)]
        read: dict[tuple[int, Site], list[Tensor]] = {(n, site): [] for n in range(len(rows)) for site in self.sites}
        hooks = {n: [SiteHook(site, _reader(read[n, site])) for site in self.sites] for n in range(len(rows))}
        engine_of(model).run(model.role, rows, model, hooks, max_tokens=1)
        taken = Captured()
        self._locate(ctx, taken)
        for site in self.sites:
            whole = [_padded(read[n, site], len(rows[n]), ids.shape[1]) for n in range(len(rows))]
            self._reader(site, taken)(torch.stack(whole), ctx)
        return taken


def _reader(parts: list[Tensor]) -> Any:
    def read(value: Float[Tensor, "1 pos feature"], _ctx: ForwardContext) -> None:
        parts.append(value[0].detach().to("cpu", copy=True))

    return read


def _padded(parts: Sequence[Tensor], length: int, width: int) -> Float[Tensor, "pos feature"]:
    """The prompt's tokens, which may have come in several steps, behind as much padding as the batch has."""
    return pad(torch.cat(list(parts))[:length], (0, 0, width - length, 0))


def check_recordable(sites: Sequence[Site], *, logits: bool) -> None:
    """Raise :class:`NotSupported` for what vLLM cannot give, before an engine starts."""
    if logits:
        raise NotSupported("vLLM gives no logits of prompts here: record them with the local executor.")
    for site in sites:
        check_site(site)


def engine_of(model: AdaptedModel) -> VllmEngine:
    """The engine that is open around this call."""
    route = route_of(model)
    assert route is not None
    return route.engine


def continued(models: Mapping[str, AdaptedModel], before: Plan, new_tokens: int, writer: str) -> list[list[int]]:
    """The token ids of every prompt with its greedy continuation, to the first end token."""
    made = engine_of(models[writer]).run(writer, before.ids, models[writer], max_tokens=new_tokens)
    return [ids + new for ids, new in zip(before.ids, made, strict=True)]
