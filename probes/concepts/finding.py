"""The ways to find directions: each takes rows of both models and returns unit directions, the strongest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from probes.concepts.dictionary import Dictionary
from probes.linear.folds import two_classes
from probes.linear.logistic import fit
from probes.principal import principal
from workbench.errors import UserError, unknown_name
from workbench.typing import Float, Tensor

METHODS = ("mean", "pca", "pca-uncentred", "labels-mean", "labels-probe", "sae")


class Rows(NamedTuple):
    """Residuals of both models at one site, and each row's label (None where labels are not used)."""

    base: Float[Tensor, "row d"]
    tuned: Float[Tensor, "row d"]
    labels: Sequence[Any] | None = None


class Found(NamedTuple):
    """Unit directions, and for a dictionary which latents they are."""

    directions: Float[Tensor, "k d"]
    latents: list[int] | None = None


def find(method: str, rows: Rows, k: int, dictionary: Dictionary | None) -> Found:
    """Up to ``k`` directions by ``method``."""
    if method == "mean":
        return Found(_unit((rows.tuned - rows.base).mean(0, keepdim=True)))
    if method in ("pca", "pca-uncentred"):
        return Found(principal(rows.tuned - rows.base, k, centred=method == "pca").directions)
    if method in ("labels-mean", "labels-probe"):
        return Found(_from_labels(method, rows))
    if method == "sae":
        return _latents(rows, k, dictionary)
    raise unknown_name("method", method, METHODS)


def _from_labels(method: str, rows: Rows) -> Float[Tensor, "one d"]:
    """From the negative to the positive class, in the tuned model."""
    if rows.labels is None:
        raise UserError(f"The method {method!r} needs labels: give one for each prompt, or prompts with labels.")
    y = torch.from_numpy(two_classes(rows.labels)[0])
    if method == "labels-mean":
        return _unit((rows.tuned[y].mean(0) - rows.tuned[~y].mean(0))[None])
    centred = rows.tuned - rows.tuned.mean(0)
    scale = centred.square().mean().sqrt().clamp_min(1e-12)
    return _unit(fit((centred / scale)[None], y).weight)


def _latents(rows: Rows, k: int, dictionary: Dictionary | None) -> Found:
    """The latents whose mean activation tuning changed most, either way (Casademunt et al. 2025, method a)."""
    if dictionary is None:
        raise UserError("The method 'sae' needs a dictionary: give the SAELens folder as dictionary=.")
    width = dictionary.decoder.shape[1]
    if width != rows.tuned.shape[1]:
        raise UserError(
            f"The dictionary is for activations of width {width}, and these have {rows.tuned.shape[1]}: "
            "give a dictionary of this model and site."
        )
    change = _mean_activation(dictionary, rows.tuned) - _mean_activation(dictionary, rows.base)
    order = np.argsort(-change.abs().numpy(), kind="stable")[:k]
    latents = [int(latent) for latent in order if change[latent] != 0]
    if not latents:
        raise UserError("No latent of the dictionary changes between base and tuned on these rows.")
    return Found(_unit(dictionary.decoder[latents]), latents)


def _mean_activation(dictionary: Dictionary, rows: Float[Tensor, "row d"]) -> Float[Tensor, " latent"]:
    total = sum(dictionary.encode(part).double().sum(0) for part in rows.split(256))
    assert isinstance(total, Tensor)
    return (total / len(rows)).float()


def _unit(directions: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
    return torch.nn.functional.normalize(directions, dim=-1)
