"""What a patch is judged by, read from the logits at the last prompt token."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from workbench.errors import UserError, unknown_name
from workbench.typing import Float, Int, Tensor

METRICS: tuple[str, ...] = ("logit_diff", "prob", "kl")


@dataclass(frozen=True)
class Metric:
    """A number per prompt. ``kl`` is KL(clean run || this run) and needs ``clean`` log-probabilities; ``log_prob`` is
    what path patching takes the ratio of."""

    name: str
    answers: Int[Tensor, " prompt"] | None = None
    distractors: Int[Tensor, " prompt"] | None = None
    clean: Float[Tensor, "prompt vocab"] | None = None

    def __call__(self, logits: Float[Tensor, "prompt copy vocab"]) -> Float[Tensor, "prompt copy"]:
        """The metric of every prompt in every copy."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.name == "kl":
            assert self.clean is not None
            clean = self.clean.to(logits)[:, None]
            return (clean.exp() * (clean - logits.log_softmax(-1))).sum(-1)
        assert self.answers is not None
        if self.name in ("prob", "log_prob"):
            answer = _at(logits.log_softmax(-1), self.answers)
            return answer.exp() if self.name == "prob" else answer
        assert self.distractors is not None
        return _at(logits, self.answers) - _at(logits, self.distractors)


def check_metric(name: str, *, has_answers: bool, has_distractors: bool) -> None:
    """Raise :class:`UserError` for an unknown metric or one whose answers are missing."""
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    if name == "logit_diff" and not (has_answers and has_distractors):
        raise UserError(
            "metric='logit_diff' compares an answer with a distractor: give the prompts both columns, or use "
            "metric='prob' (answer alone) or 'kl' (neither)."
        )
    if name == "prob" and not has_answers:
        raise UserError("metric='prob' reads the probability of the answer: give the prompts an 'answer' column.")


def _at(values: Float[Tensor, "prompt copy vocab"], ids: Int[Tensor, " prompt"]) -> Float[Tensor, "prompt copy"]:
    chosen = ids.to(values.device)[:, None, None].expand(-1, values.shape[1], 1)
    return values.gather(-1, chosen).squeeze(-1)
