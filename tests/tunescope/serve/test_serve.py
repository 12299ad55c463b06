"""The server, driven by the real OpenAI client: texts equal single runs, and nothing is mixed or let through."""

from __future__ import annotations

import ast
import asyncio
import copy
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from starlette.testclient import TestClient

import interventions as iv
from interventions.sweep import steered_texts
from tests.gguf_writing import CHAT
from tests.tiny import tiny_model, tokenizer, tuned_copy
from tunescope.serve.api import application
from tunescope.serve.engine import Closed, Engine, Limits
from tunescope.serve.served_recipes import ServedRecipes
from tunescope.serve.stopping import StopTexts
from workbench.errors import UserError
from workbench.local_address import check_free
from workbench.models.pair import ModelPair, load_pair

openai = pytest.importorskip("openai")
KEY = "secret-token"
CHAT_TURN = [{"role": "user", "content": "the quick"}]


def vector(seed: int) -> torch.Tensor:
    return 6 * torch.randn(64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    words = copy.deepcopy(tokenizer())
    words.chat_template = CHAT
    base = tiny_model("llama")
    return load_pair(base, tuned_copy(base, size=0.1), tokenizer=words, check=False)


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    for name, seed in (("up", 1), ("down", 2)):
        iv.Recipe([iv.Offset(1, vector(seed))]).save(folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def engine(pair: ModelPair, recipes: Path) -> Iterator[Engine]:
    made = Engine(
        pair.models, ServedRecipes([recipes], pair.models), Limits(max_tokens=24, waiting=16, batch=6, body_bytes=4000)
    )
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    """A real server on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = application(engine, KEY, ["127.0.0.1"])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join()


def client(url: str, key: str = KEY) -> Any:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0)


def answered(url: str, model: str, tokens: int = 8, **extra: Any) -> str:
    with client(url) as one:
        said = one.chat.completions.create(model=model, messages=CHAT_TURN, max_tokens=tokens, extra_body=extra)
    return str(said.choices[0].message.content)


def alone(pair: ModelPair, recipe: str | None, recipes: Path, strength: float = 1.0, tokens: int = 8) -> str:
    rows = [{"messages": CHAT_TURN}]
    if recipe is None:
        return pair.tuned.generate(rows, max_new_tokens=tokens)[0]
    loaded = iv.Recipe.load(recipes / f"{recipe}.safetensors")
    return steered_texts(pair.tuned, loaded, rows, [strength], max_new_tokens=tokens)[0][0]


def test_texts_are_those_of_single_runs(url: str, pair: ModelPair, recipes: Path) -> None:
    plain, steered = alone(pair, None, recipes), alone(pair, "up", recipes)
    assert plain != steered
    assert answered(url, "tuned") == plain
    assert answered(url, "tuned", recipe="up") == steered == answered(url, "tuned+up")
    assert answered(url, "tuned", recipe="up", strength=-0.5) == alone(pair, "up", recipes, -0.5)
    assert answered(url, "tuned", recipe="up", strength=0) == plain


def test_the_session_in_the_docs_runs_as_it_is_written(url: str, pair: ModelPair, recipes: Path) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "serve.md").read_text(encoding="utf-8")
    (session,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for written, here in (("http://127.0.0.1:8000/v1", url), ("the printed token", KEY)):
        assert session.count(written) == 1
        session = session.replace(written, here)
    recipe = iv.Recipe([iv.Offset(1, vector(1))])
    recipe.save(recipes / "refusal-off.safetensors")
    steps = ast.parse(session)
    call = steps.body.pop()
    assert isinstance(call, ast.Expr)
    space: dict[str, Any] = {}
    exec(compile(steps, "serve.md", "exec"), space)
    said = eval(compile(ast.Expression(call.value), "serve.md", "eval"), space)
    space["client"].close()
    rows: list[Any] = [{"messages": [{"role": "user", "content": "What is a monkey?"}]}]
    assert said.choices[0].message.content == steered_texts(pair.tuned, recipe, rows, [0.7], max_new_tokens=24)[0][0]
    (recipes / "refusal-off.safetensors").unlink()


def test_a_request_may_write_a_line_of_the_names_that_are_served(url: str, pair: ModelPair, recipes: Path) -> None:
    book = {name: iv.Recipe.load(recipes / f"{name}.safetensors") for name in ("up", "down")}
    line = "0.5*up - 0.2*down @response"
    wanted = steered_texts(pair.tuned, iv.recipe_from_text(line, book), [{"messages": CHAT_TURN}], max_new_tokens=8)
    assert answered(url, "tuned", recipe=line) == wanted[0][0] != answered(url, "tuned")
    with pytest.raises(openai.BadRequestError, match="Did you mean 'down'"):
        answered(url, "tuned", recipe="up - dwon")
    with pytest.raises(openai.BadRequestError, match="Unknown recipe 'upp'"):
        answered(url, "tuned", recipe="upp")


def test_lines_at_once_never_mix(url: str, pair: ModelPair, recipes: Path) -> None:
    book = {name: iv.Recipe.load(recipes / f"{name}.safetensors") for name in ("up", "down")}
    lines = ["0.5*up - 0.2*down @response", "up + down", "-0.8*down @generated"]
    rows: list[Any] = [{"messages": CHAT_TURN}]
    wanted = [
        steered_texts(pair.tuned, iv.recipe_from_text(line, book), rows, max_new_tokens=8)[0][0] for line in lines
    ]
    assert len({*wanted, alone(pair, None, recipes)}) == 4
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda line: answered(url, "tuned", recipe=line), lines * 3)) == wanted * 3


def test_a_line_is_served_by_its_own_text(pair: ModelPair, recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESCOPE_BOOK", str(recipes))
    served = ServedRecipes([Path("0.5*up")], pair.models)
    assert served.names() == ["0.5*up"] and served.named("0.5*up") == iv.load_recipe("0.5*up")
    with pytest.raises(UserError, match="Did you mean 'up'"):
        ServedRecipes([Path("0.5*upp")], pair.models)


def test_clients_with_different_recipes_at_once_never_mix(url: str, pair: ModelPair, recipes: Path) -> None:
    names = [None, "up", "down"] * 4
    wanted = {name: alone(pair, name, recipes) for name in set(names)}
    assert len(set(wanted.values())) == 3
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda name: answered(url, "tuned" if name is None else f"tuned+{name}"), names))
    assert found == [wanted[name] for name in names]
    assert pair.tuned.n_hooks == 0


def test_a_crowd_of_clients_on_both_sides_each_hears_its_own_run(
    url: str, engine: Engine, pair: ModelPair, recipes: Path
) -> None:
    """More clients than may run at once, of both sides, streaming or not, with one that must run by itself."""
    iv.Recipe([iv.Offset(1, vector(3)), iv.TokenRules(biases={40: 6.0})]).save(recipes / "bias.safetensors")
    calls = [(side, name) for side in ("base", "tuned") for name in (None, "up", "down", "bias")] * 2

    def wanted(side: str, name: str | None) -> str:
        recipe = iv.Recipe() if name is None else iv.Recipe.load(recipes / f"{name}.safetensors")
        with recipe.applied(pair.models[side]):
            return pair.models[side].generate([{"messages": CHAT_TURN}], max_new_tokens=10)[0]

    def heard(place: int) -> str:
        side, name = calls[place]
        model = side if name is None else f"{side}+{name}"
        if place % 2:
            return answered(url, model, tokens=10)
        with client(url) as one:
            stream = one.chat.completions.create(model=model, messages=CHAT_TURN, max_tokens=10, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    singles = {call: wanted(*call) for call in set(calls)}
    before, alone = engine.counts.steps, engine.counts.alone
    with ThreadPoolExecutor(len(calls)) as pool:
        texts = list(pool.map(heard, range(len(calls))))
    assert texts == [singles[call] for call in calls] and len(set(singles.values())) > 5
    assert engine.counts.alone == alone + 4
    assert engine.counts.steps - before < 9 * 12, "requests shared their steps"
    assert engine.waiting == engine.running == 0 and pair.tuned.n_hooks == 0
    (recipes / "bias.safetensors").unlink()


def test_a_request_that_fails_ends_alone(url: str, engine: Engine, pair: ModelPair, recipes: Path) -> None:
    iv.Recipe([iv.Offset(1, vector(1), strength=[1.0, 2.0])]).save(recipes / "rows.safetensors")
    plain = alone(pair, "up", recipes, tokens=20)
    failed = engine.counts.failed
    with ThreadPoolExecutor(3) as pool:
        good = [pool.submit(answered, url, "tuned+up", 20) for _ in range(2)]
        bad = pool.submit(answered, url, "tuned+rows", 20)
        assert [one.result() for one in good] == [plain] * 2
        with pytest.raises(openai.BadRequestError, match="There are 2 strengths but the batch has 1"):
            bad.result()
    assert engine.counts.failed == failed + 1
    (recipes / "rows.safetensors").unlink()


def test_texts_under_way_end_with_the_server(pair: ModelPair, recipes: Path) -> None:
    own = Engine(pair.models, ServedRecipes([recipes], pair.models), Limits(max_tokens=200))

    async def ended() -> list[BaseException | None]:
        from tunescope.serve.request import TextRequest

        async def heard() -> None:
            request = TextRequest(model="tuned+up", prompt="the quick", max_tokens=200)
            async for _piece in own.run(own.job(request), request.model):
                pass

        tasks = [asyncio.create_task(heard()) for _ in range(3)]
        while own.counts.steps < 3:
            await asyncio.sleep(0.005)
        own.close()
        await asyncio.wait(tasks)
        return [task.exception() for task in tasks]

    assert {type(error) for error in asyncio.run(ended())} == {Closed}
    assert pair.tuned.n_hooks == 0 and own.running == 0


def test_a_stream_says_the_same(url: str, pair: ModelPair, recipes: Path) -> None:
    with client(url) as one:
        chunks = list(
            one.chat.completions.create(
                model="tuned+down",
                messages=CHAT_TURN,
                max_tokens=8,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == alone(pair, "down", recipes)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("length", "stop")
    assert chunks[-1].usage.completion_tokens <= 8 and chunks[-1].usage.prompt_tokens > 3


def test_plain_completions_are_read_as_they_are(url: str, pair: ModelPair) -> None:
    from workbench.prompts import Prompts

    with client(url) as one:
        said = one.completions.create(model="base", prompt="the quick", max_tokens=6)
    assert said.choices[0].text == pair.base.generate(Prompts.of(["the quick"], chat=False), max_new_tokens=6)[0]
    assert said.usage.completion_tokens <= 6


def test_sampling_follows_its_seed(url: str) -> None:
    with client(url) as one:
        texts = [
            one.chat.completions.create(
                model="tuned", messages=CHAT_TURN, max_tokens=12, temperature=1.5, seed=seed
            ).choices[0].message.content
            for seed in (1, 1, 2)
        ]  # fmt: skip
    assert texts[0] == texts[1] != texts[2]


def test_models_are_listed_and_recipes_swapped_while_it_runs(url: str, pair: ModelPair, recipes: Path) -> None:
    with client(url) as one:
        assert {model.id for model in one.models.list()} == {
            "base", "tuned", "base+up", "base+down", "tuned+up", "tuned+down",
        }  # fmt: skip
    iv.Recipe([iv.Offset(1, vector(1))]).save(recipes / "new.safetensors")
    assert answered(url, "tuned+new") == alone(pair, "up", recipes)
    iv.Recipe([iv.Offset(1, vector(2)), iv.Offset(2, torch.zeros(64))]).save(recipes / "new.safetensors")
    assert answered(url, "tuned+new") == alone(pair, "down", recipes)
    (recipes / "new.safetensors").unlink()
    with pytest.raises(openai.BadRequestError, match="Unknown recipe 'new'"):
        answered(url, "tuned+new")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"model": "tunde"}, "Unknown model 'tunde'. Did you mean 'tuned'"),
        ({"extra_body": {"recipe": "upp"}}, "Unknown recipe 'upp'. Did you mean 'up'"),
        ({"extra_body": {"recipe": "0.5*up - 0.2*dwon"}}, "Sign 14 of '0.5[*]up - 0.2[*]dwon': .*Did you mean 'down'"),
        ({"extra_body": {"recipe": "0.5 up"}}, "Sign 5 of '0.5 up' is 'u': expected [*] and a name"),
        ({"extra_body": {"recipe": "up @reponse"}}, "Sign 4 of 'up @reponse': .*Did you mean @response"),
        ({"extra_body": {"recipe": "up -"}}, "ends too early: expected a name or a number"),
        ({"extra_body": {"strength": 2}}, "strength was given without a recipe"),
        ({"extra_body": {"recipe": "up", "strength": "much"}}, "strength: "),
        ({"extra_body": {"logit_bias": {}}}, "logit_bias: is no option"),
        ({"model": "tuned+up", "extra_body": {"recipe": "down"}}, "give one of them"),
        ({"temperature": 3}, "temperature: "),
        ({"messages": [{"role": "user", "content": "the fox " * 300}]}, "the limit is 256"),
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "longer than 4000 bytes"),
    ],
)
def test_mistakes_are_status_400_with_a_sentence(url: str, call: dict[str, Any], message: str) -> None:
    with client(url) as one, pytest.raises(openai.BadRequestError, match=message.replace("+", r"\+")):
        one.chat.completions.create(**{"model": "tuned", "messages": CHAT_TURN, "max_tokens": 4, **call})


def test_without_the_token_nothing_is_said(url: str, pair: ModelPair) -> None:
    with client(url, "wrong") as one, pytest.raises(openai.AuthenticationError, match="token is missing or wrong"):
        one.models.list()
    own = Engine(pair.models, ServedRecipes([], pair.models), Limits())  # the app closes it
    with TestClient(application(own, KEY, ["testserver"])) as web:
        assert web.get("/health").json() == {"status": "ok"}
        assert web.get("/metrics").status_code == 401 and web.get("/v1/models").status_code == 401
        told = web.get("/metrics", headers={"authorization": f"Bearer {KEY}"}).text
        assert "tunescope_requests_total" in told and "tunescope_waiting 0" in told
        assert web.get("/health", headers={"host": "evil.example"}).status_code == 400


def test_too_many_waiting_are_refused(pair: ModelPair, recipes: Path) -> None:
    full = Engine(pair.models, ServedRecipes([recipes], pair.models), Limits(waiting=0))
    with TestClient(application(full, None, ["testserver"])) as web:
        answer = web.post("/v1/chat/completions", json={"model": "tuned", "messages": CHAT_TURN, "max_tokens": 2})
    assert answer.status_code == 429 and "waiting" in answer.json()["error"]["message"]


def test_a_client_that_leaves_stops_the_generation(url: str, engine: Engine, pair: ModelPair) -> None:
    with client(url) as one:
        stream = one.chat.completions.create(model="tuned+up", messages=CHAT_TURN, max_tokens=24, stream=True)
        next(iter(stream))
        stream.close()
    assert answered(url, "base", tokens=4) == pair.base.generate([{"messages": CHAT_TURN}], max_new_tokens=4)[0]
    assert engine.waiting == 0 and pair.tuned.n_hooks == 0


def test_stop_texts_hold_back_their_beginning() -> None:
    texts = StopTexts(["END", "STOP"])
    assert texts.add("a EN") == "a " and texts.add("tity") == "ENtity" and not texts.ended
    assert texts.add(" x ST") == " x " and texts.add("OP after") == "" and texts.ended and texts.add("more") == ""
    assert StopTexts(["END"]).add("EN", last=True) == "EN"


def test_a_stop_text_ends_the_answer(url: str, pair: ModelPair, recipes: Path) -> None:
    whole = alone(pair, None, recipes, tokens=8)
    cut = whole[3:5]
    with client(url) as one:
        said = one.chat.completions.create(model="tuned", messages=CHAT_TURN, max_tokens=8, stop=cut)
    assert said.choices[0].message.content == whole[: whole.find(cut)] and said.choices[0].finish_reason == "stop"


def test_what_cannot_be_served_is_refused_before_it_starts(pair: ModelPair, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file or folder"):
        ServedRecipes([tmp_path / "none"], pair.models)
    iv.Recipe([iv.Offset(9, vector(1))]).save(tmp_path / "deep.safetensors")
    with pytest.raises(UserError, match="'deep' cannot be served"):
        ServedRecipes([tmp_path], pair.models)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot be used"):
            check_free("127.0.0.1", taken.getsockname()[1])
