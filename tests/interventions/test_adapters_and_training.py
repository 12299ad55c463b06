"""Recipes on a model that carries a LoRA adapter, and under gradient checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import interventions as iv
from tests.interventions.zoo import ids, noise, other_ids
from tests.tiny import tiny_model, tokenizer
from workbench.models.adapted import AdaptedModel

pytestmark = pytest.mark.filterwarnings("ignore::interventions.attention_scale.EagerAttentionWarning")


def with_lora(targets: list[str]) -> Any:
    """A tiny Llama with a LoRA adapter that does something."""
    peft = get_peft_model(tiny_model("llama"), LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    return peft.eval()


def test_head_writes_go_through_the_adapter() -> None:
    peft = with_lora(["o_proj", "q_proj"])
    model = AdaptedModel(peft, tokenizer())
    outputs = []
    for what in ("z", "write"):
        patch = iv.Patch.from_run(model, other_ids(), 1, "z", heads=[0, 2], what=what)
        with iv.Recipe([patch]).applied(model):
            outputs.append(model.forward(ids()))
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(outputs[0], model.forward(ids()), atol=1e-2)


def test_the_same_recipe_on_merged_weights() -> None:
    peft = with_lora(["o_proj", "v_proj", "down_proj"])
    recipe = iv.Recipe([
        iv.Offset(0, noise(64), "mlp_out"), iv.HeadScale({"L1H1": 0.0}), iv.ConceptAblation(2, noise(2, 64))
    ])  # fmt: skip
    with recipe.applied(peft), torch.no_grad():
        unmerged = peft(input_ids=ids()).logits
    merged = AdaptedModel(peft.merge_and_unload(), tokenizer())
    with recipe.applied(merged):
        torch.testing.assert_close(merged.forward(ids()), unmerged, atol=1e-4, rtol=1e-4)


def gradients(hf: Any, recipe: iv.Recipe) -> Iterator[torch.Tensor]:
    hf.zero_grad()
    with recipe.applied(hf):
        hf(ids(), labels=ids(), use_cache=False).loss.backward()
    for intervention in recipe:
        if isinstance(intervention, iv.HeadOffset):
            yield from (vector.grad.clone() for vector in intervention.vectors.values())
    yield from (parameter.grad.clone() for parameter in hf.parameters() if parameter.grad is not None)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    hf = tiny_model("qwen3moe").train()

    def recipe() -> iv.Recipe:
        return iv.Recipe([
            iv.HeadOffset({"L1H2": torch.zeros(32, requires_grad=True)}, positions="all - first"),
            iv.ExpertSwitch(["L1E1"]),
            iv.ExpertSwitch(["L1E2"], mode="drop_renorm", positions="prompt[4:]"),
            iv.AttentionScale(2.0, ["L2H1"]),
            iv.ConceptAblation(1, noise(3, 64)),
        ])  # fmt: skip

    plain = list(gradients(hf, recipe()))
    hf.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    checkpointed = list(gradients(hf, recipe()))
    assert plain[0].norm() > 0
    for ours, wanted in zip(checkpointed, plain, strict=True):
        torch.testing.assert_close(ours, wanted)
