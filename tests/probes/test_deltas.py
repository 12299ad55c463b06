"""Activation differences: planted shifts found where they are, nothing found where there is nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from probes.deltas import ActivationDelta, activation_delta, linear_cka
from probes.principal import direction_readings, principal
from probes.shift import mean_shift
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.recording.record_pair import record
from workbench.recording.recording import Recording

PROMPTS = ["the quick brown fox", "a lazy dog", "jumps over the", "fox and dog", "brown", "quick dog", "over", "lazy"]


def planted(shift: float, noise: float = 0.3, seed: int = 0, prompts: int = 30) -> tuple[Recording, torch.Tensor]:
    """Two rows per prompt; head 2 of layer 1 and the residual of layer 0 move by ``shift`` along ``u``."""
    random = torch.Generator().manual_seed(seed)
    rows = 2 * prompts
    u = torch.nn.functional.normalize(torch.randn(16, generator=random), dim=0)
    names = {"blocks.0.hook_resid_post": (rows, 16), "blocks.1.attn.hook_z": (rows, 4, 16)}
    base = {name: torch.randn(shape, generator=random) for name, shape in names.items()}
    tuned = {name: value + noise * torch.randn(value.shape, generator=random) for name, value in base.items()}
    tuned["blocks.0.hook_resid_post"] += shift * u
    tuned["blocks.1.attn.hook_z"][:, 2] += shift * u
    index = pd.DataFrame({"prompt": np.arange(rows) // 2, "position": np.arange(rows) % 2, "token": "x"})
    config = {"roles": ["base", "tuned"], "sites": list(names), "n_prompts": prompts}
    return Recording(index, config, {"base": base, "tuned": tuned}), u


def test_a_planted_shift_is_found_at_its_head_and_nowhere_else() -> None:
    rec, u = planted(1.0)
    found = activation_delta(rec)
    heads = found.table[found.table["site"] == "z"].set_index("head")
    assert heads["q"].idxmin() == 2 and heads.loc[2, "q"] < 0.01 and (heads.drop(2)["q"] > 0.05).all()
    length = rec["base"]["z", 1][:, 2].square().sum(-1).mean().sqrt().item()
    assert heads.loc[2, "score"] == pytest.approx(1.0 / length, abs=0.03)
    assert heads.loc[2, "low"] < 1.0 / length < heads.loc[2, "high"]
    assert heads.drop(2)["score"].max() < 0.08 and heads["control_high"].max() < heads.loc[2, "low"]
    assert abs(float(found.vectors["blocks.0.hook_resid_post/mean"][0] @ u)) > 0.97
    assert abs(float(found.vectors["blocks.0.hook_resid_post/uncentred"][0] @ u)) > 0.96
    assert abs(float(found.vectors["blocks.0.hook_resid_post/centred"][0] @ u)) < 0.9, "centring removes the mean"


def test_nothing_is_found_where_nothing_moved() -> None:
    false = [(activation_delta(planted(0.0, seed=seed)[0]).table["q"] < 0.05).sum() for seed in range(20)]
    assert sum(false) <= 0.05 * 20 * 5
    same, _ = planted(0.0, noise=0.0)
    found = activation_delta(same)
    table = found.table
    assert found.directions.empty, "nothing moved, so there is no direction"
    assert (table["score"] == 0).all() and (table["q"] == 1).all()
    assert table["cosine"].to_numpy() == pytest.approx(1.0, abs=1e-5) and table["cka"].to_numpy() == pytest.approx(1.0)


def test_by_position() -> None:
    rec, u = planted(0.0, noise=0.1)
    rec.tensors["tuned"]["blocks.0.hook_resid_post"][1::2] += 0.8 * u
    table = activation_delta(rec, by_position=True).table
    resid = table[table["site"] == "resid_post"].set_index("position")
    assert resid.loc[1, "q"] < 0.01 and resid.loc[0, "q"] > 0.05 and len(table) == 10


def test_the_size_is_free_of_noise_and_of_small_samples() -> None:
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(12, 300, 64, generator=random)
    none, some = mean_shift(noise), mean_shift(noise + 1.0)
    assert abs(float(np.mean(none.size**2 * np.sign(none.size)))) < 0.05
    assert np.sqrt((np.sign(some.size) * some.size**2).mean()) == pytest.approx(8.0, rel=0.02)
    assert (none.p < 0.05).mean() < 0.09 and (some.p < 0.001).mean() > 0.99
    assert ((none.low <= 0) & (none.high >= 0)).mean() > 0.85


def test_alignment_of_representations() -> None:
    x = torch.randn(1, 50, 8)
    turned = x @ torch.linalg.qr(torch.randn(8, 8)).Q * 3 + 1
    assert linear_cka(x, turned).item() == pytest.approx(1.0, abs=1e-5)
    assert linear_cka(x, torch.randn(1, 50, 8)).item() < 0.5
    assert linear_cka(x[:, :6], turned[:, :6]).item() == pytest.approx(1.0, abs=1e-5), "fewer rows than dimensions"


def test_principal_directions_by_hand() -> None:
    rows = torch.diag(torch.tensor([3.0, 2.0, 1.0])).repeat(2, 1)
    rows[3:] *= -1
    found = principal(rows, 3, centred=True)
    assert torch.allclose(found.directions.abs(), torch.eye(3), atol=1e-6)
    assert found.share.tolist() == pytest.approx([9 / 14, 4 / 14, 1 / 14])
    wide = principal(torch.cat([rows, torch.zeros(6, 20)], 1), 5, centred=False)
    assert len(wide.directions) == 3 and wide.share.tolist() == pytest.approx([9 / 14, 4 / 14, 1 / 14])


def test_streamed_statistics_agree_with_rows() -> None:
    base, tuned = tiny_model("llama"), tiny_model("llama", seed=1)
    pair = load_pair(base, tuned, tokenizer=tokenizer(), check=False)
    kept = activation_delta(record(pair, PROMPTS, ["resid_post", "z"]), components=0)
    streamed = activation_delta(record(pair, PROMPTS, ["resid_post", "z"], store=None))
    assert streamed.streamed and streamed.table["low"].isna().all() and "no interval" in streamed.summary()
    keys = ["site", "layer", "head"]
    both = kept.table.merge(streamed.table, on=keys, suffixes=("", "_streamed"))
    assert len(both) == len(kept.table)
    assert both["score_streamed"].to_numpy() == pytest.approx(both["score"].to_numpy(), abs=1e-5)


def test_directions_are_read_through_the_unembedding(tmp_path: Path) -> None:
    model = AdaptedModel(tiny_model("gemma2"), tokenizer(), role="model")
    direction = torch.nn.functional.normalize(torch.randn(2, 64), dim=-1)
    centre = torch.randn(64)
    reading = direction_readings(model, direction, centre, 1e-2, tokens=3)
    norm = model.inner.model.norm
    lens = lambda h: (30 * torch.tanh(model.inner.lm_head(norm(h)) / 30)).detach()  # noqa: E731
    change = (lens(centre + 1e-2 * direction[1]) - lens(centre - 1e-2 * direction[1])) / 2
    assert reading[1].up[0][0] == tokenizer().decode([int((change - change.mean()).argmax())])
    found = activation_delta(planted(1.0)[0])
    back = ActivationDelta.load(found.save(tmp_path / "delta"))
    assert torch.equal(back.vectors["blocks.0.hook_resid_post/mean"], found.vectors["blocks.0.hook_resid_post/mean"])
    for site in ("resid_post", "z"):
        assert "mean shift" in back.figure(site).to_json()


def test_bad_input() -> None:
    rec, _ = planted(1.0)
    with pytest.raises(UserError, match="needs base and tuned"):
        activation_delta(Recording(rec.index, {**rec.config, "roles": ["tuned"]}, rec.tensors))
    with pytest.raises(UserError, match="at least two"):
        activation_delta(Recording(rec.index, {**rec.config, "n_prompts": 1}, rec.tensors))
