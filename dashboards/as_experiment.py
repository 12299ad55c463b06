"""What the app shows, as the experiment file that makes it again with ``tunescope run``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dashboards import models
from dashboards.asked import Asked
from dashboards.pair_form import PairAsked
from dashboards.parts import ADAPTER, LAYERS, Experts, Heads, Part, Saved, Weights
from workbench.errors import UserError

if TYPE_CHECKING:
    from workbench.prompts import Prompts


def steer_experiment(asked: Asked) -> str:
    """The YAML of a steer or a sweep: its answers, one step.

    Raises :class:`UserError` for a recipe that the file cannot hold as it is.
    """
    strengths = list(asked.strengths) or [asked.strength if asked.has_strength else 1.0]
    generate = {
        "do": "generate", "recipes": ["steered"], "strengths": strengths, "on": asked.side,
        "max_new_tokens": asked.max_new_tokens,
    }  # fmt: skip
    return _yaml(
        {"name": "steer", "pair": _pair(asked.base, asked.tuned, asked.device), "prompts": {"rows": [*asked.prompts]},
         "recipes": {"steered": _recipe(asked.parts)}, "steps": {"answers": generate}}
    )  # fmt: skip


def record_experiment(asked: PairAsked, prompts: Prompts) -> str:
    """The YAML of a recording."""
    step = {"do": "record", "sites": [*asked.sites], "positions": asked.positions, "new_tokens": asked.new_tokens}
    return _yaml(
        {"name": "recording", "pair": _pair(asked.base, asked.tuned, asked.device),
         "prompts": {"rows": [row.as_dict() for row in prompts]}, "steps": {"record": step}}
    )  # fmt: skip


def _yaml(values: dict[str, Any]) -> str:
    from workbench.cli.experiment.schema import Experiment

    return Experiment.of(values).to_yaml()


def _pair(base: str, tuned: str, device: str) -> dict[str, Any]:
    from_, to = models.places(base.strip(), tuned.strip())
    return {"base": from_, "tuned": to, "device": device}


def _recipe(parts: tuple[Part, ...]) -> Any:
    if len(parts) == 1 and isinstance(parts[0], Saved):
        return {"file": parts[0].path}
    return [_inline(part) for part in parts]


def _inline(part: Part) -> dict[str, Any]:
    match part:
        case Experts():
            return {"kind": "ExpertSwitch", "off": [*part.off], "on": [*part.on], "mode": part.switch_mode}
        case Heads():
            return {"kind": "HeadScale", "scales": dict(part.scales)}
        case Weights(kind=str(kind)) if kind == ADAPTER:
            return {"kind": ADAPTER, "scale": part.a}
        case Weights():
            return {"kind": LAYERS, "a": part.a, "b": part.b}
    raise UserError(
        "An experiment file names one saved recipe, or experts, heads and weights written out; this recipe is more. "
        "Use Python for it."
    )
