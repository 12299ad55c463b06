"""A model that computes with blended weights, made where they are needed and thrown away at once.

A module's weights are blended just before it runs and released right after; the backward pass makes them again
instead of keeping them. So of what is as large as the weights grafting holds base, tuned, logits (float32) and slopes
(float16), and a gradient of one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from probes.grafting.regions import Region
from probes.grafting.units import Mask
from workbench.errors import UserError
from workbench.models.adapter_layers import bare_module
from workbench.typing import Tensor


@dataclass
class Blender:
    """Runs ``model`` with blended weights; ``region`` names parameters of the bare model under any adapter."""

    model: nn.Module
    region: Region
    anchor: Tensor = field(init=False, repr=False)
    """What blended weights hang on in the graph: ``torch.autograd.grad`` with respect to it runs the backward pass
    and leaves every ``.grad`` of the model alone."""
    _value: Callable[[str], Tensor] = field(init=False, repr=False)
    _receive: Callable[[str, Tensor], None] | None = field(init=False, repr=False, default=None)
    _live: dict[int, str] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.anchor = torch.zeros((), requires_grad=True)
        known = dict(_owners(self.model))
        if absent := sorted(set(self.region.parts) - set(known)):
            raise UserError(f"{absent[0]} is no parameter of this model; graft between versions of one model.")
        self._places: dict[nn.Module, dict[str, str]] = {}
        for name in self.region.parts:
            module, attribute = known[name]
            self._places.setdefault(module, {})[attribute] = name

    @contextmanager
    def hard(self, mask: Mask | Callable[[str], Tensor]) -> Iterator[nn.Module]:
        """select(mask, tuned, base), bit for bit, without gradients. A function is asked for one mask at a time."""
        parts, of = self.region.parts, mask if callable(mask) else mask.__getitem__
        with torch.no_grad(), self._entered(lambda name: parts[name].selected(of(name)), None) as model:
            yield model

    @contextmanager
    def soft(self, gamma: Callable[[str], Tensor], add: Callable[[str, Tensor], object]) -> Iterator[nn.Module]:
        """base + gamma * (tuned - base); backward calls ``add`` with the loss's slope along each unit of a part.

        Both functions are given a part's name; ``gamma`` is asked twice, in the forward and the backward pass.
        """
        parts = self.region.parts

        def value(name: str) -> Tensor:
            return parts[name].mixed(gamma(name))

        def receive(name: str, gradient: Tensor) -> None:
            add(name, parts[name].effect(gradient))

        with torch.enable_grad(), self._entered(value, receive) as model:
            yield model

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of a loss computed inside :meth:`soft`."""
        torch.autograd.grad(loss, self.anchor, allow_unused=True)

    @contextmanager
    def _entered(
        self, value: Callable[[str], Tensor], receive: Callable[[str, Tensor], None] | None
    ) -> Iterator[nn.Module]:
        self._value, self._receive = value, receive
        with ExitStack() as stack:
            stack.callback(self._forget)
            for module in self._places:
                before = module.register_forward_pre_hook(self._blend)
                after = module.register_forward_hook(self._restore, always_call=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack))
            yield self.model

    def _forget(self) -> None:
        """Let go of the masks or logits, which are as large as the weights."""
        self._value, self._receive = _outside, None
        self._live.clear()

    def _blend(self, module: nn.Module, _: Any) -> None:
        module.__dict__["_own_weights"] = dict(module._parameters)
        for attribute, name in self._places[module].items():
            if self._receive is None:
                blended = self._value(name)
            else:
                blended = _Blended.apply(self.anchor, self, name)
            self._live[blended.untyped_storage().data_ptr()] = name
            module._parameters[attribute] = blended  # type: ignore[assignment]

    def _restore(self, module: nn.Module, *_: Any) -> None:
        own = module.__dict__.pop("_own_weights")
        for attribute in self._places[module]:
            blended: Any = module._parameters[attribute]
            self._live.pop(blended.untyped_storage().data_ptr(), None)
            module._parameters[attribute] = own[attribute]

    def _pack(self, tensor: Tensor) -> Any:
        name = self._live.get(tensor.untyped_storage().data_ptr())
        if name is None:
            return tensor
        return name, tensor.shape, tensor.stride(), tensor.storage_offset()

    def _unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        name, shape, stride, offset = packed
        with torch.no_grad():
            return self._value(name).contiguous().as_strided(shape, stride, offset)


def _outside(name: str) -> Tensor:
    raise RuntimeError(f"{name} was asked for outside a blending context; run the backward pass inside it")


class _Blended(torch.autograd.Function):
    """Makes a blended weight; its gradient goes to the blender at once and is not kept."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, blender: Blender, name: str) -> Tensor:  # noqa: ARG004
        ctx.blender, ctx.name = blender, name
        return blender._value(name).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, None, None]:
        with torch.no_grad():
            ctx.blender._receive(ctx.name, gradients[0])
        return None, None, None


def _owners(root: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """Parameter name, as in the bare model -> the module that holds it and the attribute's name."""
    bare = root.get_base_model() if hasattr(root, "get_base_model") else root  # type: ignore[operator]
    yield from _owned(bare, "")


def _owned(module: nn.Module, prefix: str) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    module = bare_module(module) or module
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield prefix + name, (module, name)
    for name, child in module._modules.items():
        if child is not None:
            yield from _owned(child, f"{prefix}{name}.")
