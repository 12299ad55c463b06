"""A small transformer trained to sort, with and without a hint task: attention shows the documented algorithm.

Sorted part by part, the next number is the list's next larger one; the hint task asks for just that (Awasthi and Gupta
2023), so the last token is expected to look there.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

import probes
from workbench.models.pair import load_pair
from workbench.organisms.vocabulary import word_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]
NUMBERS, LENGTH, STEPS = 24, 5, 500
WORDS = [f"n{number:02d}" for number in range(NUMBERS)]


@cache
def words() -> Any:
    return word_tokenizer([" ".join([*WORDS, "=", "?"])])


def untrained() -> Any:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=len(words()), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return tf.LlamaForCausalLM(config).eval()


def lists(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [list, number] of lists without repetition, as they come and sorted."""
    ids = torch.tensor([words().convert_tokens_to_ids(word) for word in WORDS])
    drawn = torch.stack([torch.randperm(NUMBERS, generator=generator)[:LENGTH] for _ in range(count)])
    return ids[drawn], ids[drawn.sort(1).values]


def sequence(items: torch.Tensor, mark: str, then: torch.Tensor) -> torch.Tensor:
    column = torch.ones(len(items), 1, dtype=torch.long)
    return torch.cat([column, items, column * words().convert_tokens_to_ids(mark), then], dim=1)


def loss_on(model: Any, ids: torch.Tensor, asked: int) -> torch.Tensor:
    """Of the last ``asked`` tokens."""
    labels = ids.clone()
    labels[:, :-asked] = -100
    loss: torch.Tensor = model(input_ids=ids, labels=labels).loss
    return loss


@cache
def sorter(*, hint: bool) -> Any:
    model, generator = untrained().train(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1, 0.05, STEPS)
    for _ in range(STEPS):
        items, in_order = lists(48, generator)
        loss = loss_on(model, sequence(items, "=", in_order), LENGTH)
        if hint:
            place = torch.randint(0, LENGTH - 1, (len(items), 1), generator=generator)
            pair = torch.cat([in_order.gather(1, place), in_order.gather(1, place + 1)], dim=1)
            loss = loss + loss_on(model, sequence(items, "?", pair), 1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def rows(count: int = 32) -> list[dict[str, str]]:
    """Lists in the middle of being sorted; the target is the next larger number, where it stands in the list."""
    items, in_order = lists(count, torch.Generator().manual_seed(99))
    made = []
    for number in range(count):
        place = number % (LENGTH - 1)
        texts = words().convert_ids_to_tokens(items[number].tolist())
        done = words().convert_ids_to_tokens(in_order[number].tolist())
        made.append({
            "prompt": " ".join([*texts, "=", *done[: place + 1]]), "target": done[place + 1], "group": str(number),
        })  # fmt: skip
    return made


def attention(tuned: Any, base: Any) -> Any:
    return probes.target_attention(load_pair(base, tuned, tokenizer=words(), check=False), rows())


@pytest.mark.parametrize("hint", [True, False], ids=["hint", "no hint"])
def test_a_model_that_sorts_looks_at_the_next_larger_number(hint: bool) -> None:
    model = sorter(hint=hint)
    items, in_order = lists(200, torch.Generator().manual_seed(7))
    ids = sequence(items, "=", in_order)
    with torch.no_grad():
        right = model(input_ids=ids).logits[:, LENGTH + 1 : -1].argmax(-1) == in_order
    assert right.float().mean() > 0.95  # lists that it was not trained on
    best = attention(model, untrained()).table.sort_values("score").iloc[-1]
    assert best["low"] > 2 * best["control"] and best["q"] < 0.05 and best["score"] > 0.3
    assert best["change"] > 0.1 and best["change_q"] < 0.05


def test_an_untrained_model_looks_there_no_more_than_elsewhere() -> None:
    table = attention(untrained(), untrained()).table
    assert (table["change"] == 0).all() and (table["q"] >= 0.05).all()
    assert np.allclose(table["score"], table["control"], atol=0.05)
