"""Every intervention, each with the same computation written again: with plain torch hooks, or with weights set by
hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

import interventions as iv
from tests.interventions.dense_moe import by_hand
from tests.tiny import FAMILIES, MOE_FAMILIES, tiny_model, token_batch, tokenizer, tuned_copy
from workbench.engine.families import submodule
from workbench.models.adapted import AdaptedModel

ROWS, LENGTH = 2, 20
PATCHED = "It sets values that were recorded; patching draws its controls among other prompts and cells."
OTHER_MODELS = "It mixes in whole models, of which there is no random one of the same kind."
LAYER = 1


@cache
def model_of(family: str) -> AdaptedModel:
    return AdaptedModel(tiny_model(family), tokenizer(), name=family)


@cache
def ids() -> torch.Tensor:
    return token_batch(ROWS, LENGTH, seed=4)


@cache
def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer_of(m: AdaptedModel) -> Any:
    return submodule(m.inner, f"{m.hub.family.layers}.{LAYER}")


@contextmanager
def output_edited(module: Any, edit: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    def hook(module: Any, args: Any, output: Any) -> Any:
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def input_edited(module: Any, edit: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(lambda module, args: (edit(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def captured(m: AdaptedModel, module: Any, *, side: str) -> torch.Tensor:
    """Value at a module on the batch of :func:`ids`, without any of our machinery."""
    kept = []
    if side == "in":
        handle = module.register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    else:
        handle = module.register_forward_hook(
            lambda module, args, out: kept.append(out[0] if isinstance(out, tuple) else out)
        )
    with torch.no_grad():
        m.inner(other_ids(), use_cache=False)
    handle.remove()
    return kept[0]


@cache
def other_ids() -> torch.Tensor:
    return token_batch(ROWS, LENGTH, seed=9)


def at(columns: slice, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """``new`` at some columns, ``old`` elsewhere."""
    return torch.cat([old[:, : columns.start or 0], new[:, columns], old[:, columns.stop or old.shape[1] :]], dim=1)


def projector(directions: torch.Tensor) -> torch.Tensor:
    """Projection onto the span, by the pseudo-inverse."""
    d = directions.double()
    return (torch.linalg.pinv(d) @ d).float()


@dataclass(frozen=True)
class Case:
    """``make(model, rows)``: for a batch made of these rows. ``dense``: the same on the batch of :func:`ids`."""

    make: Callable[[AdaptedModel, list[int]], Any]
    dense: Callable[[AdaptedModel], AbstractContextManager[None]]
    families: tuple[str, ...] = FAMILIES
    model_of: Callable[[str], AdaptedModel] = model_of
    on_weights: bool = False
    uncontrolled: str = ""
    """Why ``probes.stand_ins`` has no random stand-ins for it; empty where it has."""


def _offset(site: str, module: Callable[[AdaptedModel], Any], families: tuple[str, ...] = FAMILIES) -> Case:
    def dense(m: AdaptedModel) -> Any:
        edited = input_edited if site == "resid_pre" else output_edited
        return edited(module(m), lambda h: at(slice(1, None), h + 1.5 * noise(64), h))

    return Case(
        lambda m, rows: iv.Offset(LAYER, noise(64), site, strength=1.5, positions="all - first"), dense, families
    )


def in_layer(path: str) -> Callable[[AdaptedModel], Any]:
    return lambda m: submodule(layer_of(m), getattr(m.hub.family, path))


def _rows_dense(m: AdaptedModel) -> Any:
    strengths = torch.tensor([0.5, -2.0])[:, None, None]
    return output_edited(layer_of(m), lambda h: h + strengths * noise(64))


def _heads(h: torch.Tensor, m: AdaptedModel) -> torch.Tensor:
    return h.unflatten(-1, (m.n_heads, m.d_head))


def _head_offset_dense(m: AdaptedModel) -> Any:
    def edit(x: torch.Tensor) -> torch.Tensor:
        z = _heads(x, m).clone()
        z[:, :, 2] += 0.7 * noise(m.d_head)
        z[:, :, 0] += 0.7 * noise(m.d_head, seed=1)
        return z.flatten(-2)

    return input_edited(in_layer("output")(m), edit)


def _head_scale_dense(m: AdaptedModel) -> Any:
    def edit(x: torch.Tensor) -> torch.Tensor:
        z = _heads(x, m).clone()
        z[:, :-1, 3] *= 0.0
        z[:, :-1, 1] *= 1 + noise(m.d_head)
        return z.flatten(-2)

    return input_edited(in_layer("output")(m), edit)


def _ablation_dense(m: AdaptedModel) -> Any:
    p = projector(noise(3, 64))
    return output_edited(layer_of(m), lambda h: h - 0.8 * (h - noise(64, seed=2)) @ p)


def _knob_dense(m: AdaptedModel) -> Any:
    u = noise(64) / noise(64).norm()
    value = torch.tensor([6.0, -4.0])[:, None, None]
    return output_edited(layer_of(m), lambda h: at(slice(-1, None), h + (value - (h @ u)[..., None]) * u, h))


def _swap_dense(m: AdaptedModel) -> Any:
    source, p = captured(m, layer_of(m), side="out"), projector(noise(2, 64))
    return output_edited(layer_of(m), lambda h: h + (source - h) @ p)


def _clamp_dense(m: AdaptedModel) -> Any:
    u = noise(64) / noise(64).norm()

    def edit(h: torch.Tensor) -> torch.Tensor:
        c = (h @ u)[..., None]
        return torch.where(c > 0.5, h + (0.5 - c) * u, torch.where(c < -0.25, h + (-0.25 - c) * u, h))

    return output_edited(layer_of(m), edit)


@cache
def _along(m: AdaptedModel) -> torch.Tensor:
    """The projection [row, pos] of the first layer's output that the gates of the zoo read."""
    seen: list[torch.Tensor] = []
    first = submodule(m.inner, f"{m.hub.family.layers}.0")
    handle = first.register_forward_hook(lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        m.inner(ids(), use_cache=False)
    handle.remove()
    return seen[0] @ noise(64, seed=7)


def _gate(m: AdaptedModel, reach: Any) -> iv.Gate:
    """``prompt`` opens one of the two rows, ``onward`` somewhere in each row, ``token`` on half of the tokens."""
    along = _along(m)
    first = along.cummax(1).values[:, LENGTH // 2].min()
    threshold = {"prompt": along[:, -1].mean(), "onward": first - 1e-3, "token": along.median() + 1e-3}[reach]
    return iv.Gate(0, noise(64, seed=7), float(threshold), reach=reach)


def _gated(
    reach: str,
    make: Callable[[iv.Gate, list[int]], Any],
    edit: Callable[[AdaptedModel, torch.Tensor], torch.Tensor],
    module: Callable[[AdaptedModel], Any] = layer_of,
) -> Case:
    def open_at(m: AdaptedModel) -> torch.Tensor:
        fired = _along(m) >= _gate(m, reach).threshold
        last = torch.arange(LENGTH) == LENGTH - 1
        return {"prompt": fired[:, -1:] & last, "onward": fired.long().cumsum(1) > 0, "token": fired}[reach]

    def dense(m: AdaptedModel) -> Any:
        return output_edited(module(m), lambda h: torch.where(open_at(m)[..., None], edit(m, h), h))

    return Case(lambda m, rows: make(_gate(m, reach), rows), dense)


def _patch(m: AdaptedModel, rows: list[int]) -> iv.Patch:
    source = captured(m, layer_of(m), side="out")[rows]
    return iv.Patch(LAYER, source, positions="prompt[-3:]")


def _patch_dense(m: AdaptedModel) -> Any:
    source = captured(m, layer_of(m), side="out")
    return output_edited(layer_of(m), lambda h: at(slice(-3, None), source, h))


def _patch_heads(m: AdaptedModel, rows: list[int]) -> iv.Patch:
    source = _heads(captured(m, in_layer("output")(m), side="in")[rows], m)
    return iv.Patch(LAYER, source[:, -1, [0, 3]], "z", heads=[3, 0][::-1], positions="last")


def _patch_heads_dense(m: AdaptedModel) -> Any:
    source = _heads(captured(m, in_layer("output")(m), side="in"), m)

    def edit(x: torch.Tensor) -> torch.Tensor:
        z = _heads(x, m).clone()
        z[:, -1, 0], z[:, -1, 3] = source[:, -1, 0], source[:, -1, 3]
        return z.flatten(-2)

    return input_edited(in_layer("output")(m), edit)


@contextmanager
def _attention_dense(m: AdaptedModel) -> Iterator[None]:
    """log gamma added to the attention logits, through the mask that eager attention adds to them."""
    bias = torch.zeros(1, m.n_heads, 1, LENGTH)
    bias[0, 1, 0, 0] = bias[0, 2, 0, 0] = torch.tensor(3.0).log()

    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "attention_mask": kwargs["attention_mask"] + bias}

    before = m.inner.config._attn_implementation
    m.inner.set_attn_implementation("eager")
    handle = in_layer("attention")(m).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        m.inner.set_attn_implementation(before)


def _experts(mode: str, off: set[int], on: set[int], weight: Any = "own", columns: slice = slice(None)) -> Case:
    positions = "all" if columns == slice(None) else "prompt[-5:] + generated"

    def make(m: AdaptedModel, rows: list[int]) -> iv.ExpertSwitch:
        labels = [[(LAYER, e) for e in sorted(group)] for group in (off, on)]
        return iv.ExpertSwitch(*labels, mode=mode, weight=weight, positions=positions)

    def dense(m: AdaptedModel) -> Any:
        chosen = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
        chosen[:, columns] = True
        return by_hand(layer_of(m), off, on, "replace" if mode == "force" else mode, chosen, weight)

    return Case(make, dense, MOE_FAMILIES)


@cache
def small_pair(family: str) -> tuple[AdaptedModel, AdaptedModel]:
    """Two other models of the family: (tuned, base)."""
    base = tiny_model(family, seed=7)
    tuned = tuned_copy(base, seed=8)
    return AdaptedModel(tuned, tokenizer(), name="small tuned"), AdaptedModel(base, tokenizer(), name="small base")


@contextmanager
def _logits_dense(m: AdaptedModel) -> Iterator[None]:
    """1.5 times the difference of the small models' logits added, from the second token on."""
    tuned, base = (one.inner for one in small_pair(m.name))

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        with torch.no_grad():
            change = tuned(ids(), use_cache=False).logits - base(ids(), use_cache=False).logits
        output.logits = at(slice(1, None), output.logits + 1.5 * change, output.logits)
        return output

    handle = m.inner.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


CASES: dict[str, Case] = {
    "offset_pre": _offset("resid_pre", layer_of),
    "offset_mid": _offset("resid_mid", in_layer("attn_out"), tuple(f for f in FAMILIES if f != "neox")),
    "offset_post": _offset("resid_post", layer_of),
    "offset_attn": _offset("attn_out", in_layer("attn_out")),
    "offset_mlp": _offset("mlp_out", in_layer("mlp_out")),
    "offset_rows": Case(
        lambda m, rows: iv.Offset(LAYER, noise(64), strength=[[0.5, -2.0][row] for row in rows]), _rows_dense
    ),
    "head_offset": Case(
        lambda m, rows: iv.HeadOffset(
            {(LAYER, 2): noise(m.d_head), f"L{LAYER}H0": noise(m.d_head, seed=1)}, strength=0.7
        ),
        _head_offset_dense,
    ),
    "head_scale": Case(
        lambda m, rows: iv.HeadScale({(LAYER, 3): 0.0, (LAYER, 1): 1 + noise(m.d_head)}, positions="prompt - last"),
        _head_scale_dense,
    ),
    "ablation": Case(
        lambda m, rows: iv.ConceptAblation(LAYER, noise(3, 64), mean=noise(64, seed=2), strength=0.8),
        _ablation_dense,
    ),
    "knob": Case(
        lambda m, rows: iv.SubspaceKnob(LAYER, noise(64), torch.tensor([6.0, -4.0])[rows], positions="last+generated"),
        _knob_dense,
    ),
    "knob_swap": Case(
        lambda m, rows: iv.SubspaceKnob(
            LAYER, noise(2, 64), mode="swap", source=captured(m, layer_of(m), side="out")[rows], align="equal"
        ),
        _swap_dense,
    ),
    "clamp": Case(lambda m, rows: iv.Clamp(LAYER, noise(64), -0.25, 0.5), _clamp_dense),
    "gate_prompt": _gated(
        "prompt",
        lambda gate, rows: iv.Offset(LAYER, noise(64), strength=[[1.5, -2.0][row] for row in rows], when=gate),
        lambda m, h: h + torch.tensor([1.5, -2.0])[:, None, None] * noise(64),
    ),
    "gate_onward": _gated(
        "onward",
        lambda gate, rows: iv.ConceptAblation(LAYER, noise(3, 64), strength=0.8, when=gate),
        lambda m, h: h - 0.8 * h @ projector(noise(3, 64)),
    ),
    "gate_token": _gated(
        "token",
        lambda gate, rows: iv.Offset(LAYER, noise(64), "mlp_out", strength=-0.9, when=gate),
        lambda m, h: h - 0.9 * noise(64),
        in_layer("mlp_out"),
    ),
    "patch": Case(_patch, _patch_dense, uncontrolled=PATCHED),
    "patch_heads": Case(_patch_heads, _patch_heads_dense, uncontrolled=PATCHED),
    "attention_scale": Case(lambda m, rows: iv.AttentionScale(3.0, [(LAYER, 1), (LAYER, 2)], keys=0), _attention_dense),
    "expert_replace": _experts("replace", {1, 6}, set()),
    "expert_drop": _experts("drop", {1, 6}, set(), columns=slice(-5, None)),
    "expert_drop_renorm": _experts("drop_renorm", {1, 6}, set()),
    "expert_force": _experts("force", set(), {2}, "max"),
    "expert_both": _experts("replace", {0, 1}, {6}, 0.4, columns=slice(-5, None)),
    "logit_shift": Case(
        lambda m, rows: iv.LogitShift(*small_pair(m.name), strength=1.5, positions="all - first"),
        _logits_dense,
        uncontrolled=OTHER_MODELS,
    ),
}
