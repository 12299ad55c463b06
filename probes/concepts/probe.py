"""``concept_directions``: directions of the residual stream, with what is needed to name and to ablate them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from probes.call_settings import call_settings, of_recording
from probes.concepts.contexts import extreme_contexts
from probes.concepts.dictionary import Dictionary
from probes.concepts.finding import Found, Rows, find
from probes.principal import direction_readings, shown
from probes.resampling import cluster_means, row_clusters, units_of
from probes.results import ProbeResult
from probes.scored import bracketed, scored
from workbench.argument_checks import check_recording
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import Recorded, method
from workbench.models.adapted import AdaptedModel
from workbench.recording.recording import Recording
from workbench.recording.sink_rows import Tokens, averaged_rows, massive_rows
from workbench.stats.controls import random_directions
from workbench.stats.fdr import q_values
from workbench.stats.tests import paired_permutation
from workbench.typing import Bool, Float, Int, Tensor

if TYPE_CHECKING:
    from interventions import Recipe


@dataclass(frozen=True, kw_only=True)
class ConceptDirections(ProbeResult):
    """Candidate directions at one site.

    ``table``: direction (its number), score (share of the difference tuned - base that lies along it, on prompts it
    was not found on), control (the same for random directions), ``shift`` (mean of tuned - base along it), and the
    tokens it raises (``up``) and lowers (``down``).
    """

    method: str
    site: str
    layer: int
    directions: Float[Tensor, "k d_model"]
    mean: Float[Tensor, " d_model"]
    """The base's mean activation: what ablation to the mean sets a coordinate to."""
    contexts: pd.DataFrame
    """direction, end (highest, lowest), value, prompt, position, context: the token stands between » and «."""
    latents: list[int] | None
    resampled: str = "prompts"
    """What intervals and tests draw of the prompts that are scored on: prompts, or groups of prompts."""
    tokens: str = "all recorded tokens"
    """Which tokens directions and means were made of."""

    title: ClassVar[str] = "Concept directions"
    unit: ClassVar[str] = "share of tuning's change along the direction"

    def recipe(
        self, indices: Sequence[int], to: Literal["zero", "mean"] = "zero", strength: float = 1.0, **options: Any
    ) -> Recipe:
        """A recipe that ablates the chosen directions, to zero or to the base's mean; ``options`` go to
        :class:`interventions.ConceptAblation` (positions, for instance)."""
        from interventions import ConceptAblation, Recipe

        wrong = [index for index in indices if not 0 <= index < len(self.directions)]
        if wrong or not len(indices):
            raise UserError(f"Choose directions 0 to {len(self.directions) - 1}; got {list(indices)}.")
        mean = self.mean if to == "mean" else None
        directions = self.directions[list(indices)]
        ablation = ConceptAblation(self.layer, directions, site=self.site, mean=mean, strength=strength, **options)
        return Recipe([ablation])

    def describe(self, index: int) -> str:
        """What a person reads to name direction ``index``: its tokens and its extreme contexts."""
        row = self.table.set_index("direction").loc[index]
        lines = [f"direction {index}: raises {row['up']}", f"  lowers {row['down']}"]
        for line in self.contexts[self.contexts["direction"] == index].to_dict("records"):
            lines.append(f"  {line['end']:>7} {line['value']:+.3g}  {line['context']}")
        return "\n".join(lines)

    def summary(self) -> str:
        best = self.frame().iloc[0]
        return (
            f"{len(self.table)} directions by {self.method} at {self.site} of layer {self.layer}; direction "
            f"{best['direction']:.0f} holds {best['score']:.1%}{bracketed(best['low'], best['high'], '.1%')} of the "
            f"change on other prompts ({self.resampled}), random directions {best['control']:.1%}; "
            f"{self.tokens}"
        )

    def figure(self) -> go.Figure:
        """Score of every direction beside the random ones, its tokens under the pointer."""
        from workbench.figures.concepts import concept_figure

        title = f"{len(self.table)} directions by {self.method} at {self.site} of layer {self.layer}"
        return concept_figure(self.table, title=f"{title}, scored on a third of {self.provenance.n_prompts} prompts")


@method(
    "concepts",
    gives=("concepts", "directions"),
    group="directions",
    question="Along which directions did tuning move the residual stream, and what do they stand for?",
    papers=("Steering Out-of-Distribution Generalization with Concept Ablation Fine-Tuning",),
    records=Recorded(positions="all", layers=0.5),
    cost="one forward pass of each model",
    example="--layer 0.5",
)
def concept_directions(  # noqa: PLR0913 (a public call; all but two by keyword)
    recording: Recording,
    method: Literal["mean", "pca", "pca-uncentred", "labels-mean", "labels-probe", "sae"] | str = "pca",
    *,
    layer: int | None = None,
    k: int = 20,
    labels: Annotated[Sequence[Any] | None, As("column")] = None,
    dictionary: Annotated[Dictionary | str | Path | None, As("file")] = None,
    model: AdaptedModel | None = None,
    examples: int = 5,
    tokens: Tokens = "content",
    seed: int = 0,
) -> ConceptDirections:
    """Find directions of one recorded site that tuning moved, or that labels follow (after Casademunt et al. 2025).

    ``method``: "mean" (of tuned - base), "pca" (of tuned - base, centred: the mean, often the strongest direction, is
    taken out), "pca-uncentred", "labels-mean" and "labels-probe" (of the tuned model's rows), "sae" (the latents of
    a SAELens ``dictionary`` whose mean activation changed most). Directions are found on two thirds of the prompts
    (whole groups, where they have some) and scored on the rest. ``layer``: which of the recorded ones; by default the
    middle one of them. With ``model`` each direction is read through its unembedding. ``examples``: contexts kept at
    each end; record with ``positions="all"`` for whole contexts. ``tokens``: ``"content"`` leaves attention sinks (the
    first token, special tokens, the chat template's) out of directions and means, ``"all"`` takes them in. No forward
    passes: the recording is read.

    Args:
        method: Which directions: mean or principal components of tuned - base, difference or probe of the labels, or
            the latents of a dictionary.
        labels: The column of the prompts that holds their class, for labels-mean and labels-probe.
        dictionary: A SAELens folder, for sae.
        examples: Contexts that are shown for each direction.
        tokens: Which of the recorded tokens enter directions and means: content, or all.
    """
    site = _one_site(recording, layer)
    averaged = averaged_rows(recording.index, tokens, massive_rows(recording))
    index = recording.index[averaged.rows].reset_index(drop=True)
    rows = torch.from_numpy(averaged.rows)
    base, tuned = (recording[role][site.name][:].float()[rows] for role in ("base", "tuned"))
    prompt, clusters = index["prompt"].to_numpy(), row_clusters(index)
    labelled = index["label"].tolist() if labels is None and "label" in index else None
    labelled = labelled if labels is None else [labels[number] for number in prompt]
    train = _training_rows(clusters, seed)
    read = Dictionary.load(dictionary) if isinstance(dictionary, (str, Path)) else dictionary
    train_labels = (
        None if labelled is None else [label for label, inside in zip(labelled, train, strict=True) if inside]
    )
    concepts = find(method, Rows(base[train], tuned[train], train_labels), k, read)
    if not len(concepts.directions):
        raise UserError(
            f"Nothing to find: tuned - base at {site.kind} of layer {site.layer} "
            + ("is the same on every row" if method == "pca" else "is 0 on every row")
            + " that directions are looked for on"
            + ("; method='mean' reads what is the same." if method == "pca" else ".")
        )
    table = _scores(concepts, (tuned - base)[~train], prompt[~train], clusters[~train], seed)
    values = _activations(concepts, tuned, base.mean(0), read)
    words = _words(concepts, model, base)
    return ConceptDirections(
        table=table.assign(layer=site.layer, up=[up for up, _ in words], down=[down for _, down in words]),
        control="random directions (10 draws)",
        provenance=of_recording(
            "concept_directions", recording, tuple(recording.roles), seed,
            call_settings(None, layer=int(site.layer or 0), dictionary=read, model=model),
        ),
        method=method,
        site=site.kind,
        layer=int(site.layer or 0),
        directions=concepts.directions,
        mean=base.mean(0),
        contexts=extreme_contexts(values, recording.index, examples, np.flatnonzero(averaged.rows)),
        latents=concepts.latents,
        tokens=averaged.text,
        resampled=units_of(clusters[~train][np.unique(prompt[~train], return_index=True)[1]]),
    )  # fmt: skip


def _one_site(recording: Recording, layer: int | None) -> Site:
    check_recording(recording)
    if not {"base", "tuned"} <= set(recording.roles):
        raise UserError("Directions of tuning need base and tuned side by side: record a pair.")
    recorded = [site for site in map(Site.parse, recording.sites) if site.kind.startswith("resid")]
    sites = [site for site in recorded if layer is None or site.layer == layer]
    if not sites:
        names = ", ".join(site.name for site in recorded) or "none"
        raise UserError(
            f"Concept directions need a residual site{'' if layer is None else f' of layer {layer}'}, and the "
            f"recording has {names}: record resid_post of the layer."
        )
    if len({site.kind for site in sites}) > 1:
        sites = [site for site in sites if site.kind == "resid_post"] or sites[:1]
    if recording.n_prompts < 3:
        raise UserError(f"{recording.n_prompts} prompts cannot be parted to find and to score: record at least three.")
    return sites[len(sites) // 2]


def _training_rows(clusters: Int[np.ndarray, " row"], seed: int) -> Bool[np.ndarray, " row"]:
    """True on two thirds of the prompts, whole groups."""
    names = np.unique(clusters)
    if len(names) < 3:
        raise UserError(
            f"The prompts are of {len(names)} group(s), which cannot be parted to find and to score: record at least "
            "three, or prompts without groups if they do not depend on each other."
        )
    held_out = np.random.default_rng(seed).permutation(names)[: max(1, len(names) // 3)]
    return ~np.isin(clusters, held_out)


def _scores(
    concepts: Found,
    change: Float[Tensor, "row d"],
    prompt: Int[np.ndarray, " row"],
    clusters: Int[np.ndarray, " row"],
    seed: int,
) -> pd.DataFrame:
    """Share of the held-out change along each direction, its interval over prompts or their groups, and q against
    random ones."""
    names, first, number = np.unique(prompt, return_index=True, return_inverse=True)
    random = random_directions(torch.ones(change.shape[1]), seed=seed)
    along = change @ torch.nn.functional.normalize(torch.cat([concepts.directions, random]), dim=-1).T
    share = (along.square() / change.square().sum(-1, keepdim=True).clamp_min(1e-30)).numpy()
    per_prompt = np.stack([share[number == unit].mean(0) for unit in range(len(names))])
    k = len(concepts.directions)
    control, units = per_prompt[:, k:].mean(1), clusters[first]
    rows = [
        {
            "direction": place,
            **scored(per_prompt[:, place], seed=seed, clusters=units),
            "control": float(control.mean()),
            "shift": float(along[:, place].mean()),
            **({} if concepts.latents is None else {"latent": concepts.latents[place]}),
        }
        for place in range(k)
    ]
    beyond = cluster_means(per_prompt[:, :k] - control[:, None], units)
    tested = paired_permutation(beyond, seed=seed, alternative="greater")
    return pd.DataFrame(rows).assign(q=q_values(tested.p))


def _activations(
    concepts: Found, tuned: Float[Tensor, "row d"], centre: Float[Tensor, " d"], dictionary: Dictionary | None
) -> Float[Tensor, "row k"]:
    """How strongly each row shows each direction: the latent's activation, or the projection from the base's mean."""
    if concepts.latents is None or dictionary is None:
        return (tuned - centre) @ concepts.directions.T
    return torch.cat([dictionary.encode(part)[:, concepts.latents] for part in tuned.split(256)])


def _words(concepts: Found, model: AdaptedModel | None, base: Float[Tensor, "row d"]) -> list[tuple[str, str]]:
    if model is None:
        return [("", "")] * len(concepts.directions)
    size = 0.1 * float(base.norm(dim=-1).mean())
    readings = direction_readings(model, concepts.directions, base.mean(0), size)
    return [(shown(reading.up), shown(reading.down)) for reading in readings]
