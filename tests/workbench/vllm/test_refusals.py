"""What vLLM is refused is refused before it is looked for, so these run everywhere."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import nn

import workbench as wb
from tests.tiny import tiny_model, tokenizer
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook, hub_of
from workbench.engine.sites import Site
from workbench.errors import MissingExtra, NotSupported, UserError
from workbench.models.origin import Origin
from workbench.models.pair import load_pair
from workbench.vllm.layout import check_architecture, check_site
from workbench.vllm.running import VllmEngine
from workbench.vllm.tap import ROW, Tap


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sites": ["z"]}, "hook_z is not to be had on vLLM, as its attention kernel writes heads"),
        ({"sites": ["resid_post"], "logits": True}, "no logits of prompts"),
        ({"sites": ["resid_post"]}, "loads the weights itself"),
        ({"sites": ["resid_post"], "workers": 2}, "workers are processes of a Ray cluster"),
        ({"sites": ["resid_post"], "backend": "nnsight"}, "runs the models itself"),
        ({"sites": ["resid_post"], "executor": "local", "engine_settings": {}}, "are vLLM's"),
        ({"sites": ["resid_post"], "executor": "vlm"}, "Did you mean 'vllm'"),
    ],
)
def test_what_cannot_be_recorded_is_said(options: dict[str, object], message: str) -> None:
    base = tiny_model("llama")
    pair = load_pair(base, tiny_model("llama", seed=1), tokenizer=tokenizer(), check=False)
    with pytest.raises(UserError, match=message):
        wb.record(pair, ["the quick"], **{"executor": "vllm", **options})


def test_settings_that_hooks_do_not_survive_are_refused() -> None:
    for settings in ({"data_parallel_size": 2}, {"enforce_eager": False}, {"enable_prefix_caching": True}):
        with pytest.raises(NotSupported, match="leave it"):
            VllmEngine(Origin("./base", None), **settings)
    with pytest.raises(NotSupported, match="Sites of Linear are not proved"):
        check_architecture(nn.Linear(2, 2))
    with pytest.raises(NotSupported, match="fused module"):
        check_site(Site("mlp_post", 1))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_extra_is_named() -> None:
    with pytest.raises(MissingExtra, match=r"tunescope\[vllm\]"):
        VllmEngine(Origin("./base", None))


class _Layer(nn.Module):
    """vLLM's way: what the MLP wrote, and the residual stream before it."""

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden, residual


class _Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Layer()])


class _Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = _Body()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        wide = input_ids[:, None].float().expand(-1, 2)
        hidden, residual = self.model.layers[0](wide, 10 * wide)
        return hidden + residual


class _Runner:
    """The two requests of a step of a flat batch: one in the middle of its answer, one whose prompt is read."""

    class input_batch:
        req_ids = ("b", "a")
        num_computed_tokens_cpu = (5, 0)
        num_prompt_tokens = (4, 3)

    class query_start_loc:
        np = (0, 1, 4)

    def __init__(self) -> None:
        class Params:
            def __init__(self, row: int) -> None:
                self.extra_args = {ROW: row}

        class Request:
            def __init__(self, row: int) -> None:
                self.sampling_params = Params(row)

        self.requests = {"a": Request(0), "b": Request(1)}


def test_tokens_of_a_flat_batch_go_to_their_own_row() -> None:
    seen: dict[int, ForwardContext] = {}

    def adds(row: int, amount: float) -> SiteHook:
        def edit(value: torch.Tensor, ctx: ForwardContext) -> torch.Tensor:
            seen[row] = ctx
            return value + amount

        return SiteHook(Site("resid_post", 0), edit, edit=True)

    flat, hub = _Flat(), hub_of(tiny_model("llama"))
    ids = torch.tensor([9, 1, 2, 3])
    plain = flat(ids)
    with Tap(_Runner(), hub.template, {0: [adds(0, 1.0)], 1: [adds(1, -2.0)]}).on(flat):
        assert torch.equal(flat(input_ids=ids) - plain, torch.tensor([-2.0, 1, 1, 1])[:, None].expand(-1, 2))
    assert (seen[1].start, seen[1].length, seen[1].decoding) == (5, 1, True)
    assert (seen[0].start, seen[0].length, seen[0].decoding) == (0, 3, False)
    assert torch.equal(flat(ids), plain)
