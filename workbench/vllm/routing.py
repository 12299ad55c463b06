"""``on_vllm``: inside it, what a pair writes and how likely it finds texts is computed by vLLM.

Texts, next-token logits and log-probabilities of given texts are what behaviours, diffs, doses, scopes and audits are
made of; whatever else runs inside (gradients, recordings of heads, weights) is computed here as ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from workbench.errors import NotSupported, UserError, unknown_name
from workbench.vllm.route import EXECUTORS, ROUTE, Route, route_of

if TYPE_CHECKING:
    from workbench.models.adapted import AdaptedModel


@contextmanager
def on_vllm(subject: Any, **settings: Any) -> Iterator[None]:
    """Let vLLM write the texts of ``subject`` and read how likely texts are, as long as the context lasts.

    Behaviour diffs, doses, scope panels, the generations of audits and every other probe that is made of generated
    texts and log-probabilities go through one engine for base and LoRA; recipes act per request. Numbers are those of
    this process but for the last bits (docs/vllm.md has them measured).

    Args:
        subject: A pair of a base and its LoRA, or a model, loaded from folders or hub ids.
        **settings: Go to ``vllm.LLM``, such as ``max_model_len=4096``.

    Raises:
        UserError: vLLM is missing, cannot hold the adapter or the architecture, or the models were given loaded.

    Example:
        ``with wb.on_vllm(pair, max_model_len=2048): diff = wb.behaviour_diff(pair, prompts, recipe)``
    """
    from workbench.cluster.shipping import models_of

    with _opened(models_of(subject), settings):
        yield


def routed(
    models: Mapping[str, AdaptedModel], executor: str, settings: Mapping[str, Any] | None = None
) -> AbstractContextManager[None]:
    """:func:`on_vllm` where ``executor`` is "vllm" and no engine holds the models yet; otherwise nothing.

    Raises:
        UserError: There is no such executor, or ``settings`` are for another one.
    """
    if executor not in EXECUTORS:
        raise unknown_name("executor", executor, EXECUTORS)
    if settings is not None and executor != "vllm":
        raise UserError('engine_settings are vLLM\'s: give executor="vllm" with them.')
    if executor == "local" or all(route_of(model) is not None for model in models.values()):
        return nullcontext()
    return _opened(models, settings or {})


@contextmanager
def _opened(models: Mapping[str, AdaptedModel], settings: Mapping[str, Any]) -> Iterator[None]:
    from workbench.cluster.team import changed_since
    from workbench.vllm.running import VllmEngine, check_settings, origin_for

    origin = origin_for(models)
    check_sides(models)
    check_settings(settings, min(model.n_layers for model in models.values()))
    dtype = str(next(iter(models.values())).dtype).removeprefix("torch.")
    engine = VllmEngine(origin, **{"dtype": dtype, **settings})
    held = {id(model): model for model in models.values()}
    token = ROUTE.set(Route(engine, held, changed_since(models), settings))
    try:
        yield
    finally:
        ROUTE.reset(token)
        engine.close()


def check_sides(models: Mapping[str, AdaptedModel]) -> None:
    """Raise :class:`NotSupported` for an architecture or settings of generation that vLLM would read otherwise."""
    from workbench.models.generation_settings import of_effect
    from workbench.vllm.layout import check_name

    for role, model in models.items():
        check_name(type(model.inner).__name__)
        if model.own_generation_config and (names := sorted(of_effect(model.inner))):
            raise NotSupported(
                f"The {role} model's generation config sets {', '.join(names)}, which vLLM would read in its own way: "
                "load the pair without own_generation_config, or use the local executor."
            )
