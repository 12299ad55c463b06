"""The same weights twice, with something else that differs: told, and left out of the comparison where it can be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from probes import weight_delta
from tests.tiny import tiny_model, tokenizer
from workbench import behaviour_diff, record
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_again, load_one, load_pair

PROMPTS = ["the quick brown fox", "the lazy dog jumps"]
OTHER = "{% for m in messages %}<<{{ m['content'] }}>>{% endfor %}"
OWN = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"


@pytest.fixture
def twins(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of the same weights, tokenizer and settings."""
    base = tmp_path / "base"
    tiny_model("llama").save_pretrained(base)
    tokenizer().save_pretrained(base)
    shutil.copytree(base, tmp_path / "same")
    return base, tmp_path / "same"


def rewrite(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def said_by(pair: ModelPair) -> str:
    return " | ".join(pair.differences.sentences())


def test_the_same_folder_twice_says_nothing(twins: tuple[Path, Path]) -> None:
    assert load_pair(*twins).differences.sentences() == []


def test_a_generation_config_is_told_and_left_out_of_texts(twins: tuple[Path, Path]) -> None:
    rewrite(twins[1] / "generation_config.json", repetition_penalty=1.8, do_sample=True, temperature=0.6)
    pair = load_pair(*twins)
    assert pair.base.generate(PROMPTS, max_new_tokens=20) == pair.tuned.generate(PROMPTS, max_new_tokens=20)
    assert "repetition_penalty: None in the base, 1.8 in the tuned model" in said_by(pair)
    assert "temperature" not in said_by(pair)  # greedy texts do not ask for it
    diff = behaviour_diff(pair, PROMPTS, metrics=["repetition", "kl"], max_new_tokens=20).frame()
    assert diff[diff.model == "base"]["estimate"].tolist() == diff[diff.model == "tuned"]["estimate"].tolist()
    assert pair.tuned.hf.generation_config.repetition_penalty == 1.8  # the model's own is left alone

    own = load_pair(*twins, own_generation_config=True)
    assert own.base.generate(PROMPTS, max_new_tokens=20) != own.tuned.generate(PROMPTS, max_new_tokens=20)
    assert "is obeyed, as asked for" in said_by(own)
    assert load_one(twins[1]).generate(PROMPTS, max_new_tokens=20) == own.tuned.generate(PROMPTS, max_new_tokens=20)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_length": 5},
        {"stop_strings": ["dog"]},
        {"num_return_sequences": 2, "do_sample": True},
        {"return_dict_in_generate": True},
        {"prompt_lookup_num_tokens": 3},
    ],
)
def test_no_setting_of_a_generation_config_changes_a_comparison(twins: tuple[Path, Path], settings: Any) -> None:
    rewrite(twins[1] / "generation_config.json", **settings)
    pair = load_pair(*twins)
    assert pair.base.generate(PROMPTS) == pair.tuned.generate(PROMPTS)


def test_other_ends_are_told(twins: tuple[Path, Path]) -> None:
    rewrite(twins[1] / "generation_config.json", eos_token_id=[2, 7])
    assert "Texts end with" in said_by(load_pair(*twins))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("$A", "nothing"),
        ("$A <eos>", "<eos>"),
        ("<bos> $A <eos>", "<bos> <eos>"),
        ("<bos> <bos> $A", "<bos> <bos>"),
    ],
)
def test_other_tokens_around_a_text_are_told(twins: tuple[Path, Path], template: str, said: str) -> None:
    copy = tokenizer().__class__.from_pretrained(twins[0])
    special = [("<bos>", 1), ("<eos>", 2)]
    copy.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    copy.save_pretrained(twins[1])
    pair = load_pair(*twins)
    assert f"The base's tokenizer puts <bos> around a text, the tuned model's {said}" in said_by(pair)
    ids = pair.base.encode(PROMPTS[:1]).input_ids
    assert torch.equal(ids, pair.tuned.encode(PROMPTS[:1]).input_ids)  # both read the same: the comparison is null


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}, "rope_parameters differs"),
        ({"rms_norm_eps": 0.1}, "rms_norm_eps differs"),
        ({"max_position_embeddings": 128}, "max_position_embeddings differs"),
        ({"hidden_act": "gelu"}, "hidden_act differs: silu in the base, gelu in the tuned model"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings differs"),
    ],
)
def test_a_field_of_the_config_that_changes_the_computation_is_told(
    twins: tuple[Path, Path], change: dict[str, Any], said: str
) -> None:
    rewrite(twins[1] / "config.json", **change)
    assert said in said_by(load_pair(*twins))


def test_a_sliding_window_is_told(tmp_path: Path) -> None:
    for name, window in (("base", 16), ("tuned", 4)):
        tiny_model("mistral", sliding_window=window).save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
    assert "sliding_window differs: 16 in the base, 4" in said_by(load_pair(tmp_path / "base", tmp_path / "tuned"))


def test_incidental_fields_are_not_told(twins: tuple[Path, Path]) -> None:
    rewrite(twins[1] / "config.json", initializer_range=0.5, attention_dropout=0.1, use_cache=False)
    assert load_pair(*twins).differences.sentences() == []


def test_dtype_and_attention_are_told(twins: tuple[Path, Path]) -> None:
    from transformers import AutoModelForCausalLM

    tuned = AutoModelForCausalLM.from_pretrained(twins[1], dtype=torch.bfloat16, attn_implementation="eager")
    said = said_by(load_pair(twins[0], tuned))
    assert "The base computes in float32, the tuned model in bfloat16." in said
    assert "The base computes attention by sdpa, the tuned model by eager." in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_attn_implementation", "eager"),
        ("_attn_implementation", "flash_attention_2"),  # not on this machine
        ("_attn_implementation", "kernels-community/flash-attn"),
        ("_attn_implementation", {"": "flex_attention"}),
        ("_experts_implementation", "eager"),
    ],
)
def test_how_a_config_wants_to_be_computed_changes_nothing(twins: tuple[Path, Path], key: str, value: Any) -> None:
    rewrite(twins[1] / "config.json", **{key: value})
    pair = load_pair(*twins)
    ids = torch.arange(4, 28)[None]
    assert torch.equal(pair.base.forward(ids), pair.tuned.forward(ids))
    assert pair.base.identity.hash == pair.tuned.identity.hash
    assert ("asks for attention by" in said_by(pair)) == (key == "_attn_implementation")
    assert weight_delta(*twins).table["frobenius"].max() == 0
    recording = record(pair, PROMPTS, ["resid_post", "z"], positions="all")
    for site in recording["base"]:
        assert torch.equal(torch.as_tensor(recording["base"][site][:]), torch.as_tensor(recording["tuned"][site][:]))
    eager = load_pair(*twins, attn_implementation="eager")
    assert {side.hf.config._attn_implementation for side in eager.models.values()} == {"eager"}


@pytest.fixture
def two_templates(twins: tuple[Path, Path]) -> tuple[Path, Path]:
    for folder, template in zip(twins, (OWN, OTHER), strict=True):
        (folder / "chat_template.jinja").write_text(template)
    return twins


@pytest.mark.parametrize(
    ("template", "base", "tuned", "said"),
    [
        ("tuned", "<<the fox>>", "<<the fox>>", "through the tuned model's for both"),
        ("base", "[the fox]", "[the fox]", "through the base's for both, as asked for"),
        ("own", "[the fox]", "<<the fox>>", "each model reads chats and questions through its own"),
    ],
)
def test_whose_template_is_a_choice_and_is_told(
    two_templates: tuple[Path, Path], template: Any, base: str, tuned: str, said: str
) -> None:
    pair = load_pair(*two_templates, template=template)
    assert pair.base.reads(["the fox"]).text[0] == base and pair.tuned.reads(["the fox"]).text[0] == tuned
    assert said in said_by(pair)
    diff = behaviour_diff(pair, PROMPTS, metrics=["kl"])
    assert [diff.provenance.models[role]["chat_template"] for role in ("base", "tuned")] == (
        ["base", "tuned"] if template == "own" else [template] * 2
    )
    again = load_again(pair.base.origin, "cpu").base
    assert again.reads(["the fox"]).text[0] == base


def test_an_unknown_template_is_one_sentence(twins: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"template.*'turned'"):
        load_pair(*twins, template="turned")


def test_a_template_that_the_adapter_brings_is_told(base_folder: Path, save_adapter: Callable[..., Path]) -> None:
    adapter = save_adapter()
    tokenizer().save_pretrained(adapter)
    (adapter / "chat_template.jinja").write_text(OTHER)
    assert "The chat templates differ" in said_by(load_pair(base_folder, adapter))


def test_an_answer_longer_than_the_context_is_one_sentence(two_templates: tuple[Path, Path]) -> None:
    rows = [{"prompt": "the fox", "answer": "jumps over " * 200}]
    with pytest.raises(UserError, match=r"A prompt with its continuation has \d+ tokens and the limit is 256"):
        behaviour_diff(load_pair(*two_templates), rows, metrics=["answer_logprob"])


@pytest.mark.parametrize("rule", ["normalizer", "pre_tokenizer"])
def test_other_rules_of_the_tokenizer_are_told(twins: tuple[Path, Path], rule: str) -> None:
    words = AutoTokenizer.from_pretrained(twins[1])
    new = {"normalizer": normalizers.Lowercase(), "pre_tokenizer": pre_tokenizers.Whitespace()}[rule]
    setattr(words.backend_tokenizer, rule, new)
    words.save_pretrained(twins[1])
    said = load_pair(*twins).differences.sentences()
    assert any(f"The tokenizers' rules differ ({rule})" in sentence for sentence in said)


def test_a_config_that_hands_over_tuples_runs(twins: tuple[Path, Path]) -> None:
    rewrite(twins[1] / "config.json", return_dict=False)
    pair = load_pair(*twins)
    ids = torch.arange(8)[None]
    assert torch.equal(pair.tuned.forward(ids), pair.base.forward(ids))


def retokenized(folder: Path, **model: Any) -> None:
    """The folder's tokenizer with other settings of its model."""
    words = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**words, "model": {**words["model"], **model}}))


def test_merges_that_differ_are_told(twins: tuple[Path, Path]) -> None:
    words = json.loads((twins[1] / "tokenizer.json").read_text())
    retokenized(twins[1], merges=words["model"]["merges"][:10])
    assert "The tokenizers' rules differ (merges)" in said_by(load_pair(*twins))


def test_a_tokenizer_that_cuts_at_random_reads_the_same_each_time_and_says_so(twins: tuple[Path, Path]) -> None:
    retokenized(twins[1], dropout=0.9)
    pair, alone = load_pair(*twins), load_one(twins[0])
    assert "drops merges at random (dropout 0.9)" in said_by(pair)
    for model in (pair.base, pair.tuned):
        assert torch.equal(model.encode(PROMPTS).input_ids, alone.encode(PROMPTS).input_ids)


def test_flags_of_added_tokens_that_differ_are_told(twins: tuple[Path, Path]) -> None:
    words = json.loads((twins[1] / "tokenizer.json").read_text())
    words["added_tokens"][2]["lstrip"] = True
    (twins[1] / "tokenizer.json").write_text(json.dumps(words))
    assert "flags of added tokens" in said_by(load_pair(*twins))
