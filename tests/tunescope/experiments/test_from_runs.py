"""Two runs as one experiment: what is compared is made again and compared again, with the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import interventions as iv
from probes import ProbeResult, compare
from probes.headlines import beside
from tests.tunescope.experiments.small import SMALL, tree
from tests.tunescope.experiments.test_from_run import made
from tunescope.experiments import Experiment, run_experiment
from tunescope.experiments.from_run import experiment_of_run
from tunescope.experiments.from_runs import Chosen, both_of, comparison_of
from workbench import runs
from workbench.errors import NotSupported, UserError
from workbench.runs import Run

RESULT = "result.safetensors"


def again(first: Chosen, second: Chosen, folder: Path) -> Run:
    """The run of their comparison, read from its own file; what it compares is what the two runs hold."""
    experiment = Experiment.parse(comparison_of(first, second).to_yaml())
    done = run_experiment(experiment, folder / "again", folder=folder).run
    before, after = (ProbeResult.load(one.run.file(one.file)) for one in (first, second))
    assert "compare" in experiment.steps
    pd.testing.assert_frame_equal(
        done.read_table("tables/compare").drop(columns="cell"), beside(before, after), check_dtype=False
    )
    (kept,) = done.path.glob(f"steps/compare-*/{RESULT}")
    assert ProbeResult.load(kept).summary() == compare(before, after).summary()
    return done


@pytest.fixture(scope="module")
def heads(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """The same question to one pair of models in two ways, and to another pair."""
    folder = tmp_path_factory.mktemp("heads")
    asked = ["--prompts", "p.jsonl", "--device", "cpu"]
    given = {
        "write": ["llama-base", "llama-tuned", *asked, "--metric", "prob"],
        "z": ["llama-base", "llama-tuned", *asked, "--metric", "prob", "--what", "z", "--seed", "5"],
        "other": ["mixtral-base", "mixtral-tuned", *asked, "--metric", "prob"],
    }
    return {name: made(home, folder / name, "localize", "heads", *more) for name, more in given.items()}


def test_two_results_of_one_pair_are_made_and_compared_again(heads: dict[str, Run], tmp_path: Path) -> None:
    done = again(Chosen(heads["write"], RESULT, "heads"), Chosen(heads["z"], RESULT, "heads"), tmp_path)
    experiment = Experiment.load(done.file("experiment.yaml"))
    assert [*experiment.steps] == ["first-heads", "second-heads", "compare"]
    assert experiment.steps["second-heads"].pair is None and not experiment.about
    spearman = done.read_table("tables/metrics").query("step == 'compare' and metric == 'spearman'")
    assert len(spearman) == 1 and len(done.read_table("tables/compare.agreement"))


def test_each_result_keeps_the_models_that_it_is_of(heads: dict[str, Run], tmp_path: Path) -> None:
    done = again(Chosen(heads["write"], RESULT, "heads"), Chosen(heads["other"], RESULT, "heads"), tmp_path)
    experiment = Experiment.load(done.file("experiment.yaml"))
    other = experiment.steps["second-heads"].pair
    assert other is not None and str(other.base).endswith("mixtral-base")
    assert len(list(done.file("models").glob("*.json"))) == 2
    run_experiment(both_of((heads["write"], "cpu"), (heads["other"], "cpu")), tmp_path / "both", folder=tmp_path)
    for step in ("first-heads", "second-heads"):
        one, other_ = (next(folder.glob(f"steps/{step}-*/{RESULT}")) for folder in (done.path, tmp_path / "both"))
        pd.testing.assert_frame_equal(ProbeResult.load(one).frame(), ProbeResult.load(other_).frame())


def test_a_run_that_stops_between_two_pairs_goes_on_to_the_same_bytes(
    heads: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = comparison_of(Chosen(heads["write"], RESULT, "heads"), Chosen(heads["other"], RESULT, "heads"))
    whole = run_experiment(experiment, tmp_path / "whole", folder=tmp_path).run
    from tunescope.experiments import cell_steps

    real, done = cell_steps.execute, []

    def stopping(step: Any, bench: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(step)
        return real(step, bench)

    monkeypatch.setattr(cell_steps, "execute", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / "stopped", folder=tmp_path)
    monkeypatch.setattr(cell_steps, "execute", real)
    assert len(list((tmp_path / "stopped").glob("steps/*/step.json"))) == 1
    ended = run_experiment(experiment, tmp_path / "stopped", folder=tmp_path).run
    assert tree(ended.path) == tree(whole.path)


def test_a_result_that_cannot_be_made_again_is_read_from_its_file(heads: dict[str, Run], tmp_path: Path) -> None:
    """A run of unknown origin, whose name is hostile to YAML."""
    name = "it's: #1 {x}\u2028 - &y *z"
    with runs.create(tmp_path, None, kind="notes", config={"x": 1}) as odd:
        ProbeResult.load(heads["z"].file(RESULT)).save(odd.file(RESULT))
    moved = runs.open(odd.path.rename(tmp_path / name))
    done = again(Chosen(heads["write"], RESULT, "heads"), Chosen(moved, RESULT, "heads"), tmp_path)
    experiment = Experiment.load(done.file("experiment.yaml"))
    assert experiment.about.startswith("The second result is read from its file. ")
    assert "does not say how its results were made" in experiment.about
    assert experiment.steps["compare"].plain()["second"] == {"file": str(moved.file(RESULT))}
    both = comparison_of(Chosen(moved, RESULT, "a"), Chosen(moved, RESULT, "a"))
    assert [*both.steps] == ["compare"] and str(both.pair.base).endswith("llama-base")
    alone = run_experiment(both, tmp_path / "alone", folder=tmp_path)
    assert not alone.run.file("models").exists(), "no model is loaded"
    assert (alone.run.read_table("tables/compare")["difference"] == 0).all()
    with pytest.raises(NotSupported, match="does not say how its results were made"):
        both_of((heads["write"], "auto"), (moved, "auto"))
    moved.file(RESULT).write_bytes(heads["write"].file(RESULT).read_bytes())
    with pytest.raises(UserError, match=r"results of another configuration: .files"):
        run_experiment(both, tmp_path / "alone", folder=tmp_path)


def test_of_a_sweep_the_cell_is_compared_that_made_the_result(
    home: Path, heads: dict[str, Run], tmp_path: Path
) -> None:
    """Its seed and its paths, which started elsewhere, are those of that cell alone."""
    text = SMALL.replace(
        "seed: [0, 1], recipes.push.strength: [0.5, 1, 2, 4]", "steps.heads.what: [write, z], seed: [3, 4]"
    )
    swept = run_experiment(Experiment.parse(text), tmp_path / "swept", folder=home).run
    files = sorted(path.relative_to(swept.path).as_posix() for path in swept.path.glob(f"steps/heads-*/{RESULT}"))
    assert len(files) == 4
    for number, file in enumerate(files):
        (tmp_path / str(number)).mkdir()
        again(Chosen(heads["z"], RESULT, "heads"), Chosen(swept, file, "heads"), tmp_path / str(number))
    with pytest.raises(NotSupported, match=r"sweeps over steps.heads.what, seed, and a grid does not fit"):
        both_of((heads["z"], "auto"), (swept, "auto"))


def test_all_that_a_step_names_is_renamed_with_it(home: Path, tmp_path: Path) -> None:
    """Records, recipes that read steps, further prompts, maps: also where columns are called as keys are."""
    text = """
    name: names
    seed: 2
    pair: {base: llama-base, tuned: llama-tuned, device: cpu}
    prompts:
      all: {file: p.jsonl}
      few: {rows: [{prompt: the fox, answer: " dog", file: x, from: y}], where: {file: x}}
    recipes:
      push: [{kind: Offset, layer: 1, vector: {from: rec, layer: 1, where: {label: a}}}]
    steps:
      rec: {do: record}
      moved: {do: localize activations, record: rec}
      same: {do: compare, first: {from: moved}, second: {from: moved}}
      far: {do: scope, recipes: [push], outside: few, near: few, controls: 0}
      slope: {do: dose, recipe: push, strengths: [1], outside: few, neutral: few, metrics: [perplexity], controls: 0}
      known: {do: parts, by: known, recipes: [push], prompts: few}
      parted: {do: localize components, desiderata: {file: few, all: all}}
      tokens: {do: probe, call: token_shift, sets: {base_prompts: all}, prompts: few}
    """
    done = run_experiment(Experiment.parse(text[: text.index("      known")]), tmp_path / "a", folder=home).run
    with runs.create(tmp_path, "b", kind="demo", config={}) as told:
        told.note(experiments={"p": Experiment.parse(text.replace("seed: 2", "seed: 1")).plain()})
    both = both_of((done, "auto"), (told, "auto"))
    assert Experiment.parse(both.to_yaml()) == both and both.seed == 2
    own = {name: step.plain() for name, step in both.steps.items() if name.startswith("second-")}
    assert own["second-moved"]["record"] == "second-rec" and all(step["seed"] == 1 for step in own.values())
    assert own["second-far"]["outside"] == own["second-far"]["near"] == "second-few"
    assert own["second-slope"]["recipe"] == "second-push" and own["second-slope"]["neutral"] == "second-few"
    assert own["second-parted"]["desiderata"] == {"file": "second-few", "all": "second-all"}
    assert own["second-tokens"]["base_prompts"] == "second-all"
    assert own["second-same"]["first"] == {"from": "second-moved"} and own["second-rec"]["prompts"] == "second-all"
    rows = both.prompts["first-few"].rows
    assert rows == [{"prompt": "the fox", "answer": " dog", "file": "x", "from": "y"}]
    vector = both.recipes["second-push"].plain()[0]["vector"]
    assert vector == {"from": "second-rec", "layer": 1, "where": {"label": "a"}}
    assert experiment_of_run(done).prompts["few"].where == {"file": "x"}


def test_two_results_that_cannot_be_compared_are_a_sentence(heads: dict[str, Run], home: Path, tmp_path: Path) -> None:
    iv.Recipe([iv.HeadScale({"L0H0": 0.0})]).save(tmp_path / "recipe.safetensors")
    weights = made(home, tmp_path / "w", "localize", "weights", "llama-base", "llama-tuned")
    chosen = Chosen(heads["write"], RESULT, "heads"), Chosen(weights, RESULT, "weights")
    with pytest.raises(UserError, match="step compare: These are a Patching and a WeightDelta: only two results"):
        run_experiment(comparison_of(*chosen), tmp_path / "x", folder=tmp_path)
    text = """
    name: bad
    pair: {base: llama-base, tuned: llama-tuned}
    steps: {alike: {do: compare, first: FIRST, second: {file: recipe.safetensors}}}
    """
    for first, said in (
        ("{file: none.safetensors}", "There is no file .*none.safetensors, which the experiment names"),
        ("{file: recipe.safetensors}", "holds tensors but no result"),
        ("{from: alike}", "steps.alike.first.from: step 'alike' comes later"),
        ("{}", r"steps.alike.first: give from \(an earlier step\), or file"),
    ):
        with pytest.raises(UserError, match=said):
            run_experiment(Experiment.parse(text.replace("FIRST", first)), tmp_path / "bad", folder=tmp_path)
