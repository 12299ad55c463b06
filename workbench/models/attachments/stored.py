"""Attachments in a folder: settings as JSON, parameters as safetensors, and back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from workbench.errors import UserError
from workbench.files import write_json
from workbench.models import checkpoints
from workbench.models.attachments.attachment import Attachment
from workbench.models.attachments.instruction_prompts import InstructionPrompts
from workbench.models.attachments.prompt_spaces import PromptSpaces
from workbench.models.attachments.side_path import SidePath
from workbench.models.identity import ModelIdentity
from workbench.models.sources import Kind, Source
from workbench.tensor_files import write_safetensors

SETTINGS, WEIGHTS = "attachment.json", "attachment.safetensors"
KINDS: dict[str, type[Attachment]] = {kind.kind: kind for kind in (SidePath, PromptSpaces, InstructionPrompts)}


def save_attachment(attachment: Attachment, folder: str | Path, *, base: str = "") -> Path:
    """Write ``attachment.safetensors``, then ``attachment.json``, which makes the folder one that can be loaded.

    Args:
        attachment: What was trained.
        folder: A folder that has no attachment yet; it is made.
        base: The name of the base that it was trained on.

    Raises:
        UserError: The folder holds an attachment, or cannot be written.
    """
    where = Path(folder)
    if (where / SETTINGS).exists():
        raise UserError(f"{where} holds an attachment already: choose another folder.")
    values = {name: [tensor.detach().float().cpu().contiguous()] for name, tensor in attachment.state_dict().items()}
    write_safetensors(where / WEIGHTS, values)
    write_json(where / SETTINGS, {
        "kind": attachment.kind, "settings": attachment.settings(), "base_model_name_or_path": base,
    })  # fmt: skip
    return where


def load_attachment(folder: str | Path) -> Attachment:
    """The attachment in a folder, on the CPU and not trainable.

    Raises:
        UserError: Its files are missing, damaged, or do not fit one another.
    """
    where = Path(folder)
    said = checkpoints.read_json(where / SETTINGS)
    if said.get("kind") not in KINDS:
        raise UserError(f"{where / SETTINGS} names the kind {said.get('kind')!r}: it must be {', '.join(KINDS)}.")
    try:
        attachment = KINDS[said["kind"]](**said.get("settings", {}))
        attachment.load_state_dict(load((where / WEIGHTS).read_bytes()))
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"The attachment in {where} cannot be read ({type(error).__name__}): save it again.") from error
    except SafetensorError as error:
        raise UserError(f"{where / WEIGHTS} is no whole safetensors file: save the attachment again.") from error
    return attachment.requires_grad_(False).eval()


def attachment_source(tuned: Any) -> Source | None:
    """``tuned`` as a source where it is an attachment (one just trained, or a folder of one), else None."""
    attachment = getattr(tuned, "attachment", tuned)
    if isinstance(attachment, Attachment):
        return Source(Kind.ATTACHED, f"{attachment.kind} (trained here)", {}, model=attachment)
    if not isinstance(tuned, str | Path):
        return None
    folder = Path(tuned).expanduser()
    if not (folder / SETTINGS).is_file():
        return None
    return Source(Kind.ATTACHED, str(folder), checkpoints.read_json(folder / SETTINGS), folder=folder)


def attachment_of(source: Source) -> Attachment:
    """What :func:`attachment_source` named, loaded."""
    attachment = source.model
    return attachment if isinstance(attachment, Attachment) else load_attachment(source.local())


def attached_identity(base: ModelIdentity, attachment: Attachment, name: str) -> ModelIdentity:
    """The base's identity with this attachment, by its kind, settings and parameters."""
    digest = hashlib.sha256(json.dumps([attachment.kind, attachment.settings()], sort_keys=True).encode())
    for key, values in sorted(attachment.state_dict().items()):
        digest.update(key.encode() + values.detach().float().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return replace(base, name=name, adapter=digest.hexdigest())
