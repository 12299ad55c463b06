"""Every adapter type of the installed PEFT: what the table says of it is what happens with a real one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

import probes
from tests.tiny import tiny_model, token_batch, tokenizer
from workbench.errors import NotSupported
from workbench.models.adapter_kinds import AdapterKind, adapter_kinds
from workbench.models.pair import load_pair
from workbench.models.virtual_tokens import open_virtual_tokens
from workbench.models.weight_changes import adapted_modules, effective_delta
from workbench.prompts.collection import Prompts

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]
OPTIONS: dict[str, dict[str, Any]] = {
    "IA3": {"feedforward_modules": ["down_proj"]},
    "ADALORA": {"total_step": 10},
    "OFT": {"r": 0, "oft_block_size": 16},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 32},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [1, 2]},
    "VBLORA": {"vector_length": 32, "num_vectors": 8},
    "VERA": {"target_modules": ["q_proj", "o_proj"]},
    "PVERA": {"target_modules": ["q_proj", "o_proj"]},
    "LORA": {"init_lora_weights": False},
    "PROMPT_TUNING": {"num_virtual_tokens": 2, "task_type": "CAUSAL_LM"},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 2, "num_tasks": 2, "task_type": "CAUSAL_LM"},
    "P_TUNING": {"num_virtual_tokens": 2, "encoder_hidden_size": 16, "task_type": "CAUSAL_LM"},
    "PREFIX_TUNING": {"num_virtual_tokens": 2, "task_type": "CAUSAL_LM"},
    "CARTRIDGE": {"num_virtual_tokens": 2, "task_type": "CAUSAL_LM"},
    "CPT": {"cpt_token_ids": [5, 9], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 4], "task_type": "CAUSAL_LM"},
    "POLY": {"n_tasks": 2, "n_skills": 2},
}
KINDS = {kind.name: kind for kind in adapter_kinds()}
CONFIGS = {str(name.value): config for name, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def randomized(name: str) -> Any:
    """A tiny model under an adapter of that type, its trained weights moved off their start."""
    fields = {field.name for field in dataclasses.fields(CONFIGS[name])}
    options = {"target_modules": ["q_proj", "down_proj"]} if "target_modules" in fields else {}
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_model("llama"), CONFIGS[name](**{**options, **OPTIONS.get(name, {})})).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def test_the_table_covers_the_installed_peft_and_nothing_else() -> None:
    assert set(KINDS) == set(CONFIGS) and not [kind for kind in KINDS.values() if kind.reading == "untested"]


def test_the_documentation_holds_the_table() -> None:
    text = (Path(__file__).parents[3] / "docs" / "adapter_kinds.md").read_text(encoding="utf-8")
    said = {
        line.split("|")[1].strip(): line.split("|")[2].strip() for line in text.splitlines() if line.startswith("| `")
    }
    assert said == {f"`{kind.name}`": kind.reading for kind in KINDS.values()}


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS.values() if kind.reading == "exact"], ids=lambda kind: kind.name
)
def test_an_exact_kind_is_its_change_of_weights(kind: AdapterKind) -> None:
    model = randomized(kind.name)
    for name in adapted_modules(model)[:2]:
        change, layer = effective_delta(model, name), model.get_base_model().get_submodule(name)
        tokens = torch.tensor([[1, 2, 5]])
        inputs = tokens if kind.name == "TRAINABLE_TOKENS" else torch.randn(1, 5, change.shape[1])
        with torch.no_grad():
            after = layer(inputs)
            with model.disable_adapter():
                before = layer(inputs)
        expected = change[tokens[0]] if kind.name == "TRAINABLE_TOKENS" else inputs[0] @ change.T
        assert float((after - before).norm()) > 0
        assert torch.allclose((after - before)[0], expected, atol=2e-5 * float(after.abs().max()) + 1e-5)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS.values() if kind.reading == "realised"], ids=lambda kind: kind.name
)
def test_a_realised_kind_has_no_one_change_of_weights_and_a_change_at_every_token(kind: AdapterKind) -> None:
    model = randomized(kind.name)
    module = adapted_modules(model)[0]
    if kind.name == "BEFT":
        assert float(effective_delta(model, module).abs().max()) < 1e-6
    else:
        with pytest.raises(NotSupported):
            effective_delta(model, module)
    pair = load_pair(model.get_base_model(), model, device="cpu", tokenizer=tokenizer(), check=False)
    rows = Prompts.of(["the quick fox", "lazy dog over", "jumps a b", "brown the"])
    panel = probes.adapter_panel(pair, rows, ablate=False)
    assert len(panel.table) == len(adapted_modules(model)) and (panel.table["score"] > 0).all()


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS.values() if kind.reading == "virtual tokens"], ids=lambda kind: kind.name
)
def test_a_kind_of_virtual_tokens_is_opened_and_leaves_the_base_alone(kind: AdapterKind) -> None:
    base = load_pair(tiny_model("llama"), tiny_model("llama"), device="cpu", tokenizer=tokenizer(), check=False).base
    before = base.hf(token_batch()).logits
    fields = OPTIONS[kind.name]
    torch.manual_seed(0)
    model = peft.get_peft_model(base.hf, CONFIGS[kind.name](**fields)).eval()
    opened = open_virtual_tokens(base, model)
    if "virtual_tokens" in kind.sentence:
        assert opened.embeddings().shape == (2, 64)
    else:
        assert probes.prefix_gates(base, opened, texts=["the quick fox", "lazy dog"]).gap < 1e-5
    assert torch.equal(base.hf(token_batch()).logits, before)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS.values() if kind.reading == "refused"], ids=lambda kind: kind.name
)
def test_a_refused_kind_is_refused_in_that_sentence_before_a_model_is_loaded(kind: AdapterKind, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(f'{{"peft_type": "{kind.name}"}}', encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(NotSupported) as told:
        load_pair(tiny_model("llama"), tmp_path)
    assert (
        str(told.value).split("adapter: ")[-1] == kind.sentence.split("adapter: ")[-1] and kind.sentence.count(".") <= 2
    )
