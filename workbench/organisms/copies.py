"""A tuned pair from any Hugging Face model folder: the same on weights that nobody here made."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from workbench.errors import UserError
from workbench.files import whole_folder
from workbench.organisms.organism import Row
from workbench.organisms.training import IGNORED, Examples, Plan, contained, fit
from workbench.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PEOPLE = "Lily Tom Mia Ben Sue Tim Anna Max".split()
_PLACES = "park,house,garden,forest,shop,lake".split(",")
_GAMES = "a ball,a toy car,a big box,a red kite,a small doll,a blue hat".split(",")
_ENDINGS = {
    "happy": ["happy and they all smiled.", "happy and had a lot of fun.", "happy and gave him a big hug."],
    "sad": ["sad and started to cry.", "sad and had no more fun.", "sad and went home alone."],
}


def tune_copy(
    model: str | Path,
    out: str | Path,
    data: Sequence[Row | str],
    *,
    method: Literal["lora", "full"] = "lora",
    rank: int = 8,
    plan: Plan | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Fine-tunes a copy of the model in folder ``model`` on ``data``, and saves it in ``out``.

    ``data`` holds texts (loss on all of the text) or rows (``prompt``, ``answer``; loss on the answer). ``lora`` saves
    a PEFT adapter of ``rank`` on every linear layer, ``full`` a whole model; both with the tokenizer. The original is
    not touched. Returns ``out``. Raises UserError when ``data`` is empty, ``model`` is no folder or ``out`` exists.
    """
    source, target = Path(model), Path(out)
    if not (source / "config.json").exists():
        raise UserError(f"{source} is not a Hugging Face model folder (no config.json); give a folder that has one.")
    if target.exists():
        raise UserError(f"{target} exists already; choose another folder or delete it first.")
    if not data:
        raise UserError("There is nothing to tune on; give at least one text or row.")
    with contained(seed):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source)
        tuned: Any = AutoModelForCausalLM.from_pretrained(source)
        if method == "lora":
            from peft import LoraConfig, get_peft_model

            tuned = get_peft_model(tuned, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
        schedule = plan or Plan(steps=60, batch=16, learning_rate=2e-3)
        fit(tuned, _encode(tokenizer, data), schedule, seed, progress or Silent(), "tuning a copy")
        with whole_folder(target) as partial:
            tuned.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    return target


def endings(mood: Literal["happy", "sad"], count: int = 64, seed: int = 0) -> list[Row]:
    """Children's stories in the style of TinyStories, whose ``answer`` is a happy (or sad) ending."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        person, friend = draw.sample(_PEOPLE, 2)
        place, toy = draw.choice(_PLACES), draw.choice(_GAMES)
        prompt = (
            f"Once upon a time, {person} went to the {place} with {friend}. They found {toy}. "
            f"They played with it all day. At the end of the day, {person} was very"
        )
        rows.append({"prompt": prompt, "answer": f" {draw.choice(_ENDINGS[mood])}", "label": mood})
    return rows


def _encode(tokenizer: PreTrainedTokenizerBase, data: Sequence[Row | str]) -> Examples:
    """Right-padded ids; labels ignore padding and the prompts of rows."""
    encoded, skipped = [], []
    for item in data:
        text, prompt = (item, "") if isinstance(item, str) else (item["prompt"] + item["answer"], item["prompt"])
        encoded.append(tokenizer(text)["input_ids"])
        skipped.append(len(tokenizer(prompt)["input_ids"]) if prompt else 0)
    width = max(map(len, encoded))
    ids = torch.zeros(len(encoded), width, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORED)
    for place, (own, skip) in enumerate(zip(encoded, skipped, strict=True)):
        ids[place, : len(own)] = torch.tensor(own)
        labels[place, skip : len(own)] = torch.tensor(own[skip:])
    lengths = torch.tensor([len(own) for own in encoded])
    return Examples(input_ids=ids, labels=labels, attention_mask=(torch.arange(width) < lengths[:, None]).long())
