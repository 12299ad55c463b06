"""The notebooks in examples/: converted, and executed in a kernel of this interpreter to their last check."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = ("whole_way.py",)
"""Run as they are; see tests/real."""
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name not in SCRIPTS)


def read(name: str) -> Any:
    jupytext = pytest.importorskip("jupytext", reason="needs tunescope[notebook]")
    return jupytext.read(EXAMPLES / name)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel spec that starts this very interpreter, whatever Jupyter is set up on the machine."""
    pytest.importorskip("ipykernel", reason="needs tunescope[notebook]")
    spec = tmp_path / "kernels" / "tunescope"
    spec.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "Tunescope", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]))
    return "tunescope"


def test_there_are_four_and_the_readme_lists_them() -> None:
    assert NOTEBOOKS == ["experts.py", "first_look.py", "heads_to_recipe.py", "knob_into_base.py"]
    readme = (EXAMPLES / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in (*NOTEBOOKS, *SCRIPTS))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_tells_a_story_and_checks_its_headline(name: str) -> None:
    cells = read(name).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert sum(cell.cell_type == "markdown" for cell in cells) >= 6
    assert any(isinstance(node, ast.Assert) for node in ast.parse(cells[-1].source).body)
    assert not any(cell.get("outputs") for cell in cells)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_uses_only_what_is_public(name: str) -> None:
    imported = set()
    for node in ast.walk(ast.parse((EXAMPLES / name).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {
        module for module in imported if module.split(".")[0] in ("workbench", "probes", "interventions", "dashboards")
    }
    assert ours <= {"workbench", "probes", "interventions", "workbench.organisms", "workbench.stats"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_and_shows_rich_results(name: str, kernel: str, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="needs tunescope[notebook]")
    notebook = read(name)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name=kernel, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    results = [output.data for output in outputs if output.output_type == "execute_result"]
    assert sum("text/html" in data for data in results) >= 4
    figures = [output for output in outputs if "application/vnd.plotly.v1+json" in output.get("data", {})]
    assert figures, "no figure came out"
    assert any("control" in data.get("text/html", "") for data in results), "no result shows its control"
