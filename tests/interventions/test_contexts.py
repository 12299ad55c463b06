"""Contexts in any order, thread, task and generator: each computes with its own recipe or is refused, none stays."""

from __future__ import annotations

import asyncio
import copy
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
import transformers

import interventions as iv
from interventions.weightspace.swapping import base_parameters
from tests.tiny import CONFIGS
from workbench.errors import ModelBusy, UserError
from workbench.models.adapted import AdaptedModel

IDS = torch.arange(3, 10)[None]


@pytest.fixture
def model() -> AdaptedModel:
    torch.manual_seed(0)
    hf = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).eval()
    hf.generation_config.eos_token_id = None
    hf.generation_config.pad_token_id = 0
    return AdaptedModel(hf, None)


@pytest.fixture
def untouched(model: AdaptedModel) -> torch.Tensor:
    return model.forward(IDS)


def recipe(seed: int, **options: Any) -> iv.Recipe:
    vector = 20 * torch.randn(64, generator=torch.Generator().manual_seed(seed))
    return iv.Recipe([iv.Offset(layer=1, vector=vector, **options)])


A, B = recipe(0), recipe(1)


def alone(model: AdaptedModel, one: iv.Recipe) -> torch.Tensor:
    with one.applied(model):
        return model.forward(IDS)


def is_free(model: AdaptedModel, untouched: torch.Tensor) -> None:
    """No hook of anybody is left on any module, nothing holds the model, and it computes what it did."""
    assert model.n_hooks == 0 and not model.hub.held and "generate" not in model.inner.__dict__
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.inner.modules())
    assert torch.equal(model.forward(IDS), untouched)
    with torch.no_grad():
        assert torch.equal(model.inner(IDS, use_cache=False).logits, untouched)


def in_thread(call: Callable[[], Any]) -> Any:
    """The result of ``call`` in another thread, or the exception it ended with."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(call())
        except Exception as error:  # noqa: BLE001 (handed to the test)
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def stream(model: AdaptedModel, one: iv.Recipe) -> Iterator[torch.Tensor]:
    with one.applied(model):
        for _ in range(3):
            yield model.forward(IDS)


def test_contexts_of_one_thread_end_in_any_order(model: AdaptedModel, untouched: torch.Tensor) -> None:
    wanted = {name: alone(model, one) for name, one in (("a", A), ("b", B))}
    first, second = ExitStack(), ExitStack()
    first.enter_context(A.applied(model))
    second.enter_context(B.applied(model))
    assert not torch.equal(model.forward(IDS), wanted["a"])
    first.close()
    assert torch.equal(model.forward(IDS), wanted["b"]), "what is still open acts alone"
    second.close()
    is_free(model, untouched)


def test_two_streams_on_one_thread_are_not_mixed(model: AdaptedModel, untouched: torch.Tensor) -> None:
    wanted = alone(model, A)
    one, other = stream(model, A), stream(model, B)
    assert torch.equal(next(one), wanted)
    with pytest.raises(ModelBusy, match=r"The generator stream\(\) has a context open"):
        next(other)
    assert torch.equal(next(one), wanted)
    with pytest.raises(ModelBusy):
        model.forward(IDS)
    with pytest.raises(ModelBusy), torch.no_grad():
        model.inner(IDS)
    with pytest.raises(ModelBusy):
        model.inner.generate(IDS, max_new_tokens=2)
    one.close()
    is_free(model, untouched)
    assert len(list(stream(model, B))) == 3
    is_free(model, untouched)


def test_a_stream_may_be_stepped_by_any_thread(model: AdaptedModel, untouched: torch.Tensor) -> None:
    wanted, steps = alone(model, A), stream(model, A)
    for _ in range(3):
        assert torch.equal(in_thread(lambda: next(steps)), wanted)
    assert in_thread(lambda: next(steps, None)) is None
    is_free(model, untouched)


def test_a_stream_that_is_dropped_frees_the_model(model: AdaptedModel, untouched: torch.Tensor) -> None:
    steps = stream(model, A)
    next(steps)
    held = [steps]
    held.append(held)  # a circle, so that the collector ends it
    del steps, held
    gc.collect()
    is_free(model, untouched)


def test_a_generator_that_only_wraps_a_with_opens_for_its_caller(model: AdaptedModel, untouched: torch.Tensor) -> None:
    @contextmanager
    def steered() -> Iterator[None]:
        with A.applied(model):
            yield

    with steered(), B.applied(model):
        model.forward(IDS)
    with steered():
        assert torch.equal(model.forward(IDS), alone_inside := model.forward(IDS))
        assert not torch.equal(alone_inside, untouched)
        steps = stream(model, B)
        next(steps)
        steps.close()
    is_free(model, untouched)


def test_a_context_may_be_left_in_another_thread(model: AdaptedModel, untouched: torch.Tensor) -> None:
    context = A.applied(model)
    context.__enter__()
    assert in_thread(lambda: context.__exit__(None, None, None)) is False
    is_free(model, untouched)
    assert in_thread(lambda: torch.equal(model.forward(IDS), untouched)) is True


def test_tasks_are_kept_apart_and_children_are_inside(model: AdaptedModel, untouched: torch.Tensor) -> None:
    wanted = {"a": alone(model, A), "b": alone(model, B)}

    async def steered(one: iv.Recipe) -> torch.Tensor | ModelBusy:
        try:
            with one.applied(model):
                for _ in range(3):
                    await asyncio.sleep(0)
                return model.forward(IDS)
        except ModelBusy as error:
            return error

    async def plain() -> torch.Tensor:
        await asyncio.sleep(0)
        return model.inner(IDS, use_cache=False).logits

    async def main() -> None:
        first, second, third = await asyncio.gather(steered(A), steered(B), plain(), return_exceptions=True)
        assert torch.equal(first, wanted["a"])
        assert isinstance(second, ModelBusy) and isinstance(third, ModelBusy)
        with A.applied(model):
            child = asyncio.create_task(plain())
            assert torch.equal(await child, wanted["a"])
            assert torch.equal(await asyncio.to_thread(model.forward, IDS), wanted["a"])

    with torch.no_grad():
        asyncio.run(main())
    is_free(model, untouched)


def test_two_async_streams_in_one_task_are_not_mixed(model: AdaptedModel, untouched: torch.Tensor) -> None:
    async def steps(one: iv.Recipe) -> AsyncIterator[torch.Tensor]:
        with one.applied(model):
            for _ in range(2):
                yield await asyncio.to_thread(model.forward, IDS)

    async def main() -> None:
        one, other = steps(A), steps(B)
        assert torch.equal(await anext(one), wanted)
        with pytest.raises(ModelBusy):
            await anext(other)
        assert torch.equal(await anext(one), wanted)
        await one.aclose()

    wanted = alone(model, A)
    asyncio.run(main())
    is_free(model, untouched)


@pytest.mark.parametrize("change", ["offset", "weights"])
def test_another_thread_is_refused_while_the_model_computes_something_else(
    model: AdaptedModel, untouched: torch.Tensor, change: str
) -> None:
    one = A if change == "offset" else half_way(model)
    hf = model.inner
    with one.applied(model), torch.no_grad():
        assert isinstance(in_thread(lambda: hf(IDS, use_cache=False).logits), ModelBusy)
        assert isinstance(in_thread(lambda: hf.base_model(IDS)), ModelBusy)
        assert isinstance(in_thread(lambda: hf.generate(IDS, max_new_tokens=2)), ModelBusy)
        steered = hf(IDS, use_cache=False).logits
        assert torch.equal(steered, alone(model, iv.Recipe([]))), "the refusals changed nothing"
    assert not torch.equal(steered, untouched)
    is_free(model, untouched)


def test_two_threads_inside_one_context_are_served_one_at_a_time(model: AdaptedModel, untouched: torch.Tensor) -> None:
    wanted = alone(model, A)
    busy, go_on = threading.Event(), threading.Event()

    def wait(_module: Any, _args: Any, output: Any) -> Any:
        busy.set()
        go_on.wait(60)
        return output

    async def main() -> None:
        with A.applied(model):
            handle = model.inner.model.layers[0].register_forward_hook(wait)
            first = asyncio.create_task(asyncio.to_thread(model.inner, IDS, use_cache=False))
            await asyncio.to_thread(busy.wait, 60)
            with pytest.raises(ModelBusy, match="at this moment"):
                await asyncio.to_thread(model.inner, IDS, use_cache=False)
            go_on.set()
            assert torch.equal((await first).logits, wanted)
            handle.remove()

    asyncio.run(main())
    is_free(model, untouched)


def half_way(model: AdaptedModel) -> iv.Recipe:
    parameters = base_parameters(model.hf)
    name = "model.layers.1.mlp.down_proj.weight"
    return iv.Recipe([iv.LayerScale(0.5, 0.0, {name: parameters[name].data + 1.0})])


def test_weights_come_back_whatever_ends_first(model: AdaptedModel, untouched: torch.Tensor) -> None:
    places = {name: base_parameter.data_ptr() for name, base_parameter in base_parameters(model.hf).items()}
    first, second = ExitStack(), ExitStack()
    first.enter_context(half_way(model).applied(model))
    second.enter_context(half_way(model).applied(model))
    both = model.forward(IDS)
    first.close()
    assert torch.equal(model.forward(IDS), both), "the newer one stays in force"
    second.close()
    is_free(model, untouched)
    assert {name: base_parameter.data_ptr() for name, base_parameter in base_parameters(model.hf).items()} == places


def test_a_model_moved_inside_stays_moved(model: AdaptedModel, untouched: torch.Tensor) -> None:
    with half_way(model).applied(model):
        model.hf.to(torch.float64)
    assert {parameter.dtype for parameter in model.hf.parameters()} == {torch.float64}
    torch.testing.assert_close(model.forward(IDS).float(), untouched, atol=1e-5, rtol=1e-4)


def test_a_generate_set_inside_is_kept(model: AdaptedModel) -> None:
    with A.applied(model):
        ours = model.inner.generate
        model.inner.generate = mine = lambda *args, **kwargs: ours(*args, **kwargs)
        steered = model.inner.generate(IDS, max_new_tokens=3)
    assert model.inner.generate is mine and model.n_hooks == 0
    assert not torch.equal(mine(IDS, max_new_tokens=3), steered)
    del model.inner.generate


def test_a_model_is_not_copied_with_hooks_on_it(model: AdaptedModel) -> None:
    for one in (A, iv.Recipe([])):
        with one.applied(model) if len(one) else model.hooked([]), pytest.raises(UserError, match="leave it before"):
            copy.deepcopy(model.inner)


def test_a_pass_that_was_under_way_is_not_touched(model: AdaptedModel, untouched: torch.Tensor) -> None:
    """Another thread's plain forward began before the context and ends inside it."""
    wanted = alone(model, A)
    inside, go_on = threading.Event(), threading.Event()
    first = threading.get_ident()

    def wait(_module: Any, _args: Any, output: Any) -> Any:
        if threading.get_ident() != first:
            inside.set()
            go_on.wait(60)
        return output

    found: list[torch.Tensor] = []
    handle = model.inner.model.layers[0].register_forward_hook(wait)
    with torch.no_grad():
        plain = threading.Thread(target=lambda: found.append(model.inner(IDS, use_cache=False).logits))
        plain.start()
        inside.wait(60)
        with A.applied(model):
            assert torch.equal(model.forward(IDS), wanted)
            go_on.set()
            plain.join()
    handle.remove()
    assert torch.equal(found[0], untouched)
    is_free(model, untouched)


def test_an_interrupt_inside_a_context_leaves_it_usable(model: AdaptedModel, untouched: torch.Tensor) -> None:
    wanted = alone(model, A)
    interrupts = [True]

    def interrupt(_module: Any, _args: Any, output: Any) -> Any:
        if interrupts:
            interrupts.pop()
            raise KeyboardInterrupt
        return output

    with A.applied(model):
        handle = model.inner.model.layers[1].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.forward(IDS)
        assert torch.equal(model.forward(IDS), wanted)
        interrupts.append(True)
        with pytest.raises(KeyboardInterrupt):
            model.inner.generate(IDS, max_new_tokens=2)
        assert torch.equal(model.forward(IDS), wanted)
        handle.remove()
    is_free(model, untouched)
