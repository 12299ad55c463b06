"""Prompts that are token ids: where they come from, that they stay as they are, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from probes import patching
from tests.tiny import VOCAB, tiny_model, tokenizer, tuned_copy
from workbench import load_pair
from workbench.behaviour import behaviour_diff, self_critique
from workbench.errors import UserError
from workbench.models.pair import ModelPair
from workbench.prompts import Prompts
from workbench.prompts.answers import answer_token, continuation_ids
from workbench.prompts.encode import encode, pad_left, readable, render
from workbench.recording.record_pair import record

TEXTS = ["the quick brown fox", "jumps", "over the lazy dog the"]


def ids_of_texts() -> list[list[int]]:
    return [tokenizer()(text)["input_ids"] for text in TEXTS]


def padded(side: str) -> Any:
    tok = tokenizer()
    return tok(TEXTS, padding=True, padding_side=side, return_tensors="pt")


def dataset(columns: dict[str, Any]) -> Any:
    return pytest.importorskip("datasets").Dataset.from_dict(columns)


SOURCES: dict[str, Callable[[], Any]] = {
    "lists": ids_of_texts,
    "tuples": lambda: tuple(map(tuple, ids_of_texts())),
    "arrays": lambda: [np.array(ids) for ids in ids_of_texts()],
    "tensors": lambda: [torch.tensor(ids) for ids in ids_of_texts()],
    "numpy numbers": lambda: [[np.int64(token) for token in ids] for ids in ids_of_texts()],
    "objects": lambda: [{"input_ids": ids} for ids in ids_of_texts()],
    "frame": lambda: pd.DataFrame({"input_ids": ids_of_texts()}),
    "data set": lambda: dataset({"input_ids": ids_of_texts()}),
    "torch data set": lambda: dataset({"input_ids": ids_of_texts()}).with_format("torch"),
    "padded data set": lambda: dataset({key: padded("right")[key].tolist() for key in ("input_ids", "attention_mask")}),
    "tokenizer's lists": lambda: tokenizer()(TEXTS),
    "tokenizer's tensors, padded right": lambda: padded("right"),
    "tokenizer's tensors, padded left": lambda: padded("left"),
    "encoded batch": lambda: pad_left(ids_of_texts(), 0),
}


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    base = tiny_model("llama")
    return load_pair(base, tuned_copy(base), tokenizer=tokenizer())


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_rows(source: str) -> None:
    rows = Prompts.of(SOURCES[source]())
    assert rows == Prompts.of(ids_of_texts())
    assert [row.input_ids for row in rows] == [tuple(ids) for ids in ids_of_texts()]
    assert rows.hash == Prompts.of(ids_of_texts()).hash != Prompts.of(TEXTS).hash


def test_a_dict_of_columns_keeps_its_answers() -> None:
    rows = Prompts.of(
        {"input_ids": [[5, 6], [7]], "answer": ["a", "b"], "label": np.array([0, 1]), "topic": ["x", "y"]}
    )
    assert [(row.input_ids, row.answer, row.label, row.columns) for row in rows] == [
        ((5, 6), "a", 0, {"topic": "x"}),
        ((7,), "b", 1, {"topic": "y"}),
    ]
    with pytest.raises(UserError, match="'answer' has 1 rows and 'input_ids' has 2; give one entry for each row"):
        Prompts.of({"input_ids": [[5, 6], [7]], "answer": ["a"]})


def test_what_a_tokenizer_adds_is_no_column() -> None:
    rows = Prompts.of(tokenizer()(TEXTS, return_offsets_mapping=True, return_length=True))
    assert rows == Prompts.of(ids_of_texts())


def test_one_row_and_a_tensor_of_rows() -> None:
    assert Prompts.of([5, 6, 7]) == Prompts.of(torch.tensor([5, 6, 7])) == Prompts.of([[5, 6, 7]])
    assert Prompts.of(torch.tensor([[5, 6], [7, 8]])) == Prompts.of([[5, 6], [7, 8]])
    assert Prompts.of(np.array([[5, 6], [7, 8]])) == Prompts.of([[5, 6], [7, 8]])


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_files_keep_ids_and_columns(tmp_path: Path, ending: str) -> None:
    items = [{"input_ids": ids, "answer": "dog", "group": "a", "source": "x"} for ids in ids_of_texts()]
    path = tmp_path / f"ids.{ending}"
    if ending == "csv":
        pd.DataFrame([{**item, "input_ids": json.dumps(item["input_ids"])} for item in items]).to_csv(path, index=False)
    elif ending == "parquet":
        pd.DataFrame(items).to_parquet(path)
    else:
        path.write_text(json.dumps(items) if ending == "json" else "\n".join(map(json.dumps, items)))
    rows = Prompts.load(path)
    assert rows == Prompts.of(items)
    assert Prompts.load(rows.save(tmp_path / "again.jsonl")) == rows
    assert list(rows.frame().columns) == ["input_ids", "answer", "group", "source"]


def test_ids_are_encoded_as_they_are_among_texts_and_chats() -> None:
    tok = tokenizer()
    bos = tok.bos_token_id
    mixed: list[Any] = [[bos, bos, 7], "the fox", [9, 8], {"input_ids": [2, 2], "label": "x"}]
    assert encode(mixed, tok) == [[bos, bos, 7], tok("the fox")["input_ids"], [9, 8], [2, 2]]


def test_a_column_of_masks_belongs_to_ids_only() -> None:
    (row,) = Prompts.of([{"prompt": "a", "attention_mask": [1, 1]}])
    assert row.columns == {"attention_mask": [1, 1]}
    (row,) = Prompts.of([{"input_ids": [0, 0, 5], "attention_mask": [0, 0, 1]}])
    assert row.input_ids == (5,) and not row.columns


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([[1, 2], []], "Row 1 is empty; remove the row"),
        ([{"input_ids": []}], "Row 0 has no token ids"),
        ([{"input_ids": [3, 4], "attention_mask": [0, 0]}], "Row 0 has no token ids"),
        ([{"input_ids": [3, 4], "attention_mask": [1]}], "a 0 or 1 for each of the 2 token ids"),
        ([{"input_ids": [3, 4.5]}], "Row 0: 'input_ids' must be a list of token ids"),
        ([{"input_ids": [3, True]}], "Row 0: 'input_ids' must be a list of token ids"),
        ([{"input_ids": "3 4"}], "Row 0: 'input_ids' must be a list of token ids"),
        ([{"input_ids": 3}], "Row 0: 'input_ids' must be a list of token ids"),
        ([[3, -100]], "token id -100"),
        ([[1.5, 2.5]], "Row 0 is list; expected text"),
        (torch.tensor([[1.5, 2.5]]), "Row 0 is Tensor; expected text"),
        ([{"input_ids": [3], "prompt": "a"}], "both 'prompt' and 'input_ids'"),
        ([{"input_ids": [3], "contrast": "a"}], "'contrast' must be a list of token ids"),
        ([{"prompt": "a", "contrast": [3]}], "'contrast' must be text"),
        ({"input_ids": [[3], [4]], "attention_mask": [[1]]}, "'attention_mask' has 1 rows and 'input_ids' has 2"),
    ],
)
def test_what_are_no_token_ids(source: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Prompts.of(source)


def test_ids_of_another_tokenizer_and_too_long_rows_are_refused(pair: ModelPair) -> None:
    with pytest.raises(UserError, match=f"Prompt 1 has the token id {VOCAB + 5} and this tokenizer knows 0 to"):
        record(pair, ["the", [1, VOCAB + 5]], ["resid_post"])
    with pytest.raises(UserError, match="Prompt 0 has 300 tokens and the limit is 256"):
        record(pair, [[5] * 300], ["resid_post"])


def test_padding_without_its_mask_is_refused() -> None:
    tok = tokenizer()
    for side, how in (("left", "Prompt 0 begins"), ("right", "Prompt 0 ends")):
        with pytest.raises(UserError, match=f"{how} with the padding token 0"):
            encode(padded(side)["input_ids"], tok)
        assert encode(padded(side), tok) == ids_of_texts()
    assert encode([[1, 0, 5]], tok) == [[1, 0, 5]]  # inside, it is the user's affair
    ending = tok.__class__(tokenizer_object=tok.backend_tokenizer, pad_token="<eos>", eos_token="<eos>")
    assert encode([[5, ending.eos_token_id]], ending) == [[5, ending.eos_token_id]]


def test_recording_ids_equals_recording_their_text(pair: ModelPair, tmp_path: Path) -> None:
    options: dict[str, Any] = {"sites": ["z", "resid_post"], "positions": "all"}
    texts, ids = record(pair, TEXTS, **options), record(pair, padded("right"), **options)
    stored = record(pair, ids_of_texts(), store=tmp_path / "acts", **options)
    for role in texts.roles:
        for site in texts.sites:
            assert torch.equal(texts[role][site], ids[role][site])
            assert torch.equal(texts[role][site], stored[role][site].load())
    pd.testing.assert_frame_equal(texts.index, ids.index)


def test_an_answer_after_ids_is_the_one_after_their_text() -> None:
    tok = tokenizer()
    for ids, text in zip(ids_of_texts(), TEXTS, strict=True):
        given, plain = Prompts.of([ids])[0], Prompts.of([text])[0]
        assert continuation_ids(given, tok, "lazy dog") == continuation_ids(plain, tok, "lazy dog")
        assert render(given, tok) == readable(given, tok) == tok.decode(ids)
    (unusual,) = Prompts.of([[*tok("the")["input_ids"], *tok.convert_tokens_to_ids(["q", "u"])]])
    assert unusual.input_ids != tuple(tok(render(unusual, tok), add_special_tokens=False)["input_ids"])
    assert answer_token(unusual, tok, "dog") == continuation_ids(Prompts.of(["x"])[0], tok, "dog")[0]


def test_contrast_pairs_of_ids() -> None:
    rows = Prompts.of([{"input_ids": [1, 5], "contrast": [1, 6], "answer": "a", "distractor": "b"}])
    (other,) = rows.contrasts
    assert (other.input_ids, other.answer, other.distractor) == ((1, 6), "b", "a")


def test_patching_and_behaviour_take_ids(pair: ModelPair) -> None:
    tok = tokenizer()
    rows = [{"prompt": text, "answer": "dog", "distractor": "fox"} for text in TEXTS]
    as_ids = [
        {"input_ids": tok(row["prompt"])["input_ids"], **{key: row[key] for key in ("answer", "distractor")}}
        for row in rows
    ]
    options: dict[str, Any] = {"sites": "heads", "positions": "last", "source": "tuned", "target": "base"}
    np.testing.assert_array_equal(*(patching(pair, one, **options).effects for one in (rows, as_ids)))
    texts, ids = (behaviour_diff(pair, one, metrics=["prob", "kl"], seed=0) for one in (rows, as_ids))
    pd.testing.assert_frame_equal(texts.frame(), ids.frame())
    said: dict[str, Any] = {"answers": ["dog"] * len(rows), "yes": "dog", "no": "fox"}
    np.testing.assert_array_equal(*(self_critique(pair.tuned, one, **said) for one in (rows, as_ids)))


def test_an_ids_row_is_shown_whole() -> None:
    assert str(Prompts.of([5, 6, 7])[0]) == "token ids 5 6 7"
    assert "token ids 5 6 7" in repr(Prompts.of([5, 6, 7]))
