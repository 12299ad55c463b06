"""Which of a checkpoint's tensors a model loaded from it has, and as what it would save them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workbench.errors import UserError
from workbench.models.adapters import base_tensors
from workbench.models.loading import WRONG_TYPES, load_model
from workbench.models.sources import describe
from workbench.typing import Tensor


def as_stored(model: Any, named: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Weights under the names and in the pieces in which ``save_pretrained`` writes them; mostly views."""
    from transformers.core_model_loading import revert_weight_conversion

    root = model.get_base_model() if hasattr(model, "get_base_model") else model
    return list(revert_weight_conversion(root, dict(named)).items())


def loaded_names(folder: Path, stored: Iterable[str]) -> dict[str, str]:
    """Stored name -> the name under which the loaded model has it, of the tensors that loading reads.

    Old checkpoints also hold buffers, a tied weight twice, or names without the model's prefix (``h.0`` for
    ``transformer.h.0``). The model is made as a shape alone. Where that cannot be, or it lacks a tensor under all
    these names, every name stands for itself.
    """
    names = list(stored)
    try:
        shape = load_model(describe(folder), device="meta")
        wanted = {name for name, _ in as_stored(shape, base_tensors(shape))}
    except (UserError, ValueError, OSError, ImportError, *WRONG_TYPES):
        return {name: name for name in names}
    wanted -= set(getattr(shape, "all_tied_weights_keys", None) or ())
    prefix = f"{shape.base_model_prefix}."
    found = {name: own for name in names for own in (name, prefix + name) if own in wanted}
    return found if set(found.values()) == wanted else {name: name for name in names}
