"""Adapters that vLLM cannot hold are refused from their settings, before an engine is looked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import NotSupported, UserError
from workbench.placement import Placement
from workbench.vllm.held_adapter import held_rank

LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"peft_type": "IA3"}, "is of kind IA3 and no LoRA"),
        ({"use_dora": True}, "is a DoRA"),
        ({"modules_to_save": ["lm_head"]}, "brings whole modules [(]lm_head[)]"),
        ({"bias": "all"}, "changes biases"),
        ({"rank_pattern": {"q_proj": 2}}, "has ranks or alphas of their own for some modules"),
        ({"target_modules": ["q_proj", "lm_head"]}, "the embedding or the head"),
        ({"r": 1024}, "has rank 1024"),
    ],
)
def test_the_reason_is_said(tmp_path: Path, settings: dict[str, Any], reason: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({**LORA, **settings}))
    with pytest.raises(NotSupported, match=f"{reason}: use the local executor"):
        held_rank(str(tmp_path))


def test_room_is_made_for_the_rank(tmp_path: Path) -> None:
    for rank, room in ((4, 8), (8, 8), (65, 128)):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**LORA, "r": rank}))
        assert held_rank(str(tmp_path)) == room
    with pytest.raises(UserError, match="holds no adapter"):
        held_rank(str(tmp_path / "none"))


def test_what_does_not_go_together_is_refused_when_it_is_chosen() -> None:
    with pytest.raises(UserError, match="Did you mean 'vllm'"):
        Placement(executor="vlm")
    with pytest.raises(UserError, match="run no vLLM: choose one"):
        Placement(workers=2, executor="vllm")
    with pytest.raises(UserError, match="Engine settings are vLLM's"):
        Placement(engine_settings={"max_model_len": 5})
    assert Placement().settings() == {}
