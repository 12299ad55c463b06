"""LoFiT's two stages: known answers on planted heads, equal to the recipe they return, and nothing left behind."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from interventions.heads import HeadOffset
from interventions.recipe import Recipe
from interventions.training.examples import Collator, answer_log_probs, answer_loss, examples_of, preference_loss
from interventions.training.offsets import train_offsets, with_reference
from interventions.training.scales import train_head_scales
from interventions.training.trainer import Schedule
from tests.tiny import tiny_model, token_batch, tokenizer
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel

ROWS = [
    {"prompt": "the quick brown", "answer": "fox", "distractor": "dog"},
    {"prompt": "jumps over the lazy", "answer": "dog", "distractor": "fox"},
] * 4
SHORT = Schedule(epochs=8, learning_rate=3e-2)


def llama(**overrides: Any) -> AdaptedModel:
    return AdaptedModel(tiny_model("llama", **overrides), tokenizer())


def only_head_writes(model: AdaptedModel, layer: int, head: int) -> AdaptedModel:
    """Every other head's block of W_O is 0, so only this head can reach the loss."""
    width = model.d_head
    with torch.no_grad():
        for number, block in enumerate(model.inner.model.layers):
            keep = torch.zeros_like(block.self_attn.o_proj.weight)
            if number == layer:
                keep[:, head * width : (head + 1) * width] = 1
            block.self_attn.o_proj.weight.mul_(keep)
    return model


def loss_of(model: AdaptedModel, rows: list[dict[str, str]]) -> float:
    batch = Collator(0)(examples_of(rows, model.tokenizer))
    with torch.no_grad():
        logits = model.inner(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return float(answer_loss(logits, batch["labels"]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3moe"])
def test_offsets_lower_the_loss_and_the_recipe_is_what_was_trained(family: str) -> None:
    model = AdaptedModel(tiny_model(family), tokenizer())
    weights = {name: parameter.clone() for name, parameter in model.hf.named_parameters()}
    flags = [parameter.requires_grad for parameter in model.hf.parameters()]
    before = loss_of(model, ROWS)
    trained = train_offsets(model, ROWS, ["L1H2", (2, 0)], schedule=SHORT)
    assert {
        name: torch.equal(parameter, weights[name]) for name, parameter in model.hf.named_parameters()
    } == dict.fromkeys(weights, True)
    assert [parameter.requires_grad for parameter in model.hf.parameters()] == flags
    assert (
        model.n_hooks == 0
        and not model.hf.training
        and all(parameter.grad is None for parameter in model.hf.parameters())
    )
    with trained.recipe.applied(model):
        after = loss_of(model, ROWS)
    assert after < before - 0.1
    assert len(trained.history) == 8 and trained.history[-1]["loss"] < trained.history[0]["loss"]
    (offset,) = trained.recipe.interventions
    assert isinstance(offset, HeadOffset) and list(offset.vectors) == ["L1H2", "L2H0"]


def test_the_first_loss_is_the_plain_models() -> None:
    """Offsets start near 0, so one full batch's first loss is the untouched model's, up to that start."""
    model = llama()
    trained = train_offsets(model, ROWS, ["L0H0"], schedule=Schedule(epochs=1, batch_size=8))
    assert trained.history[0]["loss"] == pytest.approx(loss_of(model, ROWS), abs=0.02)


def test_training_is_repeatable_and_leaves_the_random_state() -> None:
    state = torch.get_rng_state()
    first = train_offsets(llama(), ROWS, ["L1H2"], schedule=Schedule(epochs=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.recipe == train_offsets(llama(), ROWS, ["L1H2"], schedule=Schedule(epochs=2)).recipe
    assert first.recipe != train_offsets(llama(), ROWS, ["L1H2"], schedule=Schedule(epochs=2, seed=1)).recipe


def test_dpo_prefers_the_answer() -> None:
    model = llama()

    def margin() -> float:
        batch = Collator(0)(examples_of(ROWS, model.tokenizer, preferences=True))
        with torch.no_grad():
            logits = model.inner(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        chosen, rejected = answer_log_probs(logits, batch["labels"]).chunk(2)
        return float((chosen - rejected).mean())

    before = margin()
    trained = train_offsets(model, ROWS, ["L1H2", "L2H0"], loss="dpo", beta=0.5, schedule=SHORT)
    assert trained.history[0]["loss"] == pytest.approx(math.log(2), abs=0.01)
    with trained.recipe.applied(model):
        assert margin() > before + 0.1


def test_the_preference_loss_by_hand() -> None:
    reference = torch.tensor([[-1.0, -2.0], [-3.0, -1.0]])
    log_probs = torch.tensor([-0.5, -3.0, -2.5, -2.0])
    gains = [(-0.5 + 1.0) - (-2.5 + 2.0), (-3.0 + 3.0) - (-2.0 + 1.0)]
    by_hand = sum(math.log(1 + math.exp(-0.5 * gain)) for gain in gains) / 2
    assert float(preference_loss(log_probs, reference, 0.5)) == pytest.approx(by_hand, abs=1e-6)


def test_reference_log_probs_are_of_the_answers_tokens() -> None:
    model = llama()
    (example,) = with_reference(model, examples_of(ROWS[:1], model.tokenizer, preferences=True), 1)
    assert example.rejected is not None and example.reference is not None
    for ids, found in ((example.answer, example.reference[0]), (example.rejected, example.reference[1])):
        logits = model.forward(torch.tensor([example.prompt + ids]))
        assert logits is not None
        steps = logits[0, len(example.prompt) - 1 : -1].log_softmax(-1)
        assert found == pytest.approx(float(sum(steps[i, one] for i, one in enumerate(ids))), abs=1e-4)
    assert example.answer[-1] == tokenizer().eos_token_id


def test_scales_find_the_only_head_that_can_help() -> None:
    model = only_head_writes(llama(), 1, 2)
    found = train_head_scales(model, ROWS, penalty=1e-3, schedule=Schedule(epochs=20, learning_rate=1e-2))
    scores = found.scores()
    assert found.best(1) == ["L1H2"]
    others = scores.clone()
    others[1, 2] = 0
    assert float(scores[1, 2]) > 10 * float(others.max())
    assert found.scales.shape == (model.n_layers, model.n_heads, model.d_head)


def test_offsets_on_heads_that_cannot_write_change_nothing() -> None:
    """The random-heads control of the case above: it must lose."""
    model = only_head_writes(llama(), 1, 2)
    control = train_offsets(model, ROWS, ["L0H0", "L2H3"], schedule=SHORT)
    own = train_offsets(model, ROWS, ["L1H2"], schedule=SHORT)
    with control.recipe.applied(model):
        lost = loss_of(model, ROWS)
    with own.recipe.applied(model):
        assert loss_of(model, ROWS) < lost - 0.1
    assert lost == pytest.approx(loss_of(model, ROWS), abs=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_offsets_under_gradient_checkpointing(reentrant: bool) -> None:
    plain = train_offsets(llama(), ROWS, ["L1H2"], loss="dpo", schedule=Schedule(epochs=2))
    model = llama()
    model.hf.activation_checkpointing_enable({"use_reentrant": reentrant})
    saved = train_offsets(model, ROWS, ["L1H2"], loss="dpo", schedule=Schedule(epochs=2))
    (a,), (b,) = plain.recipe.interventions, saved.recipe.interventions
    assert isinstance(a, HeadOffset) and isinstance(b, HeadOffset)
    torch.testing.assert_close(b.vectors["L1H2"], a.vectors["L1H2"], rtol=1e-4, atol=1e-5)


def test_an_interrupted_training_leaves_the_model_as_it_was() -> None:
    class Interrupting:
        def start(self, what: str, total: int | None) -> None: ...
        def advance(self, by: int = 1) -> None:
            raise KeyboardInterrupt

        def finish(self) -> None: ...

    model = llama()
    before = model.forward(token_batch())
    with pytest.raises(KeyboardInterrupt):
        train_offsets(model, ROWS, ["L1H2"], progress=Interrupting())
    assert before is not None and torch.equal(before, model.forward(token_batch()))
    assert model.n_hooks == 0 and not model.hf.training
    assert all(parameter.requires_grad for parameter in model.hf.parameters())


@pytest.mark.parametrize(
    ("rows", "heads", "options", "words"),
    [
        (ROWS, ["L9H0"], {}, "out of range"),
        (ROWS, ["L0H9"], {}, "out of range"),
        (ROWS, [], {}, "No head"),
        (["a prompt"], ["L0H0"], {}, "Prompt 0 has no answer"),
        ([{"prompt": "a", "answer": "b"}], ["L0H0"], {"loss": "dpo"}, "distractor"),
        (ROWS, ["L0H0"], {"loss": "ppo"}, "Unknown loss"),
    ],
)
def test_bad_requests_are_answered_in_words(rows: Any, heads: list[str], options: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        train_offsets(llama(), rows, heads, **options)


def test_an_empty_recipe_and_trained_offsets_at_zero_strength_are_the_model() -> None:
    model = llama()
    trained = train_offsets(model, ROWS, ["L1H2"], schedule=Schedule(epochs=1))
    before = model.forward(token_batch())
    for recipe in (Recipe([]), trained.recipe * 0.0):
        with recipe.applied(model):
            assert before is not None and torch.equal(before, model.forward(token_batch()))
