"""What every attachment shares: its parts, how it is put on a model, and how one of its parts is changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn

from workbench.engine.hub import Hub
from workbench.engine.ports import first, with_first
from workbench.engine.sites import Site
from workbench.errors import UserError, unknown_name
from workbench.prompts.prompt_rows import PromptRows
from workbench.typing import Tensor

Handle = Any
"""What torch gives back for a hook."""


class Attachment(nn.Module):
    """Parameters of ours that a frozen model runs with: nothing of the model is replaced.

    Off, no hook is on the model. A subclass names its ``kind``, its ``settings`` (what its constructor takes), its
    ``parts``, and puts its hooks on a model in :meth:`installed`.
    """

    kind: ClassVar[str]
    rows: PromptRows | None = None
    """Where the prompts must have placeholders."""

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments as plain values."""
        raise NotImplementedError

    def parts(self) -> dict[str, tuple[str, int | None]]:
        """Part -> the parameter that makes it, and which slice of its first axis (None: the whole)."""
        raise NotImplementedError

    def check(self, hub: Hub) -> None:
        """Raises UserError where the model has another shape than the one it was trained on."""
        raise NotImplementedError

    def installed(self, hub: Hub) -> list[Handle]:
        """Put the hooks on the model; returns their handles."""
        raise NotImplementedError

    @property
    def norm(self) -> float:
        """The norm of all parameters together."""
        return float(torch.cat([values.detach().flatten() for values in self.parameters()]).norm())

    def random_like(self, seed: int = 0) -> Attachment:
        """The control: the same attachment with Gaussian parameters, each of the trained one's norm."""
        generator, made = torch.Generator().manual_seed(seed), copy.deepcopy(self)
        with torch.no_grad():
            for values in made.parameters():
                values.copy_(_gaussian_like(values, generator))
        return made

    @contextmanager
    def without(self, part: str, *, random: int | None = None) -> Iterator[None]:
        """Set a part to 0, or (``random``: a seed) to Gaussian values of its norm, until the context is left.

        Raises:
            UserError: There is no such part.
        """
        if part not in self.parts():
            raise unknown_name("part", part, self.parts())
        name, index = self.parts()[part]
        parameter = self.get_parameter(name)
        values = parameter.data if index is None else parameter.data[index]
        before = values.clone()
        try:
            if random is None:
                values.zero_()
            else:
                values.copy_(_gaussian_like(before, torch.Generator().manual_seed(random)))
            yield
        finally:
            values.copy_(before)


def _gaussian_like(values: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(values.shape, generator=generator)
    return (drawn * (values.detach().float().cpu().norm() / drawn.norm().clamp_min(1e-12))).to(values)


class Switch:
    """Puts an attachment on a model and takes it off; calls nest as those of PEFT's switch do."""

    def __init__(self, attachment: Attachment, hub: Hub) -> None:
        attachment.check(hub)
        self._attachment, self._hub = attachment, hub
        self._handles: list[Handle] = []

    def __call__(self, on: bool) -> bool:
        """Returns whether it was on before."""
        before = bool(self._handles)
        if on and not before:
            self._handles = self._attachment.installed(self._hub)
        elif before and not on:
            for handle in self._handles:
                handle.remove()
            self._handles = []
        return before


def at_layer(hub: Hub, layer: int) -> nn.Module:
    """The module of a whole layer."""
    return hub.module(Site("resid_post", layer))


def before_layer(hub: Hub, layer: int, change: Callable[[Tensor], Tensor | None]) -> Handle:
    """Change what a layer reads, before every other hook; None leaves it."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed = change(args[0] if args else kwargs["hidden_states"])
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    return at_layer(hub, layer).register_forward_pre_hook(hook, prepend=True, with_kwargs=True)


def after_layer(hub: Hub, layer: int, change: Callable[[Tensor], Tensor]) -> Handle:
    """Change what a layer hands on, before every other hook sees it."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        return with_first(output, change(first(output)))

    return at_layer(hub, layer).register_forward_hook(hook, prepend=True)


def check_width(hub: Hub, d_model: int, layers: int | None = None) -> None:
    """Raises UserError where the model is narrower, wider or shorter than the attachment's."""
    geometry = hub.geometry
    if geometry.d_model != d_model or (layers is not None and geometry.n_layers < layers):
        needs = f"{d_model} numbers a token" + ("" if layers is None else f" and {layers} layers")
        raise UserError(
            f"The attachment is for a model of {needs}, and this one has {geometry.d_model} and {geometry.n_layers}: "
            "give the base that it was trained on."
        )
