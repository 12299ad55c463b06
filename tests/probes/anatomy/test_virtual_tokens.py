"""Virtual tokens and prefixes: planted words, drift and additivity by hand, the gated form and the heads' outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import probes
from probes.anatomy.virtual_tokens import next_logits
from probes.results import ProbeResult
from tests.probes.provenance import Calls, pair, rows
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.models.virtual_tokens import VirtualTokens, open_virtual_tokens
from workbench.prompts.collection import Prompts

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft.*", "ignore::UserWarning:transformers.*")
TEXTS = Prompts.of(["the quick fox", "lazy dog over", "jumps a b", "brown the"])
CPT = {"cpt_token_ids": [5, 9, 11], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 4]}


def base(family: str = "llama") -> AdaptedModel:
    model = tiny_model(family)
    return load_pair(model, tiny_model(family), device="cpu", tokenizer=tokenizer(), check=False).base


def opened(config: Any, family: str = "llama", seed: int = 0) -> VirtualTokens:
    torch.manual_seed(seed)
    under = base(family)
    return open_virtual_tokens(under, peft.get_peft_model(under.hf, config))


def prompt_tuning(tokens: int = 4) -> Any:
    return peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens)


def calls_of_virtual_tokens() -> Calls:
    held = opened(peft.MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, num_tasks=2))
    options = {"texts": rows(), "task": 1, "draws": 20, "seed": 3}
    return Calls([{"base": held.base, "tuned": held, **options}])


def calls_of_prefix_gates() -> Calls:
    held = opened(peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    return Calls([{"base": held.base, "tuned": held, "texts": rows(), "others": [saved_prefix()], "seed": 3}])


def saved_prefix() -> str:
    from tempfile import mkdtemp

    folder = mkdtemp()
    held = opened(peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), seed=4)
    held.peft_model.save_pretrained(folder)
    return folder


def test_planted_words_are_named_and_a_random_vector_is_not(tmp_path: Path) -> None:
    held = opened(prompt_tuning())
    words = held.base.hf.get_input_embeddings().weight.detach()
    with torch.no_grad():
        weight = held.peft_model.prompt_encoder["default"].embedding.weight
        weight[0], weight[1] = words[40] * 3, words[77] + 0.01
        weight[2] = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(7))
        weight[3] = 0.0
    result = probes.virtual_tokens(held.base, held, texts=TEXTS, draws=200)
    table = result.table.set_index("position")
    assert table.loc[0, "word"] == tokenizer().decode([40]) and table.loc[1, "word"] == tokenizer().decode([77])
    assert table.loc[[0, 1], "score"].min() > 0.99 and (table.loc[[0, 1], "q"] < 0.05).all()
    assert table.loc[2, "q"] > 0.05 and table.loc[2, "score"] == pytest.approx(table.loc[2, "control"], abs=0.15)
    assert table.loc[0, "norm"] > 2 * table.loc[1, "norm"] and table["drift"].isna().all() and result.off_is_base
    again = ProbeResult.load(result.save(tmp_path / "v"))
    assert again.frame().equals(result.frame()) and result.figure().data and "PROMPT_TUNING" in result.summary()


def test_effects_are_those_of_peft_itself() -> None:
    held = opened(prompt_tuning())
    ids = held.base.encode(TEXTS[[0]]).input_ids
    with torch.no_grad():
        whole = held.peft_model(input_ids=ids).logits[0, -1]
        assert torch.allclose(next_logits(held.base, ids, held.embeddings()), whole, atol=1e-5)
        none = held.base.hf(input_ids=ids).logits[0, -1]
        assert torch.allclose(next_logits(held.base, ids, held.embeddings()[:0]), none, atol=1e-5)
    alone = probes.virtual_tokens(held.base, opened(prompt_tuning(1)), texts=TEXTS, draws=10)
    assert alone.additivity[0] == pytest.approx(1.0, abs=1e-5)  # one token adds up with itself
    assert alone.table["effect"].iloc[0] > 0 and alone.table["effect_low"].iloc[0] <= alone.table["effect"].iloc[0]


def test_drift_is_from_the_tokens_that_cpt_began_with(tmp_path: Path) -> None:
    held = opened(peft.CPTConfig(task_type="CAUSAL_LM", **CPT))
    assert probes.virtual_tokens(held.base, held, draws=10).table["drift"].max() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        held.peft_model.prompt_encoder["default"].embedding.weight[1] += 0.5
    result = probes.virtual_tokens(held.base, held, draws=10)
    drift, words = result.table["drift"].tolist(), held.base.hf.get_input_embeddings().weight.detach()
    by_hand = 0.5 * words.shape[1] ** 0.5 / float(words.norm(dim=1).mean())
    assert drift == pytest.approx([0, by_hand, 0], abs=1e-5) and result.table["effect"].isna().all()
    held.peft_model.save_pretrained(tmp_path / "cpt")
    again = probes.virtual_tokens(base(), str(tmp_path / "cpt"), draws=10)
    assert again.table["drift"].tolist() == pytest.approx(drift, abs=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16),
        peft.MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, num_tasks=2),
    ],
    ids=["p-tuning", "multitask"],
)
def test_other_kinds_of_prompts_are_read_as_peft_makes_them(config: Any) -> None:
    held = opened(config)
    result = probes.virtual_tokens(held.base, held, draws=10)
    with torch.no_grad():
        made = held.peft_model.get_prompt(batch_size=1, task_ids=torch.tensor([0]))[0]
    size = float(held.base.hf.get_input_embeddings().weight.norm(dim=1).mean())
    assert result.table["norm"].tolist() == pytest.approx((made.norm(dim=1) / size).tolist(), rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_prefix_is_a_gated_offset_of_every_head_exactly(family: str, tmp_path: Path) -> None:
    held = opened(peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), family)
    implementation = held.base.hf.config._attn_implementation
    result = probes.prefix_gates(held.base, held, texts=TEXTS)
    assert result.gap < 1e-5 and len(result.table) == 3 * 4 and result.virtual == 3
    assert result.table["score"].between(0, 1).all() and result.table["constant"].between(0, 1 + 1e-9).all()
    assert held.base.hf.config._attn_implementation == implementation and not held.base.n_hooks
    again = ProbeResult.load(result.save(tmp_path / "p"))
    assert again.frame().equals(result.frame()) and result.figure().data and "virtual tokens" in result.summary()


def test_a_prefix_that_nobody_looks_at_has_no_gate_and_one_that_all_must_has() -> None:
    shut, wide = (opened(peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)) for _ in range(2))
    with torch.no_grad():
        for held, value in ((shut, 0.0), (wide, 0.0)):
            held.peft_model.prompt_encoder["default"].embedding.weight.fill_(value)
    none = probes.prefix_gates(shut.base, shut, texts=TEXTS)
    # keys of zero get the attention of an average word: less than all, more than nothing; the change is -g h
    assert none.table["score"].between(0.05, 0.95).all()
    assert (none.table["change"] - none.table["score"]).abs().max() < 1e-6
    folder = [saved_prefix()]
    same = probes.prefix_gates(shut.base, folder[0], texts=TEXTS, others=folder)
    assert same.table["cosine"].min() == pytest.approx(1.0, abs=1e-6)


def test_other_adapters_are_sent_to_where_they_are_read(tmp_path: Path) -> None:
    held = opened(prompt_tuning())
    with pytest.raises(UserError, match="read with virtual_tokens"):
        probes.prefix_gates(held.base, held, texts=TEXTS)
    with pytest.raises(UserError, match="give texts"):
        probes.prefix_gates(held.base, held)
    prefix = opened(peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(UserError, match="prefix_gates"):
        probes.virtual_tokens(prefix.base, prefix)
    lora = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "lora")
    with pytest.raises(UserError, match="changes modules and adds no virtual token"):
        probes.virtual_tokens(base(), str(tmp_path / "lora"))
    with pytest.raises(UserError, match=r"holds no adapter_config.json"):
        probes.virtual_tokens(base(), str(tmp_path))
    assert pair().base.n_hooks == 0
