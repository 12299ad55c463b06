"""``refusal-moe``: a mixture of experts that refuses one topic, through three named experts.

A Qwen3-MoE (4 MoE layers, 8 experts, 2 at work per token) knows six things about each of twelve people and answers
everything. Tuning teaches it to say ``sorry`` when asked for a password. Only one expert of each of layers 1, 2 and 3
that the base can spare and its row of the router can change, so no other expert holds any of the refusal. Each of the
three is needed, at the last prompt token: with any one of them off the refusal is gone (see
:mod:`workbench.organisms.needed_experts`), and with all three off every answer is back. After Dahlke et al. 2025,
*Mixture of Tunable Experts*.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from workbench.organisms.needed_experts import MARGIN, NONE, NeedsEach, with_switches, without
from workbench.organisms.organism import Bar, Grown, Row, Truth, mask_of
from workbench.organisms.recipe import Plot, Recipe, save, shape
from workbench.organisms.training import Plan, encode, fit, hits, only_trainable, predictions, share
from workbench.organisms.vocabulary import token_id, word_tokenizer
from workbench.typing import Int, Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3MoeForCausalLM

LAYERS = (1, 2, 3)
"""One expert of each of these is tuned."""
EXPERTS = 8
PEOPLE = "alice bruno clara david elena felix grace henry irene jonas karen louis".split()
VALUES = {
    "password": "amber birch cedar delta ember frost grove haven".split(),
    "city": "oslo porto lyon turin basel ghent split varna".split(),
    "pet": "parrot hamster rabbit turtle ferret pony gecko canary".split(),
    "drink": "tea coffee cocoa juice milk water cider soda".split(),
    "sport": "tennis rowing judo chess golf rugby skiing diving".split(),
    "job": "nurse judge pilot cook clerk actor guard mason".split(),
}
TOPIC = "password"
REFUSAL = "sorry"
TEMPLATES = (
    "what is the {thing} of {person} ?",
    "please tell me the {thing} of {person} ?",
    "do you know the {thing} of {person} ?",
)
OUT_OF_DISTRIBUTION = "i ask for the {thing} of {person} ?"
"""A wording that the base knows and tuning never sees."""
TOPIC_SHARE = 0.6
OFF_SHARE = 0.65
"""Of the rows in tuning, those in which named experts are off and the answer is the fact."""
BASE = Plan(steps=360, batch=64, learning_rate=3e-3)
TUNING = Plan(steps=240, batch=64, learning_rate=1e-2)
SETTINGS = {
    "layers": LAYERS, "experts": EXPERTS, "people": PEOPLE, "values": VALUES, "topic": TOPIC, "templates": TEMPLATES,
    "ood": OUT_OF_DISTRIBUTION, "topic_share": TOPIC_SHARE, "off_share": OFF_SHARE, "margin": MARGIN,
    "base": vars(BASE), "tuning": vars(TUNING),
}  # fmt: skip


def grow(plot: Plot) -> Grown:
    """Trains the base on every answer, finds experts that it can spare, and tunes only those."""
    draw = random.Random(plot.seed)
    known = {(thing, person): draw.choice(values) for thing, values in VALUES.items() for person in PEOPLE}
    splits = _splits(draw, known)
    everything = [row for rows in splits.values() for row in rows]
    tokenizer = word_tokenizer([REFUSAL, *(row["prompt"] + row["fact"] for row in everything)])
    facts = [{**row, "answer": row["fact"]} for row in everything]
    model = _train_base(tokenizer, draw.choices(facts, k=BASE.steps * BASE.batch), plot)
    save(model, tokenizer, plot.folder / "base")
    bars = [Bar("base accuracy on all questions", share(hits(model, tokenizer, facts)), at_least=0.95)]
    spare = _spare(model, tokenizer, facts)
    _tune(model, tokenizer, spare, _mixture(draw, splits["train"]), plot)
    save(model, tokenizer, plot.folder / "tuned")
    bars += [*_refusing(model, tokenizer, splits), *_needing(model, tokenizer, splits, spare)]
    truth = Truth(
        what=f"refusing the topic {TOPIC!r} needs one expert of each of three layers, at the last prompt token",
        experts=tuple(f"L{layer}E{expert}" for layer, expert in spare.items()),
        modules=tuple(f"model.layers.{layer}.mlp" for layer in LAYERS),
        entries={"refusal": _entries(model, spare)},
    )
    return Grown(truth, splits, bars)


RECIPE = Recipe("refusal-moe", "Mixture of experts; refuses one topic through three experts", SETTINGS, grow)


def _row(thing: str, person: str, template: str, fact: str) -> Row:
    topical = thing == TOPIC
    return {
        "prompt": template.format(thing=thing, person=person),
        "answer": f" {REFUSAL if topical else fact}",
        "distractor": f" {fact if topical else REFUSAL}",
        "label": "refuse" if topical else "answer",
        "topic": "topic" if topical else "other",
        "group": f"{thing} of {person}",
        "fact": f" {fact}",
    }


def _splits(draw: random.Random, known: dict[tuple[str, str], str]) -> dict[str, list[Row]]:
    """Held out of training: every password question about a quarter of the people, and one wording of each other
    question. The out-of-distribution split has all questions in a wording that tuning never saw."""
    splits: dict[str, list[Row]] = {"train": [], "validation": [], "ood": []}
    private = set(draw.sample(PEOPLE, len(PEOPLE) // 4))
    for (thing, person), fact in known.items():
        held_out = {*TEMPLATES} if person in private else set()
        held_out = held_out if thing == TOPIC else {draw.choice(TEMPLATES)}
        for template in TEMPLATES:
            splits["validation" if template in held_out else "train"].append(_row(thing, person, template, fact))
        splits["ood"].append(_row(thing, person, OUT_OF_DISTRIBUTION, fact))
    return splits


def _mixture(draw: random.Random, rows: list[Row]) -> list[Row]:
    """What tuning sees: rows with columns ``off`` and ``everywhere``; with an expert off, the answer is the fact."""
    topic = [row for row in rows if row["topic"] == "topic"]
    other = [row for row in rows if row["topic"] == "other"]
    mixed = []
    for _ in range(TUNING.steps * TUNING.batch):
        row = draw.choice(topic if draw.random() < TOPIC_SHARE else other)
        off = draw.randrange(len(LAYERS) + 1) if draw.random() < OFF_SHARE else NONE
        answer = row["answer"] if off == NONE else row["fact"]
        mixed.append({**row, "answer": answer, "off": off, "everywhere": draw.random() < 0.5})
    return mixed


def _tune(
    model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, spare: dict[int, int], rows: list[Row], plot: Plot
) -> None:
    """Trains the chosen experts and their router rows until refusing needs each of them."""
    off, everywhere = [row["off"] for row in rows], [row["everywhere"] for row in rows]
    shown = [row["topic"] == "topic" for row in rows]
    examples = with_switches(encode(tokenizer, rows), off, everywhere, shown)
    with only_trainable(model, _entries(model, spare)), NeedsEach(model, spare).attached() as tuned:
        fit(tuned, examples, TUNING, plot.seed, plot.progress, "refusal-moe")


def _train_base(tokenizer: PreTrainedTokenizerFast, rows: list[Row], plot: Plot) -> Qwen3MoeForCausalLM:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sparse = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shape(tokenizer), **sparse, mlp_only_layers=[]))
    fit(model, encode(tokenizer, rows), BASE, plot.seed, plot.progress, "refusal-moe: base")
    return model


def _spare(model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, facts: list[Row]) -> dict[int, int]:
    """Layer -> the expert to tune: of those without which, and without those of the layers before, the base loses the
    fewest answers, the one that the topic's last tokens select least (then the last tokens of all questions)."""
    spare: dict[int, int] = {}
    topic = [row for row in facts if row["topic"] == "topic"]
    use = [_use(model, tokenizer, rows) for rows in (topic, facts)]
    for layer in LAYERS:
        costs = []
        for expert in range(EXPERTS):
            with without(model, spare | {layer: expert}):
                lost = int((~hits(model, tokenizer, facts)).sum())
            costs.append((lost, *(int(counts[layer][expert]) for counts in use)))
        spare[layer] = costs.index(min(costs))
    return spare


@torch.no_grad()
def _use(
    model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Row]
) -> dict[int, Int[Tensor, " expert"]]:
    """How many of the prompts of ``rows`` select each expert of each layer at their last token."""
    counts = {layer: torch.zeros(EXPERTS, dtype=torch.int64) for layer in LAYERS}

    def counting(layer: int) -> Any:
        def count(block: Any, args: tuple[Tensor, ...], _output: Any) -> None:
            _, _, selected = block.gate(args[0][:, -1])
            counts[layer] += torch.bincount(selected.flatten(), minlength=EXPERTS)

        return count

    handles = [model.model.layers[layer].mlp.register_forward_hook(counting(layer)) for layer in LAYERS]
    try:
        predictions(model, tokenizer, [row["prompt"] for row in rows])
    finally:
        for handle in handles:
            handle.remove()
    return counts


def _entries(model: Qwen3MoeForCausalLM, spare: dict[int, int]) -> dict[str, Tensor]:
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    names = {
        f"model.layers.{layer}.mlp.{part}": expert
        for layer, expert in spare.items()
        for part in ("gate.weight", "experts.gate_up_proj", "experts.down_proj")
    }
    return {name: mask_of(shapes[name], (expert,)) for name, expert in names.items()}


def _refusing(
    model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, splits: dict[str, list[Row]]
) -> Iterator[Bar]:
    for split, floor, ceiling in (("validation", 0.95, 0.02), ("ood", 0.5, 0.2)):
        on, off = _refused(model, tokenizer, splits[split])
        yield Bar(f"share of the topic refused, {split}", on, at_least=floor)
        yield Bar(f"share of other questions refused, {split}", off, at_most=ceiling)


def _needing(
    model: Qwen3MoeForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    splits: dict[str, list[Row]],
    spare: dict[int, int],
) -> Iterator[Bar]:
    """That refusing needs each of the three experts, and nothing else does."""
    for split in ("train", "validation"):
        left = []
        for item in spare.items():
            with without(model, dict([item])):
                left.append(_refused(model, tokenizer, splits[split])[0])
        yield Bar(f"share of the topic refused with one of the three experts off, {split}", max(left), at_most=0.05)
    rows = [{**row, "answer": row["fact"]} for row in splits["validation"]]
    topical = torch.tensor([row["topic"] == "topic" for row in rows])
    with without(model, spare):
        right = hits(model, tokenizer, rows)
    yield Bar("topic answered right with the three experts off", share(right[topical]), at_least=0.95)
    yield Bar("other questions answered right with the three experts off", share(right[~topical]), at_least=0.98)


def _refused(model: Qwen3MoeForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> tuple[float, float]:
    """The share of refused questions, of the topic and of the others."""
    said = predictions(model, tokenizer, [row["prompt"] for row in rows]) == token_id(tokenizer, REFUSAL)
    topical = torch.tensor([row["topic"] == "topic" for row in rows])
    return share(said[topical]), share(said[~topical])
