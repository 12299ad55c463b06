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
    tiny_model("llama", head_dim=32).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    base = wb.load_model(tmp_path / "base", dtype="float32")
    vector = torch.randn(base.d_model, generator=torch.Generator().manual_seed(2))
    offset = iv.Recipe([iv.Offset(1, vector, site="attn_out")])
    heads = iv.Recipe([iv.HeadScale({"L0H1": 0.25, "L2H3": 0.0})])
    baked = wb.load_model(bake(base, offset, tmp_path / "baked"), dtype="float32")
    pair = wb.load_pair(tmp_path / "base", to_adapter(base, heads, tmp_path / "adapter"), dtype="float32")
    plain = steered(base, iv.Recipe())
    for recipe, subject, model in ((offset, baked, baked), (heads, pair, pair.tuned)):
        ours, theirs = steered(base, recipe), in_vllm(subject, model)
        for here, there, unsteered in zip(ours, theirs, plain, strict=True):
            torch.testing.assert_close(here, there, atol=1e-3, rtol=1e-3)
            assert float((here - unsteered).abs().max()) > 0.05
