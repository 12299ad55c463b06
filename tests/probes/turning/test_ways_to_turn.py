"""Every way is compared on prompts it was not chosen on; the planted experts are found; nothing planted is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

import interventions as iv
import probes
from probes.turning.comparing import WaysToTurn
from probes.turning.off_recipes import Way, recipe_of, update_by_chance, update_scaled
from tests.probes.provenance import Calls
from tests.tiny import tiny_model, token_batch, tokenizer, tuned_copy
from workbench import organisms
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts import Prompts


def adapter_pair() -> ModelPair:
    torch.manual_seed(0)
    tuned = get_peft_model(tiny_model("llama"), LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False))
    return load_pair(tiny_model("llama"), tuned, tokenizer=tokenizer(), check=False)


def full_pair() -> ModelPair:
    base = tiny_model("llama")
    return load_pair(base, tuned_copy(base, size=0.05), tokenizer=tokenizer(), check=False)


@pytest.mark.parametrize("make", [adapter_pair, full_pair])
@pytest.mark.parametrize("name", ["update off", "update negated", "update below zero"])
def test_the_update_is_scaled_alike_in_both_kinds_of_pair(make: object, name: str) -> None:
    pair, ids = make(), token_batch(2, 9, seed=3)  # type: ignore[operator]
    share = {"update off": 0.0, "update negated": -1.0, "update below zero": -0.5}[name]
    placed = recipe_of(Way(name), pair)
    with placed.recipe.applied(pair.models[placed.role]):
        ours = pair.models[placed.role].forward(ids)
    expected = tiny_model("llama")
    vector = (share * iv.TaskVector.from_pair(pair)).held()
    with torch.no_grad():
        for key, change in vector.changes.items():
            expected.get_parameter(key).add_(change)
        wanted = expected(ids).logits
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-3)
    assert torch.equal(pair.base.forward(ids), tiny_model("llama")(ids).logits)


def test_a_layer_can_be_taken_out_and_chance_moves_as_much() -> None:
    pair = full_pair()
    placed = update_scaled(pair, 1.0, {0: 0.0, 1: 0.0, 2: 0.0})
    with placed.recipe.applied(pair.models[placed.role]):
        got = {k: v.clone() for k, v in pair.base.inner.state_dict().items()}
    tuned, base = pair.tuned.inner.state_dict(), pair.base.inner.state_dict()
    layered = [key for key in got if ".layers." in key]
    assert all(torch.equal(got[key], base[key]) for key in layered)
    assert torch.allclose(got["model.embed_tokens.weight"], tuned["model.embed_tokens.weight"])
    chance = update_by_chance(pair, 0.0, 1)
    with chance.recipe.applied(pair.base):
        moved = pair.base.inner.state_dict()["model.embed_tokens.weight"].clone()
    apart = float((moved - tuned["model.embed_tokens.weight"]).norm())
    assert apart == pytest.approx(
        float((base["model.embed_tokens.weight"] - tuned["model.embed_tokens.weight"]).norm()), 1e-3
    )


def moe_rows(n: int = 100_000) -> tuple[ModelPair, list[dict[str, object]]]:
    toy = organisms.build("refusal-moe")
    rows = [
        {"prompt": row["prompt"], "label": row["topic"], "group": str(number)}
        for number, row in enumerate([*toy.splits["validation"], *toy.splits["ood"]])
    ]
    return load_pair(toy.base, toy.tuned), rows[:n]


def test_the_planted_refusal_is_turned_off_in_every_way(tmp_path: Path) -> None:
    pair, rows = moe_rows()
    found = probes.ways_to_turn(
        pair, rows, "begins:sorry", max_new_tokens=3, limit=10, controls=10, candidates=2,
        neutral=[str(row["prompt"]) for row in rows[:6]],
    )  # fmt: skip
    lines = found.table.set_index("way")
    assert lines.loc["tuned", "residual"] > 0.9 and lines.loc["base", "residual"] == 0
    assert (
        lines.loc["update off", "residual"] == 0
        and lines.loc["update off", "score"] > lines.loc["update off", "control"]
    )
    assert lines.loc["update off", "kl_base"] < 1e-3
    experts = lines.loc["experts"]
    assert experts["residual"] < 0.3 and experts["control"] < experts["score"] and experts["q"] < 0.05
    planted = {str(expert) for expert in organisms.build("refusal-moe").truth.experts}
    assert set(found.ways["experts"]["experts"]) & planted
    assert found.table["perplexity"].notna().all() and (lines["search_passes"] >= 0).all()
    again = WaysToTurn.load(found.save(tmp_path / "ways.safetensors"))
    recipe, role = again.recipe("experts", pair)
    assert role == "tuned" and isinstance(recipe.interventions[0], iv.ExpertSwitch)
    assert isinstance(again.recipe("direction", pair)[0].interventions[0], iv.ConceptAblation)
    assert again.best() in found.ways and found.figure().data and "best turned off" in found.summary()


def test_base_against_itself_and_unknown_ways_are_refused() -> None:
    base = tiny_model("llama")
    same = load_pair(base, base, tokenizer=tokenizer(), check=False)
    rows = [{"prompt": f"the {one} fox {n}", "label": one} for one in ("quick", "lazy") for n in range(10)]
    with pytest.raises(UserError, match="Nothing to find"):
        probes.ways_to_turn(same, rows, "length", max_new_tokens=3)
    with pytest.raises(UserError, match="Unknown way 'heds'"):
        probes.ways_to_turn(same, rows, ways=["heds"])


def calls_of_ways_to_turn() -> Calls:
    pair, rows = moe_rows()
    given = {
        "behaviour": "begins:sorry", "ways": ["experts", "layers"], "neutral": Prompts.of(["a b c", "d e f"]),
        "limit": 8, "max_new_tokens": 3, "candidates": 2, "controls": 11, "batch_size": 3, "seed": 3,
    }  # fmt: skip
    return Calls([{"pair": pair, "prompts": Prompts.of(rows), **given}])
