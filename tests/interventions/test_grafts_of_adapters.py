"""What adapters change beside plain matrices, in grafts and scaling: biases, norms, tied and own weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from interventions.recipe import Recipe
from interventions.weightspace.adapter_scale import AdapterScale
from interventions.weightspace.graft import Graft
from interventions.weightspace.task_vector import TaskVector
from tests.tiny import tiny_model, token_batch, tokenizer
from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.typing import Tensor

IDS = token_batch()


def logits(model: AdaptedModel) -> Tensor:
    values = model.forward(IDS)
    assert values is not None
    return values


def steered(model: AdaptedModel, intervention: Any) -> Tensor:
    with Recipe([intervention]).applied(model):
        return logits(model)


def _trained(base: Any, config: Any) -> Any:
    tuned = peft.get_peft_model(base, config).eval()
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (one for one in tuned.parameters() if one.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return tuned


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("options", [{"bias": "all"}, {"init_lora_weights": "pissa"}], ids=["biases", "PiSSA"])
def test_an_adapter_whose_off_is_not_the_base_is_not_scaled(tmp_path: Path, options: dict[str, Any]) -> None:
    base = tiny_model("qwen2")
    base.save_pretrained(tmp_path / "base")
    tuned = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"], **options))
    with torch.no_grad():
        for parameter in (one for one in tuned.parameters() if one.requires_grad):
            parameter += 0.1
    tuned.save_pretrained(tmp_path / "adapter")
    pair = load_pair(tmp_path / "base", tmp_path / "adapter", device="cpu", tokenizer=tokenizer())
    for scale in (0.0, 0.5):
        with pytest.raises(NotSupported, match=r"cannot be scaled towards the base: the adapter .* rewrites"):
            steered(pair.tuned, AdapterScale(scale))
    assert torch.equal(steered(pair.tuned, AdapterScale(1.0)), logits(pair.tuned))
    given = load_pair(tuned.get_base_model(), tuned, device="cpu", tokenizer=tokenizer())
    assert "with its adapter off is not the base that it came from" in " ".join(given.differences.sentences())


BIASES = {
    "IA3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "lora_bias": peft.LoraConfig(r=4, target_modules=["q_proj", "k_proj"], lora_bias=True),
    "bias=all": peft.LoraConfig(r=4, target_modules=["q_proj"], bias="all"),
    "GLoRA": peft.GloraConfig(target_modules=["q_proj", "k_proj"]),
    "BEFT": peft.BeftConfig(target_modules=["v_proj"]),
    "norms": peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "norms beside a LoRA": peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm", "lm_head"]),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", BIASES)
def test_a_graft_of_everything_is_the_tuned_model_biases_and_norms_too(kind: str, tmp_path: Path) -> None:
    tiny_model("qwen2").save_pretrained(tmp_path / "base")
    _trained(tiny_model("qwen2"), BIASES[kind]).save_pretrained(tmp_path / "adapter")
    pair = load_pair(tmp_path / "base", tmp_path / "adapter", device="cpu", tokenizer=tokenizer())
    wanted = logits(pair.tuned)
    assert not torch.allclose(wanted, logits(pair.base), atol=1e-2)
    for graft in (Graft.from_pair(pair), TaskVector.from_pair(pair).graft(pair.base)):
        torch.testing.assert_close(steered(pair.base, graft), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens"], "use_dora": True},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["embeddings", "head", "whole head"],
)
def test_a_tied_weight_of_two_values_is_no_graft(options: dict[str, Any]) -> None:
    base = tiny_model("llama", tie_word_embeddings=True)
    pair = load_pair(base, _trained(base, peft.LoraConfig(r=4, **options)), device="cpu", tokenizer=tokenizer())
    for make in (Graft.from_pair, TaskVector.from_pair):
        with pytest.raises(NotSupported, match="are one tensor in the base and two in the tuned model"):
            make(pair)


def test_a_head_untied_in_tuning_is_no_graft() -> None:
    base = tiny_model("llama", tie_word_embeddings=True)
    tuned = tiny_model("llama", tie_word_embeddings=False)
    tuned.load_state_dict({**base.state_dict(), "lm_head.weight": base.lm_head.weight + 1.0})
    with pytest.raises(NotSupported, match="are one tensor in the base and two in the tuned model"):
        Graft.from_pair(load_pair(base, tuned, device="cpu", tokenizer=tokenizer()))
