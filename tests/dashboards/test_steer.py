"""The page Steer: its answers, its proof, its recipes, and two tabs on one model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

import interventions as iv
import probes
from dashboards import answers, as_experiment, jobs, models, recipe_parts
from dashboards.state import RUN
from dashboards.steer_request import SteerRequest
from dashboards.steering import run_steer, run_sweep
from tests.dashboards.pages import a_knob
from tests.dashboards.sample_runs import HOSTILE, WORDS, lab_run, opened, prompts, save_pair, shown, warned
from tunescope.cli.app import app as command_line
from tunescope.experiments import Experiment, recipe_of, run_experiment
from workbench.errors import ModelBusy, UserError
from workbench.models.pair import load_pair
from workbench.recording.record_pair import record


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv(RUN, raising=False)
    yield tmp_path / "runs"
    jobs.desk().clear()


@pytest.fixture(scope="module")
def pair_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("pair"))


def asked(pair_folders: tuple[str, str], **query: str) -> AppTest:
    app = opened("steer", base=pair_folders[0], tuned=pair_folders[1], **query)
    app.text_area(key="prompts").set_value("the quick brown fox\n" + HOSTILE[:60])
    app.number_input(key="tokens").set_value(4)
    return app.run()


def test_two_clicks_from_a_run_to_a_steer(home: Path, pair_folders: tuple[str, str]) -> None:
    """The page comes filled in: models, prompts and the recipe that was made on this model."""
    lab_run(home, *pair_folders)
    app = opened("steer")
    assert app.selectbox(key="recipe").value == "off"
    assert app.text_area(key="prompts").value.splitlines() == list(WORDS[:6])
    app.button(key="go-steer").click().run()
    assert not app.exception and not app.error, shown(app)
    assert app.success[0].value == "Model restored: 0 hooks, logits identical"
    assert "of 6 answers changed" in " ".join(element.value for element in app.markdown)
    assert [one.label.split(":")[0] for one in app.metric] == ["Base", "Tuned", "Steered tuned"]
    assert "95 % interval" in " ".join(element.value for element in app.caption)


def test_any_registered_intervention_has_a_form(pair_folders: tuple[str, str], tmp_path: Path) -> None:
    """Made from its class: a vector from a file is added, and the Python shown gives the same recipe."""
    save_file({"v": torch.full((64,), 3.0)}, tmp_path / "v.safetensors")
    app = asked(pair_folders)
    app.selectbox(key="registered").set_value("Offset").run()
    assert "Offset needs layer, vector" in shown(app)
    app.text_input(key="registered-Offset-layer").set_value("1")
    app.text_input(key="registered-Offset-vector").set_value(f"{tmp_path / 'v.safetensors'}:v").run()
    app.button(key="go-steer").click().run()
    assert not app.exception and not app.error, shown(app)
    assert app.success[0].value == "Model restored: 0 hooks, logits identical"
    done, _ = app.session_state["_kept-steer"]
    (part,) = done.parts
    pair = load_pair(*pair_folders)
    assert part.made(pair) == iv.Recipe([iv.Offset(1, torch.full((64,), 3.0))])
    names = {"pair": pair, "recipe_of": recipe_of}
    assert eval(part.python(), names) == part.made(pair)
    assert Experiment.parse(as_experiment.steer_experiment(done)).recipes


def test_steer_answers_three_ways_and_proves_the_model_came_back(pair_folders: tuple[str, str]) -> None:
    app = asked(pair_folders, off="L0E1, L1E3")
    app.button(key="go-steer").click().run()
    assert not app.exception and not app.error, shown(app)
    assert app.success[0].value == "Model restored: 0 hooks, logits identical"
    done, result = app.session_state["_kept-steer"]
    pair = load_pair(*pair_folders)
    recipe = iv.Recipe([iv.ExpertSwitch(off=["L0E1", "L1E3"])])
    expected = run_steer(pair, recipe, done.prompts, strength=1.0, side="tuned", max_new_tokens=4)
    assert (result.base, result.tuned, result.steered) == (expected.base, expected.tuned, expected.steered)
    assert not app.warning
    app.number_input(key="tokens").set_value(5).run()
    assert "earlier inputs" in warned(app)


def test_nothing_a_model_or_a_person_wrote_is_obeyed(pair_folders: tuple[str, str]) -> None:
    app = asked(pair_folders, off="L0E1")
    app.button(key="go-steer").click().run()
    page = "".join(str(one.proto.body) for one in app.get("html"))
    assert "&lt;script&gt;" in page and "<script" not in page and "\x1b" not in page


def test_what_a_steer_shows_can_be_made_again(pair_folders: tuple[str, str]) -> None:
    """The Python of the footer gives the same answers, and the experiment file holds the same steer."""
    app = asked(pair_folders, off="L0E1, L1E3", heads="L1H2=0.5")
    app.button(key="go-steer").click().run()
    assert not app.error, shown(app)
    done, result = app.session_state["_kept-steer"]
    space: dict[str, object] = {}
    exec(done.python(), space)
    assert space["texts"] == list(result.steered)
    experiment = Experiment.parse(as_experiment.steer_experiment(done))
    assert list(experiment.steps) == ["answers"] and experiment.pair.base == pair_folders[0]


def test_parts_make_the_recipes_they_say(
    home: Path, pair_folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every part's Python is the recipe that the page applies."""
    folder, pair = lab_run(home, *pair_folders), load_pair(*pair_folders)
    monkeypatch.setenv("TUNESCOPE_BOOK", str(folder / "recipes"))
    given: list[recipe_parts.Part] = [
        recipe_parts.Saved(str(folder / "recipes" / "offset.safetensors"), ("Offset",)),
        recipe_parts.Saved("0.5*offset @response"),
        recipe_parts.Experts(off=("L0E1",), mode="drop"),
        recipe_parts.Experts(on=("L0E2",)),
        recipe_parts.Heads((("L1H2", 0.0),)),
        recipe_parts.Weights(recipe_parts.LAYERS, 0.5, 0.25),
    ]
    for part in given:
        written = eval(part.python(), {"iv": iv, "pair": pair})
        assert written == part.made(pair), part
    with pytest.raises(UserError, match="adapter"):
        recipe_parts.built([recipe_parts.Weights(recipe_parts.ADAPTER, 0.5)], pair).check(pair.tuned)
    with pytest.raises(UserError, match="no scaled head"):
        recipe_parts.scales("L1H2=x")


def test_steer_with_a_saved_recipe_and_a_sweep(home: Path, pair_folders: tuple[str, str]) -> None:
    lab_run(home, *pair_folders)
    app = opened("steer", recipe="offset", strength="2")
    app.number_input(key="tokens").set_value(3)
    app.text_input(key="strengths").set_value("0, 4").run()
    app.button(key="go-steer").click().run()
    app.button(key="go-sweep").click().run()
    assert not app.exception and not app.error, shown(app)
    (done, steered), (_, swept) = app.session_state["_kept-steer"], app.session_state["_kept-sweep"]
    assert done.strength == 2.0
    assert [row[0] for row in swept.texts] == list(steered.tuned)
    assert [row[1] for row in swept.texts] != list(steered.tuned)
    drawn = json.loads(app.get("plotly_chart")[0].proto.spec)
    assert "share that begins with" in json.dumps(drawn, ensure_ascii=False)


def test_steer_tells_mistakes_in_a_sentence(pair_folders: tuple[str, str]) -> None:
    app = opened("steer")
    app.button(key="go-steer").click().run()
    assert "no prompt" in shown(app)
    app = asked(pair_folders)
    app.button(key="go-steer").click().run()
    assert "nothing to steer with" in shown(app)
    for key, value in (("off", "L9E1"), ("heads", "L1H99=0"), ("heads", "L1=x"), ("strengths", "many")):
        app = asked(pair_folders, off="L0E1")
        app.text_input(key=key).set_value(value).run()
        app.button(key="go-steer").click().run()
        assert not app.exception
        assert len(app.error) == 1, (key, value, shown(app))


def test_a_full_gpu_is_a_sentence(pair_folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has 4 GiB in all.")

    monkeypatch.setattr("workbench.models.adapted.AdaptedModel.generate_ids", full)
    app = asked(pair_folders, off="L0E1")
    app.button(key="go-steer").click().run()
    assert not app.exception
    assert len(app.error) == 1 and app.error[0].value.startswith("The GPU's memory ran out")


def test_a_busy_pair_is_refused_and_steering_changes_the_answer(pair_folders: tuple[str, str]) -> None:
    pair = load_pair(*pair_folders)
    recipe = iv.Recipe([iv.Offset(layer=1, vector=_vector())])
    moved = run_steer(pair, recipe, ["the fox"], strength=20.0, side="tuned", max_new_tokens=6)
    still = run_steer(pair, recipe, ["the fox"], strength=0.0, side="tuned", max_new_tokens=6)
    assert moved.steered != moved.tuned and moved.parted[0] is not None
    assert still.steered == still.tuned and still.parted == (None,)
    assert moved.restored
    refused: list[Exception] = []

    def other_tab() -> None:
        for call in (
            lambda: run_steer(pair, recipe, ["the fox"], strength=1.0, side="tuned", max_new_tokens=2),
            lambda: run_sweep(pair, recipe, ["the fox"], strengths=[1.0], side="base", max_new_tokens=2),
        ):
            try:
                call()
            except ModelBusy as error:
                refused.append(error)

    with pair.tuned.active():
        tab = threading.Thread(target=other_tab)
        tab.start()
        tab.join()
    assert len(refused) == 2 and "Another tab" in str(refused[0])


def _vector() -> torch.Tensor:
    return torch.arange(3.0).repeat(22)[:64]


def test_two_tabs_on_one_model_never_mix(pair_folders: tuple[str, str]) -> None:
    """While one tab answers, another is told so in a sentence; afterwards it gets its own answer."""
    pair = models.pair(*pair_folders)
    app = asked(pair_folders, off="L0E1")
    busy, leave = threading.Event(), threading.Event()

    def first_tab() -> None:
        with pair.tuned.active():
            busy.set()
            leave.wait(60)

    tab = threading.Thread(target=first_tab)
    tab.start()
    busy.wait(60)
    app.button(key="go-steer").click().run()
    assert not app.exception and "Another tab is using these models" in shown(app)
    leave.set()
    tab.join()
    app.button(key="go-steer").click().run()
    assert not app.error and app.success
    assert models.pair(*pair_folders) is pair


def test_one_model_alone_is_no_pair() -> None:
    with pytest.raises(UserError, match="Give a base model"):
        models.places("", "")
    with pytest.raises(UserError, match="tuned model beside"):
        models.places("gpt2", "")


def test_a_sweep_is_an_experiment_too(pair_folders: tuple[str, str]) -> None:
    steer = SteerRequest(
        *pair_folders, (recipe_parts.Heads((("L0H1", 0.0),)),), 1.0, "tuned", ("a",), 4, strengths=(0.0, 1.0)
    )
    assert Experiment.parse(as_experiment.steer_experiment(steer)).to_yaml()


def test_the_shares_that_a_sweep_shows_are_made_again(pair_folders: tuple[str, str], tmp_path: Path) -> None:
    """The file behind the curve of answers that begin with a text."""
    app = asked(pair_folders, heads="L1H2=0, L0H1=4")
    app.button(key="go-sweep").click().run()
    _, swept = app.session_state["_kept-sweep"]
    beginning = swept.texts[0][0].split()[0]
    app.text_input(key="begins").set_value(f" {beginning}")
    app.session_state["experiment-dose"] = True
    app.run()
    assert not app.exception and not app.error, shown(app)
    (text,) = [element.value for element in app.code if element.language == "yaml"]
    done = run_experiment(Experiment.parse(text), tmp_path / "out", folder=tmp_path)
    mine = done.metrics[(done.metrics["of"] == "steered") & (done.metrics["metric"] == f"begins with {beginning}")]
    wanted = answers.dose(swept, beginning)
    for name in ("strength", "estimate", "low", "high", "n"):
        assert mine.sort_values("strength")[name].tolist() == wanted[name].tolist()
    assert wanted["estimate"].max() > 0


def test_a_mixed_recipe_is_an_experiment_that_gives_the_same_answers(
    home: Path, pair_folders: tuple[str, str], tmp_path: Path
) -> None:
    """A saved recipe, experts, heads, probed heads, a found knob and weights, all at once."""
    folder, pair = lab_run(home, *pair_folders), load_pair(*pair_folders)
    probe = probes.head_probe(record(pair, prompts(), "z", positions="last"), folds=2)
    probe.save(tmp_path / "probe.safetensors")
    a_knob(pair.base.d_model).save(tmp_path / "knob.safetensors")
    mixed = (
        recipe_parts.Saved(str(folder / "recipes" / "offset.safetensors"), ("Offset",)),
        recipe_parts.Heads((("L1H2", 0.5),)),
        recipe_parts.HeadDirections(str(tmp_path / "probe.safetensors"), 3, 25.0),
        recipe_parts.KnobSet(str(tmp_path / "knob.safetensors"), "context"),
        recipe_parts.Weights(recipe_parts.LAYERS, 0.5, 0.25),
    )
    to_a_number = recipe_parts.KnobSet(str(tmp_path / "knob.safetensors"), 12.5)
    with_experts = (*mixed[:2], recipe_parts.Experts(off=("L0E1",), mode="drop"), to_a_number)
    for number, (given, strengths) in enumerate(((mixed, (0.5, 2.0)), (with_experts, ()))):
        asked = SteerRequest(*pair_folders, given, 1.0, "base", WORDS[:3], 4, strengths=strengths)
        (tmp_path / "e.yaml").write_text(as_experiment.steer_experiment(asked), encoding="utf-8")
        out = tmp_path / f"out-{number}"
        outcome = CliRunner().invoke(command_line, ["run", str(tmp_path / "e.yaml"), "--out", str(out)])
        assert outcome.exit_code == 0, outcome.output
        (table,) = (pd.read_parquet(path) for path in out.glob("steps/*/table.parquet"))
        steered = table[table["model"] == "steered, in the base"]
        recipe = recipe_parts.built(given, pair)
        for strength in strengths or (1.0,):
            want = run_steer(pair, recipe, WORDS[:3], strength=strength, side="base", max_new_tokens=4)
            assert steered[steered["strength"] == strength]["text"].tolist() == list(want.steered)
            assert want.steered != want.base
