"""The report: self-contained, nothing a model wrote obeyed, and a sentence for every run it cannot show."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
from typer.testing import CliRunner

from dashboards.report import write_report
from tunescope.cli.app import app
from workbench import runs
from workbench.errors import UserError
from workbench.files import write_json
from workbench.runs.folder import Run
from workbench.tables import with_intervals

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \x1b[31m &amp; " + "long" * 500
CLI = CliRunner()


def a_run(home: Path, sections: object | None = None) -> Path:
    """A run whose every text a model could have written."""
    figure = go.Figure(go.Scatter(x=[1, 2], y=[0.25, 0.5], text=[HOSTILE, "fine"], name=HOSTILE))
    figure.update_layout(title={"text": HOSTILE}, images=[{"source": "https://example.org/tracker.png"}])
    table = pd.DataFrame({"answer": [HOSTILE, "yes"], "score": [0.5, 0.25], "low": [0.4, None], "high": [0.6, None]})
    with runs.create(home, "shown", kind="demo", config={"said": HOSTILE}, provenance={"seed": 3}) as run:
        run.write_table("tables/answers", table.assign(control=[0.1, 0.2]))
        run.write_text("figures/lines.json", figure.to_json())
        given = [{"title": HOSTILE, "text": f"One.\n\n{HOSTILE}", "tables": ["answers"], "figures": ["lines"]}]
        run.write_json("sections", given if sections is None else sections)
    return home / "shown"


class Seen(HTMLParser):
    """Tags, attributes and text outside scripts, as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.text += data


def test_hostile_text_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    page = write_report(a_run(tmp_path)).read_text(encoding="utf-8")
    seen = Seen(page)
    names = [tag for tag, _ in seen.tags]
    assert "img" not in names and names.count("script") == 2  # the figure, and what draws it
    assert not [attributes for _, attributes in seen.tags if any(name.startswith("on") for name in attributes)]
    assert "<script>alert(1)</script>" in seen.text and "<img src=x onerror=alert(2)>" in seen.text
    assert "example.org" not in page


def test_the_page_fetches_nothing_and_stays_small(tmp_path: Path) -> None:
    written = write_report(a_run(tmp_path), tmp_path / "out" / "page.html")
    page = written.read_text(encoding="utf-8")
    policy = next(a["content"] for tag, a in Seen(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'") and "http" not in policy
    assert not [a for tag, a in Seen(page).tags if {"src", "href"} & set(a) and not str(a.get("href")).startswith("#")]
    assert page.count("DecompressionStream") == 1 and written.stat().st_size < 5e6
    assert [path.name for path in written.parent.iterdir()] == ["page.html"]


def test_numbers_stand_beside_their_interval_and_control(tmp_path: Path) -> None:
    text = Seen(write_report(a_run(tmp_path)).read_text(encoding="utf-8")).text
    assert "0.5 [0.4, 0.6]" in text and "0.25" in text and "control" in text
    assert "the same measurement with random directions" in text and '"seed": 3' in text


def test_a_run_without_sections_shows_its_tables_and_its_state(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "half", kind="record", config={})
    run.write_table("difference", pd.DataFrame({"site": ["z"], "relative": [0.25]}))
    assert "not complete" in write_report(run.path).read_text()
    run.fail("the disk was full")
    page = write_report(run.path).read_text()
    assert "the disk was full" in page and "difference" in page and "DecompressionStream" not in page


def no_run(folder: Path) -> Path:
    return folder / "absent"


def newer(folder: Path) -> Path:
    run = a_run(folder)
    write_json(run / "run.json", {**json.loads((run / "run.json").read_text()), "schema": 99})
    return run


def changed(folder: Path) -> Path:
    run = a_run(folder)
    (run / "tables" / "answers.parquet").write_bytes(b"PAR1 no longer")
    return run


def missing_table(folder: Path) -> Path:
    return a_run(folder, [{"title": "x", "tables": ["nothing"]}])


def path_trick(folder: Path) -> Path:
    return a_run(folder, [{"title": "x", "tables": ["../../shown"]}])


def wrong_sections(folder: Path) -> Path:
    return a_run(folder, [{"titel": "x"}])


def foreign_figure(folder: Path) -> Path:
    run: Run = runs.create(folder, "shown", kind="demo", config={})
    run.write_json("figures/lines", {"data": [{"type": "evil"}]})
    run.write_json("sections", [{"title": "x", "figures": ["lines"]}])
    return run.path


def damaged_table(folder: Path) -> Path:
    run: Run = runs.create(folder, "shown", kind="demo", config={})
    run.write_text("tables/answers.parquet", "not parquet")
    run.write_json("sections", [{"title": "x", "tables": ["answers"]}])
    return run.path


def empty(folder: Path) -> Path:
    return runs.create(folder, "shown", kind="demo", config={}).path


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (no_run, "is no run"),
        (newer, "newer Tunescope"),
        (changed, "runs verify"),
        (missing_table, "which its report names"),
        (path_trick, "no name inside"),
        (wrong_sections, "no list of sections"),
        (foreign_figure, "no plotly figure"),
        (damaged_table, "no readable table"),
        (empty, "nothing to report"),
    ],
)
def test_refusals(tmp_path: Path, make: object, sentence: str) -> None:
    folder = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(UserError, match=sentence):
        write_report(folder, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_command_says_where_it_wrote(tmp_path: Path) -> None:
    a_run(tmp_path)
    outcome = CLI.invoke(app, ["report", "shown", "--home", str(tmp_path), "--json"])
    written = Path(json.loads(outcome.stdout)["report"])
    assert outcome.exit_code == 0 and written == tmp_path / "shown-report.html" and written.is_file()
    assert runs.verify(tmp_path / "shown").ok
    failed = CLI.invoke(app, ["report", "../shown", "--home", str(tmp_path)])
    assert isinstance(failed.exception, UserError)


def test_tables_join_a_number_with_its_bounds() -> None:
    table = pd.DataFrame({"base": [1.0], "base_low": [0.91234], "base_high": [1.0], "share": [0.5], "n": [12]})
    shown = with_intervals(table.assign(low=[0.25], high=[float("nan")], fine=[True], name=[None]))
    assert shown.iloc[0].to_dict() == {"base": "1 [0.912, 1]", "share": "0.5", "n": "12", "fine": "yes", "name": ""}
    assert not re.search("nan", str(shown.to_dict()))
