"""Runs as experiments: what a command made is made again, with the same numbers, by ``tunescope run``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import interventions as iv
from probes import ProbeResult
from tests.probes.copier import copier
from tests.probes.paths.planted import induction_model, repeated_pairs
from tests.workbench.cli.experiment.small import SMALL
from workbench import runs
from workbench.cli.app import app
from workbench.cli.experiment import Experiment, run_experiment
from workbench.cli.experiment.from_run import experiment_of_run, only
from workbench.errors import NotSupported, UserError
from workbench.organisms.vocabulary import word_tokenizer
from workbench.runs import Run


def made(home: Path, out: Path, *arguments: str) -> Run:
    """The run of a command whose paths start at ``home``."""
    given = [str(home / one) if one.endswith((".jsonl", ".txt", "-base", "-tuned")) else one for one in arguments]
    told = CliRunner().invoke(app, [*given, "--out", str(out)])
    assert told.exit_code == 0, told.output
    return runs.open(out)


def _assert_found_again(run: Run, folder: Path) -> None:
    """The run's experiment file gives its result once more."""
    experiment = Experiment.parse(experiment_of_run(run).to_yaml())
    done = run_experiment(experiment, folder / "again", folder=folder)
    (found,) = done.run.path.glob("steps/*/result.safetensors")
    before, after = ProbeResult.load(run.file("result.safetensors")), ProbeResult.load(found)
    pd.testing.assert_frame_equal(after.frame(), before.frame())
    assert _settings(after) == _settings(before)


@pytest.mark.parametrize(
    ("verb", "family", "more"),
    [
        ("weights", "llama", ""),
        ("activations", "llama", "--prompts p.jsonl --sites z,resid_post --positions prompt --seed 2"),
        ("heads", "llama", "--prompts p.jsonl --layers 0,1 --metric prob --what z --seed 1"),
        ("experts", "mixtral", "--prompts p.jsonl --target a"),
        ("concepts", "llama", "--prompts p.jsonl --layer 0.5 --method mean"),
        ("skills", "llama", "--prompts many.jsonl --level modules --method movement --sparsity 0.5"),
    ],
)
def test_what_localize_found_is_found_again(home: Path, tmp_path: Path, verb: str, family: str, more: str) -> None:
    (home / "many.jsonl").write_text("\n".join([(home / "p.jsonl").read_text()] * 3))
    pair = (f"{family}-base", f"{family}-tuned")
    given = ["localize", verb, *pair, *more.split(), *([] if verb == "weights" else ["--device", "cpu"])]
    run = made(home, tmp_path / "run", *given)
    _assert_found_again(run, tmp_path)


@pytest.fixture(scope="module")
def repeater(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hand-built induction models and the pairs that they complete."""
    folder = tmp_path_factory.mktemp("copier")
    for name, seed in (("model-base", 0), ("model-tuned", 1)):
        model = induction_model(seed)
        model.hf.save_pretrained(folder / name)
        model.tokenizer.save_pretrained(folder / name)
    repeated_pairs(24).save(folder / "p.jsonl")
    return folder


@pytest.mark.parametrize(
    "asked",
    [
        "paths --receivers L1H0 --through k --position after --within base",
        "paths --within across --metric logit_diff --layers 0,1 --all-prompts --seed 2",
        "circuit --heads after=L0H0;last=L1H0 --minimality",
        "cmap --heads L0H0,L1H0 --metric logit_diff",
    ],
)
def test_ways_and_circuits_are_found_again(repeater: Path, tmp_path: Path, asked: str) -> None:
    verb, *more = asked.split()
    run = made(
        repeater, tmp_path / "run", "localize", verb, "model-base", "model-tuned", "--prompts", "p.jsonl", *more,
        "--device", "cpu",
    )  # fmt: skip
    _assert_found_again(run, tmp_path)


def test_the_reference_of_a_circuit_cannot_be_written_out(repeater: Path, tmp_path: Path) -> None:
    prompts = ("--prompts", "p.jsonl", "--reference", "p.jsonl")
    run = made(
        repeater, tmp_path / "run", "localize", "circuit", "model-base", "model-tuned", *prompts, "--heads", "L1H0",
        "--device", "cpu",
    )  # fmt: skip
    with pytest.raises(NotSupported, match="reference prompts"):
        experiment_of_run(run)


def test_what_copies_a_needle_is_found_again(tmp_path: Path) -> None:
    """Two hand-built copiers: the base copies with L1H1, the tuned model with L1H0."""
    haystack, needles = "ant bee . cat dog . eel fox . gnu hen . " * 4, ["answer zebra hides here ."]
    words = word_tokenizer([haystack, *needles, " question : answer what ?"])
    words.eos_token = "."
    for name, head in (("base", 1), ("tuned", 0)):
        copier(len(words), 96, head).hf.save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    (tmp_path / "h.txt").write_text(haystack)
    (tmp_path / "n.jsonl").write_text("\n".join(json.dumps({"question": "what ?", "text": one}) for one in needles))
    files = ["--haystack", str(tmp_path / "h.txt"), "--needles", str(tmp_path / "n.jsonl"), "--device", "cpu"]
    asked = [*files, "--lengths", "16,32", "--template", " question : {question} answer"]
    models = [str(tmp_path / "base"), str(tmp_path / "tuned")]
    run = made(tmp_path, tmp_path / "run", "localize", "retrieval", *models, *asked)
    done = run_experiment(experiment_of_run(run), tmp_path / "again", folder=tmp_path)
    (found,) = done.run.path.glob("steps/*/result.safetensors")
    before, after = ProbeResult.load(run.file("result.safetensors")), ProbeResult.load(found)
    pd.testing.assert_frame_equal(after.frame(), before.frame())
    assert _settings(after) == _settings(before) and before.frame()["score"].max() > 0.5


def test_the_needles_of_a_file_are_written_out(tmp_path: Path) -> None:
    needles, haystack = tmp_path / "n.jsonl", tmp_path / "h.txt"
    needles.write_text(json.dumps({"question": "q", "text": "t", "more": 1}) + "\n\n")
    config = {"base": "a", "tuned": "b", "haystack": str(haystack), "needles": str(needles), "lengths": "64, 128"}
    with runs.create(tmp_path, "r", kind="retrieval", config={"verb": "localize retrieval", **config}) as run:
        run.write_json("x", {})
    step = experiment_of_run(run).steps["retrieval"]
    assert step.plain() == {
        "do": "localize retrieval", "haystack": str(haystack), "needles": [{"question": "q", "text": "t"}],
        "lengths": [64, 128],
    }  # fmt: skip
    needles.write_text("{}")
    with pytest.raises(UserError, match="no longer holds the needles"):
        experiment_of_run(run)


def _settings(result: Any) -> dict[str, Any]:
    kept = dataclasses.asdict(result.provenance)
    return {key: kept[key] for key in ("probe", "prompts", "n_prompts", "seed", "settings")}


def test_a_recording_is_made_again_also_when_its_prompts_are_gone(home: Path, tmp_path: Path) -> None:
    rows = tmp_path / "mine.jsonl"
    rows.write_text((home / "p.jsonl").read_text())
    asked = ["--prompts", str(rows), "--sites", "z", "--layers", "1", "--new-tokens", "2", "--positions", "all"]
    run = made(home, tmp_path / "run", "record", "llama-base", "llama-tuned", *asked)
    rows.unlink()
    done = run_experiment(experiment_of_run(run), tmp_path / "again", folder=tmp_path)
    (table,) = (pd.read_parquet(path) for path in done.run.path.glob("steps/*/table.parquet"))
    pd.testing.assert_frame_equal(table, run.read_table("difference"))


@pytest.mark.parametrize("on", ["tuned", "base"])
def test_a_comparison_is_made_again_with_its_doses(home: Path, tmp_path: Path, on: str) -> None:
    push = tmp_path / "a push.safetensors"
    iv.Recipe([iv.Offset(1, torch.linspace(-1, 1, 64) * 4, positions="last+generated")]).save(push)
    (tmp_path / "neutral.txt").write_text("the lazy dog jumps over\nthe quick brown fox\n")
    asked = ["--prompts", "p.jsonl", "--recipe", str(push), "--on", on, "--strengths", "0,1,2", "--follow", "prob"]
    asked += ["--metrics", "accuracy,prob,kl,perplexity,repetition", "--neutral", str(tmp_path / "neutral.txt")]
    asked += ["--max-new-tokens", "3", "--samples", "2", "--device", "cpu", "--seed", "3"]
    run = made(home, tmp_path / "run", "diff", "llama-base", "llama-tuned", *asked)
    experiment = experiment_of_run(run)
    assert list(experiment.steps) == ["behaviour", "dose-a-push"] and not experiment.about
    with runs.create(
        tmp_path, "wider", kind="diff", config={**run.config, "outside": "o.txt", "split": "known"}
    ) as wider:
        wider.write_table("tables/behaviour", run.read_table("tables/behaviour"))
        wider.note(**{"pairs": run.manifest.provenance["pairs"]})
        wider.file("prompts").mkdir()
        wider.write_text("prompts/prompts.jsonl", run.file("prompts/prompts.jsonl").read_text())
    assert experiment_of_run(wider).about.startswith("Without the scope panel and the division of the prompts:")
    done = run_experiment(experiment, tmp_path / "again", folder=tmp_path)
    kept = {path.parent.name.rpartition("-")[0]: path for path in done.run.path.glob("steps/*/table.parquet")}
    found, dose = pd.read_parquet(kept["behaviour"]), pd.read_parquet(kept["dose-a-push"])
    named = "a-push" if on == "tuned" else "a-push, in the base"
    wanted = run.read_table("tables/behaviour")
    before = ["base", "tuned", *(name for name in dict.fromkeys(wanted["model"]) if name not in ("base", "tuned"))]
    for ours, theirs in zip(["base", "tuned", named, f"random {named}"], before, strict=True):
        mine, its = found[found["model"] == ours], wanted[wanted["model"] == theirs]
        numbers = ["metric", "estimate", "low", "high", "n"]
        pd.testing.assert_frame_equal(
            mine[numbers].reset_index(drop=True), its[numbers].reset_index(drop=True), check_dtype=False
        )
    followed = run.read_table("tables/dose-1").sort_values("strength")
    for metric, column in (("prob", "estimate"), ("perplexity", "side")):
        mine = dose[(dose["model"] == named) & (dose["metric"] == metric)].sort_values("strength")
        assert mine["estimate"].tolist() == pytest.approx(followed[column].tolist())


def test_an_experiment_is_its_own_file_wherever_that_is_kept(home: Path, tmp_path: Path) -> None:
    done = run_experiment(Experiment.parse(SMALL), tmp_path / "run", folder=home)
    again = experiment_of_run(done.run)
    assert again.pair.base == str(home / "llama-base") and again.prompts["prompts"].file == str(home / "p.jsonl")
    heads = only(again, ["heads"])
    assert list(heads.steps) == ["heads"] and not heads.recipes and list(heads.sweep) == ["seed"]
    effect = only(again, ["effect"])
    assert list(effect.steps) == ["rec", "effect"] and set(effect.sweep) == {"seed", "recipes.push.strength"}
    other = run_experiment(heads, tmp_path / "again", folder=tmp_path).metrics
    kept = done.metrics[(done.metrics["step"] == "heads") & (done.metrics["recipes.push.strength"] == 0.5)]
    assert other["estimate"].tolist() == kept["estimate"].tolist()
    with pytest.raises(NotSupported, match="does not say how 'hands' was made"):
        only(again, ["hands"])


def test_what_cannot_be_made_again_is_a_sentence(home: Path, tmp_path: Path) -> None:
    with runs.create(tmp_path, "a", kind="notes", config={"x": 1}) as odd:
        odd.write_json("x", {})
    with pytest.raises(NotSupported, match="does not say how its results were made"):
        experiment_of_run(odd)
    with runs.create(tmp_path, "b", kind="components", config={"verb": "localize components"}) as later:
        later.write_json("x", {})
    with pytest.raises(NotSupported, match="No step of an experiment file repeats 'localize components'"):
        experiment_of_run(later)
    config = {"verb": "localize heads", "base": "a", "tuned": "b", "prompts": "gone.jsonl"}
    with runs.create(tmp_path, "c", kind="heads", config=config) as older:
        older.write_json("x", {})
    with pytest.raises(UserError, match=r"keeps no prompts, and 'gone.jsonl' is not here"):
        experiment_of_run(older)
    with runs.create(tmp_path, "d", kind="demo", config={}) as strange:
        strange.note(experiments={"p": {"name": "x", "stps": {}}})
    with pytest.raises(UserError, match=r"provenance.experiments.p: stps: unknown key 'stps'"):
        experiment_of_run(strange, "p")
    with pytest.raises(UserError, match=r"Unknown pair in .* 'q'"):
        experiment_of_run(strange, "q")
