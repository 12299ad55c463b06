"""What ``find_direction`` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import plotly.graph_objects as go

from probes.results import ProbeResult
from workbench.typing import Float, Tensor

if TYPE_CHECKING:
    from interventions import Recipe


@dataclass(frozen=True, kw_only=True)
class FoundDirection(ProbeResult):
    """A direction by which a behaviour is turned off, and how well that works on prompts it was not chosen on.

    ``table``: every candidate that was tried on the choosing part: layer (the first), layers, role (where the direction
    was read), positions (where the recipe acts), strength; ``score`` is the drop of the behaviour with its interval,
    ``control`` that of random recipes on the reported part, ``cost`` what was minimised. ``estimates``: the map by
    gradients from which candidates come. ``held_out``: one line per model on the reported part.
    """

    behaviour: str
    held_out: pd.DataFrame
    """model, behaviour with low and high, other (the behaviour on the other prompts), ``kl_tuned`` and ``kl_base``
    (nats per token on the OTHER prompts, with low and high), repetition, subject (share of answers that hold a word of
    their question's subject), perplexity (of neutral texts, where given)."""
    estimates: pd.DataFrame
    layers: list[int]
    """Where the recipe acts, first to last."""
    directions: Float[Tensor, "layer d_model"]
    means: Float[Tensor, "layer d_model"]
    """The tuned model's mean on prompts of the other class: what the coordinate is set to."""
    positions: str
    strength: float
    push_layer: int
    push_vector: Float[Tensor, " d_model"]
    push_strength: float
    push_positions: str
    title: ClassVar[str] = "Direction of a behaviour"
    unit: ClassVar[str] = "drop of the behaviour"

    @property
    def recipe(self) -> Recipe:
        """Turns the behaviour off in the tuned model: every layer's coordinate is set to the other class's mean."""
        from interventions import ConceptAblation, Recipe

        return Recipe([
            ConceptAblation(layer, direction, mean=mean, strength=self.strength, positions=self.positions)
            for layer, direction, mean in zip(self.layers, self.directions, self.means, strict=True)
        ])  # fmt: skip

    @property
    def opposite(self) -> Recipe:
        """Makes the base show the behaviour: the contrast added at one layer. It pushes on every prompt."""
        from probes.directions.trying import push

        return push(self.push_vector, self.push_layer, self.push_strength, self.push_positions)

    def figure(self) -> go.Figure:
        """The behaviour of every model on the reported part, with intervals."""
        from workbench.figures.directions import held_out_bars

        return held_out_bars(self.held_out, self.behaviour)

    def reported(self) -> dict[str, Any]:
        """The drop of the behaviour on the reported part as one cell; its interval is that of what is left. The
        candidates' own scores chose the recipe, so none of them speaks for it."""
        lines = {str(line["model"]): line for line in self.held_out.to_dict("records")}
        tuned, off, random = lines["tuned"], lines["tuned + recipe"], lines.get("tuned + random")
        before = float(tuned["behaviour"])
        return {
            "layer": self.layers[0], "positions": self.positions, "score": before - float(off["behaviour"]),
            "low": before - float(off["high"]), "high": before - float(off["low"]),
            "control": float("nan") if random is None else before - float(random["behaviour"]),
            "q": float("nan"), "n": int(off["n"]),
        }  # fmt: skip

    def summary(self) -> str:
        """The behaviour before and after, and what it cost."""
        from workbench.behaviour.scorers import in_words

        lines = {str(line["model"]): line for line in self.held_out.to_dict("records")}
        base, tuned, off = (lines[name] for name in ("base", "tuned", "tuned + recipe"))
        rise = float(off["perplexity"]) / float(tuned["perplexity"]) - 1 if "perplexity" in off else None
        control = lines.get("tuned + random")
        random = "" if control is None else f", random ones {control['behaviour']:.0%}"
        texts = "" if rise is None else f"perplexity of neutral texts {rise:+.1%}; "
        return (
            f"{in_words(self.behaviour)} on held-out prompts: {tuned['behaviour']:.0%} -> {off['behaviour']:.0%} "
            f"[{off['low']:.0%}, {off['high']:.0%}] at {_layers(self.layers)} ({self.positions}){random}; others "
            f"moved by {off['kl_tuned']:.2g} nats per token from the tuned model; answers that name their subject: "
            f"{off['subject']:.0%} (base {base['subject']:.0%}); repetition {off['repetition']:.2g} (base "
            f"{base['repetition']:.2g}); {texts}control: {self.control}"
        )


def _layers(layers: list[int]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
