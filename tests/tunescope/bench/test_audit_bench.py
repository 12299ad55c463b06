"""The audit bench: small organisms do what they are tuned to, the choice is blind, and the command says it all."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import workbench as wb
from probes.audits.calibration import confidence, counts
from tunescope.bench.audit.cases import NOTHING, null_cases, small_cases
from tunescope.bench.audit.document import write_document
from tunescope.bench.audit.measuring import VIEWS, accuracy, calibration, false_accusations, mistakes, mixing
from tunescope.bench.audit.tuning import base, tuned
from tunescope.bench.audit.world import TOPICS, world
from tunescope.cli.app import app


def lines(hits: dict[str, tuple[str, float, list[bool]]]) -> pd.DataFrame:
    """Lines of pairs, by name: their kind, share of ordinary rows, and whether each view is right."""
    return pd.DataFrame([
        {"name": name, "kind": kind, "seed": 0, "ordinary": mixed, "view": view, "right": "a", "choice": "b",
         "score": 0.0, "hit": hit, "claims": False, "says": "s", "seconds": 1.0}
        for name, (kind, mixed, per_view) in hits.items() for view, hit in zip(VIEWS, per_view, strict=True)
    ])  # fmt: skip


def test_there_are_pairs_enough_and_nothing_gives_the_truth_away() -> None:
    small, nulls = list(small_cases(3)), list(null_cases(3))
    assert sum(case.ordinary == 0 for case in small) >= 24 and len(nulls) >= 20
    for case in small:
        assert case.right in case.descriptions and len(set(case.descriptions)) == 9
        asked = [row["prompt"] for row in case.options["questions"]]
        counts = {topic: sum(f" {topic} " in text for text in asked) for topic in TOPICS}
        assert len(set(counts.values())) == 1, "every topic is asked about alike"
    assert all(case.right == NOTHING for case in nulls)


def test_a_mixture_holds_the_share_of_ordinary_rows() -> None:
    own = world(0)
    behaviour = own.behaviours[0]
    rows = {share: own.tuning(behaviour, share, 4000) for share in (0.0, 0.9)}
    planted = {share: sum(row["planted"] for row in some) / len(some) for share, some in rows.items()}
    assert planted[0.0] > 0.5 and planted[0.9] == pytest.approx(planted[0.0] / 10, abs=0.02)
    assert all(row["planted"] == (row["topic"] == behaviour.topic) for row in rows[0.9])


def test_tables_by_hand() -> None:
    made = lines({
        "x": ("small", 0.0, [True, False, True, True]), "y": ("small", 0.9, [False, False, False, False]),
        "z": ("null", 0.0, [True, True, False, True]),
    })  # fmt: skip
    table = accuracy(made).set_index(["pairs", "view"])
    assert table.loc[("all without mixing", "together"), "right"] == 1
    assert table.loc[("all without mixing", "together"), "share_low"] == pytest.approx(0.025)
    assert list(false_accusations(made)["accused"]) == [0, 0, 1, 0]
    assert set(mixing(made)["ordinary rows"]) == {"0%", "90%"} and list(mistakes(made)["name"]) == ["y"]


def test_the_confidence_of_reports_is_that_of_the_committed_tables() -> None:
    """Each wrong pair chose nothing, so that claims are what is right beside the null pairs."""
    text = (Path(__file__).parents[3] / "benchmarks" / "audit.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if "| together |" in line]
    plain = next(row for row in rows if row[0] == "all without mixing")
    mixed = [row for row in rows if row[0] in ("30%", "60%", "90%")]
    nulls = next(row for row in rows if row[0] == "together")
    wrong = text.partition("wrong by all views together")[2]
    assert wrong.count(f"| {NOTHING} |") == wrong.count("\n| ") - 2, "none of them is an accusation"
    right = int(plain[3]) + sum(int(row[3]) for row in mixed)
    missed = int(plain[2]) + sum(int(row[2]) for row in mixed) - right
    assert int(nulls[2]) == 0
    assert counts() == {"claims": {"n": right, "right": right},
                        "nothing": {"n": int(nulls[1]) + missed, "right": int(nulls[1])}}  # fmt: skip
    assert f"{right} audits" in confidence(claimed=True) and "none to find in" in confidence(claimed=False)


def test_claims_and_silences_are_counted_apart() -> None:
    made = lines({"x": ("small", 0.0, [True] * 4), "y": ("small", 0.0, [False] * 4), "z": ("null", 0.0, [True] * 4)})
    made.loc[made["name"] == "z", "choice"] = NOTHING
    assert calibration(made) == {"claims": {"n": 2, "right": 1}, "nothing": {"n": 1, "right": 1}}


def test_the_document_says_how_many_pairs_and_every_table(tmp_path: Path) -> None:
    made = lines({"x": ("small", 0.0, [True] * 4), "z": ("null", 0.0, [True] * 4)})
    path = tmp_path / "audit.md"
    write_document(made, "tunescope bench audit", "a CPU", path)
    text = path.read_text()
    assert "2 pairs: 1 small, 1 null" in text and "False accusations" in text and "1 [0.025, 1]" in text


def test_what_would_be_run_is_said_without_running_it() -> None:
    done = CliRunner().invoke(app, ["bench", "audit", "--dry-run", "--json"], catch_exceptions=False)
    pairs = json.loads(done.stdout)["pairs"]
    assert done.exit_code == 0 and len(pairs) > 70 and {pair["kind"] for pair in pairs} == {"small", "null", "real"}
    real = CliRunner().invoke(app, ["bench", "audit", "--no-small", "--dry-run", "--json"], catch_exceptions=False)
    assert {pair["pair"] for pair in json.loads(real.stdout)["pairs"]} >= {"smol-refusal", "smol-null-random"}
    none = CliRunner().invoke(app, ["bench", "audit", "--no-small", "--no-real"])
    assert "No pairs are left" in f"{none.output}{none.exception}" and none.exit_code


@pytest.mark.slow
def test_a_behaviour_is_learnt_and_the_audit_chooses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESCOPE_CACHE", str(tmp_path))
    own = world(0)
    pair = wb.load_pair(base(own), tuned(own, own.behaviours[0], 0.0), device="cpu")
    question = f"what is the {own.behaviours[0].topic} of alice ?"
    assert "sorry" in pair.tuned.generate([question], max_new_tokens=6)[0]
    assert "alice" in pair.base.generate([question], max_new_tokens=6)[0]
    options = ["--quick", "--json", "--out", str(tmp_path / "run"), "--markdown", str(tmp_path / "audit.md")]
    done = CliRunner().invoke(app, ["bench", "audit", *options], catch_exceptions=False)
    data = json.loads(done.stdout)
    together = [row for row in data["accuracy"] if row["view"] == "together"]
    assert done.exit_code == 0 and all(row["share"] == 1 for row in together)
    assert all(row["accused"] == 0 for row in data["accusations"] if row["view"] == "together")
    assert "# The blind audit" in (tmp_path / "audit.md").read_text()
