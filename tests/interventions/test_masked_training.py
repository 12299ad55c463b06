"""Masked fine-tuning: the optimiser against AdamW, exact sizes, bit-equal rest, budgets by brute force, anchors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import interventions as iv
from interventions.training.editing import site_name
from interventions.training.examples import examples_of
from interventions.training.masked_optimizer import MaskedAdamW
from interventions.training.modulation import free_rows, modulation_fisher
from interventions.training.selection import RULES, Selector, trainable_names, within_budget
from interventions.training.sensitive import sensitivity_plan
from interventions.training.trainer import Schedule
from interventions.weightspace.selection_scores import AFTER_TUNING, SCORES, Evidence, top_mask
from interventions.weightspace.swapping import base_parameters
from tests.probes.grafting.test_graft import ANIMALS, task
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.pair import load_pair

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
FAST = Schedule(epochs=2, batch_size=16, learning_rate=3e-3)


def model() -> Any:
    base = tiny_model("llama")
    return load_pair(base, tiny_model("llama"), device="cpu", tokenizer=tokenizer(), check=False).base


def state(adapted: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in adapted.hf.named_parameters()}


def slopes(step: int) -> torch.Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(step))


def test_a_full_mask_is_adamw_and_a_partial_one_is_adamw_on_its_entries() -> None:
    start = torch.randn(5, 4, generator=torch.Generator().manual_seed(9))
    dense, full, part = (nn.Parameter(start.clone()) for _ in range(3))
    mask = top_mask(start.abs(), 0.3)
    optimisers = [
        torch.optim.AdamW([dense], lr=0.1, weight_decay=0.0),
        MaskedAdamW({full: torch.ones(5, 4, dtype=torch.bool)}, 0.1),
        MaskedAdamW({part: mask}, 0.1),
    ]
    for step in range(6):
        for parameter, optimiser in zip((dense, full, part), optimisers, strict=True):
            parameter.grad = slopes(step)
            optimiser.step()
    assert torch.allclose(full, dense, atol=1e-6) and torch.allclose(part[mask], dense[mask], atol=1e-6)
    assert torch.equal(part[~mask], start[~mask]) and optimisers[2].entries == int(mask.sum()) == 6  # type: ignore[attr-defined]


def test_entries_in_both_selections_keep_their_moments_and_new_ones_start_afresh() -> None:
    start = torch.zeros(5, 4)
    dense, held = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    first, second = torch.zeros(5, 4, dtype=torch.bool), torch.zeros(5, 4, dtype=torch.bool)
    first[0], second[:2, 1:] = True, True
    plain = torch.optim.AdamW([dense], lr=0.1, weight_decay=0.0)
    masked = MaskedAdamW({held: first}, 0.1)
    for step in range(6):
        if step == 3:
            masked.reselect({held: second})
        dense.grad, held.grad = slopes(step), slopes(step)
        plain.step()
        masked.step()
    both = first & second
    assert torch.allclose(held[both], dense[both], atol=1e-6)
    held, dense = held.detach(), dense.detach()  # type: ignore[assignment]
    assert float(held[0, 0]) != float(dense[0, 0]) and bool((held[1, 1:] != 0).all()) and bool((held[2:] == 0).all())
    fresh = nn.Parameter(start.clone())
    late = torch.optim.AdamW([fresh], lr=0.1, weight_decay=0.0)
    for step in range(3, 6):
        fresh.grad = slopes(step)
        late.step()
    assert torch.allclose(held[1, 1:], fresh[1, 1:], atol=1e-6)


def test_half_precision_weights_lose_no_small_step() -> None:
    held = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    masked = MaskedAdamW({held: torch.ones(4, dtype=torch.bool)}, 1e-4)
    for _ in range(100):  # 1 - 1e-4 is 1 in bfloat16
        held.grad = torch.ones(4, dtype=torch.bfloat16)
        masked.step()
    assert held.tolist() == pytest.approx([0.99] * 4, abs=0.004)


@pytest.mark.parametrize("rule", ["reduced_magnitude", "half", "fisher", "salient_channels", "budget", "random"])
def test_only_the_selected_entries_move_and_there_are_exactly_as_many_as_wanted(rule: str) -> None:
    adapted, rows = model(), task("quick", ANIMALS, rows=32)
    before = state(adapted)
    flags = [parameter.requires_grad for parameter in adapted.hf.parameters()]
    tuned = iv.masked_finetune(adapted, rows, select=rule, share=0.1, schedule=FAST)
    after = state(adapted)
    for name, value in after.items():
        mask = tuned.masks.get(name)
        outside = torch.ones_like(value, dtype=torch.bool) if mask is None else ~mask
        assert torch.equal(value[outside], before[name][outside])
        if mask is not None and rule in ("reduced_magnitude", "fisher", "random"):
            assert int(mask.sum()) == max(1, round(0.1 * mask.numel()))
    moved = sum(int((after[name] != before[name]).sum()) for name in after)
    assert 0.5 * tuned.entries < moved <= tuned.entries and tuned.history[-1]["loss"] < tuned.history[0]["loss"]
    assert [parameter.requires_grad for parameter in adapted.hf.parameters()] == flags
    assert all(parameter.grad is None for parameter in adapted.hf.parameters()) and not adapted.n_hooks


def test_half_fine_tuning_draws_other_halves_in_every_round() -> None:
    adapted, rows = model(), task("quick", ANIMALS, rows=32)
    before = state(adapted)
    tuned = iv.masked_finetune(adapted, rows, select="half", refresh=1, schedule=FAST)
    touched = {name for name, value in state(adapted).items() if not torch.equal(value, before[name])}
    last = {name for name, mask in tuned.masks.items() if bool(mask.any())}
    assert tuned.selections == 4 and len(touched) > len(last) and len(last) < len(tuned.masks)


def test_a_mask_of_ones_own_and_what_cannot_be_trained() -> None:
    adapted, rows = model(), task("quick", ANIMALS, rows=16)
    name, before = "model.layers.1.mlp.up_proj.weight", state(adapted)
    tuned = iv.masked_finetune(adapted, rows, mask={name: torch.tensor([3, 70])}, schedule=FAST)
    changed = (state(adapted)[name] != before[name]).reshape(-1).nonzero()[:, 0].tolist()
    assert tuned.entries == 2 and changed == [3, 70]
    with pytest.raises(UserError, match="Did you mean 'fisher'"):
        iv.masked_finetune(adapted, rows, select="fischer")
    with pytest.raises(UserError, match="another model's"):
        iv.masked_finetune(adapted, rows, mask={name: torch.ones(3, 3, dtype=torch.bool)})
    with pytest.raises(UserError, match="The mask names entry -1"):
        iv.masked_finetune(adapted, rows, mask={name: torch.tensor([-1])})
    with pytest.raises(UserError, match="selects no entry"):
        iv.masked_finetune(adapted, rows, mask={name: torch.tensor([], dtype=torch.long)})
    with pytest.raises(UserError, match="at most 1"):
        iv.masked_finetune(adapted, rows, share=1.5)
    assert "change" not in RULES


def test_the_budget_buys_what_brute_force_buys() -> None:
    sizes = {"a": 4.0, "b": 2.0, "c": 3.0, "d": 1.0}
    depth = {"a": 0, "b": 1, "c": 1, "d": 2}
    importance = {"a": 9.0, "b": 3.0, "c": 4.0, "d": 0.5}
    for budget in (0.1, 0.26, 0.51, 0.77, 1.0):
        best = -1.0
        for count in range(1, 5):
            for members in combinations(sizes, count):
                shallowest = min(depth[name] for name in members)
                cost = sum(sizes[name] for name in members) + sum(s for n, s in sizes.items() if depth[n] > shallowest)
                if cost <= budget * 20 + 1e-9:
                    best = max(best, sum(importance[name] for name in members))
        bought = within_budget(importance, sizes, depth, budget)
        assert sum(importance[name] for name in bought) == pytest.approx(best)
    with pytest.raises(UserError, match="pays for no tensor"):
        within_budget(importance, sizes, depth, 0.01)


def test_slopes_of_a_rule_are_those_of_autograd() -> None:
    from interventions.training.examples import Collator, answer_loss, examples_of

    adapted, rows = model(), task("quick", ANIMALS, rows=16)
    examples = examples_of(rows, adapted.tokenizer)
    name = "model.layers.0.mlp.up_proj.weight"
    seen = Selector(adapted, examples, "fisher", 0.1, batch_size=16).evidence([name])(name)
    batch = Collator(0)(examples)
    twin = tiny_model("llama")
    loss = answer_loss(
        twin(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["labels"]
    )
    loss.backward()
    by_hand = dict(twin.named_parameters())[name].grad
    assert torch.allclose(seen.gradient, by_hand, atol=1e-6) and torch.allclose(seen.fisher, by_hand**2, atol=1e-8)


def test_the_plan_gives_a_lora_to_a_matrix_with_many_sensitive_entries() -> None:
    many, few, none = torch.zeros(8, 8), torch.zeros(8, 8), torch.zeros(8, 8)
    many[:4, :5], few[0, :3] = 2.0, 3.0
    held = {"many": many, "few": few, "none": none}
    plan = sensitivity_plan(
        lambda name: Evidence(name, held[name], None, held[name], held[name]), list(held), 23 / 192, 1
    )
    assert plan.counts == {"many": 20, "few": 3, "none": 0} and plan.lora == ("many",)
    assert set(plan.masks) == {"few"} and torch.equal(plan.masks["few"], few != 0)


@pytest.mark.filterwarnings("ignore::UserWarning:peft.*")
def test_sensitive_tuning_trains_loras_and_entries_together() -> None:
    adapted, rows = model(), task("quick", ANIMALS, rows=32)
    before = state(adapted)
    tuned = iv.sensitive_finetune(adapted, rows, share=0.2, rank=2, schedule=FAST)
    assert tuned.plan.lora and tuned.plan.masks and tuned.history[-1]["loss"] < tuned.history[0]["loss"]
    bare = tuned.model.get_base_model()
    for name, value in {k.replace(".base_layer", ""): v for k, v in bare.named_parameters()}.items():
        if name in before and name not in tuned.plan.masks:
            assert torch.equal(value, before[name])
    moved = [float(value.detach().abs().max()) for name, value in bare.named_parameters() if "lora_B" in name]
    assert len(moved) == len(tuned.plan.lora) and min(moved) > 0


def test_the_anchor_holds_the_model_near_its_base_and_the_log_says_how_near() -> None:
    rows, ends = task("quick", ANIMALS, rows=32), {}
    for anchor in (0.0, 5.0):
        tuned = iv.anchored_finetune(model(), rows, anchor=anchor, reweight=False, schedule=FAST)
        assert tuned.history[0]["kl"] == pytest.approx(0.0, abs=1e-5)
        ends[anchor] = tuned.history[-1]
    assert ends[5.0]["kl"] < 0.5 * ends[0.0]["kl"] and ends[0.0]["answer_loss"] < ends[5.0]["answer_loss"]
    with pytest.raises(UserError, match="0 or more"):
        iv.anchored_finetune(model(), rows, anchor=-1.0)


class PassesOverWeights(TorchDispatchMode):
    """Counts, weight by weight, the operations that read it; views of it are not counted."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.names = {weight.untyped_storage().data_ptr(): name for name, weight in weights.items()}
        self.passes = Counter(dict.fromkeys(weights, 0))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        place = out.untyped_storage().data_ptr() if isinstance(out, torch.Tensor) else None
        for given in tree_leaves((args, kwargs)):
            if isinstance(given, torch.Tensor) and given.untyped_storage().data_ptr() != place:
                name = self.names.get(given.untyped_storage().data_ptr())
                self.passes.update([name] if name else [])
        return out


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"free_rows"}))
def test_a_mask_takes_two_passes_over_the_weights_at_most(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, rows = model(), task("quick", ANIMALS, rows=8)
    selector = Selector(adapted, examples_of(rows, adapted.tokenizer), rule, 0.2)
    weights = {name: base_parameters(adapted.hf)[name] for name in trainable_names(adapted)}
    slopes = selector._slopes(weights)  # gradients and the sizes of inputs come from passes of the model, not counted
    sizes = selector._input_sizes(weights)
    monkeypatch.setattr(selector, "_slopes", lambda _: slopes)
    monkeypatch.setattr(selector, "_input_sizes", lambda _: sizes)
    with PassesOverWeights(weights) as counted:
        selector.masks()
    assert max(counted.passes.values()) <= 2
    if rule in ("small_weights", "large_weights", "reduced_magnitude", "salient_channels", "task_only", "both"):
        assert min(counted.passes.values()) >= 1  # so the count sees what is read


@pytest.mark.parametrize("score", AFTER_TUNING)
def test_a_mask_of_what_was_tuned_takes_two_passes_over_either_side(score: str) -> None:
    base, tuned = torch.randn(6, 5), torch.randn(6, 5)
    seen = Evidence("w", base, tuned, torch.randn(6, 5), torch.rand(6, 5))
    with PassesOverWeights({"base": base, "tuned": tuned}) as counted:
        top_mask(SCORES[score](seen), 0.2)
    assert 1 <= min(counted.passes.values()) <= max(counted.passes.values()) <= 2


@pytest.mark.parametrize("order", ["breadth", "depth"])
def test_an_edit_changes_one_tensor_alone(order: Any) -> None:
    adapted, rows = model(), task("quick", ANIMALS, rows=8)
    before = state(adapted)
    edited = iv.edit_facts(adapted, rows, layer=1, order=order, early=False, schedule=FAST)
    changed = [name for name, value in state(adapted).items() if not torch.equal(value, before[name])]
    assert changed == [edited.name] == [site_name(adapted, 1, "mlp.down_proj")]
    assert len(edited.history) == (2 if order == "breadth" else 16)
    with pytest.raises(UserError, match=r"no matrix 'mlp.out'; it has self_attn.q_proj"):
        iv.edit_facts(adapted, rows, layer=1, module="mlp.out")
    with pytest.raises(UserError, match="layers 0 to 2"):
        iv.edit_facts(adapted, rows, layer=9)


def test_a_probe_adaptation_frees_the_rows_that_the_task_does_not_read() -> None:
    """The loss reads two of six rows; their gains carry information, the others none."""
    weight = torch.nn.Parameter(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))
    before = weight.detach().clone()
    batches = [{"x": torch.randn(5, generator=torch.Generator().manual_seed(n))} for n in range(3)]

    def gradients(batch: Any) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            loss = ((weight[1] @ batch["x"]) - 1).square() + (weight[4] @ batch["x"]).square()
            return torch.autograd.grad(loss, [weight])

    fisher = modulation_fisher({"w": weight}, batches, gradients)
    assert (fisher["w"][[1, 4]] > 0).all() and (fisher["w"][[0, 2, 3, 5]] == 0).all()
    assert torch.equal(weight.detach(), before)
    masks = free_rows(fisher, {"w": weight.shape}, 4 / 6)
    assert masks["w"].all(1).tolist() == [True, False, True, True, False, True] and masks["w"].shape == (6, 5)


def test_free_rows_are_whole_rows_chosen_over_all_tensors() -> None:
    model = tiny_model("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = load_pair(model, tiny_model("llama"), device="cpu", tokenizer=tokenizer(), check=False).base
    rows = [{"prompt": f"the {word}", "answer": " fox"} for word in ("quick", "lazy", "brown", "big")]
    chosen = Selector(adapted, examples_of(rows, tokenizer()), "free_rows", 0.25, batch_size=2).masks()
    assert all(bool((mask.all(-1) == mask.any(-1)).all()) for mask in chosen.values())
    free = sum(int(mask.any(-1).sum()) for mask in chosen.values())
    assert free == round(0.25 * sum(mask[..., 0].numel() for mask in chosen.values()))
    assert len({float(mask.float().mean()) for mask in chosen.values()}) > 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
