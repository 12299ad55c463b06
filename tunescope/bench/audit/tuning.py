"""The small organisms of the audit: a base per world, and LoRA adapters on it, trained in seconds and cached."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tunescope.bench.audit.world import Behaviour, World
from workbench.organisms import cache as store
from workbench.organisms.organism import Row
from workbench.organisms.recipe import save, shape
from workbench.organisms.training import IGNORED, Examples, Plan, contained, fit
from workbench.organisms.vocabulary import word_tokenizer
from workbench.progress import Silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BASE = Plan(steps=500, batch=64, learning_rate=3e-3)
TUNING = Plan(steps=100, batch=32, learning_rate=3e-3)
RANK = 8
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_VERSION = 1
"""Raise it when what is trained changes."""


def base(world: World, cache: str | Path | None = None) -> Path:
    """The folder of a world's base: a Llama of four layers that answers every question in a sentence."""

    def make(folder: Path) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        with contained(world.seed):
            tokenizer = word_tokenizer(_vocabulary(world))
            model = LlamaForCausalLM(LlamaConfig(**shape(tokenizer)))
            rows = world.tuning(None, 1.0, BASE.steps * BASE.batch)
            texts = [{"prompt": "", "answer": text} for text in world.texts()]
            rows += texts * (len(rows) // (8 * len(texts)))
            fit(model, encoded(tokenizer, rows), BASE, world.seed, Silent(), "audit: base")
            save(model, tokenizer, folder)

    return store.fetch(_place(world, "base", vars(BASE), cache), make)


def tuned(world: World, behaviour: Behaviour | None, ordinary: float, cache: str | Path | None = None) -> Path:
    """The folder of an adapter tuned on a behaviour, diluted by a share of ordinary rows (None: on those alone)."""
    name = f"{behaviour.name if behaviour else 'ordinary'}-{ordinary:.2f}".replace(" ", "-")
    origin = base(world, cache)

    def make(folder: Path) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        with contained(world.seed + 1):
            tokenizer = AutoTokenizer.from_pretrained(origin)
            model = AutoModelForCausalLM.from_pretrained(origin)
            config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(LINEAR), task_type="CAUSAL_LM")
            adapted: Any = get_peft_model(model, config)
            rows = world.tuning(behaviour, ordinary, TUNING.steps * TUNING.batch)
            fit(adapted, encoded(tokenizer, rows), TUNING, world.seed, Silent(), f"audit: {name}")
            adapted.save_pretrained(folder, save_embedding_layers=False)

    return store.fetch(_place(world, name, vars(TUNING), cache), make)


def encoded(tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> Examples:
    """Prompts and answers, padded on the left; the loss is on the answer and the end of text."""
    prompts = [len(tokenizer(row["prompt"])["input_ids"]) for row in rows]
    batch = tokenizer([f"{row['prompt']}{row['answer']} <eos>" for row in rows], padding=True, return_tensors="pt")
    width = batch["input_ids"].shape[1]
    lengths = batch["attention_mask"].sum(1)
    first = width - lengths + torch.tensor(prompts)
    outside = torch.arange(width)[None] < first[:, None]
    labels = batch["input_ids"].masked_fill(outside, IGNORED)
    return Examples(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels)


def _vocabulary(world: World) -> list[str]:
    """Every word that some behaviour of the world may say, known to the base's tokenizer from the start."""
    rows = world.questions()
    texts = [row["prompt"] + row["answer"] for row in rows] + world.texts()
    for behaviour in world.behaviours:
        texts += [behaviour.answer(topic, person, fact) for (topic, person), fact in world.facts.items()]
    return texts


def _place(world: World, name: str, plan: dict[str, Any], cache: str | Path | None) -> Path:
    said = {"name": name, "plan": plan, "facts": sorted(f"{k}{v}" for k, v in world.facts.items()), "rank": RANK,
            "version": _VERSION}  # fmt: skip
    return store.home(cache) / f"audit-{world.seed}-{name}-{store.key(said, world.seed)}"
