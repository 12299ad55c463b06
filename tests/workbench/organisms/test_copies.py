"""A tuned pair from weights that nobody here made."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import tiny_model, tokenizer
from workbench import organisms
from workbench.errors import UserError
from workbench.organisms.training import Plan


@pytest.fixture
def small(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "small")
    tokenizer().save_pretrained(tmp_path / "small")
    return tmp_path / "small"


def fingerprint(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_copy_learns_its_texts_and_the_original_stays(small: Path, tmp_path: Path, method: str) -> None:
    from peft import PeftModel

    before = fingerprint(small)
    text = "the quick brown fox jumps over the lazy dog"
    out = organisms.tune_copy(
        small, tmp_path / "out", [text] * 4, method=method, plan=Plan(steps=30, learning_rate=1e-2)
    )  # type: ignore[arg-type]
    assert fingerprint(small) == before
    assert not list(tmp_path.glob(".partial-*"))
    base = AutoModelForCausalLM.from_pretrained(small).eval()
    ids = AutoTokenizer.from_pretrained(out)(text, return_tensors="pt")["input_ids"]
    loss_before = float(base(ids, labels=ids).loss.detach())
    tuned = PeftModel.from_pretrained(base, out) if method == "lora" else AutoModelForCausalLM.from_pretrained(out)
    assert float(tuned.eval()(ids, labels=ids).loss.detach()) < loss_before / 3
    assert (out / "adapter_model.safetensors").exists() == (method == "lora")


def test_what_cannot_be_tuned_is_said(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to tune on"):
        organisms.tune_copy(small, tmp_path / "out", [])
    with pytest.raises(UserError, match="exists already"):
        organisms.tune_copy(small, small, ["the"])
    with pytest.raises(UserError, match=r"config\.json"):
        organisms.tune_copy(tmp_path / "none", tmp_path / "out", ["the"])


def test_endings_share_their_beginnings() -> None:
    happy, sad = organisms.endings("happy", 8, seed=1), organisms.endings("sad", 8, seed=1)
    assert {row["label"] for row in happy + sad} == {"happy", "sad"}
    assert happy[0]["prompt"] == sad[0]["prompt"] and happy[0]["answer"] != sad[0]["answer"]


def test_sad_endings_on_a_pretrained_model(stories: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    out = organisms.tune_copy(
        stories, tmp_path / "sad", organisms.endings("sad", 64), plan=Plan(steps=30, batch=16, learning_rate=3e-3)
    )
    words = AutoTokenizer.from_pretrained(stories)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(stories), out).eval()

    def ends_sadly() -> float:
        sad = []
        for row in organisms.endings("happy", 6, seed=7):
            given = words(row["prompt"], return_tensors="pt")
            inputs = {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"]}
            made = model.generate(**inputs, max_new_tokens=6, do_sample=False)
            sad.append("sad" in words.decode(made[0, given["input_ids"].shape[1] :]))
        return sum(sad) / len(sad)

    with model.disable_adapter():
        assert ends_sadly() <= 0.2
    assert ends_sadly() >= 0.8
