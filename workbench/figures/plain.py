"""A figure as JSON that can be read without plotly: plain lists instead of its packed arrays."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import plotly.graph_objects as go

from workbench.jsonable import jsonable


def plain_figure(figure: go.Figure) -> Any:
    """``data`` and ``layout`` as dicts, lists, numbers and text; NaN becomes None."""
    return jsonable(_unpacked(figure.to_plotly_json()))


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        if {"dtype", "bdata"} <= set(value):
            numbers = np.frombuffer(base64.b64decode(value["bdata"]), dtype=np.dtype(value["dtype"]))
            shape = [int(size) for size in str(value.get("shape", len(numbers))).split(",")]
            return numbers.reshape(shape).tolist()
        return {name: _unpacked(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_unpacked(item) for item in value]
    return value
