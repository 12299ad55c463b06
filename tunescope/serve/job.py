"""A request that can be run, how its text is given out, and how it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import TextStreamer

from interventions.recipe import Recipe
from tunescope.serve.stopping import StopTexts
from workbench.models.adapted import AdaptedModel
from workbench.prompts.encode import Encoded


@dataclass(frozen=True)
class Finish:
    """The end of a completion."""

    reason: str
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Job:
    """What is computed for a request: the side, the recipe at its strength, the prompt as tokens, how it is sampled."""

    side: AdaptedModel
    recipe: Recipe | None
    batch: Encoded
    new_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stops: list[str]
    alone: str | None = None
    """Why it shares no step with other requests; None: it does."""

    @property
    def prompt_tokens(self) -> int:
        """How long the prompt is."""
        return int(self.batch.input_ids.shape[1])


class TextOut(TextStreamer):  # type: ignore[misc]
    """Hands text out as soon as whole words are decoded, up to a stop text, and says the end."""

    def __init__(self, job: Job, give: Callable[[str | Finish | BaseException], None]) -> None:
        super().__init__(job.side.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._job, self._give = job, give
        self._texts = StopTexts(job.stops)
        self.first_at: float | None = None
        """When the first token was there, by ``time.monotonic``."""
        self.stopped = threading.Event()
        """Set when nothing more is wanted: after a stop text, or when the client has left."""

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt's tokens, then with every new token."""
        if not self.next_tokens_are_prompt and self.first_at is None:
            self.first_at = time.monotonic()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with every further piece."""
        if piece := self._texts.add(text, last=stream_end):
            self._give(piece)
        if self._texts.ended:
            self.stopped.set()

    def finish(self, new_tokens: int, last: int) -> None:
        """Say why the text ended, after ``new_tokens`` of which ``last`` is the last."""
        job = self._job
        whole = self._texts.ended or new_tokens < job.new_tokens or last in _ends(job.side)
        self._give(Finish("stop" if whole else "length", job.prompt_tokens, new_tokens))

    def fail(self, error: BaseException) -> None:
        """Say that nothing more comes, and why."""
        self._give(error)


@dataclass
class Counts:
    """What ``/metrics`` says."""

    requests: int = 0
    refused: int = 0
    failed: int = 0
    alone: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    steps: int = 0
    step_rows: int = 0
    first_tokens: int = 0
    first_token_seconds: float = 0.0
    by_model: dict[str, int] = field(default_factory=dict)


def _ends(side: AdaptedModel) -> set[int]:
    """Tokens that end a text."""
    own = getattr(side.inner.generation_config, "eos_token_id", None)
    ends = own if isinstance(own, list) else [own]
    return {int(token) for token in (*ends, side.tokenizer.eos_token_id) if token is not None}
