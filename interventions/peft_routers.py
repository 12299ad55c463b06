"""The gates of PEFT's own routers over adapters, X-LoRA and Arrow: read while the model runs, and changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workbench.errors import UserError, unknown_name
from workbench.typing import Float, Tensor

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class LiveGates:
    """Filled while the context of :func:`live_gates` is open."""

    modules: list[str]
    """Paths of the adapted modules."""
    adapters: list[str]
    passes: list[Float[Tensor, "row pos module adapter"]] = field(default_factory=list)
    """The weights that each forward pass used, in order; changes included."""

    @property
    def gates(self) -> Float[Tensor, "row pos module adapter"]:
        """Those of the last forward pass.

        Raises:
            UserError: None has run inside the context.
        """
        if not self.passes:
            raise UserError("No forward pass ran inside live_gates(): call the PeftModel within the context.")
        return self.passes[-1]

    def frame(self) -> pd.DataFrame:
        """One line per token, module and adapter of the last pass: row, position, module, adapter, weight."""
        import pandas as pd

        gates = self.gates
        names = ["row", "position", "module", "adapter"]
        levels = [range(gates.shape[0]), range(gates.shape[1]), self.modules, self.adapters]
        index = pd.MultiIndex.from_product(levels, names=names)
        return pd.DataFrame({"weight": gates.flatten().numpy()}, index=index).reset_index()


@contextmanager
def live_gates(model: Any, *, closed: Sequence[str] = (), forced: str | None = None) -> Iterator[LiveGates]:
    """Record which adapter an X-LoRA or Arrow model weighs how much for each token and module, and change it.

    Nothing of the model is replaced: without changes its logits stay bit-equal. A closed adapter's weight goes to the
    others: in X-LoRA in proportion (where the weights are a softmax), in Arrow to the next best by similarity.

    Args:
        model: A PeftModel with X-LoRA (Buehler & Buehler 2024), or made by ``peft.create_arrow_model`` (Arrow,
            Ostapenko et al. 2024).
        closed: Adapters that get weight 0.
        forced: The adapter that alone gets weight 1, on every token and module.

    Yields:
        A :class:`LiveGates`.

    Raises:
        UserError: The model has neither router, an adapter is unknown, or none would be left open.

    Example:
        ``with iv.live_gates(peft_model, closed=["0"]) as log: peft_model(**batch); log.frame()``
    """
    router = _router_of(model)
    names = router.adapters
    for name in (*closed, *(() if forced is None else (forced,))):
        if name not in names:
            raise unknown_name("adapter", name, names)
    if forced in closed or set(closed) == set(names):
        raise UserError("Every adapter is closed, or the forced one is: leave one open.")
    is_open = torch.tensor([name not in closed and forced in (None, name) for name in names])
    log = LiveGates(list(router.modules), list(names))
    with router.tapped(log, is_open, alone=forced is not None):
        yield log


class _XLora:
    """One classifier weighs all modules' adapters, in a pass of its own before each pass."""

    def __init__(self, model: nn.Module) -> None:
        tuner: Any = model.base_model
        self._tuner, self._classifier = tuner, tuner.internal_xlora_classifier
        paths = tuner.lora_model.model.named_modules()
        owners: dict[str, Any] = {path: getattr(module.forward, "__self__", None) for path, module in paths}
        routers = {path: owner for path, owner in owners.items() if hasattr(owner, "get_maybe_topk_scalings")}
        self._layers = sorted(routers.values(), key=lambda router: router.layer_number)
        self.modules = sorted(routers, key=lambda path: routers[path].layer_number)
        self.adapters = list(self._layers[0].target.active_adapters)

    @contextmanager
    def tapped(self, log: LiveGates, is_open: Tensor, *, alone: bool) -> Iterator[None]:
        def read(_module: nn.Module, _args: Any, scalings: Tensor) -> Tensor | None:
            changed = scalings
            if alone:
                changed = is_open.to(scalings).expand_as(scalings)
            elif not is_open.all():
                changed = scalings * is_open.to(scalings)
                if self._classifier.config.enable_softmax:
                    changed = changed / changed.sum(-1, keepdim=True).clamp(min=1e-12)
            used = [layer.get_maybe_topk_scalings(changed) for layer in self._layers]
            log.passes.append(torch.stack(used, dim=2).detach().float().cpu())
            return None if changed is scalings else changed

        handle = self._classifier.register_forward_hook(read)
        try:
            yield
        finally:
            handle.remove()


class _Arrow:
    """Every module weighs its adapters by how alike a token's state and the adapter's main direction are."""

    def __init__(self, model: nn.Module) -> None:
        from peft.tuners.lora.arrow import ArrowLoraLinearLayer

        layers = {path: module for path, module in model.named_modules() if isinstance(module, ArrowLoraLinearLayer)}
        self._layers = list(layers.values())
        self.modules = [path.rpartition(".lora_arrow.")[0].removeprefix("base_model.model.") for path in layers]
        self.adapters = list(self._layers[0].task_adapter_names)

    @contextmanager
    def tapped(self, log: LiveGates, is_open: Tensor, *, alone: bool) -> Iterator[None]:
        gates: list[Tensor] = []

        def tap(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            x = layer._cast_input_dtype(args[0], kwargs["lora_A"][self.adapters[0]].weight.dtype)
            weights = _arrow_weights(layer, x, is_open, alone=alone)
            gates.append(weights.detach().float().cpu())
            if len(gates) == len(self._layers):  # the modules run in the order in which they are named
                log.passes.append(torch.stack(gates, dim=2))
                gates.clear()
            if is_open.all():
                return None
            change = sum(
                weights[..., number, None] * kwargs["lora_B"][name](kwargs["lora_A"][name](x)) * kwargs["scaling"][name]
                for number, name in enumerate(self.adapters)
            )
            return kwargs["dropout"](change).to(output.dtype)

        with ExitStack() as stack:
            for layer in self._layers:
                stack.callback(layer.register_forward_hook(tap, with_kwargs=True).remove)
            yield


def _arrow_weights(
    layer: Any, x: Float[Tensor, "*place in"], is_open: Tensor, *, alone: bool
) -> Float[Tensor, "*place adapter"]:
    """As Arrow's forward pass computes them, over the open adapters."""
    if alone:
        return is_open.to(x).expand(*x.shape[:-1], -1)
    alike = (x @ layer.prototypes.to(x).T).abs().masked_fill(~is_open.to(x.device), -torch.inf)
    top = alike.topk(min(layer.top_k, int(is_open.sum())), dim=-1)
    top_only = torch.full_like(alike, -torch.inf).scatter(-1, top.indices, top.values)
    return (top_only / layer.temperature).softmax(-1)


def _router_of(model: Any) -> _XLora | _Arrow:
    if hasattr(getattr(model, "base_model", None), "internal_xlora_classifier"):
        return _XLora(model)
    configs = getattr(model, "peft_config", {})
    if any(getattr(config, "arrow_config", None) is not None for config in dict(configs).values()):
        return _Arrow(model)
    raise UserError(
        f"{type(model).__name__} has no X-LoRA or Arrow router: give a PeftModel with one, or weigh several LoRAs by "
        "interventions.AdapterRouting."
    )
