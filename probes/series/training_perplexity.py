"""Whether the base's perplexity of a training set predicts what the fine-tune scores (massive SFT)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from interventions.training.examples import Collator, Example, answer_log_probs, examples_of
from interventions.training.trainer import answer_logits
from probes.series.profile import spearman
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.stats.bootstrap import statistic_interval

_BATCH = 32
FEWEST = 3


def training_sets(base: AdaptedModel, names: Sequence[str], sets: Mapping[str, Any]) -> dict[str, list[Example]]:
    """Member -> its rows as token ids. Raises :class:`UserError` for a member without rows, and for too few members."""
    if len(names) < FEWEST:
        raise UserError(
            f"{len(names)} members are too few to correlate with their training sets: give {FEWEST} or more."
        )
    if absent := [name for name in names if name not in sets]:
        raise UserError(f"There is no training set for {absent[0]}: give one for each of {', '.join(names)}.")
    return {name: examples_of(sets[name], base.tokenizer, end=False) for name in names}


@torch.no_grad()
def perplexities(base: AdaptedModel, sets: Mapping[str, Sequence[Example]]) -> pd.DataFrame:
    """Per member the perplexity of its rows' answers under the base, with its interval over rows."""
    collate, lines = Collator(pad_id(base.tokenizer)), []
    for name, examples in sets.items():
        nats: list[float] = []
        for start in range(0, len(examples), _BATCH):
            batch = collate(examples[start : start + _BATCH])
            with base.active():
                logits = answer_logits(base, batch["input_ids"], batch["attention_mask"])
            nats += (-answer_log_probs(logits, batch["labels"].to(logits.device))).tolist()
        tokens = np.array([len(example.answer) for example in examples])
        lines.append({"member": name, **_interval(np.array(nats), tokens), "rows": len(examples)})
    return pd.DataFrame(lines)


def _interval(nats: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    def perplexity(weights: np.ndarray) -> np.ndarray:
        return np.exp((weights @ nats) / (weights @ tokens))

    if len(nats) < 2:
        return {"perplexity": float(np.exp(nats.sum() / tokens.sum())), "low": np.nan, "high": np.nan}
    found = statistic_interval(perplexity, len(nats), seed=0)
    return {"perplexity": found.estimate, "low": found.low, "high": found.high}


def predicted(perplexity: Any, scores: Any, draws: int, seed: int) -> dict[str, float]:
    """Spearman's rho over members, its interval (members redrawn), and p against the scores in random order."""
    wide, values = np.asarray(perplexity, dtype=np.float64)[:, None], np.asarray(scores, dtype=np.float64)
    generator = np.random.default_rng(seed)
    rho = float(spearman(wide, values)[0])
    drawn = generator.integers(0, len(values), (draws, len(values)))
    low, high = np.quantile([spearman(wide[rows], values[rows])[0] for rows in drawn], [0.025, 0.975])
    shuffled = np.abs([spearman(wide, generator.permutation(values))[0] for _ in range(draws)])
    p = (1 + int((shuffled >= abs(rho) - 1e-12).sum())) / (draws + 1)
    return {"rho": rho, "low": float(min(low, rho)), "high": float(max(high, rho)), "p": p, "n": float(len(values))}
