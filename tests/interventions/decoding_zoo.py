"""Interventions that read along with other models, or compute under a condition, each with the same written again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import interventions as iv
from tests.interventions.zoo import (
    LAYER,
    LENGTH,
    OTHER_MODELS,
    ROWS,
    Case,
    at,
    ids,
    in_layer,
    input_edited,
    layer_of,
    noise,
    output_edited,
    small_pair,
)
from tests.tiny import FAMILIES, MOE_FAMILIES, tokenizer
from workbench.models.adapted import AdaptedModel


@contextmanager
def _logits_added(m: AdaptedModel, added: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """``added(logits)`` in place of the logits, from the second token on."""

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        output.logits = at(slice(1, None), added(output.logits), output.logits)
        return output

    handle = m.inner.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


PREFIX = "the quick"


def _mix_dense(m: AdaptedModel) -> Any:
    """0.5 of the model, 2 of the tuned model behind a prefix, -1.5 of the base."""
    tuned, base = small_pair(m.name)
    prefix = torch.tensor([tokenizer()(PREFIX, add_special_tokens=False)["input_ids"]] * ROWS)
    with torch.no_grad():
        behind = tuned.inner(torch.cat([prefix, ids()], dim=1), use_cache=False).logits[:, prefix.shape[1] :]
        plain = base.inner(ids(), use_cache=False).logits
    return _logits_added(m, lambda own: 0.5 * own + 2 * behind - 1.5 * plain)


def _fusion_dense(m: AdaptedModel) -> Any:
    tuned, base = small_pair(m.name)
    with torch.no_grad():
        change = tuned.inner(ids(), use_cache=False).logits - base.inner(ids(), use_cache=False).logits
    return _logits_added(m, lambda own: own + 0.5 * change)


def _rules_dense(m: AdaptedModel) -> Any:
    added = torch.zeros(m.vocab_size)
    added[7], added[9] = 3.0, -6.0
    return _logits_added(m, lambda own: own + added)


def _cats_dense(m: AdaptedModel) -> Any:
    mlp = in_layer("mlp")(m)
    act = next(getattr(mlp, name) for name in ("act_fn", "act", "activation_fn") if hasattr(mlp, name))
    return output_edited(act, lambda a: a * (a.abs() >= 0.2))


def _wina_dense(m: AdaptedModel) -> Any:
    down = in_layer("mlp_post")(m)
    norms = down.weight.detach().norm(dim=1 if type(down).__name__ == "Conv1D" else 0)
    return input_edited(down, lambda a: at(slice(1, None), a - 0.5 * a * (a.abs() * norms < 0.3), a))


def _skip_dense(m: AdaptedModel) -> Any:
    kept = []

    @contextmanager
    def both() -> Iterator[None]:
        handle = layer_of(m).register_forward_pre_hook(
            lambda module, args, kwargs: kept.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        with output_edited(layer_of(m), lambda h: at(slice(1, None), 0.3 * h + 0.7 * kept[-1], h)):
            yield
        handle.remove()

    return both()


def _schedule_dense(m: AdaptedModel) -> Any:
    weights = torch.tensor([0.5] * (LENGTH - 1) + [2.0])[:, None]
    return output_edited(layer_of(m), lambda h: h + 0.5 * weights * noise(64))


@contextmanager
def _handover_dense(m: AdaptedModel) -> Iterator[None]:
    """Head by head and query by query, as log weights added to eager attention's logits."""
    before = m.inner.config._attn_implementation
    m.inner.set_attn_implementation("eager")
    bias = torch.zeros(ROWS, m.n_heads, LENGTH, LENGTH)
    with torch.no_grad():
        pattern = m.inner(ids(), use_cache=False, output_attentions=True).attentions[LAYER]
    for row in range(ROWS):
        for head in (1, 2):
            p = pattern[row, head]
            sinks = [k for k in range(1, LENGTH) if float(p[k:, k].mean()) > 0.06]
            others = [k for k in range(1, LENGTH) if k not in sinks]
            for query in range(LENGTH):
                room, freed = float(p[query, others].sum()), 0.7 * float(p[query, sinks].sum())
                if sinks and room > 0:
                    bias[row, head, query, sinks] = torch.tensor(0.3).log()
                    bias[row, head, query, others] = torch.tensor(1 + freed / room).log()

    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "attention_mask": kwargs["attention_mask"] + bias}

    handle = in_layer("attention")(m).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        m.inner.set_attn_implementation(before)


def _bank(m: AdaptedModel) -> dict[str, Any]:
    path = f"{m.hub.family.layers}.{LAYER}.{m.hub.family.output}"
    width = m.n_heads * m.d_head
    down, up = noise(3, 2, width, seed=5) * 0.2, noise(3, 64, 2, seed=6) * 0.2
    return {"names": ["a", "b", "c"], "down": {path: down}, "up": {path: up}, "gates": {path: noise(3, width, seed=7)}}


def _routing_dense(m: AdaptedModel) -> Any:
    """Two of three adapters at work on each token, by the product of gate and input."""
    bank, module = _bank(m), in_layer("output")(m)
    down, up, gate = (next(iter(bank[name].values())) for name in ("down", "up", "gates"))
    kept = []
    handle = module.register_forward_pre_hook(lambda module, args: kept.append(args[0]))

    def edit(out: torch.Tensor) -> torch.Tensor:
        x = kept[-1]
        scores = x @ gate.T + torch.tensor([0.5, 0.0, 0.0])
        least = scores.argmin(-1, keepdim=True)
        weights = scores.scatter(-1, least, -torch.inf).softmax(-1)
        added = sum(weights[..., e, None] * (x @ down[e].T @ up[e].T) for e in range(3))
        return at(slice(1, None), out + 0.8 * added, out)

    @contextmanager
    def both() -> Iterator[None]:
        with output_edited(module, edit):
            yield
        handle.remove()

    return both()


SPARSE = "It chooses neurons by their own values; localize sparsity-curve has random neurons as its control."
NEURONS = tuple(family for family in FAMILIES if family not in MOE_FAMILIES)


INVARIANT_CASES: dict[str, Case] = {
    "logit_mix": Case(
        lambda m, rows: iv.LogitMix(
            {
                "a": iv.Voice(small_pair(m.name)[0], 2.0, prefix=PREFIX),
                "b": {"model": small_pair(m.name)[1], "weight": -1.5},
            },
            own=0.5,
            positions="all - first",
        ),
        _mix_dense,
        uncontrolled=OTHER_MODELS,
    ),
    "logit_fusion": Case(
        lambda m, rows: iv.LogitFusion(
            {"a": small_pair(m.name)[0], "b": small_pair(m.name)[0]},
            small_pair(m.name)[1],
            {"a": 0.7, "b": -0.2},
            positions="all - first",
        ),
        _fusion_dense,
        uncontrolled=OTHER_MODELS,
    ),
    "token_rules": Case(
        lambda m, rows: iv.TokenRules(9.0, 4, {7: 2.0, 9: -4.0}, -2.0, strength=1.5, positions="all - first"),
        _rules_dense,
        uncontrolled="Its rules name tokens, and a length that no random tokens share.",
    ),
    "cats": Case(
        lambda m, rows: iv.ActivationThreshold({LAYER: 0.2}, "cats"), _cats_dense, NEURONS, uncontrolled=SPARSE
    ),
    "wina": Case(
        lambda m, rows: iv.ActivationThreshold({LAYER: 0.3}, "wina", strength=0.5, positions="all - first"),
        _wina_dense,
        NEURONS,
        uncontrolled=SPARSE,
    ),
    "layer_skip": Case(lambda m, rows: iv.LayerSkip([LAYER], strength=0.7, positions="all - first"), _skip_dense),
    "offset_schedule": Case(
        lambda m, rows: iv.OffsetSchedule(LAYER, noise(64), [2.0, -1.0], 2, 0.5, strength=0.5), _schedule_dense
    ),
    "sink_handover": Case(lambda m, rows: iv.SinkHandover(0.3, [(LAYER, 1), (LAYER, 2)], 0.06), _handover_dense),
    "adapter_routing": Case(
        lambda m, rows: iv.AdapterRouting(
            **_bank(m), rule="meteora", bias={"a": 0.5}, strength=0.8, positions="all - first"
        ),
        _routing_dense,
        uncontrolled="It weighs adapters; localize routing has the even mean and the order exchanged as its controls.",
    ),
}
