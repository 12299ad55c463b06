"""What every component of a run writes into the residual stream, and the run with chosen edges fed by another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from probes.edges.graph import QKV, Graph
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.prompts.encode import Encoded
from workbench.typing import Bool, Float, Tensor

Sent = Float[Tensor, "sender prompt pos d_model"]


def sent(graph: Graph, batch: Encoded) -> tuple[Sent, Float[Tensor, "prompt vocab"]]:
    """What every sender writes in a plain run of ``batch``, and the logits of the last token."""
    run = EdgeRun(graph, None)
    logits = run(batch, None)
    return torch.stack(run.written), logits


class EdgeRun:
    """Runs of one model in which chosen edges carry what the sender wrote in another run (``other``)."""

    def __init__(self, graph: Graph, other: Sent | None) -> None:
        self.graph, self.other = graph, other
        self.written: list[Tensor] = []
        """[prompt, pos, d_model] of each sender up to now, in their order."""
        self._residual: Tensor | None = None
        self._apart = None if other is None else torch.empty_like(other)
        """[sender, prompt, pos, d_model] other - written, of the senders up to now."""

    def __call__(
        self, batch: Encoded, fed: Bool[np.ndarray, "sender receiver"] | None
    ) -> Float[Tensor, "prompt vocab"]:
        """Logits of the last token; ``fed``: the edges that carry the other run's value."""
        model, self.written = self.graph.model, []
        columns = {} if fed is None else {
            receiver: np.flatnonzero(fed[:, number])
            for number, receiver in enumerate(self.graph.receivers) if fed[:, number].any()
        }  # fmt: skip
        hooks = [SiteHook(Site("resid_pre", 0), self._keep)]
        with ExitStack() as stack, torch.no_grad():
            for layer in range(model.n_layers):
                stack.enter_context(self._reads(self.graph.norm(layer)))
                stack.enter_context(self._mlp_fed(layer, columns))
                hooks += [
                    SiteHook(Site(kind, layer), self._projection(layer, kind, columns), edit=True) for kind in QKV
                ]
                hooks += [SiteHook(Site("z", layer), self._heads(layer)), SiteHook(Site("mlp_out", layer), self._keep)]
            hooks.append(SiteHook(Site("resid_post", model.n_layers - 1), self._end(columns), edit=True))
            stack.enter_context(model.hooked(hooks))
            logits = model.forward(batch, logits="last")
        assert logits is not None
        return logits[:, -1]

    def _keep(self, value: Tensor, _ctx: ForwardContext) -> None:
        if self.other is not None and self._apart is not None:
            number = len(self.written)
            torch.sub(self.other[number], value.to(self.other), out=self._apart[number])
        self.written.append(value)

    def _heads(self, layer: int) -> Callable[[Tensor, ForwardContext], None]:
        def keep(value: Tensor, ctx: ForwardContext) -> None:
            for written in torch.einsum("bphd,hdm->hbpm", value, self.graph.out[layer].to(value)):
                self._keep(written, ctx)

        return keep

    def _moved(self, fed: Sequence[np.ndarray], value: Tensor) -> Float[Tensor, "receiver prompt pos d_model"]:
        """``value`` for each receiver, with what its fed senders wrote replaced by what they wrote in the other run."""
        assert self._apart is not None
        known = len(self.written)
        weights = torch.zeros(len(fed), known, dtype=self._apart.dtype, device=self._apart.device)
        for row, senders in enumerate(fed):
            weights[row, torch.from_numpy(senders)] = 1.0
        moves = weights @ self._apart[:known].flatten(1)
        return value + moves.unflatten(1, value.shape).to(value)

    def _projection(self, layer: int, kind: str, columns: dict[Any, np.ndarray]) -> Callable[..., Tensor | None]:
        fed = {receiver.head: senders for receiver, senders in columns.items()
               if receiver.kind == kind and receiver.layer == layer}  # fmt: skip

        def edit(value: Tensor, _ctx: ForwardContext) -> Tensor | None:
            if not fed:
                return None
            assert self._residual is not None
            new = value.clone()
            inputs = self._moved(list(fed.values()), self._residual)
            normed = self.graph.norm(layer).forward(inputs.flatten(0, 1))
            own = self.graph.projected(layer, kind, normed).unflatten(0, (len(fed), -1))
            for place, head in enumerate(fed):
                new[:, :, head] = own[place, :, :, head]
            return new

        return edit

    def _end(self, columns: dict[Any, np.ndarray]) -> Callable[[Tensor, ForwardContext], Tensor | None]:
        senders = next((column for receiver, column in columns.items() if receiver.kind == "logits"), None)
        return lambda value, _ctx: None if senders is None else self._moved([senders], value)[0]

    @contextmanager
    def _reads(self, norm: nn.Module) -> Iterator[None]:
        def note(_module: nn.Module, args: Sequence[Tensor]) -> None:
            self._residual = args[0]

        handle = norm.register_forward_pre_hook(note)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _mlp_fed(self, layer: int, columns: dict[Any, np.ndarray]) -> Iterator[None]:
        senders = next(
            (column for receiver, column in columns.items() if receiver.kind == "mlp_in" and receiver.layer == layer),
            None,
        )

        def feed(_module: nn.Module, args: Sequence[Tensor]) -> Any:
            return None if senders is None else (self._moved([senders], args[0])[0], *args[1:])

        handle = self.graph.norm(layer, mlp=True).register_forward_pre_hook(feed)
        try:
            yield
        finally:
            handle.remove()
