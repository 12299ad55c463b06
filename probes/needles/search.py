"""Retrieval heads from files: a text to hide needles in, and the needles."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from probes.call_settings import plain
from probes.needles.heads import RetrievalHeads, retrieval_heads
from probes.needles.trials import QUESTION, Needle, check_template, needle_trials
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import method
from workbench.progress import Progress


@method(
    "retrieval",
    group="heads",
    question="Which heads copy a needle from the context into the answer?",
    papers=("Retrieval Head Mechanistically Explains Long-Context Factuality",),
    cost="one generation per needle, length and depth, in each model",
    example="--haystack book.txt --needles needles.jsonl --lengths 128,256",
)
def needle_search(  # noqa: PLR0913 (a public call)
    pair: Any,
    haystack: Annotated[str | Path, As("file")],
    needles: Annotated[Sequence[Mapping[str, str] | Needle] | str | Path, As("needles")],
    *,
    lengths: Sequence[int] = (256, 512, 1024),
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    template: str = QUESTION,
    chat: bool | None = None,
    max_new_tokens: int = 50,
    seed: int = 0,
    progress: Progress | None = None,
) -> RetrievalHeads:
    """Which heads of both models copy a needle from the context into the answer.

    :func:`probes.needle_trials` and :func:`probes.retrieval_heads` in one call.

    Args:
        pair: Both models.
        haystack: A text file to hide the needles in.
        needles: Rows with question and text, or a JSONL file of them.
        lengths: Tokens of haystack.
        depths: Where the needle is hidden: 0 at the beginning, 1 at the end.
        template: The text behind the haystack, with {question} where the question goes.
        chat: Haystack and question as one user turn; default: where the tokenizer has a chat template.
        max_new_tokens: Tokens that an answer may have.
        seed: Of the decoys and intervals.

    Raises:
        UserError: A file is missing or holds no needles, the haystack is too short, or a model answers no trial.
    """
    check_template(template)
    text, hidden = as_needles(haystack, needles)
    where: dict[str, Any] = {"lengths": lengths, "depths": depths, "template": template, "chat": chat}
    trials = needle_trials(text, hidden, pair.tokenizer, **where)
    result = retrieval_heads(pair, trials, max_new_tokens=max_new_tokens, seed=seed, progress=progress)
    settings = {
        **result.provenance.settings, "haystack": str(haystack), "needles": [vars(needle) for needle in hidden],
        "lengths": plain(lengths), "depths": plain(depths), "template": template, "chat": chat,
        "max_new_tokens": max_new_tokens,
    }  # fmt: skip
    return replace(result, provenance=replace(result.provenance, probe="needle_search", settings=settings))


def as_needles(
    haystack: str | Path, needles: Sequence[Mapping[str, str] | Needle] | str | Path
) -> tuple[str, list[Needle]]:
    """The haystack's text and the needles. Raises :class:`UserError` where a file is missing or holds none."""
    text = _text(Path(haystack))
    hidden = read_needles(Path(needles)) if isinstance(needles, str | Path) else [_needle(row) for row in needles]
    return text, hidden


def _needle(row: Mapping[str, str] | Needle) -> Needle:
    return row if isinstance(row, Needle) else Needle(question=row["question"], text=row["text"])


def read_needles(path: Path) -> list[Needle]:
    """The needles of a JSONL file. Raises :class:`UserError` naming the first line that is none."""
    needles = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, text = row["question"], row["text"]
        except (ValueError, KeyError, TypeError):
            question = text = None
        if not (isinstance(question, str) and isinstance(text, str)):
            raise UserError(f"{path}, line {number} is no needle: give an object with question and text.")
        needles.append(Needle(question=question, text=text))
    if not needles:
        raise UserError(f"{path} holds no needles: give one object with question and text per line.")
    return needles


def _text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"There is no file {path}: check the path.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
