"""The effective change of weights against two other readings: merged weights, and outputs of the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch

from tests.tiny import tiny_model, token_batch
from workbench.errors import NotSupported, UserError
from workbench.models.weight_changes import adapted_modules, effective_delta, factors

# advice PEFT gives while it builds adapters, here only the tests' own
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:peft.*"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
]

Q = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.2.mlp.down_proj"
TARGETS = ["q_proj", "down_proj"]

LINEAR_TYPES: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False),
    "rslora": lambda: peft.LoraConfig(r=4, target_modules=TARGETS, use_rslora=True, rank_pattern={"q_proj": 2}),
    "dora": lambda: peft.LoraConfig(r=4, target_modules=TARGETS, use_dora=True),
    "adalora": lambda: peft.AdaLoraConfig(init_r=4, target_modules=TARGETS, total_step=10),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=TARGETS),
    "lokr": lambda: peft.LoKrConfig(r=4, target_modules=TARGETS),
    "ia3": lambda: peft.IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]),
    "oft": lambda: peft.OFTConfig(r=0, oft_block_size=16, target_modules=TARGETS),
    "boft": lambda: peft.BOFTConfig(boft_block_size=4, target_modules=TARGETS),
    "vera": lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "o_proj"]),
    "hra": lambda: peft.HRAConfig(r=4, target_modules=TARGETS),
    "hira": lambda: peft.HiraConfig(r=4, target_modules=TARGETS),
    "shira": lambda: peft.ShiraConfig(r=4, target_modules=TARGETS),
}


def randomized(config: Any, family: str = "llama", size: float = 0.1) -> Any:
    """A tiny model with the adapter of ``config``, its trainable weights moved off their neutral start."""
    model = peft.get_peft_model(tiny_model(family), config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    return model


def outputs_change(model: Any, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """The adapter's change of the outputs of a bias-free module on ``inputs``, in the live float32."""
    module = model.get_base_model().get_submodule(name)
    with torch.no_grad():
        on = module(inputs)
        with model.disable_adapter():
            return on - module(inputs)


@pytest.mark.parametrize("kind", LINEAR_TYPES)
def test_delta_explains_the_change_of_outputs(kind: str) -> None:
    model = randomized(LINEAR_TYPES[kind]())
    for name in adapted_modules(model):
        delta = effective_delta(model, name)
        inputs = torch.randn(1, 5, delta.shape[1])
        expected = outputs_change(model, name, inputs)
        assert expected.norm() > 1e-2, "the adapter must do something for this test to say anything"
        assert torch.allclose(inputs @ delta.T, expected, atol=2e-4 * float(expected.norm()))


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "loha", "lokr", "ia3", "oft", "boft", "hra"])
def test_delta_equals_the_merged_weight_minus_the_base(kind: str) -> None:
    model = randomized(LINEAR_TYPES[kind]())
    names = adapted_modules(model)
    deltas = {name: effective_delta(model, name) for name in names}
    before = {name: model.get_base_model().get_submodule(name).base_layer.weight.clone() for name in names}
    merged = model.merge_and_unload()
    for name in names:
        change = merged.get_submodule(name).weight - before[name]
        assert torch.allclose(deltas[name], change, atol=1e-4 * float(before[name].norm()))
        assert change.norm() > 1e-2


def test_adapted_modules_are_named_as_in_the_base() -> None:
    model = randomized(LINEAR_TYPES["lora"]())
    expected = [f"model.layers.{i}.{part}" for i in range(3) for part in ("mlp.down_proj", "self_attn.q_proj")]
    assert adapted_modules(model) == expected


def test_factors_are_the_live_tensors_of_a_plain_lora() -> None:
    model = randomized(LINEAR_TYPES["rslora"]())
    layer = model.get_base_model().get_submodule(Q)
    found = factors(model, Q)
    assert found is not None
    assert found.A is layer.lora_A["default"].weight and found.A.shape == (2, 64)  # the rank pattern's rank
    assert found.scaling == pytest.approx(8 / 2**0.5)  # alpha / sqrt(r)
    assert torch.allclose(found.scaling * found.B @ found.A, layer.get_delta_weight("default"), atol=1e-6)


@pytest.mark.parametrize("kind", ["dora", "adalora", "loha", "ia3", "oft"])
def test_no_factors_where_the_product_is_not_the_change(kind: str) -> None:
    assert factors(randomized(LINEAR_TYPES[kind]()), Q) is None


def test_conv1d_of_gpt2_is_given_as_out_in() -> None:
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    model = randomized(config, "gpt2")
    name = "transformer.h.0.attn.c_attn"
    delta = effective_delta(model, name)
    assert delta.shape == (192, 64)
    inputs = torch.randn(1, 5, 64)
    assert torch.allclose(inputs @ delta.T, outputs_change(model, name, inputs), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_embedding_change_is_per_token(family: str) -> None:
    config = peft.LoraConfig(r=4, target_modules=["embed_tokens"], init_lora_weights=False)
    model = randomized(config, family)
    delta = effective_delta(model, "model.embed_tokens")
    ids = torch.tensor([[5, 9, 250]])
    change = outputs_change(model, "model.embed_tokens", ids)[0]
    scale = float(getattr(model.get_base_model().model.embed_tokens.get_base_layer(), "embed_scale", 1.0))
    assert delta.shape == (300, 64)
    assert torch.allclose(delta[ids[0]] * scale, change, atol=1e-5)
    found = factors(model, "model.embed_tokens")
    assert found is not None
    assert torch.allclose(found.scaling * found.B @ found.A, delta, atol=1e-6)


def test_modules_to_save_count_as_their_whole_change() -> None:
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = randomized(config)
    head = model.get_base_model().lm_head
    expected = head.modules_to_save["default"].weight - head.original_module.weight
    assert "lm_head" in adapted_modules(model)
    assert torch.allclose(effective_delta(model, "lm_head"), expected, atol=1e-6)
    assert expected.norm() > 0.1


@pytest.mark.parametrize("family", ["mixtral", "qwen3moe", "gptoss"])
def test_experts_change_per_expert(family: str) -> None:
    config = peft.LoraConfig(
        r=2,
        target_modules=[],
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
        init_lora_weights=False,
    )
    model = randomized(config, family)
    names = adapted_modules(model)
    assert names == [f"model.layers.{i}.mlp.experts.{p}" for i in range(3) for p in ("down_proj", "gate_up_proj")]
    deltas = {name: effective_delta(model, name) for name in names}
    base = tiny_model(family)
    merged = model.merge_and_unload()
    for name in names:
        module, _, parameter = name.rpartition(".")
        change = merged.get_submodule(module).get_parameter(parameter) - base.get_submodule(module).get_parameter(
            parameter
        )
        stored = change.mT if family == "gptoss" else change  # GPT-OSS keeps [expert, in, out]
        assert torch.allclose(deltas[name], stored, atol=1e-5)
        assert stored.norm() > 1e-2


def test_router_change() -> None:
    config = peft.LoraConfig(r=2, target_modules=[], target_parameters=["mlp.gate.weight"], init_lora_weights=False)
    model = randomized(config, "qwen3moe")
    delta = effective_delta(model, "model.layers.0.mlp.gate.weight")
    before = tiny_model("qwen3moe").model.layers[0].mlp.gate.weight
    after = model.merge_and_unload().model.layers[0].mlp.gate.weight
    assert torch.allclose(delta, after - before, atol=1e-6)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_rewritten_base_is_read_against_the_true_base(init: str) -> None:
    base = tiny_model("llama")
    model = randomized(peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=init))
    merged = model.merge_and_unload().get_submodule(Q).weight
    model = randomized(peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=init))
    true_change = merged - base.get_submodule(Q).weight
    assert torch.allclose(effective_delta(model, Q, base=base), true_change, atol=1e-4)
    wrong = effective_delta(model, Q) - true_change
    assert wrong.norm() > 0.1 * true_change.norm()  # against the rewritten base it would be another change


def test_bfloat16_base_does_not_round_the_change() -> None:
    model = peft.get_peft_model(
        tiny_model("llama", dtype=torch.bfloat16),
        peft.LoraConfig(r=4, target_modules=TARGETS, use_dora=True, init_lora_weights=False),
    ).eval()
    layer = model.get_base_model().get_submodule(Q)
    weight = layer.base_layer.weight.double()
    low_rank = layer.scaling["default"] * (
        layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
    )
    magnitude = layer.lora_magnitude_vector["default"].weight.double()
    moved = weight + low_rank
    expected = magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True) - weight  # DoRA, eq. 5
    assert torch.allclose(effective_delta(model, Q).double(), expected, atol=1e-5)


def test_the_live_model_is_left_alone() -> None:
    model = randomized(LINEAR_TYPES["dora"]())
    fired: list[str] = []
    layer = model.get_base_model().get_submodule(Q)
    layer.register_forward_hook(lambda *_: fired.append("hook"))
    tokens = token_batch()
    with torch.no_grad():
        before = model(input_ids=tokens).logits
    fired.clear()
    effective_delta(model, Q)
    assert fired == []
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens).logits, before)
    assert fired == ["hook"]


def test_second_adapter_is_read_by_name() -> None:
    model = randomized(LINEAR_TYPES["dora"]())
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    layer = model.get_base_model().get_submodule(Q)
    assert torch.allclose(effective_delta(model, Q, "other"), layer.get_delta_weight("other"), atol=1e-6)
    assert adapted_modules(model, "other") == [f"model.layers.{i}.self_attn.q_proj" for i in range(3)]
    assert model.active_adapter == "default"


def test_poly_has_no_single_change() -> None:
    model = randomized(peft.PolyConfig(r=2, n_tasks=2, n_skills=2, target_modules=TARGETS))
    with pytest.raises(NotSupported, match="POLY mixes its parts anew for each input"):
        effective_delta(model, Q)


def test_an_adapter_that_is_not_linear_is_found_out() -> None:
    model = randomized(peft.LilyConfig(r=4, target_modules=TARGETS), size=0.5)
    with pytest.raises(NotSupported, match="not linear in its input"):
        effective_delta(model, Q)


def test_a_norm_is_no_linear_map() -> None:
    model = randomized(peft.LNTuningConfig(target_modules=["input_layernorm"]))
    with pytest.raises(NotSupported, match="no linear map"):
        effective_delta(model, "model.layers.0.input_layernorm")


def test_unknown_names_are_refused_with_the_closest() -> None:
    model = randomized(LINEAR_TYPES["lora"]())
    with pytest.raises(UserError, match=f"Did you mean '{Q}'"):
        effective_delta(model, "model.layers.1.self_attn.q_prj")
    with pytest.raises(UserError, match="Known: default"):
        effective_delta(model, Q, "defualt")
