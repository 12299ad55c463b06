"""What one attention head says: the tokens its write into the residual stream makes more and less likely.

The logit read-out of a head's output (after nostalgebraist 2020 and Dar et al. 2022), for both models, at the last
token of real prompts rather than for weights alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from probes.patches.runs import output_matrix
from probes.replay import counted, read_out
from probes.resampling import cluster_means
from probes.results import ProbeResult, Provenance
from probes.scored import with_q
from workbench.argument_checks import check_pair
from workbench.engine.hub import missing_site
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.prompts.collection import Prompts
from workbench.recording.record_pair import record
from workbench.stats.bootstrap import mean_intervals
from workbench.stats.tests import paired_permutation
from workbench.typing import Float, Tensor

DRAWS = 10


@dataclass(frozen=True, kw_only=True)
class HeadWords(ProbeResult):
    """Tokens by the change of their logit that the head's write makes at the last prompt token.

    ``table``: model, layer, head, token_id, token, ``score`` (mean over prompts of the logit with the head's write
    minus the logit without it, through the model's own final norm; the mean over the vocabulary is taken out), its
    interval,
    ``control`` (the same for random vectors of the write's length, with the 95 % range of the draws ``control_low``,
    ``control_high``), ``q``. The strongest tokens of either sign, of both models.
    """

    layer: int
    head: int
    norm: dict[str, float]
    """Model -> mean length of the write."""

    title: ClassVar[str] = "What a head writes"
    unit: ClassVar[str] = "change of the logit"

    def figure(self) -> go.Figure:
        """The strongest tokens of each model as bars with intervals and the range of random writes."""
        from workbench.figures.words import word_bars

        title = f"L{self.layer}H{self.head}: what its write raises and lowers"
        return word_bars(self.table, title=f"{title} (n = {self.provenance.n_prompts} prompts)")

    def summary(self) -> str:
        said = []
        for model, rows in self.table.groupby("model", sort=False):
            best = rows.sort_values("score", ascending=False).iloc[0]
            said.append(
                f"{model} raises {best['token']!r} most, {best['score']:+.3g} [{best['low']:+.3g}, {best['high']:+.3g}]"
            )
        return f"L{self.layer}H{self.head}: {'; '.join(said)}; control: {self.control}"


@method(
    "head-words",
    group="heads",
    question="Which words does this head write, before and after tuning?",
    cost="one forward pass of each model",
    example="--layer 1 --head 0",
    any_adapter="whether the head moves the word more than random vectors do, in one model at a time",
)
def head_words(
    pair: ModelPair, prompts: Prompts | Sequence[Any], layer: int, head: int, *, top: int = 8, seed: int = 0
) -> HeadWords:
    """Read one head's write at the last token of each prompt, in both models.

    ``top``: tokens kept of each sign and model. Raises :class:`UserError` for a head that is not there, and
    :class:`workbench.errors.NotSupported` where a norm stands between the heads and the residual stream. Cost: one
    forward pass of each model per batch, and twelve readings per prompt.

    Args:
        head: The head's number.
        top: Tokens kept of each sign and model.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    _check(pair.tuned, layer, head)
    last = pair.tuned.n_layers - 1
    sites = [f"blocks.{layer}.attn.hook_z", f"blocks.{last}.hook_resid_post"]
    with counted(pair.base, pair.tuned) as passes:
        recording = record(pair, rows, sites, positions="last")
        tables, norm = [], {}
        for role, model in pair.models.items():
            z, end = (recording[role][site][:] for site in sites)
            write = z[:, head].to(model.device) @ output_matrix(model, layer)[head]
            norm[role] = float(write.float().norm(dim=-1).mean())
            tables.append(_table(model, end.to(write), write, rows.clusters, top, seed).assign(model=role))
    table = pd.concat(tables, ignore_index=True).assign(layer=layer, head=head)
    return HeadWords(
        table=with_q(table, keep_p=False),
        control=f"random vectors as long as the write ({DRAWS} draws per prompt)",
        provenance=Provenance.of("head_words", pair, rows, seed=seed, forward_passes=passes.forward),
        layer=layer,
        head=head,
        norm=norm,
    )


def _check(model: AdaptedModel, layer: int, head: int) -> None:
    with_heads = model.hub.geometry.attention_layers
    if layer not in with_heads and (0 <= layer < model.n_layers or not with_heads):
        raise missing_site(model.hub, Site("z", layer))
    if not 0 <= layer < model.n_layers or not 0 <= head < model.n_heads:
        raise UserError(
            f"There is no head L{layer}H{head}: the model has layers 0 to {model.n_layers - 1} with heads 0 to "
            f"{model.n_heads - 1}."
        )


def _table(
    model: AdaptedModel,
    end: Float[Tensor, "row d_model"],
    write: Float[Tensor, "row d_model"],
    clusters: np.ndarray,
    top: int,
    seed: int,
) -> pd.DataFrame:
    """One row per token kept."""
    plain = read_out(model, end)
    change = _change(model, plain, end, write)
    mean = change.mean(0)
    count = min(top, change.shape[1] // 2 or 1)
    ids = torch.cat([mean.topk(count).indices, mean.topk(count, largest=False).indices.flip(0)])
    random = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(DRAWS):
        away = torch.nn.functional.normalize(torch.randn(write.shape, generator=random), dim=-1).to(write)
        other = away * write.norm(dim=-1, keepdim=True)
        drawn.append(_change(model, plain, end, other)[:, ids].mean(0))
    control = torch.stack(drawn).double().numpy()
    values = change[:, ids].double().numpy()
    intervals = mean_intervals(values, clusters=clusters, seed=seed)
    low, high = np.quantile(control, [0.025, 0.975], axis=0)
    return pd.DataFrame({
        "token_id": ids.tolist(), "token": [model.tokenizer.decode([value]) for value in ids.tolist()],
        "score": intervals.estimate, "low": intervals.low, "high": intervals.high, "control": control.mean(0),
        "control_low": low, "control_high": high, "n": len(values),
        "p": paired_permutation(cluster_means(values - control.mean(0), clusters), seed=seed).p,
    })  # fmt: skip


def _change(
    model: AdaptedModel,
    plain: Float[Tensor, "row vocab"],
    end: Float[Tensor, "row d_model"],
    write: Float[Tensor, "row d_model"],
) -> Float[Tensor, "row vocab"]:
    """Logits with the write minus logits without it; a constant over the vocabulary says nothing and is taken out."""
    change = (plain - read_out(model, end - write)).float().cpu()
    return change - change.mean(-1, keepdim=True)
