"""A model split over two processes computes what one process computes, hooks and all; a rank that dies is told of."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import psutil
import pytest
import torch

import interventions as iv
import workbench as wb
from interventions.vllm_texts import vllm_ids
from tests.tiny import tiny_model, tokenizer
from tests.workbench.vllm.lora_folders import save_lora_pair
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import NotSupported, UserError
from workbench.models.pair import ModelPair
from workbench.prompts import Prompts
from workbench.vllm.ranks import Call, _packed
from workbench.vllm.route import route_of
from workbench.vllm.running import VllmEngine, check_settings

HERE = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
]
TEXTS = Prompts.of(["the quick brown fox", "jumps over", "the lazy dog and the fox jumps", "a"], chat=False)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> ModelPair:
    folders = save_lora_pair(tmp_path_factory.mktemp("pair"), tiny_model("llama", head_dim=32), tokenizer())
    return wb.load_pair(*map(str, folders), dtype="float32")


@pytest.fixture(scope="module")
def engine(pair: ModelPair) -> Iterator[VllmEngine]:
    with wb.on_vllm(pair, tensor_parallel_size=2, max_model_len=128, max_num_seqs=8):
        route = route_of(pair.tuned)
        assert route is not None
        yield route.engine


def recipe(pair: ModelPair, seed: int, **more: Any) -> iv.Recipe:
    vector = 4 * torch.randn(pair.base.d_model, generator=torch.Generator().manual_seed(seed))
    return iv.Recipe([iv.Offset(1, vector, **more)])


def ranks() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if "workbench.vllm.further_rank" in one.cmdline()]


class TestTwoRanks:
    pytestmark = HERE

    def test_rows_logits_and_steered_texts_are_those_of_hugging_face(self, pair: ModelPair, engine: VllmEngine) -> None:
        assert len(ranks()) == 1
        sites = ["resid_post", "attn_out", "mlp_out"]
        here = wb.record(pair, TEXTS, sites, positions="all")
        there = wb.record(pair, TEXTS, sites, positions="all", executor="vllm")
        for role in ("base", "tuned"):
            for site in here.sites:
                ours, theirs = (torch.as_tensor(one[role][site]) for one in (here, there))
                assert float((ours - theirs).norm() / ours.norm()) < 1e-5, (role, site)
        gate = iv.Gate(0, recipe(pair, 5).interventions[0].vector, 0.0, reach="onward")
        recipes = [recipe(pair, 1, positions="last+generated"), None, recipe(pair, 2, when=gate), recipe(pair, 3) * 0.5]
        for side in (pair.base, pair.tuned):
            found = vllm_ids(engine, side, TEXTS, recipes, max_tokens=8)
            for row, one in enumerate(recipes):
                with (one or iv.Recipe()).applied(side):
                    batch = side.encode(Prompts([TEXTS[row]]))
                    single = side.generate_ids(batch, max_new_tokens=8)[0, batch.input_ids.shape[1] :].tolist()
                assert found[row] == single
        assert iv.certify(pair.tuned, recipes[0], "vllm", TEXTS, max_new_tokens=4).holds

    def test_sampled_texts_are_those_of_one_process(self, pair: ModelPair, engine: VllmEngine) -> None:
        from workbench.vllm.route import ROUTE

        texts = []
        for route in (ROUTE.get(), None):
            token = ROUTE.set(route)
            made = wb.behaviour_diff(pair, TEXTS, metrics=["length"], samples=2, max_new_tokens=5, texts=True)
            ROUTE.reset(token)
            texts.append(made.texts)
        assert texts[0].equals(texts[1]) and texts[0]["text"].nunique() > 8


def test_a_hook_that_cannot_be_sent_is_refused() -> None:
    lock = threading.Lock()
    hooks = {0: [SiteHook(Site("resid_post", 0), lambda value, _: (value, lock)[0], edit=True)]}
    with pytest.raises(NotSupported, match="leave tensor_parallel_size at 1"):
        _packed(Call("base", [[1]], {}, hooks=hooks))


def test_the_number_of_ranks_is_checked_first() -> None:
    check_settings({"tensor_parallel_size": 2})
    for wrong in (0, "2"):
        with pytest.raises(UserError, match="give 1 or more"):
            check_settings({"tensor_parallel_size": wrong})
