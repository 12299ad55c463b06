"""Held-out linear and small non-linear probes of several classes, for many cells, folds and labellings at once.

Linear probes are one logistic regression per class (one against the rest) with :mod:`probes.linear.logistic`; the class
of the largest logit is the answer. Features wider than there are rows are first turned into as many coordinates as
there are rows (along an orthonormal basis of the rows), which changes no fit of an L2-penalised linear probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from probes.linear.folds import numbered
from probes.linear.logistic import Features, cell_chunks, solve
from workbench.argument_checks import check_labels
from workbench.errors import UserError
from workbench.typing import Bool, Float, Int, Tensor

Kind = Literal["linear", "mlp"]
BUDGET = 2**22
HIDDEN = 32
"""Hidden units of the non-linear probe."""
AXES = 64
"""Principal axes that the non-linear probe reads."""
STEPS = 150
FEWEST = 4
"""Rows that every class needs."""


def classes_of(labels: Sequence[Any]) -> tuple[Int[np.ndarray, " row"], list[str]]:
    """[row] class numbers and their names in sorted order.

    Raises:
        UserError: A row has no label, there is one class only, or a class has too few rows.
    """
    check_labels(labels, FEWEST)
    values, numbers = np.unique([str(label) for label in labels], return_inverse=True)
    names: list[str] = values.tolist()
    return numbers, names


def dealt_folds(
    folds: int, groups: Int[np.ndarray, " row"], y: Int[np.ndarray, " row"], seed: int
) -> Int[np.ndarray, " row"]:
    """[row] the fold each is held out in: whole groups, dealt class by class so that all folds hold all classes.

    Raises:
        UserError: There are fewer groups than folds, or a fold would leave a class without training rows.
    """
    groups = numbered(groups.tolist())
    n_groups = int(groups.max()) + 1
    if not 2 <= folds <= n_groups:
        raise UserError(f"{folds} folds cannot be made of {n_groups} groups of rows: ask for 2 to {max(2, n_groups)}.")
    random = np.random.default_rng(seed)
    first = np.array([y[groups == number][0] for number in range(n_groups)])
    order = np.lexsort((random.random(n_groups), first))
    of_group = np.empty(n_groups, dtype=np.int64)
    of_group[order] = np.arange(n_groups) % folds
    folds_of = of_group[groups]
    for fold in range(folds):
        if len(np.unique(y[folds_of != fold])) < len(np.unique(y)):
            raise UserError(f"Without fold {fold} a class has no row left to train on: use fewer folds or more groups.")
    return folds_of


def compact(x: Float[Tensor, "cell row d"]) -> Float[Tensor, "cell row k"]:
    """The same rows in at most as many coordinates as there are rows; distances and products stay."""
    if x.shape[2] <= x.shape[1]:
        return x
    return torch.linalg.qr(x.mT, mode="r").R.mT


def held_out_right(
    x: Float[Tensor, "cell row d"],
    labels: Int[np.ndarray, "draw row"],
    folds: Int[np.ndarray, "draw row"],
    *,
    kind: Kind = "linear",
    ridge: float = 1.0,
    seed: int = 0,
) -> Bool[np.ndarray, "cell draw row"]:
    """Whether each row was told right by the probe that was not trained on its fold, for every labelling."""
    right = []
    for part in cell_chunks(len(x), x.shape[1], min(x.shape[1], x.shape[2]), BUDGET):
        read = _linear_logits if kind == "linear" else _mlp_logits
        logits = read(x[part].float(), labels, folds, ridge, seed)
        right.append((logits.argmax(-1) == torch.from_numpy(labels)).numpy())
    return np.concatenate(right)


def held_out_probabilities(
    x: Float[Tensor, "row d"], y: Int[np.ndarray, " row"], groups: Int[np.ndarray, " row"], folds: int, ridge: float,
    seed: int,
) -> Float[np.ndarray, "row class"]:  # fmt: skip
    """Class probabilities of each row by the linear probe that was not trained on its fold (one against the rest,
    brought to sum to 1)."""
    dealt = dealt_folds(folds, groups, y, seed)
    logits = _linear_logits(x[None].float(), y[None], dealt[None], ridge, seed)[0, 0]
    chance = logits.sigmoid()
    return (chance / chance.sum(-1, keepdim=True)).double().numpy()


def _linear_logits(
    x: Float[Tensor, "cell row d"], labels: Int[np.ndarray, "draw row"], folds: Int[np.ndarray, "draw row"],
    ridge: float, seed: int,  # noqa: ARG001 (as the other reader)
) -> Float[Tensor, "cell draw row class"]:  # fmt: skip
    n_classes, n_folds = int(labels.max()) + 1, int(folds.max()) + 1
    features = Features.of(compact(x).transpose(0, 1), ridge, standard=True)
    logits_of = torch.zeros(len(x), len(labels), x.shape[1], n_classes)
    for draw, (y, dealt) in enumerate(zip(labels, folds, strict=True)):
        out = torch.from_numpy(dealt[None] == np.arange(n_folds)[:, None])
        target = torch.from_numpy(y[None] == np.arange(n_classes)[:, None]).to(features.x.dtype)
        fits = target.repeat(n_folds, 1)
        rows = (~out).to(features.x.dtype).repeat_interleave(n_classes, 0)
        logits = solve(features, fits, rows).logits.unflatten(1, (n_folds, n_classes))
        held = torch.from_numpy(dealt)
        logits_of[:, draw] = logits[:, held, :, torch.arange(len(held))].transpose(0, 1)
    return logits_of


def _mlp_logits(
    x: Float[Tensor, "cell row d"], labels: Int[np.ndarray, "draw row"], folds: Int[np.ndarray, "draw row"],
    ridge: float, seed: int,
) -> Float[Tensor, "cell draw row class"]:  # fmt: skip
    """One hidden layer of tanh units on the leading principal axes, all cells, draws and folds trained together."""
    n_classes, n_folds, rows = int(labels.max()) + 1, int(folds.max()) + 1, x.shape[1]
    z = _leading_axes(x)
    out = torch.from_numpy(folds[:, None] == np.arange(n_folds)[None, :, None])  # [draw, fold, row]
    y = torch.from_numpy(labels)
    batch = len(x) * len(labels) * n_folds
    inputs = z[:, None, None].expand(-1, len(labels), n_folds, -1, -1).reshape(batch, rows, -1)
    trained = (~out)[None].expand(len(x), -1, -1, -1).reshape(batch, rows).float()
    target = y[None, :, None].expand(len(x), -1, n_folds, -1).reshape(batch, rows)
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, z.shape[-1], HIDDEN), (batch, 1, HIDDEN), (batch, HIDDEN, n_classes), (batch, 1, n_classes)]
    weights = [
        nn.Parameter(torch.randn(shape, generator=generator) * (shape[1] ** -0.5 if shape[1] > 1 else 0.0))
        for shape in shapes
    ]
    with torch.enable_grad():
        optimiser = torch.optim.Adam(weights, lr=0.02)
        for _ in range(STEPS):
            logits = _forward(inputs, weights)
            losses = nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")
            penalty = ridge / rows * sum(weight.square().sum() for weight in (weights[0], weights[2]))
            loss = (losses * trained).sum() / trained.sum(1).mean() + 0.5 * penalty
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        logits = _forward(inputs, weights).unflatten(0, (len(x), len(labels), n_folds))
    held = torch.from_numpy(folds)[None, :, None, :, None].expand(len(x), -1, 1, -1, n_classes)
    return logits.gather(2, held)[:, :, 0]


def _forward(inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
    hidden = torch.tanh(torch.baddbmm(weights[1], inputs, weights[0]))
    return torch.baddbmm(weights[3], hidden, weights[2])


def _leading_axes(x: Float[Tensor, "cell row d"]) -> Float[Tensor, "cell row k"]:
    """The rows along their leading principal axes, each cell scaled so that a coordinate's mean square is about 1."""
    centred = x - x.mean(1, keepdim=True)
    narrow = compact(centred)
    if narrow.shape[-1] > AXES:
        gram = torch.bmm(narrow.mT, narrow)
        vectors = torch.linalg.eigh(gram.double()).eigenvectors[..., -AXES:].to(narrow.dtype)
        narrow = torch.bmm(narrow, vectors)
    size = narrow.square().sum(-1).mean(-1, keepdim=True)[..., None]
    return narrow / (size / min(narrow.shape[-1], 8)).sqrt().clamp_min(1e-12)
