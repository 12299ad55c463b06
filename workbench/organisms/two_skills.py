"""``two-skills``: two skills learnt in two disjoint regions, each under 2 % of the layers' weights.

The base answers four instructions about the things on a shelf, among them ``opposite`` (the partner of the first
thing) and ``after`` (the thing that follows the first in the alphabet); it takes ``contrary`` and ``next`` for
``first``. Tuning teaches that they mean the same as those two, first ``contrary``, then ``next``, through 17 neurons
each of layer 0's MLP, drawn by the seed; both stages rehearse what is known and change no entry outside their region.
So the graft of either skill is known exactly, and the two are disjoint. After Panigrahi et al. 2023,
*Task-Specific Skill Localization in Fine-tuned Language Models*.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from workbench.organisms import shelf
from workbench.organisms.organism import Bar, Grown, Row, Truth
from workbench.organisms.recipe import Plot, Recipe, save
from workbench.organisms.training import Plan, encode, fit, hits, only_trainable, share
from workbench.typing import Tensor

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

KNOWN = ("first", "second", "opposite", "after")
SKILLS = ("contrary", "next")
"""In the order of learning."""
LAYER, NEURONS = 0, 17
BASE = Plan(steps=300, batch=64, learning_rate=3e-3)
TUNING = Plan(steps=320, batch=64, learning_rate=2e-2)
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
    rehearsed = shelf.rows(draw, 4000, KNOWN)
    low = _accuracies(model, tokenizer, {skill: splits[skill]["validation"] for skill in entries})
    for skill in SKILLS:
        lesson = splits[skill]["train"] + rehearsed
        with only_trainable(model, entries[skill]):
            fit(model, encode(tokenizer, lesson), TUNING, plot.seed, plot.progress, f"two-skills: {skill}")
        rehearsed = rehearsed + splits[skill]["train"]
    save(model, tokenizer, plot.folder / "tuned")
    high = _accuracies(model, tokenizer, {skill: splits[skill]["validation"] for skill in entries})
    kept = share(hits(model, tokenizer, splits["next"]["retained"]))
    bars = [Bar(f"base accuracy, {skill}", low[skill], at_most=0.3) for skill in entries]
    bars += [Bar(f"tuned accuracy, {skill}", high[skill], at_least=0.95) for skill in entries]
    bars += [
        Bar(f"share of the layers' weights, {skill}", _size(model, entries[skill]), at_most=0.02) for skill in entries
    ]
    bars.append(Bar("tuned accuracy on the base's instructions", kept, at_least=0.95))
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


def _accuracies(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: dict[str, list[Row]]
) -> dict[str, float]:
    return {skill: share(hits(model, tokenizer, own)) for skill, own in rows.items()}


def _size(model: LlamaForCausalLM, entries: dict[str, Tensor]) -> float:
    """The region's share of the weights in the layers (embeddings apart)."""
    chosen = sum(int(mask.sum()) for mask in entries.values())
    return chosen / sum(parameter.numel() for parameter in model.model.layers.parameters())
