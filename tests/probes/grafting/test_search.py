"""Known answers of grafting on a two-layer network, the negative ones included."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from probes.grafting.blend import Blender
from probes.grafting.regions import Part, region_of
from probes.grafting.search import Settings, first_order, most_moved, movement, search
from probes.grafting.tasks import Outcome, Task, grafted_outcome, outcome
from probes.grafting.units import Units, complement, entries_in, everything, random_like
from tests.probes.grafting.planted import READOUT, Planted, planted
from workbench.errors import UserError


@pytest.fixture(scope="module")
def net() -> Planted:
    return planted()


def few(net: Planted, count: int = 4, **changes: object) -> Settings:
    return Settings(sparsity=count / net.region.n_entries, **changes)  # type: ignore[arg-type]


def accuracy(net: Planted, mask: dict[str, torch.Tensor]) -> float:
    return grafted_outcome(net.validation, net.blender, mask).accuracy


def base_and_tuned(net: Planted) -> tuple[float, float]:
    whole = everything(net.region)
    return accuracy(net, complement(net.region, whole)), accuracy(net, whole)


def test_movement_alone_fails_as_chance_does(net: Planted) -> None:
    base, tuned = base_and_tuned(net)
    assert tuned > base + 0.3
    for count in (4, 16, 64):
        found = search(net.blender, net.train, "movement", few(net, count))
        assert entries_in(net.region, found.mask) == count
        assert accuracy(net, found.mask) == base


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("method", ["optimised", "adaptive"])
def test_the_optimised_mask_is_exactly_the_planted_entries(method: str, seed: int) -> None:
    net = planted(seed)
    found = search(net.blender, net.train, method, few(net, start="empty"))  # type: ignore[arg-type]
    assert net.planted_only(found.mask)
    assert accuracy(net, found.mask) >= base_and_tuned(net)[1] - 0.01
    assert found.backward_passes == 30 * len(net.train.batches)


def test_dead_weights_of_the_base_mask_are_never_removed(net: Planted) -> None:
    """From a movement base of 4 dead weights: all 4 dead and all 4 planted (their gradient is zero)."""
    found = search(net.blender, net.train, "optimised", few(net))
    dead = movement(net.blender.region).top(4)
    assert entries_in(net.region, found.mask) == 8
    assert all(bool((found.mask[name] | ~chosen).all()) for name, chosen in dead.items())


def test_a_step_far_too_large_takes_more_than_the_planted(net: Planted) -> None:
    """The paper's lr of 1e7 is a number of its models: here it overshoots."""
    found = search(net.blender, net.train, "optimised", few(net, start="empty", lr=1e7))
    assert entries_in(net.region, found.mask) > 4 and not net.planted_only(found.mask)


def test_first_order_ranks_the_planted_first(net: Planted) -> None:
    found = search(net.blender, net.train, "first_order", few(net))
    assert net.planted_only(found.mask)
    assert (found.forward_passes, found.backward_passes) == (4, 4)


def test_hand_gradient_equals_autograd(net: Planted) -> None:
    """dL/dgamma from the blended pass against torch.func through base + gamma * delta."""
    batch = net.train.batches[0]
    task = Task(net.train.classify, [batch])
    gammas = {name: torch.zeros_like(value).requires_grad_() for name, value in net.base.items()}
    blended = {name: net.base[name] + gammas[name] * (net.tuned[name] - net.base[name]) for name in gammas}
    logits = torch.func.functional_call(net.model, blended, (batch[0],))
    truth = torch.autograd.grad(cross_entropy(logits, batch[1]), list(gammas.values()))
    ours = first_order(net.blender, task)
    for name, expected in zip(gammas, truth, strict=True):
        torch.testing.assert_close(-ours.flat[name], expected, rtol=1e-4, atol=1e-8)


def test_both_ends_are_bit_equal_and_the_model_comes_back(net: Planted) -> None:
    inputs = net.train.batches[0][0]
    whole = everything(net.region)
    before = net.model(inputs)
    for mask, weights in ((whole, net.tuned), (complement(net.region, whole), net.base)):
        with net.blender.hard(mask) as model:
            inside = model(inputs)
        other = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2, bias=False))
        other.load_state_dict(weights)
        assert torch.equal(inside, other(inputs))
    first_order(net.blender, net.train)
    with pytest.raises(RuntimeError), net.blender.hard(whole) as model:
        model(inputs[:, :3])
    assert torch.equal(net.model(inputs), before)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.model.modules())
    assert all(parameter.grad is None for parameter in net.model.parameters())
    assert all(isinstance(parameter, nn.Parameter) for parameter in net.model.parameters())


def test_the_complement_drops_to_the_base(net: Planted) -> None:
    base, tuned = base_and_tuned(net)
    found = search(net.blender, net.train, "adaptive", few(net, start="empty"))
    left = accuracy(net, complement(net.region, found.mask))
    assert abs(left - base) < 0.1 and left < tuned - 0.3


def test_random_masks_match_each_tensor_and_do_nothing(net: Planted) -> None:
    mask = first_order(net.blender, net.train).top(40)
    generator = torch.Generator().manual_seed(0)
    base = base_and_tuned(net)[0]
    drawn = [random_like(net.region, mask, generator) for _ in range(10)]
    for one in drawn:
        assert {name: int(m.sum()) for name, m in one.items()} == {name: int(m.sum()) for name, m in mask.items()}
    mean = sum(accuracy(net, draw) for draw in drawn) / 10
    assert mean < accuracy(net, mask) - 0.1 and mean - base < 0.3


def test_units_are_added_up_and_cut_at_the_top() -> None:
    base = {"a": torch.zeros(3, 4), "b": torch.zeros(3)}
    tuned = {"a": torch.tensor([[1.0] * 4, [2.0] * 4, [0.5] * 4]), "b": torch.tensor([0.0, 0.0, 9.0])}
    rows = {"a": torch.arange(3)[:, None], "b": torch.arange(3)}
    region = region_of(base, tuned, lambda name, _: rows[name])
    assert region.sizes is not None and region.sizes.tolist() == [5, 5, 5] and region.n_entries == 15
    ranking = Units(region)
    for name, part in region.parts.items():
        ranking.add(name, part.movement())
    assert ranking.flat[""].tolist() == [4.0, 16.0, 82.0]
    top = ranking.top(10)  # two whole rows fit
    assert top["a"][:, 0].tolist() == [False, True, True] and top["b"].tolist() == [False, True, True]
    assert entries_in(region, ranking.top(4)) == 0


def test_gradients_of_grouped_units_are_sums_over_their_entries(net: Planted) -> None:
    single = first_order(net.blender, net.train)
    rows = {READOUT: torch.arange(64)[None, :]}
    region = region_of(net.base, net.tuned, lambda name, _: rows.get(name))
    grouped = first_order(Blender(net.model, region), net.train)
    torch.testing.assert_close(grouped.flat[""], single.flat[READOUT].sum(0), rtol=1e-4, atol=1e-7)


def test_half_precision_selects_bit_exactly() -> None:
    base, tuned = (torch.randn(50, 50).bfloat16() for _ in range(2))
    mask = torch.rand(50, 50) > 0.5
    mixed = Part(base, tuned).selected(mask)
    assert torch.equal(mixed[mask], tuned[mask]) and torch.equal(mixed[~mask], base[~mask])


def test_calibration_error_by_hand() -> None:
    import numpy as np

    # ten rows at confidence 0.8 of which 6 are right, ten at 0.6 all wrong: 0.5 * 0.2 + 0.5 * 0.6
    confidence = np.array([0.8] * 10 + [0.6] * 10)
    right = np.array([True] * 6 + [False] * 14)
    assert Outcome(np.zeros(20), confidence, right, 0.0).ece == pytest.approx(0.4)


def test_equal_weights_leave_nothing_to_graft(net: Planted) -> None:
    with pytest.raises(UserError, match="nothing to graft"):
        region_of(net.base, net.base)
    with pytest.raises(UserError, match="no parameter of this model"):
        Blender(nn.Linear(2, 2), net.region)
    assert outcome(net.train, net.model).accuracy < 0.6


class Live(TorchDispatchMode):
    """The most bytes of storage alive at once among what operations returned."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.most = 0

    def __torch_dispatch__(self, func: object, types: object, args: object = (), kwargs: object = None) -> object:
        out = func(*args, **(kwargs or {}))  # type: ignore[operator,misc]
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.storages[tensor.untyped_storage()] = tensor.untyped_storage().nbytes()
        self.most = max(self.most, sum(self.storages.values()))
        return out


def test_no_more_than_two_copies_of_the_weights_are_made() -> None:
    """Beside base and tuned: logits, slopes at half the size, and no more than a few tensors' worth."""
    layers, width = 16, 64
    model = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(layers)])
    base = {name: value.clone() for name, value in model.state_dict().items()}
    tuned = {name: value + 0.1 * torch.randn_like(value) for name, value in base.items()}
    batches = [(torch.randn(4, width), torch.randint(0, width, (4,))) for _ in range(2)]
    task = Task(lambda net, batch: (net(batch[0]), batch[1]), batches)
    blender = Blender(model, region_of(base, tuned))

    whole = sum(value.numel() * value.element_size() for value in base.values())
    for method in ("optimised", "adaptive"):
        with Live() as live:
            search(blender, task, method, Settings(sparsity=0.01, epochs=3))
        # logits, slopes in half precision, packed masks, and a few tensors of a sixteenth
        assert live.most < 1.85 * whole
    with Live() as live:
        first_order(blender, task)
    assert live.most < 1.6 * whole  # effects, and the mask of what ranks highest
    ranking, region = movement(blender.region), blender.region
    for size in (0.01, 0.5, 1.0):
        with Live() as live:
            ranking.top(round(size * region.n_entries))
        assert live.most < 1.9 * whole  # the ranking, and masks, which are a quarter
        with Live() as live:
            most_moved(region, round(size * region.n_entries))
            complement(region, everything(region))
        assert live.most < 0.9 * whole


def test_disjoint_plants_do_not_overlap_and_the_same_plant_twice_does() -> None:
    from probes.comparison import overlap

    masks = []
    for features in ((0, 1, 2, 3), (10, 11, 12, 13), (0, 1, 2, 3)):
        net = planted(0, features)
        masks.append(search(net.blender, net.train, "adaptive", few(net, start="empty", seed=len(masks))).mask)
    for other, shared in ((1, 0), (2, 4)):
        both = sum(int((masks[0][name] & masks[other][name]).sum()) for name in masks[0])
        found = overlap(both, 4, 4, net.region.n_entries)
        assert found.shared == shared and (found.p == 1 if shared == 0 else found.p < 1e-9)
