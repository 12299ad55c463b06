"""Training a BatchTopK dictionary (Bussmann et al. 2024; as a crosscoder: Minder et al. 2025) on streamed rows.

Over a batch the ``k`` times batch-size largest activations are kept. Decoder rows have length 1 (over both models side
by side, for a crosscoder), so an activation is the length of what its latent writes. Latents that stopped firing are
drawn back by an auxiliary loss on the residual (Gao et al. 2024). After training one threshold takes the place of the
batch, which makes it a JumpReLU dictionary whose activations do not depend on other rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from probes.dictionaries.streaming import SiteRows
from workbench.errors import UserError
from workbench.progress import Progress
from workbench.typing import Float, Tensor

DEAD_AFTER = 20
"""Batches without firing after which a latent counts as dead."""
AUXILIARY = 1 / 32
"""Weight of the dead latents' loss."""
DECAY = 0.3
"""The last part of training over which the step size falls to 0."""


@dataclass(frozen=True)
class Training:
    """How a dictionary is trained."""

    width: int
    k: int
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Trained:
    """Weights in the activations' own units, as SAELens names them, and how training went."""

    weights: dict[str, Tensor]
    """W_enc [d_in, latent], b_enc, W_dec [latent, d_out] with rows of length 1, b_dec, threshold [latent]."""
    history: list[dict[str, float]]
    """step, loss (unexplained share of the batch's variance), dead (latents)."""


@dataclass(frozen=True)
class _Units:
    """Centre and scale of what is read and written, so that training sees entries of variance 1."""

    centre_in: Float[Tensor, " d_in"]
    centre_out: Float[Tensor, " d_out"]
    scale_in: float
    scale_out: float

    @classmethod
    def of(cls, rows: SiteRows) -> _Units:
        inputs, wanted = rows.pair(rows.sample)
        if not (torch.isfinite(inputs).all() and torch.isfinite(wanted).all()):
            raise UserError("The recording holds values that are not finite at this site: leave those prompts out.")
        centre_in, centre_out = inputs.mean(0), wanted.mean(0)
        spread_in, spread_out = (
            float((rows_of - rows_of.mean(0)).square().mean().sqrt()) for rows_of in (inputs, wanted)
        )
        if spread_out == 0 or spread_in == 0:
            raise UserError(
                "Nothing to find: what the dictionary should write is the same on every row (base and tuned are the "
                "same here, or differ by a constant)."
            )
        return cls(centre_in, centre_out, 1 / spread_in, 1 / spread_out)

    def own(self, weights: dict[str, Tensor], threshold: float) -> dict[str, Tensor]:
        """The trained weights for raw activations."""
        encoder = weights["W_enc"] * (self.scale_in / self.scale_out)
        return {
            "W_enc": encoder.contiguous(),
            "b_enc": weights["b_enc"] / self.scale_out - self.centre_in @ encoder,
            "W_dec": weights["W_dec"].contiguous(),
            "b_dec": self.centre_out + weights["b_dec"] / self.scale_out,
            "threshold": torch.full((encoder.shape[1],), threshold / self.scale_out),
        }


def train(rows: SiteRows, training: Training, progress: Progress) -> Trained:
    """Train on the training rows, several epochs, one buffer of them in memory at a time."""
    _check(rows, training)
    units, weights = _Units.of(rows), _initial(rows, training)
    optimiser = torch.optim.Adam(weights.values(), lr=training.learning_rate)
    steps = training.epochs * -(-len(rows.train) // training.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (1 - step / steps) / DECAY + 1e-3))
    silent = torch.zeros(training.width, dtype=torch.long)
    history: list[dict[str, float]] = []
    progress.start("dictionary", steps)
    try:
        for step, (inputs, wanted) in enumerate(_batches(rows, training, units)):
            loss, unexplained, fired = _loss(weights, inputs, wanted, training.k, silent > DEAD_AFTER)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                weights["W_dec"].copy_(normalize(weights["W_dec"], dim=-1))
            silent = torch.where(fired, 0, silent + 1)
            history.append({"step": float(step), "loss": unexplained, "dead": float((silent > DEAD_AFTER).sum())})
            progress.advance()
    finally:
        progress.finish()
    detached = {name: weight.detach() for name, weight in weights.items()}
    return Trained(units.own(detached, _threshold(detached, rows, units, training.k)), history)


def _check(rows: SiteRows, training: Training) -> None:
    if training.k >= training.width:
        raise UserError(f"k is {training.k} of {training.width} latents: give fewer active latents than the width.")
    if len(rows.train) < training.batch_size:
        raise UserError(
            f"{len(rows.train)} rows are fewer than one batch of {training.batch_size}: record more prompts or tokens, "
            "or give a smaller batch_size."
        )


def _initial(rows: SiteRows, training: Training) -> dict[str, Tensor]:
    """Random decoder rows, the same for both models of a crosscoder; where what is read is what is written, the encoder
    starts as their transpose."""
    generator = torch.Generator().manual_seed(training.seed)
    d_in, d_out = (side.shape[1] for side in rows.pair(rows.train[:1]))
    parts = d_out // rows.d_model
    decoder = normalize(torch.randn(training.width, rows.d_model, generator=generator).repeat(1, parts), dim=-1)
    encoder = decoder.T.clone() if d_in == d_out else torch.randn(d_in, training.width, generator=generator) / d_in**0.5
    made = {
        "W_enc": encoder, "b_enc": torch.zeros(training.width), "W_dec": decoder, "b_dec": torch.zeros(d_out),
    }  # fmt: skip
    return {name: weight.requires_grad_() for name, weight in made.items()}


def _batches(rows: SiteRows, training: Training, units: _Units) -> Iterator[tuple[Tensor, Tensor]]:
    generator = np.random.default_rng(training.seed)
    for _ in range(training.epochs):
        for inputs, wanted in rows.shuffled(training.batch_size, generator):
            yield (inputs - units.centre_in) * units.scale_in, (wanted - units.centre_out) * units.scale_out


def _loss(
    weights: dict[str, Tensor], inputs: Float[Tensor, "row d_in"], wanted: Float[Tensor, "row d_out"], k: int,
    dead: Tensor,
) -> tuple[Float[Tensor, ""], float, Tensor]:  # fmt: skip
    """The loss, the unexplained share of the variance, and which latents fired."""
    before = inputs @ weights["W_enc"] + weights["b_enc"]
    active = _largest(before.relu(), k * len(inputs))
    missing = wanted - active @ weights["W_dec"] - weights["b_dec"]
    loss = missing.square().mean()
    unexplained = float(loss.detach()) / max(float(wanted.square().mean()), 1e-12)
    if dead.any():
        revived = _largest(before[:, dead].relu(), min(int(dead.sum()), 4 * k) * len(inputs))
        left = missing.detach() - revived @ weights["W_dec"][dead]
        loss = loss + AUXILIARY * left.square().mean()
    return loss, unexplained, (active.detach() > 0).any(0)


def _largest(activations: Float[Tensor, "row latent"], count: int) -> Float[Tensor, "row latent"]:
    """The ``count`` largest of the whole batch; the others become 0."""
    if count >= activations.numel():
        return activations
    least = activations.detach().flatten().kthvalue(activations.numel() - count).values
    return activations * (activations > least)


@torch.no_grad()
def _threshold(weights: dict[str, Tensor], rows: SiteRows, units: _Units, k: int) -> float:
    """What an activation must exceed for ``k`` of them per row, on a sample of the training rows."""
    inputs, _ = rows.pair(rows.sample)
    before = ((inputs - units.centre_in) * units.scale_in) @ weights["W_enc"] + weights["b_enc"]
    flat = before.relu().flatten().numpy()
    count = min(k * len(inputs), flat.size - 1)
    return float(np.partition(flat, flat.size - count - 1)[flat.size - count - 1])
