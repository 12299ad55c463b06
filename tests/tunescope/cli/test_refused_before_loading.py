"""Rows, labels and dictionaries that cannot serve a method are refused in one sentence before a model is loaded: the
folders here have no weights, so whatever loads one says something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.probes.influence.organism import dictionary
from tests.tiny import tiny_model
from tunescope.cli import run

SUBJECTS = "fox dog hen owl bee cat eel gnu ant yak".split()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configurations of a base and of a whole model as tuned, rows of each kind, and a dictionary of another width."""
    folder = tmp_path_factory.mktemp("refused")
    for name in ("base", "merged"):
        tiny_model("llama", hidden_size=32).config.save_pretrained(folder / name)
    rows = [{"prompt": f"say {subject}", "answer": f" {subject}", "kind": "odd", "label": "a"} for subject in SUBJECTS]
    queries = [
        {"prompt": f"tell {subject}", "answer": f" {subject}", "kind": "odd", "topic": subject}
        for subject in SUBJECTS[:3]
    ]
    files = {
        "rows": rows, "queries": queries, "copies": rows[:3], "single": queries[:1],
        "mute": [{"prompt": row["prompt"]} for row in rows], "other": [{**row, "kind": "plain"} for row in rows],
        "few": [*rows, {**rows[0], "prompt": "say", "label": "b"}],
    }  # fmt: skip
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "latin.jsonl").write_bytes(b'{"prompt": "\xe4", "answer": " x"}\n')
    dictionary().save(folder / "wide")
    return folder


LESS = "localize less base merged --controls 2"
RETRAIN = "localize retrain-without base merged --prompts rows.jsonl --queries queries.jsonl"
CASES = {
    f"{LESS} --prompts rows.jsonl --queries copies.jsonl": "3 of 3 queries are training rows word for word",
    f"{LESS} --prompts rows.jsonl --queries single.jsonl": "One query (or one group of them) has no spread",
    f"{LESS} --prompts mute.jsonl --queries queries.jsonl": "Prompt 0 has no answer",
    f"{LESS} --prompts rows.jsonl --queries mute.jsonl": "Prompt 0 has no answer",
    f"{LESS} --prompts latin.jsonl --queries queries.jsonl": "latin.jsonl is not UTF-8 text",
    f"{LESS} --prompts rows.jsonl --queries queries.jsonl": "has no LoRA factors (it is merged, or fully tuned)",
    f"{LESS} --prompts rows.jsonl --queries queries.jsonl --near kind": "give match too",
    f"{LESS} --prompts other.jsonl --queries queries.jsonl --match kind": "No query shares its kind",
    f"{LESS} --prompts rows.jsonl --queries queries.jsonl --subtasks topic": "The sub-task 'fox' has one query",
    "localize delift base merged --prompts mute.jsonl --queries queries.jsonl --controls 2": "Prompt 0 has no answer",
    "localize mona base merged --prompts rows.jsonl --queries queries.jsonl --controls 2 --dictionary wide": (
        "reads activations of width 64 and the model has 32"
    ),
    f"{RETRAIN} --influence no.safetensors --drop 3": "There is no result at no.safetensors",
    f"{RETRAIN} --influence x --drop 10": "10 of 10 rows cannot be left out",
    "localize probe-suite base merged --prompts rows.jsonl": "All 10 rows have the label 'a'",
    "localize probe-suite base merged --prompts few.jsonl": "The class 'b' has 1 row and a probe needs 4",
    "localize attribute-suite base merged --prompts rows.jsonl --things knd": "Did you mean 'kind'",
    "localize concept-neurons base merged --prompts few.jsonl --concept c": "0 of 11 prompts are 'c'",
}


@pytest.mark.parametrize("line", CASES)
def test_one_sentence_and_no_model(
    home: Path, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    assert run(line.split()) == 1
    said = capsys.readouterr()
    (error,) = [part for part in said.err.splitlines() if part.startswith("Error: ")]
    assert CASES[line] in error and "Traceback" not in said.err and not (home / "runs").exists()
