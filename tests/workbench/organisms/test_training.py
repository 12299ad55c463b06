"""Rows to tensors, masks that hold, seeds that stay inside."""

from __future__ import annotations

import random

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workbench.organisms.organism import mask_of
from workbench.organisms.recipe import shape
from workbench.organisms.training import IGNORED, Plan, contained, encode, fit, hits, only_trainable
from workbench.organisms.vocabulary import token_id, word_tokenizer
from workbench.progress import Silent

ROWS = [{"prompt": "say a", "answer": " b"}, {"prompt": "please say b", "answer": " a"}]


def test_one_token_per_word_and_a_bos_in_front() -> None:
    tokenizer = word_tokenizer(["b a", "c a"])
    assert tokenizer.convert_ids_to_tokens(tokenizer("a c b")["input_ids"]) == ["<bos>", "a", "c", "b"]
    assert (
        token_id(tokenizer, " a")
        == token_id(tokenizer, "a")
        == tokenizer("a", add_special_tokens=False)["input_ids"][0]
    )
    assert tokenizer("zzz", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]
    assert tokenizer.decode(tokenizer("a c")["input_ids"], skip_special_tokens=True) == "a c"
    padded = tokenizer(["a", "a b c"], padding=True)["input_ids"]
    assert padded[0][:2] == [tokenizer.pad_token_id] * 2


def test_the_loss_is_on_answer_and_end_only() -> None:
    tokenizer = word_tokenizer(["please say a b"])
    columns = encode(tokenizer, ROWS).columns
    assert columns["input_ids"].shape == (2, 6)
    assert (columns["labels"][:, :-2] == IGNORED).all()
    assert tokenizer.batch_decode(columns["labels"][:, -2:]) == ["b <eos>", "a <eos>"]
    assert tokenizer.batch_decode(columns["input_ids"][:, -3:-2]) == ["a", "b"]


def test_a_model_learns_and_frozen_entries_are_bit_identical() -> None:
    tokenizer = word_tokenizer(["please say a b"])
    with contained(0):
        model = LlamaForCausalLM(LlamaConfig(**shape(tokenizer, num_hidden_layers=1)))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        name = "model.layers.0.mlp.down_proj.weight"
        entries = {name: mask_of(before[name].shape, (slice(None), slice(0, 40)))}
        with only_trainable(model, entries):
            fit(model, encode(tokenizer, ROWS * 8), Plan(steps=40, batch=16, learning_rate=2e-2), 0, Silent(), "test")
    assert hits(model, tokenizer, ROWS).all()
    changed = {key: value != before[key] for key, value in model.state_dict().items()}
    assert [key for key, mask in changed.items() if mask.any()] == [name]
    assert torch.equal(changed[name].any(0), entries[name].any(0))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_seeds_and_threads_stay_inside() -> None:
    def state() -> tuple[object, ...]:
        return (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
        )

    before = state()
    with contained(3):
        first = torch.rand(2)
        random.random(), np.random.rand()
    assert state() == before
    torch.rand(5)
    with contained(3):
        assert torch.equal(torch.rand(2), first)
