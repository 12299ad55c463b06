"""What training a dictionary on both models leaves: its latents, whose they are, and where they fire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import plotly.graph_objects as go

from probes.concepts.dictionary import Dictionary
from probes.dictionaries.scaling import Directions
from probes.results import ProbeResult
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.typing import Float, Tensor

if TYPE_CHECKING:
    from interventions import Recipe

SCORES = {
    "crosscoder": "tuned's share of the latent's strength",
    "difference": "share of tuning's squared change",
    "transcoder": "share of tuning's squared change",
}


@dataclass(frozen=True, kw_only=True)
class TuningDictionary(ProbeResult):
    """A sparse dictionary of base and tuned, scored on prompts that it was not trained on.

    ``table``: one row per latent that fires there. For a crosscoder ``score`` is the tuned model's share of the
    latent's strength by latent scaling (1: only the tuned model has it, 0: only the base, 0.5: shared), ``kind`` names
    it, ``norm_share`` and ``cosine`` compare its two decoder rows. Otherwise ``score`` is the share of tuning's squared
    change along the latent. ``explained`` is that share in both; ``density`` the share of prompts where it fires.
    """

    form: str
    """crosscoder, difference or transcoder."""
    site: str
    layer: int
    weights: dict[str, Tensor]
    """W_enc [d_in, latent], b_enc, W_dec [latent, d_out], b_dec, threshold, for raw activations; d_in of a crosscoder
    is both models side by side."""
    history: pd.DataFrame
    """step, loss (unexplained share of the batch's variance), dead."""
    examples: pd.DataFrame
    """latent, value, prompt, position, context: the token stands between » and «."""
    labelled: pd.DataFrame
    """feature, latent, auroc, low, high, train, control: latents that follow the labels best, and the difference of
    means."""
    explained: float
    """Share of the held-out variance that the dictionary reconstructs."""
    active: float
    """Mean active latents per held-out row."""
    tokens: str = "all recorded tokens"

    title: ClassVar[str] = "Dictionary of tuning"
    unit: ClassVar[str] = "tuned's share of the latent, or share of tuning's change"

    @property
    def dictionary(self) -> Dictionary:
        """The encoder and decoder."""
        return dictionary_of(self.weights, self.form, Site(self.site, self.layer))

    @property
    def directions(self) -> Directions:
        """Each latent's decoder row for both models, and the change it stands for."""
        return Directions.of(self.weights["W_dec"], self.form == "crosscoder")

    def direction(self, latent: int) -> Float[Tensor, " d_model"]:
        """What the latent adds to the tuned model's residual for an activation of 1 (of a difference dictionary or a
        transcoder: what it changes)."""
        count = len(self.weights["W_dec"])
        if not 0 <= latent < count:
            raise UserError(f"The dictionary has latents 0 to {count - 1}; got {latent}.")
        directions = self.directions
        return (directions.change if directions.tuned is None else directions.tuned)[latent].clone()

    def offset(self, latent: int, strength: float = 1.0, **options: Any) -> Recipe:
        """A recipe that adds ``strength`` times :meth:`direction`; ``options`` go to :class:`interventions.Offset`."""
        from interventions import Offset, Recipe

        made = Offset(self.layer, self.direction(latent), site=self.site, strength=strength, **options)
        return Recipe([made])

    def ablation(self, latents: Sequence[int], **options: Any) -> Recipe:
        """A recipe that takes the latents' directions out; ``options`` go to
        :class:`interventions.ConceptAblation`."""
        import torch

        from interventions import ConceptAblation, Recipe

        if not latents:
            raise UserError("No latent was given: name at least one of the table.")
        rows = torch.stack([self.direction(latent) for latent in latents])
        return Recipe([ConceptAblation(self.layer, rows, site=self.site, **options)])

    def save_dictionary(self, folder: str | Path) -> Path:
        """Write the dictionary as a SAELens folder; a crosscoder is one autoencoder of [base; tuned] side by side."""
        return self.dictionary.save(folder, metadata={"tunescope_form": self.form})

    def figure(self) -> go.Figure:
        """Every latent: its score against the share of tuning's change that it carries."""
        from workbench.figures.dictionaries import latent_figure

        return latent_figure(self.table, title=f"{self.title}: {self.form} at {self.site} of layer {self.layer}",
                             score=SCORES[self.form])  # fmt: skip

    def summary(self) -> str:
        best = self.table.sort_values("explained", ascending=False).iloc[0]
        held = (
            f"{self.form} of {len(self.weights['W_dec'])} latents at {self.site} of layer {self.layer}: explains "
            f"{self.explained:.1%} of the variance on held-out prompts with {self.active:.1f} active latents per row; "
            f"{len(self.table)} latents fire there"
        )
        if self.form == "crosscoder":
            kinds = self.table["kind"].value_counts()
            held += "; " + ", ".join(
                f"{int(kinds.get(kind, 0))} {kind}" for kind in ("tuned", "base", "shared", "mixed")
            )
        text = (
            f"{held}; latent {best['latent']:.0f} carries most of tuning's change, a share of {best['explained']:.2g}"
        )
        if self.form != "crosscoder":
            text += f" [{best['low']:.2g}, {best['high']:.2g}], control {best['control']:.2g}, q = {best['q']:.2g}"
        if len(self.labelled):
            first, means = self.labelled.iloc[0], self.labelled.iloc[-2:]["auroc"]
            text += (
                f"; latent {first['latent']} tells the labels apart with AUROC {first['auroc']:.2f} "
                f"[{first['low']:.2f}, {first['high']:.2f}], difference of means {means.max():.2f}, "
                f"shuffled labels {first['control']:.2f}"
            )
        return f"{text}; control: {self.control}"


def dictionary_of(weights: dict[str, Tensor], form: str, site: Site) -> Dictionary:
    """The weights as a JumpReLU dictionary that reads raw activations."""
    return Dictionary(
        weights=weights, architecture="jumprelu", k=None, subtract_bias=False, normalize="none", by_decoder_norm=False,
        site=site, folder="", transcodes=form == "transcoder",
    )  # fmt: skip
