"""Runs as experiments: what a command made is made again, with the same numbers, by ``tunescope run``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from probes import ProbeResult
from tests.probes.copier import copier
from tests.probes.paths.planted import induction_model, repeated_pairs
from tests.tunescope.experiments.small import SMALL
from tunescope.cli.app import app
from tunescope.experiments import Experiment, run_experiment
from tunescope.experiments.from_run import experiment_of_run, only
from workbench import runs
from workbench.errors import NotSupported, UserError
from workbench.organisms.vocabulary import word_tokenizer
from workbench.prompts import Prompts
from workbench.runs import Run


def made(home: Path, out: Path, *arguments: str) -> Run:
    """The run of a command whose paths start at ``home``."""
    given = [
        str(home / argument) if argument.endswith((".jsonl", ".txt", "-base", "-tuned")) else argument
        for argument in arguments
    ]
    outcome = CliRunner().invoke(app, [*given, "--out", str(out)])
    assert outcome.exit_code == 0, outcome.output
    return runs.open(out)


def _assert_found_again(run: Run, folder: Path) -> None:
    """The run's experiment file gives its result once more."""
    experiment = Experiment.parse(experiment_of_run(run).to_yaml())
    done = run_experiment(experiment, folder / "again", folder=folder)
    (found,) = done.run.path.glob("steps/*/result.safetensors")
    before, after = load(run), ProbeResult.load(found)
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


@pytest.mark.parametrize(
    ("verb", "more"),
    [
        ("activations", "--sites z"),
        ("heads", "--metric prob"),
        ("experts", "--target a"),
        ("concepts", "--method mean"),
        ("skills", "--level modules --method movement --sparsity 0.5"),
    ],
)
def test_what_localize_found_in_half_precision_is_found_again_in_it(
    home: Path, tmp_path: Path, verb: str, more: str
) -> None:
    (home / "many.jsonl").write_text("\n".join([(home / "p.jsonl").read_text()] * 3))
    family = "mixtral" if verb == "experts" else "llama"
    given = [f"{family}-base", f"{family}-tuned", "--prompts", "many.jsonl" if verb == "skills" else "p.jsonl"]
    run = made(home, tmp_path / "run", "localize", verb, *given, *more.split(), "--device", "cpu", "--dtype", "bf16")
    pair = experiment_of_run(run).pair
    assert (run.config["device"], run.config["dtype"]) == (pair.device, pair.dtype) == ("cpu", "bfloat16")
    assert {model["dtype"] for model in load(run).provenance.models.values()} == {"bfloat16"}
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
        "paths --source tuned --target base --metric logit_diff --layers 0,1 --no-only-correct --seed 2",
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


def test_a_circuit_with_prompts_of_its_own_to_refer_to_is_found_again(repeater: Path, tmp_path: Path) -> None:
    others = tmp_path / "others.jsonl"
    repeated_pairs(24, seed=7).save(others)
    asked = ["localize", "circuit", "model-base", "model-tuned", "--heads", "L1H0", "--device", "cpu"]
    run = made(repeater, tmp_path / "run", *asked, "--prompts", "p.jsonl", "--reference", str(others))
    _assert_found_again(run, tmp_path)
    alone = made(repeater, tmp_path / "alone", *asked, "--prompts", "p.jsonl")
    assert _settings(load(alone))["settings"]["reference"] != _settings(load(run))["settings"]["reference"]
    others.write_text(others.read_text().replace(" dog", " lazy"))
    with pytest.raises(UserError, match=r"others.jsonl holds other prompts than when .* was made"):
        experiment_of_run(run)
    others.unlink()
    with pytest.raises(UserError, match=r"made with the prompts in '.*others.jsonl', which is not here"):
        experiment_of_run(run)


@pytest.mark.parametrize("more", ["", "--heads L1H0,L0H1,L1H1 --penalties 0.01 --epochs 1 --position -1 --seed 3"])
def test_components_are_found_again(repeater: Path, tmp_path: Path, more: str) -> None:
    """Each desideratum is called as its file was, whatever signs that has."""
    files = [tmp_path / name for name in ("its value.jsonl", "its-value.jsonl", ": #&x.jsonl")]
    for number, file in enumerate(files):
        moved(repeated_pairs(16, seed=number)).save(file)
    given = [one for file in files for one in ("--prompts", str(file))]
    asked = ["localize", "components", "model-base", "model-tuned", *more.split(), "--device", "cpu"]
    run = made(repeater, tmp_path / "run", *asked, *given)
    _assert_found_again(run, tmp_path)
    again = experiment_of_run(run)
    step = again.steps["components"].plain()
    assert [*step["desiderata"]] == ["its value", "its-value", ": #&x"] and len(set(step["desiderata"].values())) == 3
    assert [*load(run).masks["desideratum"].unique()] == ["its value", "its-value", ": #&x"]
    files[1].unlink()
    with pytest.raises(UserError, match=r"its-value.jsonl', which is not here"):
        experiment_of_run(run)


def moved(rows: Prompts) -> Prompts:
    """As desiderata: the answer that the contrast asks for."""
    return Prompts.of([{**row.as_dict(), "answer": row.distractor, "distractor": row.answer} for row in rows])


def load(run: Run) -> Any:
    return ProbeResult.load(run.file("result.safetensors"))


def test_what_copies_a_needle_is_found_again(tmp_path: Path) -> None:
    """Two hand-built copiers: the base copies with L1H1, the tuned model with L1H0."""
    haystack, needles = "ant bee . cat dog . eel fox . gnu hen . " * 4, ["answer zebra hides here ."]
    words = word_tokenizer([haystack, *needles, " question : answer what ?"])
    words.eos_token = "."
    for name, head in (("base", 1), ("tuned", 0)):
        copier(len(words), 96, head).hf.save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    (tmp_path / "h.txt").write_text(haystack)
    (tmp_path / "n.jsonl").write_text(
        "\n".join(json.dumps({"question": "what ?", "text": needle}) for needle in needles)
    )
    files = ["--haystack", str(tmp_path / "h.txt"), "--needles", str(tmp_path / "n.jsonl"), "--device", "cpu"]
    asked = [*files, "--lengths", "16,32", "--template", " question : {question} answer"]
    models = [str(tmp_path / "base"), str(tmp_path / "tuned")]
    run = made(tmp_path, tmp_path / "run", "localize", "retrieval", *models, *asked)
    done = run_experiment(experiment_of_run(run), tmp_path / "again", folder=tmp_path)
    (found,) = done.run.path.glob("steps/*/result.safetensors")
    before, after = ProbeResult.load(run.file("result.safetensors")), ProbeResult.load(found)
    pd.testing.assert_frame_equal(after.frame(), before.frame())
    assert _settings(after) == _settings(before) and before.frame()["score"].max() > 0.5


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


def test_a_recording_is_made_again_with_its_models_loaded_as_they_were(home: Path, tmp_path: Path) -> None:
    asked = ["--prompts", "p.jsonl", "--sites", "z", "--dtype", "bf16", "--device", "cpu"]
    run = made(home, tmp_path / "run", "record", "llama-base", "llama-tuned", *asked)
    experiment = Experiment.parse(experiment_of_run(run).to_yaml())
    assert (experiment.pair.device, experiment.pair.dtype) == ("cpu", "bfloat16")
    done = run_experiment(experiment, tmp_path / "again", folder=tmp_path)
    (table,) = (pd.read_parquet(path) for path in done.run.path.glob("steps/*/table.parquet"))
    pd.testing.assert_frame_equal(table, run.read_table("difference"))
    plain = made(
        home, tmp_path / "plain", "record", "llama-base", "llama-tuned", "--prompts", "p.jsonl", "--sites", "z"
    )
    assert experiment_of_run(plain).pair.plain().keys() == {"base", "tuned"}
    assert not plain.read_table("difference").equals(table), "another dtype, other numbers"


def test_a_recording_whose_models_no_experiment_loads_is_a_sentence(home: Path, tmp_path: Path) -> None:
    config = {"base": {"name": "org/base", "revision": "abc"}, "tuned": {"name": str(home / "llama-tuned")}}
    config |= {"sites": ["z"], "positions": "last", "prompts": "hash"}

    def recorded(name: str, **options: Any) -> Run:
        with runs.create(tmp_path, name, kind="record", config={**config, **options}) as run:
            run.file("prompts").mkdir()
            Prompts.load(home / "p.jsonl").save(run.file("prompts/prompts.jsonl"))
        return run

    pinned = experiment_of_run(recorded("a", dtype="fp16")).pair
    assert (pinned.base, pinned.tuned) == ("org/base@abc", str(home / "llama-tuned")) and pinned.dtype == "float16"
    with pytest.raises(NotSupported, match="loaded its models with --trust-remote-code, which runs code"):
        experiment_of_run(recorded("b", trust_remote_code=True))
    with pytest.raises(NotSupported, match="made with backend 'nnsight', for which an experiment file has no key"):
        experiment_of_run(recorded("c", backend="nnsight"))


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
    for name, verb, said in (
        ("b", "localize circles", "does not say how its results were made"),
        ("g", "diff", "does not say all that diff was given"),
    ):
        with runs.create(tmp_path, name, kind="later", config={"verb": verb, "base": 3}) as later:
            later.write_json("x", {})
        with pytest.raises(NotSupported, match=said):
            experiment_of_run(later)
    step = {"name": "heads", "pair": {"base": "a", "tuned": "b"}, "prompts": {"file": "gone.jsonl"}}
    step["steps"] = {"heads": {"do": "localize heads"}}
    config = {"verb": "localize heads", "base": "a", "tuned": "b", "experiment": step}
    with runs.create(tmp_path, "c", kind="heads", config=config) as older:
        older.write_json("x", {})
    with pytest.raises(UserError, match=r"keeps no prompts, and .* is not here"):
        experiment_of_run(older)
    with runs.create(tmp_path, "d", kind="demo", config={}) as strange:
        strange.note(experiments={"p": {"name": "x", "stps": {}}})
    with pytest.raises(UserError, match=r"provenance.experiments.p: stps: unknown key 'stps'"):
        experiment_of_run(strange, "p")
    with pytest.raises(UserError, match=r"Unknown pair in .* 'q'"):
        experiment_of_run(strange, "q")
