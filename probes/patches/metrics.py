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
    rows_per_prompt: int = 0
    """Where whole answers are scored: how many rows each prompt has, each with its answer's log-probability in place of
    the logits; 0 where the last position is read."""

    def __call__(self, logits: Float[Tensor, "row copy vocab"]) -> Float[Tensor, "prompt copy"]:
        """The metric of every prompt in every copy."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.rows_per_prompt:
            return self._of_whole_answers(logits[..., 0].unflatten(0, (-1, self.rows_per_prompt)))
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

    def _of_whole_answers(self, scores: Float[Tensor, "prompt answer copy"]) -> Float[Tensor, "prompt copy"]:
        """Answer minus distractor, or the probability of the answer, from summed log-probabilities."""
        return scores[:, 0].exp() if self.name == "prob" else scores[:, 0] - scores[:, 1]


def check_metric(name: str, *, has_answers: bool, has_distractors: bool, whole: bool = False) -> None:
    """Raise :class:`UserError` for an unknown metric, one whose answers are missing, or one that reads no ``whole``
    answers."""
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    if name == "kl" and whole:
        raise UserError(
            "metric='kl' compares what is said next and reads no answers: leave answer_tokens='first', or use "
            "metric='logit_diff' or 'prob'."
        )
    if name == "logit_diff" and not (has_answers and has_distractors):
        raise UserError(
            "metric='logit_diff' compares an answer with a distractor: give the prompts both columns, or use "
            "metric='prob' (answer alone) or 'kl' (neither)."
        )
    if name == "prob" and not has_answers:
        raise UserError("metric='prob' reads the probability of the answer: give the prompts an 'answer' column.")


def _at(values: Float[Tensor, "prompt copy vocab"], ids: Int[Tensor, " prompt"]) -> Float[Tensor, "prompt copy"]:
    index = ids.to(values.device)[:, None, None].expand(-1, values.shape[1], 1)
    return values.gather(-1, index).squeeze(-1)
