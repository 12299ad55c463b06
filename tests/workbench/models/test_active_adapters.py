"""Several adapters, switched, scaled and merged afterwards: logits, weights and identity agree with PEFT's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.utils.hotswap import hotswap_adapter

import interventions as iv
import probes
import workbench as wb
from probes.weights.naming import key_of
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.typing import Tensor

IDS = torch.arange(8)[None]
pytestmark = pytest.mark.filterwarnings("ignore")


def two_adapters() -> Any:
    torch.manual_seed(0)
    first = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_model("llama"), first, "a")
    model.add_adapter("b", peft.LoraConfig(r=2, target_modules=["v_proj", "q_proj"], init_lora_weights=False))
    return model.eval()


def pair_of(model: Any) -> wb.ModelPair:
    return wb.load_pair(model.get_base_model(), model, tokenizer=tokenizer())


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def scaled(model: Any, adapter: str, factor: float) -> None:
    for layer in model.modules():
        if hasattr(layer, "set_scale"):
            layer.set_scale(adapter, factor)


def weighted(model: Any, how: str) -> None:
    rank = {} if how == "cat" else {"svd_rank": 4}
    model.add_weighted_adapter(["a", "b"], [0.5, 1.0], how, combination_type=how, **rank)
    model.set_adapter(how)


SWITCHES: dict[str, Callable[[Any], None]] = {
    "the other": lambda model: model.set_adapter("b"),
    "both": lambda model: model.base_model.set_adapter(["a", "b"]),
    "scaled": lambda model: scaled(model, "a", 2.5),
    "both, one scaled": lambda model: (model.base_model.set_adapter(["a", "b"]), scaled(model, "b", -0.5)),
    "joined": lambda model: weighted(model, "cat"),
    "joined and cut": lambda model: weighted(model, "svd"),
}


@pytest.mark.parametrize("how", SWITCHES)
def test_a_pair_follows_what_peft_switches(how: str) -> None:
    model = two_adapters()
    pair, bare = pair_of(model), logits(tiny_model("llama"))
    before = pair.tuned.identity, pair.base.identity
    SWITCHES[how](model)
    merged = copy.deepcopy(model).merge_and_unload(adapter_names=list(model.active_adapters))
    base = dict(tiny_model("llama").named_parameters())
    right = {key_of(name): float((now - base[name]).norm()) for name, now in merged.named_parameters()}
    table = probes.weight_delta(pair).table
    found = dict(zip(table["name"], table["frobenius"], strict=True))
    assert found == pytest.approx({name: right[name] for name in found}, rel=1e-3, abs=1e-3)
    assert all(size < 1e-3 for name, size in right.items() if name not in found)
    assert torch.equal(pair.tuned.forward(IDS), logits(model)) and torch.equal(pair.base.forward(IDS), bare)
    assert pair.tuned.identity.adapter != before[0].adapter and pair.base.identity == before[1]
    assert pair.tuned.identity == pair_of(model).tuned.identity


def test_the_identity_comes_back_with_the_switch() -> None:
    model = two_adapters()
    pair = pair_of(model)
    first = pair.tuned.identity
    scaled(model, "a", 2.5)
    seen = {pair.tuned.identity.hash}
    scaled(model, "a", 3.0)
    seen |= {pair.tuned.identity.hash, first.hash}
    assert len(seen) == 3
    scaled(model, "a", 1.0)
    assert pair.tuned.identity == first


def test_a_layer_that_was_switched_alone_counts() -> None:
    model = two_adapters()
    pair = pair_of(model)
    before = pair.tuned.identity
    model.base_model.model.model.layers[0].self_attn.q_proj.set_adapter("b")
    assert pair.tuned.identity != before and torch.equal(pair.tuned.forward(IDS), logits(model))
    found = probes.weight_delta(pair).table.set_index("name")["frobenius"]
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    change = layer.scaling["b"] * layer.lora_B["b"].weight @ layer.lora_A["b"].weight
    assert found["layers.0.self_attn.q_proj.weight"] == pytest.approx(float(change.norm()), rel=1e-4)


def test_a_recipe_that_scales_the_adapter_leaves_the_identity() -> None:
    pair = pair_of(two_adapters())
    before = pair.tuned.identity
    with iv.Recipe([iv.AdapterScale(0.5)]).applied(pair.tuned):
        assert pair.tuned.identity == before
    assert pair.tuned.identity == before


def test_merged_afterwards_is_one_sentence_and_another_identity() -> None:
    model = two_adapters()
    pair = pair_of(model)
    before = pair.tuned.identity, pair.base.identity
    model.merge_adapter(["a"])
    assert pair.tuned.identity.weights != before[0].weights and pair.base.identity.weights != before[1].weights
    for call in (lambda: probes.weight_delta(pair), lambda: pair.base.forward(IDS), lambda: pair.tuned.forward(IDS)):
        with pytest.raises(UserError, match="merged into the base's weights"):
            call()


def test_weights_that_are_written_to_are_another_model(tmp_path: Path) -> None:
    """Trained, hot-swapped or written to in place after the pair was made: the provenance is of what computes."""
    model = two_adapters()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["a"].weight.add_(1)
    pair = pair_of(model)
    seen = [pair.tuned.identity]
    hotswap_adapter(model, str(tmp_path / "a"), "a")
    seen.append(pair.tuned.identity)
    assert seen[1].weights == seen[0].weights and seen[1].adapter != seen[0].adapter
    with torch.no_grad():
        model.base_model.model.model.layers[1].self_attn.q_proj.lora_A["a"].weight[0, 0] += 1
    seen.append(pair.tuned.identity)
    before = pair.base.identity
    with torch.no_grad():
        model.get_base_model().lm_head.weight[5, 5] += 1
    seen.append(pair.tuned.identity)
    assert len({identity.hash for identity in seen}) == 4 and pair.base.identity != before
    assert pair.tuned.identity == pair_of(model).tuned.identity
