"""What weight_delta says of two folders is what the loaded pair says of itself, and no model is loaded for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import probes
import workbench as wb
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.models import loading

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing.*:FutureWarning", "ignore::UserWarning:peft.*"
)


def saved(folder: Path, model: Any, *, words: bool = True) -> Path:
    model.save_pretrained(folder)
    if words:
        tokenizer().save_pretrained(folder)
    return folder


def models(base: Any, tuned: Any) -> Any:
    return probes.weight_delta(base, tuned, k=1).provenance.models


def edit(folder: Path, **change: Any) -> None:
    """Rewrite tensors of a checkpoint by their names (``__`` for a dot)."""
    weights = load_file(folder / "model.safetensors")
    for name, how in change.items():
        weights[name.replace("__", ".")] = how(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gptoss"])
def test_two_folders_are_what_the_loaded_pair_is(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_model(family)
    folders = saved(tmp_path / "base", base, words=False), saved(tmp_path / "tuned", tuned_copy(base))
    pair = wb.load_pair(*folders, device="cpu", check=False)
    monkeypatch.setattr(loading, "_checked_load", lambda *_: pytest.fail("a model was loaded"))
    found = models(*folders)
    assert found == {role: model.identity.to_dict() for role, model in pair.models.items()}
    assert found["base"]["hash"] != found["tuned"]["hash"] and found["base"]["tokenizer"] is not None
    assert found["base"]["name"] == str(folders[0]), "a name that loads the model again"


@pytest.mark.parametrize(
    "more", [{}, {"target_modules": ["embed_tokens", "q_proj"]}, {"modules_to_save": ["lm_head"], "use_rslora": True}]
)
def test_an_adapter_is_what_the_loaded_pair_is(tmp_path: Path, more: dict[str, Any]) -> None:
    base = saved(tmp_path / "base", tiny_model("llama"))
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, **more}
    peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(**settings)).save_pretrained(str(tmp_path / "lora"))
    config = tmp_path / "lora" / "adapter_config.json"
    pair = wb.load_pair(base, tmp_path / "lora", device="cpu", check=False)
    wanted = {role: model.identity.to_dict() for role, model in pair.models.items()}
    for given in (base, pair.base):
        found = models(given, tmp_path / "lora")
        assert found == wanted and found["tuned"]["adapter"] and not found["base"]["adapter"]
    plain = peft.LoraConfig().to_dict()
    older = {key: value for key, value in json.loads(config.read_text()).items() if plain.get(key) != value}
    config.write_text(json.dumps({"peft_type": "LORA", **older}))
    assert models(base, tmp_path / "lora") == wanted, "what an older PEFT did not save has its default"
    edit(
        base, model__layers__0__mlp__up_proj__weight=lambda weights: weights["model.layers.0.mlp.up_proj.weight"] + 1e-3
    )
    changed = models(base, tmp_path / "lora")
    assert changed["tuned"]["weights"] != wanted["tuned"]["weights"], "also of weights that the adapter leaves alone"


def test_models_given_loaded_are_hashed_where_they_lie(tmp_path: Path) -> None:
    base = tiny_model("llama")
    other = tuned_copy(base)
    found = models(base, other)
    again = models(saved(tmp_path / "base", base, words=False), saved(tmp_path / "tuned", other, words=False))
    for role in ("base", "tuned"):
        assert found[role]["hash"] == again[role]["hash"] and found[role]["tokenizer"] is None
    with torch.no_grad():
        other.model.norm.weight[0] += 1e-3
    assert models(base, other)["tuned"]["hash"] != found["tuned"]["hash"]


def test_weights_are_named_as_they_are_stored_when_loading_would_round_them(tmp_path: Path) -> None:
    """What was compared is what is in the files: float32, although the config asks for bfloat16."""
    base = saved(tmp_path / "base", tiny_model("llama"))
    config = (base / "config.json").read_text()
    (base / "config.json").write_text(config.replace('"dtype": "float32"', '"dtype": "bfloat16"'))
    found = models(base, base)["base"]
    loaded = wb.load_pair(base, base, device="cpu", check=False).base.identity
    assert found["dtype"] == "float32" and loaded.dtype == "bfloat16" and found["weights"] != loaded.weights
    exact = wb.load_pair(base, base, device="cpu", dtype="float32", check=False).base.identity
    assert found == exact.to_dict()
