"""What keeps false alarms away, by hand: whole groups exchange labels, folds of shuffled labels, ties, idle patches."""

from __future__ import annotations

import numpy as np
import pandas as pd

import probes
from probes.linear.folds import folds_of_shuffled, make_folds, shuffled_labels
from probes.resampling import shuffled_labels as exchanged
from tests.tiny import tiny_model, tokenizer
from workbench.models.pair import load_pair


def test_groups_of_one_label_exchange_it_as_a_whole() -> None:
    labels, groups = np.repeat([1, 0, 0, 1], 3), np.repeat(np.arange(4), 3)
    drawn = exchanged(labels, 50, 0, groups)
    assert (drawn.reshape(50, 4, 3) == drawn.reshape(50, 4, 3)[:, :, :1]).all()
    assert (drawn.sum(1) == 6).all() and len(np.unique(drawn, axis=0)) == 6


def test_groups_of_both_labels_exchange_them_inside() -> None:
    labels, groups = np.tile([1, 0, 0], 4), np.repeat(np.arange(4), 3)
    drawn = exchanged(labels, 50, 0, groups)
    assert (drawn.reshape(50, 4, 3).sum(2) == 1).all() and len(np.unique(drawn, axis=0)) > 10


def test_folds_of_shuffled_labels_are_as_balanced_as_those_of_the_true_ones() -> None:
    groups = np.arange(20)
    y = groups < 10
    folds = make_folds(5, groups, y, 0)
    shuffled = shuffled_labels(y, groups, 8, 0)
    dealt = folds_of_shuffled(5, folds, groups, shuffled, 0)
    for draw in range(8):
        positive = [int(shuffled[dealt[:, draw] == fold, draw].sum()) for fold in range(5)]
        assert positive == [2] * 5
    given = folds_of_shuffled(folds.tolist(), folds, groups, shuffled, 0)
    assert (given == folds[:, None]).all()


def test_maps_of_zeros_agree_by_chance_and_a_tie_is_no_hit() -> None:
    cells = {"layer": np.arange(100) // 10, "head": np.arange(100) % 10}
    zeros = pd.DataFrame({**cells, "score": 0.0})
    shared = [probes.compare(zeros, zeros, ks=[10], seed=seed).table["shared"][0] for seed in range(30)]
    assert 0.5 <= np.mean(shared) <= 1.6  # 10 * 10 / 100 by chance


def test_a_patch_that_puts_in_what_is_there_does_exactly_nothing() -> None:
    model = tiny_model("llama")
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    pair = load_pair(model, copy.eval(), tokenizer=tokenizer(), check=False)
    rows = [{"prompt": "the quick brown fox", "answer": " dog", "distractor": " fox"}] * 6
    for sites, positions in ((["resid_mid", "attn_out", "mlp_out"], "last"), (["resid_pre"], "each")):
        found = probes.patching(pair, rows, sites=sites, positions=positions, normalise=False)
        assert (found.effects == 0).all() and (found.frame()["q"] == 1).all()
