"""Attention to chosen keys: closed form, sinks, cached keys, and the warning about eager attention."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import interventions as iv
from interventions.attention_scale import rescaled
from tests.interventions.zoo import ids, model_of
from tests.tiny import tiny_model, tokenizer
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts.encode import Encoded

quiet = pytest.mark.filterwarnings("ignore::interventions.attention_scale.EagerAttentionWarning")


def patterns(model: AdaptedModel, recipe: iv.Recipe) -> torch.Tensor:
    """Attention weights of layer 1 [batch, head, query, key]."""
    kept: list[torch.Tensor] = []
    with recipe.applied(model), model.hooked([SiteHook(Site("pattern", 1), lambda p, ctx: kept.append(p))]):
        model.forward(ids(), logits=None)
    return kept[0]


@quiet
@pytest.mark.parametrize("gamma", [0.2, 4.0])
def test_closed_form(gamma: float) -> None:
    model = model_of("llama")
    before = patterns(model, iv.Recipe())
    after = patterns(model, iv.Recipe([iv.AttentionScale(gamma, ["L1H2"], keys="first")]))
    a = before[:, 2, :, 0]
    torch.testing.assert_close(after[:, 2, :, 0], gamma * a / ((gamma - 1) * a + 1))
    torch.testing.assert_close(after.sum(-1), torch.ones(2, 4, 20))
    assert torch.equal(after.triu(1), torch.zeros_like(after)), "causal zeros stay zero"
    assert torch.equal(after[:, [0, 1, 3]], before[:, [0, 1, 3]])
    ratios = after[:, 2, 5:, 2] / after[:, 2, 5:, 3]
    torch.testing.assert_close(ratios, before[:, 2, 5:, 2] / before[:, 2, 5:, 3])


@quiet
def test_scaling_back_returns() -> None:
    model = model_of("llama")
    there = iv.AttentionScale(3.0, keys="prompt[4:9]")
    back = iv.AttentionScale(1 / 3, keys="prompt[4:9]")
    torch.testing.assert_close(
        patterns(model, iv.Recipe([there, back])), patterns(model, iv.Recipe()), atol=1e-6, rtol=1e-4
    )
    squared = iv.Recipe([iv.AttentionScale(9.0, keys="prompt[4:9]")]) * 0.5
    torch.testing.assert_close(patterns(model, squared), patterns(model, iv.Recipe([there])))


@quiet
def test_sinks_take_part() -> None:
    """GPT-OSS: a learned sink holds part of the mass; the log form leaves it its share of the renormalisation."""
    model = model_of("gptoss")
    before = patterns(model, iv.Recipe())
    after = patterns(model, iv.Recipe([iv.AttentionScale(5.0, ["L1H0"], keys=2)]))
    sink = 1 - before[:, 0].sum(-1)
    assert sink.mean() > 0.05
    a = before[:, 0, 5, 2]
    torch.testing.assert_close(after[:, 0, 5, 2], 5 * a / (4 * a + 1))
    torch.testing.assert_close(1 - after[:, 0, 5].sum(-1), sink[:, 5] / (4 * a + 1))


def test_gamma_zero_takes_a_key_away() -> None:
    pattern = torch.tensor([[[[1.0, 0.0], [0.25, 0.75]]]])
    keys = torch.tensor([True, False]).view(1, 1, 1, 2)
    expected = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    assert torch.equal(rescaled(pattern, keys, 0.0, sinks=False), expected)


@quiet
def test_queries_can_be_chosen() -> None:
    model = model_of("llama")
    scale = iv.AttentionScale(3.0, ["L1H2"], keys="first", positions="last")
    before, after = patterns(model, iv.Recipe()), patterns(model, iv.Recipe([scale]))
    assert torch.equal(after[:, :, :-1], before[:, :, :-1])
    assert not torch.allclose(after[:, 2, -1], before[:, 2, -1])


@quiet
@pytest.mark.parametrize("family", ["llama", "gemma3", "gptoss"])
@pytest.mark.parametrize("kind", ["tokens", "generated", "span"])
def test_keys_are_the_same_with_and_without_cache(family: str, kind: str) -> None:
    """Also in layers with a sliding window (16), whose cache holds the last columns only."""
    model = model_of(family)
    prompt = torch.cat([ids()[:1, 2:], ids()[:1, 2:6]], dim=1)
    token = int(prompt[0, 1])
    keys = {"tokens": iv.Where("all", tokens=(token,)), "generated": "generated", "span": "prompt[-8:-2]"}[kind]
    recipe = iv.Recipe([iv.AttentionScale(6.0, keys=keys)])
    with_cache, without = (decoded(model, recipe, prompt, use_cache=cache) for cache in (True, False))
    torch.testing.assert_close(with_cache, without, atol=3e-4, rtol=1e-3)
    assert not torch.allclose(with_cache, decoded(model, iv.Recipe(), prompt), atol=1e-3)


def decoded(model: AdaptedModel, recipe: iv.Recipe, prompt: torch.Tensor, **options: Any) -> torch.Tensor:
    with recipe.applied(model), torch.no_grad():
        out = model.inner.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=4,
            min_new_tokens=4,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
    return torch.stack(out.logits)


@quiet
def test_generated_keys_by_token_are_refused_under_beams() -> None:
    model, batch = model_of("llama"), Encoded(ids(), torch.ones_like(ids()))
    options = {"num_beams": 2, "max_new_tokens": 2, "min_new_tokens": 2}
    anywhere = iv.AttentionScale(2.0, keys=iv.Where("all", tokens=(5,)))
    with pytest.raises(NotSupported, match="Beam search"), iv.Recipe([anywhere]).applied(model):
        model.generate_ids(batch, **options)
    prompt = iv.AttentionScale(2.0, keys=iv.Where("prompt", tokens=(5,)))
    with iv.Recipe([prompt]).applied(model):
        model.generate_ids(batch, **options)


def with_attention(implementation: str, family: str = "llama") -> AdaptedModel:
    hf = tiny_model(family)
    hf.set_attn_implementation(implementation)
    return AdaptedModel(hf, tokenizer())


SCALES = {
    "all heads": iv.AttentionScale(3.0, keys="prompt[2:6]"),
    "factors": iv.AttentionScale({"L0H1": 4.0, "L1H0": 0.3}),
    "zero": iv.AttentionScale(0.0, ["L1H2", "L0H3"], keys="prompt[0:4]"),
    "queries": iv.AttentionScale(5.0, ["L1H2"], positions="last"),
    "rows": iv.AttentionScale(5.0, strength=[0.0, 1.5]),
    "rows of zero": iv.AttentionScale(0.0, keys="prompt[1:3]", strength=[0.0, 1.0]),
}


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_a_bias_in_the_mask_is_the_same_as_changed_eager_weights(family: str, name: str) -> None:
    """With padding on the left, windows and grouped keys; sdpa stays and no warning is given."""
    recipe, mask = iv.Recipe([SCALES[name]]), torch.ones_like(ids())
    mask[1, :7] = 0
    batch, found = Encoded(ids(), mask), {}
    for implementation in ("sdpa", "eager"):
        model = with_attention(implementation, family)
        with recipe.applied(model, trace=True) as trace, warnings.catch_warnings():
            warnings.simplefilter("error")
            found[implementation] = model.forward(batch)
        assert set(trace.frame()["path"]) == {"attention mask" if implementation == "sdpa" else "value"}
        assert SCALES[name].path(model) == ("attention mask" if implementation == "sdpa" else "eager")
        with (recipe * 0).applied(model):
            plain = model.forward(batch)
        assert model.hf.config._attn_implementation == implementation
    real = mask.bool()
    torch.testing.assert_close(found["sdpa"][real], found["eager"][real], atol=2e-5, rtol=1e-4)
    assert (found["eager"] - plain)[real].abs().max() > 1e-3, "it must change something"


def test_two_scalings_shut_no_query_out() -> None:
    """The second would take a query's last key away and leaves it, as on the weights."""
    both = iv.Recipe([iv.AttentionScale(0.0, keys="prompt[0:3]"), iv.AttentionScale(0.0, keys="prompt[3:6]")])
    found = []
    for implementation in ("sdpa", "eager"):
        model = with_attention(implementation)
        with both.applied(model):
            found.append(model.forward(ids()))
    torch.testing.assert_close(found[0], found[1], atol=2e-5, rtol=1e-4)
    assert found[0].isfinite().all()


def test_layers_that_nothing_touches_stay_bit_equal() -> None:
    model = with_attention("sdpa")
    kept: list[torch.Tensor] = []
    reader = SiteHook(Site("resid_post", 1), lambda value, ctx: kept.append(value.clone()))
    with model.hooked([reader]):
        model.forward(ids(), logits=None)
    with iv.Recipe([iv.AttentionScale(3.0, ["L2H0"])]).applied(model), model.hooked([reader]):
        model.forward(ids(), logits=None)
    assert torch.equal(kept[0], kept[1])


def test_a_reader_of_the_pattern_makes_that_layer_eager_alone() -> None:
    """The pattern that is read holds the change, and so do the logits."""
    model, recipe = with_attention("sdpa"), iv.Recipe([SCALES["factors"]])
    with recipe.applied(model):
        alone = model.forward(ids())
    kept: list[torch.Tensor] = []
    reader = SiteHook(Site("pattern", 1), lambda value, ctx: kept.append(value))
    with recipe.applied(model, trace=True) as trace, model.hooked([reader]):
        torch.testing.assert_close(model.forward(ids()), alone, atol=2e-5, rtol=1e-4)
    assert trace.frame().groupby("layer")["path"].first().to_dict() == {0: "attention mask", 1: "value"}
    eager = with_attention("eager")
    with recipe.applied(eager), eager.hooked([reader]):
        eager.forward(ids(), logits=None)
    torch.testing.assert_close(kept[0], kept[1], atol=1e-6, rtol=1e-4)


def test_eager_attention_is_said_once_where_a_change_needs_the_weights() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer())
    before = model.hf.config._attn_implementation
    assert before == "sdpa"
    recipe = iv.Recipe([iv.SinkHandover(0.2)])
    with pytest.warns(iv.EagerAttentionWarning, match="sdpa"), recipe.applied(model):
        model.forward(ids())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with recipe.applied(model):
            model.forward(ids())
        with (recipe * 0).applied(model):
            assert model.hf.config._attn_implementation == before
    assert model.hf.config._attn_implementation == before


def test_refused() -> None:
    with pytest.raises(UserError, match="Gamma"):
        iv.AttentionScale(-1.0)
    with pytest.raises(UserError, match="out of range"):
        iv.Recipe([iv.AttentionScale(2.0, ["L1H7"])]).check(model_of("llama"))
    with pytest.raises(UserError, match="Rows are named"):
        iv.AttentionScale(2.0, keys=iv.Where("all", rows=(True,)))


def test_heads_may_have_factors_of_their_own(tmp_path: Path) -> None:
    """The same as one scaling after the other, each for its heads; the sign differs, as ZeroTuning needs it."""
    model = model_of("llama")
    gammas = {"L1H0": 3.0, (1, 2): 0.25, "L2H1": 0.0}
    one = iv.AttentionScale(gammas)
    apart = [
        iv.AttentionScale(3.0, heads="L1H0"),
        iv.AttentionScale(0.25, heads="L1H2"),
        iv.AttentionScale(0.0, heads="L2H1"),
    ]
    with iv.Recipe(apart).applied(model):
        wanted = model.forward(ids())
    with iv.Recipe([one]).applied(model):
        torch.testing.assert_close(model.forward(ids()), wanted, atol=1e-6, rtol=1e-6)
    with iv.Recipe([replace(one, strength=[0.0, 2.0])]).applied(model):
        rows = model.forward(ids())
    with iv.Recipe([iv.AttentionScale({"L1H0": 9.0, "L1H2": 0.0625, "L2H1": 0.0})]).applied(model):
        torch.testing.assert_close(rows[1], model.forward(ids())[1], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(rows[0], model.forward(ids())[0], atol=1e-5, rtol=1e-5)
    assert iv.Recipe.load(iv.Recipe([one]).save(tmp_path / "heads.safetensors")) == iv.Recipe([one])
    assert iv.AttentionScale({"L0H0": 1.0}).neutral and not one.neutral and iv.AttentionScale({}).neutral
    for bad, words in (({"L1H0": -1.0}, "Gamma is -1"), ({"L1E0": 1.0}, "label of a"), ({"L9H0": 2.0}, "Layer|layer")):
        with pytest.raises(UserError, match=words), iv.Recipe([iv.AttentionScale(bad)]).applied(model):
            pass
    with pytest.raises(UserError, match="name the heads in gamma alone"):
        iv.AttentionScale(gammas, heads="L0H0")
