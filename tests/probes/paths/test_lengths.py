"""Prompts of unequal length: the same numbers as one by one; a behaviour that the base lacks is no error."""

from __future__ import annotations

import numpy as np
import pytest

from probes.paths.ablation import HeadRuns, Kept, Same, mean_ablation, padded_prompts
from probes.paths.circuits import circuit
from probes.paths.cross_model import cmap
from probes.paths.finding import path_patching
from tests.probes.paths.planted import repeated_pairs
from tests.probes.paths.test_cross_model import PLANTED, Improved
from tests.probes.test_patching import pair_of
from workbench.errors import UserError
from workbench.prompts.collection import Prompts

MIXED = Prompts.of([
    {"prompt": "the fox", "answer": " dog", "distractor": "!"},
    {"prompt": "the quick brown fox", "answer": " over", "distractor": "!"},
    {"prompt": "a lazy dog jumps over", "answer": " fox", "distractor": "!"},
])  # fmt: skip
SOME = [
    Kept(frozenset({("all", (1, 0)), ("last", (0, 2))}), everything_else=True),
    Kept(frozenset(), everything_else=True),
]


def test_heads_of_the_other_model_at_mixed_lengths_as_one_by_one() -> None:
    pair = pair_of("llama")

    def scores(rows: Prompts) -> np.ndarray:
        return HeadRuns(pair.base, rows, Same(pair.tuned, padded_prompts(rows, pair.tuned)), "prob").scores(SOME)

    alone = np.concatenate([scores(MIXED[[row]]) for row in range(len(MIXED))])
    assert scores(MIXED) == pytest.approx(alone, rel=1e-4)
    found = cmap(pair, MIXED, ["L1H0", "L0H1"], "prob", controls=10)
    assert np.isfinite(found.table["score"]).all() and found.table["n"].iloc[0] == len(MIXED)


def test_mean_ablation_at_mixed_lengths_leaves_the_whole_model_alone() -> None:
    pair = pair_of("llama")
    run = mean_ablation(pair.tuned, MIXED, MIXED, "prob")
    every = [("all", (layer, head)) for layer in range(pair.tuned.n_layers) for head in range(pair.tuned.n_heads)]
    whole, kept, none = run.scores([SOME[1], Kept(frozenset(every)), Kept(frozenset())]).T
    assert whole == pytest.approx(kept, rel=1e-5) and not np.allclose(whole, none)


def test_a_behaviour_that_the_base_lacks_is_tested_in_the_tuned_model() -> None:
    pair = Improved(share=0.0)
    found = circuit(pair, repeated_pairs(12), PLANTED, controls=10, parts=2)
    lines = found.table.set_index("model")
    assert lines.loc["tuned", "score"] > 0.9 and np.isnan(lines.loc["base", "score"]) and lines.loc["base", "full"] == 0


def test_paths_into_a_base_that_answers_nothing_need_no_option() -> None:
    pair = pair_of("llama")
    found = path_patching(pair, MIXED, source="tuned", target="base", metric="prob_ratio", layers=[1], draws=20)
    assert found.provenance.settings["only_correct"] is False and len(found.effects) == len(MIXED)
    rows = [{"prompt": row.prompt, "answer": row.answer} for row in MIXED]
    with pytest.raises(UserError, match="use metric='prob_ratio'"):
        path_patching(pair, rows, source="tuned", target="base", metric="logit_diff")
