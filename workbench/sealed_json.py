"""JSON files that hold the hash of their own content, so that a changed one is told from a whole one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.errors import UserError
from workbench.files import file_text, write_json

SEAL = "seal"


def write_sealed(target: Path, payload: Mapping[str, Any]) -> None:
    """Write ``payload`` (plain values) with its sha256 under the key ``seal``."""
    write_json(target, {**payload, SEAL: _digest(payload)})


def read_sealed(path: Path, advice: str, *, older: bool = False) -> dict[str, Any]:
    """What :func:`write_sealed` wrote, without the seal; with ``older``, also a file of a version that had none.

    Raises :class:`UserError` for a file that cannot be read, is no JSON object, or holds other values than were
    written; ``advice`` ends its sentence.
    """
    try:
        content = json.loads(file_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}); {advice}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (it holds no JSON object); {advice}.")
    seal = content.pop(SEAL, None)
    if seal != _digest(content) and not (older and seal is None):
        raise UserError(f"{path} is damaged: it does not hold what was written (sha256 differs); {advice}.")
    return content


def _digest(payload: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
