"""The pages on what the demo writes: real models, real results, few draws."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
import pytest

from dashboards.state import RUN
from probes import ProbeResult
from tests.dashboards.pages import errors, figures, obeyed, opened, titles
from workbench import runs

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def home(story: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(story.parent))
    monkeypatch.delenv(RUN, raising=False)


def result(story: Path, name: str) -> ProbeResult:
    return ProbeResult.load(runs.open(story).file(f"results/{name}.safetensors"))


@pytest.mark.parametrize("page", ["tokens", "heads", "skills", "experts", "knobs"])
@pytest.mark.parametrize("pair", ["context-knob", "refusal-moe"])
def test_every_page_opens_on_both_pairs_with_titles_and_units(page: str, pair: str) -> None:
    app = opened(page, pair=pair, prompt="1", layer="2", head="1", expert="1")
    assert not app.error, errors(app)
    assert not obeyed(app)
    for figure in figures(app):
        assert figure["layout"]["title"]["text"], "a figure says what it shows"
        for trace in figure["data"]:
            if trace["type"] == "heatmap" and trace.get("showscale", True):
                assert trace["colorbar"]["title"]["text"], "a colour scale says what it means"


def test_tokens_shows_what_the_run_measured(story: Path) -> None:
    app = opened("tokens", pair="context-knob", prompt="3")
    assert "Logit lens, prompt 3" in titles(app)
    lens = result(story, "context-knob-lens")
    assert f"n = {lens.provenance.n_prompts}" in " ".join(element.value for element in app.caption).replace("\\", "")
    answers = "".join(one.proto.body for one in app.get("html"))
    assert answers.count("<tr") == 32 and "outline:2px" in answers


def test_a_head_is_clicked_read_and_steered() -> None:
    app = opened("heads", pair="context-knob", layer="2", head="1", prompt="0")
    app.button(key="go-attention").click().run()
    app.button(key="go-words").click().run()
    assert not app.error, errors(app)
    assert {"L2H1 on prompt 0", "L2H1: what its write raises"} <= {
        text.strip().split(": attention")[0].split(" and lowers")[0] for text in titles(app).split("|")
    }
    assert any("heads=L2H1%3D0" in str(one.proto) for one in app.get("page_link"))


def test_the_graft_put_into_the_base_makes_it_refuse(story: Path) -> None:
    app = opened("skills", pair="refusal-moe", prompt="0")
    graft = result(story, "refusal-moe-graft-optimised")
    assert app.metric[0].value == f"{graft.recovered:.0%}"
    app.button(key="go-graft").click().run()
    assert not app.error, errors(app)
    assert any("restored" in element.value for element in app.success)
    counts = {
        element.label.split(":")[0]: int(element.value.split(" of ")[0])
        for element in app.metric
        if " of " in element.value
    }
    assert counts["Base"] == 0 and counts["Tuned"] == counts["Steered base"] > 0


def test_experts_and_their_routes(story: Path) -> None:
    app = opened("experts", pair="refusal-moe", layer="2", expert="1", prompt="0")
    assert "tuned - base" in figures(app)[0]["layout"]["title"]["text"], "what tuning changed comes first"
    table = next(element.value for element in app.dataframe if "result" in element.value)
    assert set(table["result"]) >= {"experts", "experts-base", "experts-tuned", "weights"}
    app.button(key="go-routes").click().run()
    assert not app.error and "Router weights of 8 tokens" in titles(app)


def test_the_knob_and_its_transfer(story: Path) -> None:
    knob = result(story, "context-knob-knob")
    app = opened("knobs", pair="context-knob")
    slope = figures(app)[0]
    drawn = next(value for value in slope["data"] if value.get("name", "").startswith("tuned"))
    sweep = knob.sweep.query("model == 'tuned' and direction == 'knob'")
    assert drawn["y"] == pytest.approx(sweep[sweep["intent"] == knob.intents[0]].sort_values("value")["share"].tolist())
    assert any("set-knob=true" in str(one.proto) for one in app.get("page_link"))
    app.number_input(key="direction").set_value(2).run()
    assert any("Direction 2 of layer" in element.value for element in app.markdown)


@pytest.mark.parametrize(
    ("page", "pair", "buttons"),
    [("tokens", "context-knob", ()), ("heads", "context-knob", ("attention", "words")),
     ("skills", "refusal-moe", ("graft",)), ("experts", "refusal-moe", ("routes",)), ("knobs", "context-knob", ())],
)  # fmt: skip
def test_the_python_of_every_panel_runs(
    page: str, pair: str, buttons: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[go.Figure] = []
    monkeypatch.setattr(go.Figure, "show", lambda figure: shown.append(figure))
    monkeypatch.chdir(tmp_path)
    app = opened(page, pair=pair, layer="1", head="1", expert="1", prompt="1")
    for button in buttons:
        app.button(key=f"go-{button}").click().run()
    snippets = [element.value for element in app.code if element.language == "python"]
    assert len(snippets) >= 4
    for code in snippets:
        exec(compile(code, f"<{page}>", "exec"), {})
    assert len(shown) == len(figures(app))
    drawn = {figure.layout.title.text for figure in shown}
    stored = [text for text in titles(app).split(" | ") if text in drawn]
    assert stored, "figures of stored results are the page's own"
