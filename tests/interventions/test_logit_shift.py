"""LogitShift: exact at its ends, safe at -inf, in step with the tokens that are chosen, saved without weights."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, models

import interventions as iv
from interventions.logit_arithmetic import GRID, beyond, matched_amount, shifted, without
from tests.interventions.zoo import ids, model_of, noise, small_pair
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair

pytestmark = pytest.mark.filterwarnings("ignore:.*generation flags.*")
INF = float("inf")
MADE = {"name": "small", "identity": "0" * 64}


def applied(model: AdaptedModel, one: iv.Intervention) -> torch.Tensor:
    with iv.Recipe([one]).applied(model):
        return model.forward(ids())


def other_of(seed: int, **overrides: Any) -> AdaptedModel:
    return AdaptedModel(tiny_model("llama", seed=seed, **overrides), tokenizer(), name=f"other {seed}")


def random_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


def test_ends_are_exact() -> None:
    big, (tuned, base) = model_of("llama"), small_pair("llama")
    plain = big.forward(ids())
    assert torch.equal(applied(big, iv.LogitShift(base, base)), plain), "tuned = base changes nothing"
    assert torch.equal(applied(big, iv.LogitShift(tuned, base, alpha=0.0)), plain)
    assert torch.equal(applied(big, iv.LogitShift(tuned, big)), tuned.forward(ids())), "big = base is tuned, to the bit"
    twin = AdaptedModel(tiny_model("llama"), tokenizer())
    assert torch.equal(applied(big, iv.LogitShift(tuned, twin)), tuned.forward(ids()))
    half = applied(big, iv.LogitShift(tuned, base, 0.5))
    torch.testing.assert_close(half, plain + 0.5 * (tuned.forward(ids()) - base.forward(ids())), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(half, plain, atol=1e-2)
    assert torch.equal(applied(big, iv.LogitShift(tuned, base, strength=[0.0, 2.0]))[0], plain[0])


def test_views_of_one_copy_shift_each_other() -> None:
    """base + (tuned - base) is the tuned model, and the other way round, on one copy of the weights."""
    hf = tiny_model("llama")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    pair = load_pair(hf, peft.get_peft_model(hf, config).eval(), tokenizer=tokenizer(), check=False)
    assert pair.one_copy
    base, tuned = pair.base.forward(ids()), pair.tuned.forward(ids())
    assert torch.equal(applied(pair.base, iv.LogitShift(pair.tuned, pair.base)), tuned)
    assert torch.equal(applied(pair.tuned, iv.LogitShift(pair.base, pair.tuned)), base)
    further = applied(pair.tuned, iv.LogitShift(pair.tuned, pair.base))
    torch.testing.assert_close(further, 2 * tuned - base, atol=1e-4, rtol=1e-4)
    with iv.Recipe([iv.LogitShift(pair.tuned, pair.base)]).applied(pair.base):
        steered = pair.base.generate_ids(pair.base.encode(["the quick", "a lazy dog jumps"]), max_new_tokens=6)
        assert torch.equal(pair.tuned.forward(ids()), tuned), "the other view is not touched"
    plain = pair.tuned.generate_ids(pair.tuned.encode(["the quick", "a lazy dog jumps"]), max_new_tokens=6)
    assert torch.equal(steered, plain) and pair.base.n_hooks == 0


def test_a_constant_added_to_any_logits_changes_no_probability() -> None:
    own, tuned, base = (random_logits(2, 5, 40, seed=seed) for seed in range(3))
    wanted = shifted(own, tuned, base, 0.7).softmax(-1)
    for moved in ((own + 3, tuned, base), (own, tuned - 2, base), (own, tuned, base + 5)):
        torch.testing.assert_close(shifted(*moved, 0.7).softmax(-1), wanted, atol=1e-5, rtol=1e-4)
    as_probabilities = shifted(*(one.log_softmax(-1) for one in (own, tuned, base)), 1.0).softmax(-1)
    torch.testing.assert_close(as_probabilities, shifted(own, tuned, base, 1.0).softmax(-1), atol=1e-6, rtol=1e-4)


def test_minus_infinity_never_becomes_nan() -> None:
    own = torch.tensor([1.0, -INF, 2.0, 3.0, 4.0])
    tuned = torch.tensor([1.0, 5.0, -INF, -INF, 0.5])
    base = torch.tensor([0.0, 1.0, -INF, 1.0, -INF])
    assert shifted(own, tuned, base, 1.0).tolist() == [2.0, -INF, 2.0, -INF, 4.0]
    assert shifted(own, tuned, base, 0.0).tolist() == own.tolist()
    assert torch.isfinite(matched_amount(own, tuned, base)).all()


def test_top_p_keeps_the_fewest_words_that_hold_the_share() -> None:
    own = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.97, 0.01, 0.01, 0.01]]).log()
    found = without(own, beyond(own, 0.75), 1.0)
    assert torch.isfinite(found).tolist() == [[True, True, False, False], [True, False, False, False]]
    assert torch.equal(without(own, beyond(own, 0.1), 0.0), own)


def test_the_matched_amount_moves_as_far_as_tuning_did() -> None:
    big, tuned = random_logits(3, 7, 50), random_logits(3, 7, 50, seed=1)
    assert (matched_amount(big, tuned, big) == 1.0).all(), "big = base: alpha is 1"
    assert (matched_amount(big, tuned, tuned) == 0.0).all(), "tuned = base: nothing to move"
    base = tuned + 0.3 * random_logits(3, 7, 50, seed=2)
    found = matched_amount(big, tuned, base)
    assert torch.isin(found, torch.tensor(GRID)).all() and len(found.unique()) > 1

    def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)

    goal = kl(tuned, base)
    missed = torch.stack([(kl(big + step * (tuned - base), big) - goal).abs() for step in GRID])
    chosen = (kl(big + found[..., None] * (tuned - base), big) - goal).abs()
    assert (chosen <= missed.min(0).values + 1e-5).all()
    one, two = model_of("llama"), small_pair("llama")
    assert torch.equal(applied(one, iv.LogitShift(two[0], one, "matched")), two[0].forward(ids()))


def by_hand(
    models: tuple[AdaptedModel, ...], prompt: torch.Tensor, steps: int, alpha: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(new tokens, last logits) of greedy decoding where every model reads the whole text anew at every step."""
    text, logits = prompt[None], torch.zeros(0)
    for _ in range(steps):
        with torch.no_grad():
            own, other, less = (model.inner(text, use_cache=False).logits[:, -1] for model in models)
        logits = own + alpha * (other - less)
        text = torch.cat([text, logits.argmax(-1, keepdim=True)], dim=1)
    return text[0, len(prompt) :], logits[0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "qwen3moe"])
def test_the_other_caches_follow_the_chosen_token(family: str) -> None:
    big, (tuned, base) = model_of(family), small_pair(family)
    for prompt in (ids()[0], ids()[1, :13]):
        with iv.Recipe([iv.LogitShift(tuned, base, 3.0)]).applied(big):
            out = big.inner.generate(
                prompt[None], max_new_tokens=8, min_new_tokens=8, do_sample=False, eos_token_id=None,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        tokens, logits = by_hand((big, tuned, base), prompt, 8, 3.0)
        assert torch.equal(out.sequences[0, len(prompt) :], tokens)
        torch.testing.assert_close(out.logits[-1][0], logits, atol=2e-3, rtol=1e-3)
        unshifted = big.forward(out.sequences[:, :-1])
        assert unshifted is not None and (unshifted[0, -1] - logits).abs().max() > 0.1


def written(big: AdaptedModel, shift: iv.LogitShift, prompt: torch.Tensor, **options: Any) -> torch.Tensor:
    """Ten new tokens."""
    torch.manual_seed(3)
    call = {"do_sample": False, "max_new_tokens": 10, "min_new_tokens": 10, "eos_token_id": None, **options}
    with iv.Recipe([shift]).applied(big):
        return big.inner.generate(prompt, attention_mask=torch.ones_like(prompt), **call)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "num_return_sequences": 2, "temperature": 1.5},
    ],
)
def test_beams_and_samples_are_those_without_caches(options: dict[str, Any]) -> None:
    """Beams change places in the cache from step to step."""
    big, shift = model_of("llama"), iv.LogitShift(*small_pair("llama"), 2.0)
    cached, plain = (written(big, shift, ids()[:, :9], use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, plain)


def test_tokens_that_are_taken_back() -> None:
    """Guessed tokens (prompt lookup) that are refused leave the other caches too."""
    big, shift = model_of("llama"), iv.LogitShift(*small_pair("llama"), 2.0)
    prompt = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])
    guessed = written(big, shift, prompt, prompt_lookup_num_tokens=3, use_cache=True)
    assert torch.equal(guessed, written(big, shift, prompt))


def test_caches_go_as_soon_as_the_running_models_goes() -> None:
    big, (tuned, base) = model_of("llama"), small_pair("llama")
    shift = iv.LogitShift(tuned, base)
    gc.disable()
    try:
        with iv.Recipe([shift]).applied(big):
            out = big.inner.generate(ids()[:1], max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
            cache = weakref.ref(out.past_key_values)
            assert cache() is not None
            del out
            assert cache() is None, "no cycle holds the keys and values until the next collection"
    finally:
        gc.enable()


def test_positions_count_as_everywhere_else() -> None:
    big, (tuned, base) = model_of("llama"), small_pair("llama")
    plain, shift = big.forward(ids()), iv.LogitShift(tuned, base)
    last = applied(big, iv.LogitShift(tuned, base, positions="last"))
    assert torch.equal(last[:, :-1], plain[:, :-1]) and torch.equal(last[:, -1], applied(big, shift)[:, -1])
    with iv.Recipe([iv.LogitShift(tuned, base, 3.0, positions="generated")]).applied(big):
        late = big.inner.generate(ids()[:1], max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert late[0, 20] == plain[0, -1].argmax(), "the first new token is written by the prompt"
    rest = torch.cat([ids()[0], late[0, 20:21]])
    assert torch.equal(late[0, 21:], by_hand((big, tuned, base), rest, 5, 3.0)[0])


def test_it_acts_beside_other_interventions() -> None:
    big, (tuned, base) = model_of("llama"), small_pair("llama")
    offset = iv.Offset(1, noise(64))
    with iv.Recipe([offset, iv.LogitShift(tuned, base)]).applied(big):
        both = big.forward(ids())
    change = tuned.forward(ids()) - base.forward(ids())
    torch.testing.assert_close(both, applied(big, offset) + change, atol=1e-4, rtol=1e-4)
    assert big.n_hooks == 0


def test_a_wider_vocabulary_keeps_its_last_columns_and_says_so() -> None:
    big, (tuned, base) = other_of(3, vocab_size=320), small_pair("llama")
    plain = big.forward(ids())
    with pytest.warns(iv.VocabularyWarning, match=r"320, 300, 300 columns: those beyond the first 300"):
        shiftedly = applied(big, iv.LogitShift(tuned, base))
    assert torch.equal(shiftedly[..., 300:], plain[..., 300:])
    change = tuned.forward(ids()) - base.forward(ids())
    torch.testing.assert_close(shiftedly[..., :300], plain[..., :300] + change, atol=1e-4, rtol=1e-4)
    words = tf.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")))
    foreign = AdaptedModel(tiny_model("llama", seed=9), words, name="foreign")
    with pytest.raises(UserError, match="do not write the same words"):
        applied(model_of("llama"), iv.LogitShift(foreign, base))


def test_a_file_names_the_models_and_holds_no_weights(tmp_path: Path) -> None:
    big, (tuned, base) = model_of("llama"), small_pair("llama")
    recipe = iv.Recipe([iv.LogitShift(tuned, base, 0.5, positions="last+generated")])
    path = recipe.save(tmp_path / "shift.safetensors", model=big)
    assert path.stat().st_size < 4000
    loaded = iv.Recipe.load(path)
    assert loaded == recipe and "small tuned" in repr(loaded)
    with pytest.raises(UserError, match=r"names its tuned model \(small tuned, .*with_models\(tuned=..., base=...\)"):
        applied(big, loaded.interventions[0])
    with pytest.raises(UserError, match="with_models"):
        iv.Recipe.load(path, big)
    one: Any = loaded.interventions[0]
    assert torch.equal(applied(big, one.with_models(tuned, base)), applied(big, recipe.interventions[0]))
    with pytest.raises(UserError, match="The tuned model small base has other weights than small tuned"):
        one.with_models(base, tuned)
    bound = loaded.with_models_of([big, base, tuned])
    assert torch.equal(applied(big, bound.interventions[0]), applied(big, recipe.interventions[0]))
    assert loaded.with_models_of([big, base]) == loaded, "one is missing: it says so itself"


def test_mistakes_are_told() -> None:
    big, (tuned, base) = model_of("llama"), small_pair("llama")
    shift = iv.LogitShift(tuned, base)
    for make, words in (
        (lambda: iv.LogitShift.from_tensors({"tuned": MADE, "base": MADE, "alpha": "dlf"}, {}), "'matched'"),
        (lambda: iv.LogitShift(tuned, base, float("nan")), "finite"),
        (lambda: iv.LogitShift(tuned, base, top_p=0.0), "share above 0"),
        (lambda: iv.LogitShift("gpt2", base), "tuned is str"),
        (lambda: iv.LogitShift(tuned, {"name": "x"}), "not name and identity"),
        (lambda: applied(big, iv.LogitShift(tuned, base, strength=[1.0, 2.0, 3.0])), "3 strengths"),
    ):
        with pytest.raises(UserError, match=words):
            make()
    cache = big.inner(ids(), use_cache=True).past_key_values
    with iv.Recipe([shift]).applied(big):
        with pytest.raises(UserError, match="begin the text inside"), torch.no_grad():
            big.inner(ids()[:, :1], past_key_values=cache, use_cache=True)
        with pytest.raises(NotSupported, match="loss was computed before"):
            big.inner(ids(), labels=ids(), use_cache=False)
        with pytest.raises(UserError, match="give token ids"):
            big.inner(inputs_embeds=torch.zeros(1, 3, 64), use_cache=False)
    assert big.n_hooks == 0 and torch.equal(big.forward(ids()), big.forward(ids()))


def test_gradients_reach_the_running_model_alone() -> None:
    hf = tiny_model("llama")
    tuned = AdaptedModel(tuned_copy(hf, size=0.1), tokenizer())
    with iv.Recipe([iv.LogitShift(tuned, small_pair("llama")[1])]).applied(hf):
        hf(ids(), use_cache=False).logits.logsumexp(-1).sum().backward()
    assert hf.lm_head.weight.grad is not None and hf.lm_head.weight.grad.norm() > 0
    assert all(parameter.grad is None for parameter in tuned.hf.parameters())


def test_shifts_read_the_models_as_they_are_without_any_shift() -> None:
    """Two halves are a whole, a shift and its inverse are nothing; in one recipe, nested, and while generating."""
    model, (tuned, _) = model_of("llama"), small_pair("llama")
    plain, there = model.forward(ids()), tuned.forward(ids())
    half, back = iv.LogitShift(tuned, model, 0.5), iv.LogitShift(model, tuned)
    with iv.Recipe([half, half]).applied(model):
        torch.testing.assert_close(model.forward(ids()), there, atol=1e-5, rtol=1e-5)
    with iv.Recipe([half]).applied(model), iv.Recipe([half]).applied(model):
        torch.testing.assert_close(model.forward(ids()), there, atol=1e-5, rtol=1e-5)
    with iv.Recipe([iv.LogitShift(tuned, model), back]).applied(model):
        assert torch.equal(model.forward(ids()), plain), "cancels to the bit"
    prompt = model.encode(["the quick", "a lazy dog jumps"])
    with iv.Recipe([half, half]).applied(model):
        steered = model.generate_ids(prompt, max_new_tokens=5)
    assert torch.equal(steered, tuned.generate_ids(prompt, max_new_tokens=5))


def test_several_experts_add_up_on_one_copy() -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    hf = tiny_model("llama")
    pair = load_pair(hf, peft.get_peft_model(hf, config).eval(), tokenizer=tokenizer(), check=False)
    base, tuned = pair.base.forward(ids()), pair.tuned.forward(ids())
    one, matched = iv.LogitShift(pair.tuned, pair.base, 0.5), iv.LogitShift(pair.tuned, pair.base, "matched")
    with iv.Recipe([one, one]).applied(pair.base):
        torch.testing.assert_close(pair.base.forward(ids()), tuned, atol=1e-5, rtol=1e-5)
    with iv.Recipe([one, iv.LogitShift(pair.base, pair.tuned, 0.5)]).applied(pair.tuned):
        torch.testing.assert_close(pair.tuned.forward(ids()), tuned, atol=1e-5, rtol=1e-5)
    with iv.Recipe([matched, matched]).applied(pair.base):  # alpha is 1 of each: both look at the unshifted model
        torch.testing.assert_close(pair.base.forward(ids()), 2 * tuned - base, atol=1e-4, rtol=1e-4)


def test_plausibility_is_the_tuned_models() -> None:
    model, (tuned, base) = model_of("llama"), small_pair("llama")
    plain = applied(model, iv.LogitShift(tuned, base))
    cut = applied(model, iv.LogitShift(tuned, base, plausibility=0.5))
    p = tuned.forward(ids()).softmax(-1)
    width = p.shape[-1]
    allowed = p >= 0.5 * p.amax(-1, keepdim=True)
    assert torch.equal(torch.isfinite(cut[..., :width]), allowed) and 0 < allowed.float().mean() < 1
    assert torch.equal(cut[..., :width][allowed], plain[..., :width][allowed])
    rows = applied(model, iv.LogitShift(tuned, base, plausibility=0.5, strength=[0.0, 1.0]))
    assert torch.equal(rows[0], model.forward(ids())[0]) and torch.equal(rows[1], cut[1])
    with pytest.raises(UserError, match=r"plausibility is 1\.5"):
        iv.LogitShift(tuned, base, plausibility=1.5)


def test_plausibility_is_kept_and_its_absence_changes_no_content(tmp_path: Path) -> None:
    tuned, base = small_pair("llama")
    with_cut = iv.Recipe([iv.LogitShift(tuned, base, plausibility=0.25)])
    assert iv.Recipe.load(with_cut.save(tmp_path / "cut.safetensors")).interventions[0].plausibility == 0.25
    settings, _ = iv.LogitShift(tuned, base).to_tensors()
    assert "plausibility" not in settings and iv.LogitShift(tuned, base) != with_cut.interventions[0]
