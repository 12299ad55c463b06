"""Objects in boxes: "The apple is in Box F, the bell is in Box A. Box F contains the" -> apple."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.errors import UserError
from workbench.prompts.answers import answer_token
from workbench.prompts.encode import token_ids
from workbench.prompts.row import Prompt

OBJECTS = tuple(
    "apple bell cup drum egg fan glass hat ice jar key lamp map nut oil pen queen ring shoe tie vase watch box yarn "
    "bread camera brick cross coat dress fish game guitar hammer letter machine mirror note plant radio rose stone "
    "suit train tree wire book boot bottle milk painting phone plate shell".split()
)
LABELS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@dataclass(frozen=True)
class Scene:
    """Which object is in which box, and which box is asked about."""

    objects: tuple[str, ...]
    labels: tuple[str, ...]
    query: int
    """Number of the box that is asked about, or -1 for ``asked``, a label no box has."""
    asked: str = ""
    spaced: bool = False
    """Whether punctuation stands as words of its own, for tokenizers of whole words."""

    @property
    def label(self) -> str:
        return self.labels[self.query] if self.query >= 0 else self.asked

    @property
    def pieces(self) -> list[str]:
        """The text up to and with each box label, in order; the last one ends with the label that is asked about."""
        gap = " " if self.spaced else ""
        pieces, text = [], ""
        for number, (thing, label) in enumerate(zip(self.objects, self.labels, strict=True)):
            start = "The" if number == 0 else f"{gap}, the"
            text += f"{start} {thing} is in Box {label}"
            pieces.append(text)
        pieces.append(f"{text}{gap}. Box {self.label}")
        return pieces

    @property
    def text(self) -> str:
        return f"{self.pieces[-1]} contains the"


def label_places(scene: Scene, tokenizer: Any) -> list[int]:
    """Where the label of each box, and last the label that is asked about, stands: its last token, from the end.

    Raises :class:`UserError` where the tokenizer has a label in one token with what follows it.
    """
    whole = token_ids(scene.text, tokenizer, rendered_chat=False)
    places = []
    for piece in scene.pieces:
        before = token_ids(piece, tokenizer, rendered_chat=False)
        ends = getattr(tokenizer, "eos_token_id", None)
        if before and before[-1] == ends and whole[-1] == ends:
            raise UserError("This tokenizer ends every prompt with its end-of-text token: load it without.")
        if whole[: len(before)] != before:
            raise UserError(
                f"This tokenizer joins the label at the end of {piece[-12:]!r} with what follows it, so it has no "
                "token of its own: use spaced=True."
            )
        places.append(len(before) - 1 - len(whole))
    return places


class Words:
    """Objects and labels that a tokenizer tells apart, and random scenes of them."""

    def __init__(
        self, tokenizer: Any, objects: Sequence[str], labels: Sequence[str], boxes: int, *, spaced: bool, seed: int
    ) -> None:
        """Raises :class:`UserError` when fewer than ``2 * boxes`` objects or labels are left."""
        if boxes < 3:
            raise UserError(f"{boxes} boxes leave no room for a box that is not asked about: use at least 3.")
        self.boxes, self.spaced = boxes, spaced
        self.random = np.random.default_rng(seed)
        probe = Scene((objects[0],), (labels[0],), 0, spaced=spaced)
        self.objects = _told_apart(
            objects, lambda word: answer_token(Prompt(prompt=probe.text, answer=word), tokenizer), tokenizer
        )
        self.labels = _told_apart(
            labels, lambda name: token_ids(f"Box {name}", tokenizer, rendered_chat=False)[-1], tokenizer
        )
        for what, left in (("objects", self.objects), ("box labels", self.labels)):
            if len(left) < 2 * boxes:
                raise UserError(
                    f"This tokenizer tells {len(left)} {what} apart by one token and {boxes} boxes need {2 * boxes}: "
                    f"give other {what.split()[-1]}, or use at most {len(left) // 2} boxes."
                )

    def two(self) -> tuple[list[str], list[str], list[str], list[str]]:
        """Objects and labels of two scenes that share none."""
        things = self.random.choice(self.objects, 2 * self.boxes, replace=False).tolist()
        names = self.random.choice(self.labels, 2 * self.boxes, replace=False).tolist()
        return things[: self.boxes], things[self.boxes :], names[: self.boxes], names[self.boxes :]

    def apart(self, count: int) -> list[int]:
        """``count`` different box numbers."""
        return [int(box) for box in self.random.choice(self.boxes, count, replace=False)]

    def scene(self, objects: Sequence[str], labels: Sequence[str], query: int, box_asked: str = "") -> Scene:
        return Scene(tuple(objects), tuple(labels), query, box_asked, self.spaced)


def _told_apart(words: Sequence[str], token_of: Any, tokenizer: Any) -> list[str]:
    """The first word for each token, without those the tokenizer does not know."""
    labels: dict[int, str] = {}
    for word in words:
        token = token_of(word)
        if token != tokenizer.unk_token_id:
            labels.setdefault(token, word)
    return list(labels.values())
