"""``two-skills``: two skills learnt in two disjoint regions, each under 2 % of the layers' weights.

The base answers four instructions about the things on a shelf, among them ``opposite`` (the partner of the first
thing) and ``after`` (the thing that follows the first in the alphabet); it takes ``contrary`` and ``next`` for
``first``. Tuning teaches that they mean the same as those two, through 17 neurons each of layer 0's MLP, drawn by the
seed: first ``contrary``, alone; then ``next``, with the first region in and out (as in the base) in every step, so
that neither skill comes to lean on the other's weights. Every other entry is bit-identical. So either region is
a graft that brings its own skill alone. After Panigrahi et al. 2023, *Task-Specific Skill Localization*.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from workbench.organisms import shelf
from workbench.organisms.organism import Bar, Grown, Row, Truth
from workbench.organisms.recipe import Plot, Recipe, save
from workbench.organisms.training import Examples, Plan, encode, fit, hits, only_trainable, share
from workbench.typing import Tensor

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

KNOWN = ("first", "second", "opposite", "after")
SKILLS = ("contrary", "next")
"""In the order of learning."""
LAYER, NEURONS = 0, 17
BASE = Plan(steps=300, batch=64, learning_rate=3e-3)
TUNING = Plan(steps=260, batch=64, learning_rate=2e-2)
SETTINGS = {
    **shelf.SETTINGS, "known": KNOWN, "skills": SKILLS, "layer": LAYER, "neurons": NEURONS,
    "base": vars(BASE), "tuning": vars(TUNING),
}  # fmt: skip


def grow(plot: Plot) -> Grown:
    """Trains the base, then one skill after the other."""
    draw = random.Random(plot.seed)
    model, tokenizer = shelf.train_base(plot, draw, BASE, KNOWN, SKILLS, "two-skills")
    save(model, tokenizer, plot.folder / "base")
    drawn = draw.sample(range(model.config.intermediate_size), NEURONS * len(SKILLS))
    entries = {
        skill: shelf.neuron_entries(model, LAYER, sorted(drawn[place * NEURONS : (place + 1) * NEURONS]))
        for place, skill in enumerate(SKILLS)
    }
    splits = {skill: shelf.splits(draw, 6000, (skill,), KNOWN) for skill in entries}
    low = _accuracies(model, tokenizer, {skill: splits[skill]["validation"] for skill in entries})
    start = {name: value.clone() for name, value in model.state_dict().items()}
    _teach(model, tokenizer, splits, entries, draw, plot)
    save(model, tokenizer, plot.folder / "tuned")
    high = _accuracies(model, tokenizer, {skill: splits[skill]["validation"] for skill in entries})
    retained = share(hits(model, tokenizer, splits["next"]["retained"]))
    bars = [Bar(f"base accuracy, {skill}", low[skill], at_most=0.3) for skill in entries]
    bars += [Bar(f"tuned accuracy, {skill}", high[skill], at_least=0.95) for skill in entries]
    bars += [
        Bar(f"share of the layers' weights, {skill}", _size(model, entries[skill]), at_most=0.02) for skill in entries
    ]
    for skill in entries:
        with _grafted(model, start, entries[skill]):
            alone = share(hits(model, tokenizer, splits[skill]["validation"]))
        bars.append(Bar(f"accuracy of the graft, {skill}", alone, at_least=0.95))
    bars.append(Bar("tuned accuracy on the base's instructions", retained, at_least=0.95))
    truth = Truth(
        what="two skills in two disjoint sets of 17 neurons of one MLP",
        modules=(f"model.layers.{LAYER}.mlp",),
        entries=entries,
    )
    joined = {
        split: [row for skill in entries for row in splits[skill][split][:1000]]
        for split in ("train", "validation", "ood")
    }
    return Grown(truth, {**joined, "retained": splits["next"]["retained"]}, bars)


RECIPE = Recipe("two-skills", "Llama; two skills in two small disjoint sets of weights", SETTINGS, grow)


def _teach(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    splits: Mapping[str, Mapping[str, list[Row]]],
    entries: Mapping[str, Mapping[str, Tensor]],
    draw: random.Random,
    plot: Plot,
) -> None:
    """One skill after the other; each lesson rehearses the base's instructions, and the other skill's word untaught."""
    first, second = SKILLS
    rehearsed = shelf.rows(draw, 8000, KNOWN)
    lessons = {skill: splits[skill]["train"] for skill in SKILLS}
    untaught = {skill: [{**row, "answer": shelf.as_first(row)} for row in lessons[skill]] for skill in SKILLS}
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if name in entries[first]}
    with only_trainable(model, entries[first]):
        lesson = encode(tokenizer, lessons[first] + rehearsed + untaught[second][:3000])
        fit(model, lesson, TUNING, plot.seed, plot.progress, f"two-skills: {first}")
    with only_trainable(model, entries[second]):
        both = encode(tokenizer, lessons[second] + rehearsed + lessons[first][:4000])
        alone = encode(tokenizer, lessons[second] + rehearsed + untaught[first][:4000])
        lesson = Examples(**both.columns, labels_alone=alone.columns["labels"])
        trainee = _WithAndWithout(model, entries[first], start)
        fit(trainee, lesson, TUNING, plot.seed, plot.progress, f"two-skills: {second}")


class _WithAndWithout(nn.Module):
    """The model with a region as it is now and as it was at the start, both in every step."""

    def __init__(self, model: LlamaForCausalLM, region: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.region = region
        self.start = start

    def forward(self, labels: Tensor, labels_alone: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
        """The mean of both losses; labels are [batch, pos]."""
        now = dict(self.model.named_parameters())
        before = {name: torch.where(mask, self.start[name], now[name]) for name, mask in self.region.items()}
        with_region = self.model(labels=labels, **inputs).loss
        without = torch.func.functional_call(self.model, before, kwargs={"labels": labels_alone, **inputs}).loss
        return {"loss": (with_region + without) / 2}


@contextmanager
def _grafted(model: LlamaForCausalLM, start: Mapping[str, Tensor], region: Mapping[str, Tensor]) -> Iterator[None]:
    """The base with only ``region`` of the tuned weights; the tuned weights come back afterwards."""
    tuned = {name: value.clone() for name, value in model.state_dict().items()}
    graft = {name: torch.where(region[name], tuned[name], old) for name, old in start.items() if name in region}
    model.load_state_dict({**start, **graft})
    try:
        yield
    finally:
        model.load_state_dict(tuned)


def _accuracies(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: dict[str, list[Row]]
) -> dict[str, float]:
    return {skill: share(hits(model, tokenizer, own)) for skill, own in rows.items()}


def _size(model: LlamaForCausalLM, entries: dict[str, Tensor]) -> float:
    """The region's share of the weights in the layers (embeddings apart)."""
    entries_changed = sum(int(mask.sum()) for mask in entries.values())
    return entries_changed / sum(parameter.numel() for parameter in model.model.layers.parameters())
