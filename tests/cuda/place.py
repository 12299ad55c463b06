"""Where the models of this room are, and how two results are compared."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair, load_pair

DEVICE = torch.device(os.environ.get("TUNESCOPE_TEST_DEVICE", "cuda"))
"""The device under test. ``TUNESCOPE_TEST_DEVICE=cpu`` runs the room without one, to check its own code."""
HERE: Any = str(DEVICE) if DEVICE.type == "cpu" else 0 if DEVICE.type == "cuda" else DEVICE
"""The device as accelerate's device maps name it."""
PRESENT = DEVICE.type != "cuda" or torch.cuda.is_available()


def model_there(family: str, **options: Any) -> AdaptedModel:
    return AdaptedModel(tiny_model(family, **options).to(DEVICE), tokenizer(), name=family)


def pair_on(device: torch.device | str, family: str = "llama", dtype: torch.dtype = torch.float32) -> ModelPair:
    """A random model and a copy that moved, both on ``device``."""
    base = tiny_model(family, dtype=dtype)
    tuned = tuned_copy(base, size=0.1)
    return load_pair(base.to(device), tuned.to(device), tokenizer=tokenizer(), check=False)


@contextmanager
def models_moved(monkeypatch: pytest.MonkeyPatch, *, base: bool = True) -> Iterator[None]:
    """Inside, a model goes to the device when an ``AdaptedModel`` is made of it, for the fixtures of other rooms;
    without ``base`` the base of a pair stays on the CPU."""
    before = AdaptedModel.__init__

    def moved(self: AdaptedModel, hf: Any, *given: Any, **options: Any) -> None:
        stays = options.get("role") == "base" and not base
        before(self, hf if stays else hf.to(DEVICE), *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(AdaptedModel, "__init__", moved)
        yield


def save_pair(home: Path, family: str = "llama", size: float = 0.1) -> tuple[str, str]:
    """The pair of :func:`pair_on` as two folders."""
    base = tiny_model(family)
    for name, hf in {"base": base, "tuned": tuned_copy(base, size=size)}.items():
        hf.save_pretrained(home / f"{family}-{name}")
        tokenizer().save_pretrained(home / f"{family}-{name}")
    return str(home / f"{family}-base"), str(home / f"{family}-tuned")


def close(found: torch.Tensor, wanted: torch.Tensor, atol: float = 3e-4, rtol: float = 1e-3) -> None:
    """Equal up to the rounding of another device."""
    torch.testing.assert_close(found.cpu(), wanted.cpu(), atol=atol, rtol=rtol)


def tensors_of(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor inside dataclasses, mappings and sequences, with its path."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from tensors_of(one, f"{path}[{key}]")
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            yield from tensors_of(one, f"{path}[{number}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name), f"{path}.{field.name}")


def same_frames(found: pd.DataFrame, wanted: pd.DataFrame, atol: float = 2e-3, rtol: float = 1e-2) -> None:
    """The same lines; numbers up to rounding, other things exactly."""
    assert list(found.columns) == list(wanted.columns) and len(found) == len(wanted)
    unlike = []
    for name in wanted:
        one, other = found[name], wanted[name]
        if pd.api.types.is_float_dtype(other):
            equal = np.isclose(one.astype(float), other.astype(float), atol=atol, rtol=rtol, equal_nan=True)
        else:
            equal = np.array([str(a) == str(b) for a, b in zip(one, other, strict=True)])
        if not equal.all():
            place = int(np.flatnonzero(~equal)[0])
            unlike.append(f"{name}: {(~equal).sum()} of {len(equal)} lines, line {place}: {one.iloc[place]} is not "
                          f"{other.iloc[place]}")  # fmt: skip
    assert not unlike, "\n".join(unlike)
