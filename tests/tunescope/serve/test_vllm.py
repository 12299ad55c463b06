"""The server on vLLM: base, tuned and steered side by side, each client hears the text of a run of its own."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

import interventions as iv
import workbench as wb
from tests.tiny import tiny_model, tokenizer
from tests.workbench.vllm.lora_folders import save_lora_pair
from tunescope.serve.api import application
from tunescope.serve.engine import Engine, Limits
from tunescope.serve.served_recipes import ServedRecipes
from workbench.errors import UserError

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
CHAT = "{% for m in messages %}{{ m.content }} {% endfor %}"
TURN = [{"role": "user", "content": "the quick brown"}]
LINE = "0.5*up - 0.2*down @response"


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    for name, seed in (("up", 1), ("down", 2)):
        vector = 4 * torch.randn(64, generator=torch.Generator().manual_seed(seed))
        iv.Recipe([iv.Offset(1, vector)]).save(folder / f"{name}.safetensors")
    iv.Recipe([iv.HeadScale({"L1H0": 0.0})]).save(folder / "heads.safetensors")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> wb.ModelPair:
    words = copy.deepcopy(tokenizer())
    words.chat_template = CHAT
    folders = save_lora_pair(tmp_path_factory.mktemp("pair"), tiny_model("llama", head_dim=32), words)
    return wb.load_pair(*folders, dtype="float32")


@pytest.fixture(scope="module")
def web(pair: wb.ModelPair, recipes: Path) -> Iterator[TestClient]:
    from tunescope.serve.vllm_decoding import opened

    vllm = partial(opened, pair.models, {"max_model_len": 128}, 6)
    engine = Engine(pair.models, ServedRecipes([recipes], pair.models), Limits(max_tokens=24, batch=6), vllm)
    with TestClient(application(engine, None, ["testserver"])) as client:
        yield client


def said(web: TestClient, model: str, tokens: int = 8, **extra: Any) -> str:
    body = {"model": model, "messages": TURN, "max_tokens": tokens, **extra}
    answer = web.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def alone(side: Any, recipe: iv.Recipe | None, tokens: int = 8) -> str:
    with (recipe or iv.Recipe()).applied(side):
        return str(side.generate([{"messages": TURN}], max_new_tokens=tokens)[0])


def test_clients_at_once_each_hear_their_own_run(web: TestClient, pair: wb.ModelPair, recipes: Path) -> None:
    book = {name: iv.Recipe.load(recipes / f"{name}.safetensors") for name in ("up", "down")}
    line = iv.recipe_from_text(LINE, book)
    asked: list[tuple[dict[str, Any], str]] = [
        ({"model": "base"}, alone(pair.base, None)),
        ({"model": "tuned"}, alone(pair.tuned, None)),
        ({"model": "tuned+up"}, alone(pair.tuned, book["up"])),
        ({"model": "tuned", "recipe": "up", "strength": -0.5}, alone(pair.tuned, book["up"] * -0.5)),
        ({"model": "base", "recipe": LINE}, alone(pair.base, line)),
        ({"model": "tuned", "recipe": LINE, "tokens": 3}, alone(pair.tuned, line, 3)),
    ]
    assert len({text for _, text in asked}) == len(asked)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda one: said(web, **one[0]), asked * 3))
    assert found == [text for _, text in asked] * 3
    assert said(web, "tuned") == alone(pair.tuned, None), "nothing of a recipe stays"
    told = web.get("/metrics").text
    assert "tunescope_alone_total 0" in told and "tunescope_failed_total 0" in told


def test_a_stream_and_a_stop_text_say_the_same(web: TestClient, pair: wb.ModelPair) -> None:
    whole = alone(pair.tuned, None)
    body = {"model": "tuned", "messages": TURN, "max_tokens": 8, "stream": True}
    with web.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = [line for line in answer.iter_lines() if line]
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-1]]
    assert lines[-1] == "data: [DONE]" and "".join(delta.get("content", "") for delta in deltas) == whole
    assert said(web, "tuned", stop=[whole[3:5]]) == whole[: whole.find(whole[3:5])]
    drawn = [said(web, "tuned", temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_vllm_cannot_do_is_status_400(web: TestClient, pair: wb.ModelPair) -> None:
    for extra, sentence in (
        ({"model": "tuned+heads"}, "split over devices"),
        ({"model": "tuned", "recipe": "0.5*up - dwon"}, "Sign 10 of '0.5*up - dwon'"),
        ({"model": "tuned", "messages": [{"role": "user", "content": "fox " * 130}]}, "128 positions here"),
    ):
        answer = web.post("/v1/chat/completions", json={"messages": TURN, "max_tokens": 4, **extra})
        assert answer.status_code == 400 and sentence in answer.json()["error"]["message"], answer.text
    from tunescope.serve.vllm_decoding import check_served

    other = wb.load_pair(tiny_model("llama"), tiny_model("llama", seed=1), tokenizer=tokenizer(), check=False)
    with pytest.raises(UserError, match="load the pair from folders"):
        check_served(other.models)
