"""A GGUF file is taken wherever a model folder is; what cannot be read is one sentence, before weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Stored

from probes import weight_delta
from tests.gguf_writing import CHAT, write_gguf
from tests.tiny import tiny_model, token_batch, tokenizer, tuned_copy
from workbench.errors import UserError
from workbench.models.pair import load_one, load_pair
from workbench.models.sources import describe


@pytest.fixture
def llama() -> Any:
    return tiny_model("llama", head_dim=16)


def test_a_file_computes_what_its_model_computes(tmp_path: Path, llama: Any) -> None:
    one = load_one(write_gguf(tmp_path / "m.gguf", llama), dtype="float32")
    ids = token_batch()
    assert torch.allclose(one.forward(ids), llama(ids).logits, atol=1e-5)
    assert one.tokenizer.chat_template == CHAT
    assert one.tokenizer("the fox")["input_ids"] == tokenizer()("the fox")["input_ids"]


def test_a_quantized_tuned_file_beside_its_base_folder_says_how_it_is_stored(tmp_path: Path, llama: Any) -> None:
    llama.save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    file = write_gguf(tmp_path / "tuned.gguf", tuned_copy(llama), Stored.Q8_0)
    pair = load_pair(tmp_path / "base", file, dtype="float32")
    said = " ".join(pair.differences.sentences())
    assert "The tuned model's weights are quantized (GGUF Q8_0)" in said
    assert pair.tuned.facts()["stored as"] == "GGUF Q8_0" and "stored as" not in pair.base.facts()
    assert "quantization_config" not in pair.tuned.hf.config.to_dict()
    for delta in (weight_delta(tmp_path / "base", file), weight_delta(pair)):
        assert delta.frame()["score"].max() > 0
        assert any("weights are quantized (GGUF Q8_0)" in note for note in delta.notes)


def test_a_quantized_file_against_itself_is_null(tmp_path: Path, llama: Any) -> None:
    file = write_gguf(tmp_path / "m.gguf", llama, Stored.Q8_0)
    pair = load_pair(file, file)
    assert pair.base.dtype == torch.bfloat16
    ids = token_batch()
    assert torch.equal(pair.base.forward(ids), pair.tuned.forward(ids))
    assert pair.base.identity.hash == pair.tuned.identity.hash
    assert weight_delta(file, file).frame()["score"].max() == 0


def test_a_model_loaded_from_a_file_can_be_saved_and_loaded_again(tmp_path: Path, llama: Any) -> None:
    one = load_one(write_gguf(tmp_path / "m.gguf", llama, Stored.Q8_0))
    one.hf.save_pretrained(tmp_path / "saved")
    again = load_one(tmp_path / "saved", tokenizer=one.tokenizer)
    assert torch.equal(one.forward(token_batch()), again.forward(token_batch()))


def test_an_adapter_sits_on_a_file(tmp_path: Path, llama: Any) -> None:
    from peft import LoraConfig, get_peft_model

    file = write_gguf(tmp_path / "m.gguf", llama, Stored.Q8_0)
    adapted = get_peft_model(llama, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    pair = load_pair(file, tmp_path / "adapter")
    ids = token_batch()
    assert pair.one_copy and not torch.equal(pair.base.forward(ids), pair.tuned.forward(ids))
    assert torch.equal(pair.base.forward(ids), load_one(file).forward(ids))


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("m-00001-of-00003.gguf", {}, "is one part of a split GGUF: merge"),
        ("m.gguf", {"split.count": 3}, "is one of 3 parts of a GGUF"),
        ("m.gguf", {"general.type": "adapter"}, "is a LoRA in GGUF"),
        ("m.gguf", {"adapter.type": "lora"}, "is a LoRA in GGUF"),
        ("m.gguf", {"architecture": "controlvector"}, "is a control vector, not a model"),
        ("m.gguf", {"architecture": "clip"}, r"cannot read the architecture 'clip' from GGUF"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, llama: Any, name: str, fields: dict, said: str) -> None:
    file = write_gguf(tmp_path / name, llama, **fields)
    with pytest.raises(UserError, match=said):
        describe(file)


@pytest.mark.parametrize(("keep", "said"), [(0, "it is empty"), (40, "no whole GGUF"), (-100, "no whole GGUF")])
def test_a_cut_file_is_noticed(tmp_path: Path, llama: Any, keep: int, said: str) -> None:
    file = write_gguf(tmp_path / "m.gguf", llama)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=said):
        load_pair(file, file)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"PK and so on, long enough for a header of its own")
    with pytest.raises(UserError, match="it does not begin with GGUF"):
        describe(tmp_path / "m.gguf")


def test_loading_draws_no_bars_of_other_libraries(tmp_path: Path, llama: Any, capfd: Any) -> None:
    llama.save_pretrained(tmp_path / "folder")
    capfd.readouterr()
    load_one(write_gguf(tmp_path / "m.gguf", llama, Stored.Q8_0))
    load_one(tmp_path / "folder", tokenizer=tokenizer())
    assert "%|" not in "".join(capfd.readouterr())
