"""What a ranking of training rows must beat: chance, shared words (BM25), and similar embeddings."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import torch
from torch.nn.functional import normalize

from workbench.models.adapted import AdaptedModel
from workbench.prompts.collection import Prompts
from workbench.prompts.row import Prompt
from workbench.recording.record_pair import record
from workbench.typing import Float

K1, B = 1.2, 0.75


def words_of(row: Prompt) -> list[str]:
    """The lower-case words of a row and its answer."""
    return re.findall(r"\w+", f"{row.shown} {row.answer or ''}".lower())


def bm25(rows: Prompts, queries: Prompts) -> Float[np.ndarray, "row query"]:
    """Okapi BM25 (Robertson & Zaragoza 2009) of every row for every query, on prompt and answer."""
    texts = [Counter(words_of(row)) for row in rows]
    lengths = np.array([sum(counts.values()) for counts in texts], dtype=np.float64)
    usual = K1 * (1 - B + B * lengths / max(lengths.mean(), 1e-12))
    scores = np.zeros((len(rows), len(queries)))
    for number, query in enumerate(queries):
        for word in set(words_of(query)):
            counts = np.array([text[word] for text in texts], dtype=np.float64)
            holding = int((counts > 0).sum())
            rarity = np.log(1 + (len(rows) - holding + 0.5) / (holding + 0.5))
            scores[:, number] += rarity * counts * (K1 + 1) / (counts + usual)
    return scores


def embedding_similarity(model: AdaptedModel, rows: Prompts, queries: Prompts) -> Float[np.ndarray, "row query"]:
    """Cosines of mean residuals of the middle layer over prompt and answer, centred on the rows' mean."""
    layer = model.n_layers // 2
    states = []
    for texts in (rows, queries):
        recorded = record(model, _with_answers(texts), "resid_post", layers=[layer], positions="all")
        values = recorded[recorded.roles[0]]["resid_post", layer][:].float()
        number = torch.from_numpy(np.array(recorded.index["prompt"]))
        sums = torch.zeros(len(texts), values.shape[1]).index_add_(0, number, values)
        states.append(sums / torch.bincount(number, minlength=len(texts)).clamp_min(1)[:, None])
    centre = states[0].mean(0)
    return np.asarray((normalize(states[0] - centre, dim=1) @ normalize(states[1] - centre, dim=1).T).numpy())


def _with_answers(rows: Prompts) -> Prompts:
    return Prompts.of([f"{row.shown} {row.answer or ''}".strip() for row in rows], chat=False)
