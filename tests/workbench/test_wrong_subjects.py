"""A model where a pair belongs, a pair where a recording belongs, and the like: one sentence that says what to give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import pytest

import probes
import workbench as wb
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.errors import UserError

PROMPTS = [{"prompt": "the quick", "answer": "fox", "distractor": "dog", "label": "a"}] * 3


@pytest.fixture(scope="module")
def pair() -> wb.ModelPair:
    base = tiny_model("llama")
    return wb.load_pair(base, tuned_copy(base), tokenizer=tokenizer())


@pytest.fixture(autouse=True)
def as_a_user() -> Iterator[None]:
    """Without the tests' own check of annotations, which answers first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


NEED_A_PAIR: dict[str, Callable[[Any], Any]] = {
    "behaviour_diff": lambda it: wb.behaviour_diff(it, PROMPTS),
    "dose_response": lambda it: wb.dose_response(it, PROMPTS, None, strengths=[1]),  # type: ignore[arg-type]
    "scope_panel": lambda it: wb.scope_panel(it, {}, PROMPTS, None, PROMPTS),
    "known_unknown": lambda it: wb.known_unknown(it, PROMPTS),
    "sure_unsure": lambda it: wb.sure_unsure(it, PROMPTS),
    "logit_lens": lambda it: probes.logit_lens(it, PROMPTS),
    "token_shift": lambda it: probes.token_shift(it, PROMPTS),
    "head_words": lambda it: probes.head_words(it, PROMPTS, 0, 0),
    "find_knob": lambda it: probes.find_knob(it, PROMPTS),
}
NEED_A_SUBJECT: dict[str, Callable[[Any], Any]] = {
    "record": lambda it: wb.record(it, PROMPTS, "z"),
    "patching": lambda it: probes.patching(it, PROMPTS),
    "path_patching": lambda it: probes.path_patching(it, PROMPTS),
    "circuit": lambda it: probes.circuit(it, PROMPTS, ["L0H0"]),
    "component_masking": lambda it: probes.component_masking(it, [{**PROMPTS[0], "contrast": "the lazy"}] * 3),
    "expert_map": lambda it: probes.expert_map(it, PROMPTS),
    "switching_curve": lambda it: probes.switching_curve(it, PROMPTS, lambda _text, _row: 1, ["L0E0"]),
    "retrieval_heads": lambda it: probes.retrieval_heads(it, []),
}
NEED_A_RECORDING: dict[str, Callable[[Any], Any]] = {
    "activation_delta": probes.activation_delta,
    "concept_directions": probes.concept_directions,
    "head_probe": probes.head_probe,
}


@pytest.mark.parametrize("name", NEED_A_PAIR)
def test_one_model_is_no_pair(pair: wb.ModelPair, name: str) -> None:
    with pytest.raises(UserError, match=r"an AdaptedModel was given: give what load_pair\(base, tuned\) returns"):
        NEED_A_PAIR[name](pair.tuned)


@pytest.mark.parametrize("name", NEED_A_SUBJECT)
def test_a_transformers_model_or_a_name_is_to_be_loaded_first(pair: wb.ModelPair, name: str) -> None:
    for given, said in ((pair.tuned.hf, "a LlamaForCausalLM"), ("./tuned", "the text './tuned'")):
        with pytest.raises(UserError, match=rf"{said} was given: give what load_pair\(base, tuned\) or load_model"):
            NEED_A_SUBJECT[name](given)


@pytest.mark.parametrize("name", NEED_A_RECORDING)
def test_a_pair_is_no_recording(pair: wb.ModelPair, name: str) -> None:
    with pytest.raises(UserError, match=r"a ModelPair was given: give what record\(pair, prompts, sites\) returns"):
        NEED_A_RECORDING[name](pair)
