"""The logit lens: the last layer is the model, equal models are 0 apart, and a planted layer is where they part."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from probes.lens import LogitLens, kl, logit_lens, rows_at_once
from tests.tiny import tiny_model, tokenizer
from workbench.models.pair import ModelPair, load_pair

PROMPTS = ["the quick brown fox", "a lazy dog", "jumps over the the the", "fox and dog", "brown", "quick dog"]


def pair(family: str = "llama", layer: int | None = None) -> ModelPair:
    """Base and a copy; ``layer``: only that layer's MLP differs."""
    base, tuned = tiny_model(family), tiny_model(family)
    if layer is not None:
        torch.nn.init.normal_(tuned.model.layers[layer].mlp.down_proj.weight, std=0.3)
    return load_pair(base, tuned, tokenizer=tokenizer(), check=False)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_equal_models_are_nowhere_apart_and_the_last_layer_is_the_model(family: str) -> None:
    found = logit_lens(pair(family), PROMPTS, shown=2)
    assert found.table["score"].max() == 0 and (found.table["q"] == 1).all()
    assert found.table.set_index("layer").loc[2, "to_final_tuned"] == 0
    model = pair(family).tuned
    logits = model.forward(model.encode(PROMPTS[:1]))[0].softmax(-1)
    last = found.cells.query("prompt == 0 and layer == 2 and model == 'tuned'").sort_values("position")
    assert last["probability"].to_numpy() == pytest.approx(logits.max(-1).values.numpy(), abs=1e-5)


def test_models_part_at_the_layer_that_was_changed() -> None:
    found = logit_lens(pair(layer=1), PROMPTS, shown=1)
    table = found.table.set_index("layer")
    assert table.loc[0, "score"] == 0 and table.loc[1, "score"] > 0.01 and table.loc[1, "low"] > 0
    assert table.loc[1, "control"] > 0
    assert set(found.cells["prompt"]) == {0}


def test_divergence_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[0.25, 0.75, 0.0]]).log()
    assert kl(p, q).item() == pytest.approx(0.5 * torch.tensor([2.0, 2 / 3]).log().sum().item())
    assert kl(p, torch.cat([q, torch.full((1, 2), -5.0)], 1)).shape == (1,)


def test_file_and_figure(tmp_path: Path) -> None:
    found = logit_lens(pair(layer=1), PROMPTS, shown=3, positions="all")
    back = LogitLens.load(found.save(tmp_path / "lens"))
    grid = back.figure(2)
    assert len(grid.data) == 3 and len(set(grid.layout.xaxis3.tickvals)) == len(grid.layout.xaxis3.ticktext)
    assert len(set(grid.layout.xaxis3.ticktext)) < len(grid.layout.xaxis3.ticktext), "a repeated token keeps its place"
    assert "after layer" in back.summary()


@pytest.mark.parametrize("ids", [7, 5])
def test_kl_is_of_distributions_whether_logits_or_log_probabilities_are_given(ids: int) -> None:
    torch.manual_seed(0)
    p, q = 9 * torch.randn(3, 7), 9 * torch.randn(3, ids)
    expected = torch.nn.functional.kl_div(
        q.log_softmax(-1), p[:, :ids].log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    torch.testing.assert_close(kl(p, q), expected)
    torch.testing.assert_close(kl(p.log_softmax(-1), q.log_softmax(-1)), expected)


def test_of_a_large_vocabulary_fewer_residuals_are_read_at_once() -> None:
    assert rows_at_once(300) == rows_at_once(49_152) == 256
    assert rows_at_once(262_144) == 64 and rows_at_once(10**8) == 1
