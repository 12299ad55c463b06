"""Many requests at once through our engine: what shares its steps is written together, the rest takes turns."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from interventions.recipe import Recipe
from tunescope.serve.alone import generate_alone
from tunescope.serve.decoding import Decoding
from tunescope.serve.job import Counts, Finish, Job, TextOut
from tunescope.serve.request import ChatRequest, TextRequest
from tunescope.serve.served_recipes import ServedRecipes
from tunescope.serve.sharing import why_alone
from workbench.errors import UserError, unknown_name
from workbench.models.adapted import AdaptedModel
from workbench.prompts.collection import Prompts

if TYPE_CHECKING:
    from tunescope.serve.vllm_decoding import VllmDecoding

ALONE_BY_CHOICE = "the server writes one text at a time"


@dataclass(frozen=True)
class Limits:
    """What clients may ask for."""

    max_tokens: int = 1024
    """New tokens of a request at most."""
    waiting: int = 64
    """Requests that wait at most; further ones are refused with 429."""
    batch: int = 32
    """Texts that are written at once at most; 1: in turns, bit for bit as single runs."""
    body_bytes: int = 2**20


class Busy(UserError):
    """Too many requests are waiting."""


class Closed(UserError):
    """The server ended before the text did."""


class _Live:
    """A request that waits or is being written; what it is told comes through a queue of its event loop."""

    def __init__(self, job: Job) -> None:
        self.job, self.since = job, time.monotonic()
        self.pieces: asyncio.Queue[str | Finish | BaseException] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.out = TextOut(job, self.give)

    def give(self, piece: str | Finish | BaseException) -> None:
        """Called from whatever thread."""
        self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


class Engine:
    """Both sides and the recipes. One thread computes; requests join and leave between its steps."""

    def __init__(
        self,
        sides: Mapping[str, AdaptedModel],
        recipes: ServedRecipes,
        limits: Limits,
        vllm: Callable[[], VllmDecoding] | None = None,
    ) -> None:
        """``vllm``: opens the vLLM engine that writes for all sides, on the thread that will use it."""
        self.sides, self.recipes, self.limits = dict(sides), recipes, limits
        self.counts = Counts()
        self._queue: deque[_Live] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._vllm = None if vllm is None else self._thread.submit(vllm).result()
        self._decoding: dict[int, Decoding | VllmDecoding] = {
            id(side): self._vllm or Decoding(side) for side in self.sides.values()
        }
        self._driver: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Requests that nothing was computed for yet."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Texts that share steps now."""
        return sum(map(len, self._writers))

    @property
    def _writers(self) -> list[Decoding | VllmDecoding]:
        """Each once: vLLM writes for all sides."""
        return list(dict.fromkeys(self._decoding.values()))

    def models(self) -> list[str]:
        """Every name a request may give as its model: a side, or a side with a recipe."""
        recipes = self.recipes.names()
        return [*self.sides, *(f"{side}+{name}" for side in self.sides for name in recipes)]

    def job(self, request: ChatRequest | TextRequest) -> Job:
        """What the request asks for. Raises :class:`UserError` where it cannot be run; nothing runs yet."""
        side, recipe = self._steered(request)
        batch = side.encode(Prompts.of([request.row()]))
        positions = min(side.max_positions or 2**31, 2**31 if self._vllm is None else self._vllm.positions)
        room = positions - batch.input_ids.shape[1]
        new = min(request.limit or self.limits.max_tokens, self.limits.max_tokens)
        if room < 1 or (request.limit is not None and new > room):
            raise UserError(
                f"The prompt has {batch.input_ids.shape[1]} tokens and {new} new ones are asked for, and the model has "
                f"{positions} positions here: shorten the prompt or lower max_tokens."
            )
        job = Job(side, recipe, batch, min(new, room), request.temperature, request.top_p, request.seed, request.stops)
        if self._vllm is not None:
            self._vllm.check(job)
            return job
        return replace(job, alone=ALONE_BY_CHOICE if self.limits.batch == 1 else why_alone(side, recipe))

    def _steered(self, request: ChatRequest | TextRequest) -> tuple[AdaptedModel, Recipe | None]:
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
        recipe = None if wanted is None else self.recipes.named(wanted) * request.strength
        if recipe is not None:
            recipe.check(side)
        return side, recipe

    async def run(self, job: Job, name: str) -> AsyncGenerator[str | Finish, None]:
        """Pieces of text, then the end; leaving the iterator stops the generation.

        Raises:
            Busy: Too many requests are waiting.
            Closed: The server ends.
        """
        if self._closed:
            raise Closed("The server is ending: ask another one.")
        if self.waiting >= self.limits.waiting:
            self.counts.refused += 1
            raise Busy(f"{self.waiting} requests are waiting, which is the limit: try again.")
        live = _Live(job)
        self.counts.requests += 1
        self.counts.alone += job.alone is not None
        self.counts.by_model[name] = self.counts.by_model.get(name, 0) + 1
        self._queue.append(live)
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive())
        try:
            while True:
                piece = await live.pieces.get()
                if isinstance(piece, BaseException):
                    raise piece
                yield piece
                if isinstance(piece, Finish):
                    self._count(live, piece)
                    return
        finally:
            live.out.stopped.set()
            if live in self._queue:
                self._queue.remove(live)

    def _count(self, live: _Live, end: Finish) -> None:
        self.counts.new_tokens += end.new_tokens
        if live.out.first_at is not None:
            self.counts.first_tokens += 1
            self.counts.first_token_seconds += live.out.first_at - live.since

    async def _drive(self) -> None:
        """Compute until nothing is left: read the prompts that may join, then a step of every side."""
        while not self._closed and (self._queue or self.running):
            began = time.monotonic()
            while (live := self._next()) is not None:
                work = generate_alone if live.job.alone else self._decoding[id(live.job.side)].join
                if error := await self._computed(work, live.job, live.out):
                    self._failed([live.out], error)
            for decoding in self._writers:
                if len(decoding):
                    self.counts.steps += 1
                    self.counts.step_rows += len(decoding)
                    if error := await self._computed(decoding.step):
                        self._failed(decoding.clear(), error)
            self.counts.seconds += time.monotonic() - began
        left = [out for decoding in self._writers for out in decoding.clear()]
        self._failed([*left, *(live.out for live in self._queue)], Closed("The server ended before the text did."))

    def _next(self) -> _Live | None:
        """The request that may be begun now, in the order in which they came."""
        while self._queue and self._queue[0].out.stopped.is_set():
            self._queue.popleft()
        if self._closed or not self._queue:
            return None
        free = self.running == 0 if self._queue[0].job.alone else self.running < self.limits.batch
        return self._queue.popleft() if free else None

    async def _computed(self, work: Callable[..., None], *args: Any) -> BaseException | None:
        """Do it on the engine's thread; what went wrong there, or None."""
        done = asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
        await asyncio.wait([done])
        return done.exception()

    def _failed(self, outs: list[TextOut], error: BaseException) -> None:
        """Those requests end with this error; no other does."""
        for out in outs:
            self.counts.failed += 1
            out.fail(error)

    def close(self) -> None:
        """Let the running step end, and the thread with it; texts that are not whole yet end with :class:`Closed`."""
        first, self._closed = not self._closed, True
        if self._vllm is not None and first:
            self._thread.submit(self._vllm.close)
        self._thread.shutdown(wait=True)
