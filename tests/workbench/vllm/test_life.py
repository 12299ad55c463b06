"""vLLM for one call: an engine is opened, used and ended, and another can follow; a model without weights here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import workbench as wb
from tests.tiny import tiny_model, tokenizer
from workbench.prompts import Prompts
from workbench.vllm.route import route_of

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
TEXTS = Prompts.of(["the quick brown fox", "jumps over", "the lazy dog and the fox jumps", "a"], chat=False)


def test_a_model_without_weights_here_is_recorded_and_continued(tmp_path: Path) -> None:
    tiny_model("llama", head_dim=32).save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    shape, whole = (wb.load_model(tmp_path / "base", device=device, dtype="float32") for device in ("meta", "cpu"))
    here = wb.record(whole, TEXTS, ["resid_post"], new_tokens=4)
    for folder in ("rows", "again"):
        there = wb.record(
            shape, TEXTS, ["resid_post"], store=tmp_path / folder, new_tokens=4,
            executor="vllm", engine_settings={"max_model_len": 128, "max_num_seqs": 8, "dtype": "float32"},
        )  # fmt: skip
        assert route_of(shape) is None
        assert here.index.equals(there.index)
        ours, theirs = (torch.as_tensor(rows["model"][here.sites[-1]][:]) for rows in (here, there))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
