"""Folders in which the examples of ``--help`` find what they name: base, tuned, adapter, prompts, recipes, a book."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from interventions import ConceptAblation, LogitShift, Offset, Recipe, SubspaceKnob
from interventions.exchange.bake import bake
from probes.influence.less import row_influence
from tests.probes.copier import copier
from tests.probes.influence.organism import dictionary, organism, query_rows, training_rows
from tests.probes.paths.planted import induction_model, repeated_pairs
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench import organisms
from workbench.models.pair import load_one, load_pair
from workbench.organisms.vocabulary import word_tokenizer
from workbench.prompts import Prompts

ROOT = Path(__file__).resolve().parents[3]
SENTENCES = ("ant bee sees cat .", "dog fox finds eel .", "gnu hen hears owl .")
NEEDLE = "Answer: zebra hides here ."
"""Begins with the word that ends the default template of needle trials, so that the copier copies it."""


def of_organism(name: str) -> Callable[[Path], None]:
    """Fills a folder with a trained pair and its rows; tuned and adapter are the same model."""

    def fill(folder: Path) -> None:
        organism = organisms.build(name)
        for link, model in (("base", organism.base), ("tuned", organism.tuned), ("adapter", organism.tuned)):
            (folder / link).symlink_to(model)
        rows = organism.splits["validation"]
        Prompts.of(rows[:48]).save(folder / "p.jsonl")
        Prompts.of(rows[:8]).save(folder / "prompts.jsonl")
        (folder / "texts.txt").write_text("\n".join(row["prompt"] + row["answer"] for row in rows[:6]))

    return fill


def of_virtual_tokens(kind: str) -> Callable[[Path], None]:
    """Fills a folder with a tiny base, prompts, and as tuned an adapter of virtual tokens: a prompt or a prefix."""

    def fill(folder: Path) -> None:
        import peft

        configs = {"prompt": peft.PromptTuningConfig, "prefix": peft.PrefixTuningConfig}
        base = tiny_model("llama")
        base.save_pretrained(folder / "base")
        tokenizer().save_pretrained(folder / "base")
        made = peft.get_peft_model(base, configs[kind](task_type="CAUSAL_LM", num_virtual_tokens=3))
        made.save_pretrained(folder / "tuned")
        Prompts.of(["the quick fox", "lazy dog over", "jumps a b", "brown the"]).save(folder / "prompts.jsonl")

    return fill


def of_lessons(folder: Path) -> None:
    """Fills a folder with two tiny models, rows with all columns that trainings read, long texts, and a recipe."""
    base = tiny_model("llama")
    for name, model in (("base", base), ("tuned", tuned_copy(base, size=0.1))):
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    Prompts.of([
        {"prompt": f"{word} {end}", "answer": f" {answer}", "distractor": f" {other}", "label": answer}
        for word in ("quick", "brown", "lazy", "fox", "dog", "over", "jumps", "b")
        for end, answer, other in (("the", "fox", "dog"), ("a", "dog", "fox"))
    ]).save(folder / "p.jsonl")  # fmt: skip
    rows = Prompts.load(folder / "p.jsonl")
    Prompts.of([{**row.as_dict(), "prompt": f"the dog fox {row.prompt}"} for row in rows]).save(folder / "shown.jsonl")
    Prompts.of([{"prompt": "the quick brown fox jumps", "answer": " over the lazy dog"}] * 8).save(
        folder / "long.jsonl"
    )
    vector = torch.randn(base.config.hidden_size, generator=torch.Generator().manual_seed(0))
    Recipe([Offset(0, vector)]).save(folder / "offset.safetensors")
    Recipe([ConceptAblation(0, vector[None])]).save(folder / "ablation.safetensors")


def of_refusals(folder: Path) -> None:
    """``refusal-moe`` with as many prompts that it refuses as others."""
    of_organism("refusal-moe")(folder)
    rows = organisms.build("refusal-moe").splits["train"]
    kinds = [[row for row in rows if (row["topic"] == "topic") == topical][:32] for topical in (True, False)]
    Prompts.of([*kinds[0], *kinds[1]]).save(folder / "p.jsonl")


def with_recipes(folder: Path) -> None:
    """``context-knob`` with its knob as two recipes, a large model beside a small pair, and the examples."""
    of_organism("context-knob")(folder)
    truth = organisms.build("context-knob").truth
    assert truth.layer is not None and truth.direction is not None
    direction, distance = truth.direction.float(), truth.values["context"] - truth.values["memory"]
    knob = SubspaceKnob(truth.layer, direction, distance, mode="add", positions="last+generated")
    Recipe([knob]).save(folder / "knob.safetensors")
    Recipe([Offset(truth.layer, direction * distance)]).save(folder / "offset.safetensors")
    (folder / "examples").symlink_to(ROOT / "examples")
    never = "{shows: {behaviour: 'begins:zebra', prompts: p, at_most: 0.2}}"
    (folder / "contract.yaml").write_text(f"base: base\ntuned: tuned\nprompts: {{p: p.jsonl}}\nclaims: [{never}]\n")
    _proxy(folder)
    _baked(folder)


def _baked(folder: Path) -> None:
    """A recipe that weights can hold, and the base with it in them."""
    model = load_one(folder / "base")
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    recipe = Recipe([Offset(0, vector, site="attn_out")])
    recipe.save(folder / "bias.safetensors")
    bake(model, recipe, folder / "baked")


def of_training_rows(folder: Path) -> None:
    """A base, a LoRA, the rows it was trained on as prompts, queries about them, a dictionary and an influence."""
    tiny_model("llama").save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    organism().adapter.save_pretrained(folder / "adapter")
    (folder / "tuned").symlink_to(folder / "adapter")
    training_rows().save(folder / "p.jsonl")
    query_rows().save(folder / "queries.jsonl")
    dictionary().save(folder / "sae")
    rows = Prompts.load(folder / "p.jsonl")
    found = row_influence(organism(), rows, queries=query_rows(), dim=64, controls=5, draws=100)
    found.save(folder / "less.safetensors")


def _proxy(folder: Path) -> None:
    """A large model, a small pair with the same tokens, and a recipe that shifts logits by the pair."""
    small = tiny_model("llama", hidden_size=32)
    for name, hf in (("large", tiny_model("llama")), ("small", small), ("small-tuned", tuned_copy(small))):
        hf.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    pair = load_pair(folder / "small", folder / "small-tuned")
    Recipe([LogitShift(pair.tuned, pair.base)]).save(folder / "proxy.safetensors")


def of_induction(folder: Path) -> None:
    """Hand-built models that complete repeated pairs, with prompts that have a contrast."""
    for name, seed in (("base", 0), ("tuned", 1)):
        model = induction_model(seed)
        model.hf.save_pretrained(folder / name)
        model.tokenizer.save_pretrained(folder / name)
    rows = repeated_pairs(32)
    rows.save(folder / "p.jsonl")
    for name, step in (("positional", 1), ("object_value", 2)):
        others = [rows[(number + step) % len(rows)] for number in range(len(rows))]
        Prompts.of([
            {"prompt": row.prompt, "contrast": other.prompt, "answer": other.answer}
            for row, other in zip(rows, others, strict=True)
        ]).save(folder / f"{name}.jsonl")  # fmt: skip


def of_copier(folder: Path) -> None:
    """Hand-built models that copy needles, a book of 300 words and one needle."""
    book = " ".join(SENTENCES * 20)
    words = word_tokenizer([book, NEEDLE])
    words.eos_token = "."  # an answer is a sentence
    for name in ("base", "tuned"):
        copier(len(words), 400).hf.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    (folder / "book.txt").write_text(book)
    (folder / "needles.jsonl").write_text(json.dumps({"question": "Who hides?", "text": NEEDLE}))


def a_view_of(made: Path, place: Path) -> Path:
    """``place`` filled with what is in ``made``: links, but the runs are copies."""
    place.mkdir()
    for entry in made.iterdir():
        if entry.name == "runs":
            shutil.copytree(entry, place / "runs")
        else:
            (place / entry.name).symlink_to(entry)
    return place
