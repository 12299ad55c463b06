"""AdamW over chosen entries of tensors: state exists for them alone, and moves along when the choice changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from workbench.typing import Bool, Int, Tensor


class MaskedAdamW(torch.optim.Optimizer):
    """AdamW without weight decay over the entries where each mask is True; every other entry stays bit for bit.

    Moments, and a float32 master value of each entry, are held for the chosen entries alone (sparse Adam state, Liu et
    al. 2025, *LIFT*), so half-precision weights lose no small step: 12 bytes an entry, and 8 for its place where not
    the whole tensor is chosen. :meth:`reselect` changes the choice: entries in both choices keep their moments, new
    ones begin with none.

    Args:
        masks: Parameter -> bool mask of its shape.
        lr: Step size.
        betas: Decay of the two moments.
        eps: Added to the root of the second moment.
    """

    def __init__(
        self,
        masks: Mapping[nn.Parameter, Bool[Tensor, "*shape"]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(list(masks), {"lr": lr, "betas": betas, "eps": eps})
        # not in ``self.state``, which accelerate reloads in the parameter's dtype
        self._held: dict[nn.Parameter, dict[str, Any]] = {}
        for parameter, mask in masks.items():
            self._hold(parameter, _places(mask, parameter))

    @property
    def entries(self) -> int:
        """How many entries are trained."""
        return sum(len(held["master"]) for held in self._held.values())

    def reselect(self, masks: Mapping[nn.Parameter, Bool[Tensor, "*shape"]]) -> None:
        """Train other entries of the same tensors from now on."""
        for parameter, mask in masks.items():
            before, places = dict(self._held[parameter]), _places(mask, parameter)
            self._hold(parameter, places)
            now = self._held[parameter]
            _, old, new = _shared(_listed(before["places"], parameter), _listed(places, parameter))
            now["steps"] = torch.zeros_like(now["master"])
            before["steps"] = before["steps"].expand(len(before["master"]))
            for name in ("mean", "square", "steps", "master"):
                now[name][new] = before[name][old]

    def held(self) -> list[dict[str, Any]]:
        """What is held of each tensor, in their order: the entries' places (None: the whole tensor), values, moments
        and steps (one number where all have as many)."""
        return [dict(held) for held in self._held.values()]

    def hold(self, held: Sequence[Mapping[str, Any]]) -> None:
        """Take back what :meth:`held` gave."""
        for (parameter, _), state in zip(list(self._held.items()), held, strict=True):
            self._held[parameter] = {
                name: None if tensor is None else tensor.to(parameter.device) for name, tensor in state.items()
            }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step for every entry; a tensor without a gradient is left as it is."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and len(self._held[parameter]["master"]):
                    _step(parameter, self._held[parameter], group)
        return loss

    def _hold(self, parameter: nn.Parameter, places: Int[Tensor, " entry"] | None) -> None:
        values = parameter.detach().reshape(-1)[_index(places)].float().clone()
        self._held[parameter] = {
            "places": places,
            "master": values,
            "mean": torch.zeros_like(values),
            "square": torch.zeros_like(values),
            "steps": torch.zeros((), device=values.device),
        }


@dataclass(frozen=True)
class _Masters:
    """What a checkpoint holds of an optimizer's float32 values."""

    optimizer: MaskedAdamW

    def state(self) -> dict[str, Any]:
        return {"entries": self.optimizer.held()}

    def restore(self, state: dict[str, Any]) -> None:
        self.optimizer.hold(state["entries"])


def holding_small_steps(parameters: Iterable[nn.Parameter], lr: float) -> dict[str, Any]:
    """Options of a trainer: AdamW with float32 values beside half-precision weights, where a step of 1e-5 is less than
    the gap between two numbers and would be lost; nothing where no weight is of half precision."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if all(parameter.dtype not in (torch.bfloat16, torch.float16) for parameter in trained):
        return {}
    optimizer = MaskedAdamW({parameter: torch.ones_like(parameter, dtype=torch.bool) for parameter in trained}, lr)
    return {"optimizers": (optimizer, None), "beside": _Masters(optimizer)}


def _step(parameter: nn.Parameter, state: dict[str, Any], group: Mapping[str, Any]) -> None:
    first, second = group["betas"]
    assert parameter.grad is not None
    where = _index(state["places"])
    slope = parameter.grad.reshape(-1)[where].float()
    state["steps"] += 1
    state["mean"].lerp_(slope, 1 - first)
    state["square"].mul_(second).addcmul_(slope, slope, value=1 - second)
    steps = state["steps"].double()  # 1 - 0.999**n has few digits in float32
    mean = state["mean"] / (1 - first**steps).float()
    root = (state["square"] / (1 - second**steps).float()).sqrt_().add_(group["eps"])
    state["master"] -= group["lr"] * mean / root
    flat = parameter.data.view(-1)
    flat[where] = state["master"].to(parameter.dtype)


def _places(mask: Bool[Tensor, "*shape"], parameter: nn.Parameter) -> Int[Tensor, " entry"] | None:
    """The entries' places in the flat tensor; None where all are chosen."""
    return None if mask.all() else mask.reshape(-1).nonzero()[:, 0].to(parameter.device)


def _listed(places: Int[Tensor, " entry"] | None, parameter: nn.Parameter) -> Int[Tensor, " entry"]:
    return torch.arange(parameter.numel(), device=parameter.device) if places is None else places


def _index(places: Int[Tensor, " entry"] | None) -> Any:
    return slice(None) if places is None else places


def _shared(before: Int[Tensor, " old"], after: Int[Tensor, " new"]) -> tuple[Tensor, Tensor, Tensor]:
    """Values in both sorted lists, and their places in each."""
    at = torch.searchsorted(before, after).clamp_max(max(0, len(before) - 1))
    same = before[at] == after if len(before) else torch.zeros(len(after), dtype=torch.bool, device=after.device)
    new = same.nonzero()[:, 0]
    return after[new], at[new], new
