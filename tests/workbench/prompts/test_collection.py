"""Prompts: every source gives the same rows, mistakes name their line, the hash is of the content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from workbench.errors import UserError
from workbench.prompts import Prompt, Prompts

ROWS: list[dict[str, Any]] = [
    {"prompt": "The capital of France is", "answer": "Paris", "distractor": "Rome", "label": 1,
     "group": "geo", "contrast": "The capital of Italy is", "source": "atlas"},
    {"prompt": "Two plus two is", "answer": "4", "distractor": "5", "label": 0, "group": "sums",
     "contrast": "Two plus three is", "source": "school"},
    {"prompt": 'He said "NA", twice\nover', "answer": "NA", "distractor": "null", "label": 1, "group": "geo",
     "contrast": "nothing", "source": "atlas"},
]  # fmt: skip
CHAT = [{"role": "user", "content": "Hi"}]


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_every_source_gives_the_same_rows_and_hash(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    frame = pd.DataFrame(ROWS)
    jsonl = write_lines(tmp_path / "a.jsonl", *[json.dumps(row) for row in ROWS], "")
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "a.tsv", index=False, sep="\t")
    frame.to_parquet(tmp_path / "a.parquet")
    wanted = Prompts.of(ROWS)
    assert wanted[0].columns == {"source": "atlas"} and wanted[2].answer == "NA"
    found = [Prompts.load(path) for path in (jsonl, *sorted(tmp_path.glob("a.*")))]
    found += [Prompts.of(source) for source in (frame, datasets.Dataset.from_pandas(frame), tuple(ROWS), wanted)]
    assert len(found) == 10
    for other in found:
        assert other.rows == wanted.rows
        assert other.hash == wanted.hash


def test_hash_follows_the_content_and_not_the_order_of_columns() -> None:
    base = Prompts.of(ROWS)
    turned = Prompts.of([dict(reversed(row.items())) for row in ROWS])
    assert turned.hash == base.hash
    assert base[::-1].hash != base.hash
    for key in ("prompt", "answer", "label", "group", "source"):
        changed = Prompts.of([{**ROWS[0], key: 7 if key == "label" else "x"}, *ROWS[1:]])
        assert changed.hash != base.hash, key


def test_save_and_load_keep_everything(tmp_path: Path) -> None:
    prompts = Prompts.of([*ROWS, {"messages": CHAT, "contrast": CHAT, "n": [1, 2], "group": 3}, "Grüße\u2028日本"])
    path = prompts.save(tmp_path / "deep" / "saved.jsonl")
    again = Prompts.load(path)
    assert again == prompts and again.hash == prompts.hash
    assert [p.name for p in path.parent.iterdir()] == ["saved.jsonl"]
    with pytest.raises(UserError, match="another ending"):
        prompts.save(tmp_path / "x.csv")


def test_text_file_has_one_prompt_per_line(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"\xef\xbb\xbffirst \r\n\n  second\n   \n")
    assert [row.prompt for row in Prompts.load(path)] == ["first ", "  second"]


def test_indexing_filter_groups_clusters() -> None:
    prompts = Prompts.of([*ROWS, "alone", "also alone"])
    assert isinstance(prompts[0], Prompt) and prompts[-1].prompt == "also alone"
    assert prompts[1:3].rows == prompts.rows[1:3]
    assert prompts[[4, 0]].rows == (prompts.rows[4], prompts.rows[0])
    assert prompts[np.array([True, False, True, False, False])].rows == (prompts.rows[0], prompts.rows[2])
    assert prompts.filter(lambda row: row.group == "geo").rows == (prompts.rows[0], prompts.rows[2])
    assert prompts.groups == {"geo": [0, 2], "sums": [1]}
    assert prompts.clusters.tolist() == [0, 1, 0, 2, 3]
    assert prompts.labels == [1, 0, 1, None, None]
    with pytest.raises(UserError, match="2 entries for 5"):
        prompts[np.array([True, False])]


def test_contrast_is_a_row_with_answers_exchanged() -> None:
    other = Prompts.of(ROWS).contrasts
    assert other[0].prompt == "The capital of Italy is"
    assert (other[0].answer, other[0].distractor) == ("Rome", "Paris")
    with pytest.raises(UserError, match="Prompt 1 has no 'contrast'"):
        _ = Prompts.of([ROWS[0], "plain"]).contrasts


def test_frame_has_our_columns_first() -> None:
    frame = Prompts.of([{"source": "x", "prompt": "a"}, {"answer": "1", "prompt": "b"}]).frame()
    assert list(frame.columns) == ["prompt", "answer", "source"]
    assert frame["answer"].isna().tolist() == [True, False]


def test_chats_in_lists_and_csv(tmp_path: Path) -> None:
    assert len(Prompts.of(CHAT)) == 1
    assert [row.is_chat for row in Prompts.of([CHAT, CHAT])] == [True, True]
    pd.DataFrame({"messages": [json.dumps(CHAT)]}).to_csv(tmp_path / "c.csv", index=False)
    assert Prompts.load(tmp_path / "c.csv") == Prompts.of([CHAT])
    pd.DataFrame({"messages": [CHAT]}).to_parquet(tmp_path / "c.parquet")
    assert Prompts.load(tmp_path / "c.parquet") == Prompts.of([CHAT])
    assert Prompts.of(pd.DataFrame({"messages": [CHAT]})) == Prompts.of([CHAT])


def test_rename_and_numbers(tmp_path: Path) -> None:
    table = pd.DataFrame({"question": ["a", "b"], "gold": [42, None], "label": [0.5, 1.5]})
    prompts = Prompts.of(table, rename={"question": "prompt", "gold": "answer"})
    assert [(row.prompt, row.answer, row.label) for row in prompts] == [("a", "42", 0.5), ("b", None, 1.5)]
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(UserError, match=r"Row 0 has none of 'prompt', 'messages' and 'input_ids'.*'question'.*rename="):
        Prompts.of(table)
    with pytest.raises(UserError, match=r"Unknown column 'questoin'\. Did you mean 'question'"):
        Prompts.load(tmp_path / "t.csv", rename={"questoin": "prompt"})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"prompt": "a"}', "", '{"prompt": '], r"bad.jsonl, line 3 is not JSON .*column"),
        (['{"prompt": "a"}', "7"], "line 2 is int; expected text"),
        (['{"prompt": ""}'], "line 1 is an empty prompt"),
        (['{"prompt": "a", "messages": []}'], "both 'prompt' and 'messages'"),
        (['{"messages": "hi"}'], "must be a list of turns"),
        (['{"messages": [{"role": "user"}]}'], "message 0 needs a 'role'"),
        (['{"prompt": "a", "answer": 1.5}'], r"'answer' is float \(1.5\); write it as text"),
        (['{"prompt": "a", "label": {"x": 1}}'], "'label' is dict"),
        (['{"prompt": "a", "contrast": [{"role": "user", "content": "b"}]}'], "'contrast' must be text"),
        (['{"question": "a"}'], "none of 'prompt', 'messages' and 'input_ids'"),
        ([""], "holds no prompts"),
    ],
)
def test_bad_jsonl_names_the_line(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Prompts.load(write_lines(tmp_path / "bad.jsonl", *lines))


def test_bad_sources_say_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}')
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    (tmp_path / "a.csv").write_text('prompt,answer\n"a,b\n')
    (tmp_path / "none.csv").write_text("")
    for name, message in {
        "latin.jsonl": "not UTF-8", "a.parquet": "not a readable parquet", "a.csv": "not a readable table",
        "none.csv": "not a readable table", "absent.jsonl": "no prompt file", "a.xlsx": "kind of prompt file",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            Prompts.load(tmp_path / name)
    for source, message in [
        ([], "no prompts"), (3, "cannot be made of int"), ([["a"]], "Row 0 is list"),
        (torch.tensor(3), "cannot be made of Tensor"), ([[], [5]], "Row 0 is empty; remove the row"),
        ([{"prompt": "a", "picture": object()}], "column 'picture' holds object"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message):
            Prompts.of(source)


def test_a_path_is_read_and_a_file_name_is_no_prompt(tmp_path: Path) -> None:
    path = Prompts.of([{"prompt": "one", "answer": "x"}]).save(tmp_path / "rows.jsonl")
    assert Prompts.of(path) == Prompts.load(path)
    assert Prompts.of(path, rename={"prompt": "prompt"}) == Prompts.load(path)
    for name in (str(path), "not-there.CSV"):
        with pytest.raises(UserError, match=r"is the name of a file.*Prompts\.load"):
            Prompts.of(name)
        assert Prompts.of([name])[0].prompt == name
    assert Prompts.of("See rows.jsonl")[0].prompt == "See rows.jsonl"


def test_arrays_of_words_become_plain_text() -> None:
    assert type(Prompts.of(np.array(["a", "b"]))[0].prompt) is str


def test_data_set_with_splits_or_without_end_is_refused() -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([{"prompt": "a", "answer": None}, {"prompt": "b", "answer": "c"}])
    assert [row.answer for row in Prompts.of(data)] == [None, "c"]
    with pytest.raises(UserError, match=r"splits train.*data\['train'\]"):
        Prompts.of(datasets.DatasetDict({"train": data}))
    with pytest.raises(UserError, match="no end"):
        Prompts.of(data.to_iterable_dataset())


def test_a_prompt_that_stands_there_twice_is_drawn_once() -> None:
    chat = [{"role": "user", "content": "a"}]
    rows: list[Any] = [
        "a", {"prompt": "b", "answer": "x"}, {"prompt": "b", "answer": "y"}, {"messages": chat}, [1, 2], "a", "c",
        {"prompt": "a", "group": "g"}, {"messages": chat}, [1, 2], {"prompt": "d", "group": "g"},
    ]  # fmt: skip
    prompts = Prompts.of(rows)
    repeated = {place: f"repeats of prompt {place}" for place in (0, 1, 3, 4)}
    assert prompts.cluster_names == [
        repeated[0], repeated[1], repeated[1], repeated[3], repeated[4], repeated[0], None, "g", repeated[3],
        repeated[4], "g",
    ]  # fmt: skip
    assert prompts.clusters.tolist() == [0, 1, 1, 2, 3, 0, 4, 5, 2, 3, 5]
    assert list(prompts.groups) == ["g"]  # what was given, and no more


def test_a_sample_is_seeded_in_order_and_what_a_command_reads() -> None:
    rows = Prompts.of([f"the fox number {number}" for number in range(12)])
    drawn = rows.sample(5, seed=2)
    places = [list(rows).index(row) for row in drawn]
    assert len(drawn) == 5 and places == sorted(places)
    assert drawn == rows.sample(5, seed=2) != rows.sample(5, seed=3)
    assert rows.sample(12) is rows and rows.sample(99) is rows
    with pytest.raises(UserError, match="give a limit of 1 or more"):
        rows.sample(0)
