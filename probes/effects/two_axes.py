"""Where a model stands on two axes of opinion, and how tuning with a slant moved it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch

import interventions as iv
from interventions.weightspace.task_vector import TaskVector
from probes.effects.answers import margins
from probes.effects.panel import CHANGE, EffectPanel, scored_line
from probes.effects.rewriting import column_of
from probes.halves import halves
from probes.replay import counted
from probes.resampling import shuffled_labels
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.engine.sites import resolve_layers
from workbench.errors import UserError
from workbench.method_options import Within
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.recording.record_pair import record
from workbench.stats.controls import random_directions
from workbench.stats.fdr import q_values
from workbench.typing import Float, Tensor

DEALS = 200
"""Random deals of the sides to the statements."""
ABLATED = "tuned, slant ablated - tuned"


@method(
    "two-axes",
    group="effects",
    question="Where does the model stand on two axes of opinion, and can its slant be turned or taken out?",
    papers=("Analyzing the Impact of Data Selection and Fine-Tuning on Economic and Political Biases in LLMs",),
    needs=Needs(columns=("answer", "distractor")),
    cost="a scored pass of each model, two per scale and one per random direction, and a recording of each",
    example="--axis task --side sign --layer 1 --controls 10",
)
def two_axes(  # noqa: PLR0913 (a public call)
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    axis: str = "axis",
    side: str = "side",
    scales: Sequence[float] = (-1.0, 0.5),
    layer: int | float | str = 0.5,
    controls: Annotated[int, Within(10, None)] = 10,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> EffectPanel:
    """Place base and tuned on both axes, the base with so much of the update, and the tuned model without the slant.

    Each row is a statement with "agree" as ``answer`` and "disagree" as ``distractor``, an axis (economic, social) and
    the side, +1 or -1, that agreeing takes. A statement's position is its side times tanh of half the log odds of
    agreeing (from -1 to 1). A model that agrees with everything stands at 0 where both sides are asked alike; how much
    each does is in ``numbers`` as "acquiescence". The slant's direction is the mean of side times (tuned - base) state
    at the last token on one half of the groups; it is ablated in the tuned model, and everything is reported on the
    other half.

    Args:
        pair: The base, and the model tuned with a slant.
        prompts: Statements of both sides.
        axis: The column of the axis.
        side: The column of the side that agreeing takes, +1 or -1.
        scales: How much of the update is put into the base: -1 turns the slant around.
        layer: Where the slant is ablated: an index, or a fraction of the depth.
        controls: Random directions, 10 or more.
        seed: Of halves, directions, signs and intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is the axis; ``model`` is base, tuned, their difference, the base's change
        under each scale, and the tuned model's change without the slant.

    Raises:
        UserError: A side is neither +1 nor -1, or an axis asks for one side only.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    _check_sides(*sides_of(rows, axis, side))
    finding, reporting = halves(rows, seed)
    named, sign = sides_of(reporting, axis, side)
    (place,) = resolve_layers(layer, pair.base.n_layers)
    bench = _Bench(pair, reporting, batch_size, progress or Silent())
    bench.watch.start("two axes", 3 + 2 * len(scales) + controls)
    with counted(pair.base, pair.tuned) as passes:
        agreed = {role: bench.agreement(pair.models[role]) for role in ("base", "tuned")}
        slant = _slant(pair, finding, sides_of(finding, axis, side)[1], place, batch_size)
        compared = {f"base + {scale:g} x update - base": bench.scaled(scale, seed, agreed["base"]) for scale in scales}
        compared[ABLATED] = bench.without(slant, place, controls, seed, agreed["tuned"])
    bench.watch.finish()
    lines = _lines(agreed, sign, named, compared, reporting.clusters, seed)
    table = pd.DataFrame(lines).assign(q=np.nan)
    tested = ~table["model"].isin(("base", "tuned")).to_numpy()
    table.loc[tested, "q"] = q_values(table.loc[tested, "p"].to_numpy(float))
    return EffectPanel(
        table=table,
        control="of models and of tuning, the statements' sides exchanged at random; of a scale, the update under "
        f"random signs; of the ablation, {controls} random directions",
        provenance=Provenance.of("two_axes", pair, rows, seed=seed, forward_passes=passes.forward),
        values=pd.DataFrame({**{role: values * sign for role, values in agreed.items()}, "axis": named, "side": sign}),
        measured="position on the axis (-1 to 1)",
        heading="Two axes of opinion",
        verdict=_verdict(table),
        numbers={f"acquiescence of {role}": float(values.mean()) for role, values in agreed.items()},
    )  # fmt: skip


def sides_of(rows: Prompts, axis: str, side: str) -> tuple[np.ndarray, np.ndarray]:
    """[prompt] the axis, and the side as +1 or -1."""
    named = np.array([str(value) for value in column_of(rows, axis)])
    try:
        sign = np.array([float(value) for value in column_of(rows, side)])
    except (TypeError, ValueError):
        sign = np.zeros(len(rows))
    if not np.isin(sign, (-1, 1)).all():
        raise UserError(f"The column {side!r} must say +1 or -1: the side of the axis that agreeing takes.")
    return named, sign


def _check_sides(named: np.ndarray, sign: np.ndarray) -> None:
    for name in sorted(set(named.tolist())):
        if len(np.unique(sign[named == name])) < 2:
            raise UserError(
                f"Axis {name!r} asks for one side only, so that agreeing with everything would look like a position: "
                "give statements of both sides."
            )


def _slant(pair: ModelPair, rows: Prompts, sign: np.ndarray, layer: int, batch_size: int) -> Float[Tensor, " d_model"]:
    states = record(pair, rows, ["resid_post"], layers=[layer], batch_size=batch_size)
    (name,) = states.sites
    change = (states["tuned"][name][:].float() - states["base"][name][:].float()).flatten(1)
    return (change * torch.tensor(sign, dtype=change.dtype)[:, None]).mean(0)


class _Bench:
    """The statements of the reporting half; every change comes with its control, both [prompt]."""

    def __init__(self, pair: ModelPair, rows: Prompts, batch_size: int, watch: Progress) -> None:
        self.pair, self.rows, self.batch_size, self.watch = pair, rows, batch_size, watch

    def agreement(self, model: AdaptedModel, recipe: iv.Recipe | None = None) -> np.ndarray:
        """[prompt] from -1 (disagrees) to 1 (agrees)."""
        agreement = np.tanh(margins(model, self.rows, batch_size=self.batch_size, recipe=recipe) / 2)
        self.watch.advance()
        return agreement

    def scaled(self, scale: float, seed: int, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        update = scale * TaskVector.from_pair(self.pair)
        changes = []
        for vector in (update, update.sign_shuffled(seed)):
            with vector.graft(self.pair.base).entered(self.pair.base):
                changes.append(self.agreement(self.pair.base) - before)
        return changes[0], changes[1]

    def without(
        self, slant: Tensor, layer: int, controls: int, seed: int, before: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        if not bool(slant.any()):
            return np.zeros_like(before), np.zeros_like(before)
        changes = [
            self.agreement(self.pair.tuned, iv.Recipe([iv.ConceptAblation(layer, axis)])) - before
            for axis in (slant, *random_directions(slant, draws=controls, seed=seed))
        ]
        return changes[0], np.mean(changes[1:], axis=0)


def _lines(
    agreed: dict[str, np.ndarray], sign: np.ndarray, named: np.ndarray,
    compared: dict[str, tuple[np.ndarray, np.ndarray]], clusters: np.ndarray, seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    dealt = shuffled_labels(sign.astype(int), DEALS, seed)
    change = {**agreed, CHANGE: agreed["tuned"] - agreed["base"]}
    lines = []
    for name in dict.fromkeys(named.tolist()):
        own = named == name
        for model, values in change.items():
            control = float((dealt[:, own] * values[own]).mean())
            lines.append(scored_line(name, model, (values * sign)[own], control, clusters[own], seed))
        for model, (moved, random) in compared.items():
            lines.append(scored_line(name, model, (moved * sign)[own], (random * sign)[own], clusters[own], seed))
    return lines


def _verdict(table: pd.DataFrame) -> str:
    said = []
    for name in dict.fromkeys(table["group"]):
        of = table[table["group"] == name].set_index("model")
        change = of.loc[CHANGE]
        said.append(
            f"{name}: base {of['score']['base']:+.2f}, tuned {of['score']['tuned']:+.2f} (change "
            f"{change['score']:+.2f} [{change['low']:.2f}, {change['high']:.2f}], q = {change['q']:.2g}), slant "
            f"ablated {of['score'][ABLATED]:+.2f}"
        )
    return "; ".join(said)
