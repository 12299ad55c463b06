"""A request by itself, through Hugging Face's ``generate``: what cannot share its steps with others."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from tunescope.serve.job import Job, TextOut


class _Stopped(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, out: TextOut) -> None:
        self._out = out

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ARG002
        return torch.full((len(input_ids),), self._out.stopped.is_set(), device=input_ids.device)


def generate_alone(job: Job, out: TextOut) -> None:
    """Generate the whole text; nothing else may run on the model meanwhile."""
    sampled = {"do_sample": True, "temperature": job.temperature, "top_p": job.top_p, "top_k": 0}
    with torch.random.fork_rng(), job.recipe.applied(job.side) if job.recipe is not None else nullcontext():
        if job.seed is not None:
            torch.manual_seed(job.seed)
        ids = job.side.generate_ids(
            job.batch, max_new_tokens=job.new_tokens, streamer=out,
            stopping_criteria=StoppingCriteriaList([_Stopped(out)]), **(sampled if job.temperature > 0 else {}),
        )[0]  # fmt: skip
    out.finish(len(ids) - job.prompt_tokens, int(ids[-1]))
