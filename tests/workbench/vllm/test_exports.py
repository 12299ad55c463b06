"""What ``recipe export`` writes for others runs in vLLM as it is: a baked model, and a recipe as a LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import interventions as iv
import workbench as wb
from interventions.exchange.adapter import to_adapter
from interventions.exchange.bake import bake
from tests.tiny import tiny_model, tokenizer
from tests.workbench.vllm.lora_folders import save_lora_pair
from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel
from workbench.prompts import Prompts
from workbench.prompts.encode import encode
from workbench.vllm.route import route_of

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
TEXTS = Prompts.of(["the quick brown fox", "jumps over", "the lazy dog and the fox jumps"], chat=False)


def steered(model: AdaptedModel, recipe: iv.Recipe) -> list[torch.Tensor]:
    """Logits of the last token of each text, here."""
    with recipe.applied(model):
        return [model.forward(torch.tensor([ids]))[0, -1:] for ids in encode(TEXTS, model.tokenizer, None)]


def in_vllm(subject: Any, model: AdaptedModel) -> list[torch.Tensor]:
    """The same, of the exported files."""
    ids = encode(TEXTS, model.tokenizer, None)
    with wb.on_vllm(subject, max_model_len=128, max_num_seqs=8):
        route = route_of(model)
        assert route is not None
        return route.engine.logits(model.role, ids, model, [1] * len(ids))


def test_exports_compute_in_vllm_what_the_recipe_computes_here(tmp_path: Path) -> None:
    folder, adapter = save_lora_pair(tmp_path, tiny_model("llama", head_dim=32), tokenizer())
    base, pair = wb.load_model(folder, dtype="float32"), wb.load_pair(folder, adapter, dtype="float32")
    vector = torch.randn(base.d_model, generator=torch.Generator().manual_seed(2))
    offset, half = iv.Recipe([iv.Offset(1, vector, site="attn_out")]), iv.Recipe([iv.AdapterScale(0.5)])
    baked = wb.load_model(bake(base, offset, tmp_path / "baked"), dtype="float32")
    scaled = wb.load_pair(folder, to_adapter(pair.tuned, half, tmp_path / "scaled"), dtype="float32")
    for recipe, before, subject, model in (
        (offset, base, baked, baked),
        (half, pair.tuned, scaled, scaled.tuned),
    ):
        plain, ours, theirs = steered(before, iv.Recipe()), steered(before, recipe), in_vllm(subject, model)
        for unsteered, here, there in zip(plain, ours, theirs, strict=True):
            torch.testing.assert_close(here, there, atol=1e-3, rtol=1e-3)
            assert float((here - unsteered).abs().max()) > 0.05


def test_an_adapter_that_is_no_lora_is_refused(tmp_path: Path) -> None:
    folder, _ = save_lora_pair(tmp_path, tiny_model("llama", head_dim=32), tokenizer())
    base = wb.load_model(folder, dtype="float32")
    heads = to_adapter(base, iv.Recipe([iv.HeadScale({"L0H1": 0.25})]), tmp_path / "heads")
    pair = wb.load_pair(folder, heads, dtype="float32")
    with pytest.raises(NotSupported, match="is of kind IA3 and no LoRA"), wb.on_vllm(pair):
        pass
