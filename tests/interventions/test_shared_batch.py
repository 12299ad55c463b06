"""One batch over base and tuned rows of an adapter pair: the same texts as two passes, in half as many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import interventions as iv
from tests.tiny import tiny_model, tokenizer
from workbench.models.adapter_layers import adapter_layers
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts.encode import Encoded

pytestmark = pytest.mark.filterwarnings("ignore:.*generation flags.*")
NEW = 5


def lora_pair(**options: Any) -> ModelPair:
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **options)
    torch.manual_seed(0)
    lora = get_peft_model(tiny_model("llama"), config).eval()
    return load_pair(lora.get_base_model(), lora, tokenizer=tokenizer(), check=False)


def padded() -> Encoded:
    ids = torch.randint(5, 250, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    return Encoded(ids, mask)


@contextmanager
def counted(pair: ModelPair) -> Iterator[list[int]]:
    """The rows of each pass through the body."""
    rows: list[int] = []

    def count(_body: Any, _args: Any, output: Any) -> None:
        rows.append(len(output[0]))

    handle = pair.base.inner.base_model.register_forward_hook(count)
    try:
        yield rows
    finally:
        handle.remove()


def written(pair: ModelPair, role: str, one: iv.Intervention, batch: Encoded, **options: Any) -> torch.Tensor:
    torch.manual_seed(3)
    with iv.Recipe([one]).applied(pair.models[role]):
        return pair.models[role].generate_ids(batch, max_new_tokens=NEW, min_new_tokens=NEW, **options)


FORMS = {
    "shift": lambda pair: iv.LogitShift(pair.tuned, pair.base, 1.7),
    "mix": lambda pair: iv.LogitMix({"t": iv.Voice(pair.tuned, 2.0), "b": iv.Voice(pair.base, -0.5)}, 0.3),
    "fusion": lambda pair: iv.LogitFusion({"t": pair.tuned}, pair.base, {"t": 1.3}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("role", ["base", "tuned"])
@pytest.mark.parametrize("sampled", [False, True])
def test_one_batch_writes_what_two_passes_write(form: str, role: str, sampled: bool) -> None:
    pair, apart = lora_pair(), lora_pair()
    options = {"do_sample": sampled, "temperature": 1.5} if sampled else {}
    with counted(pair) as rows:
        together = written(pair, role, FORMS[form](pair), padded(), **options)
    assert rows[:NEW] == [4] * NEW and len(rows) == NEW, "one pass a token, of base and tuned rows"
    with counted(apart) as rows:
        separate = written(pair, role, FORMS[form](apart), padded(), **options)
    assert len(rows) == 2 * NEW and torch.equal(together, separate)
    plain = pair.models[role].generate_ids(padded(), max_new_tokens=NEW, min_new_tokens=NEW)
    assert sampled or not torch.equal(together, plain), "it must change the text"


def test_logits_of_both_ways_agree() -> None:
    pair, apart, found = lora_pair(), lora_pair(), []
    options = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": NEW, "min_new_tokens": NEW}
    batch = padded()
    for other in (pair, apart):
        with iv.Recipe([FORMS["shift"](other)]).applied(pair.base), torch.no_grad():
            out = pair.base.inner.generate(batch.input_ids, attention_mask=batch.attention_mask, **options)
        found.append(torch.stack(out.logits))
    torch.testing.assert_close(found[0], found[1], atol=2e-5, rtol=1e-5)


def test_without_a_cache_too() -> None:
    pair, apart = lora_pair(), lora_pair()
    with counted(pair) as rows:
        together = written(pair, "base", FORMS["shift"](pair), padded(), use_cache=False)
    assert rows == [4] * NEW
    assert torch.equal(together, written(pair, "base", FORMS["shift"](apart), padded()))


def test_beams_other_hooks_and_dora_keep_two_passes() -> None:
    pair, apart = lora_pair(), lora_pair()
    for options in ({"num_beams": 2}, {}):
        recipes = [[FORMS["shift"](one)] for one in (pair, apart)]
        if not options:
            push = iv.Offset(1, torch.full((pair.base.d_model,), 0.3))
            recipes = [[push, *recipe] for recipe in recipes]
        texts = []
        for recipe in recipes:
            with counted(pair) as rows, iv.Recipe(recipe).applied(pair.base):
                texts.append(pair.base.generate_ids(padded(), max_new_tokens=NEW, min_new_tokens=NEW, **options))
            assert set(rows) == ({4} if options else {2}), "never doubled (two beams of two prompts are four rows)"
        if options:
            assert torch.equal(*texts)
    dora = lora_pair(use_dora=True)
    with counted(dora) as rows:
        written(dora, "base", FORMS["shift"](dora), padded())
    assert set(rows) == {2}


def test_drafts_are_verified_to_the_same_text() -> None:
    """Greedy: words that a draft guesses are kept where the arithmetic would have written them, else taken back."""
    pair, apart = lora_pair(), lora_pair()
    ids = torch.tensor([[11, 12, 13, 14, 11, 12, 13, 14, 11, 12]])
    prompt = Encoded(ids, torch.ones_like(ids))
    wanted = written(pair, "base", FORMS["shift"](apart), prompt)
    drafted = written(pair, "base", FORMS["shift"](pair), prompt, prompt_lookup_num_tokens=3)
    assert torch.equal(drafted, wanted)
    helper = lora_pair().tuned.inner
    assert torch.equal(written(pair, "base", FORMS["shift"](pair), prompt, assistant_model=helper), wanted)


def test_nothing_stays_after_an_exception() -> None:
    pair = lora_pair()
    before = pair.base.forward(padded().input_ids), pair.tuned.forward(padded().input_ids)

    def fail(_module: Any, _args: Any, _output: Any) -> None:
        raise KeyboardInterrupt

    handle = pair.base.inner.lm_head.register_forward_hook(fail)
    shared = iv.Recipe([FORMS["shift"](pair)])
    with pytest.raises(KeyboardInterrupt), shared.applied(pair.base):
        pair.base.generate_ids(padded(), max_new_tokens=2)
    handle.remove()
    assert (
        not any(adapter_layer._forward_pre_hooks for adapter_layer in adapter_layers(pair.base.inner))
        and pair.base.n_hooks == 0
    )
    assert torch.equal(pair.base.forward(padded().input_ids), before[0])
    assert torch.equal(pair.tuned.forward(padded().input_ids), before[1])
