"""Models load as they are stored, on the device and in the dtype asked for, or one sentence says why not."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import FAMILIES, tiny_model, token_batch, tokenizer
from tests.workbench.models.conftest import SaveAdapter, edit_json
from workbench.errors import UserError
from workbench.models.loading import load_model, load_tokenizer, quantization, resolve_device, resolve_dtype
from workbench.models.sources import describe


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_model_computes_what_was_saved(family: str, tmp_path: Path) -> None:
    original = tiny_model(family)
    original.save_pretrained(tmp_path)
    loaded = load_model(describe(tmp_path), device="cpu")
    assert not loaded.training
    tokens = token_batch()
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=tokens).logits, original(input_ids=tokens).logits)


def test_dtype_is_the_checkpoints_or_the_one_asked_for(tmp_path: Path) -> None:
    tiny_model("llama", dtype=torch.bfloat16).save_pretrained(tmp_path)
    source = describe(tmp_path)
    assert load_model(source, device="cpu").dtype == torch.bfloat16
    assert load_model(source, device="cpu", dtype="fp32").dtype == torch.float32
    assert load_model(source, device="cpu", dtype=torch.float16).dtype == torch.float16


def test_weights_offloaded_to_disk_compute_the_same(base_folder: Path, tmp_path: Path) -> None:
    parts = ("embed_tokens", "layers.0", "layers.1", "layers.2", "norm", "rotary_emb")
    spread = {"lm_head": "cpu", **{f"model.{part}": "cpu" for part in parts}, "model.layers.1": "disk"}
    offloaded = load_model(describe(base_folder), device_map=spread, offload_folder=tmp_path / "offload")
    assert offloaded.model.layers[1].mlp.down_proj.weight.device.type == "meta"
    tokens = token_batch()
    with torch.no_grad():
        assert torch.equal(offloaded(input_ids=tokens).logits, tiny_model("llama")(input_ids=tokens).logits)


def test_attention_implementation_is_passed_on(base_folder: Path) -> None:
    source = describe(base_folder)
    assert load_model(source, attn_implementation="eager").config._attn_implementation == "eager"


def test_a_loaded_model_is_returned_itself() -> None:
    model = tiny_model("llama").train()
    assert load_model(describe(model)) is model
    assert not model.training


def test_a_pickled_checkpoint_loads_when_asked_for(base_folder: Path) -> None:
    (base_folder / "model.safetensors").unlink()
    original = tiny_model("llama")
    torch.save(original.state_dict(), base_folder / "pytorch_model.bin")
    loaded = load_model(describe(base_folder, allow_pickle=True), device="cpu")
    assert torch.equal(loaded.lm_head.weight, original.lm_head.weight)


def test_missing_weights_are_never_made_up(base_folder: Path) -> None:
    weights = load_file(base_folder / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, base_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights .*\(model\.layers\.1\.self_attn\.q_proj\.weight\)"):
        load_model(describe(base_folder), device="cpu")


def test_weights_of_other_widths_than_the_config(base_folder: Path) -> None:
    edit_json(base_folder / "config.json", intermediate_size=80)
    with pytest.raises(UserError, match=r"transformers could not load .*base: "):
        load_model(describe(base_folder), device="cpu")


def test_adapters_are_not_loaded_as_models(save_adapter: SaveAdapter) -> None:
    with pytest.raises(ValueError, match="load its base, then attach_adapter"):
        load_model(describe(save_adapter()))


def test_devices_and_dtypes_by_name() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cuda", "mps", "cpu")
    assert resolve_dtype("auto") == "auto"
    assert resolve_dtype("bf16") is torch.bfloat16
    with pytest.raises(UserError, match=r"Unknown dtype 'bfloat'\. Did you mean 'bfloat16'"):
        resolve_dtype("bfloat")
    with pytest.raises(UserError, match="Unknown device 'cdua'"):
        resolve_device("cdua")
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(UserError, match=f"There is no device {absent} on this machine"):
        resolve_device(absent)


def test_quantization_in_words() -> None:
    assert quantization({"model_type": "llama"}) is None
    bnb = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert quantization({"quantization_config": bnb}) == "bitsandbytes, 4 bits"
    assert quantization({"quantization_config": {"quant_method": "gptq", "bits": 3}}) == "gptq, 3 bits"
    assert quantization({"quantization_config": {"quant_method": "mxfp4"}}) == "mxfp4"
    assert quantization(tiny_model("llama").config) is None


def test_tokenizer_pads_left_and_the_given_object_is_not_touched(base_folder: Path) -> None:
    given = copy.deepcopy(tokenizer())
    given.padding_side = "right"
    given.pad_token = None
    own, notes = load_tokenizer(describe(base_folder), tokenizer=given)
    assert own.padding_side == "left" and own.pad_token == "<eos>"
    assert notes == ("The tokenizer has no padding token; <eos> stands in, masked as padding.",)
    assert given.padding_side == "right" and given.pad_token is None


def test_tokenizer_of_the_tuned_model_goes_first(base_folder: Path, save_adapter: SaveAdapter) -> None:
    adapter = save_adapter()
    own, notes = load_tokenizer(describe(adapter), describe(base_folder))
    assert own.padding_side == "left"
    assert notes == (f"{adapter} brings no tokenizer; that of {base_folder} is used.",)
    extended: Any = copy.deepcopy(tokenizer())
    extended.add_tokens(["<tool>"])
    extended.save_pretrained(adapter)
    own, notes = load_tokenizer(describe(adapter), describe(base_folder))
    assert "<tool>" in own.get_vocab() and notes == ()


def test_a_loaded_model_remembers_where_its_tokenizer_is(base_folder: Path) -> None:
    own, _ = load_tokenizer(describe(load_model(describe(base_folder))))
    assert own.get_vocab() == tokenizer().get_vocab()


def test_no_tokenizer_anywhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No tokenizer is saved with LlamaForCausalLM; pass tokenizer="):
        load_tokenizer(describe(tiny_model("llama")))
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(describe(tiny_model("llama")), tokenizer=tmp_path)


def test_a_damaged_tokenizer_is_named(base_folder: Path) -> None:
    (base_folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(describe(base_folder))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content["model"].update(type="Nonsense"), "did not match any variant"),
        (lambda content: content.pop("model"), "Model missing"),
        (lambda content: content["added_tokens"].append({"id": 1}), "missing field `content`"),
        (lambda content: content.update(pre_tokenizer={"type": "Future"}), "did not match any variant"),
    ],
)
def test_a_tokenizer_that_its_parser_rejects_is_named_with_the_reason(
    base_folder: Path, change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    file = base_folder / "tokenizer.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=rf"{re.escape(str(file))} cannot be read \(.*{reason}.*save the tokenizer again"
    ):
        load_tokenizer(describe(base_folder))


@pytest.mark.parametrize("text", ["", "[]", "null", '{"version": "1.0", "trunc'])
def test_a_tokenizer_file_that_is_no_json_object_is_named(base_folder: Path, text: str) -> None:
    (base_folder / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(describe(base_folder))


def test_a_bug_in_a_tokenizer_keeps_its_traceback(base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise AttributeError("a bug")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", broken)
    with pytest.raises(AttributeError, match="a bug"):
        load_tokenizer(describe(base_folder))
