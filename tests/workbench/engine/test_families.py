"""Every family: exact without interventions, every site where the map says, nothing left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import FAMILIES, MOE_FAMILIES, count_hooks, tiny_model, token_batch, tokenizer
from workbench.engine import families
from workbench.engine.hub import SiteHook
from workbench.engine.selfcheck import self_check
from workbench.engine.sites import Site
from workbench.models.adapted import AdaptedModel
from workbench.prompts.encode import pad_left


def test_every_family_of_the_table_has_a_tiny_model_and_the_other_way_round() -> None:
    types = {tiny_model(family).config.model_type for family in FAMILIES}
    assert types == set(families.FAMILIES), "a family is a line in families.py and a config in tests/tiny.py"


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> AdaptedModel:
    return AdaptedModel(tiny_model(request.param), tokenizer(), name=request.param)


def bare(model: AdaptedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.hf(ids).logits


def readers(model: AdaptedModel, into: dict[str, Any], *, but: tuple[str, ...] = ()) -> list[SiteHook]:
    def keep(name: str) -> SiteHook:
        site = Site.parse(f"{name}[1]" if name.endswith("expert") else name)
        return SiteHook(site, lambda value, _ctx: into.__setitem__(name, value))

    return [keep(name) for name in model.sites() if not any(part in name for part in but)]


def test_logits_are_bit_equal_before_during_and_after_recording(model: AdaptedModel) -> None:
    ids = token_batch()
    want = bare(model, ids)
    before = count_hooks(model.hf)
    assert torch.equal(model.forward(ids), want)
    with model.hooked(readers(model, {}, but=("pattern", "expert"))):
        assert torch.equal(model.forward(ids), want)
        assert torch.equal(bare(model, ids), want)
    assert torch.equal(model.forward(ids), want)
    assert count_hooks(model.hf) == before and model.n_hooks == 0


def test_an_exception_inside_a_context_leaves_nothing(model: AdaptedModel) -> None:
    ids = token_batch()
    want, before = bare(model, ids), count_hooks(model.hf)
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), model.hooked(readers(model, {})):
            model.forward(ids)
            raise error

    def fail(_value: Any, _ctx: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), model.hooked([SiteHook(Site("pattern", 1), fail)]):
        model.forward(ids)
    assert torch.equal(bare(model, ids), want)
    assert count_hooks(model.hf) == before and "generate" not in model.hf.__dict__


def test_a_users_own_hook_still_fires_and_stays(model: AdaptedModel) -> None:
    fired: list[int] = []
    handle = model.hf.base_model.register_forward_hook(lambda *_: fired.append(1))
    try:
        with model.hooked(readers(model, {})):
            model.forward(token_batch())
        model.forward(token_batch())
        assert len(fired) == 2
    finally:
        handle.remove()


def test_sublayers_sum_to_the_residual_stream(model: AdaptedModel) -> None:
    got: dict[str, torch.Tensor] = {}
    with model.hooked(readers(model, got, but=("pattern", "expert"))):
        model.forward(token_batch())
    for layer in range(model.n_layers):
        at = {name.split(".", 2)[2]: value for name, value in got.items() if name.startswith(f"blocks.{layer}.")}
        middle = at["hook_resid_pre"] + at["hook_attn_out"]
        if "hook_resid_mid" in at:
            torch.testing.assert_close(middle, at["hook_resid_mid"])
        torch.testing.assert_close(middle + at["hook_mlp_out"], at["hook_resid_post"])
        assert at["attn.hook_z"].shape == (2, 24, model.n_heads, model.d_head)
        if layer:
            assert torch.equal(at["hook_resid_pre"], got[f"blocks.{layer - 1}.hook_resid_post"])


def test_patterns_are_causal_sum_to_one_and_give_z(model: AdaptedModel) -> None:
    ids, got = token_batch(), {}
    want = bare(model, ids)
    names = ("attn.hook_pattern", "attn.hook_z", "attn.hook_v")
    with model.hooked(readers(model, got, but=tuple({n.split(".", 2)[2] for n in model.sites()} - set(names)))):
        seen = model.forward(ids)
    torch.testing.assert_close(seen, want, atol=2e-5, rtol=1e-4)  # eager instead of sdpa for this call
    for layer in range(model.n_layers):
        pattern = got[f"blocks.{layer}.attn.hook_pattern"]
        assert pattern.shape == (2, model.n_heads, 24, 24)
        assert float(pattern.triu(1).abs().max()) == 0.0
        if model.name != "gptoss":  # its sinks take a share of every row
            torch.testing.assert_close(pattern.sum(-1), torch.ones(2, model.n_heads, 24))
        if f"blocks.{layer}.attn.hook_v" in got:
            values = got[f"blocks.{layer}.attn.hook_v"].repeat_interleave(model.n_heads // model.n_kv_heads, 2)
            torch.testing.assert_close(
                torch.einsum("bhqk,bkhd->bqhd", pattern, values), got[f"blocks.{layer}.attn.hook_z"]
            )
    assert torch.equal(bare(model, ids), want)


def test_an_edit_at_a_site_reaches_what_the_site_feeds(model: AdaptedModel) -> None:
    """Adding d to resid_mid equals adding d to attn_out, and to the layer's input equals adding it before."""
    ids = token_batch()
    step = torch.randn(model.d_model)

    def edited(kind: str, layer: int) -> torch.Tensor:
        with model.hooked([SiteHook(Site(kind, layer), lambda value, _ctx: value + step, edit=True)]):
            return model.forward(ids)

    torch.testing.assert_close(edited("resid_post", 0), edited("resid_pre", 1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(edited("mlp_out", 1), edited("resid_post", 1), atol=1e-4, rtol=1e-4)
    if any("resid_mid" in name for name in model.sites()):
        torch.testing.assert_close(edited("attn_out", 1), edited("resid_mid", 1), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(edited("resid_post", 1), bare(model, ids))


@pytest.mark.parametrize("kind", ["q", "k", "v", "z", "pattern", "router"])
def test_writing_back_what_was_read_changes_nothing(model: AdaptedModel, kind: str) -> None:
    if f"{Site(kind, 1).name}" not in model.sites():
        pytest.skip(f"{model.name} has no {kind}")
    ids = token_batch()

    def copy(value: Any, _ctx: Any) -> Any:
        return type(value)(*(one.clone() for one in value)) if kind == "router" else value.clone()

    with model.hooked([SiteHook(Site(kind, 1), copy, edit=True)]):
        same = model.forward(ids)
    torch.testing.assert_close(same, bare(model, ids), atol=2e-5, rtol=1e-4)


def test_left_padding_equals_single_prompts(model: AdaptedModel) -> None:
    short, long = token_batch(1, 9, seed=1)[0].tolist(), token_batch(1, 21, seed=2)[0].tolist()
    padded = model.forward(pad_left([short, long], 0))
    torch.testing.assert_close(padded[0, -9:], bare(model, torch.tensor([short]))[0], atol=3e-5, rtol=1e-3)
    torch.testing.assert_close(padded[1], bare(model, torch.tensor([long]))[0], atol=3e-5, rtol=1e-3)


def test_the_early_stop_skips_later_layers(model: AdaptedModel) -> None:
    later: list[int] = []
    handle = model.hub.module(Site("resid_pre", 2)).register_forward_pre_hook(lambda *_: later.append(1))
    seen: list[torch.Tensor] = []
    hook = SiteHook(Site("resid_post", 0), lambda value, _ctx: seen.append(value))
    try:
        with model.hooked([hook], stop=True):
            assert model.forward(token_batch()) is None
    finally:
        handle.remove()
    assert len(seen) == 1 and not later
    assert model.n_hooks == 0


def test_generation_knows_prompt_and_new_positions(model: AdaptedModel) -> None:
    seen: list[tuple[int, int, list[int]]] = []
    hook = SiteHook(Site("z", 1), lambda _v, ctx: seen.append((ctx.start, ctx.length, ctx.prompt_lengths.tolist())))
    batch = model.encode(["the quick", "a lazy dog jumps over"])
    plain = model.generate_ids(batch, max_new_tokens=3, min_new_tokens=3)
    with model.hooked([hook]):
        steered = model.generate_ids(batch, max_new_tokens=3, min_new_tokens=3)
        model.hf.generate(batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=1, do_sample=False)
    assert torch.equal(plain, steered)
    width, lengths = batch.input_ids.shape[1], batch.lengths.tolist()
    assert seen == [
        (0, width, lengths), (width, 1, lengths), (width + 1, 1, lengths), (0, width, lengths)
    ]  # fmt: skip


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_expert_contributions_sum_to_the_experts_output(family: str) -> None:
    model = AdaptedModel(tiny_model(family), tokenizer())
    layer = model.moe_layers[-1]
    got: dict[int, torch.Tensor] = {}
    outputs: list[torch.Tensor] = []

    def keep(expert: int) -> SiteHook:
        return SiteHook(Site("expert", layer, expert), lambda value, _ctx: got.__setitem__(expert, value))

    experts = model.hub.module(Site("expert", layer, 0))
    handle = experts.register_forward_hook(lambda _m, _a, out: outputs.append(out))
    with model.hooked([keep(expert) for expert in range(model.n_experts)]):
        model.forward(token_batch())
    handle.remove()
    torch.testing.assert_close(sum(got.values()).flatten(0, 1), outputs[0].view(-1, model.d_model))


@pytest.mark.parametrize("family", MOE_FAMILIES)
def test_editing_router_logits_alone_is_a_no_op(family: str) -> None:
    """The blocks ignore the logits a router returns; whoever edits them changes nothing."""
    model = AdaptedModel(tiny_model(family), tokenizer())
    ids = token_batch()
    hook = SiteHook(Site("router", 1), lambda r, _ctx: r._replace(logits=r.logits * 0 - 5), edit=True)
    with model.hooked([hook]):
        assert torch.equal(model.forward(ids), bare(model, ids))


def test_the_self_check_passes(model: AdaptedModel) -> None:
    self_check(model.hub)
