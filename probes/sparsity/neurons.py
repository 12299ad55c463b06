"""Which neurons fire in base and tuned model, and how much sparsity a skill bears (CATS, WINA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

import interventions as iv
from interventions.activation_threshold import column_norms, nonlinearity, saliency
from probes.halves import answer_scores, halves
from probes.replay import counted
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, scored, with_q
from workbench.argument_checks import check_pair
from workbench.behaviour.subject import Subject, Work
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float, Tensor

Rule = Literal["cats", "wina", "magnitude"]


@dataclass(frozen=True, kw_only=True)
class SparsityCurve(ProbeResult):
    """How alike the firing neurons of base and tuned model are, and what sparsity does to the answers.

    ``table``: layer, sparsity; ``score`` is the Jaccard likeness of the neurons that fire in both models at the same
    token, with interval; ``control`` the same for the tokens of the tuned model in another order; ``threshold_base``,
    ``threshold_tuned``; ``q`` for the difference from the control.
    """

    skill: pd.DataFrame
    """model, sparsity, score (log-probability of the answer per token), low, high, control (as many random neurons
    off), p, q (of the difference between both): how far the model bears compression."""
    rule: str
    resampled: str = "prompts"

    title: ClassVar[str] = "Sparsity"
    unit: ClassVar[str] = "Jaccard likeness of firing neurons"

    def intervention(self, sparsity: float, model: str = "tuned") -> iv.ActivationThreshold:
        """The calibrated thresholds of one model at one of the sparsities.

        Raises:
            UserError: That sparsity was not calibrated.
        """
        lines = self.table[np.isclose(self.table["sparsity"], sparsity)]
        if not len(lines):
            raise UserError(f"Sparsity {sparsity} was not calibrated; {sorted(set(self.table['sparsity']))} were.")
        thresholds = dict(zip(lines["layer"].tolist(), lines[f"threshold_{model}"].tolist(), strict=True))
        return iv.ActivationThreshold(thresholds, self.rule)  # type: ignore[arg-type]

    def figure(self) -> go.Figure:
        """Answers against sparsity, beside random neurons."""
        drawn = go.Figure()
        for name, part in self.skill.groupby("model", sort=False):
            drawn.add_scatter(x=part["sparsity"], y=part["score"], name=str(name), mode="lines+markers")
            drawn.add_scatter(
                x=part["sparsity"], y=part["control"], name=f"{name}, random neurons", mode="lines+markers",
                line={"dash": "dot"},
            )  # fmt: skip
        drawn.update_layout(
            title=self.title, xaxis_title="share of neurons off", yaxis_title="log-probability of answers"
        )
        return drawn

    def summary(self) -> str:
        """Likeness and loss at the highest sparsity."""
        top = self.skill["sparsity"].max()
        alike = self.table.loc[np.isclose(self.table["sparsity"], top), ["score", "control"]].mean()
        said = ", ".join(
            f"{row.model} {row.score:.2f} [{row.low:.2f}, {row.high:.2f}] (random {row.control:.2f})"
            for row in self.skill[self.skill["sparsity"] == top].itertuples()
        )
        return (
            f"At sparsity {top:g} both models fire {alike['score']:.0%} alike (other tokens {alike['control']:.0%}); "
            f"answers: {said}; intervals over {self.resampled}; control: {self.control}"
        )


@method(
    "sparsity-curve",
    group="activations",
    question="Do tuned and base model fire the same neurons, and how many does the skill need?",
    papers=(
        "CATS: Contextually-Aware Thresholding for Sparsity in Large Language Models",
        "WINA: Weight Informed Neuron Activation for Accelerating Large Language Model Inference",
    ),
    needs=Needs(columns=("answer",)),
    cost="two passes to calibrate, then two per model and sparsity",
    example="--sparsities 0.5 --rule wina",
)
def sparsity_curve(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    rule: Rule = "cats",
    sparsities: list[float] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> SparsityCurve:
    """Calibrate thresholds on one half of the prompts and report firing neurons and answers on the other.

    A layer's threshold is the quantile of what is compared over all tokens of the calibration half, each model its own,
    so that the share of neurons that do not fire is the sparsity. A neutral compression as a control for any located
    skill: what a skill needs should go later than random neurons.

    Args:
        pair: Both models, dense ones.
        prompts: Prompts with answers.
        rule: What is compared: cats, the gate; wina, activation times column norm; magnitude, the activation.
        sparsities: Shares of neurons that shall not fire; by default 0.25, 0.5, 0.75 and 0.9.
        seed: Of halves, random neurons and resampling.

    Returns:
        A :class:`SparsityCurve`. A base with itself fires alike everywhere.

    Raises:
        UserError: A sparsity outside 0 to 1, rows without answers, or layers that are mixtures of experts.
    """
    check_pair(pair, prompts)
    shares = [0.25, 0.5, 0.75, 0.9] if sparsities is None else sorted(sparsities)
    if not shares or not all(0 < share < 1 for share in shares):
        raise UserError("Give sparsities between 0 and 1, such as 0.5.")
    rows, work = Prompts.of(prompts), Work(batch_size, progress)
    calibration, reported = halves(rows, seed)
    with counted(pair.base, pair.tuned) as passes:
        thresholds = {role: _thresholds(model, calibration, rule, shares) for role, model in pair.models.items()}
        table = _likeness(pair, reported, rule, shares, thresholds, seed)
        skill = _skill(pair, reported, rule, shares, thresholds, work, seed)
    return SparsityCurve(
        table=table,
        control="firing neurons at other tokens of the same prompt; for answers, as many random neurons off",
        provenance=Provenance.of("sparsity_curve", pair, rows, seed=seed, forward_passes=passes.forward),
        skill=skill, rule=rule, resampled=units_of(reported.clusters),
    )  # fmt: skip


def _compared(model: AdaptedModel, rows: Prompts, rule: Rule) -> list[list[Float[Tensor, "token neuron"]]]:
    """[layer][prompt]: what is compared with thresholds."""
    saliencies: list[list[Tensor]] = [[] for _ in range(model.n_layers)]
    norms = [column_norms(model, layer) if rule == "wina" else None for layer in range(model.n_layers)]

    def keep(layer: int) -> Any:
        def read(value: Tensor, _ctx: Any) -> None:
            saliencies[layer].append(saliency(value[0].detach().float(), norms[layer]).cpu())

        return read

    for row in encode(rows, model.tokenizer, model.max_positions):
        ids = torch.tensor([row])
        if rule != "cats":
            hooks = [SiteHook(Site("mlp_post", layer), keep(layer)) for layer in range(model.n_layers)]
            with model.hooked(hooks):
                model.forward(ids, logits=None)
            continue
        readers = [keep(layer) for layer in range(model.n_layers)]
        handles = [
            nonlinearity(model, layer).register_forward_hook(
                lambda _m, _a, out, read=read: read(out if out.ndim > 2 else out[None], None)
            )
            for layer, read in enumerate(readers)
        ]
        try:
            model.forward(ids, logits=None)
        finally:
            for handle in handles:
                handle.remove()
    return saliencies


def _thresholds(
    model: AdaptedModel, rows: Prompts, rule: Rule, shares: Sequence[float]
) -> Float[np.ndarray, "sparsity layer"]:
    layers = [torch.cat(layer).flatten().numpy() for layer in _compared(model, rows, rule)]
    return np.array([[np.quantile(layer, share) for layer in layers] for share in shares])


def _likeness(
    pair: ModelPair, rows: Prompts, rule: Rule, shares: Sequence[float], thresholds: dict[str, np.ndarray], seed: int
) -> pd.DataFrame:
    values = {role: _compared(model, rows, rule) for role, model in pair.models.items()}
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(value), generator=generator) for value in values["base"][0]]
    lines = []
    for place, share in enumerate(shares):
        for layer in range(pair.base.n_layers):
            cut = {role: float(thresholds[role][place, layer]) for role in values}
            fires = {role: [value >= cut[role] for value in values[role][layer]] for role in values}
            own = np.array([jaccard(a, b) for a, b in zip(fires["base"], fires["tuned"], strict=True)])
            other = np.array([
                jaccard(a, b[order]) for a, b, order in zip(fires["base"], fires["tuned"], orders, strict=True)
            ])  # fmt: skip
            lines.append({
                "layer": layer, "sparsity": share, **beside_control(own, other, rows.clusters, seed=seed),
                "threshold_base": cut["base"], "threshold_tuned": cut["tuned"],
            })  # fmt: skip
    return with_q(lines)


def jaccard(first: Tensor, second: Tensor) -> float:
    """Mean over tokens of |both| / |either|; 1 where nothing fires in either."""
    both, either = (first & second).sum(-1).double(), (first | second).sum(-1).double()
    return float(torch.where(either > 0, both / either.clamp(min=1), 1.0).mean())


def _skill(
    pair: ModelPair, rows: Prompts, rule: Rule, shares: Sequence[float], thresholds: dict[str, np.ndarray], work: Work,
    seed: int,
) -> pd.DataFrame:  # fmt: skip
    lines = []
    for role, model in pair.models.items():
        plain = answer_scores(Subject(role, model), rows, work)
        score = scored(plain, seed=seed, clusters=rows.clusters)
        lines.append({"model": role, "sparsity": 0.0, **score, "control": plain.mean(), "p": 1.0})
        for place, share in enumerate(shares):
            cuts = dict(enumerate(thresholds[role][place].tolist()))
            own, random = (
                answer_scores(Subject(role, model, iv.Recipe([intervention])), rows, work)
                for intervention in (
                    iv.ActivationThreshold(cuts, rule),
                    iv.ActivationThreshold(dict.fromkeys(cuts, share), "random", seed),
                )
            )
            lines.append({"model": role, "sparsity": share, **beside_control(own, random, rows.clusters, seed=seed)})
    return with_q(lines)
