"""Trying a subspace out: swaps, set values, and their controls, all as new residuals at the last token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from probes.knob.intents import IntentPairs, partners
from probes.knob.subspace import random_basis, set_to, swap
from probes.replay import LastToken
from probes.scored import scored_share
from workbench.models.adapted import AdaptedModel
from workbench.typing import Bool, Float, Int, Tensor


@dataclass(frozen=True)
class Trial:
    """Pairs on a model, ready for any change of the residual at their last token."""

    model: str
    pairs: IntentPairs
    last: LastToken

    @classmethod
    def of(cls, name: str, model: AdaptedModel, pairs: IntentPairs, batch_size: int) -> Trial:
        """Run every row of ``pairs`` once through ``model``."""
        return cls(name, pairs, LastToken(model, pairs.ids, batch_size))

    def ends(self, layer: int) -> Float[Tensor, "row d_model"]:
        """The residual after ``layer`` at the last token."""
        return self.last.ends[layer].float()

    def says(self, layer: int, ends: Float[Tensor, "row d_model"]) -> Int[Tensor, " row"]:
        """The next token, when the residual after ``layer`` is ``ends``."""
        return self.last.all_after(layer, ends).argmax(-1)

    def right(self) -> Bool[Tensor, " row"]:
        """Whether the untouched model's next token begins the row's own answer."""
        return self.last.logits.argmax(-1) == self.pairs.answers

    def swapped(self, layer: int, basis: Float[Tensor, "d_model rank"]) -> np.ndarray:
        """[pair] share of the two swaps after which the model gives the partner's answer."""
        ends = self.ends(layer)
        says = self.says(layer, swap(ends, ends[partners(len(ends))], basis))
        return per_pair(says == self.pairs.wanted)

    def patched(self, layer: int) -> np.ndarray:
        """[pair] the same for the whole residual: activation patching, the most that any subspace can do."""
        ends = self.ends(layer)
        says = self.says(layer, ends[partners(len(ends))])
        return per_pair(says == self.pairs.wanted)

    def answers_of(self, intent: int) -> Int[Tensor, " row"]:
        """Each row's answer under intent 0 or 1, whatever its own intent."""
        return self.pairs.answers[intent::2].repeat_interleave(2)


def per_pair(hits: Bool[Tensor, " row"]) -> np.ndarray:
    """[pair] mean of the pair's two rows."""
    return hits.float().reshape(-1, 2).mean(1).numpy()


def random_bases(width: int, rank: int, draws: int, seed: int) -> list[Float[Tensor, "d_model rank"]]:
    """The control subspaces: the same for every layer and model."""
    return [random_basis(width, rank, seed * 7919 + 1000 + draw) for draw in range(draws)]


@dataclass(frozen=True)
class Axis:
    """A subspace with the line through it that joins the two intents' means.

    ``value`` along the line is the knob's setting; coordinates across it stay at ``offset``. For rank 1 the
    setting is the coordinate itself.
    """

    basis: Float[Tensor, "d_model rank"]
    line: Float[Tensor, " rank"]
    offset: Float[Tensor, " rank"]

    @classmethod
    def through(cls, basis: Float[Tensor, "d_model rank"], ends: Float[Tensor, "row d_model"]) -> Axis:
        """From the mean of the second intent's rows to that of the first's."""
        inside = ends @ basis
        gap = inside[0::2].mean(0) - inside[1::2].mean(0)
        if basis.shape[1] == 1 and gap.item() < 0:  # the sign of a direction is arbitrary: make it the intents'
            return cls.through(-basis, ends)
        line = gap / gap.norm().clamp_min(1e-12)
        centre = inside.mean(0)
        return cls(basis, line, centre - (centre @ line) * line)

    def read(self, ends: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
        """The natural setting of each row."""
        return (ends @ self.basis) @ self.line

    def point(self, value: float) -> Float[Tensor, " rank"]:
        """The coordinates in the basis of a setting."""
        return self.offset + value * self.line

    def set(self, ends: Float[Tensor, "row d_model"], value: float) -> Float[Tensor, "row d_model"]:
        """``ends`` with the knob set to ``value``."""
        return set_to(ends, self.basis, self.point(value))


def natural_settings(trial: Trial, layer: int, axis: Axis) -> pd.DataFrame:
    """The coordinate of every row as the model left it: model, group, intent, value."""
    values = axis.read(trial.ends(layer)).numpy()
    return pd.DataFrame(
        {
            "model": trial.model,
            "group": np.repeat(trial.pairs.groups, 2),
            "intent": np.tile(trial.pairs.intents, len(trial.pairs)),
            "value": values,
        }
    )


def sweep(
    trial: Trial, layer: int, axis: Axis, values: Sequence[float], controls: Sequence[Tensor], seed: int = 0
) -> pd.DataFrame:
    """Dose and response: the share of rows that give each intent's answer when the knob is set to each value.

    The control moves each row just as far along random directions: ``direction`` is "knob" (interval over
    pairs) or "random" (mean and range over draws).
    """
    ends = trial.ends(layer)
    rows = []
    for value in values:
        changed = axis.set(ends, value)
        rows += _shares(trial, value, "knob", [trial.says(layer, changed)], seed)
        if controls:
            distance = (changed - ends) @ axis.basis
            moved = [trial.says(layer, ends + distance @ basis.T) for basis in controls]
            rows += _shares(trial, value, "random", moved, seed)
    return pd.DataFrame(rows)


def _shares(trial: Trial, value: float, direction: str, says: list[Tensor], seed: int) -> list[dict]:
    rows = []
    for number, intent in enumerate(trial.pairs.intents):
        hits = np.stack([per_pair(words == trial.answers_of(number)) for words in says])
        if direction == "knob":
            band = scored_share(hits[0], name="share", seed=seed)
        else:
            means = hits.mean(1)
            band = {"share": float(means.mean()), "low": float(means.min()), "high": float(means.max())}
        cell = {"model": trial.model, "direction": direction, "value": value, "intent": intent}
        rows.append({**cell, **band})
    return rows


def flips(
    trial: Trial, layer: int, axis: Axis, settings: dict[str, float], controls: Sequence[Tensor], seed: int = 0
) -> pd.DataFrame:
    """Per intent: of the rows asked for the other one, the share that its setting makes give this one's answer."""
    ends = trial.ends(layer)
    rows = []
    for number, (intent, value) in enumerate(settings.items()):
        others = slice(1 - number, None, 2)
        target = trial.answers_of(number)
        before = trial.last.logits.argmax(-1) == target
        changed = axis.set(ends, value)
        hits = (trial.says(layer, changed) == target)[others].float().numpy()
        distance = (changed - ends) @ axis.basis
        control = [
            (trial.says(layer, ends + distance @ basis.T) == target)[others].float().mean().item() for basis in controls
        ]
        rows.append(
            {
                "model": trial.model,
                "intent": intent,
                "value": value,
                **scored_share(hits, name="share", seed=seed),
                "before": before[others].float().mean().item(),
                "control": float(np.mean(control)),
            }
        )
    return pd.DataFrame(rows)


def best_settings(table: pd.DataFrame, natural: pd.DataFrame) -> dict[str, float]:
    """Per intent the value that gives its answer most often; among equals the nearest to its natural mean."""
    settings = {}
    knob = table[table["direction"] == "knob"]
    means = natural.groupby("intent", sort=False)["value"].mean()
    middle = means.mean()
    for intent in means.index:
        own = knob[(knob["intent"] == intent)]
        own = own[np.sign(own["value"] - middle) == np.sign(means[intent] - middle)]
        best = own[own["share"] >= own["share"].max() - 1e-9]
        nearest = (best["value"] - means[intent]).abs().to_numpy().argmin()
        settings[str(intent)] = float(best["value"].iloc[nearest])
    return settings
