"""Component masking: swaps equal whole forward passes; planted heads come back exactly; nothing is found in noise."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import probes
from probes.desiderata.masking import component_masking, split
from probes.desiderata.result import ComponentMasking
from probes.desiderata.swapping import Swaps
from probes.desiderata.training import Schedule, train_masks
from tests.probes.paths.planted import induction_model, repeated_pairs
from tests.tiny import tiny_model
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.organisms.vocabulary import word_tokenizer
from workbench.prompts import Prompt, Prompts

WORDS = [f"w{number}" for number in range(296)]
PENALTIES = (0.0, 0.01, 0.1, 0.3)
HEADS = [(layer, head) for layer in range(3) for head in range(4)]


def model_of(family: str = "llama", dtype: torch.dtype = torch.float64, louder: float = 2.0) -> AdaptedModel:
    """A random model whose head L1H2 speaks louder."""
    hf = tiny_model(family, dtype=dtype)
    if family == "llama":
        with torch.no_grad():
            hf.model.layers[1].self_attn.o_proj.weight[:, 32:48] *= louder
    return AdaptedModel(hf, word_tokenizer(WORDS), role="model")


def texts(n: int, seed: int = 0, length: int = 6) -> Prompts:
    generator = torch.Generator().manual_seed(seed)

    def text(words: int) -> str:
        return " ".join(WORDS[i] for i in torch.randint(0, 296, (words,), generator=generator).tolist())

    places = {"box": -3, "contrast_box": -2}
    return Prompts.of([
        {"prompt": text(length + i % 2), "contrast": text(length + i % 3), "answer": "w0", **places} for i in range(n)
    ])  # fmt: skip


def with_targets(rows: Prompts, model: AdaptedModel, heads: tuple[tuple[int, int], ...]) -> Prompts:
    """The answer of each row is what the model says with ``heads`` taken from the source."""
    swaps = Swaps(model, rows, "last", batch_size=64)
    keep = torch.ones(1, 3, 4)
    for layer, head in heads:
        keep[0, layer, head] = 0
    said: list[str] = []
    for row in range(len(rows)):
        logits = swaps._swapped(swaps._run([row]), [row], keep, grad=False)
        said.append(model.tokenizer.decode([int(logits.argmax())]))
    return Prompts.of([{**row.as_dict(), "answer": word} for row, word in zip(rows, said, strict=True)])


@cache
def planted() -> tuple[AdaptedModel, Prompts]:
    model = model_of()
    return model, with_targets(texts(160), model, ((1, 2),))


def swapped_by_hand(model: AdaptedModel, row: Prompt, keep: torch.Tensor, here: int, there: int) -> torch.Tensor:
    """Last logits of two whole forward passes; ``keep`` [layer, head]."""
    kept: dict[int, torch.Tensor] = {}

    def note(layer: int) -> SiteHook:
        return SiteHook(Site("z", layer), lambda value, _ctx: kept.__setitem__(layer, value.clone()))

    def put(layer: int) -> SiteHook:
        def edit(value: torch.Tensor, _ctx: object) -> torch.Tensor:
            new, w = value.clone(), keep[layer][:, None].to(value)
            new[0, here] = w * value[0, here] + (1 - w) * kept[layer][0, there]
            return new

        return SiteHook(Site("z", layer), edit, edit=True)

    with model.hooked([note(layer) for layer in range(3)]):
        model.forward(model.encode([row.contrast]).input_ids)
    with model.hooked([put(layer) for layer in range(3)]):
        return model.forward(model.encode([row.prompt]).input_ids)[0, -1]


@pytest.mark.parametrize("family", ["llama", "gemma2", "neox", "qwen3moe", "gpt2"])
@pytest.mark.parametrize("position", ["last", "box"])
def test_swapped_heads_equal_whole_forward_passes(family: str, position: str) -> None:
    model = model_of(family, torch.float32)
    rows = texts(5)
    swaps = Swaps(model, rows, position, batch_size=3)
    keep = torch.ones(2, 3, 4)
    keep[0, 0, 1], keep[0, 2, 3], keep[1, 1, 0] = 0.0, 0.25, 0.5
    here, there = (-1, -1) if position == "last" else (-3, -2)
    logits = swaps._swapped(swaps._run([0, 1, 2]), [0, 1, 2], keep, grad=False)
    for row in range(3):
        for number in range(2):
            wanted = swapped_by_hand(model, rows[row], keep[number], here, there)
            torch.testing.assert_close(logits[row, number], wanted, atol=3e-4, rtol=1e-3)
        assert (logits[row, 0] - logits[row, 1]).abs().max() > 1e-3
    assert model.n_hooks == 0


def test_gradients_are_those_of_finite_differences() -> None:
    model, rows = planted()
    swaps = Swaps(model, rows[:4], "last", batch_size=4)
    keep = torch.full((1, 3, 4), 0.7, dtype=torch.float64, requires_grad=True)
    swaps.target_logits([0, 1, 2, 3], keep).mean().backward()
    assert keep.grad is not None
    for layer, head in ((0, 1), (1, 2), (2, 0)):
        step = torch.zeros_like(keep)
        step[0, layer, head] = 3e-3  # norms compute in single precision
        above, below = (
            swaps.target_logits([0, 1, 2, 3], (keep.detach() + sign * step).requires_grad_()).mean() for sign in (1, -1)
        )
        slope = ((above - below) / 6e-3).item()
        assert keep.grad[0, layer, head].item() == pytest.approx(slope, rel=1e-2, abs=1e-3) and abs(slope) > 1e-2
    assert all(parameter.requires_grad for parameter in model.hf.parameters())


def test_the_head_that_made_the_targets_is_found_at_every_penalty() -> None:
    """KAT (f)."""
    model, rows = planted()
    found = component_masking(model, rows, penalties=PENALTIES, batch_size=16, epochs=3)
    last = found.sweep[found.sweep.epoch == 2]
    assert list(last.penalty) == list(PENALTIES) and (last.heads == "L1H2").all() and (last.validation == 1).all()
    assert found.heads("desideratum") == ["L1H2"] and found.table.score[0] == 1
    assert found.table.floor[0] < 0.7 and found.table.control[0] < 0.7
    base = [int(model.forward(model.encode(rows[[row]]))[0, -1].argmax()) for row in split(rows, 0, "x").test]
    said = [model.tokenizer.decode([token]) for token in base]
    wanted = np.mean([word == rows[row].answer for word, row in zip(said, split(rows, 0, "x").test, strict=True)])
    assert found.table.floor[0] == pytest.approx(wanted), "the floor is the base's own accuracy"


def test_masks_trained_together_are_those_trained_alone() -> None:
    model, rows = planted()
    swaps = Swaps(model, rows, "last", batch_size=16)
    schedule = Schedule(epochs=1, batch_size=16)
    together = train_masks(swaps, range(64), HEADS, PENALTIES, schedule)
    for penalty, one in zip(PENALTIES, together, strict=True):
        (alone,) = train_masks(swaps, range(64), HEADS, [penalty], schedule)
        assert torch.allclose(alone.weights, one.weights, atol=1e-9) and alone.heads == one.heads
    assert not torch.equal(together[0].weights, together[-1].weights)
    assert all(bool(((one.weights >= 0) & (one.weights <= 1)).all()) for one in together)


def test_the_induction_head_carries_the_value_in_both_models() -> None:
    """The hand-built model: moving L1H0 at the last token moves the answer; no other head does."""
    rows = repeated_pairs(48)
    turned = [
        {"prompt": row.prompt, "contrast": rows[(number + 1) % 48].prompt, "answer": rows[(number + 1) % 48].answer}
        for number, row in enumerate(rows)
    ]

    class Planted:
        base, tuned = induction_model(0), induction_model(1)

    for role in ("base", "tuned"):
        getattr(Planted, role).role = role
    found = component_masking(Planted, {"value": turned}, batch_size=16, epochs=4)
    assert list(found.table.model) == ["base", "tuned"] and (found.table.score == 1).all()
    assert all("L1H0" in found.heads("value", name) for name in ("base", "tuned"))
    dear = found.sweep[(found.sweep.penalty == 0.1) & (found.sweep.epoch == 3)]
    assert (dear.heads == "L1H0").all() and (dear.validation == 1).all()
    assert (found.table.other == 1).all() and (found.table.floor < 0.3).all()
    elsewhere = component_masking(Planted.base, turned, heads=["L0H0", "L0H1", "L1H1"], batch_size=16)
    assert elsewhere.table.score[0] < 0.3, "no other head carries it"


def test_random_targets_are_not_followed() -> None:
    model, rows = planted()
    answers = [row.answer for row in rows]
    shuffled = [answers[i] for i in np.random.default_rng(0).permutation(len(answers))]
    noise = [{**row.as_dict(), "answer": word} for row, word in zip(rows, shuffled, strict=True)]
    found = component_masking(model, noise, batch_size=16)
    assert found.table.q[0] > 0.05 and found.table.score[0] < 0.3


def test_base_against_itself_finds_the_same_masks() -> None:
    class Twin:
        base, tuned = model_of(), model_of()

    _, rows = planted()
    found = component_masking(Twin, rows, batch_size=16)
    one, other = (found.table[found.table.model == name].iloc[0] for name in ("base", "tuned"))
    for column in ("score", "low", "high", "control", "floor", "heads", "penalty"):
        assert one[column] == other[column]
    assert one.other == one.score and found.heads("desideratum", "base") == found.heads("desideratum", "tuned")


def test_an_empty_mask_scores_the_floor_and_groups_are_not_split(tmp_path: Path) -> None:
    model, rows = planted()
    found = component_masking(model, rows, penalties=[1e6], batch_size=16)
    assert found.table["heads"][0] == 0 and found.table.score[0] == found.table.floor[0]
    assert found.table.control[0] == pytest.approx(found.table.floor[0])
    grouped = Prompts.of([{**row.as_dict(), "group": str(n // 4)} for n, row in enumerate(rows)])
    parts = split(grouped, 0, "x")
    sets = [{grouped[row].group for row in part} for part in parts]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]
    assert [len(part) for part in parts] == [80, 40, 40]
    back = ComponentMasking.load(found.save(tmp_path / "masks"))
    assert back.frame().equals(found.frame()) and back.masks.equals(found.masks) and back.sweep.equals(found.sweep)
    assert list(found.frame())[:7] == ["model", "desideratum", "score", "low", "high", "control", "q"]
    assert len(found.figure().data) == 3 and "floor" in found.summary()
    assert found.provenance.backward_passes > 0 and found.provenance.settings["split"].startswith("50")


def test_errors_say_what_to_do() -> None:
    model, rows = planted()
    with pytest.raises(UserError, match="give at least 8 groups"):
        component_masking(model, rows[:7])
    with pytest.raises(UserError, match=r"row 0 has no source prompt \('contrast'\)"):
        component_masking(model, [{"prompt": "w1 w2", "answer": "w3"}] * 8)
    with pytest.raises(UserError, match=r"row 0 has no target \('answer'\)"):
        component_masking(model, [{"prompt": "w1 w2", "contrast": "w3"}] * 8)
    with pytest.raises(UserError, match="There are no desiderata"):
        component_masking(model, {})
    with pytest.raises(UserError, match="There are no penalties"):
        component_masking(model, rows, penalties=[])
    with pytest.raises(UserError, match="There are no heads"):
        component_masking(model, rows, heads=[])
    with pytest.raises(UserError, match="L5H0 does not exist"):
        component_masking(model, rows, heads=["L5H0"])
    with pytest.raises(UserError, match="Unknown option 'lambdas'"):
        component_masking(model, rows, lambdas=[1])
    assert probes.component_masking is component_masking
