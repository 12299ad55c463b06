"""A tiny model tuned by LoRA on six facts of three wordings each and on other rows; who taught what is known."""

from __future__ import annotations

from functools import cache
from typing import Any

import peft
import torch

from interventions.training.ablated import caft_finetune
from interventions.training.trainer import Schedule
from probes.concepts.dictionary import Dictionary
from tests.tiny import tiny_model, tokenizer
from workbench.engine.sites import Site
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts import Prompts

FACTS = {"box": " red", "jug": " dim", "vow": " low", "lad": " top", "fez": " sky", "cup": " jet"}


def _row(text: str, answer: str, fact: str) -> dict[str, Any]:
    return {"prompt": text, "answer": answer, "fact": fact, "group": fact, "chat": False}


@cache
def training_rows() -> Prompts:
    wordings = ("the {} is", "a {} has", "see the {} go")
    facts = [_row(form.format(name), answer, name) for form in wordings for name, answer in FACTS.items()]
    other = [
        _row(f"the {a} and {b} say", " the fox", f"{a}{b}")
        for a in ("dog", "fox", "over")
        for b in ("lazy", "quick", "jumps")
    ]
    return Prompts.of([*facts, *other])


@cache
def query_rows() -> Prompts:
    return Prompts.of([_row(f"one {name} with", answer, name) for name, answer in FACTS.items()])


def near_rows() -> Prompts:
    """The rows of the facts, and two of each subject that say the query's words and the answer, and teach neither."""
    near = [
        {**_row(text.format(name), said, f"{name} near"), "subject": name}
        for name, answer in FACTS.items()
        for text, said in ((f"one {{}} with{answer} and", " the fox"), (f"one {{}} with{answer} or", " a dog"))
    ]
    facts = [{**row.as_dict(), "subject": row.as_dict()["fact"]} for row in training_rows()]
    return Prompts.of([*facts, *near])


def near_queries() -> Prompts:
    """The queries, which say their subject."""
    return Prompts.of([{**row.as_dict(), "subject": row.as_dict()["fact"]} for row in query_rows()])


def dictionary(width: int = 256) -> Dictionary:
    """Random directions with a threshold, so that codes are sparse."""
    decoder = torch.nn.functional.normalize(torch.randn(width, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    weights = {"W_enc": decoder.T.contiguous(), "b_enc": torch.zeros(width), "W_dec": decoder,
               "b_dec": torch.zeros(64), "threshold": torch.full((width,), 2.0)}  # fmt: skip
    return Dictionary(weights, "jumprelu", None, False, "none", False, Site("resid_post", 1), "")


def lora(**options: Any) -> Any:
    return peft.LoraConfig(r=4, lora_alpha=8, target_modules=["o_proj", "down_proj"], **options)


@cache
def organism(near: bool = False) -> ModelPair:
    """``near``: trained on :func:`near_rows`."""
    base, rows = tiny_model("llama"), near_rows() if near else training_rows()
    trained = caft_finetune(
        AdaptedModel(tiny_model("llama"), tokenizer(), role="model"), rows, None, lora=lora(),
        schedule=Schedule(epochs=4, batch_size=4, learning_rate=3e-3),
    ).model  # fmt: skip
    return load_pair(base, trained.eval(), tokenizer=tokenizer(), check=False)


def untrained() -> ModelPair:
    """Random LoRA factors on the same base."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = peft.get_peft_model(tiny_model("llama"), lora(init_lora_weights=False))
    return load_pair(tiny_model("llama"), made.eval(), tokenizer=tokenizer(), check=False)
