"""One ``.safetensors`` file per result: arrays as tensors, the rest as JSON in its header. No pickle."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open

from workbench.errors import UserError
from workbench.tensor_files import check_seal, write_safetensors

HEADER = "tunescope"
VERSION = 1


def write(path: str | Path, kind: str, fields: dict[str, Any]) -> Path:
    """Write the ``fields`` of a result of class ``kind`` in one step: a reader never sees half a file.

    ``path`` gets the ending ``.safetensors`` when it has none. Returns the path written.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        target = target.with_name(target.name + ".safetensors")
    tensors: dict[str, torch.Tensor] = {}
    body = {name: _encode(value, name, tensors) for name, value in fields.items()}
    note = {"version": VERSION, "kind": kind, "fields": body}
    write_safetensors(target, {key: [tensor] for key, tensor in tensors.items()}, note, sealed=True)
    return target


def read(path: str | Path) -> tuple[str, dict[str, Any]]:
    """The class name and the fields of the result at ``path``."""
    source = Path(path)
    if not source.is_file() and source.suffix != ".safetensors":
        source = source.with_name(source.name + ".safetensors")
    if not source.is_file():
        raise UserError(f"There is no result at {path}: expected a .safetensors file written by a result's save().")
    try:
        with safe_open(str(source), framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise UserError(f"{source} is not a readable safetensors file ({error}); save the result again.") from error
    check_seal(source, "restore it, or compute the result again")
    content = json.loads(header) if header else {}
    if "kind" not in content:
        raise UserError(f"{source} holds tensors but no result; give a file written by a result's save().")
    if content["version"] > VERSION:
        raise UserError(f"{source} was written by a newer Tunescope (format {content['version']}); update to read it.")
    return content["kind"], {name: _decode(value, tensors) for name, value in content["fields"].items()}


def _encode(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """``value`` as JSON; arrays go to ``tensors`` under ``name`` and leave a reference behind."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(np.array(value))
        return {"$array": name}
    if isinstance(value, np.generic):
        return _encode(value.item(), name, tensors)
    if isinstance(value, pd.DataFrame):
        columns = [str(column) for column in value.columns]
        encoded = [_encode_column(value[c], f"{name}/{c}", tensors) for c in value.columns]
        return {"$table": list(zip(columns, encoded, strict=True))}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_encode(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {"$dict": [[key, _encode(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a result's field {name!r} holds {type(value).__name__}, which has no file form")


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((mark, content),) = value.items()
    match mark:
        case "$tensor":
            return tensors[content]
        case "$array":
            return tensors[content].numpy()
        case "$float":
            return float(content)
        case "$tuple":
            return tuple(_decode(item, tensors) for item in content)
        case "$dict":
            return {key: _decode(item, tensors) for key, item in content}
        case "$table":
            return pd.DataFrame({name: _decode_column(column, tensors) for name, column in content})
        case _:
            raise UserError(f"This result file holds an unknown mark {mark!r}; update Tunescope to read it.")


def _encode_column(column: pd.Series, name: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Numbers as a tensor (missing integers as NaN, text as codes into a list of its values)."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        missing = isinstance(column.dtype, pd.api.extensions.ExtensionDtype)
        numbers = column.to_numpy(dtype=np.float64, na_value=np.nan) if missing else column.to_numpy()
        tensors[name] = torch.from_numpy(np.array(numbers))
        return {"tensor": name, "dtype": str(column.dtype)}
    codes, values = pd.factorize(column)
    tensors[name] = torch.from_numpy(codes.astype(np.int64))
    return {"tensor": name, "values": [str(value) for value in values]}


def _decode_column(column: dict[str, Any], tensors: dict[str, torch.Tensor]) -> pd.Series:
    numbers = tensors[column["tensor"]].numpy()
    if "dtype" in column:
        return pd.Series(numbers).astype(column["dtype"])
    values = column["values"]
    return pd.Series([values[code] if code >= 0 else None for code in numbers])
