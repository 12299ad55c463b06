"""The app's selection, overview, runs and panels: what they show and refuse; nothing a model wrote is obeyed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
import streamlit as st

from dashboards import jobs, panels, recipe_parts
from dashboards.launch import command
from dashboards.results import results_in
from dashboards.selection import pairs_of, picks
from dashboards.state import RUN, known_runs, recipes_of, verified
from tests.dashboards.sample_runs import WORDS, lab_run, opened, save_pair, shown, told_run, warned
from workbench import runs
from workbench.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv(RUN, raising=False)
    yield tmp_path / "runs"
    jobs.desk().clear()


@pytest.fixture(scope="module")
def pair_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("pair"))


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
    assert "3 layers · 4 heads · 8 experts · 7 prompts" in " ".join(element.value for element in app.sidebar.caption)


def test_a_link_beyond_the_model_is_told_and_the_last_cell_shown(home: Path, pair_folders: tuple[str, str]) -> None:
    lab_run(home, *pair_folders)
    app = opened(run="lab", layer="9", prompt="99")
    assert "There is no layer 9 here: layers go from 0 to 2" in warned(app)
    assert "There is no prompt 99 here" in warned(app)
    app.switch_page("app_pages/steer.py").run()
    assert app.text_area(key="prompts").value == WORDS[-1]


def test_heads_open_on_the_strongest_unless_a_link_names_one(home: Path, pair_folders: tuple[str, str]) -> None:
    lab_run(home, *pair_folders)
    app = opened("heads", run="lab")
    place = app.header[0].value.removeprefix("Head ")
    assert place != "L0H0" and any(f": {place}, " in text.value for text in app.markdown if "Strongest" in text.value)
    for head in ("0", "2"):
        assert opened("heads", run="lab", layer="0", head=head).header[0].value == f"Head L0H{head}"


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
    label = next(element.label for element in app.expander if "alert" in element.label)
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
    best = {result.called("tiny").name: result.load().frame().iloc[0] for result in results_in(folder)}
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
    assert [(element.label, element.value) for element in app.metric] == [
        ("refuses", "0 % → 100 %"),
        ("answers", "0 % → 100 %"),
    ]
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
    assert app.error and all(said in element.value for element in app.error)
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


def test_beside_a_single_run_stands_the_command_that_makes_another(home: Path, pair_folders: tuple[str, str]) -> None:
    lab_run(home, *pair_folders)
    (command,) = [one.value for one in opened("runs").code if one.value.startswith("tunescope")]
    assert shlex.split(command) == ["tunescope", "localize", "weights", *pair_folders]


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
    recipes = recipes_of(folder)
    assert recipes["recipes/off.safetensors"].kinds == ("ExpertSwitch",)
    assert recipes["recipes/off.safetensors"].model == pair_folders[1]
    assert "results/tiny-heads.safetensors" not in recipes
    (folder / "recipes" / "off.safetensors").write_bytes(b"\x80 a pickle")
    with pytest.raises(UserError, match="not the file"):
        verified(runs.open(folder), "recipes/off.safetensors")
    with pytest.raises(UserError, match="not the file"):
        recipe_parts.trusted(str(folder / "recipes" / "off.safetensors"))


# panels and the server


def test_a_panel_exports_plain_numbers(home: Path, pair_folders: tuple[str, str]) -> None:
    folder = lab_run(home, *pair_folders)
    found = next(result for result in results_in(folder, "Patching"))
    text = panels._json("heads", found.load().frame(), found.load().figure(), found.provenance())
    made = json.loads(text)
    assert made["provenance"]["sha256"] == found.sha256 and len(made["rows"]) == 12
    heat = next(trace for trace in made["figure"]["data"] if trace["type"] == "heatmap")
    assert isinstance(heat["z"][0][0], float)
    page = panels._html("heads", None, found.load().figure())
    assert "Plotly.newPlot" in page and "cdn.plot.ly" not in page.replace("https://cdn.plot.ly/un/", "")


def test_words_leave_markdown_nothing_to_obey() -> None:
    assert panels.words("a *b* <i>") == "a \\*b\\* \\<i\\>"
    assert panels.visible("\x1b[31m\u202e\u200b") == "\\x1b[31m\\u202e\\u200b"


def test_runs_are_those_of_the_home(home: Path) -> None:
    told_run(home, "one")
    assert list(known_runs()) == ["one"]


def test_the_server_serves_this_computer_only_unless_told() -> None:
    given = command(8501)
    assert given[given.index("--server.address") + 1] == "127.0.0.1"
