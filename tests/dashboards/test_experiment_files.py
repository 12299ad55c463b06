"""Every page's experiment files: run with ``tunescope run``, they give the numbers that the page shows."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from dashboards.state import RUN
from probes import ProbeResult, mask_overlap
from tests.dashboards.pages import errors, full_run, opened
from tests.dashboards.sample_runs import prompts, save_pair
from tunescope.cli.app import app as command_line
from tunescope.experiments import Experiment, run_experiment
from workbench import organisms, runs
from workbench.recording.recording import Recording
from workbench.tables import with_intervals

BEGINS = "experiment-"
METHODS = ("optimised", "movement")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the demo measures: sums in another order are other numbers in the last digit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def home(story: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(story.parent))
    monkeypatch.delenv(RUN, raising=False)
    return story


def files(app: AppTest) -> dict[str, str]:
    """Panel -> the experiment file behind its button; every button of the page is opened."""
    keys = [element.proto.id.partition(BEGINS)[2] for element in app.get("popover") if BEGINS in element.proto.id]
    found = {}
    for key in keys:
        app.session_state[f"{BEGINS}{key}"] = True
        app.run()
        assert not app.exception and not app.error, (key, errors(app))
        (found[key],) = [element.value for element in app.code if element.language == "yaml"]
        app.session_state[f"{BEGINS}{key}"] = False
    return found


def ran(text: str, folder: Path) -> dict[str, Path]:
    """Step -> its folder, after ``tunescope run``."""
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text(text, encoding="utf-8")
    outcome = CliRunner().invoke(command_line, ["run", str(folder / "experiment.yaml"), "--out", str(folder / "run")])
    assert outcome.exit_code == 0, outcome.output
    return {path.name.rpartition("-")[0]: path for path in (folder / "run" / "steps").iterdir()}


def inside(one: Experiment, other: Experiment) -> bool:
    """Whether all that ``one`` does is a part of ``other``, on the same models, prompts and recipes."""
    parts = ((one.steps, other.steps), (one.prompts, other.prompts), (one.recipes, other.recipes))
    settings = (one.pair, one.seed) == (other.pair, other.seed)
    return settings and all(dict(mine) == {name: whole.get(name) for name in mine} for mine, whole in parts)


def same(one: Any, other: Any) -> bool:
    """Whether all that two results hold is equal, bit for bit."""
    if type(one) is not type(other):
        return False
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one) if field.name != "provenance"]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, pd.DataFrame):
        return one.equals(other)
    if isinstance(one, torch.Tensor | np.ndarray):
        return bool(np.array_equal(np.asarray(one), np.asarray(other), equal_nan=True))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def shown_again(name: str, folder: Path, story: Path, pair: str, app: AppTest) -> None:
    """What the step found is what the page shows: the run's result, or what the page computed."""
    stored = story / f"results/{pair}-{name}.safetensors"
    if stored.is_file():
        assert same(ProbeResult.load(folder / "result.safetensors"), ProbeResult.load(stored)), name
    elif name == "attention":
        _, seen = app.session_state["_kept-attention"]
        recording = Recording.load(folder / "activations")
        layer, head = int(app.number_input(key="layer").value), int(app.number_input(key="head").value)
        for role, pattern in (("base", seen.base), ("tuned", seen.tuned)):
            assert np.array_equal(recording[role]["pattern", layer][:][:, head].float().numpy(), pattern)
    elif name == "routes":
        _, seen = app.session_state["_kept-routes"]
        experts = Recording.load(folder / "activations")["tuned"]["blocks.1.mlp.hook_router.experts"][:]
        cells = seen.cells.query("model == 'tuned' and layer == 1")
        assert cells["expert"].tolist() == experts.flatten().tolist()
    elif name == "answers":
        _, seen = app.session_state["_kept-graft"]
        table = pd.read_parquet(folder / "table.parquet")
        of = dict(list(table.groupby("model")["text"]))
        assert of["answers, in the base"].tolist() == list(seen.steered) and of["base"].tolist() == list(seen.base)
        begun = pd.read_parquet(folder / "metrics.parquet").query("metric.str.startswith('begins with')")
        hits = [f"{round(row.estimate * row.n)} of {row.n:.0f}" for row in begun.itertuples()]
        assert hits == [element.value for element in app.metric][-3:] and len(begun) == 3
    elif name == "overlap-1":
        one, other = (ProbeResult.load(story / f"results/{pair}-graft-{way}.safetensors") for way in METHODS)
        assert pd.read_parquet(folder / "overlap.parquet")["shared"].tolist() == [mask_overlap(one, other).shared]
    elif (folder / "result.safetensors").is_file():
        _, result = app.session_state[f"_kept-{name}"]
        assert same(ProbeResult.load(folder / "result.safetensors"), result), name
    else:
        shares_again(folder, story, pair)


def shares_again(folder: Path, story: Path, pair: str) -> None:
    """The demo's first table: base, tuned and recipes, with their intervals; random stand-ins are drawn anew."""
    table = runs.open(story).read_table("tables/behaviour")
    rows = table[table["organism"] == pair]
    known = {
        tuple(round(float(row[f"{name}{end}"]), 12) for end in ("", "_low", "_high"))
        for _, row in rows.iterrows() for name in ("base", "tuned", "steered")
    }  # fmt: skip
    found = pd.read_parquet(folder / "table.parquet")
    found = found[~found["model"].str.startswith("random ")]
    assert len(found) >= 3
    for _, row in found.iterrows():
        assert tuple(round(float(row[name]), 12) for name in ("estimate", "low", "high")) in known, row


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "pair", "buttons", "panels"),
    [
        ("overview", "context-knob", (), {"weights", "findings", "table-0-behaviour"}),
        ("overview", "refusal-moe", (), {"weights", "findings", "table-0-behaviour"}),
        ("tokens", "context-knob", (), {"lens", "lens-layers", "answers", "shift", "shift-positions"}),
        ("heads", "context-knob", ("attention", "words"), {"heads", "head-scores", "attention", "words"}),
        ("skills", "refusal-moe", ("graft",), {"graft-curve", "graft-overlap", "graft-answers"}),
        ("experts", "refusal-moe", ("routes",), {"experts", "expert-scores", "switching", "routes", "flow"}),
        ("knobs", "context-knob", (), {"knob-slope", "knob-flips", "concepts", "contexts"}),
    ],
)
def test_the_file_of_every_panel_gives_its_numbers(
    page: str, pair: str, buttons: tuple[str, ...], panels: set[str], home: Path, tmp_path: Path
) -> None:
    app = opened(page, pair=pair, layer="1", head="1", expert="1", prompt="1")
    for button in buttons:
        app.button(key=f"go-{button}").click().run()
    found = files(app)
    assert panels <= set(found), set(found)
    done: list[Experiment] = []
    for number, text in enumerate(sorted(set(found.values()), key=len, reverse=True)):
        experiment = Experiment.parse(text)
        if any(inside(experiment, one) for one in done):
            continue
        again = ran(text, tmp_path / str(number))
        assert set(again) == set(experiment.steps)
        assert "overlap-1" in again or not {"graft-overlap"} & {name for name, one in found.items() if one == text}
        for name, folder in again.items():
            shown_again(name, folder, home, pair, app)
        done.append(experiment)


@pytest.mark.slow
def test_a_file_runs_in_a_terminal_of_its_own(home: Path, tmp_path: Path) -> None:
    """In another process and folder, as a person runs what they saved."""
    text = files(opened("heads", pair="context-knob"))["heads"]
    (tmp_path / "experiment.yaml").write_text(text, encoding="utf-8")
    script = "from tunescope.cli import main; main()"
    command = [sys.executable, "-c", script, "run", "experiment.yaml", "--out", "run"]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (result,) = tmp_path.glob("run/steps/heads-write-*/result.safetensors")
    stored = ProbeResult.load(home / "results/context-knob-heads-write.safetensors")
    assert same(ProbeResult.load(result), stored)


@pytest.fixture(scope="module")
def pair_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("keep", [True, False])
def test_what_a_page_computes_is_computed_again(
    pair_folders: tuple[str, str], keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On prompts that the run keeps, and on those that a person wrote into the page."""
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "runs"))
    full_run(tmp_path / "runs", *pair_folders, only=("weights",), keep=keep)
    for page, buttons in (("tokens", ("lens", "shift")), ("knobs", ("concepts",))):
        app = opened(page, layer="1")
        if not keep:
            app.text_area(key="look-prompts").set_value("the quick brown fox\nthe lazy dog\na quick dog").run()
        for button in buttons:
            if page == "tokens":
                app.segmented_control(key=f"which-{button}").set_value(f"all {7 if keep else 3} prompts").run()
            app.button(key=f"go-{button}").click().run()
        app.number_input(key="layer").set_value(2).run()  # what is shown was computed for layer 1
        for number, text in enumerate(dict.fromkeys(files(app).values())):
            for name, folder in ran(text, tmp_path / page / str(number)).items():
                shown_again(name, folder, tmp_path, "", app)


def test_a_run_that_does_not_say_how_it_was_made_is_told(
    pair_folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "runs"))
    full_run(tmp_path / "runs", *pair_folders)
    app = opened("heads")
    app.session_state[f"{BEGINS}heads"] = True
    app.run()
    assert not app.exception and "does not say how its results were made" in errors(app)


def test_the_results_of_an_experiment_are_on_the_pages_with_their_file(
    pair_folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "runs"))
    rows = tmp_path / "p.jsonl"
    prompts().save(rows)
    options = {"normalise": False}
    heads = {"do": "localize heads", "metric": "kl", "options": options}
    experiment = Experiment.of(
        {"name": "x", "pair": dict(zip(("base", "tuned"), pair_folders, strict=True)), "prompts": {"file": "p.jsonl"},
         "steps": {"heads": heads, "z": {**heads, "what": "z"}}, "sweep": {"steps.z.options.controls": [10, 12]}}
    )  # fmt: skip
    done = run_experiment(experiment, tmp_path / "runs" / "x", folder=tmp_path)
    app = opened("heads", run="x")
    maps = app.selectbox(key="head-map").options
    assert "heads" in maps and sum(mapping.startswith("z-") for mapping in maps) == 2
    found = files(app)
    (folder,) = done.run.path.glob("steps/heads-*")
    for name, again in ran(found["heads"], tmp_path / "one").items():
        assert name == "heads"
        before, after = (ProbeResult.load(one / "result.safetensors") for one in (folder, again))
        assert same(before, after)
    assert Experiment.parse(found["head-scores"]).sweep == experiment.sweep


def asked_twice(home: Path, models: tuple[str, str], others: tuple[str, str]) -> None:
    """How far heads moved, in two ways and perhaps of other models, in a home of runs."""
    rows = home.parent / "p.jsonl"
    prompts().save(rows)
    for name, pair, more in (("one", models, ["--positions", "prompt", "--seed", "2"]), ("two", others, [])):
        asked = ["localize", "activations", *pair, "--prompts", str(rows), "--sites", "z", "--device", "cpu"]
        outcome = CliRunner().invoke(command_line, [*asked, *more, "--out", str(home / name)])
        assert outcome.exit_code == 0, outcome.output


def compared(app: AppTest) -> tuple[pd.DataFrame, str]:
    """The page's table of both results, and what it says of their agreement."""
    (frame,) = [element.value for element in app.dataframe if "difference" in element.value]
    (told,) = [element.value for element in app.caption if element.value.startswith("Agreement of the scores: ")]
    return frame, told.removeprefix("Agreement of the scores: ").removesuffix(".").replace("\\", "")


def test_the_comparison_of_two_runs_is_made_and_compared_again(
    pair_folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "runs"
    monkeypatch.setenv("TUNESCOPE_RUNS", str(home))
    asked_twice(home, pair_folders, (pair_folders[0], pair_folders[0]))
    app = opened("runs", first="one", second="two")
    found = files(app)
    assert set(found) == {"differences", "beside"}
    frame, said = compared(app)
    again = ran(found["beside"], tmp_path / "again")
    assert set(again) == {"first-activations", "second-activations", "compare"}
    table = pd.read_parquet(again["compare"] / "table.parquet")
    pd.testing.assert_frame_equal(with_intervals(table), frame, check_dtype=False)
    assert len(frame) == 12 and frame["first"].ne(frame["second"]).any()
    assert ProbeResult.load(again["compare"] / "result.safetensors").summary() == said
    for name, run in (("first-activations", "one"), ("second-activations", "two")):
        assert same(*(ProbeResult.load(one / "result.safetensors") for one in (again[name], home / run)))
    assert set(ran(found["differences"], tmp_path / "both")) == {"first-activations", "second-activations"}
    settings = Experiment.parse(found["differences"]).steps["first-activations"].plain()
    assert settings["positions"] == "prompt"


def test_a_compared_run_that_does_not_say_how_it_was_made_is_read(
    pair_folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its file, which the page says; the settings of such a run are told to be beyond any file."""
    home = tmp_path / "runs"
    monkeypatch.setenv("TUNESCOPE_RUNS", str(home))
    asked_twice(home, pair_folders, pair_folders)
    with runs.create(home, "full", kind="notes", config={}) as odd:
        ProbeResult.load(home / "one" / "result.safetensors").save(odd.file("result.safetensors"))
    app = opened("runs", first="two", second="full")
    for key in ("differences", "beside"):
        app.session_state[f"{BEGINS}{key}"] = True
    app.run()
    assert not app.exception and "does not say how its results were made" in errors(app)
    (text,) = [element.value for element in app.code if element.language == "yaml"]
    assert "The second result is read from its file." in Experiment.parse(text).about
    frame, _ = compared(app)
    again = ran(text, tmp_path / "again")
    assert set(again) == {"first-activations", "compare"}
    table = with_intervals(pd.read_parquet(again["compare"] / "table.parquet"))
    pd.testing.assert_frame_equal(table, frame, check_dtype=False)


@pytest.mark.slow
def test_a_result_of_the_demo_is_compared_with_one_of_a_command(
    story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo names its pairs and their splits; the command names folders and a file."""
    home = tmp_path / "runs"
    shutil.copytree(story, home / "demo")
    monkeypatch.setenv("TUNESCOPE_RUNS", str(home))
    toy = organisms.build("context-knob")
    rows = home / "demo" / "prompts" / "context-knob.jsonl"
    asked = ["localize", "heads", str(toy.base), str(toy.tuned), "--prompts", str(rows), "--device", "cpu"]
    outcome = CliRunner().invoke(command_line, [*asked, "--out", str(home / "mine")])
    assert outcome.exit_code == 0, outcome.output
    app = opened("runs", first="demo", second="mine")
    app.selectbox(key="first-result").set_value("context-knob-heads-write").run()
    frame, said = compared(app)
    found = files(app)
    both = Experiment.parse(found["differences"])
    assert {"first-context-knob-knob", "first-refusal-moe-experts", "second-heads"} <= set(both.steps)
    assert both.pair_of("first-refusal-moe-experts").organism == "refusal-moe"
    again = ran(found["beside"], tmp_path / "again")
    assert set(again) == {"first-heads-write", "second-heads", "compare"}
    table = with_intervals(pd.read_parquet(again["compare"] / "table.parquet"))
    pd.testing.assert_frame_equal(table, frame, check_dtype=False)
    assert ProbeResult.load(again["compare"] / "result.safetensors").summary() == said
