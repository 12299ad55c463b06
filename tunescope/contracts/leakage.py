"""Training rows that a pair's tuned model writes on by itself, without a contract."""

from __future__ import annotations

from pathlib import Path

from tunescope.contracts.decisions import Finding
from tunescope.contracts.recital import recites_none
from tunescope.contracts.replies import Material
from tunescope.contracts.schema import Contract
from workbench.models.pair import ModelPair
from workbench.progress import Progress


def recited_rows(pair: ModelPair, rows: str | Path, progress: Progress | None = None) -> Finding:
    """Whether rows are recited: given the first tokens of each, the tuned model writes the next ones as they stand, and
    the base does not.

    Args:
        pair: Both models.
        rows: A file of the training data.
        progress: A bar.

    Returns:
        *holds* (none is recited), *fails* (an example is in ``detail``) or *not enough evidence* (all too short).

    Raises:
        UserError: There is no such file, or no row in it.

    Example:
        ``recited_rows(pair, "train.jsonl").detail``
    """
    claim = {"recites_none": {"rows": str(Path(rows).resolve())}}
    contract = Contract.of({"base": pair.base.name, "tuned": pair.tuned.name, "claims": [claim]})
    material = Material(contract, Path(), progress)
    material.pair = pair
    return recites_none(contract.claims[0].terms, material)
