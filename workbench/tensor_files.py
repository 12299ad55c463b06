"""Named tensors as a safetensors file, streamed from pieces, the same bytes for the same tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from workbench.files import atomic

_SAFETENSORS_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


def write_safetensors(
    target: Path, tensors: Mapping[str, Sequence[torch.Tensor]], note: Mapping[str, Any] | None = None
) -> None:
    """Write named tensors, each given as pieces ``[rows, ...]`` to be joined along the first axis.

    The library's own writer joins and copies everything in memory, shuffles its metadata from run to run and
    hides the system's error; this one streams the pieces and gives the same bytes for the same tensors.
    ``note`` is kept as JSON under the metadata key ``tunescope``.
    """
    # The widest types first: then every tensor starts at a multiple of its item size and can be
    # memory-mapped.
    names = sorted(tensors, key=lambda name: (-tensors[name][0].element_size(), name))
    header: dict[str, Any] = {}
    if note is not None:
        header["__metadata__"] = {"tunescope": json.dumps(note, sort_keys=True, allow_nan=False)}
    offset = 0
    for name in names:
        first = tensors[name][0]
        if first.dtype not in _SAFETENSORS_NAMES:
            raise TypeError(f"{name!r} is {first.dtype}, which a safetensors file cannot hold")
        size = sum(piece.numel() for piece in tensors[name]) * first.element_size()
        rows = [sum(len(piece) for piece in tensors[name])] if first.ndim else []
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[first.dtype],
            "shape": rows + list(first.shape[1:]),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with atomic(target) as partial, partial.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in names:
            for piece in tensors[name]:
                file.write(_raw_bytes(piece))


def _raw_bytes(tensor: torch.Tensor) -> memoryview:
    there = tensor.detach().cpu().contiguous()
    # One number seen through expand counts as contiguous with stride 0, which cannot be viewed as bytes.
    flat = there.as_strided((there.numel(),), (1,))
    if flat.numel() == 0:
        return memoryview(b"")
    return flat.view(torch.uint8).numpy().data
