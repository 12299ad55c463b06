"""What may differ is told in sentences, what may not is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.tiny import FAMILIES, tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.differences import common_token_ids, compare, compare_tokens


def extended(*tokens: str) -> Any:
    own = copy.deepcopy(tokenizer())
    own.add_tokens(list(tokens))
    return own


def config(family: str = "llama", **changes: Any) -> Any:
    return tiny_model(family, **changes).config


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_against_itself_has_no_differences(family: str) -> None:
    model = tiny_model(family)
    same = compare(model.config, model.config, tokenizer(), tokenizer(), base_model=model, tuned_model=model)
    assert same.sentences() == []
    assert same.tokens.same and same.tokens.common == 300


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hidden_size": 128}, "hidden_size is 64 in the base and 128 in the tuned"),
        ({"num_hidden_layers": 2}, "num_hidden_layers is 3 in the base and 2 in the tuned"),
        ({"num_attention_heads": 8, "head_dim": 8}, "num_attention_heads is 4 in the base and 8 in the tuned"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 2 in the base and 4 in the tuned"),
        ({"intermediate_size": 80}, "intermediate_size is 96 in the base and 80 in the tuned"),
    ],
)
def test_other_widths_are_refused_by_name(changes: dict[str, int], field: str) -> None:
    with pytest.raises(UserError, match=field):
        compare(config(), config(**changes), tokenizer(), tokenizer())


def test_other_architectures_are_refused() -> None:
    with pytest.raises(UserError, match=r"different architectures: model_type is 'llama' .*'mistral'"):
        compare(config(), config("mistral"), tokenizer(), tokenizer())


def test_a_head_width_left_out_equals_the_one_it_stands_for() -> None:
    told, left_out = config("qwen2"), config("qwen2")
    told.head_dim = 16
    assert compare(told, left_out, tokenizer(), tokenizer()).sentences() == []


def test_other_experts_are_refused() -> None:
    with pytest.raises(UserError, match="num_experts is 8 in the base and 4 in the tuned"):
        compare(config("qwen3moe"), config("qwen3moe", num_experts=4), tokenizer(), tokenizer())


def test_added_tokens_are_counted_and_the_common_ids_kept() -> None:
    tuned_tok = extended("<tool>", "</tool>")
    found = compare(config(), config(vocab_size=304), tokenizer(), tuned_tok)
    assert found.tokens.added == ("<tool>", "</tool>")
    assert found.tokens.vocab_sizes == (300, 304)
    ids = common_token_ids(tokenizer(), tuned_tok, 300, 304)
    taken = {tuned_tok.convert_tokens_to_ids(token) for token in found.tokens.added}
    assert ids.tolist() == [i for i in range(300) if i not in taken]
    assert found.tokens.common == len(ids) == 300 - sum(i < 300 for i in taken)
    assert found.sentences() == [
        "2 tokens are only in the tuned model's tokenizer ('<tool>', '</tool>').",
        "The vocabulary has 300 rows in the base, 304 in the tuned model.",
        f"Logits are compared on the {found.tokens.common} ids common to both.",
    ]


def test_padding_rows_alone_are_said() -> None:
    found = compare(config(), config(vocab_size=320), tokenizer(), tokenizer())
    assert found.tokens.common == 300 and found.tokens.added == ()
    assert any("300" in sentence and "320" in sentence for sentence in found.sentences())


def test_a_token_with_another_id_is_refused() -> None:
    with pytest.raises(UserError, match=r"2 tokens have another id in the tuned model \('<a>'"):
        compare_tokens(extended("<a>", "<b>"), extended("<b>", "<a>"), 310, 310)


def test_chat_templates_and_special_tokens() -> None:
    tuned_tok = copy.deepcopy(tokenizer())
    tuned_tok.chat_template = "{{ messages }}"
    tuned_tok.eos_token = "<unk>"
    said = compare(config(), config(), tokenizer(), tuned_tok).sentences()
    assert any(
        one.startswith("The chat templates differ: chats and questions are put through the tuned") for one in said
    )
    assert any("eos token" in sentence and "'<eos>'" in sentence and "'<unk>'" in sentence for sentence in said)


def test_computation_dtype_quantization_and_place() -> None:
    base, tuned = tiny_model("llama"), tiny_model("llama", dtype=torch.bfloat16)
    tuned.config.rms_norm_eps = 1e-5
    tuned.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    tuned.hf_device_map = {"model": 0, "lm_head": "disk"}
    found = compare(
        base.config, tuned.config, tokenizer(), tokenizer(), base_model=base, tuned_model=tuned, notes=("Note.",)
    )
    said = found.sentences()
    assert said[0] == "Note."
    assert any("rms_norm_eps" in sentence and "1e-06" in sentence and "1e-05" in sentence for sentence in said)
    assert "The base computes in float32, the tuned model in bfloat16." in said
    assert "The tuned model's weights are quantized (gptq, 4 bits): differences include its rounding." in said
    assert "The base lies on cpu, the tuned model on 0 + disk." in said
    assert len(said) == 5
