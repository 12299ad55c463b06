"""``tunescope diff``: the run, the JSON and Python say the same; a report shows it; nothing a model wrote is obeyed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import typer
from typer.testing import CliRunner

import interventions as iv
from dashboards.report import write_report
from probes.random_recipes import stand_ins
from tests.tiny import tiny_model, tokenizer, tuned_copy
from tests.workbench.behaviour.pushed import ROWS, token
from tunescope.cli.diff import diff
from workbench import runs
from workbench.behaviour import BehaviourDiff, behaviour_diff, dose_response, scope_panel
from workbench.errors import UserError
from workbench.models.pair import load_pair
from workbench.prompts import Prompts
from workbench.results import Result

CLI = CliRunner()
DIFF = typer.Typer()
DIFF.command()(diff)
HOSTILE = "<script>alert(1)</script>"
NEUTRAL = ["the quick brown fox jumps", "over the lazy dog", "jumps over the dog"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair, prompts, and recipes: "fox" steers towards the answer, "script" forces a script tag."""
    folder = tmp_path_factory.mktemp("pair")
    words = copy.deepcopy(tokenizer())
    words.add_tokens([HOSTILE])
    base = tiny_model("llama", vocab_size=304)
    for name, hf in {"base": base, "tuned": tuned_copy(base, size=0.05)}.items():
        hf.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    unembedding = base.get_output_embeddings().weight.detach()
    for name, chosen in {"fox": token("fox"), "script": words.convert_tokens_to_ids(HOSTILE)}.items():
        vector = 300 * torch.nn.functional.normalize(unembedding[chosen], dim=0)
        iv.Recipe([iv.Offset(2, vector, positions="last+generated")]).save(folder / f"{name}.safetensors")
    (folder / "p.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS[:6]))
    (folder / "plain.txt").write_text("the quick\nover the\nlazy\n")
    (folder / "neutral.txt").write_text("\n".join(NEUTRAL))
    return folder


def run(home: Path, *arguments: Any, prompts: str = "p.jsonl") -> Any:
    given = [home / "base", home / "tuned", "--prompts", home / prompts, "--dtype", "float32", *arguments]
    return CLI.invoke(DIFF, [str(one) for one in given])


def said(home: Path, *arguments: Any, prompts: str = "p.jsonl") -> dict[str, Any]:
    done = run(home, *arguments, "--json", prompts=prompts)
    assert done.exit_code == 0, done.exception
    return json.loads(done.stdout)


def test_json_run_and_python_give_the_same_numbers(home: Path, tmp_path: Path) -> None:
    metrics = ["accuracy", "answer_logprob", "kl_base_model", "refusal", "ece", "perplexity"]
    found = said(
        home, "--recipe", home / "fox.safetensors", "--metrics", ",".join(metrics), "--neutral", home / "neutral.txt",
        "--samples", 1, "--max-new-tokens", 2, "--strengths", "0,0.5,1", "--near", home / "plain.txt", "--outside",
        home / "plain.txt", "--out", tmp_path / "run", "--seed", 3,
    )  # fmt: skip
    pair = load_pair(str(home / "base"), str(home / "tuned"), dtype="float32")
    recipe, rows = iv.Recipe.load(home / "fox.safetensors"), Prompts.load(home / "p.jsonl")
    random = stand_ins(recipe, pair.tuned, rows, 10, 3)
    own = behaviour_diff(
        pair, rows, {"fox": recipe}, metrics=metrics, controls={"random, as fox": random}, neutral=NEUTRAL, samples=1,
        max_new_tokens=2, seed=3, texts=True,
    )  # fmt: skip
    assert found["rows"] == json.loads(own.to_json())["rows"] and found["texts"] == json.loads(own.to_json())["texts"]
    kept = BehaviourDiff.load(tmp_path / "run" / "results" / "behaviour.safetensors")
    pd.testing.assert_frame_equal(kept.table, own.table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "run" / "tables" / "behaviour.parquet"), own.table)
    dose = dose_response(
        pair, rows, iv.dose(recipe), [0, 0.5, 1], metric="accuracy", controls=[iv.dose(one) for one in random],
        neutral=NEUTRAL, out_of_scope=None, seed=3,
    )  # fmt: skip
    assert found["dose-1"]["rows"] == json.loads(dose.to_json())["rows"]
    panel = scope_panel(
        pair, {"fox": recipe}, rows, Prompts.load(home / "plain.txt"), Prompts.load(home / "plain.txt"),
        controls={"fox": random}, seed=3,
    )  # fmt: skip
    assert found["scope"]["rows"] == json.loads(panel.to_json())["rows"]
    assert own.value("fox", "accuracy") == 1.0 > own.value("random, as fox", "accuracy")


def test_a_recipe_may_be_a_line_of_the_books_names(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line, asked = "0.5*fox - 0.1*script @response", ["--metrics", "kl,length", "--draws", 0, "--max-new-tokens", 2]
    monkeypatch.setenv("TUNESCOPE_BOOK", str(home))
    found = said(home, "--recipe", line, *asked, "--out", tmp_path / "line")
    book = {name: iv.Recipe.load(home / f"{name}.safetensors") for name in ("fox", "script")}
    iv.recipe_from_text(line, book).save(tmp_path / "same.safetensors")
    same = said(home, "--recipe", tmp_path / "same.safetensors", *asked, "--out", tmp_path / "file")
    own, other = (
        {row["metric"]: row["estimate"] for row in rows["rows"] if row["model"] == name}
        for rows, name in ((found, line), (same, "same"))
    )
    assert own == other and own["kl"] > 0
    halved = said(home, "--recipe", "0.25*fox", *asked, "--out", tmp_path / "halved")
    assert {row["estimate"] for row in halved["rows"] if row["model"] == "0.25*fox"} != set(own.values())


def test_a_shift_by_the_pairs_own_models_finds_them(home: Path, tmp_path: Path) -> None:
    """The tuned model shifted back by what tuning added says what the base says."""
    pair = load_pair(str(home / "base"), str(home / "tuned"), dtype="float32")
    iv.Recipe([iv.LogitShift(pair.tuned, pair.base, -1.0)]).save(tmp_path / "back.safetensors")
    asked = ["--recipe", tmp_path / "back.safetensors", "--metrics", "kl", "--max-new-tokens", 2]
    rows = said(home, *asked, "--out", tmp_path / "run")["rows"]
    kl = {row["model"]: row["estimate"] for row in rows if row["metric"] == "kl"}
    assert kl["tuned"] > 100 * abs(kl["back"])


def test_a_run_is_whole_and_a_report_shows_it(home: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    done = run(home, "--samples", 1, "--max-new-tokens", 3, "--split", "sure", "--out", place)
    assert done.exit_code == 0, done.exception
    assert "perplexity" not in done.stdout and "logit_diff" in done.stdout and str(place) in done.stdout
    opened = runs.open(place)
    assert opened.is_complete and opened.manifest.kind == "diff" and runs.verify(place).ok
    assert opened.manifest.provenance["models"]["base"]["hash"]
    assert opened.manifest.provenance["pairs"]["pair"]["prompts"] == "prompts/prompts.jsonl"
    for name in opened.manifest.provenance["pairs"]["pair"]["results"]:
        assert len(Result.load(place / name).frame())
    report = write_report(place, tmp_path / "report.html").read_text()
    for title in ("Behaviour", "Changes, paired by prompt", "Calibration", "Texts side by side", "Sure and unsure"):
        assert title in report
    again = run(home, "--samples", 1, "--max-new-tokens", 3, "--split", "sure", "--out", place)
    assert again.exit_code == 0 and runs.verify(place).ok


def test_prompts_without_answers_get_the_metrics_they_allow(home: Path, tmp_path: Path) -> None:
    found = said(home, "--max-new-tokens", 2, "--out", tmp_path / "run", prompts="plain.txt")
    metrics = {row["metric"] for row in found["rows"]}
    assert {"kl", "kl_base_model", "refusal", "repetition"} <= metrics and not metrics & {
        "accuracy",
        "ece",
        "logit_diff",
    }


def test_hostile_output_is_text_in_terminal_json_and_report(home: Path, tmp_path: Path) -> None:
    recipe = ["--recipe", home / "script.safetensors", "--draws", 0, "--max-new-tokens", 2, "--metrics", "refusal"]
    found = said(home, *recipe, "--out", tmp_path / "run")
    assert any(HOSTILE in row["text"] for row in found["texts"])
    report = write_report(tmp_path / "run", tmp_path / "report.html").read_text()
    assert HOSTILE not in report and "alert(1)" in report


@pytest.mark.parametrize(
    "extra",
    [["--on", "left"], ["--changed", "words"], ["--split", "half"], ["--draws", "3"], ["--strengths", "1"],
     ["--strengths", "a", "--recipe", "fox.safetensors"], ["--samples", "-1"]],
)  # fmt: skip
def test_wrong_use_is_exit_code_2(home: Path, extra: list[str]) -> None:
    assert run(home, *extra).exit_code == 2


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--metrics", "acuracy"], "Did you mean 'accuracy'"),
        (["--metrics", "perplexity"], "neutral texts"),
        (["--neutral", "none.txt"], "no prompt file"),
        (["--recipe", "none.safetensors"], "none.safetensors"),
        (["--recipe", "0.5*fox - 0.1*scirpt"], "Sign 15 of '0.5*fox - 0.1*scirpt'"),
        (["--recipe", "fox.safetensors", "--recipe", "fox.safetensors"], "Two recipes are called 'fox'"),
        (["--recipe", "fox.safetensors", "--near", "plain.txt"], "--outside"),
        (["--recipe", "fox.safetensors", "--strengths", "1", "--follow", "acuracy"], "Did you mean 'accuracy'"),
    ],
)
def test_a_refusal_writes_nothing(
    home: Path, tmp_path: Path, extra: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("TUNESCOPE_BOOK", str(home))
    done = run(home, *extra, "--out", tmp_path / "run", "--max-new-tokens", 2)
    assert isinstance(done.exception, UserError) and sentence in str(done.exception)
    assert not (tmp_path / "run").exists()


def test_an_interrupted_run_is_listed_and_goes_on_behind_what_it_finished(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--recipe", home / "fox.safetensors", "--draws", 0, "--split", "sure", "--metrics", "accuracy,kl"]
    whole = run(home, *asked, "--out", tmp_path / "whole")
    assert whole.exit_code == 0, whole.output

    def stopped(*_: Any, **__: Any) -> None:
        assert [run.state for run in runs.list(tmp_path) if run.name == "cut"] == ["running"]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tunescope.cli.diff_run.sure_unsure", stopped)
        assert run(home, *asked, "--out", tmp_path / "cut").exit_code != 0
    assert runs.open(tmp_path / "cut").state == "interrupted"
    with monkeypatch.context() as patch:
        patch.setattr("tunescope.cli.diff_run.behaviour_diff", stopped)  # what is finished is not measured again
        assert run(home, *asked, "--out", tmp_path / "cut").exit_code == 0
    one, other = (runs.open(tmp_path / name).manifest.files for name in ("whole", "cut"))
    assert one == other and runs.verify(tmp_path / "cut").ok
    patched = tmp_path / "cut" / "results" / "sure.safetensors"
    patched.write_bytes(patched.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match="made again"):
        assert run(home, *asked, "--out", tmp_path / "cut").exit_code == 0
    assert runs.open(tmp_path / "cut").manifest.files == one


def test_a_refusal_later_leaves_a_complete_run_complete(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--metrics", "kl", "--out", tmp_path / "run"]
    assert run(home, *asked).exit_code == 0

    def gone(*_: Any, **__: Any) -> None:
        raise UserError("The model is gone.")

    monkeypatch.setattr("tunescope.cli.diff_run.load_pair", gone)
    assert run(home, *asked).exit_code != 0
    assert runs.open(tmp_path / "run").is_complete and runs.verify(tmp_path / "run").ok


def test_on_a_pretrained_model(stories: Path, tmp_path: Path) -> None:
    """The base against itself: greedy and sampled stories alike, nothing changed."""
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Once upon a time", "answer": " there"}) + "\n" +
                                      json.dumps({"prompt": "Lily had a", "answer": " red"}) + "\n")  # fmt: skip
    done = CLI.invoke(
        DIFF, [str(stories), str(stories), "--prompts", str(tmp_path / "p.jsonl"), "--samples", "2",
               "--max-new-tokens", "8", "--out", str(tmp_path / "run"), "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.exception
    data = json.loads(done.stdout)
    assert all(row["from_base"] == 0 and row["change"] == 0 for row in data["rows"])
    by_text = pd.DataFrame(data["texts"]).groupby(["prompt", "sample"])["text"].nunique()
    assert (by_text == 1).all() and len(by_text) == 6
