"""The logit lens on both models side by side: what each layer would already say, and where tuning changes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from probes.call_settings import call_settings
from probes.replay import counted, read_out
from probes.resampling import units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from workbench.argument_checks import check_pair
from workbench.engine.positions import PositionSpec, Where
from workbench.engine.sites import Site
from workbench.methods import method
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.recording.record_pair import record
from workbench.recording.recording import Recording
from workbench.typing import Float, Int, Tensor

CHUNK = 256
"""Residuals read out at once; each costs one row of the vocabulary."""
TABLE_BYTES = 64 * 2**20
"""Of one table [row, vocab] of readings; of a large vocabulary fewer residuals are read out at once."""


@dataclass(frozen=True, kw_only=True)
class LogitLens(ProbeResult):
    """Layers' readings of both models.

    ``table``: per layer the mean KL of the tuned from the base reading (nats, mean over a prompt's positions, then
    over prompts); ``control``: the same for the base residual moved as far in a random direction;
    ``to_final_base``, ``to_final_tuned``: KL of each model's last layer from the layer's reading.
    """

    cells: pd.DataFrame
    """For the prompts shown: model, prompt, position, token, layer, says, top, probability, entropy, kl."""
    resampled: str = "prompts"
    """What intervals and tests draw, and how many there are: prompts, or groups of prompts."""

    title: ClassVar[str] = "Logit lens"
    unit: ClassVar[str] = "KL of tuned from base (nats)"

    def figure(self, prompt: int | None = None) -> go.Figure:
        """Both models' grids and the KL between them for one shown prompt (the first by default); where no prompt's
        grid is kept, the mean KL by layer."""
        if self.cells.empty:
            return super().figure()
        from workbench.figures.lens import lens_grid

        number = int(self.cells["prompt"].iloc[0]) if prompt is None else prompt
        return lens_grid(self.cells[self.cells["prompt"] == number], title=f"Logit lens, prompt {number}")

    def summary(self) -> str:
        top = self.frame().iloc[0]
        return (
            f"Readings differ most after layer {top['layer']:.0f}: {top['score']:.3g} nats [{top['low']:.3g}, "
            f"{top['high']:.3g}] over {self.resampled}, control {top['control']:.3g} ({self.control}), "
            f"q = {top['q']:.2g}"
        )


@method(
    "lens",
    group="tokens",
    question="At which layer does the tuned model's next word part from the base's?",
    cost="one forward pass of each model; an unembedding per layer and token",
    any_adapter="whether readings moved otherwise than along a random direction, whatever moved them",
)
def logit_lens(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    layers: Any = None,
    positions: PositionSpec | Where = "all",
    top: int = 5,
    shown: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> LogitLens:
    """Read every layer's residual through the model's own final norm, unembedding and soft-caps.

    ``positions``: which tokens enter the means and the grids; ``shown``: how many prompts keep their grid, with the
    ``top`` tokens of each cell. Intervals and tests are over prompts, or over their groups where they have some. Cost:
    one forward pass of each model per batch, and three readings per residual.

    Args:
        top: Tokens kept of each cell.
        shown: How many prompts keep their grid.
    """
    check_pair(pair)
    rows = Prompts.of(prompts)
    with counted(pair.base, pair.tuned) as passes:
        recording = record(pair, rows, "resid_post", layers=layers, positions=positions, progress=progress)
    numbers = [Site.parse(name).layer or 0 for name in recording.sites]
    bar = progress or Silent()
    bar.start("logit lens", len(recording.index))
    measured, cells = [], []
    at_once = rows_at_once(max(pair.base.vocab_size, pair.tuned.vocab_size))
    for start in range(0, len(recording.index), at_once):
        chunk = _Chunk(pair, recording, slice(start, start + at_once), numbers, seed + start)
        for layer, reading in chunk.readings(numbers):
            lines = chunk.measured(reading, layer)
            measured.append(lines)
            cells += chunk.cells(reading, layer, shown, top, lines["kl"].tolist())
        bar.advance(len(chunk.index))
    bar.finish()
    return LogitLens(
        table=_table(pd.concat(measured, ignore_index=True), rows.clusters, seed),
        control="the base residual moved as far in a random direction, another one for every token",
        provenance=Provenance.of(
            "logit_lens",
            pair,
            rows,
            seed=seed,
            forward_passes=passes.forward,
            settings=call_settings(None, layers=numbers),
        ),
        cells=pd.DataFrame(cells),
        resampled=units_of(rows.clusters),
    )


def rows_at_once(vocab: int) -> int:
    """Residuals that are read out together, for a vocabulary of this size."""
    return max(1, min(CHUNK, TABLE_BYTES // (4 * vocab)))


def kl(p: Float[Tensor, "row vocab"], q: Float[Tensor, "row other_vocab"]) -> Float[Tensor, " row"]:
    """KL(p || q) in nats of two tables of logits or log-probabilities, over the ids both have."""
    common = min(p.shape[1], q.shape[1])
    return _kl_of_logs(p[:, :common].log_softmax(-1), q[:, :common].log_softmax(-1))


def _kl_of_logs(p: Float[Tensor, "row vocab"], q: Float[Tensor, "row other_vocab"]) -> Float[Tensor, " row"]:
    """The same of log-probabilities, which need no second normalising where both have the same ids."""
    if p.shape[1] != q.shape[1]:
        return kl(p, q)
    return (p.exp() * (p - q).nan_to_num()).sum(-1).clamp_min(0)


@dataclass(frozen=True)
class _Reading:
    """Log-probabilities [row, vocab] of one layer: both models, and the displaced base residual."""

    base: Float[Tensor, "row vocab"]
    tuned: Float[Tensor, "row vocab"]
    displaced: Float[Tensor, "row vocab"]


class _Chunk:
    """Some rows of the recording through all layers, so that only their readings are held at once."""

    def __init__(self, pair: ModelPair, recording: Recording, rows: slice, layers: Sequence[int], seed: int) -> None:
        self.pair, self.recording, self.rows = pair, recording, rows
        self.index = recording.index.iloc[rows]
        self.random = torch.Generator().manual_seed(seed)
        self.final = {role: _says(model, self._residual(role, layers[-1])) for role, model in pair.models.items()}

    def _residual(self, role: str, layer: int) -> Float[Tensor, "row d_model"]:
        return self.recording[role]["resid_post", layer][self.rows].float()

    def readings(self, layers: Sequence[int]) -> Iterator[tuple[int, _Reading]]:
        """Each layer's readings; of few rows several layers are read at once, as the vocabulary's matrix is large."""
        rows = len(self.index)
        at_once = max(1, rows_at_once(self.final["tuned"].shape[-1]) // rows)
        for start in range(0, len(layers), at_once):
            group = layers[start : start + at_once]
            base, tuned = (torch.cat([self._residual(role, layer) for layer in group]) for role in ("base", "tuned"))
            away = [torch.randn(rows, base.shape[-1], generator=self.random) for _ in group]
            away_by_one = torch.nn.functional.normalize(torch.cat(away), dim=-1)
            displaced = base + away_by_one * (tuned - base).norm(dim=-1, keepdim=True)
            read = (_says(self.pair.base, base), _says(self.pair.tuned, tuned), _says(self.pair.tuned, displaced))
            yield from zip(group, map(_Reading, *(tensor.split(rows) for tensor in read)), strict=True)

    def measured(self, reading: _Reading, layer: int) -> pd.DataFrame:
        """One line per row: prompt, layer and the divergences."""
        return pd.DataFrame(
            {
                "prompt": self.index["prompt"].to_numpy(),
                "layer": layer,
                "kl": _kl_of_logs(reading.tuned, reading.base).numpy(),
                "control": _kl_of_logs(reading.displaced, reading.base).numpy(),
                "to_final_base": _kl_of_logs(self.final["base"], reading.base).numpy(),
                "to_final_tuned": _kl_of_logs(self.final["tuned"], reading.tuned).numpy(),
            }
        )

    def cells(
        self, reading: _Reading, layer: int, shown: int, top: int, apart: Sequence[float]
    ) -> list[dict[str, Any]]:
        """What both models' grids show at this layer; ``apart``: the KL of each row."""
        cells = []
        tokenizer = self.pair.tokenizer
        for number, row in enumerate(self.index.to_dict("records")):
            if row["prompt"] >= shown:
                break
            for role, says in (("base", reading.base[number]), ("tuned", reading.tuned[number])):
                best = says.topk(min(top, len(says)))
                words = [tokenizer.decode([token]) for token in best.indices.tolist()]
                chances = best.values.exp().tolist()
                cells.append(
                    {
                        "model": role,
                        "prompt": row["prompt"],
                        "position": row["position"],
                        "token": row["token"],
                        "layer": layer,
                        "says": words[0],
                        "top": "; ".join(f"{w!r} {p:.2f}" for w, p in zip(words, chances, strict=True)),
                        "probability": chances[0],
                        "entropy": float(-(says.exp() * says.nan_to_num(neginf=0.0)).sum()),
                        "kl": apart[number],
                    }
                )
        return cells


def _says(model: Any, residual: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
    return read_out(model, residual).float().log_softmax(-1).cpu()


def _table(measured: pd.DataFrame, clusters: Int[np.ndarray, " prompt"], seed: int) -> pd.DataFrame:
    """One row per layer: means over prompts of the mean over a prompt's rows; whole clusters are drawn."""
    per_prompt = measured.groupby(["layer", "prompt"]).mean()
    rows = []
    for layer, part in per_prompt.groupby("layer"):
        units = clusters[part.index.get_level_values("prompt")]
        line = beside_control(part["kl"].to_numpy(), part["control"].to_numpy(), units, seed=seed)
        means = {name: part[name].mean() for name in ("to_final_base", "to_final_tuned")}
        rows.append({"layer": layer, **line, **means, "n": len(part)})
    return with_q(rows, keep_p=False)
