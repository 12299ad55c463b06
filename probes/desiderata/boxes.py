"""Prompts for entity tracking: which box holds what, and what must follow when one variable alone is moved.

The task of Prakash et al. 2024 ("Fine-tuning enhances existing mechanisms"), after Kim and Schuster 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from probes.desiderata.scenes import LABELS, OBJECTS, Scene, Words, label_places
from workbench.prompts import Prompts

POSITIONAL, OBJECT_VALUE, BOX_LABEL = "positional", "object_value", "box_label"


def box_prompts(
    tokenizer: Any,
    n: int = 100,
    boxes: int = 7,
    *,
    objects: Sequence[str] = OBJECTS,
    labels: Sequence[str] = LABELS,
    spaced: bool = False,
    seed: int = 0,
) -> Prompts:
    """``n`` scenes with a random box asked about, for path patching and circuits.

    ``answer`` is the object in that box, ``distractor`` one of another box, ``contrast`` another scene that asks for a
    box it does not have. The columns ``query_box`` and ``previous_box`` (and ``contrast_...``) say where the label that
    is asked about stands, at the end and where its box was described, counted from the end. ``spaced``: punctuation as
    words of its own, for tokenizers of whole words.

    Raises :class:`UserError` when the tokenizer tells too few objects or labels apart by one token.
    """
    words = Words(tokenizer, objects, labels, boxes, spaced=spaced, seed=seed)
    rows = []
    for _ in range(n):
        things, others, names, foreign = words.two()
        query, other = words.apart(2)
        clean = words.scene(things, names, query)
        # The corrupted scene asks for a label of the clean one, which none of its own boxes has.
        corrupted = words.scene(others, foreign, -1, box_asked=names[other])
        rows.append(_row(clean, corrupted, query, query, things[query], things[other], tokenizer))
    return Prompts.of(rows, chat=False)


def box_desiderata(
    tokenizer: Any,
    n: int = 200,
    boxes: int = 7,
    *,
    objects: Sequence[str] = OBJECTS,
    labels: Sequence[str] = LABELS,
    spaced: bool = False,
    seed: int = 0,
) -> dict[str, Prompts]:
    """Three desiderata of ``n`` rows each: base prompt, source (``contrast``), and the ``answer`` that must follow in
    the base if exactly one variable of the source is put there; ``distractor`` is the base's own answer.

    ``positional``: the base's object in the box with the source's number. ``object_value``: the source's object.
    ``box_label``: the base's object in the box with the source's label. The two prompts share no objects, and no labels
    but the one that ``box_label`` moves; numbers and labels asked for always differ, so that no variable imitates
    another. Columns and errors as in :func:`box_prompts`.
    """
    words = Words(tokenizer, objects, labels, boxes, spaced=spaced, seed=seed)
    sets: dict[str, list[Any]] = {POSITIONAL: [], OBJECT_VALUE: [], BOX_LABEL: []}
    for _ in range(n):
        for name, rows in sets.items():
            things, others, names, foreign = words.two()
            own, theirs, third = words.apart(3)
            if name == BOX_LABEL:
                foreign[theirs] = names[third]  # the source asks for a label that the base has at another number
            base, source = words.scene(things, names, own), words.scene(others, foreign, theirs)
            answer = {POSITIONAL: things[theirs], OBJECT_VALUE: others[theirs], BOX_LABEL: things[third]}[name]
            rows.append(_row(base, source, own, theirs, answer, things[own], tokenizer))
    return {name: Prompts.of(rows, chat=False) for name, rows in sets.items()}


def _row(  # what is asked of one pair of scenes
    prompt: Scene, contrast: Scene, at: int, contrast_at: int, answer: str, distractor: str, tokenizer: Any
) -> dict[str, Any]:
    places, contrast_places = label_places(prompt, tokenizer), label_places(contrast, tokenizer)
    return {
        "prompt": prompt.text, "contrast": contrast.text, "answer": answer, "distractor": distractor,
        "query_box": places[-1], "previous_box": places[at],
        "contrast_query_box": contrast_places[-1], "contrast_previous_box": contrast_places[contrast_at],
    }  # fmt: skip
