"""Tiny models, adapters and tokenizers saved as people save them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest

from tests.tiny import tiny_model, tokenizer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # between PEFT 0.21 and transformers 5.23; the project's own calls do not cause it
    ignored = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(ignored)


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    """A tiny Llama with its tokenizer."""
    folder = tmp_path / "base"
    tiny_model("llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


SaveAdapter = Callable[..., Path]


@pytest.fixture
def save_adapter(tmp_path: Path) -> SaveAdapter:
    """Saves an adapter with random weights: ``save_adapter("name", config, family="llama", **overrides)``."""

    def save(name: str = "adapter", config: Any = None, *, family: str = "llama", **overrides: Any) -> Path:
        chosen = config or peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        folder = tmp_path / name
        peft.get_peft_model(tiny_model(family, **overrides), chosen).save_pretrained(str(folder))
        return folder

    return save


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
