"""Heads of families outside the table: the head that was changed is named, or the level is refused; never 0.0."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as tf

import probes
from tests.tiny import randomize
from tests.workbench.engine.test_foreign import CONFIGS, foreign_model
from workbench.engine.families import submodule
from workbench.engine.resolving import family_of
from workbench.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.mark.parametrize("from_folder", [False, True])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_changed_head_of_the_output_projection_comes_first(family: str, from_folder: bool, tmp_path: Path) -> None:
    base, tuned = foreign_model(family), foreign_model(family)
    parts = family_of(tuned)
    weight = submodule(tuned, f"{parts.layers}.1.{parts.output}").weight
    with torch.no_grad():
        weight.view(weight.shape[0], 4, -1)[:, 2] += 1.0
    if from_folder:
        for name, model in (("base", base), ("tuned", tuned)):
            model.save_pretrained(tmp_path / name)
        base, tuned = tmp_path / "base", tmp_path / "tuned"
    table = probes.weight_delta(base, tuned).frame("head")
    assert (table["layer"][0], table["head"][0]) == (1, 2)
    assert table["score"][0] > 0.5
    assert (table["score"][1:] == 0).all()


_MIXED = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "pad_token_id": 0}
MIXED = {
    "jamba": lambda: tf.JambaConfig(
        **_MIXED, num_hidden_layers=2, num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1,
        num_experts=2, num_experts_per_tok=1, mamba_dt_rank=4, use_mamba_kernels=False,
    ),
    "qwen3_next": lambda: tf.Qwen3NextConfig(
        **_MIXED, num_hidden_layers=2, num_key_value_heads=2, head_dim=16, num_experts=2, num_experts_per_tok=1,
        layer_types=["linear_attention", "full_attention"], moe_intermediate_size=32,
        shared_expert_intermediate_size=32, linear_num_key_heads=2, linear_num_value_heads=2,
        linear_key_head_dim=16, linear_value_head_dim=16,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", MIXED)
def test_only_the_layers_with_attention_have_heads(family: str) -> None:
    base = tf.AutoModelForCausalLM.from_config(MIXED[family]())
    randomize(base, 0)
    tuned = tf.AutoModelForCausalLM.from_config(MIXED[family]())
    tuned.load_state_dict(base.state_dict())
    weight = tuned.model.layers[1].self_attn.o_proj.weight
    with torch.no_grad():
        weight.view(weight.shape[0], 4, -1)[:, 2] += 1.0
    table = probes.weight_delta(base, tuned).frame("head")
    assert set(table["layer"]) == {1}
    assert table["head"][0] == 2
    assert table["score"][0] > 0.5
    assert (table["score"][1:] == 0).all()


def test_a_model_without_heads_is_refused_in_words() -> None:
    config = tf.MambaConfig(vocab_size=300, hidden_size=64, num_hidden_layers=2, state_size=8)
    models = [tf.AutoModelForCausalLM.from_config(config) for _ in range(2)]
    for seed, model in enumerate(models):
        randomize(model, seed)
    result = probes.weight_delta(*models)
    assert len(result.frame("module"))
    with pytest.raises(UserError, match="cannot be split by head"):
        result.frame("head")
