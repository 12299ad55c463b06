"""What is read from generated texts: refusal, repetition, the answer, and where two texts part."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.behaviour.generation import Reply
from workbench.behaviour.metrics import TEXT
from workbench.behaviour.refusals import is_refusal
from workbench.behaviour.scorers import Behaviour
from workbench.errors import UserError
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import readable
from workbench.prompts.row import Prompt

TextRule = Callable[[str, Prompt], Any]
"""Reads a text (and the prompt it answers): true or false, or a number."""
Replies = Sequence[Sequence[Reply]]
"""[prompt][sample]; sample 0 is greedy."""

NGRAM = 3
"""Length of the n-grams that repetition counts, in tokens."""


def repetition(tokens: Sequence[int], n: int = NGRAM) -> float:
    """Share of the n-grams of ``tokens`` that occurred before: 1 - distinct-n; 0 for fewer than two n-grams."""
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(tokens: Sequence[int]) -> float:
    """Distinct tokens over tokens (distinct-1, Li et al. 2016); 1 for an empty text."""
    return len(set(tokens)) / len(tokens) if tokens else 1.0


def normalised(text: str) -> str:
    """Lower case, single spaces, no punctuation at either end."""
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'")


def exact_match(text: str, answer: str) -> bool:
    """Whether the text is the answer, case, spaces and punctuation at the ends aside."""
    return normalised(text) == normalised(answer)


def answered(text: str, answer: str) -> bool:
    """Whether the text begins with the answer, as whole words."""
    wanted = normalised(answer)
    return re.match(rf"{re.escape(wanted)}(?!\w)", normalised(text)) is not None if wanted else False


def contained(text: str, answer: str) -> bool:
    """Whether the text holds the answer anywhere, as whole words, case aside: "The capital is Paris." holds "Paris"."""
    wanted = normalised(answer)
    return re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", normalised(text)) is not None if wanted else False


def common_tokens(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts share before the first that differs; the end of a text counts as a token."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (token, other) in enumerate(pairs) if token != other), min(len(first), len(second)))


def first_divergence(first: Sequence[int], second: Sequence[int]) -> int | None:
    """Index of the first token at which two texts differ; None where they are the same."""
    return None if tuple(first) == tuple(second) else common_tokens(first, second)


def score_texts(
    replies: Replies,
    base: Replies,
    prompts: Prompts,
    metrics: Sequence[str],
    refusal: TextRule = is_refusal,
    behaviours: Sequence[Behaviour] = (),
) -> pd.DataFrame:
    """The metrics of :data:`TEXT` and behaviours, one row per prompt: of the greedy text, or the mean of the sampled
    ones."""
    wanted = [metric for metric in TEXT if metric in metrics]
    if {"exact_match", "answered", "contained"} & set(wanted):
        for number, row in enumerate(prompts):
            if not row.answer:
                raise UserError(f"Prompt {number} has no answer; every row needs one to be matched with.")
    lines, columns = [], [*wanted, *(behaviour.name for behaviour in behaviours)]
    for row, own, theirs in zip(prompts, replies, base, strict=True):
        sampled = slice(1, None) if len(own) > 1 else slice(0, 1)
        each = [
            [
                *(_score(metric, reply, other, row, refusal) for metric in wanted),
                *(behaviour(reply.text, row) for behaviour in behaviours),
            ]
            for reply, other in zip(own[sampled], theirs[sampled], strict=True)
        ]
        lines.append(np.mean(np.array(each, dtype=np.float64).reshape(len(each), len(columns)), axis=0))
    return pd.DataFrame(lines, columns=columns, index=range(len(lines)))


def _score(metric: str, reply: Reply, base: Reply, row: Prompt, refusal: TextRule) -> float:
    match metric:
        case "exact_match":
            return float(exact_match(reply.text, row.answer or ""))
        case "answered":
            return float(answered(reply.text, row.answer or ""))
        case "contained":
            return float(contained(reply.text, row.answer or ""))
        case "refusal":
            return float(refusal(reply.text, row))
        case "repetition":
            return repetition(reply.content)
        case "distinct":
            return distinct(reply.content)
        case "same_as_base":
            return float(reply.ids == base.ids)
        case "common_tokens":
            return float(common_tokens(reply.ids, base.ids))
        case _:
            return float(len(reply.content))


def texts_table(
    replies: Mapping[str, Replies], prompts: Prompts, tokenizer: Any, refusal: TextRule = is_refusal
) -> pd.DataFrame:
    """All texts side by side, one line per prompt, sample and model.

    ``sample`` 0 is greedy. ``from_base`` and ``from_tuned`` hold the index of the first token that differs from that
    model's text (missing: none), ``at_base`` and ``at_tuned`` the sign in ``text`` where it begins.
    """
    lines = []
    for number, row in enumerate(prompts):
        question = readable(row, tokenizer)
        for sample in range(len(next(iter(replies.values()))[number])):
            texts = {model: reply[number][sample] for model, reply in replies.items()}
            for model, text in texts.items():
                line = {"prompt": number, "asked": question, "answer": row.answer, "sample": sample, "model": model}
                line |= {"text": text.text, "new_tokens": len(text.content), "ended": text.ended}
                line |= {"refused": bool(refusal(text.text, row)), "repetition": repetition(text.content)}
                for side in ("base", "tuned"):
                    line |= _parting(text, texts[side], side, tokenizer) if side in texts else {}
                lines.append(line)
    return pd.DataFrame(lines)


def _parting(reply: Reply, other: Reply, side: str, tokenizer: Any) -> dict[str, Any]:
    place = first_divergence(reply.ids, other.ids)
    if place is None:
        return {f"from_{side}": np.nan, f"at_{side}": np.nan}
    before = tokenizer.decode(list(reply.ids[:place]), skip_special_tokens=True)
    at = next(
        (n for n, (a, b) in enumerate(zip(before, reply.text, strict=False)) if a != b),
        min(len(before), len(reply.text)),
    )
    return {f"from_{side}": float(place), f"at_{side}": float(at)}
