"""What every organism's file provides, and saving models as ordinary Hugging Face folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from workbench.organisms.organism import Grown
from workbench.organisms.vocabulary import SPECIAL
from workbench.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Plot:
    """Where an organism grows: the folder written now, and the one it will be renamed to."""

    folder: Path
    final: Path
    seed: int
    progress: Progress


@runtime_checkable
class Grow(Protocol):
    """Trains base and tuned, saves them below ``plot.folder``, and says what was planted."""

    def __call__(self, plot: Plot) -> Grown: ...


@dataclass(frozen=True)
class Recipe:
    """One organism."""

    name: str
    summary: str
    settings: Mapping[str, Any]
    """Every number that decides what is built; part of the cache key."""
    grow: Grow


def shape(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """Configuration shared by the small models: width 64, 4 layers, 4 heads of 16.

    The usual initial scale of .02 is for models 50 times as wide; at width 64 it costs hundreds of steps.
    """
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
        "pad_token_id": SPECIAL.index("<pad>"),
        "bos_token_id": SPECIAL.index("<bos>"),
        "eos_token_id": SPECIAL.index("<eos>"),
        **more,
    }


def save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A model (or PEFT adapter) with its tokenizer, loadable by every tool that knows Hugging Face folders."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_adapter(adapter: Any, tokenizer: PreTrainedTokenizerFast, plot: Plot, name: str = "tuned") -> None:
    """A PEFT adapter with its tokenizer; it names the base by the folder that ``base`` will have."""
    folder = plot.folder / name
    for config in adapter.peft_config.values():
        config.base_model_name_or_path = str(plot.folder / "base")
    save(adapter, tokenizer, folder)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text()) | {"base_model_name_or_path": str(plot.final / "base")}
    file.write_text(json.dumps(config, indent=2) + "\n")
