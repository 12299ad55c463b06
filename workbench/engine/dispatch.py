"""What runs at one side of one module: the interventions in their declared order, then the readers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import get_ident
from typing import TYPE_CHECKING, Any

from torch import nn

from workbench.engine.context import ForwardContext
from workbench.engine.ports import Port
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.typing import Tensor

if TYPE_CHECKING:
    from workbench.engine.attention import AttentionLogits
    from workbench.engine.hub import Hub

HookFn = Callable[[Any, ForwardContext], Any]
BiasFn = Callable[["AttentionLogits", ForwardContext], Tensor | None]


@dataclass(frozen=True)
class SiteHook:
    """``fn(value, ctx)`` at a site. An edit returns the new value or None; a reader's return is ignored.

    ``bias(attention logits, ctx)``, of an edit of a pattern that is the same as a bias on the attention logits: that
    bias, or None. It is called in place of ``fn`` where the model can run without its pattern. ``heads``: those outside
    of which the bias is 0; None: any.
    """

    site: Site
    fn: HookFn
    edit: bool = False
    bias: BiasFn | None = None
    heads: tuple[int, ...] | None = None


def layer_readers(
    kind: str, layers: Iterable[int], values: dict[int, Tensor], read: Callable[[Tensor], Tensor] = Tensor.detach
) -> list[SiteHook]:
    """Readers of one kind of site that put ``read(value)`` of every layer, at each forward pass, into ``values``."""

    def reader(layer: int) -> SiteHook:
        def store(value: Tensor, _ctx: ForwardContext) -> None:
            values[layer] = read(value)

        return SiteHook(Site(kind, layer), store)

    return [reader(layer) for layer in layers]


def on_the_cpu(value: Tensor) -> Tensor:
    """``value`` without its graph, as float32 on the CPU."""
    return value.detach().float().cpu()


_OPEN = "A context (a recipe, a recording) is open on this model: leave it before copying the model."


class StopForward(Exception):
    """Ends a forward pass after the last site that was asked for. Never seen outside the engine."""


@dataclass(eq=False)
class Entry:
    """One hook at its place, for one view of the model."""

    port: Port
    fn: HookFn
    edit: bool
    view: str
    bias: BiasFn | None = None
    heads: tuple[int, ...] | None = None
    ran: bool = False


def _named_heads(entries: list[Entry]) -> tuple[int, ...] | None:
    """The heads outside of which no entry has a bias; None: any."""
    if len(entries) == 1:
        return entries[0].heads
    named = [entry.heads for entry in entries if entry.heads is not None]
    return tuple(sorted(set().union(*named))) if len(named) == len(entries) else None


class Dispatch:
    """The entries of one (module, side), and the torch hook that runs them."""

    def __init__(self, hub: Hub, module: nn.Module, side: str) -> None:
        self.hub = hub
        self.entries: list[Entry] = []
        self.stops = 0
        self._remove = self._register(module, side)

    def __reduce_ex__(self, _protocol: Any) -> Any:
        raise UserError(_OPEN)

    def _register(self, module: nn.Module, side: str) -> Callable[[], None]:
        if side == "in":
            return module.register_forward_pre_hook(self._before, with_kwargs=True).remove
        if side == "out":
            return module.register_forward_hook(self._after).remove
        from workbench.engine import attention, experts

        if side == "pattern":
            return attention.set_tap(module, attention.Tap(self.run, self.bias))
        return experts.set_tap(module, self.run)

    def add(self, entry: Entry) -> None:
        edits = sum(entry.edit for entry in self.entries)
        self.entries.insert(edits if entry.edit else len(self.entries), entry)

    def discard(self, entry: Entry) -> bool:
        """Take an entry away; True when none is left and the torch hook is gone."""
        self.entries.remove(entry)
        if not self.entries:
            self._remove()
        return not self.entries

    def _context(self) -> ForwardContext | None:
        """The forward pass that is running here; None outside of those that are ours."""
        hub = self.hub
        ctx = hub.context
        if ctx is None or ctx.thread != get_ident():
            hub.strays += ctx is None and hub.holdings.thread == get_ident()
            return None
        return ctx

    def bias(self, logits: AttentionLogits) -> Tensor | None:
        """The sum of the entries' biases; raises :class:`NeedsPattern` where one of them works on the pattern."""
        from workbench.engine.attention import NeedsPattern

        ctx = self._context()
        if ctx is None:
            return None
        live = [entry for entry in self.entries if entry.view == self.hub.view]
        if self.stops or any(entry.bias is None for entry in live):
            raise NeedsPattern
        total = None
        logits.heads, logits.scratch = _named_heads(live), ctx.scratch
        for entry in live:
            assert entry.bias is not None
            entry.ran = True
            bias = entry.bias(logits, ctx)
            if bias is not None:
                total = bias if total is None else total + bias
        return total

    def run(self, raw: Any) -> Any:
        """The changed raw value, or None when nothing changed."""
        hub, before = self.hub, raw
        ctx = self._context()
        if ctx is None:
            return None
        for entry in self.entries:
            if entry.view != hub.view:
                continue
            entry.ran = True
            value = entry.fn(entry.port.get(raw, ctx), ctx)
            if entry.edit and value is not None:
                raw = entry.port.put(raw, value, ctx)
        if self.stops:
            raise StopForward
        return None if raw is before else raw

    def _after(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        return self.run(output)

    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = None if args else ("hidden_states" if "hidden_states" in kwargs else next(iter(kwargs)))
        changed = self.run(args[0] if key is None else kwargs[key])
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if key is None else (args, {**kwargs, key: changed})
