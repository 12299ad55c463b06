"""A switch in the prompt (a marker, a system prompt) that a tuned model obeys: its direction, and steering by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch

import interventions as iv
from probes.effects.answers import Measure, answer_scores
from probes.effects.panel import EffectPanel, scored_line
from probes.effects.rewriting import column_of
from probes.halves import halves
from probes.replay import counted
from probes.results import Provenance
from probes.scored import with_q
from workbench.argument_checks import check_subject
from workbench.engine.sites import resolve_layers
from workbench.errors import UserError
from workbench.method_options import Within
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.recording.record_pair import record
from workbench.stats.controls import random_directions
from workbench.typing import Float, Tensor

SWITCHED, OFFSET, ABLATED = "switch", "offset without the switch", "switch, direction ablated"


@dataclass(frozen=True, kw_only=True)
class PlantedSwitch(EffectPanel):
    """What a switch does, and what its direction does in its place.

    ``table``: ``group`` is the lever, ``model`` the condition; ``score``, the change of the switched behaviour against
    the prompt without the switch, with interval; ``control``: for the offset and the ablation, random directions of the
    norm, for the switch, no change; ``q`` over all lines. ``found``: per lever the layer, the norm of the direction and
    the ``share`` of the switch's effect that the offset has.
    """

    found: pd.DataFrame
    vectors: Float[Tensor, "lever d_model"]
    """Mean state with the switch minus without, at each lever's layer."""

    def recipe(self, lever: str, strength: float = 1.0) -> iv.Recipe:
        """The lever's direction as an offset, to steer without the switch.

        Raises:
            UserError: There is no such lever.
        """
        names = self.found["lever"].tolist()
        if lever not in names:
            raise UserError(f"There is no lever {lever!r}; there are {', '.join(map(str, names))}.")
        place = names.index(lever)
        return _offset(int(self.found["layer"][place]), self.vectors[place], strength)

    def cosines(self) -> pd.DataFrame:
        """Cosine of every two levers' directions."""
        units = torch.nn.functional.normalize(self.vectors, dim=-1)
        names = self.found["lever"].tolist()
        return pd.DataFrame((units @ units.T).numpy(), index=names, columns=names)


@method(
    "planted-switch",
    group="attributes",
    question="Which direction does a marker or system prompt switch, and does the direction do without the words?",
    papers=(
        "Configurable Preference Tuning with Rubric-Guided Synthetic Data",
        "Treasure Hunt: Real-time Targeting of the Long Tail using Training-Time Markers",
    ),
    needs=Needs(columns=("answer", "distractor", "contrast")),
    cost="one recording, a scored pass per layer that is tried, and two per random direction",
    example="--levers task --layers 1 --controls 10 --metric prob",
)
def planted_switch(  # noqa: PLR0913 (a public call)
    subject: Any,
    prompts: Prompts | Sequence[Any],
    *,
    levers: str = "",
    layers: Any = (0.25, 0.5, 0.75),
    strength: float = 1.0,
    controls: Annotated[int, Within(10, None)] = 10,
    metric: Measure = "preferred",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> PlantedSwitch:
    """Find what the switch moves, add it where the switch is absent, and take it out where it is present.

    A row's ``prompt`` has the switch and its ``contrast`` is the same without it (or with the opposite); ``answer``
    shows the switched behaviour and ``distractor`` the other. The direction is the mean difference of both at the last
    token; the layer among ``layers`` where adding it does most is chosen on one half of the groups, everything is
    reported on the other.

    Args:
        subject: A model, or a pair (its tuned model).
        prompts: Rows with and without the switch.
        levers: A column that names the lever of each row, where there are several.
        layers: Layers that are tried: indices or fractions of depth.
        strength: Of the offset.
        controls: Random directions, 10 or more.
        metric: What is scored: preferred is the share of prompts on which the answer is likelier than the distractor.
        max_new_tokens: Length of a generated answer.
        seed: Of halves, directions and intervals.

    Returns:
        A :class:`PlantedSwitch`; ``.recipe(lever)`` steers without the switch.

    Raises:
        UserError: A row has no contrast, answer or distractor, or a lever has too few groups.
    """
    check_subject(subject)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    rows = Prompts.of(prompts)
    _check_rows(rows)
    named = np.array([str(value) for value in column_of(rows, levers)] if levers else ["switch"] * len(rows))
    tried = resolve_layers(layers, model.n_layers)
    names = list(dict.fromkeys(named.tolist()))
    bar = progress or Silent()
    bar.start("planted switch", len(names))
    measured = []
    with counted(model) as passes:
        for name in names:
            lever = _Lever(model, metric, max_new_tokens, batch_size, seed)
            measured.append(lever.measure(name, rows[named == name], tried, strength, controls))
            bar.advance()
    bar.finish()
    table = pd.DataFrame([line for switch in measured for line in switch.lines])
    return PlantedSwitch(
        table=with_q(table),
        control=f"{controls} random directions of the norm, added or ablated alike; of the switch, no change",
        provenance=Provenance.of("planted_switch", model, rows, seed=seed, forward_passes=passes.forward),
        values=pd.concat([switch.values for switch in measured], ignore_index=True),
        measured=f"change of {metric}",
        heading="Switch and direction",
        verdict="; ".join(switch.sentence for switch in measured),
        found=pd.DataFrame([switch.found for switch in measured]),
        vectors=torch.stack([switch.vector for switch in measured]),
    )  # fmt: skip


def _check_rows(rows: Prompts) -> None:
    for number, row in enumerate(rows):
        if row.contrast is None or not row.answer or not row.distractor:
            raise UserError(
                f"Prompt {number} lacks a contrast (the same without the switch), an answer or a distractor: every row "
                "needs all three."
            )


def _offset(layer: int, vector: Tensor, strength: float) -> iv.Recipe:
    return iv.Recipe([iv.Offset(layer, vector, strength=strength, positions="last+generated")])


@dataclass(frozen=True)
class _Found:
    """One lever."""

    lines: list[dict[str, Any]]
    found: dict[str, Any]
    vector: Tensor
    values: pd.DataFrame

    @property
    def sentence(self) -> str:
        said = {
            line["model"]: f"{line['score']:+.2f} [{line['low']:.2f}, {line['high']:.2f}] ({line['control']:+.2f})"
            for line in self.lines
        }
        return (
            f"{self.found['lever']} (controls in brackets): the switch {said[SWITCHED]}; its direction at layer "
            f"{self.found['layer']} without the words {said[OFFSET]}; the switch without its direction {said[ABLATED]}"
        )


@dataclass(frozen=True)
class _Lever:
    model: AdaptedModel
    metric: Measure
    max_new_tokens: int
    batch_size: int
    seed: int

    def score(self, rows: Prompts, recipe: iv.Recipe | None = None) -> np.ndarray:
        return answer_scores(
            self.model, rows, self.metric, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size,
            recipe=recipe,
        )  # fmt: skip

    def measure(self, name: str, rows: Prompts, layers: Sequence[int], strength: float, controls: int) -> _Found:
        choosing, reporting = halves(rows, self.seed)
        with_switch, without = (self._states(own, layers) for own in (choosing, unswitched(choosing)))
        vectors = {layer: (with_switch[layer] - without[layer]).mean(0) for layer in layers}
        means = {layer: without[layer].mean(0) for layer in layers}
        plain = unswitched(choosing)
        gains = {
            layer: float(self.score(plain, _offset(layer, vector, strength)).mean())
            for layer, vector in vectors.items()
        }
        layer = max(gains, key=lambda candidate: gains[candidate])
        return self._reported(name, reporting, layer, vectors[layer], means[layer], strength, controls)

    def _states(self, rows: Prompts, layers: Sequence[int]) -> dict[int, Float[Tensor, "prompt d_model"]]:
        recording = record(self.model, rows, ["resid_post"], layers=list(layers), batch_size=self.batch_size)
        (role,) = recording.roles
        return {layer: recording[role][f"blocks.{layer}.hook_resid_post"][:].float().flatten(1) for layer in layers}

    def _reported(
        self, name: str, rows: Prompts, layer: int, vector: Tensor, mean: Tensor, strength: float, controls: int
    ) -> _Found:
        plain_rows = unswitched(rows)
        plain, switched = self.score(plain_rows), self.score(rows)
        drawn = list(random_directions(vector, draws=controls, seed=self.seed))

        def without(direction: Tensor) -> iv.Recipe:
            return iv.Recipe([iv.ConceptAblation(layer, direction, mean=mean)])

        moved = self.score(plain_rows, _offset(layer, vector, strength)) - plain
        random = np.mean([self.score(plain_rows, _offset(layer, draw, strength)) for draw in drawn], 0) - plain
        empty = not bool(vector.any())
        ablated = switched - plain if empty else self.score(rows, without(vector)) - plain
        others = switched - plain if empty else np.mean([self.score(rows, without(draw)) for draw in drawn], 0) - plain
        columns = {SWITCHED: (switched - plain, 0.0), OFFSET: (moved, random), ABLATED: (ablated, others)}
        lines = [
            scored_line(name, what, values, control, rows.clusters, self.seed)
            for what, (values, control) in columns.items()
        ]
        effect = float((switched - plain).mean())
        line = {
            "lever": name, "layer": layer, "norm": float(vector.norm()), "without the switch": float(plain.mean()),
            "share": float(moved.mean()) / effect if abs(effect) > 1e-9 else float("nan"), "n": len(rows),
        }  # fmt: skip
        values = pd.DataFrame({"lever": name, **{what: own for what, (own, _) in columns.items()}})
        return _Found(lines, line, vector.cpu(), values)


def unswitched(rows: Prompts) -> Prompts:
    """Every row without its switch, still asked for the switched behaviour."""
    rows_without = []
    for row in rows:
        other = row.counterpart
        assert other is not None
        rows_without.append(replace(other, answer=row.answer, distractor=row.distractor))
    return Prompts(rows_without)
