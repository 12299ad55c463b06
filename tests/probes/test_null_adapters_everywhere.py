"""Null adapters come out null in every registered probe that reads a pair, or its page says what its q asks instead.

The calls are those of the provenance test, so that no probe can be forgotten. Two questions are counted:

- a probe's own q over draws of random and of shuffled adapters. Where q is about tuning, it must be above .05; where it
  is about something that any adapter (or any model) has, the registration says so (``any_adapter``), and so do the
  probe's page, its help and ``tunescope methods --json``;
- for those, the verdict is the place of the largest score among other nulls (:func:`probes.against_nulls`): a null may
  be the first among twenty in one of twenty draws.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import probes
from tests.declared import declared
from tests.probes.provenance import given_of
from tests.probes.test_against_null_adapters import lora_pair
from tests.tiny import tokenizer
from workbench.errors import UserError
from workbench.method_index import all_methods
from workbench.methods import Method
from workbench.models.null_adapters import KINDS, check_nullable, null_adapter
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts import Prompts

LONG = {
    "calibration-counter-test", "cross-task", "early-signs", "edges", "edit-sites", "elicitation",
    "erased-or-displaced", "head-selection", "inherent-limits", "phrasings", "representation-gap", "retrain-without",
    "sample-efficiency", "scaling-law", "skills", "tuning-trial", "undoing", "ways-to-turn",
}  # fmt: skip
"""Probes that train or search for a second or more: drawn once."""
NO_PAIR = {
    "circuit": "its test is on a planted circuit of two layers, which no adapter is part of",
    "cmap": "its test is on a planted circuit of two layers, which no adapter is part of",
    "decomposed-prompt": "reads soft prompts, which have no plain LoRA",
    "knob": "its test is on a planted coordinate; on a null adapter it refuses, as the tuned model is no better",
    "prefix-gates": "reads prefixes, which have no plain LoRA",
    "random-bases": "reads seeds and coefficients of random matrices, which have no plain LoRA",
    "retrieval": "reads one model, in which it looks for heads that copy",
    "virtual-tokens": "reads virtual tokens, which have no plain LoRA",
}
"""Probe -> why no null adapter can stand in for what it reads; others say it in their own test file."""
AMONG_NULLS: dict[str, dict[str, Any]] = {
    "answers": {"max_new_tokens": 3},
    "head-words": {"layer": 1, "head": 2},
    "heads": {"normalise": False, "together": 0, "draws": 20},
    "layers": {"normalise": False, "positions": "last", "draws": 20},
    "lens": {},
    "mlps": {"normalise": False, "positions": "last", "draws": 20},
    "paths": {"only_correct": False, "draws": 20, "metric": "logit_diff", "source": "tuned", "target": "base"},
    "probability-movement": {},
    "token-shift": {"max_new_tokens": 3},
}
"""Probes whose scores are effects of tuning -> options that keep them short."""
DRAWS, NULLS = 20, 19
GROUPS = 6
"""With fewer groups of prompts no flipping of signs reaches q <= .05: a null would come out null whatever is done."""


def reading_a_pair() -> dict[str, Method]:
    """Registered probes that read two models, loaded or recorded."""
    roles = {"pair", "subject", "recording", "base"}
    return {
        method.name: method
        for method in all_methods("probe")
        if roles & set(method.arguments) and method.module.startswith("probes.")
    }


def with_adapter(of: Any, words: Any = None) -> ModelPair:
    """A pair of a base and a plain LoRA: the pair given, if it is one, else its base (or the model) with a new one."""
    if isinstance(of, ModelPair):
        try:
            check_nullable(of)
        except UserError:
            return with_adapter(of.base.hf, of.tokenizer)
        return of
    base = type(of)(of.config)
    base.load_state_dict(of.state_dict())
    base = base.to(of.dtype).eval()
    linear = {name: module for name, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    names = [name for name in linear if name != "lm_head"]
    turned = isinstance(linear[names[0]], Conv1D)
    torch.manual_seed(3)
    config = peft.LoraConfig(
        r=2, lora_alpha=1, target_modules=names, init_lora_weights=False, fan_in_fan_out=turned
    )  # fmt: skip
    model = peft.get_peft_model(base, config).eval()
    return load_pair(model.get_base_model(), model, tokenizer=words or tokenizer(), check=False)


def on_null(method: Method, draw: int) -> Any:
    """The probe's result on one null adapter; None where it refuses it in one sentence, or reads no pair of ours."""
    with ExitStack() as stack:

        def replace(of: Any) -> ModelPair:
            return stack.enter_context(null_adapter(with_adapter(of), draw, KINDS[draw % len(KINDS)]))

        given = given_of(method.function, replace)
        assert given.pop("of_models") or method.name in declared("NO_PAIR"), (
            f"{method.name}: its test file says NO_PAIR = {{name: reason}}"
        )
        if method.name in declared("NO_PAIR"):
            return None
        prompts = given.get("prompts")
        assert not isinstance(prompts, Prompts) or len(set(prompts.clusters)) >= GROUPS, (
            f"{method.name}: calls_of_{method.function}() gives {len(prompts)} prompts in fewer than {GROUPS} groups"
        )
        try:
            return getattr(probes, method.function)(**given | method.fixed)
        except UserError as refused:
            assert str(refused).endswith("."), refused
            return None


def alarms(method: Method, draws: int) -> list[bool]:
    """Whether each draw of a null adapter has a cell of q <= .05."""
    found = [on_null(method, draw) for draw in range(draws)]
    frames = [one.frame() for one in found if one is not None]
    return [bool("q" in frame and (frame["q"] <= 0.05).any()) for frame in frames]


@cache
def counted(draws: int) -> dict[str, list[bool]]:
    return {
        name: alarms(method, 1 if name in LONG else draws)
        for name, method in reading_a_pair().items()
        if name not in declared("NO_PAIR")
    }  # fmt: skip


def test_what_is_named_here_is_registered() -> None:
    assert set(reading_a_pair()) >= set(AMONG_NULLS) | set(declared("NO_PAIR")) | LONG


@pytest.mark.parametrize("name", ["lens", "fault-tokens", "weights", "head-probe", "token-relevance"])
def test_one_null_adapter_of_each_kind_of_call(name: str) -> None:
    method = reading_a_pair()[name]
    assert method.any_adapter or not any(alarms(method, 1))


@pytest.mark.slow
def test_own_q_raises_no_false_alarm_or_the_page_says_what_it_asks(null_draws: int) -> None:
    methods = reading_a_pair()
    raised = {name: float(np.mean(found)) for name, found in counted(null_draws).items() if any(found)}
    silent = {name: found for name, found in counted(null_draws).items() if not methods[name].any_adapter}
    often = {name: raised[name] for name, found in silent.items() if sum(found) > 1 + 0.1 * len(found)}
    assert not often, f"q <= .05 on null adapters: mend the null, or say in any_adapter what q asks: {often}"
    rate = float(np.mean(np.concatenate([found for found in silent.values() if found])))
    assert rate <= 0.05, f"{rate:.1%} of draws: { {name: raised[name] for name in silent if name in raised} }"
    if null_draws < DRAWS:
        return  # a q that is small for one null in four, say, may not be met
    stale = [name for name, method in methods.items() if method.any_adapter and name not in raised]
    assert not stale, f"null adapters come out null in {stale}: take any_adapter away"


def test_cautions_are_told_wherever_a_probe_is_described() -> None:
    from tunescope.cli.method_command import help_of
    from tunescope.cli.methods import row_of

    named = {name: method for name, method in reading_a_pair().items() if method.any_adapter}
    assert len(named) > 3
    for method in named.values():
        assert method.caution in help_of(method) and row_of(method)["caution"] == method.caution
        assert method.caution.startswith("Its q asks ") and not method.any_adapter.endswith(".")


def rows() -> Prompts:
    words = ["quick", "brown", "fox", "lazy", "dog", "over"]
    return Prompts.of([
        {"prompt": f"the {words[i % 6]} {words[(i + 2) % 6]}", "answer": " fox", "distractor": " dog", "group": f"g{i}"}
        for i in range(8)
    ])  # fmt: skip


def largest(method: Method, pair: Any) -> float:
    options = {**method.fixed, **AMONG_NULLS.get(method.name, {})}
    return float(np.nanmax(method.call(pair, rows(), **options).frame()["score"].to_numpy(dtype=float)))


def false_alarms(method: Method, kind: Any) -> float:
    """The share of null adapters that stand before all of the 19 others which they are compared with."""
    pair, best = lora_pair(seed=3), []
    for number in range(NULLS + DRAWS):
        with null_adapter(pair, number, kind) as stand_in:
            best.append(largest(method, stand_in))
    pool = np.array(best[:NULLS])
    p = [(1 + (pool >= one).sum()) / (1 + NULLS) for one in best[NULLS:]]
    return float(np.mean(np.array(p) <= 0.05))


@pytest.mark.slow
def test_false_alarms_among_null_adapters() -> None:
    methods = reading_a_pair()
    rates = {f"{name}, {kind}": false_alarms(methods[name], kind) for name in AMONG_NULLS for kind in KINDS}
    rate = float(np.mean(list(rates.values())))
    assert rate <= 0.08, f"5 % are expected, the standard error is 1.5 % (a probe's draws share their nulls): {rates}"


@pytest.mark.slow
def test_a_planted_adapter_is_no_null() -> None:
    """What would make the rate above worthless: a score that no adapter raises."""
    method, pair = reading_a_pair()["lens"], lora_pair(planted=True)
    pool = []
    for number in range(NULLS):
        with null_adapter(pair, number, "random") as stand_in:
            pool.append(largest(method, stand_in))
    assert largest(method, pair) > max(pool)


def test_probes_that_need_a_behaviour_refuse_a_null_adapter() -> None:
    pair = lora_pair()
    with null_adapter(pair, 0, "random") as stand_in, pytest.raises(UserError):
        reading_a_pair()["direction"].call(stand_in, rows(), "refusal", max_new_tokens=3)
