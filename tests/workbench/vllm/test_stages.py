"""What passes between the stages of a pipeline, without vLLM: it runs everywhere."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn

from workbench.engine.context import ForwardContext
from workbench.engine.dispatch import SiteHook
from workbench.engine.row_context import row_context
from workbench.engine.sites import Site
from workbench.errors import NotSupported
from workbench.vllm.layout import place_of
from workbench.vllm.stages import Neighbours, Sight, sendable, with_edits
from workbench.vllm.tap import Tap

SITE = Site("resid_post", 2)


def pass_of(*ids: int) -> ForwardContext:
    """A prefill of one row."""
    return row_context(torch.tensor([ids]), 0, len(ids), None)


def test_readers_see_what_another_stage_saw() -> None:
    seen: list[Any] = []
    reader = SiteHook(SITE, lambda value, ctx: seen.append((value, ctx)))
    edit = SiteHook(SITE, pass_of, edit=True)
    hooks = {0: [edit, reader], 1: [reader]}
    sent = pickle.loads(pickle.dumps(sendable(hooks, stages=True)))
    assert with_edits(sent) and [hook.edit for hook in sent[0]] == [True, False]
    assert sendable(hooks, stages=False) == {0: [edit]}

    sight, value, ids = Sight(), torch.arange(6.0).reshape(1, 2, 3), torch.tensor([[7, 8]])
    reading, there = sight.reading(sent), row_context(ids, 3, 5, None)
    assert reading[0][0].fn is sent[0][0].fn
    reading[0][1].fn(value, there)
    value += 1  # an engine's buffers are written again in the next step
    ids += 1
    back = pickle.loads(pickle.dumps(sight))
    back.show(hooks, None)
    ((shown, ctx),) = seen
    assert torch.equal(shown, torch.arange(6.0).reshape(1, 2, 3))
    assert ctx.input_ids.tolist() == [[7, 8]] and (ctx.start, ctx.decoding) == (3, False)

    back.failure = NotSupported("Not here.")
    with pytest.raises(NotSupported, match=r"Not here\."):
        back.show(hooks, None)


class _Line:
    """torch.distributed between two stages of one process: what was sent is received in its order."""

    def __init__(self) -> None:
        self.sent: list[torch.Tensor] = []

    def isend(self, part: torch.Tensor, rank: int, group: Any, tag: int) -> _Line:
        assert (rank, group) == (1, self)
        self.sent.append(part.clone())
        return self

    def recv(self, part: torch.Tensor, rank: int, group: Any, tag: int) -> None:
        assert (rank, group) == (0, self)
        part.copy_(self.sent.pop(0))

    def wait(self) -> None:
        pass


class _Stage:
    def __init__(self, line: _Line, *, first: bool) -> None:
        self.is_first_rank, self.is_last_rank = first, not first
        self.prev_rank, self.next_rank, self.cpu_group = 0, 1, line


def test_a_gate_reaches_the_next_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    line = _Line()
    monkeypatch.setattr(torch.distributed, "isend", line.isend)
    monkeypatch.setattr(torch.distributed, "recv", line.recv)
    before, after = (Neighbours(_Stage(line, first=first)) for first in (True, False))
    for fired in ([[True, False, True]], [[False, False, True]]):
        here, there = [pass_of(1), pass_of(1, 2, 3)], [pass_of(1), pass_of(1, 2, 3)]
        here[1].scratch.update({"gate a": torch.tensor(fired), "scope": object(), ("own", 3): torch.tensor([True])})
        before.receive(here)
        before.send(here)
        after.receive(there)
        after.send(there)
        assert there[0].scratch == {} and list(there[1].scratch) == ["gate a"]
        assert there[1].scratch["gate a"].tolist() == fired
    assert not line.sent


class PPMissingLayer(nn.Identity):
    """As vLLM names the place of a layer that another stage holds."""


def test_a_layer_of_another_stage_has_no_place_here() -> None:
    model = nn.Module()
    model.model = nn.Module()
    model.model.layers = nn.ModuleList([PPMissingLayer(), nn.Linear(2, 2)])
    assert place_of(model, Site("mlp_out", 0)) is None
    place = place_of(model, Site("resid_post", 1))
    assert place is not None and place.module is model.model.layers[1]


def test_a_stage_keeps_what_a_hook_refuses_until_the_call_is_through() -> None:
    def refuses(_value: torch.Tensor, _ctx: ForwardContext) -> None:
        raise NotSupported("Not here.")

    hook, tap = SiteHook(SITE, refuses, edit=True), Tap(None, None, defers=True)
    assert tap._called(hook, torch.zeros(1, 1, 2), pass_of(1)) is None
    assert str(tap.failure) == "Not here."
    tap.defers = False
    with pytest.raises(NotSupported):
        tap._called(hook, torch.zeros(1, 1, 2), pass_of(1))
