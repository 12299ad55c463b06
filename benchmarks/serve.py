"""Fifty requests at once: how long until each client has its first token, beside the engine without a server.

    python benchmarks/serve.py MODEL [--requests 50] [--batch 64] [--rounds 3]

Three figures, every round anew. First tokens: p95 over the requests, through HTTP with the real OpenAI client, against
the same jobs handed to the engine in this process. Steps: a decoding step of 16 rows with 16 different recipes (an
offset each) against the same step without any. Texts at once: new tokens a second against one text at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import openai
import torch
import uvicorn

import interventions as iv
import workbench as wb
from benchmarks.timing import rounds_of
from tunescope.serve.api import application
from tunescope.serve.decoding import Decoding
from tunescope.serve.engine import Engine, Limits
from tunescope.serve.job import Job, TextOut
from tunescope.serve.request import ChatRequest
from tunescope.serve.served_recipes import ServedRecipes
from workbench.prompts.collection import Prompts

WORDS = ("a river", "tea", "why leaves turn red", "the moon", "how bread rises", "a lighthouse", "rust", "the tide")


def turns(place: int) -> list[dict[str, str]]:
    """A prompt of its own for every request."""
    return [{"role": "user", "content": f"Tell me in {place + 3} words about {WORDS[place % len(WORDS)]}."}]


def p95(seconds: list[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(seconds, n=20, method="inclusive")[-1]


async def by_engine(engine: Engine, requests: int, tokens: int) -> list[float]:
    """Seconds to each first token without HTTP."""
    began = time.monotonic()

    async def first(place: int) -> float:
        request = ChatRequest(model="model", messages=turns(place), max_tokens=tokens)
        at = 0.0
        async for _piece in engine.run(engine.job(request), request.model):
            at = at or time.monotonic() - began
        return at

    return list(await asyncio.gather(*map(first, range(requests))))


def by_clients(url: str, requests: int, tokens: int) -> list[float]:
    """Seconds to each first token for threads with a client each."""

    def first(place: int) -> float:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:
            stream = client.chat.completions.create(
                model="model", messages=turns(place), max_tokens=tokens, stream=True
            )
            at = 0.0
            for chunk in stream:
                if not at and chunk.choices and chunk.choices[0].delta.content:
                    at = time.monotonic() - began
        return at

    began = time.monotonic()
    with ThreadPoolExecutor(requests) as pool:
        return list(pool.map(first, range(requests)))


def served(engine: Engine) -> tuple[Any, threading.Thread, str]:
    """A real server on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = application(engine, None, ["127.0.0.1"])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    return server, thread, f"http://127.0.0.1:{port}/v1"


def first_tokens(side: Any, requests: int, tokens: int, batch: int, rounds: int) -> dict[str, Any]:
    """p95 of both ways in turns."""
    sides = {"model": side}
    limits = Limits(max_tokens=tokens, waiting=requests, batch=batch)
    taken: dict[str, list[float]] = {"engine": [], "server": []}
    for _ in range(rounds):
        bare = Engine(sides, ServedRecipes([], sides), limits)
        taken["engine"].append(p95(asyncio.run(by_engine(bare, requests, tokens))))
        bare.close()
        behind = Engine(sides, ServedRecipes([], sides), limits)
        server, thread, url = served(behind)
        taken["server"].append(p95(by_clients(url, requests, tokens)))
        server.should_exit = True
        thread.join()
        behind.close()
    ratios = [ours / bare for ours, bare in zip(taken["server"], taken["engine"], strict=True)]
    return {**{name: [round(s, 3) for s in all_] for name, all_ in taken.items()}, "ratio": statistics.median(ratios)}


def filled(side: Any, rows: int, tokens: int, *, steered: bool) -> Decoding:
    """A batch of ``rows`` texts that have read their prompts."""
    decoding = Decoding(side)
    decoding.ends = set()  # no row leaves while it is timed
    for place in range(rows):
        vector = torch.randn(side.d_model, generator=torch.Generator().manual_seed(place))
        recipe = iv.Recipe([iv.Offset(0.5, 0.1 * vector)]) if steered else None
        job = Job(side, recipe, side.encode(Prompts.of([{"messages": turns(place)}])), tokens, 0.0, 1.0, None, [])
        decoding.join(job, TextOut(job, lambda _piece: None))
    return decoding


def steps(side: Any, rows: int, rounds: int) -> dict[str, Any]:
    """A step of ``rows`` rows with a recipe each, beside one without, and beside a step of one row."""
    size = 4 * (rounds + 2)
    plain, steered, single = (
        filled(side, n, size, steered=recipes) for n, recipes in ((rows, False), (rows, True), (1, False))
    )

    def four(decoding: Decoding) -> Any:
        return lambda: [decoding.step() for _ in range(4)]

    taken = rounds_of({"plain": four(plain), "recipes": four(steered), "single": four(single)}, rounds=rounds)
    return {
        "recipes over plain": taken.against("recipes", "plain").to_dict(),
        "batch over single": taken.against("plain", "single").to_dict(),
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    side = wb.load_model(options.model)
    figures = {
        "first token": first_tokens(side, options.requests, options.tokens, options.batch, options.rounds),
        "steps": steps(side, 16, options.rounds * 3),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
