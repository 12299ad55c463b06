"""The Python of the documentation runs as it is written, in a folder with a small pair and prompts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_model, tokenizer, tuned_copy
from tunescope.contracts.schema import Contract

ROOT = Path(__file__).resolve().parents[2]
CONTRACT_PAGE = "may_it_ship.md"
"""A page of the command line: it holds a contract, and no Python."""
_HOWTO = (page.name for page in sorted((ROOT / "docs" / "howto").glob("*.md")))
PAGES = ("start.md", *(f"howto/{name}" for name in _HOWTO if name != CONTRACT_PAGE))
WORDS = ("the quick brown fox", "the lazy dog", "a quick dog", "the brown dog jumps", "a lazy fox", "the fox")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``./base``, ``./tuned`` and ``prompts.jsonl``, as the pages name them."""
    home = tmp_path_factory.mktemp("docs")
    base = tiny_model("olmoe")
    for name, model in (("base", base), ("tuned", tuned_copy(base, size=0.1))):
        model.save_pretrained(home / name)
        tokenizer().save_pretrained(home / name)
    rows = [
        {"prompt": f"{text} {end}", "contrast": f"{text} {end[::-1]}", "answer": " fox", "distractor": " dog",
         "label": number % 2}
        for number, text in enumerate(WORDS) for end in ("ab", "xy")
    ]  # fmt: skip
    (home / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def blocks(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run(page: str, space: dict[str, Any]) -> int:
    found = blocks(page)
    for block in found:
        exec(compile(block, page, "exec"), space)
    return len(found)


@pytest.mark.filterwarnings("ignore::interventions.EagerAttentionWarning")
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_as_it_is_written(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert run(page, {"__name__": "__main__"}) >= 3


def test_the_contract_of_the_page_is_one(tmp_path: Path) -> None:
    """As it is written, with every kind of claim."""
    text = (ROOT / "docs" / "howto" / CONTRACT_PAGE).read_text(encoding="utf-8")
    (tmp_path / "contract.yaml").write_text(re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0])
    contract = Contract.load(tmp_path / "contract.yaml")
    assert len(contract.claims) == 7 and contract.confidence == 0.95


def test_the_tunescope_side_of_coming_from_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import interventions as iv
    import probes
    import workbench as wb

    monkeypatch.chdir(folder)
    pair = wb.load_pair("./base", "./tuned")
    space = {
        "iv": iv, "probes": probes, "wb": wb, "torch": torch, "pair": pair, "model": pair.tuned,
        "prompts": wb.Prompts.load("prompts.jsonl"), "vector": torch.ones(pair.tuned.d_model),
    }  # fmt: skip
    assert run("coming_from.md", space) >= 10
    text = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
    for library in ("TransformerLens", "nnsight", "repeng", "pyvene"):
        assert f"\n## {library}\n" in text


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs tunescope[docs]")
    pytest.importorskip("jupytext", reason="needs tunescope[docs]")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "docs/generate.py"], check=True, cwd=ROOT, env=environment)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        capture_output=True, text=True, check=False, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    reference = (tmp_path / "site" / "reference" / "probes.html").read_text(encoding="utf-8")
    for name in ("patching", "PatchOptions", "ExpertMap"):
        assert name in reference
    assert "tunescope env" in (tmp_path / "site" / "cli.html").read_text(encoding="utf-8")
