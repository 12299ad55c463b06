"""llama.cpp control vectors (GGUF).

Convention, written and read: the F32 tensor ``direction.k`` [d_model] is added to the output of block k, counted from
0: our ``resid_post`` of layer k, and repeng's. llama.cpp refuses k = 0, so an offset at the first layer's output cannot
be exported. A file says nothing about positions and strength: a control vector acts on every token, and its strength is
given when it is used.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interventions.base import Intervention
from interventions.checks import resolved
from interventions.offset import Offset
from interventions.recipe import Recipe, as_adapted
from workbench.engine.positions import where
from workbench.errors import NotSupported, UserError
from workbench.files import atomic
from workbench.models.adapted import AdaptedModel
from workbench.typing import Float, Tensor

ARCHITECTURE = "controlvector"
_NAME = re.compile(r"direction\.(\d+)")


def to_gguf(recipe: Recipe, path: str | Path, model: Any, *, hint: str | None = None) -> Path:
    """Write offsets of the residual stream as a control vector; several at one layer are summed.

    ``model`` is what they were made for (its layers count); ``hint``: the architecture written into the file, by
    default the config's ``model_type``. Raises :class:`NotSupported`, with the reason, for anything a control vector
    cannot say.
    """
    adapted = as_adapted(model)
    recipe.check(adapted)
    directions: dict[int, Tensor] = {}
    for place, intervention in enumerate(recipe):
        layer, vector = _direction(intervention, f"{intervention.kind} (number {place} of the recipe)", adapted)
        directions[layer] = directions[layer] + vector if layer in directions else vector
    if not directions:
        raise UserError("The recipe is empty, so there is no control vector to write.")
    target = Path(path)
    with atomic(target) as partial:
        _write(partial, directions, hint or adapted.inner.config.model_type)
    return target


def from_gguf(path: str | Path) -> Recipe:
    """Read a control vector as offsets at ``resid_post``, strength 1, on every position.

    Raises :class:`UserError` for a file that is no whole GGUF control vector.
    """
    directions = {}
    for name, data in _tensors(Path(path)).items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise UserError(f"{path} holds a tensor {name!r}; a control vector holds direction.1, direction.2, ...")
        directions[int(match[1])] = _checked(name, data, path)
    if not directions:
        raise UserError(f"{path} holds no direction: it is no control vector.")
    if len({len(direction) for direction in directions.values()}) > 1:
        raise UserError(f"The directions of {path} have different widths: it was made for no one model.")
    offsets = [Offset(layer=layer, vector=torch.from_numpy(vector)) for layer, vector in sorted(directions.items())]
    return Recipe(offsets, {"source": {"format": "gguf control vector", "file": Path(path).name}})


def check_constant(intervention: Intervention, what: str) -> None:
    """Refuse what is no constant vector on the residual stream; ``what`` names it in the sentence."""
    if not isinstance(intervention, Offset):
        raise NotSupported(f"{what} is no constant vector on the residual stream: a control vector holds only Offset.")
    if intervention.site not in ("resid_post", "resid_pre"):
        raise NotSupported(f"{what} acts at {intervention.site}: a control vector is added to the output of a block.")
    if intervention.when is not None:
        raise NotSupported(f"{what} acts behind a gate, which a control vector cannot hold: keep it as a recipe.")
    if where(intervention.positions) != where("all"):
        raise NotSupported(f"{what} acts on some positions: a control vector acts on every token. Use positions='all'.")
    if intervention.units == "fraction" or intervention.match_norm or not isinstance(intervention.strength, float):
        raise NotSupported(f"{what} depends on the token or on the row: a control vector is one constant vector.")


def _direction(intervention: Intervention, what: str, model: AdaptedModel) -> tuple[int, Float[Tensor, " d_model"]]:
    """(block whose output it is added to, float32 vector with the strength in it)."""
    check_constant(intervention, what)
    assert isinstance(intervention, Offset) and isinstance(intervention.strength, float)
    layer = resolved(model, intervention.layer) - (intervention.site == "resid_pre")
    if layer < 1:
        raise NotSupported(
            f"{what} acts on the output of block {layer}, and llama.cpp takes control vectors from block 1 on: "
            "choose a later layer."
            if layer == 0
            else f"{what} acts on the embeddings, which no block puts out: choose a later layer."
        )
    vector = intervention.vector.detach().cpu().double()
    if intervention.units == "norm":
        assert intervention.site_norm is not None
        vector = vector / vector.norm() * intervention.site_norm
    return layer, (intervention.strength * vector).float()


def _write(path: Path, directions: dict[int, Tensor], hint: str) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_string(f"{ARCHITECTURE}.model_hint", hint)
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(directions))
    for layer, vector in sorted(directions.items()):
        writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(vector.numpy(), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(path: Path) -> dict[str, np.ndarray]:
    import gguf

    if not path.is_file():
        raise UserError(f"There is no file {path}: give a .gguf control vector.")
    try:
        reader = gguf.GGUFReader(path)
        field = reader.get_field("general.architecture")
        said = None if field is None else field.contents()
        tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, struct.error) as error:
        raise UserError(f"{path} is not a whole GGUF file ({str(error)[:120]}): copy or export it again.") from None
    if said != ARCHITECTURE:
        raise UserError(f"{path} is a GGUF file of {said!r}, not a control vector.")
    return tensors


def _checked(name: str, data: np.ndarray, path: str | Path) -> np.ndarray:
    if data.dtype != np.float32 or data.ndim != 1:
        raise UserError(f"{name} of {path} is {data.dtype} {list(data.shape)}; a direction is one F32 vector.")
    if not np.isfinite(data).all():
        raise UserError(f"{name} of {path} holds NaN or infinity: export the vector again.")
    return data.copy()
