"""Our hooks on a vLLM model: every request of a step is shown as a forward pass of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from workbench.engine.context import ForwardContext
from workbench.engine.dispatch import SiteHook
from workbench.engine.row_context import row_context
from workbench.engine.sites import Site
from workbench.engine.template_tokens import TemplateTokens
from workbench.errors import UserError
from workbench.typing import Float, Tensor
from workbench.vllm.layout import Place, place_of, read_out
from workbench.vllm.stages import Neighbours

ROW = "tunescope_row"
"""Under this name a request's extra arguments say which row it is."""
Warp = Callable[[int, int, Tensor], Tensor]
"""(row, number of the new token, scores [1, vocab]) -> scores whose largest entry is the token that is written."""


@dataclass(frozen=True)
class _Span:
    """The tokens of one request in a step."""

    row: int
    start: int
    end: int
    context: ForwardContext
    left: int
    """Tokens of its prompt that come in later steps; negative: how many new tokens it has by now."""


@dataclass(eq=False)
class Tap:
    """Runs each row's hooks on that row's tokens of vLLM's flat batch [token, d_model]."""

    runner: Any
    """vLLM's model runner, which knows the requests of a step."""
    template: TemplateTokens | None
    """Of the model that the rows are sent to; :attr:`templates` has that of a row of another side."""
    hooks: dict[int, Sequence[SiteHook]] = field(default_factory=dict)
    """Row -> its hooks; rows may come and go between two steps, see :meth:`add`."""
    prompt_lengths: Mapping[int, int] = field(default_factory=dict)
    """Row -> how many of its tokens are the prompt to a recipe's positions, where that is not all it was sent."""
    wanted: Mapping[int, int] = field(default_factory=dict)
    """Row -> of how many last tokens of its prompt the logits are kept in :attr:`logits`."""
    warp: Warp | None = None
    templates: dict[int, TemplateTokens | None] = field(default_factory=dict)
    logits: dict[int, list[Tensor]] = field(default_factory=dict)
    neighbours: Neighbours | None = None
    """The stages before and behind this one, where gates are to reach them."""
    defers: bool = False
    """What a hook refuses is kept in :attr:`failure`: a stage that stops would leave the others waiting."""
    failure: UserError | None = None
    _spans: list[_Span] = field(default_factory=list)
    _places: dict[Site, Any] = field(default_factory=dict)
    _model: nn.Module | None = None

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """The hooks are on ``model`` inside, and gone afterwards."""
        self._model = model
        with ExitStack() as stack:
            stack.callback(self._leave)
            # not at the body, whose compile wrapper calls no hooks
            stack.callback(model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            if self.wanted or self.neighbours:
                stack.callback(model.register_forward_hook(self._end).remove)
            if self.warp is not None:
                sampler: nn.Module = self.runner.sampler
                stack.callback(sampler.register_forward_pre_hook(self._choose, with_kwargs=True).remove)
            for row, hooks in list(self.hooks.items()):
                self.add(row, hooks)
            yield

    def add(self, row: int, hooks: Sequence[SiteHook]) -> None:
        """Let a row have ``hooks`` from the next step on."""
        assert self._model is not None
        for site in dict.fromkeys(hook.site for hook in hooks):
            if site not in self._places:
                place = place_of(self._model, site)
                if place is None:
                    continue
                self._places[site] = place.module.register_forward_hook(self._at(place, site))
        self.hooks[row] = hooks

    def _leave(self) -> None:
        while self._places:
            self._places.popitem()[1].remove()
        self._model = None

    def _begin(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A step begins: which tokens are whose, and where in its text each request is."""
        ids: Tensor = args[0] if args else kwargs["input_ids"]
        batch, borders = self.runner.input_batch, self.runner.query_start_loc.np
        self._spans = []
        for place, name in enumerate(batch.req_ids):
            extra = self.runner.requests[name].sampling_params.extra_args or {}
            start, end = int(borders[place]), int(borders[place + 1])
            if ROW in extra and end > start:
                row, sent = extra[ROW], int(batch.num_prompt_tokens[place])
                before = int(batch.num_computed_tokens_cpu[place])
                prompt = self.prompt_lengths.get(row, sent)
                context = row_context(ids[None, start:end], before, prompt, self.templates.get(row, self.template))
                self._spans.append(_Span(row, start, end, context, sent - before - (end - start)))
        if self.neighbours is not None:
            self.neighbours.receive([span.context for span in self._spans])

    def _end(self, model: nn.Module, _args: Any, hidden: Any) -> None:
        """A step's last states [token, d_model] are there: keep the logits of the tokens that they are wanted of.

        A stage that is not the last has others, for the next stage.
        """
        if self.neighbours is not None:
            self.neighbours.send([span.context for span in self._spans])
        if not isinstance(hidden, Tensor):
            return
        for span in self._spans:
            last = self.wanted.get(span.row, 0) - span.left
            if span.left >= 0 and last > 0:
                states = hidden[max(span.start, span.end - last) : span.end]
                self.logits.setdefault(span.row, []).append(read_out(model, states).float().cpu())

    def _choose(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Scores [request, vocab] of the step, as each row's own rule changes them."""
        assert self.warp is not None
        scores: Tensor = kwargs["logits"].float()
        batch, borders = self.runner.input_batch, self.runner.query_start_loc.np
        for place, name in enumerate(batch.req_ids):
            extra = self.runner.requests[name].sampling_params.extra_args or {}
            made = int(batch.num_computed_tokens_cpu[place]) + int(borders[place + 1]) - int(borders[place])
            step = made - int(batch.num_prompt_tokens[place])
            if ROW in extra and step >= 0:
                scores[place : place + 1] = self.warp(extra[ROW], step, scores[place : place + 1])
        return args, {**kwargs, "logits": scores}

    def _called(self, hook: SiteHook, value: Tensor, ctx: ForwardContext) -> Any:
        try:
            return hook.fn(value, ctx)
        except UserError as error:
            if not self.defers:
                raise
            self.failure = self.failure or error
            return None

    def _at(self, place: Place, site: Site) -> Any:
        def run(_module: nn.Module, _args: Any, raw: Any) -> Any:
            value: Tensor | None = None
            changed = False
            for span in self._spans:
                for hook in self.hooks.get(span.row, ()):
                    if hook.site != site:
                        continue
                    if value is None:
                        value = place.get(raw)
                    new = self._called(hook, value[None, span.start : span.end], span.context)
                    if hook.edit and new is not None:
                        if not changed:  # never into what the engine holds
                            value, changed = value.clone(), True
                        value[span.start : span.end] = new[0]
            return place.put(raw, value) if changed and value is not None else None

        return run


def kept_logits(tap: Tap, row: int) -> Float[Tensor, "token vocab"]:
    """The logits of a row, whose prompt may have come in several steps."""
    return torch.cat(tap.logits[row])
