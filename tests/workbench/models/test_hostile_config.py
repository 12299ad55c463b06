"""A config.json that nobody's training wrote: refused in one sentence, before anything is built from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import probes
import workbench as wb
from tests.fuzz.test_files import answered
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.errors import UserError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where = tmp_path_factory.mktemp("models")
    base = tiny_model("llama", num_hidden_layers=1)
    for name, model in {"base": base, "tuned": tuned_copy(base)}.items():
        model.save_pretrained(where / name)
        tokenizer().save_pretrained(where / name)
    return {name: where / name for name in ("base", "tuned")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("num_hidden_layers", 10**6, "1000000 layers and its files hold 12 tensors"),
        ("attention_bias", None, "attention_bias"),
        ("vocab_size", 10**10, r"\[300, 64\] in the files and \[10000000000, 64\]"),  # 2.5 TB of random weights
        ("head_dim", 10**8, "put the config and the weights of one model together"),
        ("pad_token_id", 10**6, "num_embeddings"),
        ("dtype", [], "config"),
        ("model_type", {"llama": 1}, "does not know"),
        ("architectures", {"LlamaForCausalLM": []}, None),
    ],
)
def test_a_config_of_wrong_values_is_one_sentence(
    folders: dict[str, Path], tmp_path: Path, key: str, value: Any, sentence: str | None
) -> None:
    for file in folders["tuned"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    answered(lambda: probes.weight_delta(folders["base"], tmp_path))
    if sentence is None:
        wb.load_model(tmp_path)  # the name of a class that is never used
    else:
        with pytest.raises(UserError, match=sentence):
            wb.load_model(tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "config.json"])
def test_a_nest_without_end_is_one_sentence(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    for file in folders["tuned"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_text('{"a":' * 200_000)
    with pytest.raises(UserError, match="recursion"):
        wb.load_pair(folders["base"], tmp_path)
