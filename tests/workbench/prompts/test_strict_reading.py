"""A person's data is never guessed at: what a reader could take in two ways is refused with its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from workbench.errors import UserError
from workbench.prompts import Prompts
from workbench.prompts.likeness import likeness

DEEP = "[" * 100_000 + "]" * 100_000
REFUSED = {
    "comma.csv": ("prompt,answer\nHello, world,yes\n", "line 2 has 3 fields and the header names 2"),
    "trailing.csv": ("prompt,answer\nHello,yes,\n", "line 2 has 3 fields"),
    "later.csv": ('prompt,answer\n"a\nb",x\nc,d\nTom,no,1\n', "line 5 has 3 fields"),
    "first.csv": ("prompt\nTom,no\n", "line 2 has 2 fields"),
    "tabs.tsv": ("prompt\tanswer\na\tb\tc\n", "line 2 has 3 fields"),
    "twice.csv": ("prompt,prompt\na,b\n", "column 'prompt' twice"),
    "inf.csv": ("prompt,label\na,inf\nb,1\n", "'label' is infinite"),
    "twice.jsonl": ('{"prompt": "a", "prompt": "b"}\n', "line 1 is not JSON .the key 'prompt' stands twice"),
    "inner.json": ('[{"prompt": "a", "x": {"k": 1, "k": 2}}]', "key 'k' stands twice"),
    "inf.jsonl": ('{"prompt": "a", "label": Infinity}\n', "Infinity is no JSON number"),
    "nan.jsonl": ('{"prompt": "a", "label": NaN}\n', "NaN is no JSON number"),
    "large.jsonl": ('{"prompt": "a", "label": 1e999}\n', "too large"),
    "digits.jsonl": ('{"prompt": "a", "label": ' + "9" * 5000 + "}\n", "too many digits"),
    "deep.jsonl": (DEEP + "\n", "nested too deeply"),
    "deep.json": (DEEP, "nested too deeply"),
    "half.jsonl": ('{"prompt": "a\\ud800b"}\n', "surrogate"),
    "halfkey.json": ('[{"prompt": "a", "\\udc00": 1}]', "surrogate"),
    "mask.jsonl": ('{"input_ids": [1, 2, 3], "attention_mask": ["a", 1, 1]}\n', "0 or 1 for each"),
    "mask2.jsonl": ('{"input_ids": [1, 2], "attention_mask": [1, 7]}\n', "0 or 1 for each"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_could_be_taken_in_two_ways_is_refused_with_its_place(tmp_path: Path, name: str) -> None:
    text, message = REFUSED[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        Prompts.load(tmp_path / name)


def test_quoted_commas_short_rows_and_blank_lines_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "good.csv"
    path.write_text('prompt,answer,label\n"Hello, world",yes,1\n\nTom,no\n' + "x" * 200_000 + ",,2\n")
    rows = Prompts.load(path)
    assert [row.prompt for row in rows][:2] == ["Hello, world", "Tom"] and len(rows[2].prompt or "") == 200_000
    assert [row.answer for row in rows] == ["yes", "no", None] and [row.label for row in rows] == [1, None, 2]


def test_damaged_parquet_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pd.DataFrame({"prompt": [f"text {i}" for i in range(50)], "label": range(50)}).to_parquet(path)
    data = path.read_bytes()
    for place in range(0, len(data), len(data) // 40):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            Prompts.load(path)
        except UserError as error:
            assert "p.parquet" in str(error)
    path.write_bytes(data[:-20])
    with pytest.raises(UserError, match="not a readable parquet file"):
        Prompts.load(path)


def test_tables_with_a_column_twice_and_renames_onto_another_are_refused() -> None:
    with pytest.raises(UserError, match="column 'prompt' twice"):
        Prompts.of(pd.DataFrame([["a", "b"]], columns=["prompt", "prompt"]))
    with pytest.raises(UserError, match="two columns the name 'prompt'"):
        Prompts.of([{"prompt": "a", "question": "b"}], rename={"question": "prompt"})
    with pytest.raises(UserError, match="infinite"):
        Prompts.of([{"prompt": "a", "label": float("inf")}])
    with pytest.raises(UserError, match="surrogate"):
        Prompts.of(["a\ud800"])


def test_near_duplicates_are_one_observation() -> None:
    texts = ["Where is Paris?", "where is  Paris", "WHERE IS PARIS!!", "Where is Rome?", "3-5", "35", "3*5", "3 - 5"]
    clusters = Prompts.of([*texts, "...", "!!!"]).clusters
    assert len(set(clusters[:3])) == 1 and clusters[3] != clusters[0]
    assert clusters[4] == clusters[7] and len({*clusters[4:7]}) == 3
    assert clusters[8] != clusters[9]
    chats = Prompts.of([[{"role": "user", "content": one}] for one in ("Hi there", "hi, there!", "bye")]).clusters
    assert chats[0] == chats[1] != chats[2]
    grouped = Prompts.of([{"prompt": "a", "group": "g"}, {"prompt": "A."}, {"prompt": "a!"}])
    assert grouped.cluster_names == ["g", "repeats of prompt 1", "repeats of prompt 1"]
    assert np.array_equal(Prompts.of([[1, 2], [1, 2], [12]]).clusters, [0, 0, 1])


def test_likeness_keeps_what_tells_texts_apart() -> None:
    different = ["1.5", "15", "a+b", "a b", "naïve", "naive", "北京", "东京", "🙂", "🙁", "x_1", "x_2"]
    different += ["5 + -1", "5 + 1", "50%", "50", "C#", "C"]
    assert len({likeness(one) for one in different}) == len(different)
    unseen = ["A dog.", "\u200ba dog", "a d\u00adog", "a dog\ufeff", "\u202aa dog\u202c", "# A dog", "- a dog"]
    assert {likeness(one) for one in unseen} == {"a dog"}
    assert likeness("don\u2019t") == likeness("don't") and likeness("\ufb01ne") == likeness("fine")
