"""One request after the other through our engine, on a thread of its own, the text given out while it is written."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from interventions.recipe import Recipe
from tunescope.serve.request import ChatRequest, TextRequest
from tunescope.serve.shelf import Shelf
from tunescope.serve.stopping import StopTexts
from workbench.errors import UserError, unknown_name
from workbench.models.adapted import AdaptedModel
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import Encoded


@dataclass(frozen=True)
class Limits:
    """What one client may ask for."""

    max_tokens: int = 1024
    """New tokens of a request at most."""
    waiting: int = 64
    """Requests that wait at most; further ones are refused with 429."""
    body_bytes: int = 2**20


class Busy(UserError):
    """Too many requests are waiting."""


@dataclass(frozen=True)
class Finish:
    """The end of a completion."""

    reason: str
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Job:
    """A request that can be run: the side, the recipe at its strength, and the prompt as tokens."""

    side: AdaptedModel
    recipe: Recipe | None
    batch: Encoded
    new_tokens: int
    options: Mapping[str, Any]
    seed: int | None
    stops: list[str]


@dataclass
class Counts:
    """What ``/metrics`` says."""

    requests: int = 0
    refused: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    by_model: dict[str, int] = field(default_factory=dict)


class Engine:
    """Both sides and the shelf of recipes. Requests take turns, so no two recipes are ever on a model at once."""

    def __init__(self, sides: Mapping[str, AdaptedModel], shelf: Shelf, limits: Limits) -> None:
        self.sides, self.shelf, self.limits = dict(sides), shelf, limits
        self.counts = Counts()
        self.waiting = 0
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    def models(self) -> list[str]:
        """Every name a request may give as its model: a side, or a side with a recipe."""
        recipes = self.shelf.names()
        return [*self.sides, *(f"{side}+{name}" for side in self.sides for name in recipes)]

    def job(self, request: ChatRequest | TextRequest) -> Job:
        """What the request asks for. Raises :class:`UserError` where it cannot be run; nothing runs yet."""
        name, _, named = request.model.partition("+")
        if name not in self.sides:
            raise unknown_name("model", request.model, self.models())
        if named and request.recipe and named != request.recipe:
            raise UserError(
                f"The model says the recipe {named!r} and the request {request.recipe!r}: give one of them."
            )
        wanted = named or request.recipe
        if wanted is None and request.strength != 1.0:
            raise UserError("A strength was given without a recipe: name one, or leave strength out.")
        side = self.sides[name]
        recipe = None if wanted is None else self.shelf.get(wanted) * request.strength
        if recipe is not None:
            recipe.check(side)
        batch = side.encode(Prompts.of([request.row()]))
        room = (side.max_positions or 2**31) - batch.input_ids.shape[1]
        new = min(request.limit or self.limits.max_tokens, self.limits.max_tokens)
        if room < 1 or (request.limit is not None and new > room):
            raise UserError(
                f"The prompt has {batch.input_ids.shape[1]} tokens and {new} new ones are asked for, and the model has "
                f"{side.max_positions} positions: shorten the prompt or lower max_tokens."
            )
        sampled = request.temperature > 0
        options = {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p} if sampled else {}
        return Job(side, recipe, batch, min(new, room), options, request.seed, request.stops)

    async def run(self, job: Job, name: str) -> AsyncGenerator[str | Finish, None]:
        """Pieces of text, then the end; leaving the iterator stops the generation. Raises :class:`Busy`."""
        if self.waiting >= self.limits.waiting:
            self.counts.refused += 1
            raise Busy(f"{self.waiting} requests are waiting, which is the limit: try again.")
        loop, pieces, stop = asyncio.get_running_loop(), asyncio.Queue[str | Finish | None](), threading.Event()
        self.waiting += 1
        try:
            async with self._turn:
                began = time.monotonic()
                self.counts.requests += 1
                self.counts.by_model[name] = self.counts.by_model.get(name, 0) + 1

                def give(piece: str | Finish | None) -> None:
                    loop.call_soon_threadsafe(pieces.put_nowait, piece)

                work = loop.run_in_executor(self._thread, _generated, job, give, stop)
                try:
                    while (piece := await pieces.get()) is not None:
                        if isinstance(piece, Finish):
                            self.counts.new_tokens += piece.new_tokens
                        yield piece
                    await work
                finally:
                    stop.set()
                    await asyncio.wait([work])
                    self.counts.seconds += time.monotonic() - began
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Let the running request end, and the thread with it."""
        self._thread.shutdown(wait=True)


class _Pieces(TextStreamer):  # type: ignore[misc]
    """Hands text out as soon as whole words are decoded, up to a stop text."""

    def __init__(self, tokenizer: Any, texts: StopTexts, give: Any, stop: threading.Event) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._texts, self._give, self._stop = texts, give, stop

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with every further piece."""
        if piece := self._texts.add(text, last=stream_end):
            self._give(piece)
        if self._texts.ended:
            self._stop.set()


class _Stopped(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ARG002
        return torch.full((len(input_ids),), self._stop.is_set(), device=input_ids.device)


def _generated(job: Job, give: Any, stop: threading.Event) -> None:
    """Generate on the engine's thread; always ends with None, also after an error, which is raised there."""
    texts, tokenizer = StopTexts(job.stops), job.side.tokenizer
    prompt = job.batch.input_ids.shape[1]
    try:
        with torch.random.fork_rng(), job.recipe.applied(job.side) if job.recipe is not None else nullcontext():
            if job.seed is not None:
                torch.manual_seed(job.seed)
            ids = job.side.generate_ids(
                job.batch, max_new_tokens=job.new_tokens, streamer=_Pieces(tokenizer, texts, give, stop),
                stopping_criteria=StoppingCriteriaList([_Stopped(stop)]), **job.options,
            )[0]  # fmt: skip
        made = len(ids) - prompt
        whole = texts.ended or made < job.new_tokens or int(ids[-1]) in _ends(job.side)
        give(Finish("stop" if whole else "length", prompt, made))
    finally:
        give(None)


def _ends(side: AdaptedModel) -> set[int]:
    """Tokens that end a text."""
    found = getattr(side.inner.generation_config, "eos_token_id", None)
    known = found if isinstance(found, list) else [found]
    return {int(one) for one in (*known, side.tokenizer.eos_token_id) if one is not None}
