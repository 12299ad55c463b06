"""A recipe that would act on nothing is refused, or is an error when its context ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import interventions as iv
from tests.interventions.test_contexts import IDS, A, alone, is_free, model, recipe, untouched
from workbench.errors import NotSupported, UserError
from workbench.models.adapted import AdaptedModel

__all__ = ["model", "untouched"]  # fixtures


BACKEND: dict[str, Any] = {"backend": "eager"}  # needs no compiler of C++; others behave the same here


def compiled_whole(hf: Any) -> None:
    hf.compile(**BACKEND)


def compiled_forward(hf: Any) -> None:
    hf.forward = torch.compile(hf.forward, **BACKEND)


def compiled_layer(hf: Any) -> None:
    hf.model.layers[1].compile(**BACKEND)


@pytest.mark.parametrize("how", [compiled_whole, compiled_forward, compiled_layer])
def test_a_model_compiled_in_place_is_refused(model: AdaptedModel, how: Callable[[Any], None]) -> None:
    how(model.inner)
    with pytest.raises(NotSupported, match="compiled code does not call hooks"), A.applied(model):
        pass
    with pytest.raises(NotSupported, match="compiled code does not call hooks"), A.applied(model.hf):
        pass
    assert model.n_hooks == 0 and not model.hub.held


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("used_before", [True, False])
def test_a_compiled_copy_of_the_call_is_steered(
    model: AdaptedModel, untouched: torch.Tensor, *, used_before: bool
) -> None:
    torch._dynamo.reset()
    fast = torch.compile(model.inner, **BACKEND)
    with pytest.raises(UserError, match="_orig_mod"), A.applied(fast):
        pass
    wanted = alone(model, A)
    with torch.no_grad():
        if used_before:
            fast(IDS, use_cache=False)
        with A.applied(model):
            steered = fast(IDS, use_cache=False).logits
        after = fast(IDS, use_cache=False).logits
    torch.testing.assert_close(steered, wanted)
    torch.testing.assert_close(after, untouched)
    torch._dynamo.reset()


def test_a_hook_that_is_never_called_is_an_error(model: AdaptedModel, untouched: torch.Tensor) -> None:
    layer = model.inner.model.layers[1]
    inner = layer.mlp.forward
    at_mlp = iv.Recipe([iv.Offset(layer=1, vector=torch.ones(64), site="mlp_out")])
    layer.forward = lambda hidden_states, **_: hidden_states + inner(hidden_states)  # calls no module of its own
    with pytest.raises(NotSupported, match=r"blocks\.1\.hook_mlp_out was never called"), at_mlp.applied(model):
        model.forward(IDS)
    with at_mlp.applied(model):
        pass  # no forward passed
    with pytest.raises(ValueError, match="mine"), at_mlp.applied(model):
        model.forward(IDS)
        raise ValueError("mine")  # is not hidden
    del layer.forward
    with recipe(0, positions="generated").applied(model):
        model.forward(IDS)  # selects nothing, which is no error
    is_free(model, untouched)


def test_modules_called_past_the_model_are_an_error(model: AdaptedModel, untouched: torch.Tensor) -> None:
    with pytest.raises(NotSupported, match="call the model itself"), A.applied(model):
        model.inner.model.forward(IDS)
    with A.applied(model), torch.no_grad():
        steered = model.inner.forward(IDS, use_cache=False).logits  # the body is called as a module
    assert torch.equal(steered, alone(model, A))
    is_free(model, untouched)
