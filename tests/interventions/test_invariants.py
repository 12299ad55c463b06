"""The five universal invariants, of every intervention on every family."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

import interventions as iv
from interventions.weightspace.swapping import base_parameters
from tests.interventions.registered_cases import registered_cases
from tests.interventions.zoo import LENGTH, Case, ids
from tests.tiny import FAMILIES, count_hooks
from workbench.errors import UserError
from workbench.method_index import index
from workbench.models.adapted import AdaptedModel
from workbench.prompts.encode import Encoded

pytestmark = [
    pytest.mark.filterwarnings("ignore::interventions.attention_scale.EagerAttentionWarning"),
    pytest.mark.filterwarnings("ignore:.*generation flags.*"),
]
NEW = 3
SHORT = 13
OTHER_KERNELS = ("ExpertSwitch", "AttentionScale", "SinkHandover")
"""Where rows of their own strength run through other kernels than plain: other groups of tokens, eager attention."""


@cache
def untouched(model: AdaptedModel) -> torch.Tensor:
    return model.forward(ids())


CASES = registered_cases()
CELLS = [(family, name) for family in FAMILIES for name, case in CASES.items() if family in case.families]


def test_every_intervention_takes_part() -> None:
    every = {name for name in {*iv.__all__, *index().functions("interventions")} if isinstance(getattr(iv, name), type)}
    kinds = {name for name in every if issubclass(getattr(iv, name), iv.Intervention) and name != "Intervention"}
    made = {case.make(case.model_of("mixtral"), [0, 1]).kind for case in CASES.values()}
    assert not kinds - made, f"say INVARIANT_CASES in the test file of {', '.join(sorted(kinds - made))}"
    assert kinds == made


@pytest.mark.parametrize(("family", "name"), CELLS)
def test_invariants(family: str, name: str) -> None:
    case = CASES[name]
    model = case.model_of(family)
    untouched(model)  # read before anything is applied
    recipe = iv.Recipe([case.make(model, [0, 1])])
    neutral_is_bit_equal(model, case, recipe)
    rows_have_their_own_strength(model, case, recipe)
    equals_dense(model, case, recipe)
    leaves_nothing(model, case, recipe)
    same_with_cache_padding_and_batch(model, case, recipe)


def neutral_is_bit_equal(model: AdaptedModel, case: Case, recipe: iv.Recipe) -> None:
    with (recipe * 0).applied(model):
        assert torch.equal(model.forward(ids()), untouched(model))
    if case.on_weights:
        for intervention in recipe:
            with pytest.raises(UserError, match="share the weights"):
                replace(intervention, strength=[0.0, 0.0])
        return
    rows = [replace(one, strength=[0.0, 0.0]) for one in recipe]
    if rows[0].kind not in OTHER_KERNELS:
        with iv.Recipe(rows).applied(model):
            assert torch.equal(model.forward(ids()), untouched(model))


def rows_have_their_own_strength(model: AdaptedModel, case: Case, recipe: iv.Recipe) -> None:
    """The first row at full strength and the second at none, and the other way round."""
    if case.on_weights:
        return
    with recipe.applied(model):
        full = model.forward(ids())
    for on, off in ((0, 1), (1, 0)):
        rows = [replace(one, strength=[_own(one, row) * (row == on) for row in (0, 1)]) for one in recipe]
        with iv.Recipe(rows).applied(model):
            logits = model.forward(ids())
        close(logits[on], full[on])
        close(logits[off], untouched(model)[off])


def _own(intervention: Any, row: int) -> float:
    """The strength of one row."""
    return float(torch.as_tensor(intervention.strength, dtype=torch.float64).expand(2)[row])


def equals_dense(model: AdaptedModel, case: Case, recipe: iv.Recipe) -> None:
    with recipe.applied(model):
        ours = model.forward(ids())
    with case.dense(model), torch.no_grad():
        wanted = model.inner(ids(), use_cache=False).logits
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-3)
    assert (ours - untouched(model)).abs().max() > 1e-3, "the case must change something"


def leaves_nothing(model: AdaptedModel, case: Case, recipe: iv.Recipe) -> None:
    tensors = {name: base_parameter.data_ptr() for name, base_parameter in base_parameters(model.hf).items()}
    hooks = count_hooks(model.hf)
    for problem in (ValueError, KeyboardInterrupt):
        with pytest.raises(problem), recipe.applied(model), recipe.applied(model):
            assert (model.n_hooks > 0) != case.on_weights
            assert not torch.equal(model.forward(ids()), untouched(model))
            raise problem
        assert model.n_hooks == 0 and count_hooks(model.hf) == hooks
    assert torch.equal(model.forward(ids()), untouched(model))
    with recipe.applied(model):
        outer = model.forward(ids())
        with recipe.applied(model):
            pass
        assert torch.equal(model.forward(ids()), outer), "an inner context leaves the outer one as it was"
    assert model.n_hooks == 0 and torch.equal(model.forward(ids()), untouched(model))
    assert {name: base_parameter.data_ptr() for name, base_parameter in base_parameters(model.hf).items()} == tensors


def same_with_cache_padding_and_batch(model: AdaptedModel, case: Case, recipe: iv.Recipe) -> None:
    prompts = [ids()[0], ids()[1, :SHORT]]
    padded = torch.stack([prompts[0], torch.nn.functional.pad(prompts[1], (LENGTH - SHORT, 0))])
    left = Encoded(padded, (padded != 0).long())
    cached, tokens = decoded(model, recipe, left, cache=True)
    uncached, _ = decoded(model, recipe, left, cache=False)
    close(uncached, cached)
    right = Encoded(
        torch.stack([prompts[0], torch.nn.functional.pad(prompts[1], (0, LENGTH - SHORT))]),
        left.attention_mask.flip(1),
    )
    with recipe.applied(model):
        both = model.forward(right)
    for row, prompt in enumerate(prompts):
        alone = Encoded(prompt[None], torch.ones(1, len(prompt), dtype=torch.long))
        single = iv.Recipe([case.make(model, [row])])
        logits, own = decoded(model, single, alone, cache=True)
        close(logits[:, 0], cached[:, row])
        assert torch.equal(own[0], tokens[row])
        with single.applied(model):
            close(model.forward(alone)[0], both[row, : len(prompt)])


def decoded(model: AdaptedModel, recipe: iv.Recipe, batch: Encoded, *, cache: bool) -> tuple[Any, Any]:
    """(logits [step, row, vocab], new tokens [row, step]) of greedy decoding."""
    with recipe.applied(model), torch.no_grad():
        out = model.inner.generate(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            use_cache=cache,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return torch.stack(out.logits), out.sequences[:, -NEW:]


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=3e-4, rtol=1e-3)
