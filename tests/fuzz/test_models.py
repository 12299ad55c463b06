"""Model folders, adapters, GGUF files, results and recordings of strangers: read, or refused in one sentence."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import interventions as iv
import probes
import workbench as wb
from interventions.exchange.control_vectors import to_gguf
from interventions.exchange.reading import load_recipe
from tests.fuzz.test_files import VALUES, Inputs, answered, changed, dumped
from tests.gguf_writing import write_gguf
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.recording.recording import Recording
from workbench.results import Result

pytestmark = pytest.mark.filterwarnings("ignore")


def small(**sizes: Any) -> Any:
    return tiny_model("llama", num_hidden_layers=1, **sizes)


def test_damaged_gguf_models(tmp_path: Path, inputs: Inputs) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", small()).read_bytes()
    bad = tmp_path / "bad.gguf"

    @inputs(15, 60)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        bad.write_bytes(changed(whole, data.draw))
        answered(lambda: wb.load_model(bad))
        gc.collect()

    check()


def test_damaged_gguf_control_vectors(tmp_path: Path, inputs: Inputs) -> None:
    model = wb.load_model(tiny_model("llama"), tokenizer=tokenizer())
    path = to_gguf(iv.Recipe([iv.Offset(1, torch.randn(64))]), tmp_path / "whole.gguf", model)
    whole, bad = path.read_bytes(), tmp_path / "bad.gguf"

    @inputs(60, 600)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        bad.write_bytes(changed(whole, data.draw))
        answered(lambda: load_recipe(bad))

    check()


def test_model_folders(tmp_path: Path, inputs: Inputs) -> None:
    base = small()
    for name, model in {"base": base, "tuned": tuned_copy(base)}.items():
        model.save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
    config = json.loads((tmp_path / "tuned" / "config.json").read_text())
    files = st.sampled_from(["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"])

    @inputs(15, 60)
    @given(st.data(), files, st.sampled_from(sorted(config)), VALUES)
    def check(data: st.DataObject, name: str, key: str, value: Any) -> None:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        bad = shutil.copytree(tmp_path / "tuned", tmp_path / "bad")
        if data.draw(st.booleans()):
            (bad / "config.json").write_bytes(dumped({**config, key: value}))
        else:
            (bad / name).write_bytes(changed((bad / name).read_bytes(), data.draw))
        answered(lambda: probes.weight_delta(tmp_path / "base", bad))
        answered(lambda: wb.load_pair(tmp_path / "base", bad))
        gc.collect()

    check()


def test_adapter_folders(tmp_path: Path, inputs: Inputs) -> None:
    small().save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(small(), lora).save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    files = st.sampled_from(["adapter_config.json", "adapter_model.safetensors"])

    @inputs(15, 60)
    @given(st.data(), files, st.sampled_from(sorted(config)), VALUES)
    def check(data: st.DataObject, name: str, key: str, value: Any) -> None:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        bad = shutil.copytree(tmp_path / "adapter", tmp_path / "bad")
        if data.draw(st.booleans()):
            (bad / "adapter_config.json").write_bytes(dumped({**config, key: value}))
        else:
            (bad / name).write_bytes(changed((bad / name).read_bytes(), data.draw))
        answered(lambda: probes.weight_delta(tmp_path / "base", bad))
        answered(lambda: wb.load_pair(tmp_path / "base", bad))
        gc.collect()

    check()


def test_results_and_recordings(tmp_path: Path, inputs: Inputs) -> None:
    base = small()
    pair = wb.load_pair(base, tuned_copy(base), tokenizer=tokenizer())
    result = probes.weight_delta(pair).save(tmp_path / "result.safetensors")
    wb.record(pair, ["the quick", "a dog"], ["resid_post"], store=tmp_path / "store")
    stored = sorted(path for path in (tmp_path / "store").rglob("*") if path.is_file())

    @inputs(60, 600)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        (tmp_path / "bad.safetensors").write_bytes(changed(result.read_bytes(), data.draw))
        answered(lambda: Result.load(tmp_path / "bad.safetensors"))
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "store", tmp_path / "bad")
        file = tmp_path / "bad" / data.draw(st.sampled_from(stored)).relative_to(tmp_path / "store")
        file.write_bytes(changed(file.read_bytes(), data.draw))
        answered(lambda: Recording.load(tmp_path / "bad")["base"]["resid_post", 0])

    check()
