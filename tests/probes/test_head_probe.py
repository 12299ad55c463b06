"""Head probes: scikit-learn's solution, planted heads found, leaks refused, meaningless labels tell nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from probes.linear.folds import make_folds, shuffled_labels
from probes.linear.heads import HeadProbe, head_probe
from probes.linear.logistic import Features, fit, solve
from tests.tiny import tiny_model, tokenizer
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.recording.recording import Recording

LAYERS, HEADS, WIDTH, ROWS = 3, 4, 16, 200
PLANTED = (1, 2)


def recording(strength: float = 2.0, seed: int = 0, groups: int = 50) -> tuple[Recording, torch.Tensor]:
    """z of random numbers; in head (1, 2) the label moves it along ``u``. Each group holds both classes."""
    random = torch.Generator().manual_seed(seed)
    y = torch.arange(ROWS) % 2 == 0
    u = torch.nn.functional.normalize(torch.randn(WIDTH, generator=random), dim=0)
    z = torch.randn(LAYERS, ROWS, HEADS, WIDTH, generator=random)
    z[PLANTED[0], :, PLANTED[1]] += (2.0 * y - 1)[:, None] * strength * u
    index = pd.DataFrame(
        {
            "prompt": range(ROWS),
            "position": 0,
            "token": "x",
            "label": ["true" if value else "false" for value in y.tolist()],
            "group": [f"g{row % groups}" if groups < ROWS else None for row in np.arange(ROWS) // 2 % max(groups, 1)],
        }
    )
    tensors = {"tuned": {f"blocks.{layer}.attn.hook_z": 0.01 * z[layer] for layer in range(LAYERS)}}
    config = {"roles": ["tuned"], "sites": list(tensors["tuned"]), "n_prompts": ROWS}
    return Recording(index, config, tensors), u


def test_the_solution_is_scikit_learns() -> None:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(5, 120, 8, generator=random, dtype=torch.float64)
    y = (x[:, :, 0].sum(0) + torch.randn(120, generator=random)) > 0.3
    found = fit(x, y, ridge=0.5)
    for cell in range(5):
        peer = LogisticRegression(C=2.0, tol=1e-10, max_iter=1000).fit(x[cell].numpy(), y.numpy())
        assert found.weight[cell].numpy() == pytest.approx(peer.coef_[0], abs=2e-2)
        assert found.bias[cell].item() == pytest.approx(peer.intercept_[0], abs=2e-2)


@pytest.mark.parametrize("shape", ["heavy tails", "far from zero", "nearly dependent", "few of one class"])
def test_unfriendly_features_give_scikit_learns_answers(shape: str) -> None:
    random = torch.Generator().manual_seed(2)
    y = torch.rand(400, generator=random) < (0.1 if shape == "few of one class" else 0.5)
    x = torch.randn(3, 400, 24, generator=random)
    x[:, :, 0] += 0.8 * (2.0 * y - 1)
    if shape == "heavy tails":
        x *= torch.randn(1, 400, 1, generator=random).exp()
    if shape == "far from zero":
        x += 30 * torch.randn(3, 1, 24, generator=random)
    if shape == "nearly dependent":
        x = (x * torch.logspace(0, -3, 24)) @ torch.randn(24, 24, generator=random)
    found = fit(x, y).logits(x) > 0
    for cell in range(3):
        rows = x[cell].double().numpy()
        peer = LogisticRegression(tol=1e-8, max_iter=20_000).fit(rows, y.numpy()).predict(rows)
        assert (found[cell].numpy() == peer).mean() >= 0.99


def test_fits_together_are_the_fits_one_by_one_and_never_see_what_they_hold_out() -> None:
    random = torch.Generator().manual_seed(3)
    features = Features.of(torch.randn(90, 2, 6, generator=random, dtype=torch.float64), 1.0)
    targets = (torch.rand(4, 90, generator=random) < 0.5).double()
    rows = torch.ones_like(targets)
    rows[1, :30] = rows[3, 60:] = 0
    together = solve(features, targets, rows, 1e-10)
    for number in range(4):
        alone = solve(features, targets[[number]], rows[[number]], 1e-10)
        assert torch.allclose(together.weights[:, number], alone.weights[:, 0], atol=1e-4)
    assert torch.allclose(together.logits, together.weights @ features.x.mT)
    other = torch.where(rows == 0, 1 - targets, targets)
    assert torch.equal(solve(features, other, rows, 1e-10).weights, together.weights)


def test_standard_features_do_not_depend_on_their_unit() -> None:
    random = torch.Generator().manual_seed(4)
    z, y = torch.randn(80, 2, 5, generator=random), (torch.arange(80) % 2 == 0)[None].float()
    units = torch.tensor([[1e-3], [1e3]])
    plain, scaled = (solve(Features.of(one, 1.0, standard=True), y, torch.ones_like(y)) for one in (z, z * units))
    assert torch.allclose(plain.logits, scaled.logits, atol=1e-4)
    assert torch.allclose(plain.weights[:, 0, :-1], scaled.weights[:, 0, :-1] * units, atol=1e-4)


def test_heads_without_any_activity_are_told_by_chance() -> None:
    rec, _ = recording()
    tensors = {"tuned": {site: z * (torch.arange(HEADS) > 0)[:, None] for site, z in rec.tensors["tuned"].items()}}
    found = head_probe(Recording(rec.index, rec.config, tensors)).table
    dead = found[found["head"] == 0]
    assert (dead["score"] == 0.5).all() and (dead["control"] == 0.5).all() and (dead["q"] > 0.05).all()


def test_separable_cells_are_solved_too() -> None:
    x = torch.randn(2, 30, 40)
    y = torch.arange(30) % 2 == 0
    probes = fit(x, y)
    assert ((probes.logits(x) > 0) == y).all() and probes.weight.isfinite().all()


def test_cross_validation_is_scikit_learns_too() -> None:
    rec, _ = recording(strength=0.4)
    folds = [row // 2 % 5 for row in range(ROWS)]
    probe = head_probe(rec, folds=folds, groups=list(range(ROWS)))
    y = (rec.index["label"] == "true").to_numpy()
    table = probe.table.set_index(["layer", "head"])
    for layer in range(LAYERS):
        for head in range(HEADS):
            x = rec["tuned"]["z", layer][:, head].numpy()
            x = x / np.sqrt((x**2).mean())
            splits = [(np.flatnonzero(np.array(folds) != f), np.flatnonzero(np.array(folds) == f)) for f in range(5)]
            peer = cross_val_predict(LogisticRegression(max_iter=500), x, y, cv=splits)
            assert table.loc[(layer, head), "score"] == pytest.approx((peer == y).mean(), abs=0.0101)


def test_the_planted_head_is_found_with_its_direction() -> None:
    rec, u = recording()
    probe = head_probe(rec)
    best = probe.frame().iloc[0]
    assert (best["layer"], best["head"]) == PLANTED and probe.top(1) == [PLANTED]
    assert best["score"] > 0.95 and best["q"] < 0.05 and best["low"] > 0.9 and abs(best["control"] - 0.5) < 0.06
    others = probe.frame().iloc[1:]
    assert others["score"].max() < 0.65 and (others["q"] > 0.05).all()
    assert float(probe.mass_mean[PLANTED] @ u) > 0.98 and best["cosine"] > 0.9
    assert probe.classes == ("false", "true") and probe.sigma[PLANTED] == pytest.approx(0.0224, abs=0.003)


def test_meaningless_labels_tell_nothing_over_twenty_seeds() -> None:
    false = sum(int((head_probe(recording(0.0, seed)[0], seed=seed).table["q"] < 0.05).sum()) for seed in range(20))
    assert false <= 0.05 * 20 * LAYERS * HEADS


def test_groups_never_straddle_folds() -> None:
    groups = np.repeat(np.arange(20), 5)
    y = np.arange(100) % 2 == 0
    folds = make_folds(4, groups, y, 0)
    assert all(len(set(folds[groups == group])) == 1 for group in range(20))
    with pytest.raises(UserError, match="split over several folds"):
        make_folds((np.arange(100) % 4).tolist(), groups, y, 0)
    with pytest.raises(UserError, match=r"3 folds cannot be made of 2 groups: ask for 2\.$"):
        make_folds(3, groups // 10, y, 0)


def test_shuffling_respects_groups() -> None:
    within = shuffled_labels(np.tile([True, False], 10), np.repeat(np.arange(10), 2), 3, 0)
    assert (within[0::2] != within[1::2]).all()
    between = shuffled_labels(np.repeat([True, False], 10), np.repeat(np.arange(10), 2), 3, 0)
    assert (between[0::2] == between[1::2]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["a"] * ROWS}, "have 1"),
        ({"labels": ["a", "b"]}, "2 labels and 200 prompts"),
        ({"labels": [None] * ROWS}, "no label"),
        ({"labels": ["a", "b"] * (ROWS // 2 - 1) + ["a", float("nan")]}, f"Row {ROWS - 1} has no label"),
        ({"folds": 1}, "1 folds"),
        ({"folds": [row % 3 for row in range(ROWS)]}, "split over several"),
        ({"role": "base"}, "base"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        head_probe(recording()[0], **options)


def test_it_needs_heads() -> None:
    rec, _ = recording()
    with pytest.raises(UserError, match="no z"):
        head_probe(Recording(rec.index, {**rec.config, "sites": ["blocks.0.hook_resid_post"]}, rec.tensors))


def test_the_recipe_moves_the_head_by_so_many_sigmas(tmp_path: Path) -> None:
    model = AdaptedModel(tiny_model("llama"), tokenizer(), role="model")
    probe = head_probe(recording()[0])
    back = HeadProbe.load(probe.save(tmp_path / "probe"))
    assert "accuracy above" in back.figure().to_json()
    recipe = back.recipe(k=1, strength=2.0)
    ids = torch.randint(4, 200, (1, 6))
    before = model.forward(ids)
    with recipe.applied(model):
        after = model.forward(ids)
    assert torch.equal(before[:, :-1], after[:, :-1]) and not torch.equal(before[:, -1], after[:, -1])
