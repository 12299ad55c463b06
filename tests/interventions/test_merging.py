"""Updates as vectors: exact at neutral, streamed, merged by rules whose answers are known by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

import interventions as iv
from interventions.weightspace import lazy_tensors
from interventions.weightspace.lazy_tensors import LazyTensors, split
from interventions.weightspace.lora_lego import merged_factors
from interventions.weightspace.merging import low_rank, stock_ratio, trimmed
from tests.tiny import tiny_model, token_batch, tokenizer, tuned_copy
from workbench.errors import UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.models.weight_changes import Factors


def vector(*values: float) -> iv.TaskVector:
    return iv.TaskVector({"w": torch.tensor(values)})


def merged(made: iv.TaskVector) -> list[float]:
    return made.changes["w"].tolist()


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    base = tiny_model("llama")
    return load_pair(base, tuned_copy(base, size=0.1), device="cpu", tokenizer=tokenizer(), check=False)


def test_an_update_adds_up_to_the_tuned_model_and_strength_0_is_the_base(pair: ModelPair) -> None:
    update = iv.TaskVector.from_pair(pair)
    ids = token_batch()
    before, after = (model.hf(ids).logits for model in (pair.base, pair.tuned))
    with update.graft(pair.base).entered(pair.base):
        assert torch.allclose(pair.base.hf(ids).logits, after, atol=1e-5)
    with update.graft(pair.base).scaled(0.0).entered(pair.base):
        assert torch.equal(pair.base.hf(ids).logits, before)
    with pytest.raises(RuntimeError, match="stop"), update.graft(pair.base).entered(pair.base):
        raise RuntimeError("stop")
    assert torch.equal(pair.base.hf(ids).logits, before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmoe", "mixtral"])
def test_a_sum_is_written_over_the_bases_tensors_and_loads_again(family: str, tmp_path: Path) -> None:
    """Mixtures among them, whose files hold their experts apart."""
    base = tiny_model(family)
    pair = load_pair(base, tuned_copy(base, size=0.1), device="cpu", tokenizer=tokenizer(), check=False)
    before = {name: value.clone() for name, value in pair.base.hf.state_dict().items()}
    update = iv.TaskVector.from_pair(pair)
    (0.5 * update).save(pair.base, tmp_path / "half")
    with (0.5 * update).graft(pair.base).entered(pair.base):
        expected = {name: value.clone() for name, value in pair.base.hf.state_dict().items()}
    written = type(pair.base.hf).from_pretrained(tmp_path / "half").state_dict()
    assert written.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in written.items())
    assert all(torch.equal(value, before[name]) for name, value in pair.base.hf.state_dict().items())
    assert (tmp_path / "half" / "tokenizer.json").exists()
    with pytest.raises(UserError, match="give a new folder"):
        update.save(pair.base, tmp_path / "half")
    with pytest.raises(UserError, match="overflows"):
        (update * 1e39).save(pair.base, tmp_path / "never")
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


def test_pieces_add_up_to_what_whole_tensors_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(seed: int) -> LazyTensors:
        def whole(_: str) -> torch.Tensor:
            return torch.randn(3, 7, generator=torch.Generator().manual_seed(seed))

        return LazyTensors(["w"], whole, lambda name: split(whole(name)))

    whole = [iv.TaskVector({"w": read(seed)["w"]}) for seed in range(3)]
    monkeypatch.setattr(lazy_tensors, "PIECE", 4)
    pieces = [iv.TaskVector(read(seed)) for seed in range(3)]
    for rule in (iv.uniform_soup, iv.model_stock):
        assert torch.equal(rule(whole).changes["w"], rule(pieces).changes["w"]), rule
        halves = [0.5 * vector for vector in pieces]
        assert torch.allclose(rule(halves).changes["w"], 0.5 * rule(whole).changes["w"], atol=1e-7), rule
    with pytest.raises(UserError, match="different models"):
        iv.uniform_soup([iv.TaskVector({"w": torch.ones(2, 3)}), pieces[0]]).held()


def test_algebra(pair: ModelPair) -> None:
    one = iv.TaskVector.from_pair(pair)
    nothing = one - one
    assert nothing.norm() == 0 and (one + one).norm() == pytest.approx(2 * one.norm())
    assert (-one).cosine(one) == pytest.approx(-1) and abs(one.sign_shuffled(1).cosine(one)) < 0.1
    assert one.sign_shuffled(1).norm() == pytest.approx(one.norm())
    by_layer = one.by_name(lambda name: 2.0 if ".1." in name else 0.0)
    assert all(float(change.norm()) == 0 for name, change in by_layer.changes.items() if ".1." not in name)
    with pytest.raises(UserError, match="overflows"):
        (one * 1e40).graft(pair.base)
    with pytest.raises(UserError, match="another model"):
        iv.TaskVector({"model.norm.weight": torch.ones(3)}).graft(pair.base)


def test_model_stock_for_two_is_2_cos_over_1_plus_cos() -> None:
    one, other = vector(1.0, 0.0), vector(0.0, 1.0)
    assert merged(iv.model_stock([one, one])) == pytest.approx([1, 0])
    assert merged(iv.model_stock([one, other])) == [0, 0]
    assert merged(iv.model_stock([one, -one])) == [0, 0]
    assert stock_ratio([torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])]) == pytest.approx(
        2 * 0.5**0.5 / (1 + 0.5**0.5)
    )
    with pytest.raises(UserError, match="at least two"):
        iv.model_stock([one])


def test_soups() -> None:
    one, other, bad = vector(2.0, 0.0), vector(0.0, 2.0), vector(-9.0, -9.0)
    assert merged(iv.uniform_soup([one, other])) == [1, 1]
    goal = torch.tensor([1.0, 1.0])
    soup, members = iv.greedy_soup([bad, one, other], lambda v: -float((v.changes["w"] - goal).norm()))
    assert set(members) == {1, 2} and merged(soup) == [1, 1]
    assert merged(iv.interpolated(one, other, 0.25)) == [1.5, 0.5]


def test_ties_by_hand() -> None:
    one, other = vector(4.0, -1.0, 3.0, 0.1), vector(2.0, 5.0, -1.0, 0.2)
    # density .5: [4, 0, 3, 0] and [2, 5, 0, 0]; signs + + +; means of those that agree
    assert merged(iv.ties([one, other], density=0.5)) == [3, 5, 3, 0]
    # all kept: at entry 1 the sum is 4, so only 5 agrees; at entry 2 it is 2, so only 3 does
    assert merged(iv.ties([one, other], density=1.0)) == pytest.approx([3, 5, 3, 0.15])
    with pytest.raises(UserError, match="above 0 and at most 1"):
        iv.ties([one, other], density=0.0)


def test_dare_keeps_the_mean_and_depends_on_nothing_but_the_seed() -> None:
    update = iv.TaskVector({"a": torch.ones(200, 200), "b": torch.ones(50)})
    thin = iv.dare([update], density=0.25, seed=3)
    again = thin.changes["a"]
    assert set(again.unique().tolist()) == {0.0, 4.0} and float(again.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(thin.changes["a"], again) and thin.changes["b"].shape == (50,)
    assert torch.equal(iv.dare([update], density=1.0).changes["a"], torch.ones(200, 200))


def test_ties_and_dare_by_mergekits_definitions() -> None:
    """Its sign vote: sign of the sum with 0 counted as plus, entries of that sign alone, divided by how many they are;
    its magnitudes: int(density * n) largest; its DARE: what stays scaled to the sum of absolute values before."""
    generator = torch.Generator().manual_seed(0)
    changes = [torch.randn(7, 11, generator=generator) for _ in range(3)]
    kept = []
    for change in changes:
        order = change.abs().reshape(-1).argsort(descending=True)[: int(0.4 * change.numel())]
        mask = torch.zeros(change.numel())
        mask[order] = 1
        kept.append(change * mask.view_as(change))
    stacked = torch.stack(kept)
    majority = (stacked.sum(0) >= 0).float() * 2 - 1
    mask = (stacked.sign() == majority).float()
    divisor = mask.sum(0)
    divisor[divisor.abs() < 1e-8] = 1
    wanted = (stacked * mask).sum(0) / divisor
    made = iv.ties([iv.TaskVector({"w": change}) for change in changes], density=0.4)
    assert torch.allclose(made.changes["w"], wanted, atol=1e-6)
    one = iv.TaskVector({"w": changes[0]})
    thin = iv.dare([one], density=0.5, rescale="l1", seed=1).changes["w"]
    stays = thin != 0
    assert float(thin.abs().sum()) == pytest.approx(float(changes[0].abs().sum()), rel=1e-5)
    ratio = thin[stays] / changes[0][stays]
    assert float(ratio.max()) == pytest.approx(float(ratio.min()), rel=1e-5) and 0 < float(stays.float().mean()) < 1
    assert torch.equal(iv.dare([one], density=1.0, rescale="l1").changes["w"], changes[0])


def test_mergekits_own_results_where_it_is_installed() -> None:
    sparsify = pytest.importorskip("mergekit.sparsify", reason="mergekit is not installed")
    change = torch.randn(9, 13, generator=torch.Generator().manual_seed(2))
    theirs = sparsify.sparsify(change, 0.3, sparsify.SparsificationMethod.magnitude)
    assert torch.equal(trimmed(change, 0.3), theirs)


def test_twin_merging_at_full_rank_gives_each_task_back() -> None:
    generator = torch.Generator().manual_seed(0)
    tasks = [iv.TaskVector({"w": torch.randn(6, 4, generator=generator)}) for _ in range(3)]
    twin = iv.twin_merging(tasks, rank=4)
    assert torch.allclose(twin.routed([0.0, 1.0, 0.0]).changes["w"], tasks[1].changes["w"], atol=1e-6)
    assert torch.linalg.matrix_rank(iv.twin_merging(tasks, rank=1).exclusive[0].changes["w"]) == 1
    assert torch.allclose(low_rank(torch.eye(3)[:2], 2), torch.eye(3)[:2])
    with pytest.raises(UserError, match="give one for each"):
        twin.routed([1.0])


@pytest.mark.parametrize("copies", [1, 3])
def test_a_lora_merged_with_its_permuted_rescaled_copies_is_itself(copies: int) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(4, 12, generator=generator), torch.randn(9, 4, generator=generator)
    members = [Factors(a, b, 2.0)]
    for _ in range(copies):
        order = torch.randperm(4, generator=generator)
        scale = torch.randn(4, generator=generator) * 3
        members.append(Factors(a[order] * scale[:, None], b[:, order] / scale, 2.0))
    up, down = merged_factors(members, 4)
    assert torch.allclose(up @ down, 2.0 * b @ a, atol=1e-4)


def test_lego_of_two_adapters_has_the_rank_that_was_wanted() -> None:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules=["q_proj", "o_proj"], init_lora_weights=False)
        found.append(iv.lora_factors(get_peft_model(tiny_model("llama"), config)))
    update = iv.lego(found, rank=3)
    assert all(int(torch.linalg.matrix_rank(change, atol=1e-5)) == 3 for change in update.changes.values())
    other = dict(list(found[1].items())[:-1])
    with pytest.raises(UserError, match="only some of the LoRAs"):
        iv.lego([found[0], other])


def test_updates_of_different_models_do_not_merge() -> None:
    with pytest.raises(UserError, match="updates of different models"):
        merged(iv.uniform_soup([vector(1.0), vector(1.0, 2.0)]))
    with pytest.raises(UserError, match="nothing to merge"):
        iv.uniform_soup([])
