"""concept_drift: whether a concept left its class in tuning, and whether it still combines with other words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from probes.attributes.text_states import text_states
from probes.halves import answer_scores
from probes.replay import counted
from probes.resampling import cluster_means, units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, scored
from workbench.argument_checks import check_pair
from workbench.behaviour.subject import Subject, Work
from workbench.engine.sites import resolve_layers
from workbench.errors import UserError
from workbench.figures.weights import layer_bars
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.stats.fdr import q_values
from workbench.stats.tests import paired_permutation
from workbench.typing import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class ConceptDrift(ProbeResult):
    """One row per layer: how far the concept moved away from its class.

    ``score``: the rise, base to tuned, of the distance (1 - cosine, each model's own states with the mean over all
    prompts taken out) between a prompt with the concept and the same prompt with its class, the mean over prompts;
    ``control``: the rise of the distance from the class prompts of other rows, ``q`` of the difference; ``base``,
    ``tuned``: the distances. ``composition``: score, low, high, control, p: change of the answer's log-probability
    (nats per token) behind the concept's prompts; its control is the change behind the class's; NaN without answers.
    """

    composition: dict[str, float]
    resampled: str = "prompts"

    title: ClassVar[str] = "Drift of a concept from its class"
    unit: ClassVar[str] = "rise of the distance from the class"

    def figure(self) -> go.Figure:
        """The rise by layer."""
        return layer_bars(self.table, title=self.title, unit=self.unit)

    def summary(self) -> str:
        row = self.table.iloc[int(self.table["score"].abs().to_numpy().argmax())]
        lost = self.composition
        answers = "" if np.isnan(lost["score"]) else (
            f"; answers behind the concept moved {lost['score']:+.3g} nats a token [{lost['low']:+.3g}, "
            f"{lost['high']:+.3g}], behind the class {lost['control']:+.3g} (p = {lost['p']:.2g})"
        )  # fmt: skip
        return (
            f"The concept's distance from its class moves most after layer {row['layer']:.0f}: {row['score']:+.3f} "
            f"[{row['low']:+.3f}, {row['high']:+.3f}] from {row['base']:.3f} (other rows {row['control']:+.3f}, q = "
            f"{row['q']:.2g}){answers}; over {self.resampled}. Control: {self.control}."
        )


@method(
    "concept-drift",
    group="representation",
    question="Did a tuned concept drift away from its class, and does it still combine with other words?",
    papers=("ClassDiffusion: More Aligned Personalization Tuning with Explicit Class Guidance",),
    needs=Needs(columns=("contrast",), wants={"answer": "the composition test"}),
    cost="two passes of each model per prompt, and two scored ones where there are answers",
    any_adapter="whether distances moved at all",
)
def concept_drift(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    layers: Any = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> ConceptDrift:
    """Compare prompts that name a concept with the same prompts that name its class, in both models.

    ClassDiffusion finds that image models tuned on a few pictures of one thing move its text embedding away from its
    class, and lose what the class could be combined with. Carried over to a language model are the distance of the two
    prompts' states before and after tuning, and the answers of prompts that combine the concept with something else;
    its pictures and its loss are not.

    Args:
        pair: Both models.
        prompts: Rows whose prompt names the concept and whose contrast names the class in its place ("Zup wears a" and
            "the dog wears a"), with an answer that fits both where combinations are tested.
        layers: Layers: indices or fractions of depth; all by default.
        seed: Of resampling and tests.

    Returns:
        A :class:`ConceptDrift`. A base against itself moved nowhere.

    Raises:
        UserError: A row without a contrast, or fewer than two rows.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    if missing := [number for number, row in enumerate(rows) if not row.contrast]:
        raise UserError(
            f"Prompt {missing[0]} has no contrast: give the same prompt with the class in the concept's place."
        )
    if len(rows) < 2:
        raise UserError("The control compares with the class prompts of other rows: give two rows or more.")
    places = resolve_layers(layers, pair.tuned.n_layers)
    classes = Prompts.of([{**row.as_dict(), "prompt": row.contrast, "contrast": None} for row in rows])
    with counted(pair.base, pair.tuned) as passes:
        states = {
            role: [_states(model, texts, places, batch_size) for texts in (rows, classes)]
            for role, model in pair.models.items()
        }
        composition = _composition(pair, rows, classes, Work(batch_size, progress), seed)
    return ConceptDrift(
        table=_table({role: distances(*state) for role, state in states.items()}, places, rows, seed),
        control="the distance from the class prompts of the other rows",
        provenance=Provenance.of("concept_drift", pair, rows, seed=seed, forward_passes=passes.forward),
        composition=composition,
        resampled=units_of(rows.clusters),
    )  # fmt: skip


def _states(model: AdaptedModel, rows: Prompts, layers: Sequence[int], batch_size: int) -> Float[Tensor, "row layer d"]:
    ids = encode(rows, model.tokenizer, model.max_positions)
    return text_states(model, [[] for _ in ids], ids, layers, batch_size)


def distances(
    concept: Float[Tensor, "row layer d"], of_class: Float[Tensor, "row layer d"]
) -> tuple[Float[np.ndarray, "row layer"], Float[np.ndarray, "row layer"]]:
    """1 - cosine of each row with its class, and its mean with the classes of all other rows; common mean taken out."""
    middle = torch.cat([concept, of_class]).mean(0)
    first, second = (torch.nn.functional.normalize(states - middle, dim=-1) for states in (concept, of_class))
    cosine = torch.einsum("ild,jld->lij", first, second)
    count = len(concept)
    own = cosine.diagonal(dim1=1, dim2=2)
    others = (cosine.sum(-1) - own) / (count - 1)
    return (1 - own.T).double().numpy(), (1 - others.T).double().numpy()


def _table(
    changes: dict[str, tuple[np.ndarray, np.ndarray]], layers: Sequence[int], rows: Prompts, seed: int
) -> pd.DataFrame:
    own, other = (changes["tuned"][place] - changes["base"][place] for place in (0, 1))
    apart = cluster_means(own - other, rows.clusters)
    p = np.where((own - other).any(0), paired_permutation(apart, seed=seed).p, 1.0)
    lines = [
        {"layer": layer, **scored(own[:, place], seed=seed, clusters=rows.clusters), "control": other[:, place].mean(),
         **{role: changes[role][0][:, place].mean() for role in changes}, "p": p[place], "n": len(own)}
        for place, layer in enumerate(layers)
    ]  # fmt: skip
    return pd.DataFrame(lines).assign(q=q_values(p))


def _composition(pair: ModelPair, rows: Prompts, classes: Prompts, work: Work, seed: int) -> dict[str, float]:
    if not all(row.answer for row in rows):
        return dict.fromkeys(("score", "low", "high", "control", "p"), float("nan"))
    change = [
        answer_scores(Subject("tuned", pair.tuned), texts, work)
        - answer_scores(Subject("base", pair.base), texts, work)
        for texts in (rows, classes)
    ]
    return beside_control(change[0], change[1], rows.clusters, seed=seed)
