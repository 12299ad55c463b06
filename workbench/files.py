"""Files that are whole or absent: written beside their place as ``.partial-*``, flushed, then renamed."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from workbench.errors import UserError

PARTIAL = ".partial-"

# EFBIG and EDQUOT are what a file-size limit and a quota answer; for the person all three are a full disk.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_SAFETENSORS_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """Yield the path to write; on leaving it is flushed to the disk and renamed to ``target``.

    After an exception nothing is left, neither the partial file nor a changed target. A full disk is a
    :class:`UserError`.
    """
    partial = target.with_name(f"{PARTIAL}{secrets.token_hex(6)}-{target.name}")
    try:
        with room_for(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _flush(partial)
            partial.replace(target)
            _flush(target.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def room_for(target: Path) -> Iterator[None]:
    """Turn "no space left" and "not allowed" from the system into a sentence about ``target``."""
    try:
        yield
    except PermissionError as error:
        raise UserError(
            f"Cannot write {target}: permission denied; choose a folder you may write to."
        ) from error
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise UserError(
            f"No space left for {target} ({os.strerror(error.errno)}); nothing half-written was kept. "
            "Free some space and run the same command again."
        ) from error


def write_text(target: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with atomic(target) as partial:
        partial.write_bytes(text.encode("utf-8"))


def write_json(target: Path, payload: Any) -> None:
    """Write ``payload`` as JSON with sorted keys; the same payload gives the same bytes."""
    write_text(
        target, json.dumps(payload, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    )


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


def remove_partials(folder: Path) -> None:
    """Delete what writers that were killed left half-written anywhere below ``folder``."""
    for path in folder.rglob(f"{PARTIAL}*"):
        path.unlink(missing_ok=True)


def _raw_bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.numel() == 0:
        return memoryview(b"")
    return flat.view(torch.uint8).numpy().data


def _flush(path: Path) -> None:
    """Ask the system to put a file, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
