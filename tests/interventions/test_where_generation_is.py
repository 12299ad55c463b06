"""Where generation is does not depend on who calls: every way to decode acts at the same tokens."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import TextIteratorStreamer

import interventions as iv
import workbench as wb
from tests.tiny import tiny_model, tokenizer
from workbench.errors import ModelBusy
from workbench.models.adapted import AdaptedModel

IDS = torch.arange(3, 11)[None]
POSITIONS = ["generated", "last", "prompt", "generated[0:2]", "prompt[2:4]", "last+generated"]
NEW = 5


@pytest.fixture(scope="module")
def model() -> AdaptedModel:
    return wb.load_model(tiny_model("llama"), tokenizer=tokenizer())


def recipe(positions: str) -> iv.Recipe:
    push = torch.randn(64, generator=torch.Generator().manual_seed(0)) * 20
    return iv.Recipe([iv.Offset(1, push, positions=positions)])


def generated(hf: Any, ids: torch.Tensor | None = IDS, **options: Any) -> list[int]:
    given = options.get("inputs_embeds", ids)
    ids_given = () if ids is None else (ids,)
    mask = options.pop("attention_mask", torch.ones(given.shape[:2], dtype=torch.long))
    texts = hf.generate(*ids_given, attention_mask=mask, max_new_tokens=NEW, do_sample=False, **options)
    return texts[0, -NEW:].tolist()


def looped(hf: Any, *, cache: bool) -> list[int]:
    ids, past, new = IDS, None, []
    for _ in range(NEW):
        out = hf(input_ids=ids if past is None else ids[:, -1:], past_key_values=past, use_cache=cache)
        past = out.past_key_values if cache else None
        ids = torch.cat([ids, out.logits[:, -1].argmax(-1, keepdim=True)], 1)
        new.append(int(ids[0, -1]))
    return new


def padded(hf: Any) -> list[int]:
    ids = torch.cat([torch.zeros(1, 3, dtype=torch.long), IDS], 1)
    return generated(hf, ids, attention_mask=(torch.arange(11) >= 3).long()[None])


WAYS: dict[str, Callable[[Any], list[int]]] = {
    "embeddings": lambda hf: generated(hf, None, inputs_embeds=hf.get_input_embeddings()(IDS)),
    "embeddings beside ids": lambda hf: generated(hf, inputs_embeds=hf.get_input_embeddings()(IDS)),
    "no cache": lambda hf: generated(hf, use_cache=False),
    "static cache": lambda hf: generated(hf, cache_implementation="static"),
    "prompt lookup": lambda hf: generated(hf, prompt_lookup_num_tokens=3),
    "a model that drafts": lambda hf: generated(hf, assistant_model=tiny_model("llama", seed=5)),
    "drafts of its own": lambda hf: generated(hf, assistant_early_exit=1),
    "padded": padded,
    "a loop of one's own": lambda hf: looped(hf, cache=True),
    "a loop without a cache": lambda hf: looped(hf, cache=False),
}


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("positions", POSITIONS)
def test_every_way_to_decode_acts_at_the_same_tokens(model: AdaptedModel, positions: str) -> None:
    plain = generated(model.hf)
    with recipe(positions).applied(model):
        right = generated(model.hf)
    assert right != plain
    for way, decode in WAYS.items():
        lengths = {"prompt_lengths": torch.tensor([IDS.shape[1]])} if "loop" in way else {}
        with recipe(positions).applied(model, **lengths):
            assert decode(model.hf) == right, way
    assert model.n_hooks == 0 and generated(model.hf) == plain


@pytest.fixture
def quiet_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[type[BaseException]]]:
    seen: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda info: seen.append(info.exc_type))
    yield seen


def test_a_thread_of_ones_own_is_refused_and_its_stream_ends(
    model: AdaptedModel, quiet_threads: list[type[BaseException]]
) -> None:
    streamer = TextIteratorStreamer(model.tokenizer, timeout=20)
    options = {"inputs": IDS, "max_new_tokens": NEW, "do_sample": False, "streamer": streamer}
    with recipe("generated").applied(model):
        thread = threading.Thread(target=model.hf.generate, kwargs=options)
        thread.start()
        assert "".join(streamer) == ""
        thread.join()
    assert quiet_threads == [ModelBusy]


def test_a_thread_that_was_let_in_streams_what_the_recipe_writes(model: AdaptedModel) -> None:
    streamer = TextIteratorStreamer(model.tokenizer, skip_prompt=True, timeout=20)
    options = {"inputs": IDS, "max_new_tokens": NEW, "do_sample": False, "streamer": streamer}
    with recipe("generated").applied(model):
        right = generated(model.hf)
        inside = contextvars.copy_context().run
        thread = threading.Thread(target=inside, args=(model.hf.generate,), kwargs=options)
        thread.start()
        text = "".join(streamer)
        thread.join()
    assert text == model.tokenizer.decode(right)
