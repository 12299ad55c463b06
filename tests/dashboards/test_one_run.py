"""One question about one pair, asked five ways: Python, the command line, a notebook, the app, the report."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import probes
from dashboards import panels
from dashboards.report import write_report
from dashboards.results import results_in
from tests.dashboards.sample_runs import opened, prompts, save_pair
from tunescope.cli.app import app as command_line
from workbench.models.pair import load_pair

COLUMNS = ("layer", "head", "score", "low", "high", "control", "q")


def numbers(rows: Any) -> list[tuple[float, ...]]:
    """The shared columns of each row, in the order of the cells."""
    return sorted(tuple(float(row[name]) for name in COLUMNS) for row in rows)


def rounded(rows: list[tuple[float, ...]]) -> list[str]:
    """Score and interval as the app and the report write them."""
    return sorted(f"{score:.3g} [{low:.3g}, {high:.3g}]" for _, _, score, low, high, *_ in rows)


def in_a_notebook(folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], str]:
    """The run's result loaded in a fresh kernel: its table, and what the cell shows."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    spec = scratch / "kernels" / "tunescope"
    spec.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "Tunescope", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(scratch))
    monkeypatch.setenv("IPYTHONDIR", str(scratch / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).resolve().parents[2])]))
    cells = [
        f"import json, probes\nfound = probes.ProbeResult.load({str(folder / 'result.safetensors')!r})",
        "print(json.dumps(found.frame().to_dict('records'), default=float))",
        "found",
        "found.figure()",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    done = nbclient.NotebookClient(book, timeout=300, kernel_name="tunescope").execute()
    code, drawn = (output.data["text/html"] for output in done.cells[3].outputs)
    assert len(code) > 10**6 and "Plotly.newPlot" in drawn, "nbconvert keeps the figure, without a network"
    assert all(output.output_type != "stream" for output in done.cells[0].outputs), "loading is quiet"
    return json.loads(done.cells[1].outputs[0].text), str(done.cells[2].outputs[0].data["text/html"])


@pytest.mark.slow
def test_the_numbers_are_the_same_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = save_pair(tmp_path / "pair")
    rows = tmp_path / "p.jsonl"
    prompts().save(rows)
    home = tmp_path / "runs"
    monkeypatch.setenv("TUNESCOPE_RUNS", str(home))

    found = probes.patching(load_pair(base, tuned, device="cpu"), prompts(), "heads", what="write", metric="kl")
    python = numbers(found.frame().to_dict("records"))
    asked = ["localize", "heads", base, tuned, "--prompts", str(rows), "--metric", "kl", "--json"]
    outcome = CliRunner().invoke(command_line, asked)
    assert outcome.exit_code == 0, outcome.output
    answer = json.loads(outcome.stdout)
    assert numbers(answer["rows"]) == python
    folder = Path(answer["run"])

    table, card = in_a_notebook(folder, tmp_path / "jupyter", monkeypatch)
    assert numbers(table) == python
    best = max(python, key=lambda row: row[2])
    assert f"{best[2]:.4g}" in card

    kept = results_in(folder, "Patching")[0]
    exported = json.loads(panels._json("heads", kept.load().frame(), None, kept.provenance()))
    assert numbers(exported["rows"]) == python
    page = opened("heads", run=folder.name, layer=str(int(best[0])), head=str(int(best[1])))
    shown = next(element.value for element in page.dataframe if "result" in element.value)
    assert shown["score"].tolist() == rounded([best])

    report = (write_report(folder, tmp_path / "report.html")).read_text()
    cells = re.sub(r"<[^>]+>", "", report)
    assert all(text in cells for text in rounded(python)), "the report has every score with its interval"
