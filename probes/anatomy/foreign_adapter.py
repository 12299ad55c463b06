"""An adapter in a format of its own, which PEFT does not load: its folder, and what it is beside its base."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.errors import UserError
from workbench.models.identity import ModelIdentity

FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class ForeignAdapter:
    """``identity`` is the base's with this adapter, by the bytes of its two files."""

    folder: str
    identity: ModelIdentity


def foreign_adapter(base: ModelIdentity, tuned: Any) -> ForeignAdapter:
    """The adapter in a folder, or one that was opened before.

    Raises:
        UserError: The folder lacks the config, or weights as safetensors.
    """
    if isinstance(tuned, ForeignAdapter):
        return tuned
    folder = Path(str(tuned))
    if absent := [name for name in FILES if not (folder / name).is_file()]:
        said = "; weights stored as pickle are not read: save them again" if absent == [FILES[1]] else ""
        raise UserError(f"{folder} holds no {absent[0]}{said or ': give the folder of a stored adapter'}.")
    made = hashlib.sha256(b"".join((folder / name).read_bytes() for name in FILES)).hexdigest()
    return ForeignAdapter(str(folder), replace(base, name=str(folder), adapter=made))
