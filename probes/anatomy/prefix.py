"""prefix_gates: prefix tuning as a gated offset of every head, h <- (1 - g) h + g dh, exactly (He et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from probes.anatomy.virtual_tokens import prompts_of
from probes.call_settings import call_settings
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from workbench.errors import UserError
from workbench.figures.weights import cell_map
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.models.virtual_tokens import PREFIXES, VirtualTokens, open_virtual_tokens
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts
from workbench.typing import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class PrefixGates(ProbeResult):
    """One row per head: what a prefix does to its output at the last token.

    ``score``: the gate g, the attention that goes to the prefix, the mean over texts; ``control``: the same of a random
    prefix whose keys and values have the same spread in every head, ``q`` of the difference. ``change``: ||g (dh - h)||
    as a share of ||h||; ``constant``: the squared norm of the mean change as a share of the mean squared norm (1: the
    prefix is a fixed offset of the head). ``cosine``: of the change with that of every other prefix in ``others``, the
    mean (NaN without). ``gap``: the largest relative difference of (1 - g) h + g dh from the head's own output: how
    exact the form is.
    """

    gap: float
    virtual: int

    title: ClassVar[str] = "Gates of a prefix"
    unit: ClassVar[str] = "attention that goes to the prefix"

    def figure(self) -> go.Figure:
        """Layer by head."""
        return cell_map(self.table, "head", title=self.title, unit=self.unit)

    def summary(self) -> str:
        best = self.frame().iloc[0]
        return (
            f"{self.virtual} virtual tokens; the gate is widest at L{best['layer']:.0f}H{best['head']:.0f}: "
            f"{best['score']:.2f} [{best['low']:.2f}, {best['high']:.2f}] (random prefix {best['control']:.2f}); mean "
            f"gate {self.table['score'].mean():.2f}; {self.table['constant'].mean():.2f} of the change is a fixed "
            f"offset; h <- (1 - g) h + g dh to {self.gap:.1g}. Control: {self.control}."
        )


@method(
    "prefix-gates",
    group="weights",
    question="How far does a prefix open each head, and is it more than a fixed offset?",
    papers=(
        "Control Prefixes for Parameter-Efficient Text Generation",
        "Towards a Unified View of Parameter-Efficient Transfer Learning",
    ),
    needs=Needs(folders=True),
    cost="two forward passes per text, and one for each other prefix",
    example="--texts prompts.jsonl",
)
def prefix_gates(
    base: Any,
    tuned: Any = None,
    *,
    texts: Annotated[Any, As("file")] = None,
    others: Sequence[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> PrefixGates:
    """Take the output of every head apart into what it reads from the words and what from the prefix.

    Prefixes of several attributes (control prefixes) are compared with ``others``: where two prefixes push a head the
    same way, and where they differ.

    Args:
        base: The base: a model, a folder or a hub id.
        tuned: The prefix adapter: its folder, or a ``PeftModel``.
        texts: Prompts, or their file.
        others: Folders of other prefixes over the same base, of other values of the attribute.
        seed: Of the random prefix and the intervals.

    Raises:
        UserError: No texts, or no adapter of prefixes.
    """
    if texts is None:
        raise UserError("The gates of a prefix depend on the text: give texts, prompts or a file of them.")
    rows = prompts_of(texts)
    opened = _prefix(base, tuned)
    watch = progress or Silent()
    watch.start("prefix gates", len(rows) * (2 + len(others)))
    prefix = _prefix_of(opened)
    own = _split(opened, rows, prefix, watch)
    random = _split(opened, rows, _random_like(prefix, seed), watch)
    more = [_split(opened, rows, _prefix_of(_prefix(opened.base, other)), watch) for other in others]
    watch.finish()
    return PrefixGates(
        table=_table(own, random, more, rows.clusters, seed),
        control="a random prefix whose keys and values have the same mean size and spread in every head",
        provenance=Provenance.of(
            "prefix_gates", {"base": opened.base, "tuned": opened}, rows, seed=seed, device=str(opened.base.device),
            forward_passes=len(rows) * (2 + len(others)),
            settings=call_settings(None, texts=texts if isinstance(texts, str) else rows),
        ),
        gap=own.gap,
        virtual=prefix[0][0].shape[2],
    )  # fmt: skip


Prefix = list[tuple[Tensor, Tensor]]
"""Per layer: keys and values [1, kv_head, token, d_head]."""


@dataclass(frozen=True)
class _Split:
    """``gate`` [text, layer, head]; ``change`` [text, layer, head, d_head]: g (dh - h); ``words``: ||h||."""

    gate: Float[Tensor, "text layer head"]
    change: Float[Tensor, "text layer head d_head"]
    words: Float[Tensor, "text layer head"]
    gap: float


def _prefix(base: Any, tuned: Any) -> VirtualTokens:
    opened = open_virtual_tokens(base, tuned)
    if opened.kind not in PREFIXES:
        raise UserError(f"{opened.name} is a {opened.kind} adapter: its virtual tokens are read with virtual_tokens.")
    return opened


@torch.no_grad()
def _prefix_of(opened: VirtualTokens) -> Prefix:
    """Keys and values as PEFT makes them for the model's cache."""
    cache = opened.peft_model.get_prompt(batch_size=1)
    if hasattr(cache, "self_attention_cache"):
        cache = cache.self_attention_cache
    if hasattr(cache, "layers"):
        return [(layer.keys.detach(), layer.values.detach()) for layer in cache.layers]
    return [(layer[0].detach(), layer[1].detach()) for layer in cache]


def _random_like(prefix: Prefix, seed: int) -> Prefix:
    generator = torch.Generator().manual_seed(seed)

    def like(part: Tensor) -> Tensor:
        size = part.float().square().mean((-1, -2), keepdim=True).sqrt()
        return (torch.randn(part.shape, generator=generator).to(part.device) * size).to(part.dtype)

    return [(like(keys), like(values)) for keys, values in prefix]


@torch.no_grad()
def _split(opened: VirtualTokens, rows: Prompts, prefix: Prefix, watch: Progress) -> _Split:
    from transformers import DynamicCache

    model, taken = opened.base, []
    with _eager(model.hf), _heads_of(model) as outputs:
        for place in tracked(range(len(rows)), watch):
            ids = model.encode(rows[[place]]).input_ids
            cache = DynamicCache()
            for layer, (keys, values) in enumerate(prefix):
                cache.update(keys.to(model.device).clone(), values.to(model.device).clone(), layer)
            mask = torch.ones(1, prefix[0][0].shape[2] + ids.shape[1], dtype=torch.long, device=model.device)
            output = model.hf(
                input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, output_attentions=True
            )
            taken.append(_apart(output.attentions, cache, outputs, prefix[0][0].shape[2]))
    gate, change, words, gaps = (torch.stack(list(part)) for part in zip(*taken, strict=True))
    return _Split(gate, change, words, float(gaps.max()))


def _apart(attentions: Sequence[Tensor], cache: Any, outputs: dict[int, Tensor], count: int) -> tuple[Tensor, ...]:
    """Gate, change, ||h|| and the gap of every head at the last token of one text."""
    gates, changes, sizes, gaps = [], [], [], []
    for layer, pattern in enumerate(attentions):
        weights = pattern[0, :, -1].double().cpu()
        values = cache.layers[layer].values[0].double().cpu()
        values = values.repeat_interleave(len(weights) // len(values), 0)
        gate = weights[:, :count].sum(-1)
        words = torch.einsum("hk,hkd->hd", weights[:, count:], values[:, count:]) / (1 - gate).clamp_min(1e-30)[:, None]
        offset = torch.einsum("hk,hkd->hd", weights[:, :count], values[:, :count]) / gate.clamp_min(1e-30)[:, None]
        form = (1 - gate)[:, None] * words + gate[:, None] * offset
        own = outputs[layer].double().cpu().view_as(form)
        gaps.append((form - own).norm(dim=-1).max() / own.norm(dim=-1).max().clamp_min(1e-30))
        gates.append(gate)
        changes.append(gate[:, None] * (offset - words))
        sizes.append(words.norm(dim=-1))
    return torch.stack(gates), torch.stack(changes), torch.stack(sizes), torch.stack(gaps)


@contextmanager
def _eager(hf: Any) -> Iterator[None]:
    before = hf.config.get_text_config()._attn_implementation
    hf.set_attn_implementation("eager")
    try:
        yield
    finally:
        hf.set_attn_implementation(before)


@contextmanager
def _heads_of(model: Any) -> Iterator[dict[int, Tensor]]:
    """The heads' own outputs at the last token, by layer: what the output projection reads."""
    seen: dict[int, Tensor] = {}
    handles = []
    try:
        for layer in range(model.n_layers):
            path = f"{model.hub.family.layers}.{layer}.{model.hub.family.output}"

            def hook(_: Any, args: tuple[Tensor, ...], layer: int = layer) -> None:
                seen[layer] = args[0][0, -1].detach()

            handles.append(model.hf.get_submodule(path).register_forward_pre_hook(hook))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _table(own: _Split, random: _Split, more: list[_Split], clusters: np.ndarray, seed: int) -> pd.DataFrame:
    rows = []
    layers, heads = own.gate.shape[1:]
    for layer in range(layers):
        for head in range(heads):
            gate, chance = own.gate[:, layer, head].numpy(), random.gate[:, layer, head].numpy()
            change = own.change[:, layer, head]
            alike = [
                float(torch.cosine_similarity(change, other.change[:, layer, head], dim=-1).mean()) for other in more
            ]
            rows.append({
                "layer": layer, "head": head, **beside_control(gate, chance, clusters, seed=seed),
                "change": float((change.norm(dim=-1) / own.words[:, layer, head].clamp_min(1e-30)).mean()),
                "constant": float(change.mean(0).square().sum() / change.square().sum(-1).mean().clamp_min(1e-30)),
                "cosine": float(np.mean(alike)) if alike else np.nan, "n": len(gate),
            })  # fmt: skip
    return with_q(rows, keep_p=False)
