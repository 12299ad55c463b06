"""Where the prompt ends does not depend on who calls the model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers

import interventions as iv
from interventions.checks import as_prompt_lengths
from tests.tiny import CONFIGS
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel
from workbench.prompts.encode import Encoded

NEW = 6
WORDS = ("all", "last", "generated", "last+generated", "prompt", "prompt[1:-1]", "generated[1:3]", -1)


@pytest.fixture(scope="module")
def model() -> AdaptedModel:
    torch.manual_seed(0)
    hf = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).eval()
    hf.generation_config.eos_token_id = None
    hf.generation_config.pad_token_id = 0
    return AdaptedModel(hf, None)


IDS = torch.arange(3, 9)[None]
WAYS = ("static", "embeddings", "both", "assisted", "itself", "lookup", "configured", "chunked")


def recipe(positions: Any = "last") -> iv.Recipe:
    vector = 20 * torch.randn(64, generator=torch.Generator().manual_seed(0))
    return iv.Recipe([iv.Offset(layer=1, vector=vector, positions=positions)])


def generated(model: AdaptedModel, **options: Any) -> list[int]:
    options = {"inputs": IDS, "attention_mask": torch.ones(1, IDS.shape[1]).long(), **options}
    out = model.inner.generate(max_new_tokens=NEW, do_sample=False, **options)
    return out[0, -NEW:].tolist()


def looped(model: AdaptedModel, *, cache: bool) -> list[int]:
    """The decoding loop that everybody writes."""
    ids, new, past = IDS, [], transformers.DynamicCache(config=model.inner.config) if cache else None
    for _ in range(NEW):
        with torch.no_grad():
            logits = model.inner(ids, past_key_values=past, use_cache=cache).logits
        token = logits[:, -1:].argmax(-1)
        new.append(int(token))
        ids = token if cache else torch.cat([ids, token], 1)
    return new


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("positions", WORDS)
def test_an_own_loop_that_says_its_prompt_is_generate(model: AdaptedModel, positions: Any, *, cache: bool) -> None:
    one = recipe(positions)
    with one.applied(model):
        wanted = generated(model)
    for lengths in (IDS.shape[1], [IDS.shape[1]], torch.tensor([IDS.shape[1]])):
        with one.applied(model, prompt_lengths=lengths):
            assert looped(model, cache=cache) == wanted


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("positions", WORDS)
def test_without_it_one_warning_is_given(model: AdaptedModel, positions: Any, *, cache: bool) -> None:
    with warnings.catch_warnings(record=True) as told, recipe(positions).applied(model):
        warnings.simplefilter("always")
        looped(model, cache=cache)
    assert [one.category for one in told] == ([] if positions == "all" else [iv.UnknownPromptWarning])


def test_whole_texts_are_no_loop(model: AdaptedModel) -> None:
    with recipe("last").applied(model):
        for size in (3, 4, 5):
            model.forward(torch.randint(3, 60, (1, size), generator=torch.Generator().manual_seed(size)))


@pytest.mark.parametrize("lengths", [-1, [2.5], "six", [[6]], True, [True]])
def test_a_bad_prompt_length_is_one_sentence(model: AdaptedModel, lengths: Any) -> None:
    with pytest.raises(UserError, match="prompt_lengths"):
        as_prompt_lengths(lengths)


def test_prompt_lengths_of_another_batch_are_one_sentence(model: AdaptedModel) -> None:
    with pytest.raises(UserError, match="2 prompt_lengths"), recipe().applied(model, prompt_lengths=[3, 3]):
        model.forward(IDS)
    assert model.n_hooks == 0


def assisted(model: AdaptedModel) -> dict[str, Any]:
    torch.manual_seed(1)
    draft = transformers.AutoModelForCausalLM.from_config(model.inner.config).eval()
    return {"assistant_model": draft}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("positions", WORDS)
@pytest.mark.parametrize(
    "way", ["static", "embeddings", "both", "assisted", "itself", "lookup", "configured", "chunked"]
)
def test_every_way_to_generate_is_the_same(model: AdaptedModel, positions: Any, way: str) -> None:
    embeds = model.inner.get_input_embeddings()(IDS).detach()
    options: dict[str, Any] = {
        "static": lambda: {"cache_implementation": "static"},
        "embeddings": lambda: {"inputs": None, "inputs_embeds": embeds},
        "both": lambda: {"inputs": IDS[:, :2], "inputs_embeds": embeds},
        "assisted": lambda: assisted(model),
        "itself": lambda: {"assistant_model": model.inner},
        "lookup": lambda: {"prompt_lookup_num_tokens": 2},
        "configured": lambda: {"generation_config": transformers.GenerationConfig(eos_token_id=None, pad_token_id=0)},
        "chunked": lambda: {"prefill_chunk_size": 4},
    }[way]()
    with recipe(positions).applied(model):
        wanted = generated(model)
        assert generated(model, **options) == wanted
    assert "generate" not in model.inner.__dict__


def test_continuous_batching_is_refused(model: AdaptedModel) -> None:
    with recipe().applied(model), pytest.raises(NotSupported, match="Continuous batching"):
        model.inner.generate_batch([IDS[0].tolist()])
    assert "generate_batch" not in model.inner.__dict__


def test_a_generate_taken_before_the_context_is_a_loop_of_ones_own(model: AdaptedModel) -> None:
    before = model.inner.generate
    with recipe("generated").applied(model), pytest.warns(iv.UnknownPromptWarning):
        before(IDS, max_new_tokens=2)


def test_rows_of_an_own_loop_keep_their_own_prompts(model: AdaptedModel) -> None:
    rows: Sequence[torch.Tensor] = (IDS[0], IDS[0, :4])
    wanted = []
    for row in rows:
        with recipe("prompt").applied(model, prompt_lengths=[len(row) - 1]):
            wanted.append(model.forward(row[None])[0, -1])
    left = torch.stack([rows[0], torch.nn.functional.pad(rows[1], (2, 0))])
    mask = torch.ones_like(left)
    mask[1, :2] = 0
    with recipe("prompt").applied(model, prompt_lengths=[5, 3]):
        both = model.forward(Encoded(left, mask))[:, -1]
    torch.testing.assert_close(both, torch.stack(wanted), atol=1e-4, rtol=1e-3)
