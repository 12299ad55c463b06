"""``--device`` on the command line: the same answers as with the CPU, in files that need no device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import interventions as iv
from probes.results import ProbeResult
from tests.cuda.place import DEVICE, close, same_frames
from tunescope.cli.app import app
from workbench import runs
from workbench.recording.recording import Recording

WORDS = "the quick brown fox jumps over lazy dog".split()
CLI = CliRunner()


@pytest.fixture(scope="module")
def prompts(home: Path) -> Path:
    rows = [
        {"prompt": " ".join(WORDS[i % 5 : i % 5 + 2]), "answer": " fox", "distractor": " dog", "label": "ab"[i % 2]}
        for i in range(16)
    ]
    (home / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return home / "p.jsonl"


def asked(*words: Any, device: Any = DEVICE) -> dict[str, Any]:
    done = CLI.invoke(app, [*map(str, words), "--device", str(device), "--json"])
    assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
    return json.loads(done.stdout)


def pair(home: Path, family: str = "llama") -> list[str]:
    return [str(home / f"{family}-base"), str(home / f"{family}-tuned")]


def test_record(home: Path, prompts: Path, tmp_path: Path) -> None:
    for name, device in (("there", DEVICE), ("here", "cpu")):
        asked("record", *pair(home), "--prompts", prompts, "--sites", "z,resid_post", "--out", tmp_path / name,
              device=device)  # fmt: skip
    found, wanted = (Recording.load(tmp_path / name / "activations") for name in ("there", "here"))
    for role in wanted.roles:
        for site in wanted.sites:
            close(found[role][site].load(), wanted[role][site].load())
    assert runs.verify(tmp_path / "there").ok


@pytest.mark.parametrize(
    ("verb", "family", "more"),
    [
        ("activations", "llama", ["--sites", "z"]),
        ("heads", "llama", ["--layers", "0,1"]),
        ("concepts", "llama", ["--layer", "1"]),
        ("experts", "olmoe", ["--target", "a"]),
    ],
)
def test_localize(home: Path, prompts: Path, tmp_path: Path, verb: str, family: str, more: list[str]) -> None:
    for name, device in (("there", DEVICE), ("here", "cpu")):
        asked(
            "localize", verb, *pair(home, family), "--prompts", prompts, *more, "--out", tmp_path / name, device=device
        )
    found, wanted = (ProbeResult.load(tmp_path / name / "result.safetensors") for name in ("there", "here"))
    same_frames(found.frame(), wanted.frame())
    assert runs.verify(tmp_path / "there").ok


def test_steer(home: Path, tmp_path: Path) -> None:
    vector = torch.randn(64, generator=torch.Generator().manual_seed(5)) * 3
    recipe = iv.Recipe([iv.Offset(1, vector, positions="last+generated")]).save(tmp_path / "recipe.safetensors")
    base, tuned = pair(home)
    words = ["steer", base, "--tuned", tuned, "--recipe", recipe, "--prompt", "the quick", "--strengths", "-2,0,1",
             "--max-new-tokens", "5"]  # fmt: skip
    assert asked(*words)["rows"] == asked(*words, device="cpu")["rows"]


def test_diff(home: Path, prompts: Path, tmp_path: Path) -> None:
    vector = torch.randn(64, generator=torch.Generator().manual_seed(5)) * 3
    recipe = iv.Recipe([iv.Offset(1, vector, positions="last+generated")]).save(tmp_path / "recipe.safetensors")
    words = ["diff", *pair(home), "--prompts", prompts, "--recipe", recipe, "--metrics", "accuracy,answer_logprob",
             "--strengths", "0,1"]  # fmt: skip
    found, wanted = asked(*words), asked(*words, device="cpu")
    for row, other in zip(found["rows"], wanted["rows"], strict=True):
        assert row["model"] == other["model"] and row["estimate"] == pytest.approx(other["estimate"], abs=2e-3)


def test_an_absent_device_is_told(home: Path, prompts: Path, tmp_path: Path) -> None:
    done = CLI.invoke(app, ["record", *pair(home), "--prompts", str(prompts), "--sites", "z", "--out",
                            str(tmp_path / "run"), "--device", "cuda:99"])  # fmt: skip
    assert done.exit_code != 0 and "cuda:99" in str(done.exception)
    assert not (tmp_path / "run").exists()
