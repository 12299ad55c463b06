"""Anatomy of updates: planted updates inside and outside the base's space, splits, intruders, likeness of factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model

import probes
from probes.anatomy.likeness import span_likeness
from probes.anatomy.spaces import Spaces, Svd, low_rank_sparse
from probes.results import ProbeResult
from tests.tiny import tiny_model, token_batch, tokenizer
from workbench.errors import UserError
from workbench.models.pair import load_pair
from workbench.prompts.collection import Prompts


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_sequential_update_stays_in_the_row_space_and_a_parallel_one_does_not() -> None:
    """Hydra: the sequential branch's dW is B A W0."""
    weight = noise(24, 5) @ noise(5, 20, seed=1)  # rank 5
    sequential = noise(24, 3, seed=2) @ noise(3, 24, seed=3) @ weight
    parallel = noise(24, 3, seed=4) @ noise(3, 20, seed=5)
    spaces = Spaces.of(weight)
    assert spaces.share_right(Svd.of(sequential), 5) == pytest.approx(1.0, abs=1e-5)
    assert spaces.share_right(Svd.of(parallel), 5) < 0.6


def test_intruders_are_large_directions_that_the_base_lacks() -> None:
    weight = torch.diag(torch.cat([torch.full((4,), 8.0), torch.ones(28)])) + 0.01 * noise(32, 32)
    inside = Svd.of(weight[:, :1] @ torch.eye(32)[:1] * 2)
    outside = 40 * torch.outer(torch.ones(32) / 32**0.5, torch.ones(32) / 32**0.5)
    spaces = Spaces.of(weight)
    assert spaces.intruders(weight, 4) == 0
    assert spaces.intruders(weight + inside.product(), 1) == 0
    assert spaces.intruders(weight + outside, 1) == 1


def test_intruders_leave_the_global_random_state_alone_and_do_not_read_it() -> None:
    weight, changed = noise(48, 40), noise(48, 40) + 0.7 * noise(48, 40, seed=1)  # many directions near the line
    before, spaces, counts = torch.get_rng_state(), Spaces.of(weight), set()
    for _ in range(4):
        counts.add(spaces.intruders(changed, 16))
        assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert counts == {spaces.intruders(changed, 16)}


def test_a_planted_low_rank_plus_sparse_update_is_split_back() -> None:
    low = noise(40, 2) @ noise(2, 30, seed=1)
    sparse = torch.zeros(40, 30)
    sparse.view(-1)[torch.randperm(1200, generator=torch.Generator().manual_seed(2))[:12]] = 50.0
    found = low_rank_sparse(low + sparse, 2, 0.01, rounds=30)
    assert torch.equal(found.mask, sparse != 0) and found.left_over(low + sparse) < 1e-4
    assert low_rank_sparse(noise(40, 30), 2, 0.01).left_over(noise(40, 30)) > 0.5
    svd = Svd.of(low)
    assert svd.rank == 2 and svd.energy_rank(1.0) <= 2 and torch.allclose(svd.product(), low, atol=1e-4)


def tuned_inside() -> Any:
    """Layer 1's up_proj moved along its leading direction, layer 2's along random ones."""
    model = tiny_model("llama")
    with torch.no_grad():
        weights = [model.model.layers[layer].mlp.up_proj.weight for layer in (1, 2)]
        left, values, right = torch.linalg.svd(weights[0], full_matrices=False)
        weights[0] += 0.3 * values[0] * torch.outer(left[:, 0], right[0])
        weights[1] += 0.1 * torch.outer(noise(len(weights[1]), seed=7), noise(weights[1].shape[1], seed=8))
    return model


def test_the_planted_update_is_told_from_random_factors(tmp_path: Path) -> None:
    result = probes.update_anatomy(tiny_model("llama"), tuned_inside(), k=4, rank=1, draws=39)
    table = result.table.set_index("layer")
    assert len(table) == 2 and (table["rank"] == 1).all()
    assert table.loc[1, "score"] == pytest.approx(1, abs=1e-3) and table.loc[1, "q"] <= 0.05 < table.loc[2, "q"]
    assert table.loc[1, "right"] == pytest.approx(1, abs=1e-3) and table.loc[2, "right"] < 0.6
    assert (table["left_low_rank"] < 1e-6).all() and (table["left_control"] > 0.5).all()
    again = ProbeResult.load(result.save(tmp_path / "a"))
    assert again.frame().equals(result.frame()) and result.figure().data and "random factors" in result.summary()


def test_base_against_itself_has_nothing_to_take_apart() -> None:
    with pytest.raises(UserError, match="do not differ"):
        probes.update_anatomy(tiny_model("llama"), tiny_model("llama"))


def lora(seed: int, folder: Path, *, a: torch.Tensor | None = None) -> str:
    torch.manual_seed(seed)
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=3, target_modules=["q_proj"], init_lora_weights=False))
    if a is not None:
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.data.copy_(a)
    model.save_pretrained(folder)
    return str(folder)


def test_a_frozen_a_is_bit_equal_to_its_start_and_b_is_the_tasks_own(tmp_path: Path) -> None:
    """FFA-LoRA: A never moves."""
    frozen = noise(3, 64)
    start, one, other = (lora(seed, tmp_path / str(seed), a=frozen) for seed in (0, 1, 2))
    result = probes.lora_likeness(tiny_model("llama"), checkpoints=[one, other], initial=start, draws=99)
    table = result.table
    a, b = table[table["factor"] == "A"], table[table["factor"] == "B"]
    assert (a["score"] > 0.999).all() and (a["bit_equal"] == 1).all() and (a["q"] < 0.05).all()
    assert (
        (b["score"] < 0.4).all()
        and (b["bit_equal"] == 0).all()
        and b["control"].mean() == pytest.approx(3 / 64, abs=0.02)
    )
    assert "to the start" in result.summary() and result.figure().data


def test_likeness_sees_a_turn_and_not_a_growth() -> None:
    one = noise(50, 4)
    assert span_likeness(one, one @ noise(4, 4, seed=1) * 9) == pytest.approx(1)
    assert span_likeness(one, noise(50, 4, seed=2)) < 0.3
    assert span_likeness(one, torch.zeros(50, 4)) == 0.0


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
        IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False),
    ],
    ids=["lora", "ia3"],
)
def test_every_kind_of_adapter_is_read_in_one_form(config: Any) -> None:
    torch.manual_seed(0)
    made = get_peft_model(tiny_model("llama"), config)
    pair = load_pair(made.get_base_model(), made, device="cpu", tokenizer=tokenizer(), check=False)
    with torch.no_grad():
        before = pair.tuned.hf(token_batch()).logits
        for name, parameter in made.named_parameters():  # layer 0's down_proj does nothing
            if "layers.0.mlp" in name and ("lora_B" in name or "ia3" in name):
                parameter.fill_(0.0 if "lora" in name else 1.0)
    prompts = Prompts.of([{"prompt": f"the {word} fox"} for word in ("quick", "brown", "lazy", "a b")])
    result = probes.adapter_panel(pair, prompts)
    table = result.table.set_index(["layer", "module"])
    assert len(table) == 6 and table.loc[(0, "mlp.down_proj"), ["score", "ablated"]].tolist() == [0.0, 0.0]
    others = table.drop((0, "mlp.down_proj"))
    assert (others["score"] > 0).all() and (others["ablated"] > 0).all() and others["cosine"].between(-1, 1).all()
    assert others["control"].notna().all() and len(result.tokens) > 0 and "switching off" in result.summary()
    assert not any("forward" in vars(module) for module in made.modules())
    assert before.shape == pair.tuned.hf(token_batch()).logits.shape
    with pytest.raises(UserError, match="carries no adapter"):
        probes.adapter_panel(
            load_pair(tiny_model("llama"), tuned_inside(), tokenizer=tokenizer(), check=False), prompts
        )
