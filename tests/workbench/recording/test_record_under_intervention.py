"""Recording sees what the model computes under an intervention, whatever was entered first."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch

import interventions as iv
from tests.tiny import tiny_model, token_batch, tokenizer, tuned_copy
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.models.adapted import AdaptedModel
from workbench.models.export import plain_copy
from workbench.models.pair import ModelPair, load_pair
from workbench.recording.record_pair import record

IDS = token_batch()
PROMPTS = ["the quick brown fox", "hello world this is a test", "the lazy dog jumps over"]
SITES = ["resid_pre", "z", "mlp_out", "resid_post"]


@pytest.fixture
def model() -> AdaptedModel:
    return AdaptedModel(tiny_model("llama"), tokenizer())


@pytest.fixture
def pair() -> ModelPair:
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapter = peft.get_peft_model(tiny_model("llama"), config).eval()
    return load_pair(adapter.get_base_model(), adapter, tokenizer=tokenizer())


def reader(kind: str, layer: int, into: list[torch.Tensor]) -> SiteHook:
    return SiteHook(Site(kind, layer), lambda value, _ctx: into.append(value.clone()))


def editor(kind: str, layer: int, step: float) -> SiteHook:
    return SiteHook(Site(kind, layer), lambda value, _ctx: value + step, edit=True)


@pytest.mark.parametrize("kind", ["resid_pre", "resid_mid", "z", "attn_out", "mlp_out", "resid_post", "v", "mlp_post"])
def test_a_reader_sees_the_edit_in_whichever_order_they_came(model: AdaptedModel, kind: str) -> None:
    plain: list[torch.Tensor] = []
    with model.hooked([reader(kind, 1, plain)]):
        model.forward(IDS)
    seen: list[torch.Tensor] = []
    with model.hooked([reader(kind, 1, seen)]), model.hooked([editor(kind, 1, 2.0)]):
        model.forward(IDS)
    with model.hooked([editor(kind, 1, 2.0)]), model.hooked([reader(kind, 1, seen)]):
        model.forward(IDS)
    with model.hooked([reader(kind, 1, seen), editor(kind, 1, 2.0)]):
        model.forward(IDS)
    assert len(seen) == 3
    for value in seen:
        torch.testing.assert_close(value, plain[0] + 2.0, atol=1e-5, rtol=1e-5)


def test_edits_run_in_the_order_they_were_entered(model: AdaptedModel) -> None:
    double = SiteHook(Site("resid_post", 0), lambda value, _ctx: value * 2, edit=True)
    plain: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []
    with model.hooked([reader("resid_post", 0, plain)]):
        model.forward(IDS)
    with (
        model.hooked([double]),
        model.hooked([editor("resid_post", 0, 1.0)]),
        model.hooked([reader("resid_post", 0, seen)]),
    ):
        model.forward(IDS)
    with (
        model.hooked([editor("resid_post", 0, 1.0)]),
        model.hooked([double]),
        model.hooked([reader("resid_post", 0, seen)]),
    ):
        model.forward(IDS)
    torch.testing.assert_close(seen[0], plain[0] * 2 + 1)
    torch.testing.assert_close(seen[1], (plain[0] + 1) * 2)


def test_hooks_of_the_user_fire_and_their_edits_are_recorded(model: AdaptedModel) -> None:
    fired: list[int] = []
    plain = record(model, PROMPTS, "resid_post", positions="all")

    def shift(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        fired.append(1)
        return output + 1.0

    handle = model.hf.model.layers[0].register_forward_hook(shift)
    try:
        steered = record(model, PROMPTS, "resid_post", positions="all")
    finally:
        handle.remove()
    assert fired
    torch.testing.assert_close(steered["model"]["resid_post", 0], plain["model"]["resid_post", 0] + 1.0)
    again = record(model, PROMPTS, "resid_post", positions="all")
    assert all(torch.equal(again["model"][site], plain["model"][site]) for site in plain.sites)


def test_a_recording_keeps_its_rows_when_a_later_hook_writes_in_place(model: AdaptedModel) -> None:
    """Every position of an unpadded batch is kept: the rows must be a copy, not the model's own tensor."""
    prompts = [PROMPTS[0]] * 3
    plain = record(model, prompts, "resid_post", layers=1, positions="all")

    def overwrite(_module: Any, args: Any, _kwargs: Any) -> None:
        args[0].fill_(7.0)

    handle = model.hf.model.layers[2].register_forward_pre_hook(overwrite, with_kwargs=True)
    try:
        got = record(model, prompts, ["resid_post"], layers=[1, 2], positions="all")
    finally:
        handle.remove()
    assert torch.equal(got["model"]["resid_post", 1], plain["model"]["resid_post", 1])
    assert not torch.isclose(got["model"]["resid_post", 2], torch.tensor(7.0)).all()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_record_inside_a_recipe_equals_the_edit_by_hand(model: AdaptedModel, batch_size: int) -> None:
    vector = torch.randn(model.d_model)
    recipe = iv.Recipe([iv.Offset(site="resid_post", layer=0, vector=vector, strength=1.5, positions="all")])
    plain = record(model, PROMPTS, SITES, positions="all", batch_size=batch_size)
    with recipe.applied(model):
        steered = record(model, PROMPTS, SITES, positions="all", batch_size=batch_size)
    by_hand: list[torch.Tensor] = []
    offset = SiteHook(Site("resid_post", 0), lambda value, _ctx: value + 1.5 * vector, edit=True)
    with model.hooked([offset, reader("z", 2, by_hand)]):
        for prompt in PROMPTS:
            model.forward(model.encode([prompt]))
    want = torch.cat([one[0] for one in by_hand])
    torch.testing.assert_close(steered["model"]["z", 2], want, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        steered["model"]["resid_post", 0], plain["model"]["resid_post", 0] + 1.5 * vector, atol=1e-5, rtol=1e-5
    )
    assert torch.equal(steered["model"]["z", 0], plain["model"]["z", 0]), "nothing before the edit moves"
    assert not torch.allclose(steered["model"]["z", 1], plain["model"]["z", 1])


def test_a_recording_of_a_pair_shows_the_edit_on_one_side_only(pair: ModelPair) -> None:
    plain = record(pair, PROMPTS, "resid_post", positions="all")
    with pair.tuned.hooked([editor("resid_post", 1, 3.0)]):
        steered = record(pair, PROMPTS, "resid_post", positions="all")
    assert torch.equal(steered["base"]["resid_post", 2], plain["base"]["resid_post", 2])
    torch.testing.assert_close(steered["tuned"]["resid_post", 1], plain["tuned"]["resid_post", 1] + 3.0)
    assert pair.base.n_hooks == 0


def test_an_adapter_pair_records_what_two_separate_models_do(pair: ModelPair) -> None:
    apart = load_pair(tiny_model("llama"), plain_copy(pair.tuned), tokenizer=tokenizer())
    assert pair.one_copy and not apart.one_copy
    one, two = (record(each, PROMPTS, SITES, positions="all", logits=True) for each in (pair, apart))
    assert one.index.equals(two.index)
    for site in one.sites:
        assert torch.equal(one["base"][site], two["base"][site]), site
        torch.testing.assert_close(one["tuned"][site], two["tuned"][site], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(one["base"]["z", 1], one["tuned"]["z", 1])


def test_statistics_do_not_depend_on_how_prompts_are_batched() -> None:
    base = tiny_model("llama")
    pair = load_pair(base, tuned_copy(base), tokenizer=tokenizer())
    prompts = [f"{PROMPTS[i % 3]} {'fox ' * (i % 5)}" for i in range(30)]
    one = record(pair, prompts, "z", positions="all", store=None, batch_size=1, top=4)
    many = record(pair, prompts, "z", positions="all", store=None, batch_size=8, top=4)
    for role in ("base", "tuned", "difference"):
        for site, moments in one.moments[role].items():
            other = many.moments[role][site]
            assert moments.count == other.count == len(one)
            torch.testing.assert_close(moments.mean, other.mean, atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(moments.variance, other.variance, atol=1e-6, rtol=1e-3)
