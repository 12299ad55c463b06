"""Experts off and on: who is selected, with which weights, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import interventions as iv
from tests.interventions.dense_moe import by_hand
from tests.interventions.zoo import ids, model_of
from tests.tiny import MOE_FAMILIES, tiny_model, tokenizer
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel

LAYER = 1
NAMED = ("qwen3moe", "dsv3", "mixtral", "gptoss")


def routing(model: AdaptedModel, recipe: iv.Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights, experts) [batch, pos, k] that reach the fused experts of the layer, seen by a plain torch hook."""
    seen = []
    experts = model.inner.model.layers[LAYER].mlp.experts
    handle = experts.register_forward_pre_hook(lambda module, args: seen.append((args[2], args[1])))
    with recipe.applied(model):
        model.forward(ids(), logits=None)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("mode", ["replace", "drop", "drop_renorm"])
@pytest.mark.parametrize("family", ["qwen3moe", "mixtral", "gptoss"])
def test_an_expert_that_nobody_selected_changes_nothing(family: str, mode: Any) -> None:
    model, token = model_of(family), ids()[:1, :1]
    seen: list[int] = []
    reader = SiteHook(Site("router", LAYER), lambda value, _ctx: seen.extend(value.experts.flatten().tolist()))
    with model.hooked([reader]):
        bare = model.forward(token)
    unused, used = (min(set(range(8)) - set(seen)), seen[0])
    for expert, calls in ((unused, 0), (used, 1)):
        with iv.Recipe([iv.ExpertSwitch(off=[(LAYER, expert)], mode=mode)]).applied(model, trace=True) as log:
            same = torch.equal(model.forward(token), bare)
        assert (len(log), same) == (calls, not calls)


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_replaced_expert_is_never_selected(family: str) -> None:
    model = model_of(family)
    _, before = routing(model, iv.Recipe())
    gone = int(before.flatten().bincount(minlength=8).argmax())
    weights_before, _ = routing(model, iv.Recipe())
    weights, experts = routing(model, iv.Recipe([iv.ExpertSwitch(off=[(LAYER, gone)])]))
    assert (before == gone).any()
    assert (experts == gone).sum() == 0
    assert all(len(set(row.tolist())) == model.top_k for row in experts.reshape(-1, model.top_k))
    unused = ~(before == gone).any(-1)
    ordered, ordered_before = weights.sort(-1)[0], weights_before.sort(-1)[0]
    assert torch.equal(ordered[unused], ordered_before[unused]), "tokens that did not use it keep their weights"


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_forced_expert_is_always_selected(family: str) -> None:
    model = model_of(family)
    _, experts = routing(model, iv.Recipe([iv.ExpertSwitch(on=[(LAYER, 5)], mode="force")]))
    assert (experts == 5).sum(-1).eq(1).all()
    assert all(len(set(row.tolist())) == model.top_k for row in experts.reshape(-1, model.top_k))


@pytest.mark.parametrize("family", NAMED)
@pytest.mark.parametrize(
    ("off", "on", "mode", "weight"),
    [
        ({2, 3}, set(), "replace", "own"),
        ({2, 3}, set(), "drop", "own"),
        ({2, 3}, set(), "drop_renorm", "own"),
        (set(), {4}, "force", "own"),
        (set(), {4}, "force", "max"),
        (set(), {4}, "force", 0.3),
    ],
)
def test_equal_to_dense_recomputation(family: str, off: set[int], on: set[int], mode: str, weight: Any) -> None:
    model = model_of(family)
    labels = [[(LAYER, e) for e in sorted(group)] for group in (off, on)]
    with iv.Recipe([iv.ExpertSwitch(*labels, mode=mode, weight=weight)]).applied(model):
        ours = model.forward(ids())
    everywhere = torch.ones(ids().shape, dtype=torch.bool)
    meaning = "replace" if mode == "force" else mode
    with by_hand(model.inner.model.layers[LAYER], off, on, meaning, everywhere, weight):
        wanted = model.forward(ids())
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(ours, model.forward(ids()), atol=1e-3)


def test_meanings_of_off_are_four_models() -> None:
    model = model_of("qwen3moe")
    results = []
    for mode in ("replace", "drop", "drop_renorm"):
        with iv.Recipe([iv.ExpertSwitch(["L1E2"], mode=mode)]).applied(model):
            results.append(model.forward(ids()))
    with iv.Recipe([iv.ExpertSwitch(on=["L1E2"])]).applied(model):
        results.append(model.forward(ids()))
    gaps = [(a - b).abs().max() for i, a in enumerate(results) for b in results[:i]]
    assert min(gaps) > 1e-2


def test_dropped_equals_zeroed_weights() -> None:
    model = AdaptedModel(tiny_model("mixtral"), tokenizer())
    with iv.Recipe([iv.ExpertSwitch(["L1E2"], mode="drop")]).applied(model):
        ours = model.forward(ids())
    with torch.no_grad():
        model.hf.model.layers[1].mlp.experts.down_proj[2].zero_()
    torch.testing.assert_close(ours, model.forward(ids()))


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_editing_router_logits_does_nothing(family: str) -> None:
    """The block ignores the logits that its router returns; a switch therefore changes weights and experts."""
    model = model_of(family)
    without = model.forward(ids())

    def ban_by_logit(value: Any, ctx: Any) -> Any:
        logits = value.logits.clone()
        logits[..., :6] = -1e9
        return value._replace(logits=logits)

    with model.hooked([SiteHook(Site("router", LAYER), ban_by_logit, edit=True)]):
        assert torch.equal(model.forward(ids()), without)
    with iv.Recipe([iv.ExpertSwitch([(LAYER, e) for e in (0, 1)])]).applied(model):
        assert not torch.equal(model.forward(ids()), without)


@pytest.mark.parametrize("family", NAMED)
def test_two_switches_act_together(family: str) -> None:
    """In one recipe or in nested contexts: the second does not undo the first."""
    model = model_of(family)
    a, b = iv.ExpertSwitch(["L1E2"]), iv.ExpertSwitch(["L1E3"])
    at_once = routing(model, iv.Recipe([iv.ExpertSwitch(["L1E2", "L1E3"])]))
    for weights_and_experts in (routing(model, iv.Recipe([a, b])), routing(model, iv.Recipe([b, a]))):
        for ours, wanted in zip(weights_and_experts, at_once, strict=True):
            assert torch.equal(ours, wanted)
    with iv.Recipe([a]).applied(model):
        for ours, wanted in zip(routing(model, iv.Recipe([b])), at_once, strict=True):
            assert torch.equal(ours, wanted)


def test_strength_per_row() -> None:
    model = model_of("qwen3moe")
    switch = iv.ExpertSwitch(["L1E2", "L1E3", "L1E4"])
    _, before = routing(model, iv.Recipe())
    _, everywhere = routing(model, iv.Recipe([switch]))
    _, second = routing(model, iv.Recipe([replace(switch, strength=[0, 1])]))
    _, limited = routing(model, iv.per_row([None, switch]))
    half = len(before) // 2
    assert torch.equal(second, torch.cat([before[:half], everywhere[half:]]))
    assert torch.equal(second, limited)
    with pytest.raises(NotSupported, match="0 or 1"):
        switch.scaled(0.5)


def test_refused() -> None:
    model = model_of("dsv3")
    for switch, reason in [
        (iv.ExpertSwitch(["L1E9"]), "out of range"),
        (iv.ExpertSwitch(["L0E1"]), "has no experts; layers with experts: 1 to 2"),
        (iv.ExpertSwitch([(1, e) for e in range(7)]), "each token needs 2"),
        (iv.ExpertSwitch([(1, e) for e in (0, 1, 2, 4, 5, 6)]), "cannot always fill"),
        (iv.ExpertSwitch(on=[(1, 0), (1, 1), (1, 2)]), "cannot all be forced"),
        (iv.ExpertSwitch(on=[(1, 0), (1, 5)]), "1 of 2 groups"),
    ]:
        with pytest.raises(UserError, match=reason):
            iv.Recipe([switch]).check(model)
    iv.Recipe([iv.ExpertSwitch([(1, e) for e in (0, 1, 2)])]).check(model)
    with pytest.raises(UserError, match="dense model"):
        iv.Recipe([iv.ExpertSwitch(["L1E1"])]).check(model_of("llama"))
    with pytest.raises(UserError, match="both off and on"):
        iv.ExpertSwitch(["L1E1"], ["L1E1"])
    with pytest.raises(UserError, match="contradict"):
        iv.Recipe([iv.ExpertSwitch(["L1E1"]), iv.ExpertSwitch(on=["L1E1"])]).check(model)
    iv.Recipe([
        iv.ExpertSwitch(["L1E1"], positions="prompt"), iv.ExpertSwitch(on=["L1E1"], positions="generated")
    ]).check(model)  # fmt: skip
    with pytest.raises(UserError, match="each token needs 2"):
        six = [(1, e) for e in range(6)]
        iv.Recipe([iv.ExpertSwitch(six), iv.ExpertSwitch([(1, 6)])]).check(model_of("mixtral"))


@pytest.mark.parametrize("family", NAMED)
def test_off_everywhere_and_on_at_some_positions(family: str) -> None:
    off, on = iv.ExpertSwitch(["L1E2"]), iv.ExpertSwitch(on=["L1E4"], positions="prompt[-5:]")
    _, experts = routing(model_of(family), iv.Recipe([off, on]))
    _, alone = routing(model_of(family), iv.Recipe([off]))
    experts, alone = experts.view(2, 20, -1), alone.view(2, 20, -1)
    assert not (experts == 2).any()
    assert (experts[:, -5:] == 4).any(-1).all()
    assert torch.equal(experts[:, :-5].sort(-1)[0], alone[:, :-5].sort(-1)[0])
