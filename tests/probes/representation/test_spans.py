"""States at each row's own span: a label is read where its word stands, and not in front of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import probes
from probes.row_spans import row_spans
from tests.probes.effects.material import WORDS, pair_of
from tests.tiny import tokenizer
from tunescope.cli.localize import app
from workbench.errors import UserError
from workbench.prompts import Prompts
from workbench.prompts.encode import encode
from workbench.prompts.prompt_rows import PromptRows
from workbench.recording.record_pair import record

ROWS = Prompts.of([
    {"prompt": f"the fox {'over the ' * (i % 3)}{WORDS[i % 12]} jumps over the dog", "label": "ab"[i % 2],
     "word": WORDS[i % 12], "group": str(i)}
    for i in range(48)
])  # fmt: skip


def suite(where: str | None, **options: Any) -> Any:
    spans = None if where is None else row_spans(ROWS, tokenizer(), where)
    recording = record(pair_of(), ROWS, "resid_post", layers=[0], positions="all")
    return probes.probe_suite(recording, spans=spans, **options)


def test_the_span_of_each_row_is_what_is_read() -> None:
    word, whole = suite("word").table.iloc[0], suite("role:user").table.iloc[0]
    assert word["base"] == word["tuned"] == 1.0
    assert word["base"] >= whole["base"]
    front = [(first - 1, first) for first, _ in row_spans(ROWS, tokenizer(), "word")]
    recording = record(pair_of(), ROWS, "resid_post", layers=[0], positions="all")
    before = probes.probe_suite(recording, spans=front).table.iloc[0]
    assert before["base"] < 0.75 and before["base_high"] < 1.0


@pytest.mark.parametrize("rows", [None, PromptRows(9, 3), PromptRows(9, 4, behind=True)])
@pytest.mark.parametrize("prompt", ["the fox dog jumps", "<bos>the fox dog jumps", "<bos><bos>over dog", "dog"])
def test_a_span_counts_the_tokens_that_the_model_reads(prompt: str, rows: PromptRows | None) -> None:
    words = tokenizer()
    words.prompt_rows = rows
    asked = Prompts.of([{"prompt": prompt, "word": "dog"}], chat=False)
    ((first, last),) = row_spans(asked, words, "word")
    assert words.decode(encode(asked, words)[0][first:last]).strip() == "dog"


def test_the_command_takes_a_column_of_texts(tmp_path: Path) -> None:
    folders = []
    for role, model in pair_of().models.items():
        folders.append(str(tmp_path / role))
        model.hf.save_pretrained(folders[-1])
        tokenizer().save_pretrained(folders[-1])
    ROWS.save(tmp_path / "rows.jsonl")
    line = ["probe-suite", *folders, "--prompts", str(tmp_path / "rows.jsonl"), "--layers", "0"]
    more = ["--positions", "all", "--spans", "word", "--out", str(tmp_path / "run"), "--json"]
    done = CliRunner().invoke(app, [*line, *more])
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["rows"][0]["base"] == 1.0


def test_a_span_without_a_recorded_token_is_one_sentence() -> None:
    recording = record(pair_of(), ROWS, "resid_post", layers=[0], positions="last")
    with pytest.raises(UserError, match=r'Of prompt 0 no token inside its span was recorded: record positions="all"'):
        probes.probe_suite(recording, spans=[(0, 2)] * len(ROWS))
    with pytest.raises(UserError, match="3 spans for 48 prompts"):
        probes.probe_suite(recording, spans=[(0, 2)] * 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"] * 6, "All 6 rows have the label 'a'"),
        (["a"] * 6 + ["b"], "The class 'b' has 1 row and a probe needs 4"),
        (["a", None] * 6, r"Row 1 has no label \(6 in all lack one\)"),
    ],
)
def test_labels_that_no_probe_can_learn_are_refused_before_a_model_is_loaded(
    labels: list[str | None], message: str, tmp_path: Path
) -> None:
    rows = [{"prompt": f"fox {number}", **({} if label is None else {"label": label})}
            for number, label in enumerate(labels)]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "empty").mkdir()
    line = ["probe-suite", str(tmp_path / "empty"), str(tmp_path / "empty"), "--prompts", str(tmp_path / "rows.jsonl")]
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, line, standalone_mode=False, catch_exceptions=False)
