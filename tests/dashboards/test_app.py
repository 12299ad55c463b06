"""Each page of the app: what it shows, what it refuses, and that nothing a model wrote is obeyed."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from streamlit.testing.v1 import AppTest

import interventions as iv
from dashboards import models, panels
from dashboards.launch import command
from dashboards.state import RUN, recipes_of, verified
from dashboards.steering import run_steer
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench import runs
from workbench.errors import ModelBusy, UserError
from workbench.models.pair import load_pair

PAGES = Path(__file__).resolve().parents[2] / "dashboards" / "app_pages"
HOSTILE = (
    "<script>alert(1)</script> [x](javascript:alert(2)) ![p](https://example.org/p.png) \x1b[31m $x$ " + "long" * 99
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv(RUN, raising=False)
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def pair_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A tiny mixture of experts and a tuned copy, saved as folders."""
    home = tmp_path_factory.mktemp("pair")
    base = tiny_model("olmoe")
    for name, model in (("base", base), ("tuned", tuned_copy(base, size=0.1))):
        model.save_pretrained(home / name)
        tokenizer().save_pretrained(home / name)
    return str(home / "base"), str(home / "tuned")


def a_run(home: Path, name: str, seed: int = 0) -> Path:
    figure = go.Figure(go.Bar(x=["a"], y=[0.5], text=[HOSTILE]))
    figure.update_layout(title={"text": "Scores"}, images=[{"source": "https://example.org/tracker.png"}])
    with runs.create(home, name, kind="demo", config={"seed": seed, "model": {"name": "tiny"}}) as run:
        run.write_table("tables/answers", pd.DataFrame({"answer": [HOSTILE], "score": [0.5]}))
        run.write_text("figures/answers.json", figure.to_json())
        section = {"title": HOSTILE, "text": HOSTILE, "tables": ["answers"], "figures": ["answers"]}
        run.write_json("sections", [section])
        iv.Recipe([iv.ExpertSwitch(off=["L1E0"])]).save(run.file("switch.safetensors"))
        run.write_tensors("result", {"values": numbers()})
    return run.path


def numbers() -> torch.Tensor:
    return torch.arange(3.0)


def page(name: str) -> AppTest:
    return AppTest.from_file(str(PAGES / f"{name}.py"), default_timeout=60)


def opened(name: str) -> AppTest:
    app = page(name).run()
    assert not app.exception
    return app


def shown(app: AppTest) -> str:
    return " ".join(one.value for one in app.error)


def test_without_runs_the_pages_name_the_next_command() -> None:
    for name in ("overview", "runs"):
        assert opened(name).code[0].value == "tunescope demo"


def test_overview_shows_sections_tables_and_figures_as_text(home: Path) -> None:
    a_run(home, "shown")
    app = opened("overview")
    assert not app.error, shown(app)
    assert "\\<script\\>" in app.header[0].value
    assert "\\!\\[p\\]\\(" in app.header[0].value
    assert "<script>" in app.text[0].value
    assert "\x1b" not in app.text[0].value
    assert "\x1b" not in app.dataframe[0].value["answer"][0]
    drawn = json.loads(app.get("plotly_chart")[0].proto.spec)
    assert "tracker" not in json.dumps(drawn)
    assert drawn["data"][0]["y"] == [0.5]


def test_overview_shows_the_table_and_figure_of_a_localize_run(home: Path) -> None:
    with runs.create(home, "weights", kind="weights", config={}) as run:
        run.write_table("table", pd.DataFrame({"module": ["q"], "change": [0.25]}))
        run.write_text("figures/figure.json", go.Figure(go.Bar(y=[0.25])).to_json())
    app = opened("overview")
    assert app.dataframe[0].value["change"][0] == 0.25
    assert len(app.get("plotly_chart")) == 1


def test_overview_of_a_run_without_tables_names_a_command(home: Path) -> None:
    runs.create(home, "bare", kind="record", config={}).finish()
    assert opened("overview").code[0].value.startswith("tunescope localize")


@pytest.mark.parametrize("damage", ["manifest", "newer", "table"])
def test_damaged_runs_are_one_sentence(home: Path, damage: str) -> None:
    folder = a_run(home, "broken")
    if damage == "manifest":
        (folder / "run.json").write_text("{")
    elif damage == "newer":
        (folder / "run.json").write_text('{"schema": 99, "kind": "demo", "config": {}}')
    else:
        (folder / "tables" / "answers.parquet").write_bytes(b"not a table")
    app = opened("overview")
    assert len(app.error) == 1
    assert {"manifest": "damaged", "newer": "newer", "table": "not the file"}[damage] in shown(app)


def test_a_link_cannot_name_a_folder_outside_the_home(home: Path, tmp_path: Path) -> None:
    a_run(home, "inside")
    a_run(tmp_path / "elsewhere", "secret", seed=7)
    app = page("overview")
    app.query_params["run"] = "../elsewhere/secret"
    app.run()
    assert "secret" not in " ".join(one.value for one in app.caption)


def test_runs_are_compared_by_what_differs(home: Path) -> None:
    a_run(home, "one", seed=1)
    a_run(home, "two", seed=2)
    app = opened("runs")
    assert set(app.dataframe[0].value["run"]) == {"one", "two"}
    differing = app.dataframe[1].value
    assert list(differing["setting"]) == ["seed"]
    assert {differing["first"][0], differing["second"][0]} == {"1", "2"}


def test_recipes_are_found_by_their_header_and_refused_when_changed(home: Path) -> None:
    folder = a_run(home, "with-recipe")
    assert recipes_of(folder) == ["switch.safetensors"]
    (folder / "switch.safetensors").write_bytes(b"\x80 a pickle")
    with pytest.raises(UserError, match="not the file"):
        verified(runs.open(folder), "switch.safetensors")


def asked(pair_folders: tuple[str, str]) -> AppTest:
    app = page("steer")
    app.query_params["base"], app.query_params["tuned"] = pair_folders
    app.query_params["how"] = "Experts off"
    app.run()
    app.text_input(key="off").set_value("L0E1, L1E3")
    app.text_area(key="prompts").set_value("the quick brown fox\n" + HOSTILE[:60])
    app.number_input(key="tokens").set_value(4)
    return app.run()


def test_steer_answers_three_ways_and_proves_the_model_came_back(pair_folders: tuple[str, str]) -> None:
    app = asked(pair_folders)
    app.button(key="go").click().run()
    assert not app.exception
    assert not app.error, shown(app)
    assert app.success[0].value == "Model restored: 0 hooks, logits identical"
    pair = load_pair(*pair_folders)
    recipe = iv.Recipe([iv.ExpertSwitch(off=["L0E1", "L1E3"])])
    prompts = app.text_area(key="prompts").value.splitlines()
    expected = run_steer(pair, recipe, prompts, strength=1.0, side="tuned", max_new_tokens=4)
    boxes = [one.value for one in app.code[:3]]
    assert boxes == [panels.visible(text[0]) or "(empty)" for text in (expected.base, expected.tuned, expected.steered)]
    assert not app.warning
    app.number_input(key="tokens").set_value(5).run()
    assert "earlier inputs" in app.warning[0].value


def test_steer_with_a_saved_recipe(home: Path, pair_folders: tuple[str, str]) -> None:
    a_run(home, "shown")
    app = page("steer")
    app.query_params["base"], app.query_params["tuned"] = pair_folders
    app.run()
    app.text_area(key="prompts").set_value("the lazy dog")
    app.number_input(key="tokens").set_value(3)
    app.button(key="go").click().run()
    assert not app.exception
    assert not app.error, shown(app)
    assert app.success


def test_steer_tells_mistakes_in_a_sentence(pair_folders: tuple[str, str]) -> None:
    app = opened("steer")
    app.button(key="go").click().run()
    assert "no prompt" in shown(app)
    app = asked(pair_folders)
    app.text_input(key="off").set_value("L9E1")
    app.button(key="go").click().run()
    assert not app.exception
    assert len(app.error) == 1


def test_a_busy_pair_is_refused_and_steering_changes_the_answer(pair_folders: tuple[str, str]) -> None:
    pair = load_pair(*pair_folders)
    recipe = iv.Recipe([iv.Offset(layer=1, vector=numbers().repeat(22)[:64])])
    moved = run_steer(pair, recipe, ["the fox"], strength=20.0, side="tuned", max_new_tokens=6)
    still = run_steer(pair, recipe, ["the fox"], strength=0.0, side="tuned", max_new_tokens=6)
    assert moved.steered != moved.tuned
    assert still.steered == still.tuned
    assert moved.restored
    refused: list[Exception] = []

    def other_tab() -> None:
        try:
            run_steer(pair, recipe, ["the fox"], strength=1.0, side="tuned", max_new_tokens=2)
        except ModelBusy as error:
            refused.append(error)

    with pair.tuned.active():
        tab = threading.Thread(target=other_tab)
        tab.start()
        tab.join()
    assert len(refused) == 1


def test_one_model_alone_is_no_pair() -> None:
    with pytest.raises(UserError, match="Give a base model"):
        models.places("", "")
    with pytest.raises(UserError, match="tuned model beside"):
        models.places("gpt2", "")


def test_words_leave_markdown_nothing_to_obey() -> None:
    assert panels.words("a *b* <i>") == "a \\*b\\* \\<i\\>"
    assert panels.visible("\x1b[31m\u202e") == "\\x1b[31m\\u202e"


def test_the_server_serves_this_computer_only_unless_told() -> None:
    given = command(8501)
    assert given[given.index("--server.address") + 1] == "127.0.0.1"
