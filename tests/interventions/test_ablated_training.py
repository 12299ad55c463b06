"""CAFT through transformers' Trainer: what it can do, and what it cannot (METHODS: trainable layers upstream).

Every token of a made-up vocabulary has the embedding y*a + 3s*u + noise: y is the intended feature, s the spurious
one, three times as large. In training s equals y; in the test they are independent.
"""

from __future__ import annotations

from typing import Any

import jaxtyping
import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments

from interventions.concept_ablation import ConceptAblation
from interventions.recipe import Recipe
from interventions.training.ablated import ablated_training, ablation_recipe, caft_finetune, random_directions
from interventions.training.trainer import Schedule
from tests.tiny import tiny_model, token_batch, tokenizer
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

WIDTH, TOKENS = 32, 200
INTENDED, SPURIOUS = torch.eye(WIDTH)[0], torch.eye(WIDTH)[1]


def cue_model(seed: int = 0) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """(model whose layers pass the embedding on, y [token], s [token]); the last 2 tokens are the classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (2 * TOKENS,), generator=generator) * 2 - 1
    s = torch.randint(0, 2, (2 * TOKENS,), generator=generator) * 2 - 1
    s[:TOKENS] = y[:TOKENS]
    config = LlamaConfig(
        vocab_size=2 * TOKENS + 2, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    noise = torch.randn(2 * TOKENS, WIDTH, generator=generator) * 0.3
    noise[:, :2] = 0
    with torch.no_grad():
        embeddings = y[:, None] * INTENDED + 3 * s[:, None] * SPURIOUS + noise
        model.model.embed_tokens.weight[: 2 * TOKENS] = embeddings
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
    return model, y, s


class Cues(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """One token, and the class that y says as the next one."""

    def __init__(self, y: torch.Tensor) -> None:
        self.y = y

    def __len__(self) -> int:
        return TOKENS

    def __getitem__(self, token: int) -> dict[str, torch.Tensor]:
        answer = 2 * TOKENS + int(self.y[token] > 0)
        return {"input_ids": torch.tensor([token, answer]), "labels": torch.tensor([-100, answer])}


def train(model: Any, y: torch.Tensor, trained: str, folder: Any, epochs: int = 40, **options: Any) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(trained.split())))
    arguments = TrainingArguments(
        output_dir=str(folder), num_train_epochs=epochs, per_device_train_batch_size=50, learning_rate=1e-2,
        report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        logging_strategy="no", **options,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=Cues(y))
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def accuracies(model: Any, y: torch.Tensor, s: torch.Tensor) -> tuple[float, float]:
    """(intended, spurious): how often the class follows y, and s, on tokens where they are independent."""
    tokens = torch.arange(TOKENS, 2 * TOKENS)
    with torch.no_grad():
        said = model.eval()(tokens[:, None]).logits[:, 0, -2:].argmax(-1) * 2 - 1
    return float((said == y[TOKENS:]).float().mean()), float((said == s[TOKENS:]).float().mean())


HEAD, UPSTREAM = "lm_head", "lm_head model.layers.0.mlp"


def test_plain_training_follows_the_spurious_cue(tmp_path: Any) -> None:
    model, y, s = cue_model()
    train(model, y, HEAD, tmp_path)
    intended, spurious = accuracies(model, y, s)
    assert spurious > 0.97 and intended < 0.65


def test_ablating_the_cue_in_training_restores_the_intended_rule(tmp_path: Any) -> None:
    model, y, s = cue_model()
    with ablated_training(model, {0: SPURIOUS}):
        train(model, y, HEAD, tmp_path)
    intended, spurious = accuracies(model, y, s)
    assert intended > 0.97 and spurious < 0.65


def test_a_random_direction_does_not(tmp_path: Any) -> None:
    model, y, s = cue_model()
    with ablated_training(model, random_directions({0: SPURIOUS}, seed=1)):
        train(model, y, HEAD, tmp_path)
    intended, spurious = accuracies(model, y, s)
    assert spurious > 0.97 and intended < 0.65


def test_it_fails_when_a_layer_before_the_site_is_trainable(tmp_path: Any) -> None:
    """The limit of the method: the upstream layer writes the cue along directions that are not ablated."""
    model, y, s = cue_model()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.normal_(0, 0.02)
    with ablated_training(model, {0: SPURIOUS}):
        train(model, y, UPSTREAM, tmp_path)
    intended, spurious = accuracies(model, y, s)
    assert spurious > 0.9 and intended < 0.7


@pytest.mark.parametrize("reentrant", [True, False])
def test_trainer_with_gradient_checkpointing_learns_the_same(tmp_path: Any, reentrant: bool) -> None:
    found = []
    for options in (
        {},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": reentrant}},
    ):
        model, y, _ = cue_model()
        model.enable_input_require_grads()
        with ablated_training(model, {0: SPURIOUS}):
            train(model, y, UPSTREAM, tmp_path, epochs=3, **options)
        found.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reentrant", [None, True, False])
def test_the_gradient_along_the_direction_is_zero_below_the_site(reentrant: bool | None) -> None:
    hf = tiny_model("llama").train()
    if reentrant is not None:
        hf.activation_checkpointing_enable({"use_reentrant": reentrant})
        hf.enable_input_require_grads()
    model = AdaptedModel(hf, tokenizer())
    direction = torch.randn(3, 64)
    kept: list[torch.Tensor] = []

    def keep(value: torch.Tensor, ctx: Any) -> None:
        value.retain_grad()
        kept.append(value)

    with model.hooked([SiteHook(Site("resid_post", 1), keep, edit=True)]), ablated_training(model, {1: direction}):
        ids = token_batch(length=9)
        hf(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert kept[0].grad is not None
    along = kept[0].grad @ torch.linalg.qr(direction.T)[0]
    assert float(along.abs().max()) < 1e-6 < float(kept[0].grad.abs().max())
    assert model.n_hooks == 0


ROWS = [{"prompt": "the quick brown", "answer": "fox"}, {"prompt": "over the lazy", "answer": "dog"}] * 4


def test_the_ready_loop_trains_an_adapter_and_delivers_a_model_without_hooks() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer())
    before = {name: parameter.clone() for name, parameter in model.hf.named_parameters()}
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    schedule = Schedule(epochs=4, batch_size=4, learning_rate=1e-2)
    direction = torch.randn(2, 64)
    tuned = caft_finetune(model, ROWS, {1: direction}, lora=lora, schedule=schedule)
    assert tuned.history[-1]["loss"] < tuned.history[0]["loss"] and len(tuned.history) == 8
    base = {
        name.replace(".base_layer", ""): parameter
        for name, parameter in tuned.model.get_base_model().named_parameters()
    }
    assert all(torch.equal(base[name], one) for name, one in before.items())
    assert model.n_hooks == 0 and not any(module._forward_hooks for module in tuned.model.modules())
    assert tuned.base_means[1].shape == (2,)
    plain = AdaptedModel(tiny_model("llama"), tokenizer())
    control = caft_finetune(plain, ROWS, None, lora=lora, schedule=schedule)
    assert control.base_means == {} and control.history != tuned.history


def test_the_loss_in_the_loop_is_that_of_the_ablated_model() -> None:
    from interventions.training.examples import Collator, answer_loss, examples_of

    model = AdaptedModel(tiny_model("llama"), tokenizer())
    direction = torch.randn(2, 64) + 1
    batch = Collator(0)(examples_of(ROWS, model.tokenizer))
    with ablated_training(model, {0: direction}), torch.no_grad():
        wanted = answer_loss(model.hf(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"])
    found = caft_finetune(model, ROWS, {0: direction}, schedule=Schedule(epochs=1, batch_size=8, learning_rate=1e-6))
    assert found.history[0]["loss"] == pytest.approx(float(wanted), abs=1e-3)


def test_hooks_leave_after_a_failing_training_step() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer())
    with pytest.raises(ZeroDivisionError), ablated_training(model.hf, {1: torch.randn(64)}) as recipe:
        assert isinstance(recipe, Recipe) and model.n_hooks > 0
        raise ZeroDivisionError
    assert model.n_hooks == 0


def test_nothing_to_ablate_or_to_train_is_said() -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer())
    with pytest.raises(UserError, match="No directions"), ablated_training(model, {}):
        pass
    model.hf.requires_grad_(False)
    with pytest.raises(UserError, match="trainable"):
        caft_finetune(model, ROWS, None)


def test_one_intervention_is_an_ablation_and_a_tensor_is_none() -> None:
    one = ConceptAblation(0, torch.eye(2, 64))
    assert ablation_recipe(one) == Recipe([one])
    jaxtyping.config.update("jaxtyping_disable", True)  # a user runs without the tests' check of annotations
    try:
        with pytest.raises(UserError, match="layers with their directions; got Tensor"):
            ablation_recipe(torch.eye(2, 64))  # type: ignore[arg-type]
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
