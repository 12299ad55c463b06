"""The logic of the app's own pages: what they show, what they refuse, and that nothing a model wrote is obeyed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
import streamlit as st
import torch
from streamlit.testing.v1 import AppTest

import dashboards
import interventions as iv
from dashboards import as_experiment, jobs, models, panels, parts
from dashboards.asked import Asked
from dashboards.launch import command
from dashboards.pair_form import PairAsked, pasted, uploaded
from dashboards.results import results_in
from dashboards.selection import pairs_of, picks
from dashboards.state import RUN, known_runs, recipes_of, verified
from dashboards.steering import run_steer, run_sweep
from tests.dashboards.made import HOSTILE, WORDS, lab_run, save_pair, told_run
from workbench import runs
from workbench.cli.experiment.schema import Experiment
from workbench.errors import ModelBusy, UserError
from workbench.models.pair import load_pair

APP = str(Path(dashboards.__file__).with_name("app.py"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv(RUN, raising=False)
    yield tmp_path / "runs"
    jobs.desk().clear()


@pytest.fixture(scope="module")
def pair_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("pair"))


def opened(page: str = "overview", **query: str) -> AppTest:
    """The app on a page, as a link with these query parameters opens it."""
    app = AppTest.from_file(APP, default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    if page != "overview":
        app.switch_page(f"app_pages/{page}.py").run()
    assert not app.exception, app.exception
    return app


def shown(app: AppTest) -> str:
    return " ".join(one.value for one in app.error)


def warned(app: AppTest) -> str:
    return " ".join(one.value for one in app.warning)


# one selection


def test_without_runs_the_pages_name_the_next_command() -> None:
    for name in ("overview", "runs"):
        assert opened(name).code[0].value == "tunescope demo"


def test_a_link_sets_the_selection_on_every_page(home: Path, pair_folders: tuple[str, str]) -> None:
    lab_run(home, *pair_folders)
    told_run(home, "other")
    app = opened(run="lab", layer="2", head="3", expert="5", prompt="4")
    assert app.selectbox(key="run").value == "lab"
    for page in ("steer", "runs", "overview"):
        app.switch_page(f"app_pages/{page}.py").run()
        assert not app.exception
        values = [app.number_input(key=name).value for name in ("layer", "head", "expert", "prompt")]
        assert values == [2, 3, 5, 4]
    assert "3 layers · 4 heads · 8 experts · 7 prompts" in " ".join(one.value for one in app.sidebar.caption)


def test_a_link_beyond_the_model_is_told_and_the_last_cell_shown(home: Path, pair_folders: tuple[str, str]) -> None:
    lab_run(home, *pair_folders)
    app = opened(run="lab", layer="9", prompt="99")
    assert "There is no layer 9 here: layers go from 0 to 2" in warned(app)
    assert "There is no prompt 99 here" in warned(app)
    app.switch_page("app_pages/steer.py").run()
    assert app.text_area(key="prompts").value == WORDS[-1]


def test_a_link_inside_the_app_sets_what_the_tab_had_otherwise(home: Path, pair_folders: tuple[str, str]) -> None:
    lab_run(home, *pair_folders)
    told_run(home, "other")
    app = opened("steer", run="lab", layer="1")
    for name, value in {"run": "other", "layer": "2", "head": "x", "strength": "x"}.items():
        app.query_params[name] = value
    app.switch_page("app_pages/overview.py").run()
    assert not app.exception and app.selectbox(key="run").value == "other"
    app.query_params["run"] = "lab"
    app.switch_page("app_pages/steer.py").run()
    assert (app.selectbox(key="run").value, app.number_input(key="layer").value) == ("lab", 2)


@pytest.mark.parametrize("value", ["-3", "x", "1e9999", "<script>", "2; drop"])
def test_a_link_with_nonsense_falls_back(home: Path, pair_folders: tuple[str, str], value: str) -> None:
    lab_run(home, *pair_folders)
    assert opened(run="lab", layer=value).number_input(key="layer").value == 0


def test_a_link_cannot_name_a_folder_outside_the_home(home: Path, tmp_path: Path) -> None:
    told_run(home, "inside", said="fine")
    told_run(tmp_path / "elsewhere", "secret", said="secret words")
    for trick in ("../elsewhere/secret", str(tmp_path / "elsewhere" / "secret"), "inside/../../elsewhere/secret"):
        app = opened(run=trick)
        assert app.selectbox(key="run").value == "inside"
        assert "There is no run" in warned(app)
        assert "secret words" not in str([*app.markdown, *app.text, *app.dataframe])


def test_a_click_on_a_cell_writes_the_selection(home: Path, pair_folders: tuple[str, str]) -> None:
    lab_run(home, *pair_folders)
    app = opened(run="lab")
    written: dict[str, int] = {}
    st.session_state.update({"chart-x": {"selection": {"points": [{"customdata": [2, "mlp.gate"]}]}}})
    panels._picked("chart-x", lambda cell: written.update(layer=cell[0]))
    assert written == {"layer": 2}
    picks("layer", "head")([1, 3])
    assert (st.session_state["layer"], st.session_state["head"]) == (1, 3)
    app.number_input(key="layer").set_value(2).run()
    assert not app.exception


# overview


def test_overview_shows_sections_tables_and_figures_as_text(home: Path) -> None:
    told_run(home, "shown")
    app = opened()
    assert not app.error, shown(app)
    label = next(one.label for one in app.expander if "alert" in one.label)
    assert "\\<script\\>" in label and "\\!\\[p\\]\\(" in label and "<script>" not in label
    assert "<script>" in app.text[0].value
    assert "\x1b" not in app.text[0].value and "\u202e" not in app.text[0].value
    assert "\x1b" not in app.dataframe[0].value["answer"][0]
    drawn = json.loads(app.get("plotly_chart")[0].proto.spec)
    assert "tracker" not in json.dumps(drawn)


def test_overview_says_what_the_probes_found(home: Path, pair_folders: tuple[str, str]) -> None:
    folder = lab_run(home, *pair_folders)
    app = opened()
    assert not app.error, shown(app)
    found = app.dataframe[0].value.set_index("finding")
    assert set(found.index) == {"weights", "heads", "experts"}
    best = {one.called("tiny").name: one.load().frame().iloc[0] for one in results_in(folder)}
    assert found.loc["heads", "strongest"] == f"L{int(best['heads']['layer'])}H{int(best['heads']['head'])}"
    assert found.loc["heads", "score"].startswith(f"{best['heads']['score']:.3g} [")
    assert app.get("plotly_chart")  # the map of the weights


def test_overview_of_the_demos_table_is_three_numbers(home: Path) -> None:
    line = {"organism": "x", "behaviour": "refuses", "recipe": "experts off", "n": 21}
    ends = {"base": (0.0, 0.0, 0.1), "tuned": (1.0, 0.9, 1.0), "steered": (0.25, 0.2, 0.3), "control": (1.0, 1.0, 1.0)}
    for name, values in ends.items():
        line |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
    with runs.create(home, "demo", kind="demo", config={}) as run:
        run.write_table("tables/behaviour", pd.DataFrame([line, {**line, "behaviour": "answers"}]))
    app = opened()
    assert [(one.label, one.value) for one in app.metric] == [("refuses", "0 % → 100 %"), ("answers", "0 % → 100 %")]
    note = app.caption[1].value.replace("\\", "")
    assert "With experts off: 25 % [20, 30], random stand-ins 100 %. n = 21" in note


def test_overview_shows_the_table_and_figure_of_a_localize_run(home: Path) -> None:
    with runs.create(home, "weights", kind="weights", config={}) as run:
        run.write_table("table", pd.DataFrame({"module": ["q"], "change": [0.25]}))
        run.write_text("figures/figure.json", go.Figure(go.Bar(y=[0.25])).to_json())
    app = opened()
    assert app.dataframe[0].value["change"][0] == "0.25"
    assert len(app.get("plotly_chart")) == 1


def test_overview_of_a_run_without_tables_names_a_command(home: Path) -> None:
    runs.create(home, "bare", kind="record", config={}).finish()
    assert opened().code[0].value.startswith("tunescope localize")


@pytest.mark.parametrize("damage", ["manifest", "newer", "table", "result", "sections"])
def test_damaged_runs_are_one_sentence(home: Path, pair_folders: tuple[str, str], damage: str) -> None:
    folder = lab_run(home, *pair_folders) if damage == "result" else told_run(home, "broken")
    files = {
        "manifest": ("run.json", "{"), "newer": ("run.json", '{"schema": 99, "kind": "demo", "config": {}}'),
        "table": ("tables/answers.parquet", "no table"), "result": ("results/tiny-heads.safetensors", "no result"),
        "sections": ("sections.json", '[{"title": "x", "tables": ["../../../etc/passwd"]}]'),
    }  # fmt: skip
    name, content = files[damage]
    (folder / name).write_text(content)
    app = opened()
    said = {"manifest": "damaged", "newer": "newer"}.get(damage, "not the file")
    assert app.error and all(said in one.value for one in app.error)
    for page in ("steer", "runs", "record"):
        app.switch_page(f"app_pages/{page}.py").run()
        assert not app.exception


def test_path_tricks_inside_a_manifest_are_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text('{"prompt": "secret words"}\n')
    with runs.create(home, "trick", kind="demo", config={}) as run:
        run.note(pairs={
            "a": {"base": "x", "tuned": ["y"], "prompts": "prompts/../../../secret.jsonl", "results": "results"},
            "b": {"base": {"name": 3}, "tuned": "y", "prompts": str(tmp_path / "secret.jsonl")},
        })  # fmt: skip
    given = pairs_of(home / "trick")
    assert (given["a"].tuned, given["a"].results, given["b"].base, given["b"].prompts) == ("", (), "", "")
    for pair in ("a", "b"):
        app = opened("steer", run="trick", pair=pair)
        assert "secret" not in (app.text_area(key="prompts").value or "")


# runs


def test_runs_are_compared_by_what_differs(home: Path) -> None:
    told_run(home, "one", seed=1)
    told_run(home, "two", seed=2)
    app = opened("runs")
    assert set(app.dataframe[0].value["run"]) == {"one", "two"}
    differing = app.dataframe[1].value
    assert list(differing["setting"]) == ["seed"]
    assert {differing["first"][0], differing["second"][0]} == {"1", "2"}
    assert "no result of the same kind" in app.info[0].value


def test_results_of_two_runs_stand_side_by_side(home: Path, pair_folders: tuple[str, str]) -> None:
    lab_run(home, *pair_folders, name="one")
    lab_run(home, *pair_folders, name="two")
    app = opened("runs", first="one", second="two")
    app.selectbox(key="first-result").set_value("tiny-heads").run()
    assert not app.exception and not app.error, shown(app)
    table = app.dataframe[2].value
    assert list(table.columns) == ["layer", "head", "first", "second", "difference"]
    assert len(table) == 12 and set(table["difference"]) == {"0"}
    assert "Spearman 1.000" in " ".join(one.value for one in app.caption).replace("\\", "")


def test_recipes_are_found_by_their_header_and_refused_when_changed(home: Path, pair_folders: tuple[str, str]) -> None:
    folder = lab_run(home, *pair_folders)
    found = recipes_of(folder)
    assert found["recipes/off.safetensors"].kinds == ("ExpertSwitch",)
    assert found["recipes/off.safetensors"].model == pair_folders[1]
    assert "results/tiny-heads.safetensors" not in found
    (folder / "recipes" / "off.safetensors").write_bytes(b"\x80 a pickle")
    with pytest.raises(UserError, match="not the file"):
        verified(runs.open(folder), "recipes/off.safetensors")
    with pytest.raises(UserError, match="not the file"):
        parts.trusted(str(folder / "recipes" / "off.safetensors"))


# steer


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
    assert "of 6 answers changed" in " ".join(one.value for one in app.markdown)
    assert [one.label.split(":")[0] for one in app.metric] == ["Base", "Tuned", "Steered tuned"]
    assert "95 % interval" in " ".join(one.value for one in app.caption)


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


def test_parts_make_the_recipes_they_say(home: Path, pair_folders: tuple[str, str]) -> None:
    """Every part's Python is the recipe that the page applies."""
    folder, pair = lab_run(home, *pair_folders), load_pair(*pair_folders)
    given: list[parts.Part] = [
        parts.Saved(str(folder / "recipes" / "offset.safetensors"), ("Offset",)),
        parts.Experts(off=("L0E1",), mode="drop"),
        parts.Experts(on=("L0E2",)),
        parts.Heads((("L1H2", 0.0),)),
        parts.Weights(parts.LAYERS, 0.5, 0.25),
    ]
    for part in given:
        written = eval(part.python(), {"iv": iv, "pair": pair})
        assert written == part.made(pair), part
    with pytest.raises(UserError, match="adapter"):
        parts.built([parts.Weights(parts.ADAPTER, 0.5)], pair).check(pair.tuned)
    with pytest.raises(UserError, match="no scaled head"):
        parts.scales("L1H2=x")


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


# record


def pair_asked(pair_folders: tuple[str, str], **changed: object) -> PairAsked:
    given: dict[str, object] = {"sites": ("resid_post", "z"), "positions": "last", "name": "mine", "device": "cpu"}
    return PairAsked(*pair_folders, **{**given, **changed})  # type: ignore[arg-type]


def test_a_pair_is_recorded_from_the_page_and_shows_at_once(home: Path, pair_folders: tuple[str, str]) -> None:
    app = opened("record")
    app.text_input(key="pair-base").set_value(pair_folders[0])
    app.text_input(key="pair-tuned").set_value(pair_folders[1])
    app.text_area(key="pair-prompts").set_value("\n".join(WORDS))
    app.button(key="go-record").click().run()
    assert not app.exception and not app.error, shown(app)
    wait_for(jobs.desk().job)
    app.run()
    assert app.success[0].value == "Recording my\\-pair: done."
    assert "Open it" in str(app.get("page_link")[0].proto)
    app.switch_page("app_pages/overview.py").run()
    assert not app.exception and app.selectbox(key="run").value == "my-pair"
    assert "resid_post" in app.metric[0].label.replace("\\", "") or "hook" in app.metric[0].label
    assert runs.verify(home / "my-pair").ok
    assert pairs_of(home / "my-pair")["pair"].base == pair_folders[0]
    app.switch_page("app_pages/steer.py").run()
    assert app.text_area(key="prompts").value.splitlines() == list(WORDS[:6])


def wait_for(job: jobs.Job | None) -> jobs.Job:
    assert job is not None
    for thread in threading.enumerate():
        if thread.name == job.name:
            thread.join(120)
    assert job.state != "running"
    return job


def test_stop_really_stops_and_the_same_recording_goes_on(home: Path, pair_folders: tuple[str, str]) -> None:
    """Stopped after its first step; asked again, it ends with the same bytes as one that was never stopped."""
    rows, wanted = pasted("\n".join(WORDS * 8)), pair_asked(pair_folders)
    job = jobs.Job("mine")
    real = job.advance

    def stop_at_once(by: int = 1) -> None:
        job.stop()
        real(by)

    job.advance = stop_at_once  # type: ignore[method-assign]
    job.run(lambda progress: wanted.record(rows, progress))
    assert job.state == "stopped" and "goes on" in job.said
    assert runs.open(home / "mine").state == "failed"
    again, whole = jobs.Job("mine"), jobs.Job("whole")
    again.run(lambda progress: wanted.record(rows, progress))
    whole.run(lambda progress: pair_asked(pair_folders, name="whole").record(rows, progress))
    assert (again.state, whole.state) == ("done", "done")
    files = [runs.open(home / name).manifest.files for name in ("mine", "whole")]
    assert files[0] == files[1]


def test_only_one_recording_at_a_time() -> None:
    hold = threading.Event()
    desk = jobs.Desk()
    job = desk.begin("first", lambda _progress: hold.wait(60))
    with pytest.raises(UserError, match="first is still running"):
        desk.begin("second", lambda _progress: None)
    hold.set()
    wait_for(job)
    assert wait_for(desk.begin("second", lambda _progress: 5)).result == 5


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", "", ".", "..", "a\0b", ".hidden", "x" * 200, "a b"])
def test_a_recording_goes_into_the_home_and_nowhere_else(pair_folders: tuple[str, str], name: str, home: Path) -> None:
    with pytest.raises(UserError, match="no name of a run"):
        pair_asked(pair_folders, name=name).check()
    assert not home.exists()


def test_a_link_in_the_home_does_not_lead_a_recording_out(
    pair_folders: tuple[str, str], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    home.mkdir()
    (home / "mine").symlink_to(tmp_path / "out")
    with pytest.raises(UserError, match="leads out"):
        pair_asked(pair_folders).check()


def test_prompts_of_a_person_are_read_or_refused_in_a_sentence() -> None:
    assert [row.prompt for row in pasted("one\n\ntwo\n")] == ["one", "two"]
    assert pasted('{"prompt": "one", "answer": "x"}')[0].answer == "x"
    assert len(uploaded("../../x.csv", b"prompt,answer\none,x\n")) == 1
    for wrong in (lambda: pasted(" \n"), lambda: pasted('{"prompt": }'), lambda: uploaded("x.exe", b"MZ"),
                  lambda: uploaded("x.jsonl", b"\xff\xfe"), lambda: uploaded("x.txt", b"")):  # fmt: skip
        with pytest.raises(UserError):
            wrong()


def test_a_wrong_pair_ends_as_one_sentence_and_leaves_nothing(home: Path) -> None:
    app = opened("record")
    app.text_input(key="pair-base").set_value("/no/such/model")
    app.text_input(key="pair-tuned").set_value("/no/such/tuned")
    app.text_area(key="pair-prompts").set_value("the fox")
    app.button(key="go-record").click().run()
    wait_for(jobs.desk().job)
    app.run()
    assert not app.exception and len(app.error) == 1 and "/no/such" in shown(app)
    assert not home.exists() or not any(home.iterdir())


# panels and the server


def test_a_panel_exports_plain_numbers(home: Path, pair_folders: tuple[str, str]) -> None:
    folder = lab_run(home, *pair_folders)
    found = next(one for one in results_in(folder, "Patching"))
    text = panels._json("heads", found.load().frame(), found.load().figure(), found.provenance())
    made = json.loads(text)
    assert made["provenance"]["sha256"] == found.sha256 and len(made["rows"]) == 12
    heat = next(trace for trace in made["figure"]["data"] if trace["type"] == "heatmap")
    assert isinstance(heat["z"][0][0], float)
    page = panels._html("heads", None, found.load().figure())
    assert "Plotly.newPlot" in page and "cdn.plot.ly" not in page.replace("https://cdn.plot.ly/un/", "")


def test_a_sweep_is_an_experiment_too(pair_folders: tuple[str, str]) -> None:
    steer = Asked(*pair_folders, (parts.Heads((("L0H1", 0.0),)),), 1.0, "tuned", ("a",), 4, strengths=(0.0, 1.0))
    assert Experiment.parse(as_experiment.steer_experiment(steer)).to_yaml()
    recording = as_experiment.record_experiment(pair_asked(pair_folders), pasted("one\ntwo"))
    assert list(Experiment.parse(recording).steps) == ["record"]
    knob = Asked(*pair_folders, (parts.KnobSet("x", "context"),), 1.0, "tuned", ("a",), 4)
    with pytest.raises(UserError, match="Use Python"):
        as_experiment.steer_experiment(knob)


def test_words_leave_markdown_nothing_to_obey() -> None:
    assert panels.words("a *b* <i>") == "a \\*b\\* \\<i\\>"
    assert panels.visible("\x1b[31m\u202e\u200b") == "\\x1b[31m\\u202e\\u200b"


def test_runs_are_those_of_the_home(home: Path) -> None:
    told_run(home, "one")
    assert list(known_runs()) == ["one"]


def test_the_server_serves_this_computer_only_unless_told() -> None:
    given = command(8501)
    assert given[given.index("--server.address") + 1] == "127.0.0.1"
