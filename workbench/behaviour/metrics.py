"""What can be measured, by how it is measured: each metric is a number per prompt unless said otherwise."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from workbench.behaviour.refusals import MEASURED
from workbench.errors import unknown_name

NEXT_TOKEN: dict[str, str] = {
    "accuracy": "share of prompts whose most likely next token begins the answer",
    "prob": "probability of the answer's first token",
    "logit_diff": "logit of the answer's first token minus the distractor's",
    "distracted": "share of prompts whose most likely next token begins the distractor",
    "entropy": "entropy of the next-token distribution, in nats",
    "kl": "KL(model || base) of the next-token distribution, in nats",
    "confidence": "probability of the most likely next token",
    "brier": "Brier score: (confidence - 1 if the most likely next token begins the answer, else 0) squared",
}
"""Read at the last prompt token."""

READ_ANSWERS = ("accuracy", "prob", "logit_diff", "distracted", "brier")
"""Those of them that read an answer's tokens, the first or all."""

ANSWER: dict[str, str] = {
    "answer_logprob": "log-probability of the whole answer, all its tokens, in nats",
    "answer": "log-probability of the whole answer per token, in nats",
    "answer_prob": "probability of the whole answer, all its tokens",
    "answer_diff": "log-probability of the whole answer minus that of the whole distractor, in nats",
}
"""The answer is put behind the prompt (teacher forcing)."""

CONTINUATION: dict[str, str] = {
    "kl_base_model": "KL(base || model) per token of a continuation, in nats",
    "kl_model_base": "KL(model || base) per token of a continuation, in nats",
}
"""Every model reads the same continuation: see ``continuation`` in :class:`DiffOptions`."""

TEXT: dict[str, str] = {
    "exact_match": "share of texts that are the answer (case, spaces and final punctuation aside)",
    "answered": "share of texts that begin with the answer",
    "contained": "share of texts that hold the answer anywhere, as whole words",
    "refusal": f"share of texts that refuse (rule: {MEASURED})",
    "repetition": "share of a text's runs of three tokens that it has used before (1 - distinct-3)",
    "distinct": "distinct tokens of a text over its tokens (distinct-1)",
    "same_as_base": "share of texts that are the base's, token by token",
    "common_tokens": "tokens before the first that differs from the base's text",
    "new_tokens": "length of the text in tokens",
}
"""Read from generated texts: the greedy one, or the mean over the sampled ones when there are samples."""

WHOLE: dict[str, str] = {
    "ece": "expected calibration error of the most likely next token, over bins of confidence (one number for all)",
    "perplexity": "perplexity on the neutral texts, per token (one number for all)",
}
"""Not a mean over prompts; their intervals draw prompts (texts) again and compute the number anew."""

SHARES = frozenset({"accuracy", "distracted", "exact_match", "answered", "contained", "refusal", "same_as_base"})
"""Metrics that count prompts: where all agree their interval is the exact binomial one."""

METRICS: dict[str, str] = {**NEXT_TOKEN, **ANSWER, **CONTINUATION, **TEXT, **WHOLE}
"""Name -> what it measures."""


def check_metrics(metrics: Sequence[str], known: Collection[str] = METRICS) -> None:
    """Raise :class:`UserError` naming the closest metric when one is unknown."""
    for metric in metrics:
        if metric not in known:
            raise unknown_name("metric", metric, known)
