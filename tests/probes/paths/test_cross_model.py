"""Cross-model patching of circuits: planted heads carry the tuned behaviour over, random ones do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probes.paths.cross_model import CrossPatching, cmap
from tests.probes.paths.planted import induction_model, repeated_pairs
from tests.probes.test_patching import pair_of
from workbench.errors import UserError
from workbench.models.pair import load_pair

PLANTED = {"after": ["L0H0"], "last": ["L1H0"]}


class Improved:
    """The tuned model is the hand-built one; in the base the induction head copies a fifth as much."""

    def __init__(self, share: float = 0.2) -> None:
        self.tuned, self.base = induction_model(), induction_model()
        with torch.no_grad():
            self.base.hf.transformer.h[1].attn.c_attn.weight[:, 128:160] *= share
        self.base.role, self.tuned.role = "base", "tuned"


def test_the_circuit_carries_the_behaviour_over_both_ways() -> None:
    pair, prompts = Improved(), repeated_pairs(30)
    found = cmap(pair, prompts, PLANTED, "prob")
    table = found.table.set_index(["direction", "group"])
    there = table.loc["tuned into base"]
    assert there.alone.iloc[0] < 0.5 and there.other.iloc[0] > 0.9
    assert there.score["whole circuit"] == pytest.approx(there.other.iloc[0], abs=1e-3)
    assert there.share["last"] == pytest.approx(1, abs=0.01) and abs(there.share["after"]) < 0.01
    assert there.change_low["last"] > 0.3 and there.control["last"] < there.score["last"] - 0.2
    back = table.loc["base into tuned"]
    assert back.score["last"] == pytest.approx(back.other.iloc[0], abs=1e-3) and back.change_high["last"] < -0.3
    assert back.p["last"] < 0.5 and there.p["after"] > 0.9


def test_all_heads_of_the_tuned_model_give_its_scores_exactly() -> None:
    """KAT (e): everything but the attention's inputs is shared."""
    pair, prompts = Improved(), repeated_pairs(12)
    every = [f"L{layer}H{head}" for layer in range(2) for head in range(2)]
    found = cmap(pair, prompts, every, "logit_diff")
    assert found.table.score.to_numpy() == pytest.approx(found.table.other.to_numpy(), abs=1e-9)
    assert list(found.table.group) == ["whole circuit"] * 2


def test_base_against_itself_changes_nothing() -> None:
    base = induction_model().hf
    twin = load_pair(base, base, tokenizer=induction_model().tokenizer, check=False)
    copied: Any = type("Twin", (), {"base": induction_model(), "tuned": induction_model()})
    for pair in (twin, copied):
        found = cmap(pair, repeated_pairs(12), PLANTED, "logit_diff")
        assert np.abs(found.table.change).max() < 1e-9 and (found.table.q > 0.05).all()


def test_a_one_copy_pair_and_files(tmp_path: Path) -> None:
    pair = Improved()
    found = cmap(pair, repeated_pairs(20), PLANTED)
    back = CrossPatching.load(found.save(tmp_path / "cmap"))
    assert back.frame().equals(found.frame()) and back.heads == PLANTED
    assert list(found.frame())[:7] == ["direction", "group", "score", "low", "high", "control", "q"]
    assert len(found.figure().data) == 6 and "tuned into base" in found.summary()
    assert found.provenance.forward_passes > 10


def test_errors_say_what_to_do() -> None:
    with pytest.raises(UserError, match="give a pair"):
        cmap(induction_model(), repeated_pairs(4), PLANTED)
    with pytest.raises(UserError, match="The circuit is empty"):
        cmap(Improved(), repeated_pairs(4), [])
    with pytest.raises(UserError, match="does not exist"):
        cmap(pair_of("llama"), ["the fox"], ["L8H0"])
