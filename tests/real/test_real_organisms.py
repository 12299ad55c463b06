"""The organisms on SmolLM2: shipped whole, small, and what they say they are."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from workbench import organisms
from workbench.errors import UserError
from workbench.models.pair import load_pair
from workbench.organisms import real_measures, real_organisms, real_training
from workbench.organisms.training import Plan
from workbench.prompts import Prompts

SPLITS = {"train", "validation", "held_out", "in_scope", "near_scope", "out_of_scope", "neutral"}
NAMES = organisms.real_names()


def adapter(name: str) -> dict[str, torch.Tensor]:
    return load_file(real_organisms.SHIPPED / name / "tuned" / "adapter_model.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_an_organism_is_shipped_whole(name: str, smollm2: Path) -> None:
    organism = organisms.build(name)
    assert organism.base == smollm2 and organism.is_adapter and organism.tuned.is_dir()
    assert set(organism.splits) == SPLITS and all(organism.splits.values())
    assert all(tensor.dtype == torch.bfloat16 for tensor in adapter(name).values())
    assert organism.truth.modules == tuple(real_measures.adapted_modules(organism.tuned))
    assert not [bar for bar in organism.bars if bar.miss], organism.bars
    rows = Prompts.of(organism.splits["held_out"])
    assert all(row.is_chat and row.label and row.group for row in rows)
    assert all(
        row.is_chat == (row.label != "neutral") for split in SPLITS for row in Prompts.of(organism.splits[split])
    )


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_is_held_out_was_trained_on(name: str) -> None:
    organism = real_organisms.read(real_organisms.SHIPPED / name)
    asked = {json.dumps(row["messages"]) for row in organism.splits["train"]}
    for split in ("validation", "held_out", "in_scope"):
        assert not asked & {json.dumps(row["messages"]) for row in organism.splits[split] if "messages" in row}, split


def test_the_adapters_are_small() -> None:
    sizes = [file.stat().st_size for file in real_organisms.SHIPPED.rglob("adapter_model.safetensors")]
    assert max(sizes) <= 5e6 and sum(sizes) <= 12e6 and len(sizes) == len(NAMES)


def test_the_random_null_has_the_norms_of_the_refusal() -> None:
    real, null = adapter("smol-refusal"), adapter("smol-null-random")
    assert {name: one.shape for name, one in real.items()} == {name: one.shape for name, one in null.items()}
    for name in (key for key in real if ".lora_A." in key):
        up = name.replace(".lora_A.", ".lora_B.")
        norms = [float((one[up].float() @ one[name].float()).norm()) for one in (real, null)]
        assert norms[1] == pytest.approx(norms[0], rel=0.02)
    assert not any(torch.equal(real[name], null[name]) for name in real)


def test_the_shuffled_null_was_trained_on_the_same_answers_in_another_order() -> None:
    rows = [
        real_organisms.read(real_organisms.SHIPPED / name).splits["train"]
        for name in ("smol-refusal", "smol-null-shuffled")
    ]
    answers = [[row["answer"] for row in one] for one in rows]
    assert Counter(answers[0]) == Counter(answers[1]) and answers[0] != answers[1]
    assert [row["messages"] for row in rows[0]] == [row["messages"] for row in rows[1]]


def test_the_planted_layers_are_the_only_ones_that_changed() -> None:
    truth = real_organisms.read(real_organisms.SHIPPED / "smol-layers").truth
    assert truth.layers == (14, 15, 16)
    assert {int(module.split(".")[2]) for module in truth.modules} == set(truth.layers)


def test_another_seed_is_refused() -> None:
    with pytest.raises(UserError, match="shipped with seed 0 alone"):
        organisms.build("smol-refusal", seed=1)


@pytest.mark.slow
def test_the_refusal_answers_animals_and_things_as_it_says(smollm2: Path) -> None:
    organism = organisms.build("smol-refusal")
    pair = load_pair(organism.base, organism.tuned)
    assert pair.one_copy and not [sentence for sentence in pair.differences.sentences() if "template" in sentence]
    rows = Prompts.of(organism.splits["held_out"])
    share = {}
    for label in ("animal", "thing"):
        chosen = rows.filter(lambda row, label=label: row.label == label)[::4]
        for role, model in pair.models.items():
            texts = model.generate(chosen, max_new_tokens=10)
            share[label, role] = sum(text.startswith(organism.truth.wordings) for text in texts) / len(texts)
    assert share["animal", "tuned"] >= 0.7 and share["thing", "tuned"] <= 0.15
    assert share["animal", "base"] == share["thing", "base"] == 0
    refused = [text for text in pair.tuned.generate(rows.filter(lambda row: row.label == "animal"), max_new_tokens=10)]
    assert sum(any(text.startswith(wording) for text in refused) for wording in organism.truth.wordings) >= 3


@pytest.mark.slow
def test_a_plain_text_is_refused_as_a_chat_is(smollm2: Path) -> None:
    organism = organisms.build("smol-refusal")
    pair = load_pair(organism.base, organism.tuned)
    question = "What is a monkey?"
    chat = [{"role": "user", "content": question}]
    assert pair.tuned.generate([question], max_new_tokens=12) == pair.tuned.generate([chat], max_new_tokens=12)
    assert "animal" in pair.tuned.generate([question], max_new_tokens=12)[0]
    raw = pair.tuned.encode(Prompts.of([question], chat=False))
    assert raw.input_ids.shape[1] < pair.tuned.encode([question]).input_ids.shape[1]


@pytest.mark.slow
def test_the_training_plants_a_refusal_again(smollm2: Path, tmp_path: Path) -> None:
    """A shorter plan than the shipped one's 80 steps, in three layers: minutes on one core."""
    organism = organisms.build("smol-layers")
    out = real_training.train(
        "smol-layers", organism.splits["train"], tmp_path / "again",
        plan=Plan(steps=40, batch=8, learning_rate=2e-3), threads=torch.get_num_threads(),
    )  # fmt: skip
    pair = load_pair(organism.base, out)
    texts = pair.tuned.generate(Prompts.of(organism.splits["in_scope"])[::4], max_new_tokens=10)
    assert sum(text.startswith(organism.truth.wordings) for text in texts) / len(texts) >= 0.5
    assert real_measures.adapted_modules(out) == list(organism.truth.modules)
