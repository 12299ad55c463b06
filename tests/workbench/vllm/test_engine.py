"""vLLM beside Hugging Face on small models: the same rows, the same steered texts, and requests that never mix.

Runs where vLLM is installed (see docs/engines.md); skipped elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import interventions as iv
import workbench as wb
from interventions.vllm_texts import vllm_ids
from tests.tiny import tiny_model, tokenizer
from workbench.errors import NotSupported, UserError
from workbench.models.pair import ModelPair
from workbench.prompts import Prompts
from workbench.vllm.running import VllmEngine

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
SETTINGS = {"max_model_len": 128, "max_num_seqs": 8, "dtype": "float32"}
TEXTS = Prompts.of(["the quick brown fox", "jumps over", "the lazy dog and the fox jumps", "a"], chat=False)
SHAPES = {"llama": {"head_dim": 32}, "qwen2": {"head_dim": 32, "hidden_size": 128}}


@pytest.fixture(scope="module", params=list(SHAPES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelPair:
    """A base and its LoRA in folders."""
    from peft import LoraConfig, get_peft_model

    folder: Path = tmp_path_factory.mktemp(request.param)
    base = tiny_model(request.param, **SHAPES[request.param])
    base.save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    torch.manual_seed(0)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "o_proj", "down_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder / "adapter")
    return wb.load_pair(str(folder / "base"), str(folder / "adapter"), dtype="float32")


@pytest.fixture(scope="module")
def engine(pair: ModelPair) -> VllmEngine:
    assert pair.base.origin is not None
    return VllmEngine(pair.base.origin, **SETTINGS)


def vector(pair: ModelPair, seed: int) -> torch.Tensor:
    return 4 * torch.randn(pair.base.d_model, generator=torch.Generator().manual_seed(seed))


def test_recorded_rows_are_those_of_hugging_face(
    pair: ModelPair, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import workbench.recording.vllm_capture as capture

    monkeypatch.setattr(capture, "VllmEngine", lambda *_given, **_settings: engine)  # one engine in a process
    sites = ["resid_post", "attn_out", "mlp_out"]
    for positions in ("last", "all"):
        local = wb.record(pair, TEXTS, sites, positions=positions, batch_size=3)
        there = wb.record(pair, TEXTS, sites, positions=positions, batch_size=3, executor="vllm")
        assert local.index.equals(there.index)
        for role in ("base", "tuned"):
            for site in local.sites:
                ours, theirs = (torch.as_tensor(one[role][site]) for one in (local, there))
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


def test_a_model_without_weights_here_is_recorded_and_continued(
    pair: ModelPair, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import workbench.recording.vllm_capture as capture

    monkeypatch.setattr(capture, "VllmEngine", lambda *_given, **_settings: engine)
    assert pair.base.origin is not None
    folder = pair.base.origin.base
    shape, whole = (wb.load_model(folder, device=device, dtype="float32") for device in ("meta", "cpu"))
    there = wb.record(shape, TEXTS, ["resid_post"], store=tmp_path / "rows", executor="vllm", new_tokens=4)
    local = wb.record(whole, TEXTS, ["resid_post"], new_tokens=4)
    assert local.index.equals(there.index)
    ours, theirs = (torch.as_tensor(one["model"][local.sites[-1]][:]) for one in (local, there))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_what_the_engine_cannot_hold_is_said(pair: ModelPair, engine: VllmEngine) -> None:
    with pytest.raises(NotSupported, match="split over devices"):
        vllm_ids(engine, pair.base, TEXTS, [iv.Recipe([iv.HeadScale({"L1H0": 0.0})]), None, None, None])
    with pytest.raises(NotSupported, match="cannot hold TokenRules"):
        vllm_ids(engine, pair.base, TEXTS, [iv.Recipe([iv.TokenRules(biases={40: 2.0})]), None, None, None])
    with pytest.raises(UserError, match="1 recipes for 4 prompts"):
        vllm_ids(engine, pair.base, TEXTS, [None])
    with pytest.raises(NotSupported, match="z is not to be had on vLLM"):
        wb.record(pair, TEXTS, ["z"], executor="vllm")
