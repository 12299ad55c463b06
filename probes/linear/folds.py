"""Labels, groups and folds: what belongs together is held out together."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any

import numpy as np

from workbench.cards import counted
from workbench.errors import UserError


def two_classes(labels: Sequence[Any]) -> tuple[np.ndarray, tuple[str, str]]:
    """[row] bool, and the names of the negative and the positive class (in sorted order)."""
    # A table has nan where a prompt has no label.
    missing = [
        number for number, label in enumerate(labels) if label is None or (isinstance(label, float) and isnan(label))
    ]
    if missing:
        raise UserError(f"Row {missing[0]} has no label ({len(missing)} in all lack one); a probe needs every label.")
    names = sorted({str(label) for label in labels})
    if len(names) != 2:
        shown = ", ".join(names[:5])
        raise UserError(
            f"A linear probe tells two classes apart, and the labels have {len(names)} ({shown}): "
            "choose rows of two classes."
        )
    return np.array([str(label) == names[1] for label in labels]), (names[0], names[1])


def numbered(groups: Sequence[Any]) -> np.ndarray:
    """[row] numbers, equal for equal groups."""
    return np.unique([str(group) for group in groups], return_inverse=True)[1]


def make_folds(folds: int | Sequence[int], groups: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """[row] the fold each row is held out in. A number asks for that many folds of whole groups, dealt so that the
    classes stay balanced; a sequence is taken as it is when no group straddles two folds."""
    n_groups = int(groups.max()) + 1
    if isinstance(folds, int):
        if not 2 <= folds <= n_groups:
            few = f"ask for 2 to {n_groups}" if n_groups > 2 else "ask for 2" if n_groups == 2 else "give rows of more"
            raise UserError(f"{folds} folds cannot be made of {counted(n_groups, 'group')}: {few}.")
        fold_of = _dealt(folds, groups, y, np.random.default_rng(seed))
    else:
        fold_of = np.unique(np.asarray(folds), return_inverse=True)[1]
        if len(fold_of) != len(groups):
            raise UserError(f"There are {len(fold_of)} fold numbers for {len(groups)} rows; give one for each.")
        _refuse_leaks(fold_of, groups)
    for fold in range(int(fold_of.max()) + 1):
        if len(np.unique(y[fold_of != fold])) < 2:
            raise UserError(
                f"Without fold {fold} only one class is left to train on: use fewer folds or more groups of each class."
            )
    return fold_of


def folds_of_shuffled(
    folds: int | Sequence[int], fold_of: np.ndarray, groups: np.ndarray, shuffled: np.ndarray, seed: int
) -> np.ndarray:
    """[row, draw] the folds of shuffled labels, dealt anew where the folds of the true labels were dealt.

    Folds balanced for the true labels are not so for shuffled ones, and a probe on unbalanced folds errs more often
    than chance: against such a null the true labels would look better than they are.
    """
    if not isinstance(folds, int):
        return np.repeat(fold_of[:, None], shuffled.shape[1], axis=1)
    random = np.random.default_rng(seed + 2)
    return np.stack([_dealt(folds, groups, labels, random) for labels in shuffled.T], axis=1)


def _dealt(folds: int, groups: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """[row] whole groups dealt to the folds in order of their share of the positive class, ties at random."""
    share = np.bincount(groups, weights=y) / np.bincount(groups)
    order = np.lexsort((random.random(len(share)), share))
    of_group = np.empty(len(share), dtype=int)
    of_group[order] = np.arange(len(share)) % folds
    return of_group[groups]


def _refuse_leaks(folds: np.ndarray, groups: np.ndarray) -> None:
    pairs = np.unique(np.stack([groups, folds]), axis=1)
    leaks = np.flatnonzero(np.bincount(pairs[0]) > 1)
    if len(leaks):
        raise UserError(
            f"{len(leaks)} groups are split over several folds, so the probe would be tested on what it was trained "
            "on: put all rows of a group into one fold."
        )


def shuffled_labels(y: np.ndarray, groups: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """[row, draw] labels without meaning: exchanged within groups where groups hold both classes, else between
    groups, so that the groups' structure stays."""
    random = np.random.default_rng(seed + 1)
    members = [np.flatnonzero(groups == group) for group in range(int(groups.max()) + 1)]
    mixed = any(len(np.unique(y[rows])) > 1 for rows in members)
    labels = np.empty((len(y), draws), dtype=bool)
    for draw in range(draws):
        if mixed:
            for rows in members:
                labels[rows, draw] = random.permutation(y[rows])
        else:
            of_group = random.permutation([y[rows[0]] for rows in members])
            labels[:, draw] = of_group[groups]
    return labels
