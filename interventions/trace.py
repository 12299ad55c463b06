"""What a recipe did: which intervention fired at which layer, row and position, how often, and by how much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from workbench.cards import card
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.routing import Routing
from workbench.typing import Float, Int, Tensor

if TYPE_CHECKING:
    import pandas as pd

    from workbench.engine.attention import AttentionLogits

Watch = Callable[[int, str, Tensor, Tensor, ForwardContext], None]
"""Called with (layer, name of the place, old value, new value, forward pass) by what changes values beside sites."""
NO_LAYER = -1
"""What stands for the layer of what belongs to none: the logits."""
_WATCHED: ContextVar[tuple[Trace, int, str] | None] = ContextVar("_WATCHED", default=None)
_KEYS = ("intervention", "kind", "layer", "site", "row", "position")


@dataclass(frozen=True)
class _Fired:
    """One call of one hook that changed something."""

    intervention: int
    kind: str
    layer: int
    site: str
    rows: Int[Tensor, " batch"]
    positions: Int[Tensor, "batch pos"]
    norms: Float[Tensor, "batch pos"]
    path: str = "value"


@dataclass
class Trace:
    """Filled while the context is open; empty unless the recipe was applied with ``trace=True``."""

    calls: list[_Fired] = field(default_factory=list)

    def watched(self, hook: SiteHook, place: int, kind: str) -> SiteHook:
        """``hook``, writing down what it changes as intervention number ``place``."""
        assert hook.site.layer is not None
        layer = hook.site.layer

        def edit(value: Any, ctx: ForwardContext) -> Any:
            new = hook.fn(value, ctx)
            if new is not None:
                norms = _change(value, new, pattern=hook.site.kind == "pattern")
                self.calls.append(_Fired(place, kind, layer, hook.site.name, ctx.rows, ctx.index, norms.detach()))
            return new

        def bias(logits: AttentionLogits, ctx: ForwardContext) -> Tensor | None:
            assert hook.bias is not None
            added = hook.bias(logits, ctx)
            if added is not None:
                whole = added.detach().float().expand(ctx.batch, -1, ctx.length, -1)
                norms = whole.norm(dim=(1, 3))
                self.calls.append(
                    _Fired(place, kind, layer, hook.site.name, ctx.rows, ctx.index, norms, "attention mask")
                )
            return added

        return replace(hook, fn=edit, bias=None if hook.bias is None else bias)

    @contextmanager
    def watching(self, place: int, kind: str) -> Iterator[None]:
        """What is entered inside, and acts at no site, writes here what it changes (:func:`watch`)."""
        token = _WATCHED.set((self, place, kind))
        try:
            yield
        finally:
            _WATCHED.reset(token)

    def frame(self) -> pd.DataFrame:
        """One line per intervention, layer, site, row (prompt) and position that was changed.

        ``times``: in how many forward passes; ``norm``: mean norm of the change (of a routing: of the experts'
        weights; of a pattern: over heads and keys). ``path``: where it acted, on the ``value`` of the site or through
        the ``attention mask``, where the norm is that of what is added to the attention logits and sdpa stays. At the
        ``logits`` (layer -1) the norm is half the sum of what the next token's probabilities moved by. What changes
        weights (``Graft``, ``AdapterScale``, ``LayerScale``) acts on all tokens of all rows and has no lines.
        """
        import pandas as pd

        tables = [_table(call) for call in self.calls]
        if not tables:
            return pd.DataFrame(columns=[*_KEYS, "path", "times", "norm"])
        grouped = pd.concat(tables, ignore_index=True).groupby([*_KEYS, "path"], sort=True)["norm"]
        return grouped.agg(times="size", norm="mean").reset_index()

    def __len__(self) -> int:
        return len(self.calls)

    def __repr__(self) -> str:
        return f"Trace({len(self.calls)} calls; .frame() for where and how much)"

    def _repr_html_(self) -> str:
        import pandas as pd

        counted = Counter((call.intervention, call.kind, call.site) for call in self.calls)
        lines = [[*place, times] for place, times in counted.items()]
        table = pd.DataFrame(lines, columns=["intervention", "kind", "site", "calls"])
        return card("Trace", table=table, notes=["Where, when and by how much: .frame()"])


def watch() -> Watch | None:
    """Where to write what is changed, taken while an intervention is entered; None when nobody traces."""
    watched = _WATCHED.get()
    if watched is None:
        return None
    log, place, kind = watched

    def write(layer: int, site: str, old: Tensor, new: Tensor, ctx: ForwardContext) -> None:
        norms = _moved(old, new) if layer == NO_LAYER else _change(old, new, pattern=False)
        index = ctx.index[:, -norms.shape[1] :]
        log.calls.append(_Fired(place, kind, layer, site, ctx.rows, index, norms.detach()))

    return write


def _moved(old: Tensor, new: Tensor) -> Float[Tensor, "batch pos"]:
    """Total variation of what the logits say of the next token."""
    return (new.float().softmax(-1) - old.float().softmax(-1)).abs().sum(-1) / 2


def _change(old: Any, new: Any, *, pattern: bool) -> Float[Tensor, "batch pos"]:
    if isinstance(old, Routing):
        return (_dense(new) - _dense(old)).norm(dim=-1)
    difference = new.float() - old.float()
    return difference.norm(dim=(1, 3)) if pattern else difference.flatten(2).norm(dim=-1)


def _dense(routing: Routing) -> Float[Tensor, "batch pos expert"]:
    """The weight of every expert, 0 where it is not selected."""
    empty = torch.zeros(routing.logits.shape, dtype=torch.float32, device=routing.logits.device)
    return empty.scatter_add(-1, routing.experts, routing.weights.float())


def _table(call: _Fired) -> pd.DataFrame:
    import pandas as pd

    rows = call.rows[:, None].expand_as(call.norms)
    changed = call.norms != 0
    return pd.DataFrame({
        "intervention": call.intervention,
        "kind": call.kind,
        "layer": call.layer,
        "site": call.site,
        "row": rows[changed].cpu().numpy(),
        "position": call.positions[changed].cpu().numpy(),
        "path": call.path,
        "norm": call.norms[changed].cpu().numpy(),
    })  # fmt: skip
