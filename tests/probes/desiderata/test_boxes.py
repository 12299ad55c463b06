"""Entity-tracking prompts: the answers follow from the text, and the columns point at the labels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import transformers as tf

from probes.desiderata.boxes import box_desiderata, box_prompts
from probes.desiderata.scenes import LABELS, OBJECTS
from workbench.errors import UserError
from workbench.organisms.vocabulary import word_tokenizer
from workbench.prompts import Prompts
from workbench.prompts.answers import answer_token
from workbench.prompts.encode import token_ids
from workbench.prompts.row import Prompt


def words() -> Any:
    return word_tokenizer([*OBJECTS, *LABELS, "The the is in Box contains , ."])


def read(text: str) -> tuple[dict[str, str], list[str], str]:
    """(label -> object, labels in order, the label asked for), read back from the text."""
    body, _, question = text.replace(" ,", ",").replace(" .", ".").rpartition(".")
    pairs = re.findall(r"[Tt]he (\w+) is in Box (\w)", body)
    asked = re.search(r"Box (\w) contains the$", question)
    assert asked is not None
    return {label: thing for thing, label in pairs}, [label for _, label in pairs], asked[1]


def token_at(text: str, place: int, tokenizer: Any) -> str:
    return tokenizer.decode([token_ids(text, tokenizer, rendered_chat=False)[place]]).strip()


@pytest.fixture(params=["words", "stories"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "words":
        return words()
    folder: Path = request.getfixturevalue("stories")
    return tf.AutoTokenizer.from_pretrained(folder)


def made(tokenizer: Any, **more: Any) -> dict[str, Any]:
    spaced = "apple" in tokenizer.get_vocab()
    return {"spaced": spaced, "boxes": 7 if spaced else 3, **more}


def test_prompts_ask_for_a_box_they_have_and_contrasts_for_one_they_have_not(tokenizer: Any) -> None:
    rows = box_prompts(tokenizer, 20, **made(tokenizer))
    asked = set()
    for row in rows:
        boxes, order, label = read(str(row.prompt))
        assert boxes[label] == row.answer and row.distractor in boxes.values() and row.distractor != row.answer
        theirs, their_order, missing = read(str(row.contrast))
        assert missing not in theirs and missing in boxes and missing != label
        assert not set(boxes.values()) & set(theirs.values())
        places = row.columns
        assert token_at(str(row.prompt), places["query_box"], tokenizer) == label
        assert token_at(str(row.prompt), places["previous_box"], tokenizer) == label
        assert places["previous_box"] < places["query_box"] < -1
        assert token_at(str(row.contrast), places["contrast_query_box"], tokenizer) == missing
        at = order.index(label)
        assert token_at(str(row.contrast), places["contrast_previous_box"], tokenizer) == their_order[at]
        asked.add(at)
    assert len(asked) > 1, "the box asked about is drawn"


def test_each_desideratum_moves_its_own_variable_alone(tokenizer: Any) -> None:
    found = box_desiderata(tokenizer, 20, **made(tokenizer))
    assert set(found) == {"positional", "object_value", "box_label"}
    for name, rows in found.items():
        for row in rows:
            base, order, label = read(str(row.prompt))
            source, their_order, theirs = read(str(row.contrast))
            own = {
                "positional": base[order[their_order.index(theirs)]],
                "object_value": source[theirs],
                "box_label": base.get(theirs),
            }
            assert row.answer == own.pop(name) and row.answer not in own.values(), "no other variable imitates it"
            assert row.distractor == base[label] != row.answer
            assert answer_token(row, tokenizer) != answer_token(row, tokenizer, row.distractor)
            assert token_at(str(row.contrast), row.columns["contrast_previous_box"], tokenizer) == theirs


def test_seeds_and_bad_requests() -> None:
    tokenizer = words()
    one, same, other = (box_prompts(tokenizer, 5, spaced=True, seed=seed) for seed in (0, 0, 1))
    assert one == same != other and isinstance(one, Prompts)
    with pytest.raises(UserError, match=r"no token of its own: use spaced=True|tells \d+ box labels apart"):
        box_prompts(tokenizer, 2)
    with pytest.raises(UserError, match="use at least 3"):
        box_prompts(tokenizer, 2, boxes=2)
    with pytest.raises(UserError, match=r"tells 4 objects apart .* at most 2 boxes"):
        box_prompts(tokenizer, 2, spaced=True, objects=OBJECTS[:4])
    with pytest.raises(UserError, match="tells 0 objects apart"):
        box_prompts(tokenizer, 2, spaced=True, objects=["zebra", "yacht"])
    assert answer_token(Prompt(prompt=str(one[0].prompt), answer=one[0].answer), tokenizer) > 3
