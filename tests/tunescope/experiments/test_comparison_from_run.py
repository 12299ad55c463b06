"""Comparisons of a run are made again from its experiment, with their recipes, doses and files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import interventions as iv
import workbench as wb
from dashboards.report import write_report
from tests.tunescope.experiments.test_from_run import made
from tunescope.experiments import run_experiment
from tunescope.experiments.from_run import experiment_of_run, only
from workbench import runs
from workbench.behaviour import PartedDiff, ScopePanel
from workbench.errors import NotSupported, UserError
from workbench.prompts import Prompts

NUMBERS = ["metric", "estimate", "low", "high", "n"]


def options(folder: Path, files: dict[str, str]) -> list[str]:
    """As on the command line."""
    return [one for name, file in files.items() for one in (f"--{name}", str(folder / file))]


@pytest.fixture
def push(home: Path, tmp_path: Path) -> Path:
    """A recipe whose file's name is no plain one; a few prompts, neutral texts, prompts near its scope and beyond."""
    Prompts.load(home / "p.jsonl")[:6].save(tmp_path / "few.jsonl")
    push = tmp_path / "a push.safetensors"
    iv.Recipe([iv.Offset(1, torch.linspace(-1, 1, 64) * 4, positions="last+generated")]).save(push)
    (tmp_path / "neutral.txt").write_text("the lazy dog jumps over\nthe quick brown fox\n")
    (tmp_path / "near.txt").write_text("the lazy dog\nover the lazy fox\nquick\n")
    (tmp_path / "out.txt").write_text("dog dog dog\nbrown\nfox over the\njumps\n")
    return push


def found_in(done: Any) -> dict[str, Path]:
    """Step -> its folder."""
    return {path.name.rpartition("-")[0]: path for path in done.run.path.glob("steps/*")}


def alike(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    """The same numbers, whatever the recipes are called and however whole numbers are kept."""
    named = {"a push": "a-push", "random, as a push": "random a-push"}
    theirs = theirs.replace({name: named for name in ("model", "recipe") if name in theirs})
    pd.testing.assert_frame_equal(
        ours.reset_index(drop=True), theirs[list(ours)].reset_index(drop=True), check_dtype=False
    )


def test_a_comparison_is_made_again_with_scope_and_parts(home: Path, tmp_path: Path, push: Path) -> None:
    asked = "--strengths 0,2 --changed text --split sure --max-new-tokens 2 --metrics accuracy,confidence,kl,ece"
    files = {"prompts": "few.jsonl", "recipe": push.name, "near": "near.txt", "outside": "out.txt"}
    given = [*asked.split(), "--device", "cpu", "--seed", "4", "--batch-size", "5", *options(tmp_path, files)]
    run = made(home, tmp_path / "run", "diff", "llama-base", "llama-tuned", *given)
    experiment = experiment_of_run(run)
    assert [*experiment.steps] == ["behaviour", "dose-1", "scope", "sure"] and not experiment.about
    assert set(experiment.prompts) == {"prompts", "near", "outside"}
    results = [path.stem for path in run.file("results").glob("*.safetensors")]
    assert only(experiment, results) == experiment, "every result has its step"
    done = run_experiment(experiment, tmp_path / "again", folder=tmp_path)
    steps = found_in(done)
    scope = ScopePanel.load(steps["scope"] / "result.safetensors")
    first = ScopePanel.load(run.file("results/scope.safetensors"))
    for part in ("table", "selective", "rows"):
        alike(getattr(scope, part), getattr(first, part))
    assert scope.changed == first.changed and scope.table["estimate"].max() > 0 and scope.table["control"].notna().all()
    alike(pd.read_parquet(steps["scope"] / "table.parquet"), first.table)
    alike(pd.read_parquet(steps["scope"] / "selective.parquet"), first.selective)
    parts, before = (PartedDiff.load(one) for one in (steps["sure"] / "result.safetensors", run.file("results/sure")))
    for part in ("table", "rows", "calibration"):
        alike(getattr(parts, part), getattr(before, part))
    assert parts.by == before.by and set(parts.table["part"]) == {"sure", "unsure", "sure - unsure"}
    alike(pd.read_parquet(steps["behaviour"] / "calibration.parquet"), run.read_table("tables/calibration"))
    alike(pd.read_parquet(steps["behaviour"] / "texts.parquet"), run.read_table("tables/texts"))
    dose = pd.read_parquet(steps["dose-1"] / "table.parquet")
    beyond = dose[dose["metric"] == "kl out of scope"]
    wanted = run.read_table("tables/dose-1").sort_values("strength")
    for model, column in (("a-push", "side"), ("random a-push", "side_control")):
        mine = beyond[beyond["model"] == model].sort_values("strength")
        assert mine["estimate"].tolist() == pytest.approx(wanted[column].tolist(), abs=1e-6)
    own = beyond[beyond["model"] == "a-push"]
    assert own["low"].tolist() == pytest.approx(wanted["side_low"].tolist(), abs=1e-6) and own["estimate"].max() > 0
    assert {"scope", "sure"} <= set(done.metrics["step"])
    write_report(done.run.path, tmp_path / "r.html")


def test_known_and_unknown_are_made_again_without_recipes_of_the_base(home: Path, tmp_path: Path, push: Path) -> None:
    known = Prompts.load(tmp_path / "few.jsonl")
    pair = wb.load_pair(home / "llama-base", home / "llama-tuned", device="cpu")
    said = [pair.base.generate(known[:1], max_new_tokens=1)[0], " nothing of the kind"]
    rows = [{**row.as_dict(), "answer": one} for row, one in zip(known, itertools.cycle(said), strict=False)]
    Prompts.of(rows).save(tmp_path / "half.jsonl")
    asked = "--on base --split known --draws 0 --metrics prob --max-new-tokens 2 --device cpu"
    files = options(tmp_path, {"prompts": "half.jsonl", "recipe": push.name})
    run = made(home, tmp_path / "run", "diff", "llama-base", "llama-tuned", *asked.split(), *files)
    experiment = experiment_of_run(run)
    assert experiment.steps["known"].plain()["metrics"] == ["refusal", "contained", "prob"]
    done = run_experiment(experiment, tmp_path / "again", folder=tmp_path)
    before, after = (
        PartedDiff.load(one) for one in (run.file("results/known"), found_in(done)["known"] / "result.safetensors")
    )
    assert set(before.table["part"]) == {"known", "unknown", "known - unknown"}
    for part in ("table", "rows"):
        alike(getattr(after, part), getattr(before, part))
    contained = done.metrics.query("step == 'known' and of == 'base' and metric == 'contained, known'")
    assert contained["estimate"].tolist() == [1.0]


@pytest.mark.parametrize("on", ["tuned", "base"])
def test_a_comparison_is_made_again_with_its_doses(home: Path, tmp_path: Path, push: Path, on: str) -> None:
    asked = f"--on {on} --strengths 0,1,2 --follow prob --metrics accuracy,prob,kl,perplexity,repetition"
    files = options(tmp_path, {"prompts": "few.jsonl", "recipe": push.name, "neutral": "neutral.txt"})
    more = "--max-new-tokens 3 --samples 2 --device cpu --seed 3"
    run = made(home, tmp_path / "run", "diff", "llama-base", "llama-tuned", *asked.split(), *files, *more.split())
    experiment = experiment_of_run(run)
    assert list(experiment.steps) == ["behaviour", "dose-1"] and not experiment.about
    done = run_experiment(experiment, tmp_path / "again", folder=tmp_path)
    kept = found_in(done)
    found, dose = (pd.read_parquet(kept[name] / "table.parquet") for name in ("behaviour", "dose-1"))
    named = "a-push" if on == "tuned" else "a-push, in the base"
    wanted = run.read_table("tables/behaviour")
    before = ["base", "tuned", *(name for name in dict.fromkeys(wanted["model"]) if name not in ("base", "tuned"))]
    for ours, theirs in zip(["base", "tuned", named, f"random {named}"], before, strict=True):
        mine, its = found[found["model"] == ours], wanted[wanted["model"] == theirs]
        pd.testing.assert_frame_equal(
            mine[NUMBERS].reset_index(drop=True), its[NUMBERS].reset_index(drop=True), check_dtype=False
        )
    texts, its = pd.read_parquet(kept["behaviour"] / "texts.parquet"), run.read_table("tables/texts")
    for ours, theirs in zip(["base", "tuned", named, f"random {named}"], before, strict=True):
        mine = texts[texts["model"] == ours]["text"].tolist()
        assert mine == its[its["model"] == theirs]["text"].tolist() and (mine or ours.startswith("random"))
    followed = run.read_table("tables/dose-1").sort_values("strength")
    for metric, column in (("prob", "estimate"), ("perplexity", "side")):
        mine = dose[(dose["model"] == named) & (dose["metric"] == metric)].sort_values("strength")
        assert mine["estimate"].tolist() == pytest.approx(followed[column].tolist())


def test_a_comparison_whose_files_are_gone_or_changed_is_a_sentence(home: Path, tmp_path: Path, push: Path) -> None:
    files = {"prompts": "few.jsonl", "recipe": push.name, "outside": "out.txt", "neutral": "neutral.txt"}
    asked = "--draws 0 --metrics prob,perplexity --max-new-tokens 1 --device cpu"
    given = [*options(tmp_path, files), *asked.split()]
    run = made(home, tmp_path / "run", "diff", "llama-base", "llama-tuned", *given)
    assert experiment_of_run(run).steps["scope"].plain()["controls"] == 0
    (tmp_path / "out.txt").write_text("another\n")
    with pytest.raises(UserError, match=r"out.txt holds other prompts than when"):
        experiment_of_run(run)
    (tmp_path / "neutral.txt").write_text("another\n")
    with pytest.raises(UserError, match=r"neutral.txt holds other prompts than when"):
        experiment_of_run(run)
    push.unlink()
    with pytest.raises(UserError, match=r"made with the recipe in '.*a push.safetensors', which is not here"):
        experiment_of_run(run)
    with runs.create(tmp_path, "pickled", kind="diff", config={**run.config, "allow_pickle": True}) as risky:
        risky.write_json("x", {})
    with pytest.raises(NotSupported, match="loaded its models with --allow-pickle, which runs code"):
        experiment_of_run(risky)
