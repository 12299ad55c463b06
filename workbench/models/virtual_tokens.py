"""Adapters of virtual tokens (prompt tuning, P-tuning, CPT, prefixes), opened beside a model of their base."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.identity import ModelIdentity, adapter_hash
from workbench.typing import Float, Tensor

EMBEDDINGS = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")
PREFIXES = ("PREFIX_TUNING", "CARTRIDGE")


@dataclass(frozen=True)
class VirtualTokens:
    """``peft_model`` wraps ``base.hf`` without changing it; ``kind`` is PEFT's name of the type."""

    base: AdaptedModel
    peft_model: Any
    kind: str
    name: str

    @property
    def identity(self) -> ModelIdentity:
        """The base with this adapter, by content."""
        where = Path(self.name)
        stored = (where / "adapter_config.json").is_file()
        return replace(self.base.identity, name=self.name, adapter=adapter_hash(where if stored else self.peft_model))

    @torch.no_grad()
    def embeddings(self, task: int = 0) -> Float[Tensor, "token d_model"]:
        """What stands before the words, as PEFT makes it. Raises :class:`UserError` for prefixes, which have none."""
        if self.kind not in EMBEDDINGS:
            raise UserError(
                f"{self.name} is a {self.kind} adapter, which has keys and values and no embeddings: read it with "
                "prefix_gates."
            )
        ids = torch.tensor([task], device=self.base.device)
        made: Tensor = self.peft_model.get_prompt(batch_size=1, task_ids=ids)
        return made[0].detach()

    @property
    def start_ids(self) -> list[int] | None:
        """The tokens that training began with, where the adapter says so (CPT)."""
        ids = getattr(self.peft_model.active_peft_config, "cpt_token_ids", None)
        return None if not ids else [int(number) for number in ids]


def open_virtual_tokens(base: Any, tuned: Any) -> VirtualTokens:
    """Open ``tuned`` (a folder, a ``PeftModel``, or opened before) over ``base`` (a model, a folder or a hub id).

    Raises:
        UserError: ``tuned`` is no adapter of virtual tokens, or does not fit the base.
    """
    from peft import PeftConfig, PeftModel

    from workbench.models.pair import load_one

    if isinstance(tuned, VirtualTokens):
        return tuned
    model = base if isinstance(base, AdaptedModel) else load_one(base)
    if isinstance(tuned, PeftModel):
        kind = str(tuned.active_peft_config.peft_type.value)
        return VirtualTokens(model, _checked(tuned.eval(), kind, "The PeftModel"), kind, "The PeftModel")
    folder = Path(str(tuned))
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{tuned} holds no adapter_config.json: give the folder of an adapter that PEFT saved.")
    config: Any = PeftConfig.from_pretrained(str(folder))
    kind = str(config.peft_type.value)
    _checked(None, kind, str(tuned))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = PeftModel.from_pretrained(model.hf, str(folder), torch_device=str(model.device)).eval()
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"PEFT cannot put {tuned} on this base: {str(error).splitlines()[0]}") from error
    return VirtualTokens(model, made, kind, str(tuned))


def _checked(model: Any, kind: str, name: str) -> Any:
    if kind not in (*EMBEDDINGS, *PREFIXES):
        raise UserError(
            f"{name} is a {kind} adapter, which changes modules and adds no virtual token: load it as a pair "
            "(workbench.load_pair) and read it with weight_delta or adapter_panel."
        )
    return model
