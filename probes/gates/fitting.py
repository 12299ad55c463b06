"""``fit_gate``: a linear probe that says when an intervention should act, with what it does on other text.

Conditional activation steering (Lee et al. 2024): a direction and a threshold at one layer, so that a recipe acts on
prompts of one kind and leaves all others bit for bit as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.audits.general import general_questions
from probes.call_settings import call_settings
from probes.gates.separation import LayerFit, Reading, halves, read_rows, separated
from probes.replay import counted
from probes.results import ProbeResult, Provenance
from probes.scored import scored_share
from workbench.argument_checks import check_subject
from workbench.errors import UserError
from workbench.method_options import As, Within
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.stats.fdr import q_values
from workbench.typing import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class GateFit(ProbeResult):
    """A gate, and how well every layer would do.

    ``table``: per layer ``score``, the area under the ROC curve on the held-out half, prompts of the wanted label
    against all others and neutral text; ``control``: the same with shuffled labels; ``fitted``: on the fitting half,
    by which the layer is chosen; ``threshold``.
    """

    direction: Float[Tensor, " d_model"]
    threshold: float
    layer: int
    reach: str
    label: str
    fires: pd.DataFrame
    """set (wanted, other, neutral), share of its held-out prompts on which the gate opens, low, high, n."""

    title: ClassVar[str] = "Gate"
    unit: ClassVar[str] = "area under the ROC curve, held-out prompts"

    @property
    def gate(self) -> Any:
        """The :class:`interventions.Gate`, for ``when=`` of an intervention at this layer or a later one."""
        from interventions.gate import Gate

        return Gate(self.layer, self.direction, self.threshold, reach=self.reach)

    def recipe(self) -> Any:
        """A recipe that changes nothing and carries the gate, for a book: ``formal when animals`` reads it there."""
        from interventions.offset import Offset
        from interventions.recipe import Recipe

        return Recipe([Offset(self.layer, self.direction, strength=0.0, when=self.gate)])

    def share(self, name: str) -> float:
        """On what share of the held-out prompts of a set (wanted, other, neutral) the gate opens."""
        return float(self.fires.loc[self.fires["set"] == name, "share"].item())

    def figure(self) -> go.Figure:
        """The area under the ROC curve by layer, beside shuffled labels."""
        from workbench.figures.gates import layer_curve

        return layer_curve(self.table, self.layer, title=f"Gate for {self.label!r} by layer")

    def summary(self) -> str:
        said = {row["set"]: row for row in self.fires.to_dict("records")}
        parts = [f"{said[name]['share']:.0%} of {said[name]['n']} {name}" for name in said]
        neutral = said.get("neutral")
        tail = "" if neutral is None else f" (neutral: [{neutral['low']:.1%}, {neutral['high']:.1%}])"
        row = self.table.set_index("layer").loc[self.layer]
        return (
            f"Gate at layer {self.layer}, area under the curve {row['score']:.3f} [{row['low']:.3f}, "
            f"{row['high']:.3f}], shuffled labels {row['control']:.2f}; opens on {', '.join(parts)} held-out prompts"
            f"{tail}"
        )


@method(
    "gate",
    group="directions",
    question="Which linear probe tells when a recipe should act?",
    needs=Needs(columns=("label",)),
    cost="one forward pass per prompt and neutral text",
    example="--label animals",
    any_adapter="whether the prompts' labels can be told apart in the states, whatever made them so",
)
def fit_gate(  # noqa: PLR0913 (a public call; all but two by keyword)
    subject: Any,
    prompts: Any,
    *,
    label: str | None = None,
    neutral: Annotated[Any, As("prompts")] = None,
    layers: Any = None,
    reach: Literal["prompt", "onward", "token"] | str = "prompt",
    most_false: Annotated[float, Within(0, 1)] = 0.01,
    controls: int = 10,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> GateFit:
    """Fit a gate on labelled prompts: Fisher's discriminant, and a threshold that neutral text rarely passes.

    Direction, threshold and layer come from one half of the prompts (whole groups, where they have some) and of the
    neutral texts; everything reported comes from the other half. Example::

        fit = probes.fit_gate(pair.tuned, prompts, label="animals")
        iv.Recipe([iv.Offset(fit.layer, refuse, when=fit.gate)])

    Args:
        label: The label on which the gate should open; by default True, or the last label in alphabetical order.
        neutral: Texts on which it should stay shut; by default the shipped questions of many topics.
        reach: Whether the prompt's last token decides for all that follows, or tokens from where it fires on, or each.
        most_false: The largest share of the fitting half's other and neutral prompts that may open it.
        controls: Fits with shuffled labels.

    Returns:
        The fit; ``.gate`` goes into ``when=`` of an intervention.

    Raises:
        UserError: There are not two labels, too few prompts of one to hold some out, or an unknown label.
    """
    check_subject(subject)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    rows = Prompts.of(prompts)
    wanted, name = _wanted(rows, label)
    apart = _neutral(neutral)
    with counted(model) as passes:
        read = read_rows(model, rows, layers, reach, progress)
        plain = read_rows(model, apart, layers, reach, progress)
    first = halves(rows.clusters, wanted, seed)
    first_plain = np.random.default_rng(seed).permutation(len(apart)) < len(apart) // 2
    fits = {
        layer: separated(
            Reading(read[layer], wanted, first, rows.clusters),
            Reading(plain[layer], np.zeros(len(apart), bool), first_plain, apart.clusters),
            most_false, controls, draws, seed,
        )
        for layer in read
    }  # fmt: skip
    best = max(fits, key=lambda layer: (fits[layer].fitted, fits[layer].margin))
    return GateFit(
        table=_table(fits),
        control=f"{controls} fits with shuffled labels",
        provenance=Provenance.of(
            "fit_gate", {getattr(model, "role", "model"): model}, rows, seed=seed, device=str(model.device),
            forward_passes=passes.forward,
            settings=call_settings(None, neutral=None if neutral is None else apart),
        ),
        direction=fits[best].direction,
        threshold=fits[best].threshold,
        layer=best,
        reach=reach,
        label=name,
        fires=_fires(fits[best], seed),
    )  # fmt: skip


def _wanted(rows: Prompts, label: str | None) -> tuple[np.ndarray, str]:
    """[prompt] whether the gate should open, and the label's name."""
    names = [None if row.label is None else str(row.label) for row in rows]
    known = sorted({name for name in names if name is not None})
    if len(known) < 2 or None in names:
        raise UserError(
            f"A gate tells one label from others, and the prompts have {len(known)} label(s) in "
            f"{sum(name is not None for name in names)} of {len(names)} rows: give every row a 'label', two at least."
        )
    name = known[-1] if label is None else str(label)
    if name not in known:
        raise UserError(f"No prompt has the label {name!r}: choose one of {', '.join(known[:8])}.")
    wanted = np.array([own == name for own in names])
    for kind, count in ((f"the label {name!r}", wanted.sum()), ("other labels", (~wanted).sum())):
        if count < 4:
            raise UserError(f"{count} prompts of {kind} cannot be parted to fit and to test: give at least four.")
    return wanted, name


def _neutral(texts: Any) -> Prompts:
    if texts is None:
        return general_questions()
    apart = Prompts.of(texts)
    if len(apart) < 4:
        raise UserError(f"{len(apart)} neutral texts say nothing about false alarms: give at least four.")
    return apart


def _table(fits: dict[int, LayerFit]) -> pd.DataFrame:
    lines = [
        {"layer": layer, "score": fit.score.estimate, "low": fit.score.low, "high": fit.score.high,
         "control": fit.control, "q": fit.p, "fitted": fit.fitted, "threshold": fit.threshold}
        for layer, fit in fits.items()
    ]  # fmt: skip
    table = pd.DataFrame(lines)
    return table.assign(q=q_values(table["q"].to_numpy()))


def _fires(fit: LayerFit, seed: int) -> pd.DataFrame:
    return pd.DataFrame([
        {"set": name, **scored_share(hits, name="share", seed=seed, clusters=clusters), "n": len(hits)}
        for name, (hits, clusters) in fit.fires.items()
    ])  # fmt: skip
