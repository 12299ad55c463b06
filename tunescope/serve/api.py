"""The HTTP side: OpenAI's paths and shapes, a token, and one sentence for everything that is refused."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tunescope.serve.engine import Busy, Closed, Engine
from tunescope.serve.job import Finish
from tunescope.serve.metrics import exposition
from tunescope.serve.request import ChatRequest, TextRequest, parsed
from workbench.errors import UserError

Handler = Callable[[Request], Awaitable[Response]]


def application(engine: Engine, token: str | None, hosts: list[str]) -> Starlette:
    """The server.

    Args:
        engine: What answers.
        token: What clients must send as their key; None lets everybody in who can connect.
        hosts: Names that requests may be addressed to, so that a web page cannot reach a local server by another name.
    """

    @asynccontextmanager
    async def ending(_app: Starlette) -> AsyncIterator[None]:
        yield
        engine.close()

    api = _Api(engine, token)
    return Starlette(
        routes=[
            Route("/health", api.health),
            Route("/metrics", api.checked(api.metrics)),
            Route("/v1/models", api.checked(api.models)),
            Route("/v1/chat/completions", api.checked(api.chat), methods=["POST"]),
            Route("/v1/completions", api.checked(api.text), methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
        lifespan=ending,
    )


class _Api:
    def __init__(self, engine: Engine, token: str | None) -> None:
        self.engine, self.token = engine, token

    def checked(self, handler: Handler) -> Handler:
        """``handler`` for those who have the token; a mistake in the request is status 400 with its sentence."""

        async def answer(request: Request) -> Response:
            token = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
            if self.token is not None and not secrets.compare_digest(token.encode(), self.token.encode()):
                return _refusal("The token is missing or wrong: send the one that the server printed.", 401, "auth")
            try:
                return await handler(request)
            except Busy as error:
                return _refusal(str(error), 429, "rate_limit_exceeded")
            except Closed as error:
                return _refusal(str(error), 503, "server_error")
            except UserError as error:
                return _refusal(str(error), 400, "invalid_request_error")

        return answer

    async def health(self, _request: Request) -> Response:
        """Whether the server is there; needs no token and tells nothing else."""
        return JSONResponse({"status": "ok"})

    async def models(self, _request: Request) -> Response:
        """Sides, and sides with recipes."""
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "tunescope"} for name in self.engine.models()]
        return JSONResponse({"object": "list", "data": rows})

    async def metrics(self, _request: Request) -> Response:
        """Counters in Prometheus's text form."""
        return PlainTextResponse(exposition(self.engine), media_type="text/plain; version=0.0.4")

    async def chat(self, request: Request) -> Response:
        """A chat completion."""
        return await self._completed(request, ChatRequest)

    async def text(self, request: Request) -> Response:
        """A completion of a text."""
        return await self._completed(request, TextRequest)

    async def _completed(self, request: Request, kind: type[ChatRequest] | type[TextRequest]) -> Response:
        question = parsed(kind, await self._body(request))
        job = self.engine.job(question)
        shape = _Shape(question)
        pieces = self.engine.run(job, question.model)
        if question.stream:
            first = await anext(pieces)  # what is refused is refused before the stream begins
            return StreamingResponse(_events(shape, first, pieces), media_type="text/event-stream")
        text, end = "", Finish("stop", 0, 0)
        async for piece in pieces:
            if isinstance(piece, Finish):
                end = piece
            else:
                text += piece
        return JSONResponse(shape.whole(text, end))

    async def _body(self, request: Request) -> bytes:
        body, limit = b"", self.engine.limits.body_bytes
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise UserError(f"The request is longer than {limit} bytes: shorten it.")
        return body


async def _events(shape: _Shape, first: str | Finish, pieces: AsyncGenerator[str | Finish, None]) -> AsyncIterator[str]:
    """Server-sent events; a client that leaves stops the generation."""
    piece: str | Finish | None = first
    async with aclosing(pieces):
        while piece is not None:
            for chunk in shape.chunks(piece):
                yield f"data: {json.dumps(chunk)}\n\n"
            piece = await anext(pieces, None)
    yield "data: [DONE]\n\n"


class _Shape:
    """One answer in OpenAI's shape."""

    def __init__(self, question: ChatRequest | TextRequest) -> None:
        self.is_chat, self.question = isinstance(question, ChatRequest), question
        self.head = {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{secrets.token_hex(12)}", "created": int(time.time()),
            "model": question.model,
        }  # fmt: skip
        self._begun = False

    def whole(self, text: str, end: Finish) -> dict[str, Any]:
        """The answer of a request that does not stream."""
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        choice = {"index": 0, "finish_reason": end.reason, "logprobs": None, **said}
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self.head, "object": kind, "choices": [choice], "usage": _usage(end)}

    def chunks(self, piece: str | Finish) -> list[dict[str, Any]]:
        """The chunks of a stream that say this piece."""
        if isinstance(piece, str):
            return [self._chunk(piece, None)]
        made = [self._chunk(None, piece.reason)]
        if self.question.usage_wanted:
            made.append({**self._chunk(None, None), "choices": [], "usage": _usage(piece)})
        return made

    def _chunk(self, text: str | None, reason: str | None) -> dict[str, Any]:
        if self.is_chat:
            role = {} if self._begun else {"role": "assistant"}
            said: dict[str, Any] = {"delta": {**role, **({} if text is None else {"content": text})}}
        else:
            said = {"text": text or ""}
        self._begun = True
        choice = {"index": 0, "finish_reason": reason, "logprobs": None, **said}
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return {**self.head, "object": kind, "choices": [choice]}


def _usage(end: Finish) -> dict[str, int]:
    return {
        "prompt_tokens": end.prompt_tokens, "completion_tokens": end.new_tokens,
        "total_tokens": end.prompt_tokens + end.new_tokens,
    }  # fmt: skip


def _refusal(sentence: str, status: int, kind: str) -> Response:
    error = {"message": sentence, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status_code=status)
