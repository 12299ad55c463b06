"""Adapters of any kind in one form, h <- h + dh at a site: how large dh is, where it points, what it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch

from interventions.weightspace.adapter_scale import AdapterScale, adapted_layers
from probes.lens import kl
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from probes.weights.naming import place_of
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.models.weight_changes import effective_delta
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts
from workbench.typing import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class AdapterPanel(ProbeResult):
    """One row per adapted module.

    ``score``: ||dh|| / ||h|| at the module's output, the mean over a prompt's tokens, then over prompts; ``control``:
    what a Gaussian change of weights with the adapter's norm would make of the same inputs (expected value; NaN for
    what has no one change of weights); ``q`` of the difference. ``cosine``: of dh with h; ``ablated``: KL (nats) of the
    next word with this module's part switched off from the tuned model's, the mean over prompts. ``tokens``: prompt,
    position (from the last, 0), module and ||dh||.
    """

    tokens: pd.DataFrame

    title: ClassVar[str] = "The adapter's change at each site"
    unit: ClassVar[str] = "‖Δh‖ / ‖h‖"

    def summary(self) -> str:
        best = self.frame().iloc[0]
        worst = self.table.sort_values("ablated").iloc[-1]
        return (
            f"{len(self.table)} sites; dh is largest at L{best['layer']:.0f} {best['module']}: {best['score']:.3g} "
            f"[{best['low']:.3g}, {best['high']:.3g}] of h (a Gaussian change of that norm: {best['control']:.3g}); "
            f"switching off L{worst['layer']:.0f} {worst['module']} moves the next word most ({worst['ablated']:.3g} "
            f"nats). Control: {self.control}."
        )


@method(
    "adapter-panel",
    group="weights",
    question="Where does an adapter change the stream, how much, in which direction, and does it matter?",
    papers=("Towards a Unified View of Parameter-Efficient Transfer Learning",),
    needs=Needs(adapter=True),
    cost="one forward pass, and one per adapted module for the ablation",
    any_adapter="whether a module is changed otherwise than by Gaussian numbers in place of its adapter's",
)
def adapter_panel(
    pair: Any, prompts: Any, *, ablate: bool = True, seed: int = 0, progress: Progress | None = None
) -> AdapterPanel:
    """dh = output with the adapter - output without it, on the tuned model's own inputs, for any kind of adapter layer.

    So LoRA, DoRA, IA3, VeRA, SHiRA and others are read alike, those that depend on the input too.

    Args:
        pair: A pair whose tuned model is an adapter.
        prompts: Any prompts.
        ablate: Also switch off each module alone.
        seed: Of the intervals.

    Raises:
        UserError: The tuned model carries no adapter.
    """
    check_pair(pair)
    if pair.adapter is None:
        raise UserError(
            "The tuned model carries no adapter: give an adapter's folder or a PeftModel as the tuned model."
        )
    rows = Prompts.of(prompts)
    model: AdaptedModel = pair.tuned
    encoded = model.encode(rows)
    real = encoded.attention_mask.bool().cpu()
    watch = progress or Silent()
    with torch.no_grad():
        with _recorded(model, real) as seen:
            before = model.forward(encoded, logits="last")
        assert before is not None
        layers = [path for path, _ in adapted_layers(model) if path in seen]
        watch.start("adapter panel", len(layers))
        table = []
        for path in tracked(layers, watch):
            ablated = _ablated(model, encoded, path, before) if ablate else np.full(len(rows), np.nan)
            place = place_of(path)
            where = {"layer": place.layer, "module": place.module}
            table.append({**where, **_row(seen[path], _norm(pair, path), ablated, rows.clusters, seed)})
        watch.finish()
    return AdapterPanel(
        table=with_q(table, keep_p=False),
        control="a Gaussian change of weights with the norm of the adapter's, on the same inputs (expected value)",
        provenance=Provenance.of(
            "adapter_panel", pair, rows, seed=seed, forward_passes=1 + (len(layers) if ablate else 0),
        ),
        tokens=_tokens(seen),
    )  # fmt: skip


@dataclass(frozen=True)
class _Seen:
    """Norms at the real tokens of the prompts, [prompt, pos]; NaN at padding."""

    change: Float[Tensor, "prompt pos"]
    before: Float[Tensor, "prompt pos"]
    inputs: Float[Tensor, "prompt pos"]
    cosine: Float[Tensor, "prompt pos"]
    width: int


@contextmanager
def _recorded(model: AdaptedModel, real: Tensor) -> Iterator[dict[str, _Seen]]:
    """Each adapter layer also computes its output without the adapter; nothing else changes."""
    seen: dict[str, _Seen] = {}
    held = []
    try:
        for path, layer in adapted_layers(model):
            held.append((layer, layer.__dict__.get("forward")))
            layer.forward = _twice(path, layer, real, seen)
        yield seen
    finally:
        for layer, own in held:
            del layer.__dict__["forward"]
            if own is not None:
                layer.forward = own


def _twice(path: str, layer: Any, real: Tensor, seen: dict[str, _Seen]) -> Any:
    whole = layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        after, active = whole(*args, **kwargs), layer._active_adapter
        layer._active_adapter = []
        try:
            before = whole(*args, **kwargs)
        finally:
            layer._active_adapter = active
        if isinstance(after, torch.Tensor) and after.shape[:2] == real.shape and args[0].shape[:2] == real.shape:
            change, out = (after - before).float().cpu(), before.float().cpu()
            cosine = torch.nn.functional.cosine_similarity(change, out, dim=-1)
            inputs = args[0].float().cpu()
            norms = [part.norm(dim=-1) if part.ndim == 3 else part.float() for part in (change, out, inputs)]
            masked = [part.masked_fill(~real, torch.nan) for part in (*norms, cosine)]
            seen[path] = _Seen(masked[0], masked[1], masked[2], masked[3], inputs.shape[-1])
        return after

    return forward


def _norm(pair: Any, path: str) -> float:
    """||dW||; NaN where there is no one change of weights."""
    from workbench.errors import NotSupported

    try:
        return float(effective_delta(pair.adapter, path, base=None if pair.one_copy else pair.base.hf).norm())
    except NotSupported:
        return float("nan")


def _row(seen: _Seen, norm: float, ablated: np.ndarray, clusters: np.ndarray, seed: int) -> dict[str, float]:
    share = (seen.change / seen.before.clamp_min(1e-12)).nanmean(1).numpy()
    gaussian = (norm * seen.inputs / seen.width**0.5 / seen.before.clamp_min(1e-12)).nanmean(1).numpy()
    return {
        **beside_control(share, gaussian, clusters, seed=seed),
        "cosine": float(seen.cosine.nanmean()),
        "ablated": float(ablated.mean()),
        "n": len(share),
    }


def _ablated(model: AdaptedModel, encoded: Any, path: str, before: Tensor) -> np.ndarray:
    with AdapterScale(modules={path: 0.0}).entered(model):
        after = model.forward(encoded, logits="last")
    assert after is not None
    return kl(before[:, -1].float().cpu(), after[:, -1].float().cpu()).numpy()


def _tokens(seen: dict[str, _Seen]) -> pd.DataFrame:
    tables: Sequence[pd.DataFrame] = [
        pd.DataFrame({
            "module": path,
            "prompt": np.repeat(np.arange(read.change.shape[0]), read.change.shape[1]),
            "position": np.tile(np.arange(read.change.shape[1])[::-1], read.change.shape[0]),
            "change": read.change.reshape(-1).numpy(),
        })
        for path, read in seen.items()
    ]  # fmt: skip
    columns = ["module", "prompt", "position", "change"]
    return pd.concat(tables, ignore_index=True).dropna() if tables else pd.DataFrame(columns=columns)
