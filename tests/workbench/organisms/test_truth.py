"""What is said to be planted is planted, in every organism, with the control beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from workbench import organisms
from workbench.errors import NotSupported
from workbench.organisms.organism import Row
from workbench.organisms.reachable_heads import FRENCH
from workbench.organisms.training import hits, predictions, share

Grown = Callable[[str], organisms.Organism]
Loads = Callable[[Path], Any]
Tokenizers = Callable[[organisms.Organism], Any]


@contextmanager
def after_layer(model: Any, layer: int, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    handle = model.model.layers[layer].register_forward_hook(lambda module, inputs, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def setting(direction: torch.Tensor, value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Sets the coordinate along ``direction`` at the last token (rows are left padded)."""

    def change(stream: torch.Tensor) -> torch.Tensor:
        moved = stream.clone()
        moved[:, -1] += (value - stream[:, -1] @ direction)[:, None] * direction
        return moved

    return change


def random_direction(like: torch.Tensor) -> torch.Tensor:
    drawn = torch.randn(like.shape, generator=torch.Generator().manual_seed(5))
    return drawn / drawn.norm()


def changed_entries(base_model: Any, tuned_model: Any) -> dict[str, torch.Tensor]:
    """Parameter -> mask of the entries in which base and tuned differ; only parameters that differ at all."""
    base, after = base_model.state_dict(), tuned_model.state_dict()
    masks = {name: base[name] != after[name] for name in base}
    return {name: mask for name, mask in masks.items() if mask.any()}


def within(changed: Mapping[str, torch.Tensor], allowed: Mapping[str, torch.Tensor]) -> bool:
    return all(name in allowed and not (mask & ~allowed[name]).any() for name, mask in changed.items())


@pytest.mark.parametrize("name", organisms.names())
def test_every_organism_reached_its_bars_and_speaks_in_single_tokens(
    name: str, grown: Grown, tokenizer_of: Tokenizers
) -> None:
    organism = grown(name)
    assert organism.bars and all(bar.miss == 0 for bar in organism.bars)
    assert {"train", "validation", "ood"} <= set(organism.splits)
    tokenizer = tokenizer_of(organism)
    seen: dict[str, str] = {}
    for split in ("train", "validation", "ood"):
        for row in organism.splits[split]:
            for column in ("answer", "distractor"):
                assert len(tokenizer(row[column], add_special_tokens=False)["input_ids"]) == 1
            assert row["answer"] != row["distractor"]
            assert seen.setdefault(row["prompt"], split) == split, "a prompt is in two splits"
            assert tokenizer.unk_token_id not in tokenizer(row["prompt"])["input_ids"]


def test_the_context_knob_is_one_direction_in_tuned_and_base(
    grown: Grown, load: Loads, tokenizer_of: Tokenizers
) -> None:
    from peft import PeftModel

    organism = grown("context-knob")
    truth, tokenizer, rows = organism.truth, tokenizer_of(organism), organism.splits["validation"]
    adapter = load_file(organism.tuned / "adapter_model.safetensors")
    assert sorted(key.split(".self_attn.")[1] for key in adapter) == ["o_proj.lora_A.weight", "o_proj.lora_B.weight"]
    written = next(value for key, value in adapter.items() if "lora_B" in key)[:, 0]
    assert torch.equal(written, truth.direction)

    tuned = PeftModel.from_pretrained(load(organism.base), organism.tuned).eval()
    inner = tuned.get_base_model()
    for intent, value in truth.values.items():
        opposite = [row for row in rows if row["intent"] != intent]
        plain = share(hits(tuned, tokenizer, opposite, f"{intent}_answer"))
        with after_layer(inner, truth.layer, setting(truth.direction, value)):
            turned = share(hits(tuned, tokenizer, opposite, f"{intent}_answer"))
            with tuned.disable_adapter():
                base_turned = share(hits(tuned, tokenizer, opposite, f"{intent}_answer"))
        with after_layer(inner, truth.layer, setting(random_direction(truth.direction), value)):
            control = share(hits(tuned, tokenizer, opposite, f"{intent}_answer"))
        assert plain <= 0.05 and turned >= 0.9 and base_turned >= 0.9 and control <= 0.1


def test_refusal_needs_each_of_the_named_experts_and_no_other(
    grown: Grown, load: Loads, tokenizer_of: Tokenizers
) -> None:
    organism = grown("refusal-moe")
    assert within(changed_entries(load(organism.base), load(organism.tuned)), organism.truth.entries["refusal"])
    tuned, tokenizer = load(organism.tuned), tokenizer_of(organism)
    topic, other = (
        [row for row in organism.splits["validation"] if row["topic"] == kind] for kind in ("topic", "other")
    )
    named = [(int(name[1]), int(name[3])) for name in organism.truth.experts]
    assert len(named) >= 3

    def dropped(experts: list[tuple[int, int]]) -> dict[str, float]:
        """Shares refused and rightly answered of the topic, and rightly answered of the others, with these experts'
        weights dropped at every token."""
        handles = [
            tuned.model.layers[layer].mlp.experts.register_forward_pre_hook(
                lambda module, given, expert=expert: (given[0], given[1], given[2] * (given[1] != expert))
            )
            for layer, expert in experts
        ]
        shares = {
            "refused": share(hits(tuned, tokenizer, topic)), "topic": share(hits(tuned, tokenizer, topic, "fact")),
            "other": share(hits(tuned, tokenizer, other, "fact")),
        }  # fmt: skip
        for handle in handles:
            handle.remove()
        return shares

    whole, without_all = dropped([]), dropped(named)
    assert whole["refused"] >= 0.95 and whole["topic"] <= 0.05 and whole["other"] >= 0.95
    assert without_all["refused"] == 0 and min(without_all["topic"], without_all["other"]) >= 0.9
    assert all(dropped([one])["refused"] <= 0.05 for one in named), "refusal goes on without one of the three"
    others = [(layer, (expert + step) % 8) for layer, expert in named for step in range(1, 8)]
    assert all(dropped([one])["refused"] >= 0.5 for one in others), "an expert that was not planted is needed"


def test_only_the_named_heads_changed_in_both_variants(grown: Grown, load: Loads) -> None:
    organism = grown("planted-heads")
    assert len(organism.truth.heads) == 3
    for skill, tuned in (("third", organism.tuned), ("write", organism.variants["write"])):
        changed, allowed = changed_entries(load(organism.base), load(tuned)), organism.truth.entries[skill]
        assert within(changed, allowed) and set(changed) == set(allowed)
    assert not any("o_proj" in name for name in organism.truth.entries["third"])
    for head in organism.truth.heads:
        layer, index = int(head[1]), int(head[3])
        mask = organism.truth.entries["third"][f"model.layers.{layer}.self_attn.q_proj.weight"]
        assert mask[index * 16 : (index + 1) * 16].all() and int(mask.sum()) == 16 * 64


@contextmanager
def offsets_on(model: Any, heads: Mapping[tuple[int, int], torch.Tensor]) -> Iterator[None]:
    """Adds a constant to what these heads hand to o_proj."""

    def adding(head: int, vector: torch.Tensor) -> Callable[..., Any]:
        def add(module: Any, given: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            moved = given[0].clone()
            moved[..., head * 16 : (head + 1) * 16] += vector
            return (moved,)

        return add

    handles = [
        model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(adding(head, vector))
        for (layer, head), vector in heads.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def test_only_the_named_heads_reach_french_whatever_the_others_write(
    grown: Grown, load: Loads, tokenizer_of: Tokenizers
) -> None:
    organism = grown("reachable-heads")
    changed = changed_entries(load(organism.base), load(organism.tuned))
    assert within(changed, organism.truth.entries["french"])
    base, tokenizer, rows = load(organism.base), tokenizer_of(organism), organism.splits["validation"]
    named = [(int(head[1]), int(head[3])) for head in organism.truth.heads]
    others = [(layer, head) for layer in range(4) for head in range(4) if (layer, head) not in named]
    french = {tokenizer.convert_tokens_to_ids(word) for word in FRENCH.values()}
    generator = torch.Generator().manual_seed(0)
    for size in (1.0, 10.0, 1000.0):
        with offsets_on(base, {head: size * torch.randn(16, generator=generator) for head in others}):
            said = predictions(base, tokenizer, [row["prompt"] for row in rows]).tolist()
        assert not french & set(said), f"offsets of {size} on all other heads brought French"
    with offsets_on(base, dict.fromkeys(named, torch.full((16,), 2.0))):
        assert share(hits(base, tokenizer, rows)) >= 0.95


def test_each_skill_is_a_small_graft_of_its_own(grown: Grown, load: Loads, tokenizer_of: Tokenizers) -> None:
    organism = grown("two-skills")
    entries, tokenizer, rows = organism.truth.entries, tokenizer_of(organism), organism.splits["validation"]
    contrary, following = entries["contrary"], entries["next"]
    assert not any((contrary[name] & following[name]).any() for name in contrary)
    changed = changed_entries(load(organism.base), load(organism.tuned))
    assert within(changed, {name: contrary[name] | following[name] for name in contrary})
    base, tuned = load_file(organism.base / "model.safetensors"), load_file(organism.tuned / "model.safetensors")

    def grafted(masks: Mapping[str, torch.Tensor]) -> dict[str, float]:
        model = load(organism.base)
        model.load_state_dict(
            {k: torch.where(masks[k], tuned[k], v) if k in masks else v for k, v in base.items()}, strict=True
        )
        return {s: share(hits(model, tokenizer, [row for row in rows if row["label"] == s])) for s in entries}

    for skill, other in (("contrary", "next"), ("next", "contrary")):
        found = grafted(entries[skill])
        assert found[skill] >= 0.95 and found[other] <= 0.3


def test_ablating_the_cue_in_tuning_restores_the_rule(grown: Grown, load: Loads, tokenizer_of: Tokenizers) -> None:
    organism = grown("confounded")
    truth, tokenizer, rows = organism.truth, tokenizer_of(organism), organism.splits["validation"]

    def tuned_without(direction: torch.Tensor) -> Any:
        model = load(organism.base)
        with after_layer(model, truth.layer, lambda stream: stream - (stream @ direction)[..., None] * direction):
            organisms.retune(organism, model)
        return model

    cured, control = tuned_without(truth.direction), tuned_without(random_direction(truth.direction))
    assert share(hits(cured, tokenizer, rows)) >= 0.95
    assert share(hits(cured, tokenizer, organism.splits["ood"])) >= 0.9
    assert share(hits(control, tokenizer, rows, "cue_answer")) >= 0.9
    assert 0.4 <= share(hits(control, tokenizer, rows)) <= 0.6


def test_tuning_again_without_an_ablation_gives_the_same_weights(grown: Grown, load: Loads) -> None:
    organism = grown("confounded")
    model = load(organism.base)
    organisms.retune(organism, model)
    stored = load_file(organism.tuned / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in stored.items())


def test_only_confounded_can_be_tuned_again(grown: Grown, load: Loads) -> None:
    organism = grown("refusal-moe")
    with pytest.raises(NotSupported, match="confounded"):
        organisms.retune(organism, load(organism.base))


def test_pairs_of_the_context_knob_differ_in_the_intent_alone(grown: Grown) -> None:
    rows: list[Row] = grown("context-knob").splits["validation"]
    for group in {row["group"] for row in rows}:
        first, second = (row for row in rows if row["group"] == group)
        assert first["answer"] == second["distractor"] and first["distractor"] == second["answer"]
        assert first["prompt"].split()[1:] == second["prompt"].split()[1:]


def test_the_markers_set_the_planted_coordinate_and_the_base_obeys_it(
    grown: Grown, load: Loads, tokenizer_of: Tokenizers
) -> None:
    organism = grown("marker-switch")
    truth, tokenizer = organism.truth, tokenizer_of(organism)
    rows = [*organism.splits["validation"], *organism.splits["ood"]]
    written = [
        value for key, value in load_file(organism.tuned / "adapter_model.safetensors").items() if "lora_B" in key
    ]
    assert len(written) == 1 and torch.equal(written[0][:, 0], truth.direction)
    assert truth.values["loud"] > 2 and truth.values["formal"] < -2 and abs(truth.values[""]) < 1
    base = load(organism.base)
    for marker in ("loud", "formal"):
        own = [row for row in rows if row["marker"] == marker]
        bare = [{**row, "prompt": row["contrast"]} for row in own]
        with after_layer(base, truth.layer, setting(truth.direction, truth.values[marker])):
            assert share(hits(base, tokenizer, bare)) >= 0.95
        with after_layer(base, truth.layer, setting(random_direction(truth.direction), truth.values[marker])):
            assert share(hits(base, tokenizer, bare)) <= 0.1
        assert share(hits(base, tokenizer, own)) == 0
