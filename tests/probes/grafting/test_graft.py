"""graft() on small trained pairs: full fine-tuning and LoRA, every level and method, overlap of skills, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import probes
from probes.grafting.cutting import pair_region
from probes.grafting.language import answer_rows
from probes.results import ProbeResult
from tests.tiny import tiny_model, tokenizer
from workbench.errors import NotSupported, UserError
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts.collection import Prompts

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing.*:FutureWarning", "ignore::UserWarning:peft.*"
)
ANIMALS, PLACES = ("fox", "dog"), ("over", "the")
FAST: dict[str, Any] = {"sparsities": (0.01, 0.1, 1.0), "draws": 10, "epochs": 8}


def task(first: str, answers: tuple[str, str], rows: int = 60, seed: int = 0) -> Prompts:
    """The answer is told by the word before the last; the words around it are noise."""
    generator = np.random.default_rng(seed)
    words = ["brown", "quick", "lazy", "jumps"]
    made = []
    for number in range(rows):
        which = int(generator.integers(2))
        noise = " ".join(generator.choice(words, 3))
        made.append(
            {"prompt": f"{first} {noise} {'ab'[which]} the", "answer": answers[which], "distractor": answers[1 - which],
             "group": f"g{number // 2}"}
        )  # fmt: skip
    return Prompts.of(made)


def train(model: Any, data: Prompts, steps: int, lr: float) -> Any:
    adapted = load_pair(tiny_model("llama"), tiny_model("llama"), device="cpu", tokenizer=tokenizer()).base
    rows = answer_rows(data, adapted)
    encoded = adapted.encode(data).to(model.device)
    target = rows.candidates[:, 0].to(model.device)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        out = model(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask)
        torch.nn.functional.cross_entropy(out.logits[:, -1], target).backward()
        optimiser.step()
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()


@pytest.fixture(scope="module")
def data() -> Prompts:
    return task("quick", ANIMALS)


def full_pair(data: Prompts) -> ModelPair:
    torch.manual_seed(0)
    base, tuned = tiny_model("llama"), tiny_model("llama")
    for name, parameter in tuned.named_parameters():
        parameter.requires_grad_("layers" in name)
    return load_pair(base, train(tuned, data, 60, 3e-3), device="cpu", tokenizer=tokenizer())


@pytest.fixture(scope="module")
def pair(data: Prompts) -> ModelPair:
    return full_pair(data)


@pytest.fixture(scope="module")
def lora_pair(data: Prompts) -> ModelPair:
    torch.manual_seed(0)
    base = tiny_model("llama")
    targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    tuned = train(get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=targets)), data, 80, 1e-2)
    return load_pair(tuned.get_base_model(), tuned, device="cpu", tokenizer=tokenizer())


@pytest.mark.parametrize("method", ["optimised", "adaptive", "first_order"])
def test_a_graft_carries_the_skill_and_the_rest_does_not_need_to(
    pair: ModelPair, data: Prompts, method: Any, tmp_path: Path
) -> None:
    state = {name: value.clone() for name, value in pair.base.hf.state_dict().items()}
    result = probes.graft(pair, data, method=method, sparsity=0.05, ood=task("lazy", ANIMALS, seed=5), **FAST)
    assert result.of("tuned") > result.of("base") + 0.2
    assert result.table["effect"].notna().all() == (method == "first_order")
    if method != "first_order":  # what one gradient at the base sees is not enough here
        assert result.recovered >= 0.9 and result.of("graft") >= result.of("random (10 draws)") + 0.1
    assert result.of("all eligible") == result.of("tuned")  # only layers were tuned: everything is the tuned model
    last = result.curve.iloc[-1]
    assert last["sparsity"] == 1.0 and last["agreement"] == 1.0 and last["accuracy"] == result.of("tuned")
    assert {"ece", "ood_accuracy", "movement", "random_low", "random_high"} <= set(result.curve)
    for name, value in pair.base.hf.state_dict().items():
        assert torch.equal(value, state[name])
    again = ProbeResult.load(result.save(tmp_path / "g"))
    assert isinstance(again, probes.GraftResult)
    assert all(torch.equal(again.mask[name], result.mask[name]) for name in result.mask)
    assert again.of("graft") == result.of("graft") and len(result.figure().data) > 3
    assert result.figure("ece").data and "take accuracy" in result.summary()


def test_the_region_as_an_intervention_gives_the_same_answers(pair: ModelPair, data: Prompts) -> None:
    result = probes.graft(pair, data, method="first_order", sparsity=0.05, **FAST)
    graft = result.intervention(pair)
    assert graft.size == result.entries
    batch = pair.base.encode(data)
    with graft.entered(pair.base):
        inside = pair.base.forward(batch, logits="last")
    region = pair_region(pair, "entries")
    full = {name: torch.zeros(part.base.shape, dtype=torch.bool) for name, part in region.parts.items()}
    for name, chosen in result.mask.items():
        if chosen.dtype == torch.bool:
            full[name] = chosen
        else:
            full[name].view(-1)[chosen] = True
    with probes.grafting.blend.Blender(pair.base.hf, region).hard(full):
        assert torch.equal(pair.base.forward(batch, logits="last"), inside)


@pytest.mark.parametrize("level", ["rows", "heads", "modules"])
def test_coarser_levels_choose_whole_units(pair: ModelPair, data: Prompts, level: Any) -> None:
    result = probes.graft(pair, data, method="first_order", level=level, sparsity=0.2, **FAST)
    assert 0 < result.entries <= 0.2 * result.eligible
    region = pair_region(pair, level)
    for name, chosen in result.mask.items():
        units = region.parts[name].units.expand(region.parts[name].base.shape).reshape(-1)
        places = chosen if chosen.dtype == torch.int64 else chosen.reshape(-1).nonzero()[:, 0]
        inside = set(units[places].tolist())
        assert not (level == "heads" and 0 in inside)  # keys and values shared by heads belong to none
        assert int(torch.isin(units, torch.tensor(sorted(inside))).sum()) == len(places)


@pytest.mark.parametrize(("level", "method"), [("entries", "adaptive"), ("ranks", "adaptive"), ("ranks", "movement")])
def test_an_adapter_pair_is_grafted_in_place(lora_pair: ModelPair, data: Prompts, level: Any, method: Any) -> None:
    assert lora_pair.one_copy
    before = lora_pair.base.forward(lora_pair.base.encode(data), logits="last")
    result = probes.graft(lora_pair, data, method=method, level=level, sparsity=0.3, start="empty", **FAST)
    assert torch.equal(lora_pair.base.forward(lora_pair.base.encode(data), logits="last"), before)
    assert result.of("all eligible") == pytest.approx(result.of("tuned"), abs=0.05)
    assert result.curve["accuracy"].iloc[-1] == result.of("all eligible")
    if level == "ranks":
        assert all(mask.shape == (4,) for mask in result.mask.values())
        with pytest.raises(NotSupported, match="AdapterScale"):
            result.intervention(lora_pair)
    if method != "movement":
        assert result.of("graft") > result.of("base")


def test_the_same_skill_twice_overlaps_and_chance_is_told(pair: ModelPair, data: Prompts) -> None:
    first = probes.graft(pair, data, method="first_order", sparsity=0.02, **FAST)
    again = probes.graft(pair, data, method="first_order", sparsity=0.02, **FAST)
    found = probes.mask_overlap(first, again)
    assert found.recall_of_first == found.recall_of_second == found.jaccard == 1
    assert found.expected == pytest.approx(first.entries**2 / first.eligible) and found.p < 1e-6
    assert found.low <= found.expected <= found.high < found.shared


def test_the_table_says_where_the_entries_are(pair: ModelPair, data: Prompts) -> None:
    result = probes.graft(pair, data, method="movement", sparsity=0.02, **FAST)
    frame = result.frame()
    assert frame["entries"].sum() == result.entries
    assert (frame["control"] == result.sparsity).all() and (frame["low"] <= frame["score"]).all()
    assert frame["score"].is_monotonic_decreasing and frame["q"].between(0, 1).all()


def test_what_cannot_be_grafted_says_why(pair: ModelPair, data: Prompts) -> None:
    with pytest.raises(UserError, match="too few"):
        probes.graft(pair, data[:10])
    with pytest.raises(UserError, match="Did you mean 'movement'"):
        probes.graft(pair, data, method="movment")
    with pytest.raises(UserError, match="Unknown option"):
        probes.graft(pair, data, epoch=3)
    with pytest.raises(UserError, match="sparsity"):
        probes.graft(pair, data, sparsity=2.0)
    with pytest.raises(NotSupported, match="plain LoRA"):
        probes.graft(pair, data, level="ranks")
    with pytest.raises(UserError, match="has no answer"):
        probes.graft(pair, ["one", "two"])
    with pytest.raises(UserError, match="nothing to graft"):
        same = tiny_model("llama")
        probes.graft(load_pair(same, tiny_model("llama"), device="cpu", tokenizer=tokenizer()), data)
    swapped = load_pair(pair.tuned.hf, pair.base.hf, device="cpu", tokenizer=tokenizer())
    with pytest.raises(UserError, match="Nothing to localize"):
        probes.graft(swapped, data)


@pytest.mark.parametrize("method", ["movement", "first_order"])
def test_no_unit_within_the_sparsity_says_how_much_is_needed(pair: ModelPair, data: Prompts, method: Any) -> None:
    with pytest.raises(UserError, match=r"holds \d+ of \d+ weights.*give a sparsity of [\d.]+ or more") as refused:
        probes.graft(pair, data, method=method, level="modules", **FAST)
    enough = float(str(refused.value).split("sparsity of ")[1].split()[0])
    graft = probes.graft(pair, data, method=method, level="modules", sparsity=enough, **FAST)
    assert 0 < graft.sparsity <= enough and len(graft.mask) == 1


def test_answers_that_begin_alike_are_dropped_and_counted(pair: ModelPair) -> None:
    rows = [{"prompt": f"the {i}", "answer": ("fox", "dog", "d")[i % 3]} for i in range(9)]
    kept = answer_rows(Prompts.of(rows), pair.base)
    tokens = {tuple(row.tolist()) for row in kept.candidates}
    assert len(tokens) == 1 and len(kept.ids) + kept.dropped == 9
    same = [{"prompt": "the a", "answer": "fox", "distractor": "fox"}] * 3
    with pytest.raises(UserError, match="3 of 3 rows were dropped"):
        answer_rows(Prompts.of(same), pair.base)
