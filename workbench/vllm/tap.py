"""Our hooks on a vLLM model: every request of a step is shown as a forward pass of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from workbench.engine.context import ForwardContext
from workbench.engine.hub import Hub, SiteHook
from workbench.engine.row_context import row_context
from workbench.typing import Tensor
from workbench.vllm.layout import Place, place_of

ROW = "tunescope_row"
"""Under this name a request's extra arguments say which row it is."""


@dataclass(frozen=True)
class _Span:
    """The tokens of one request in a step."""

    row: int
    start: int
    end: int
    context: ForwardContext


class Tap:
    """Runs each row's hooks on that row's tokens of vLLM's flat batch [token, d_model]."""

    def __init__(self, runner: Any, hub: Hub, hooks: Mapping[int, Sequence[SiteHook]]) -> None:
        """``runner``: vLLM's model runner, which knows the requests of a step. ``hooks``: row -> its hooks."""
        self._runner, self._hub, self._hooks = runner, hub, hooks
        self._spans: list[_Span] = []

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """The hooks are on ``model`` inside, and gone afterwards."""
        sites = dict.fromkeys(hook.site for hooks in self._hooks.values() for hook in hooks)
        with ExitStack() as stack:
            # not at the body, whose compile wrapper calls no hooks
            stack.callback(model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            for site in sites:
                place = place_of(model, site)
                per_row = {
                    row: [hook for hook in hooks if hook.site == site] for row, hooks in self._hooks.items()
                }  # fmt: skip
                stack.callback(place.module.register_forward_hook(self._at(place, per_row)).remove)
            yield

    def _begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A step begins: which tokens are whose, and where in its text each request is."""
        ids: Tensor = args[0] if args else kwargs["input_ids"]
        batch, borders = self._runner.input_batch, self._runner.query_start_loc.np
        self._spans = []
        for place, name in enumerate(batch.req_ids):
            extra = self._runner.requests[name].sampling_params.extra_args or {}
            start, end = int(borders[place]), int(borders[place + 1])
            if ROW in extra and end > start:
                context = row_context(
                    ids[None, start:end], int(batch.num_computed_tokens_cpu[place]),
                    int(batch.num_prompt_tokens[place]), self._hub,
                )  # fmt: skip
                self._spans.append(_Span(extra[ROW], start, end, context))

    def _at(self, place: Place, hooks: Mapping[int, Sequence[SiteHook]]) -> Any:
        def run(_module: nn.Module, _args: Any, raw: Any) -> Any:
            value: Tensor | None = None
            changed = False
            for span in self._spans:
                for hook in hooks.get(span.row, ()):
                    if value is None:
                        value = place.get(raw)
                    new = hook.fn(value[None, span.start : span.end], span.context)
                    if hook.edit and new is not None:
                        if not changed:  # never into what the engine holds
                            value, changed = value.clone(), True
                        value[span.start : span.end] = new[0]
            return place.put(raw, value) if changed and value is not None else None

        return run
