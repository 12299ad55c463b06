"""vLLM beside Hugging Face on small models: the same rows, the same steered texts, and requests that never mix.

Runs where vLLM is installed (see docs/vllm.md); skipped elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import pytest
import torch

import interventions as iv
import workbench as wb
from interventions.vllm_texts import vllm_ids
from tests.tiny import tiny_model, tokenizer
from tests.workbench.vllm.lora_folders import save_lora_pair
from workbench.errors import NotSupported, UserError
from workbench.models.pair import ModelPair
from workbench.prompts import Prompts
from workbench.vllm.route import ROUTE, route_of
from workbench.vllm.running import VllmEngine

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
SETTINGS = {"max_model_len": 128, "max_num_seqs": 8, "dtype": "float32"}
TEXTS = Prompts.of(["the quick brown fox", "jumps over", "the lazy dog and the fox jumps", "a"], chat=False)
SHAPES = {"llama": {"head_dim": 32}, "qwen2": {"head_dim": 32, "hidden_size": 128}}


@pytest.fixture(scope="module", params=list(SHAPES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelPair:
    """A base and its LoRA in folders."""
    base = tiny_model(request.param, **SHAPES[request.param])
    folders = save_lora_pair(tmp_path_factory.mktemp(request.param), base, tokenizer())
    return wb.load_pair(*map(str, folders), dtype="float32")


@pytest.fixture(scope="module")
def engine(pair: ModelPair) -> Iterator[VllmEngine]:
    """One engine for the module: what runs on the pair meanwhile runs there."""
    with wb.on_vllm(pair, **SETTINGS):
        route = route_of(pair.tuned)
        assert route is not None
        yield route.engine


@contextmanager
def local() -> Iterator[None]:
    """What runs inside runs in this process, though an engine is open."""
    token = ROUTE.set(None)
    try:
        yield
    finally:
        ROUTE.reset(token)


def vector(pair: ModelPair, seed: int) -> torch.Tensor:
    return 4 * torch.randn(pair.base.d_model, generator=torch.Generator().manual_seed(seed))


def test_recorded_rows_are_those_of_hugging_face(pair: ModelPair, engine: VllmEngine) -> None:
    sites = ["resid_post", "attn_out", "mlp_out"]
    for positions in ("last", "all"):
        here = wb.record(pair, TEXTS, sites, positions=positions, batch_size=3)
        there = wb.record(pair, TEXTS, sites, positions=positions, batch_size=3, executor="vllm")
        assert here.index.equals(there.index)
        for role in ("base", "tuned"):
            for site in here.sites:
                ours, theirs = (torch.as_tensor(one[role][site]) for one in (here, there))
                assert float((ours - theirs).norm() / ours.norm()) < 1e-5, (role, site)
    moved = torch.as_tensor(there["tuned"][site]) - torch.as_tensor(there["base"][site])
    assert float(moved.norm()) > 0.1, "the LoRA acts"


def test_every_request_has_its_own_recipe(pair: ModelPair, engine: VllmEngine) -> None:
    recipes: list[Any] = [
        iv.Recipe([iv.Offset(1, vector(pair, 1), positions="last+generated")]),
        None,
        iv.Recipe([iv.SubspaceKnob(0, vector(pair, 2), 3.0), iv.Offset(2, vector(pair, 3), site="attn_out")]) * 0.5,
        iv.Recipe([iv.Offset(1, vector(pair, 4), when=iv.Gate(0, vector(pair, 5), 0.0, reach="onward"))]),
    ]
    for side in (pair.base, pair.tuned):
        found = vllm_ids(engine, side, TEXTS, recipes, max_tokens=10)
        for row, recipe in enumerate(recipes):
            with (recipe or iv.Recipe()).applied(side):
                batch = side.encode(Prompts([TEXTS[row]]))
                single = side.generate_ids(batch, max_new_tokens=10)[0, batch.input_ids.shape[1] :].tolist()
            assert found[row] == single
        plain = vllm_ids(engine, side, TEXTS, [None] * 4, max_tokens=10)
        assert plain[1] == found[1] and plain != found
        assert vllm_ids(engine, side, TEXTS, [recipe and recipe * 0 for recipe in recipes], max_tokens=10) == plain


def test_what_the_engine_cannot_hold_is_said(pair: ModelPair, engine: VllmEngine) -> None:
    with pytest.raises(NotSupported, match="split over devices"):
        vllm_ids(engine, pair.base, TEXTS, [iv.Recipe([iv.HeadScale({"L1H0": 0.0})]), None, None, None])
    with pytest.raises(NotSupported, match="cannot hold TokenRules"):
        vllm_ids(engine, pair.base, TEXTS, [iv.Recipe([iv.TokenRules(biases={40: 2.0})]), None, None, None])
    with pytest.raises(UserError, match="1 recipes for 4 prompts"):
        vllm_ids(engine, pair.base, TEXTS, [None])
    with pytest.raises(NotSupported, match="z is not to be had on vLLM"):
        wb.record(pair, TEXTS, ["z"], executor="vllm")
    with pytest.raises(NotSupported, match="cannot hold TokenRules"):
        wb.behaviour_diff(pair, TEXTS, iv.Recipe([iv.TokenRules(biases={40: 2.0})]), metrics=["kl"], executor="vllm")
    with (
        pytest.raises(NotSupported, match="was changed here"),
        iv.Recipe([iv.HeadScale({"L1H0": 0.0})]).applied(pair.base),
    ):
        wb.behaviour_diff(pair, TEXTS, metrics=["kl"], executor="vllm")
    with pytest.raises(UserError, match="max_model_len of 128"):
        wb.behaviour_diff(pair, TEXTS, metrics=["length"], max_new_tokens=200, executor="vllm")


def test_what_is_measured_there_is_what_is_measured_here(pair: ModelPair, engine: VllmEngine) -> None:
    """Texts, also sampled ones, and every metric of them; the engine is the one that is open."""
    rows = Prompts.of([{"prompt": row.prompt, "answer": " fox", "chat": False} for row in TEXTS])
    recipe = iv.Recipe([iv.Offset(1, vector(pair, 1), positions="last+generated")])
    settings: dict[str, Any] = {
        "metrics": ["accuracy", "prob", "kl", "kl_base_model", "answer_logprob", "same_as_base", "perplexity"],
        "neutral": TEXTS[:3], "max_new_tokens": 6, "samples": 2, "texts": True, "batch_size": 3,
        "base_recipes": {"base + recipe": recipe * 0.5},
    }  # fmt: skip
    there = wb.behaviour_diff(pair, rows, recipe, executor="vllm", **settings)
    with local():
        here = wb.behaviour_diff(pair, rows, recipe, **settings)
    assert list(here.texts["text"]) == list(there.texts["text"])
    pd.testing.assert_frame_equal(here.table, there.table, atol=1e-4, rtol=1e-4)
    assert there.provenance.settings["executor"] == "vllm" and "vllm" in there.provenance.settings["engine"]
    assert "executor" not in here.provenance.settings
    doses = [
        wb.dose_response(pair, TEXTS, iv.dose(recipe), [0, 0.5, 1], metric="entropy").table,
    ]
    with local():
        doses.append(wb.dose_response(pair, TEXTS, iv.dose(recipe), [0, 0.5, 1], metric="entropy").table)
    pd.testing.assert_frame_equal(*doses, atol=1e-4, rtol=1e-4)
    assert pair.tuned.n_hooks == 0


def test_a_recipe_is_certified_against_the_engine(pair: ModelPair, engine: VllmEngine) -> None:
    recipe = iv.Recipe([iv.Offset(1, vector(pair, 1), positions="last+generated")])
    for side in (pair.base, pair.tuned):
        found = iv.certify(side, recipe, "vllm", TEXTS, max_new_tokens=6)
        assert found.holds and found.equal_tokens == 1 and found.target.startswith("vllm"), found.summary()
        assert found.difference < 1e-3 < found.effect
        with pytest.raises(NotSupported, match="cannot hold TokenRules"):
            iv.certify(side, iv.Recipe([iv.TokenRules(biases={40: 2.0})]), "vllm", TEXTS)
