"""Every row of a batch runs on a path of its own: each layer skipped, the base's, or the tuned model's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import interventions as iv
from workbench.engine.families import submodule
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.typing import Int, Tensor

SKIP, SMALL, BIG = 0, 1, 2
NAMES = ("skip", "base", "tuned")


@dataclass(frozen=True, eq=False)
class RowPaths:
    """A recipe: row r runs layer l as ``paths[r, l]`` says (0 skip, 1 the base's layer, 2 the tuned model's)."""

    pair: ModelPair
    paths: Int[Tensor, "row layer"]

    @contextmanager
    def applied(self, model: AdaptedModel) -> Iterator[Any]:
        """``model`` (the tuned one) runs on these paths inside, without a cache."""
        layers = submodule(model.inner, model.hub.family.layers)
        with ExitStack() as stack:
            stack.enter_context(model.hooked([]))
            for number, layer in enumerate(layers):
                choice = self.paths[:, number]
                if bool((choice != BIG).any()):
                    handle = layer.register_forward_hook(self._hook(number, choice), with_kwargs=True)
                    stack.callback(handle.remove)
            yield

    def _hook(self, number: int, choice: Int[Tensor, " row"]) -> Callable[..., Any]:
        running = [False]

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if running[0]:
                return None
            before = args[0] if args else kwargs["hidden_states"]
            new = output[0] if isinstance(output, tuple) else output
            at = choice.to(new.device)[:, None, None]
            if bool((choice == SMALL).any()):
                running[0] = True
                try:
                    new = torch.where(at == SMALL, self._small(number, module, args, kwargs), new)
                finally:
                    running[0] = False
            new = torch.where(at == SKIP, before, new)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    def _small(self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The base's layer on the same input: another module, or this one with its adapter off."""
        if not self.pair.one_copy:
            other = submodule(self.pair.base.inner, self.pair.base.hub.family.layers)[number]
            output = other(*args, **kwargs)
        else:
            with iv.AdapterScale(layers={number: 0.0}).entered(self.pair.tuned):
                output = module.forward(*args, **kwargs)
        return output[0] if isinstance(output, tuple) else output
