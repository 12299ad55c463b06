"""Anything a result may hold as plain JSON values, exactly where JSON can say it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np


def jsonable(value: Any, where: str = "value") -> Any:
    """``value`` as dicts, lists, text, numbers and None.

    NaN and infinity become None, because JSON has no word for them; arrays and tables become lists. ``where``
    names the value in the :class:`TypeError` raised for what has no plain form.
    """
    match value:
        case None | bool() | str():
            return value
        case np.generic():
            return jsonable(value.item(), where)
        case int():
            return int(value)
        case float():
            return float(value) if math.isfinite(value) else None
        case Mapping():
            return {str(key): jsonable(item, f"{where}.{key}") for key, item in value.items()}
        case list() | tuple():
            return [jsonable(item, f"{where}[{i}]") for i, item in enumerate(value)]
        case set() | frozenset():
            return sorted(jsonable(item, where) for item in value)
        case np.ndarray():
            return jsonable(value.tolist(), where)
        case Path() | date():
            return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: jsonable(getattr(value, field.name), f"{where}.{field.name}") for field in fields}
    return _from_library(value, where)


def _from_library(value: Any, where: str) -> Any:
    """Tables and tensors, without importing a library that nobody has used yet."""
    library = type(value).__module__.partition(".")[0]
    if library == "pandas":
        import pandas as pd

        if isinstance(value, pd.DataFrame):
            return jsonable(value.to_dict(orient="records"), where)
        if isinstance(value, pd.Series):
            return jsonable(value.tolist(), where)
        if value is pd.NA or value is pd.NaT:
            return None
    if library == "torch":
        import torch

        if isinstance(value, torch.Tensor):
            return jsonable(value.detach().cpu().tolist(), where)
        if isinstance(value, torch.dtype | torch.device):
            return str(value).removeprefix("torch.")
    raise TypeError(f"{where} holds {type(value).__name__}, which has no JSON form")
