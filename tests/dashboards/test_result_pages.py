"""Tokens, Heads, Skills, Experts, Knobs and concepts: the selection drives them, buttons compute, nothing is obeyed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dashboards import jobs
from dashboards.state import RUN
from dashboards.views.live import read_patterns, read_routes
from probes.head_writes import head_words
from tests.dashboards.pages import errors, figures, full_run, obeyed, opened, titles
from tests.dashboards.sample_runs import prompts as the_prompts
from tests.dashboards.sample_runs import save_pair
from workbench import runs
from workbench.errors import UserError
from workbench.models.pair import load_pair
from workbench.recording.record_pair import record

PAGES = ("tokens", "heads", "skills", "experts", "knobs")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv(RUN, raising=False)
    yield tmp_path / "runs"
    jobs.desk().clear()


@pytest.fixture(scope="module")
def pair_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return save_pair(tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("page", PAGES)
def test_without_a_run_every_page_names_the_command(page: str) -> None:
    assert opened(page).code[0].value == "tunescope demo"


@pytest.mark.parametrize(
    ("page", "name", "lacks"),
    [("heads", "heads", ""), ("skills", "skills", ""), ("experts", "experts", ""),
     ("knobs", "knob", "needs a column 'group'")],
)  # fmt: skip
def test_what_a_run_lacks_can_be_run_on_its_page_or_says_why_not(
    home: Path, pair_folders: tuple[str, str], page: str, name: str, lacks: str
) -> None:
    full_run(home, *pair_folders, only=("tokens",))
    app = opened(page)
    button = app.button(key=f"go-{page}-{name}")
    assert app.text_input(key=f"{page}-{name}-base").value == pair_folders[0]
    assert button.disabled == bool(lacks) and lacks in button.help
    assert not lacks or any(lacks in caption.value.replace("\\", "") for caption in app.caption)
    assert any("Cost" in caption.value for caption in app.caption)


def test_what_was_run_on_a_page_is_shown_there(home: Path, pair_folders: tuple[str, str]) -> None:
    full_run(home, *pair_folders, only=("tokens",))
    app = opened("heads")
    assert not figures(app)
    app.selectbox(key="option-heads-method").set_value("attribution")
    app.toggle(key="option-heads-normalise").set_value(False)
    app.button(key="go-heads-heads").click().run()
    job = jobs.desk().job
    assert job is not None and job.wait(120) and job.state == "done", job.said
    app.run()
    assert not app.exception and not app.error, errors(app)
    assert "Patching tuned into base" in titles(app)


@pytest.mark.parametrize("page", PAGES)
def test_nothing_that_a_model_or_a_file_says_is_obeyed(home: Path, pair_folders: tuple[str, str], page: str) -> None:
    full_run(home, *pair_folders)
    app = opened(page, prompt="2", layer="1", head="1", expert="3")
    assert not app.error, errors(app)
    assert len(figures(app)) >= 1 and not obeyed(app)


def test_the_numbers_on_the_pages_are_the_results_own(home: Path, pair_folders: tuple[str, str]) -> None:
    from probes import ProbeResult

    folder = full_run(home, *pair_folders)
    heads = ProbeResult.load(folder / "results/tiny-heads.safetensors")
    app = opened("heads", layer="1", head="2")
    drawn = figures(app)[0]
    assert drawn["layout"]["shapes"][0]["x0"] == 1.5 and drawn["layout"]["shapes"][0]["y0"] == 0.5
    row = heads.table.query("layer == 1 and head == 2").iloc[0]
    shown = next(element.value for element in app.dataframe if "result" in element.value)
    said = shown[shown["result"] == "heads"]["score"].iloc[0]
    assert said == f"{row['score']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"
    graft = ProbeResult.load(folder / "results/tiny-graft-one.safetensors")
    app = opened("skills")
    assert app.metric[0].value == f"{graft.recovered:.0%}" and "n = 40" in titles(app)
    overlap = figures(app)[3]["data"][0]
    assert overlap["x"] == [60]  # 100 weights from 0 and 100 from 40


def test_the_page_heads_draws_one_map_and_no_more(
    home: Path, pair_folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from probes.patches.result import Patching
    from probes.weights.result import WeightDelta

    full_run(home, *pair_folders)
    drawn: list[str] = []
    for kind in (Patching, WeightDelta):
        plain = kind.figure

        def counted(self: Any, *given: Any, plain: Any = plain, **options: Any) -> Any:
            drawn.append(type(self).__name__)
            return plain(self, *given, **options)

        monkeypatch.setattr(kind, "figure", counted)
    app = opened("heads", layer="1", head="2")
    drawn.clear()
    app.run()
    assert drawn == ["Patching"]


def test_heads_are_read_live_on_a_button_and_marked_stale(home: Path, pair_folders: tuple[str, str]) -> None:
    full_run(home, *pair_folders)
    app = opened("heads", layer="1", head="2", prompt="3")
    before = len(figures(app))
    app.button(key="go-attention").click().run()
    app.button(key="go-words").click().run()
    assert not app.exception and not app.error, errors(app)
    assert len(figures(app)) == before + 2
    assert "L1H2 on prompt 3" in titles(app) and "L1H2: what its write raises" in titles(app)
    pair = load_pair(*pair_folders, device="cpu")
    seen = read_patterns(pair, the_prompts()[3], 1, 2)
    panel = next(figure for figure in figures(app) if "attention of" in figure["layout"]["title"]["text"])
    z = np.array([[np.nan if cell is None else cell for cell in row] for row in panel["data"][1]["z"]], float)
    assert np.nanmax(np.abs(np.where(np.isnan(z), seen.tuned, z) - seen.tuned)) < 1e-6
    assert not app.warning
    app.number_input(key="head").set_value(0).run()
    assert sum("earlier inputs" in element.value for element in app.warning) == 2
    assert "L1H2 on prompt 3" in titles(app), "the last result stays"


def test_patterns_and_routes_are_what_the_model_computes(pair_folders: tuple[str, str]) -> None:
    pair = load_pair(*pair_folders, device="cpu")
    row = the_prompts()[3]
    seen = read_patterns(pair, row, 2, 1)
    assert seen.base.shape == (len(seen.tokens),) * 2 and np.allclose(seen.tuned.sum(-1), 1, atol=1e-5)
    assert np.triu(seen.base, 1).max() == 0 and np.abs(seen.base - seen.tuned).max() > 0
    routes = read_routes(pair, row)
    rec = record(pair, the_prompts()[[3]], "router", positions="all")
    counted = torch.bincount(rec["tuned"]["blocks.1.mlp.hook_router.experts"][:].flatten(), minlength=8)
    cells = routes.cells.query("model == 'tuned' and layer == 1")
    assert [int((cells["expert"] == expert).sum()) for expert in range(8)] == counted.tolist()
    with pytest.raises(UserError, match="no head L7H0"):
        read_patterns(pair, row, 7, 0)


def test_the_routing_of_a_prompt_is_read_on_a_button(home: Path, pair_folders: tuple[str, str]) -> None:
    full_run(home, *pair_folders)
    app = opened("experts", layer="1", expert="3", prompt="1")
    app.button(key="go-routes").click().run()
    assert not app.exception and not app.error, errors(app)
    assert "Router weights of" in titles(app) and "Flow of" in titles(app)
    links = [element.proto for element in app.get("page_link")]
    assert any("off=L1E3" in str(link) for link in links)


def test_what_is_missing_is_computed_on_the_pair(home: Path, pair_folders: tuple[str, str]) -> None:
    full_run(home, *pair_folders, only=("weights",))
    app = opened("tokens", prompt="1")
    assert not figures(app), "nothing runs before the button"
    app.button(key="go-lens").click().run()
    app.button(key="go-shift").click().run()
    assert not app.exception and not app.error, errors(app)
    assert "Logit lens, prompt 1" in titles(app) and "Token shift" not in titles(app)
    assert sum("One prompt" in caption.value for caption in app.caption) == 2
    app.segmented_control(key="which-shift").set_value("all 7 prompts").run()
    app.button(key="go-shift").click().run()
    assert not app.exception and not app.error, errors(app)
    assert "Token shift" in titles(app)
    app.number_input(key="prompt").set_value(2).run()
    assert "Logit lens" not in titles(app), "another prompt waits for its own button"
    app = opened("knobs", layer="1")
    app.button(key="go-concepts").click().run()
    assert not app.exception and "directions by pca-uncentred" in titles(app)


def test_a_run_without_prompts_takes_those_written_in(home: Path, pair_folders: tuple[str, str]) -> None:
    full_run(home, *pair_folders, only=("weights",), keep=False)
    app = opened("tokens")
    assert not app.button
    app.text_area(key="look-prompts").set_value("the quick brown fox\nthe lazy dog").run()
    app.button(key="go-lens").click().run()
    assert not app.exception and "Logit lens, prompt 0" in titles(app)


def test_a_graft_that_does_not_fit_the_pair_is_a_sentence(home: Path, pair_folders: tuple[str, str]) -> None:
    full_run(home, *pair_folders)
    app = opened("skills")
    app.button(key="go-graft").click().run()
    assert not app.exception and len(app.error) == 1


def test_models_that_are_gone_are_a_sentence(home: Path, pair_folders: tuple[str, str], tmp_path: Path) -> None:
    folder = full_run(home, *pair_folders)
    run = runs.open(folder)
    run.reopen()
    kept = run.manifest.provenance["pairs"]["tiny"]
    with run:
        run.note(pairs={"tiny": {**kept, "base": str(tmp_path / "gone"), "tuned": str(tmp_path / "gone-too")}})
    app = opened("heads")
    app.button(key="go-attention").click().run()
    assert not app.exception and len(app.error) == 1 and "gone" in errors(app)


def test_the_words_on_the_page_are_those_of_the_library(home: Path, pair_folders: tuple[str, str]) -> None:
    full_run(home, *pair_folders)
    app = opened("heads", layer="0", head="3")
    app.button(key="go-words").click().run()
    words = head_words(load_pair(*pair_folders, device="cpu"), the_prompts(), 0, 3)
    bars = next(figure for figure in figures(app) if "what its write" in figure["layout"]["title"]["text"])["data"]
    shown = sorted(value for bar in bars if bar["type"] == "bar" for value in bar["x"])
    assert shown == pytest.approx(sorted(words.table["score"]), abs=1e-5)
