"""Named tensors as a safetensors file, streamed from pieces, the same bytes for the same tensors.

A sealed file tells damage from truth: its header holds the sha256 of all its bytes (the seal itself read as zeros),
made while the bytes were written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from workbench.errors import UserError
from workbench.files import atomic

_ZEROS = "0" * 64
_BEFORE_SEAL = b'{"__metadata__":{"sha256":"'
_SEAL_AT = 8 + len(_BEFORE_SEAL)
_READ = 2**20

_SAFETENSORS_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


def write_safetensors(
    target: Path,
    tensors: Mapping[str, Sequence[torch.Tensor]],
    note: Mapping[str, Any] | None = None,
    *,
    sealed: bool = False,
) -> str | None:
    """Write named tensors, each given as pieces ``[rows, ...]`` to be joined along the first axis.

    The library's own writer joins and copies everything in memory, shuffles its metadata from run to run and
    hides the system's error; this one streams the pieces and gives the same bytes for the same tensors.
    ``note`` is kept as JSON under the metadata key ``tunescope``. With ``sealed`` the file holds its own hash, which
    is returned.
    """
    # The widest types first: then every tensor starts at a multiple of its item size and can be
    # memory-mapped.
    names = sorted(tensors, key=lambda name: (-tensors[name][0].element_size(), name))
    header: dict[str, Any] = {}
    metadata = {"sha256": _ZEROS} if sealed else {}
    if note is not None:
        metadata["tunescope"] = json.dumps(note, sort_keys=True, allow_nan=False)
    if metadata:
        header["__metadata__"] = metadata
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
    digest = hashlib.sha256()
    with atomic(target) as partial, partial.open("wb") as file:
        for start in (len(encoded).to_bytes(8, "little"), encoded):
            digest.update(start)
            file.write(start)
        for name in names:
            for piece in tensors[name]:
                raw = _raw_bytes(piece)
                digest.update(raw)
                file.write(raw)
        if not sealed:
            return None
        file.seek(_SEAL_AT)
        file.write(digest.hexdigest().encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class StoredTensors:
    """Where in the safetensors files of a folder each tensor lies."""

    places: Mapping[str, tuple[Path, str, tuple[int, ...], int]]
    """Name -> file, the format's name of the dtype, shape, and where in the file its bytes begin."""

    @classmethod
    def of(cls, folder: Path) -> StoredTensors:
        """What the files in ``folder`` hold; they are whole, as we or a library just wrote them."""
        places = {}
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                start = 8 + size + entry["data_offsets"][0]
                places[name] = (path, entry["dtype"], tuple(entry["shape"]), start)
        return cls(places)

    def has_room_for(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether a tensor of that name, shape and dtype is stored."""
        return name in self.places and self.places[name][1:3] == (
            _SAFETENSORS_NAMES.get(tensor.dtype), tuple(tensor.shape),
        )  # fmt: skip

    def overwrite(self, name: str, tensor: torch.Tensor) -> None:
        """Write other values in the place of a stored tensor of that name, shape and dtype."""
        path, _, _, start = self.places[name]
        with path.open("r+b") as file:
            file.seek(start)
            file.write(_raw_bytes(tensor))


def check_seal(path: Path, advice: str) -> str | None:
    """The seal of the file at ``path`` when its bytes are those that were sealed; None where it has no seal.

    Raises :class:`UserError` where they are not; ``advice`` ends its sentence.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_SEAL_AT + len(_ZEROS))
            if start[8:_SEAL_AT] != _BEFORE_SEAL:
                return None
            digest = hashlib.sha256(start[:_SEAL_AT] + _ZEROS.encode())
            while block := file.read(_READ):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {advice}.") from error
    if digest.hexdigest().encode() != start[_SEAL_AT:]:
        raise UserError(f"{path} is damaged: its bytes are not those that were written (sha256 differs); {advice}.")
    return digest.hexdigest()


def read_seal(path: Path) -> str | None:
    """The seal that the file at ``path`` holds, unchecked; None where it has none."""
    with path.open("rb") as file:
        start = file.read(_SEAL_AT + len(_ZEROS))
    return start[_SEAL_AT:].decode("ascii", errors="replace") if start[8:_SEAL_AT] == _BEFORE_SEAL else None


def _raw_bytes(tensor: torch.Tensor) -> memoryview:
    there = tensor.detach().cpu().contiguous()
    # One number seen through expand counts as contiguous with stride 0, which cannot be viewed as bytes.
    flat = there.as_strided((there.numel(),), (1,))
    if flat.numel() == 0:
        return memoryview(b"")
    return flat.view(torch.uint8).numpy().data
