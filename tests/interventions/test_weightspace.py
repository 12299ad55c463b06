"""Grafts, layer scaling and adapter scaling: exact at the ends, restored exactly, equal to weights set by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from interventions.recipe import Recipe
from interventions.weightspace.adapter_scale import AdapterScale
from interventions.weightspace.graft import Graft
from interventions.weightspace.layer_scale import LayerScale
from interventions.weightspace.masks import complement, head_mask, row_mask, tensor_mask
from interventions.weightspace.swapping import base_parameters
from interventions.weightspace.task_vector import TaskVector
from tests.tiny import tiny_model, token_batch, tokenizer, tuned_copy
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair, load_pair

# PEFT 0.21 asks transformers 5.23 by a name that is going out of use
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

IDS = token_batch(length=12)
Q1 = "model.layers.1.self_attn.q_proj.weight"


def full_pair(family: str = "llama") -> ModelPair:
    base = tiny_model(family)
    return load_pair(base, tuned_copy(base), tokenizer=tokenizer(), check=False)


def adapter_pair(family: str = "llama", **options: Any) -> ModelPair:
    hf = tiny_model(family)
    targets = {"gpt2": ["c_attn", "c_proj"], "qwen3moe": ["q_proj", "o_proj"]}.get(family, ["q_proj", "down_proj"])
    config = peft.LoraConfig(r=4, target_modules=targets, fan_in_fan_out=family == "gpt2", **options)
    tuned = peft.get_peft_model(hf, config).eval()
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return load_pair(hf, tuned, tokenizer=tokenizer(), check=False)


def logits(model: AdaptedModel) -> torch.Tensor:
    found = model.forward(IDS)
    assert found is not None
    return found


def steered(model: AdaptedModel, one: Any) -> torch.Tensor:
    before = {name: (id(p), p.data_ptr()) for name, p in base_parameters(model.hf).items()}
    plain = logits(model)
    with Recipe([one]).applied(model):
        inside = logits(model)
    assert {name: (id(p), p.data_ptr()) for name, p in base_parameters(model.hf).items()} == before
    assert torch.equal(logits(model), plain)
    return inside


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3moe"])
def test_the_whole_graft_is_the_tuned_model_and_the_empty_one_the_base(family: str) -> None:
    pair = full_pair(family)
    assert torch.equal(steered(pair.base, Graft.from_pair(pair)), logits(pair.tuned))
    assert torch.equal(steered(pair.base, Graft({}, {})), logits(pair.base))
    assert not torch.equal(logits(pair.base), logits(pair.tuned))


def test_a_graft_is_select_of_mask_tuned_base() -> None:
    pair = full_pair()
    before, after = base_parameters(pair.base.hf)[Q1].data, base_parameters(pair.tuned.hf)[Q1].data
    mask = torch.rand(before.shape) < 0.3
    by_hand = torch.where(mask, after, before)
    coordinates = mask.reshape(-1).nonzero()[:, 0].flip(0)
    for graft in (
        Graft({Q1: mask}, {Q1: after}),
        Graft({Q1: mask}, {Q1: after[mask]}),
        Graft({Q1: coordinates}, {Q1: after}),
        Graft({Q1: coordinates}, {Q1: after.reshape(-1)[coordinates]}),
    ):
        with Recipe([graft]).applied(pair.base):
            assert torch.equal(base_parameters(pair.base.hf)[Q1].data, by_hand)
        assert graft.size == int(mask.sum())
    with (Recipe([graft]) * 0.5).applied(pair.base):
        halfway = base_parameters(pair.base.hf)[Q1].data
        torch.testing.assert_close(halfway[mask], (before + 0.5 * (after - before))[mask])
        assert torch.equal(halfway[~mask], before[~mask])


def test_complement_and_inverse_leave_the_region_out() -> None:
    pair = full_pair()
    mask = head_mask(pair.base, ["L1H0", "L2H3"], "qo")
    rest = steered(pair.base, Graft.complement_of(pair, mask))
    assert torch.equal(rest, steered(pair.tuned, Graft.from_pair(pair, mask).inverse(pair.base)))
    with Recipe([Graft.from_pair(pair, mask), Graft.complement_of(pair, mask)]).applied(pair.base):
        assert torch.equal(logits(pair.base), logits(pair.tuned))


def test_weights_come_back_after_an_exception_and_from_nested_contexts() -> None:
    pair = full_pair()
    plain = logits(pair.base)
    outer, inner = Graft.from_pair(pair, tensor_mask(pair.base, [Q1])), Graft.from_pair(pair)
    with pytest.raises(KeyboardInterrupt), Recipe([outer]).applied(pair.base):
        with pytest.raises(ValueError), Recipe([inner]).applied(pair.base):
            raise ValueError
        assert not torch.equal(logits(pair.base), plain)
        raise KeyboardInterrupt
    assert torch.equal(logits(pair.base), plain)
    assert pair.base.n_hooks == 0


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "phi3", "qwen3"])
@pytest.mark.parametrize("part", ["q", "v", "o"])
def test_a_heads_mask_changes_that_head_alone(family: str, part: str) -> None:
    """With only one head's weights grafted, only that head's q (v, z through o) differs from the base's."""
    from workbench.engine.hub import SiteHook
    from workbench.engine.sites import Site

    pair = full_pair(family)
    graft = Graft.from_pair(pair, head_mask(pair.base, ["L0H2"], part))
    kind = {"q": "q", "v": "v", "o": "attn_out"}[part]
    seen: list[torch.Tensor] = []
    hook = SiteHook(Site(kind, 0), lambda value, ctx: seen.append(value))
    with pair.base.hooked([hook]):
        logits(pair.base)
        with Recipe([graft]).applied(pair.base):
            logits(pair.base)
    changed = (seen[0] != seen[1]).flatten(0, 1)
    if part == "o":
        weight = "model.layers.0.self_attn.o_proj" if family != "gpt2" else ""
        assert bool(changed.any()) and (not weight or graft.size == pair.base.d_model * pair.base.d_head)
    else:
        own = 2 * (1 if part == "q" else pair.base.n_kv_heads) // (1 if part == "q" else pair.base.n_heads)
        assert bool(changed.any(-1).all(0)[own])
        assert not bool(changed.any(-1)[:, [h for h in range(changed.shape[1]) if h != own]].any())


def test_the_complement_of_a_mask_covers_everything_else() -> None:
    model = full_pair().base
    mask = row_mask(model, {Q1: [0, 3]})
    rest = complement(model, mask, [Q1])
    assert not bool((mask[Q1] & rest[Q1]).any()) and bool((mask[Q1] | rest[Q1]).all())


def test_an_adapters_graft_equals_the_merged_model() -> None:
    pair = adapter_pair()
    torch.testing.assert_close(steered(pair.base, Graft.from_pair(pair)), logits(pair.tuned), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3moe"])
def test_lines_scales_each_layer_by_its_depth(family: str) -> None:
    pair = full_pair(family)
    a, b = 0.3, 0.7
    by_hand = AdaptedModel(tuned_copy(pair.base.hf, size=0.0), tokenizer())
    tuned = base_parameters(pair.tuned.hf)
    with torch.no_grad():
        for name, parameter in base_parameters(by_hand.hf).items():
            layer = int(name.split(".")[2]) if name.startswith("model.layers.") else None
            factor = a if layer is None else a + b * layer / 2
            parameter.copy_(
                base_parameters(pair.base.hf)[name] + factor * (tuned[name] - base_parameters(pair.base.hf)[name])
            )
    scaled = LayerScale.from_pair(pair, a, b)
    torch.testing.assert_close(steered(pair.base, scaled), logits(by_hand), rtol=1e-4, atol=1e-4)
    assert torch.equal(steered(pair.base, LayerScale.from_pair(pair, 1.0, 0.0)), logits(pair.tuned))
    assert torch.equal(steered(pair.base, LayerScale.from_pair(pair, 0.0, 0.0)), logits(pair.base))
    assert torch.equal(steered(pair.base, scaled.scaled(0.0)), logits(pair.base))
    assert [round(scaled.at(layer, 3), 6) for layer in range(3)] == [0.3, 0.65, 1.0]


def test_lines_on_an_adapter_is_its_scaling() -> None:
    pair = adapter_pair()
    merged = steered(pair.tuned, LayerScale.from_pair(pair, 0.2, 0.8))
    graft = Graft.from_pair(pair)
    by_weights = LayerScale(0.2, 0.8, {name: graft.tuned[name] for name in graft.mask})
    torch.testing.assert_close(merged, steered(pair.base, by_weights), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("qwen3moe", {}),
        ("llama", {"modules_to_save": ["lm_head"]}),
        ("llama", {"use_dora": True}),
        ("qwen3moe", {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}),
    ],
)
def test_adapter_scale_has_exact_ends(family: str, options: dict[str, Any]) -> None:
    pair = adapter_pair(family, **options)
    base, tuned = logits(pair.base), logits(pair.tuned)
    assert not torch.equal(base, tuned)
    assert torch.equal(steered(pair.tuned, AdapterScale(0.0)), base)
    assert torch.equal(steered(pair.tuned, AdapterScale(1.0)), tuned)
    assert torch.equal(steered(pair.tuned, AdapterScale(0.0).scaled(0.0)), tuned)
    half = steered(pair.tuned, AdapterScale(0.5))
    assert not torch.equal(half, base) and not torch.equal(half, tuned)


def other_kind(config: Any) -> ModelPair:
    """The tiny llama with an adapter that is no plain LoRA, its numbers random."""
    base = tiny_model("llama")
    torch.manual_seed(3)
    tuned = peft.get_peft_model(base, config).eval()
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    return load_pair(base, tuned, device="cpu", tokenizer=tokenizer(), check=False)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        peft.VeraConfig(r=4, target_modules=["q_proj"]),
        peft.VBLoRAConfig(r=2, topk=2, num_vectors=6, vector_length=8, target_modules=["q_proj", "v_proj"]),
        peft.ShiraConfig(r=2, target_modules=["q_proj", "down_proj"]),
        peft.LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "up_proj"]),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_other_kinds_of_adapter_scale_in_between_as_their_change_of_weights(config: Any) -> None:
    pair = other_kind(config)
    base, tuned = logits(pair.base), logits(pair.tuned)
    assert not torch.equal(base, tuned)
    for t in (0.3, 1.5):
        by_weights = steered(pair.base, (t * TaskVector.from_pair(pair)).graft(pair.base))
        torch.testing.assert_close(steered(pair.tuned, AdapterScale(t)), by_weights, rtol=1e-3, atol=1e-4)
    assert torch.equal(steered(pair.tuned, AdapterScale(0.0)), base)
    assert torch.equal(steered(pair.tuned, AdapterScale(0.3).scaled(0.0)), tuned)
    assert torch.equal(logits(pair.tuned), tuned) and torch.equal(logits(pair.base), base)
    assert not any("forward" in vars(module) for module in pair.tuned.hf.modules())


def test_an_adapter_that_rewrote_its_base_is_scaled_on_the_base() -> None:
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], kasa_config=peft.KasaConfig())
    torch.manual_seed(0)
    changed = peft.get_peft_model(tiny_model("llama"), config).eval()
    for name, parameter in changed.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    pair = load_pair(tiny_model("llama"), changed, device="cpu", tokenizer=tokenizer(), check=False)
    with pytest.raises(NotSupported, match="took its start out of the base"):
        steered(pair.tuned, AdapterScale(0.5))
    vector = TaskVector.from_pair(pair)
    torch.testing.assert_close(steered(pair.base, vector.graft(pair.base)), logits(pair.tuned), rtol=1e-3, atol=1e-4)
    half = steered(pair.base, (0.5 * vector).graft(pair.base))
    assert not torch.allclose(half, logits(pair.base)) and not torch.allclose(half, logits(pair.tuned))


def test_adapter_scale_between_equals_scaled_weights() -> None:
    pair = adapter_pair(modules_to_save=["lm_head"])
    tuned = Graft.from_pair(pair)
    half = {name: base_parameters(pair.base.hf)[name] * 0.5 + tuned.tuned[name] * 0.5 for name in tuned.mask}
    by_hand = Graft(dict.fromkeys(half), {name: value.detach() for name, value in half.items()})
    torch.testing.assert_close(
        steered(pair.tuned, AdapterScale(0.5)), steered(pair.base, by_hand), rtol=1e-4, atol=1e-4
    )


def test_adapter_scale_per_layer_module_and_rank() -> None:
    pair = adapter_pair()
    only_middle = steered(pair.tuned, AdapterScale(layers={0: 0.0, 2: 0.0}))
    graft = Graft.from_pair(pair)
    middle = {name: graft.tuned[name] for name in graft.mask if ".layers.1." in name}
    torch.testing.assert_close(
        only_middle, steered(pair.base, Graft(dict.fromkeys(middle), middle)), rtol=1e-4, atol=1e-4
    )
    one_by_one = steered(pair.tuned, AdapterScale(modules={"q_proj": 0.0, "mlp.down_proj": 0.0}))
    assert torch.equal(one_by_one, logits(pair.base))
    assert torch.equal(steered(pair.tuned, AdapterScale(ranks=[0.0] * 4)), logits(pair.base))
    assert torch.equal(steered(pair.tuned, AdapterScale(ranks=[1.0] * 4)), logits(pair.tuned))
    torch.testing.assert_close(
        steered(pair.tuned, AdapterScale(ranks=[0.5] * 4)), steered(pair.tuned, AdapterScale(0.5))
    )
    alone = steered(pair.tuned, AdapterScale(ranks=[0.0, 1.0, 0.0, 0.0]))
    layer = pair.adapter.get_base_model().model.layers[1].self_attn.q_proj
    assert not torch.equal(alone, logits(pair.tuned)) and layer.scaling["default"] == 2.0


def test_recipes_of_weights_round_trip(tmp_path: Path) -> None:
    pair = full_pair()
    mask = head_mask(pair.base, ["L1H1"]) | tensor_mask(pair.base, ["model.norm.weight"])
    recipe = Recipe([Graft.from_pair(pair, mask), Graft(dict.fromkeys([Q1]), {Q1: torch.zeros(64, 64)})])
    path = recipe.save(tmp_path / "graft.safetensors")
    again = Recipe.load(path)
    assert again == recipe
    with recipe.applied(pair.base):
        wanted = logits(pair.base)
    with again.applied(pair.base):
        assert torch.equal(logits(pair.base), wanted)
    scale = Recipe([AdapterScale(0.5, layers={0: 0.1}, ranks=[1.0, 0.0, 1.0, 1.0]), LayerScale(0.5, 0.5)])
    scale.save(tmp_path / "scale.safetensors")
    assert Recipe.load(tmp_path / "scale.safetensors") == scale


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda pair: Graft({"nope": None}, {"nope": torch.zeros(2)}), "Unknown parameter"),
        (lambda pair: Graft({Q1: None}, {Q1: torch.zeros(2)}), "made for another model"),
        (lambda pair: Graft({Q1: torch.tensor([9999])}, {Q1: torch.zeros(1)}), "made for another model"),
        (lambda pair: Graft({Q1: torch.tensor([9999])}, {Q1: torch.zeros(64, 64)}), "made for another model"),
        (lambda pair: Graft({Q1: None}, {}), "only one of mask and tuned"),
        (lambda pair: Graft({Q1: None}, {Q1: torch.full((64, 64), torch.nan)}), "not finite"),
        (lambda pair: Graft({Q1: torch.zeros(64, 64)}, {Q1: torch.zeros(64, 64)}), "bool entries"),
        (lambda pair: Graft({Q1: torch.ones(64, 64, dtype=torch.bool)}, {Q1: torch.zeros(3)}), "one value per entry"),
        (lambda pair: AdapterScale(0.5), "carries no adapter"),
        (lambda pair: LayerScale(0.5, 0.5), "carries no adapter"),
        (lambda pair: head_mask(pair.base, ["L0H9"]), "no head of this model"),
        (lambda pair: row_mask(pair.base, {Q1: [64]}), "row 64 does not exist"),
    ],
)
def test_misfits_are_refused_in_words(make: Any, words: str) -> None:
    pair = full_pair()
    with pytest.raises(UserError, match=words):
        made = make(pair)
        with Recipe([made]).applied(pair.base):
            pass


def test_the_base_view_and_unknown_modules_are_refused() -> None:
    pair = adapter_pair()
    for scale, words in (
        (AdapterScale(modules={"o_proj": 0.0}), "No module"),
        (AdapterScale(layers={7: 0.0}), "out of range"),
        (AdapterScale(ranks=[1.0, 0.0]), "rank 4"),
    ):
        with pytest.raises(UserError, match=words), Recipe([scale]).applied(pair.tuned):
            pass
    with pytest.raises(UserError, match="adapter off"), Recipe([AdapterScale(0.5)]).applied(pair.base):
        pass
