"""Pipeline parallelism: each process holds some of the layers, a stage, and hooks act in the stage that holds theirs.

Rank 0 is in the first stage. What its readers are to see of a later stage, and the logits, which are made in the last,
come back to it when the call is through. A gate's decision travels to the stages behind it with every step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from workbench.engine.context import ForwardContext
from workbench.engine.dispatch import SiteHook
from workbench.engine.template_tokens import TemplateTokens
from workbench.errors import UserError
from workbench.typing import Tensor

TAG = 7041
"""Of the messages between stages, which vLLM's own, without a tag, do not meet."""


@dataclass
class Sight:
    """What a later stage saw in a call."""

    values: list[tuple[int, int, Tensor, ForwardContext]] = field(default_factory=list)
    """Row, number of its hook, the site's value [1, token, d_model], the pass it was in; in the order of the steps."""
    logits: dict[int, list[Tensor]] = field(default_factory=dict)
    """Row -> logits [token, vocab] of its steps; of the last stage alone."""
    failure: UserError | None = None
    """What a hook refused."""

    def reading(self, hooks: Mapping[int, Sequence[SiteHook]]) -> dict[int, Sequence[SiteHook]]:
        """``hooks`` with readers that put what they read in here."""
        return {
            row: [hook if hook.edit else self._reader(row, number, hook) for number, hook in enumerate(own)]
            for row, own in hooks.items()
        }

    def _reader(self, row: int, number: int, hook: SiteHook) -> SiteHook:
        def keep(value: Tensor, ctx: ForwardContext) -> None:
            ids = None if ctx.input_ids is None else ctx.input_ids.to("cpu", copy=True)
            passed = replace(ctx, device=torch.device("cpu"), input_ids=ids, template=None, scratch={})
            self.values.append((row, number, value.detach().to("cpu", copy=True), passed))

        return replace(hook, fn=keep)

    def show(self, hooks: Mapping[int, Sequence[SiteHook]], template: TemplateTokens | None) -> None:
        """Let the readers among ``hooks`` see it; raises what a hook of that stage refused."""
        if self.failure is not None:
            raise self.failure
        for row, number, value, ctx in self.values:
            hooks[row][number].fn(value, replace(ctx, template=template))


def sendable(hooks: Mapping[int, Sequence[SiteHook]], *, stages: bool) -> dict[int, Sequence[SiteHook]]:
    """What another rank is given of ``hooks``: the edits, and with ``stages`` where there are readers."""
    sent = {
        row: [hook if hook.edit else replace(hook, fn=unread) for hook in own if hook.edit or stages]
        for row, own in hooks.items()
    }
    return {row: own for row, own in sent.items() if own}


def with_edits(hooks: Mapping[int, Sequence[SiteHook]]) -> bool:
    """Whether any row is changed."""
    return any(hook.edit for own in hooks.values() for hook in own)


def make_room(runner: Any) -> None:
    """Give a model runner the buffer for the stage before, which vLLM makes in a warm-up that a CPU does not run."""
    from vllm.distributed import get_pp_group

    if not get_pp_group().is_first_rank and runner.intermediate_tensors is None:
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
        )


def unread(_value: Tensor, _ctx: ForwardContext) -> None:
    """In place of a reader, which stays on rank 0."""


class Neighbours:
    """The stages before and behind this one: what gates decided about a step's rows goes along with its states."""

    def __init__(self, group: Any) -> None:
        """``group``: vLLM's group of stages."""
        self.group = group
        self._on_the_way: list[Any] = []

    def receive(self, contexts: Iterable[ForwardContext]) -> None:
        """Put what earlier stages decided into the step's passes."""
        if self.group.is_first_rank:
            return
        length = torch.zeros(1, dtype=torch.long)
        self._exchange(torch.distributed.recv, length, self.group.prev_rank)
        text = torch.zeros(int(length), dtype=torch.uint8)
        self._exchange(torch.distributed.recv, text, self.group.prev_rank)
        for ctx, masks in zip(contexts, json.loads(bytes(text.tolist())), strict=True):
            ctx.scratch.update({name: torch.tensor(mask, device=ctx.device) for name, mask in masks.items()})

    def send(self, contexts: Iterable[ForwardContext]) -> None:
        """Tell the next stage what was decided so far."""
        if self.group.is_last_rank:
            return
        for work, _ in self._on_the_way:
            work.wait()
        text = torch.tensor(list(json.dumps([_decisions(ctx) for ctx in contexts]).encode()), dtype=torch.uint8)
        parts = (torch.tensor([len(text)]), text)
        self._on_the_way = [
            (self._exchange(torch.distributed.isend, part, self.group.next_rank), part) for part in parts
        ]

    def _exchange(self, call: Any, part: Tensor, rank: int) -> Any:
        return call(part, rank, group=self.group.cpu_group, tag=TAG)


def _decisions(ctx: ForwardContext) -> dict[str, list[list[bool]]]:
    """Name of a gate -> where it is open [batch, pos]."""
    return {
        name: value.tolist()
        for name, value in ctx.scratch.items()
        if isinstance(name, str) and isinstance(value, Tensor) and value.dtype == torch.bool
    }
