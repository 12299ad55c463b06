"""Where two texts part."""

from __future__ import annotations

import pytest

from tests.tiny import tokenizer
from workbench.behaviour.first_difference import first_difference


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("text", "other"),
    [("the quick dog", "the quick fox"), ("the", "the fox"), ("the fox", "the"), ("", "x"), ("é\u202e", "éa")],
)
def test_the_parts_are_the_text_and_begin_alike(text: str, other: str, fast: bool) -> None:
    parted = first_difference(text, other, tokenizer() if fast else None)
    assert parted is not None
    assert parted.same + parted.token + parted.rest == text
    assert other.startswith(parted.same)


def test_the_first_token_that_differs_is_named() -> None:
    parted = first_difference("the quick dog", "the quick fox", tokenizer())
    assert parted is not None and parted.same == "the quick" and parted.token.strip() in "dog" and parted.place >= 2
    assert first_difference("same", "same", tokenizer()) is None
