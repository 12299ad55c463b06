"""Runs whose start tells their end, and a model that leans on a cue."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pandas as pd
import pytest

import probes
from probes.effects.early_signs import read_log, sign_lines, signs_of
from probes.effects.panel import table_of
from probes.effects.spurious import agreeing, reliance_lines
from tests.probes.effects.material import pair_of, rows_of
from tests.probes.provenance import Calls
from workbench.errors import UserError

CUED = rows_of(24, cue=lambda i: i % 4 == 2)


def saved_runs(count: int = 4) -> list[str]:
    folder = Path(mkdtemp())
    for number in range(count):
        run = folder / f"run{number}"
        pair_of(0.02 * (number + 1)).tuned.hf.save_pretrained(run)
        log = [{"step": step, "loss": 3 - 0.1 * step * number, "grad_norm": 1.0 + number} for step in range(1, 21)]
        (run / "trainer_state.json").write_text(json.dumps({"log_history": [*log, {"step": 20, "eval_loss": 1}]}))
    return [str(folder / f"run{number}") for number in range(count)]


def calls_of_early_signs() -> Calls:
    return Calls([{"pair": pair_of(), "prompts": rows_of(8), "runs": saved_runs(), "early": 0.2, "batch_size": 4,
                   "seed": 3}])  # fmt: skip


def calls_of_spurious_attributes() -> Calls:
    given = {"attributes": ["cue"], "layer": 1, "metric": "prob", "controls": 2, "max_new_tokens": 3}
    return Calls([{"pair": pair_of(), "prompts": CUED, **given, "batch_size": 4, "seed": 3}])


def test_larger_steps_at_the_start_end_in_larger_changes() -> None:
    runs = saved_runs()
    found = probes.early_signs(pair_of(), rows_of(8), runs=runs)
    assert found.line("gradient norm against size of the change", "tuned")["score"] == pytest.approx(1)
    assert found.values["size of the change"].is_monotonic_increasing and len(found.values) == 4
    assert signs_of(read_log(Path(runs[1])), 0.1)["fall of the loss"] == pytest.approx(0.1)
    with pytest.raises(UserError, match="holds no trainer_state"):
        read_log(Path(mkdtemp()))
    with pytest.raises(UserError, match="cannot be ranked"):
        probes.early_signs(pair_of(), rows_of(8), runs=runs[:2])


def test_signs_without_meaning_are_no_finding() -> None:
    random = np.random.default_rng(0)
    signs = pd.DataFrame({"planted": np.arange(12.0), "noise": random.random(12)})
    table = table_of(sign_lines(signs, signs, pd.DataFrame({"end": np.arange(12.0) ** 2}), 0)).set_index("group")
    assert table.loc["planted against end", "p"] < 0.01 and table.loc["noise against end", "p"] > 0.05


def test_a_model_that_needs_the_cue_is_worse_without_it() -> None:
    answers, cue = np.array(["a", "b"] * 40), np.array([True, False] * 40)
    cue[::8] = False
    agrees = agreeing(answers, cue, "cue")
    assert agrees.sum() == 70
    scores = {"base": np.ones(80) * 0.5, "tuned": agrees.astype(float)}
    table = table_of(reliance_lines("cue", scores, agrees, np.arange(80), 0)).set_index("model")
    assert table.loc["tuned", "score"] == 1 and table.loc["tuned - base", "q"] < 0.01 and table.loc["base", "p"] == 1
    with pytest.raises(UserError, match="always goes with the answer"):
        agreeing(answers, answers == "a", "cue")


def test_a_base_against_itself_leans_on_nothing_new() -> None:
    found = probes.spurious_attributes(pair_of(0), CUED, attributes=["cue"], metric="prob", controls=2)
    assert found.line("reliance on cue")["score"] == 0 and found.line("reliance on cue")["q"] == 1
    gain = found.line("gain when cue is shielded", "tuned")
    assert np.isfinite(gain["score"]) and gain["n"] >= 1
    with pytest.raises(UserError, match="All rows have"):
        probes.spurious_attributes(pair_of(), rows_of(8, cue=lambda _: True), attributes=["cue"])
