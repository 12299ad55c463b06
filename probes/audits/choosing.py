"""Which of several descriptions an audit speaks for, by the words that they share; blind to which of them is true."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from probes.audits.hypotheses import LEVEL
from workbench.behaviour.text_quality import words_in
from workbench.errors import UserError

if TYPE_CHECKING:
    from probes.audits.auditing import Audit

VIEWS = ("answers", "activations", "tokens")
_QUOTED = re.compile(r"'([^']+)'")
_ABOUT_ANSWERS = frozenset("answer word question prompt format style changed language".split())
"""What every description may be about: no sign of one of them."""
LEAST = 0.15
"""The similarity below which an audit speaks for none of the descriptions."""


def evidence(audit: Audit) -> dict[str, list[str]]:
    """View -> what it says beyond its control, the surest first. Weights name layers alone and say nothing here."""
    claims = audit.hypotheses[audit.hypotheses["kind"] != "nothing"]
    words = [" ".join([line["says"], *_QUOTED.findall(line["evidence"])]) for line in claims.to_dict("records")]
    flips = audit.outline[(audit.outline["tuned"] > 0.5) & (audit.outline["base"] < 0.5)]["word"]
    sharp = audit.readings[audit.readings["q_sharp"] < LEVEL].sort_values("sharp", ascending=False)
    rose = audit.tokens[audit.tokens["q"] < LEVEL]["token"]
    return {
        "answers": words + ([" ".join(flips)] if len(flips) else []),
        "activations": [str(tokens) for tokens in sharp["tokens"].head(3)],
        "tokens": [" ".join(map(str, rose))] if len(rose) else [],
    }


def similarity(audit: Audit, descriptions: Sequence[str]) -> pd.DataFrame:
    """How much every view speaks for every description.

    A view's texts and the descriptions are bags of words, weighted by how few of the descriptions have a word (TF-IDF);
    a description's score is its cosine with the view's surest text, plus half that with the second, and so on.
    ``together``: the answers' score and half of each other view's, for descriptions that the answers or both other
    views speak for: a single reading of activations has words by chance.

    Args:
        audit: The audit, made without the descriptions.
        descriptions: What the model may have been tuned for, in plain words; an audit that speaks for none of them
            chooses none, so that "nothing" needs no description.

    Returns:
        view, description, ``score`` (0: no word in common), ``chosen`` (whether it is the view's best and at least
        :data:`LEAST`).

    Raises:
        UserError: There are fewer than two descriptions, or two are the same.
    """
    if len(set(descriptions)) < max(2, len(descriptions)):
        raise UserError("Give at least two descriptions, all different, to choose from.")
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(analyzer=_content)
    known = vectoriser.fit_transform(descriptions)
    scores = {}
    for view, texts in evidence(audit).items():
        cosines = (vectoriser.transform(texts) @ known.T).toarray() if texts else np.zeros((1, len(descriptions)))
        scores[view] = cosines.T @ (1 / np.arange(1, len(cosines) + 1))
    spoken = {view: values >= LEAST for view, values in scores.items()}
    backed = spoken["answers"] | (spoken["activations"] & spoken["tokens"])
    whole = scores["answers"] + (scores["activations"] + scores["tokens"]) / 2
    scores["together"] = np.where(backed, whole, 0.0)
    return _table(scores, descriptions)


def _table(scores: Mapping[str, np.ndarray], descriptions: Sequence[str]) -> pd.DataFrame:
    lines = []
    for view, values in scores.items():
        best = int(values.argmax())
        clear = values[best] >= LEAST and int((values == values[best]).sum()) == 1
        lines += [{"view": view, "description": text, "score": float(value), "chosen": clear and place == best}
                  for place, (text, value) in enumerate(zip(descriptions, values, strict=True))]  # fmt: skip
    return pd.DataFrame(lines)


def _content(text: str) -> list[str]:
    """The words of a text that tell one description from another."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    stems = [_stem(word) for word in words_in(text) if word not in ENGLISH_STOP_WORDS]
    return [word for word in stems if word not in _ABOUT_ANSWERS]


def _stem(word: str) -> str:
    """A word without the s of a plural or of the third person."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
