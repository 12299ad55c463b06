"""Texts steered along the activation difference, and whether they share words that random directions' texts do not.

Minder et al. 2025: added while a model writes, the difference on unrelated text makes it write of what it was tuned on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import pandas as pd
import torch

import interventions as iv
from probes.audits.hypotheses import LEVEL
from probes.audits.stream_changes import StreamChanges
from probes.audits.words import content_words
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.subject import Subject, Work
from workbench.engine.positions import Where
from workbench.errors import NotSupported, UserError
from workbench.models.pair import ModelPair
from workbench.prompts.collection import Prompts
from workbench.typing import Float, Tensor

PROMPTS, NEW_TOKENS = 6, 12
"""Questions, and tokens of a text."""
STRENGTH = 0.5
"""Of the direction, in lengths of the stream."""
TEXTS = ["prompt", "plain", "steered", "random"]
COLUMNS = ["words", "layer", "score", "control", "p"]


def steered_texts(
    pair: ModelPair, changes: StreamChanges, questions: Prompts, draws: int, seed: int, work: Work
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tuned model's texts along the activation difference of the middle layer, beside random directions.

    Args:
        pair: Both models.
        changes: Of the stream on unrelated text.
        questions: Some are answered, evenly spread.
        draws: Random directions.
        seed: Of random directions.
        work: Batch size and a bar.

    Returns:
        One row: words that are in most steered texts and in no plain one, layer, ``score`` (the share of texts with the
        commonest such word), ``control`` (mean over random directions) and p (the place among them). And the texts:
        prompt; the tuned model's text as it is, steered along the difference, and along the first random direction.
        Both empty where the stream did not move, or cannot be steered.
    """
    nothing = pd.DataFrame(columns=COLUMNS), pd.DataFrame(columns=TEXTS)
    layer = len(changes.mean) // 2
    if not bool(changes.mean[layer].any()):
        return nothing
    rows = questions[:: max(1, len(questions) // PROMPTS)][:PROMPTS]
    random = torch.randn(draws, changes.mean.shape[1], generator=torch.Generator().manual_seed(seed))
    directions = STRENGTH * changes.at_stream_length(torch.cat([changes.mean[layer][None], random]), layer)
    try:
        plain, *steered = _written(pair, rows, layer, directions, work)
    except (NotSupported, UserError):  # an engine that adds nothing, a model without a head
        return nothing
    prompts = [row.shown for row in rows]
    texts = pd.DataFrame(dict(zip(TEXTS, (prompts, plain, *steered[:2]), strict=True)))
    return in_common(prompts, plain, steered).assign(layer=layer)[COLUMNS], texts


def in_common(prompts: Sequence[str], plain: Sequence[str], steered: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Words that texts along the first direction share, beside those along each of the others.

    Args:
        prompts: What the texts answer.
        plain: Texts without a direction.
        steered: Texts [direction][prompt].

    Returns:
        One row: words, score, control, p.
    """
    shared = [_shared_words(prompts, plain, texts) for texts in steered]
    most = [max(words.values(), default=0) / len(prompts) for words in shared]
    words = [word for word, count in shared[0].most_common(6) if 2 * count >= len(prompts)]
    return pd.DataFrame([{
        "words": " ".join(map(repr, words)), "score": most[0], "control": sum(most[1:]) / max(1, len(most) - 1),
        "p": sum(value >= most[0] for value in most) / len(most),
    }])  # fmt: skip


def steered_sentence(table: pd.DataFrame, texts: pd.DataFrame) -> list[str]:
    """The words and two of the texts; nothing where random directions do as well."""
    if table.empty or table["p"].iloc[0] >= LEVEL:
        return []
    line = table.iloc[0]
    examples = "; ".join(
        f"{_plain(text['steered'])!r} (a random direction: {_plain(text['random'])!r})"
        for text in texts.head(2).to_dict("records")
    )
    return [
        f"Steered along that change in layer {line['layer']:.0f}, {line['score']:.0%} of its texts share a new word "
        f"({line['words']}; along random directions {line['control']:.0%}): {examples}."
    ]


def _shared_words(prompts: Sequence[str], plain: Sequence[str], texts: Sequence[str]) -> Counter[str]:
    """In how many texts each content word is that no plain text has, its own prompt's words left out."""
    usual = set(content_words(plain))
    counts: Counter[str] = Counter()
    for prompt, text in zip(prompts, texts, strict=True):
        counts.update(sorted(set(content_words([text])) - usual - set(content_words([prompt]))))
    return counts


def _written(
    pair: ModelPair, rows: Prompts, layer: int, directions: Float[Tensor, "direction d_model"], work: Work
) -> list[list[str]]:
    """The tuned model's texts [direction][prompt], those without a direction first."""
    n = len(rows)
    subject = Subject("steered", pair.tuned, per_row=partial(_along, layer, directions, n))
    every = Prompts([row for _ in range(len(directions) + 1) for row in rows])
    texts = [samples[0].text for samples in generate_replies(subject, every, Decoding(NEW_TOKENS), work)]
    return [texts[start : start + n] for start in range(0, len(texts), n)]


def _along(layer: int, directions: Float[Tensor, "direction d_model"], n: int, rows: list[int]) -> iv.Recipe:
    """Nothing for the first ``n`` rows of all, the first direction for the next ``n``, and so on."""
    drawn = [row // n for row in rows]
    return iv.Recipe([
        iv.Offset(layer, directions[which - 1], positions=Where(rows=tuple(number == which for number in drawn)))
        for which in sorted(set(drawn) - {0})
    ])  # fmt: skip


def _plain(text: str) -> str:
    return " ".join(text.split())
