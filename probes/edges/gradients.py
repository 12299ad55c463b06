"""The gradient of a metric by what every receiver is fed, along the straight line between two inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from probes.edges.graph import QKV, Graph
from probes.patches.metrics import Metric
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.prompts.encode import Encoded
from workbench.typing import Float, Tensor


def mean_gradients(
    graph: Graph, batch: Encoded, ends: tuple[Tensor, Tensor], metric: Metric, steps: int
) -> Float[Tensor, "receiver prompt pos d_model"]:
    """Mean over ``steps`` points between the embeddings ``ends`` (from, to) of the gradient at each receiver's input.

    The points are the middles of equal parts of the line (Hanna et al. 2024 take the parts' ends).
    """
    total: Tensor | None = None
    for step in range(steps):
        share = (step + 0.5) / steps
        start = torch.lerp(ends[0], ends[1], share)
        gradients = _Differentiated(graph, start).gradients(batch, metric)
        total = gradients if total is None else total + gradients
    assert total is not None
    return total / steps


class _Differentiated:
    """One forward pass that begins at ``start`` and keeps what its receivers are fed."""

    def __init__(self, graph: Graph, start: Float[Tensor, "prompt pos d_model"]) -> None:
        self.graph, self.start = graph, start
        self.values: dict[tuple[str, int], Tensor] = {}
        self.residuals: dict[int, Tensor] = {}

    def gradients(self, batch: Encoded, metric: Metric) -> Float[Tensor, "receiver prompt pos d_model"]:
        """In the order of the graph's receivers."""
        model = self.graph.model
        leaf = self.start.detach().requires_grad_()
        hooks = [SiteHook(Site("resid_pre", 0), lambda _value, _ctx: leaf, edit=True)]
        with ExitStack() as stack:
            for layer in range(model.n_layers):
                stack.enter_context(self._noted(layer))
                stack.enter_context(self._parted(layer))
                hooks += [SiteHook(Site(kind, layer), self._kept((kind, layer)), edit=True) for kind in QKV]
            last = model.n_layers - 1
            hooks.append(SiteHook(Site("resid_post", last), self._kept(("logits", last)), edit=True))
            stack.enter_context(model.hooked(hooks))
            stack.enter_context(torch.enable_grad())
            logits = model.forward(batch, logits="last", grad=True)
            assert logits is not None
            places = list(self.values)
            gradients = torch.autograd.grad(metric(logits[:, -1:]).sum(), [self.values[place] for place in places])
        return self._by_receiver(dict(zip(places, gradients, strict=True)))

    def _by_receiver(self, gradients: dict[tuple[str, int], Tensor]) -> Tensor:
        parts: list[Tensor] = []
        for layer in range(self.graph.model.n_layers):
            for kind in QKV:
                matrix = self.graph.matrix(layer, kind).to(gradients[kind, layer])
                parts += self._through_norm(layer, torch.einsum("bphd,mhd->hbpm", gradients[kind, layer], matrix))
            parts.append(gradients["mlp_in", layer])
        parts.append(gradients["logits", self.graph.model.n_layers - 1])
        return torch.stack([part.detach() for part in parts])

    def _through_norm(self, layer: int, wanted: Float[Tensor, "head prompt pos d_model"]) -> list[Tensor]:
        """Gradients by the norm's input from those by its output."""
        with torch.enable_grad():
            inputs = self.residuals[layer].detach().expand_as(wanted).reshape(-1, *wanted.shape[2:]).requires_grad_()
            normed = self.graph.norm(layer).forward(inputs)
            (by_input,) = torch.autograd.grad(normed, inputs, wanted.flatten(0, 1))
        return list(by_input.unflatten(0, wanted.shape[:2]))

    def _kept(self, place: tuple[str, int]) -> Callable[[Tensor, ForwardContext], Tensor]:
        def keep(value: Tensor, _ctx: ForwardContext) -> Tensor:
            self.values[place] = value
            return value

        return keep

    @contextmanager
    def _noted(self, layer: int) -> Iterator[None]:
        def note(_module: nn.Module, args: Sequence[Tensor]) -> None:
            self.residuals[layer] = args[0]

        handle = self.graph.norm(layer).register_forward_pre_hook(note)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _parted(self, layer: int) -> Iterator[None]:
        """The MLP's branch as a value of its own, beside the residual stream that goes on."""

        def part(_module: nn.Module, args: Sequence[Tensor]) -> Any:
            branch = self.values["mlp_in", layer] = args[0].clone()
            return (branch, *args[1:])

        handle = self.graph.norm(layer, mlp=True).register_forward_pre_hook(part)
        try:
            yield
        finally:
            handle.remove()
