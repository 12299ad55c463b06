"""On the device the engine adds nothing: bit-equal to the bare model before, during and after, and no hook is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cuda.place import DEVICE, close, model_there
from tests.tiny import FAMILIES, tiny_model, token_batch, tokenizer
from workbench.engine.hub import SiteHook
from workbench.engine.selfcheck import self_check
from workbench.engine.sites import Site
from workbench.models.adapted import AdaptedModel
from workbench.prompts.encode import pad_left

IDS = token_batch()


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> AdaptedModel:
    return model_there(request.param)


def bare(model: AdaptedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.hf(IDS.to(DEVICE)).logits


def readers(model: AdaptedModel, into: dict[str, Any], *, but: tuple[str, ...] = ()) -> list[SiteHook]:
    def keep(name: str) -> SiteHook:
        site = Site.parse(f"{name}[1]" if name.endswith("expert") else name)
        return SiteHook(site, lambda value, _ctx: into.__setitem__(name, value))

    return [keep(name) for name in model.sites() if not any(part in name for part in but)]


def hooks(hf: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in hf.modules())


def test_bit_equal_before_during_and_after(model: AdaptedModel) -> None:
    want, before = bare(model), hooks(model.hf)
    assert want.device.type == DEVICE.type
    assert torch.equal(model.forward(IDS), want)
    with model.hooked(readers(model, {}, but=("pattern", "expert"))):
        assert torch.equal(model.forward(IDS), want) and torch.equal(bare(model), want)
    with pytest.raises(RuntimeError, match="on purpose"), model.hooked(readers(model, {})):
        model.forward(IDS)
        raise RuntimeError("on purpose")
    assert torch.equal(model.forward(IDS), want) and torch.equal(bare(model), want)
    assert hooks(model.hf) == before and model.n_hooks == 0


def test_every_site_is_there_and_says_what_it_says_on_the_cpu(model: AdaptedModel) -> None:
    own = AdaptedModel(tiny_model(model.name), tokenizer(), name=model.name)
    assert self_check(model.hub) == self_check(own.hub) and model.sites() == own.sites()
    found: dict[str, Any] = {}
    wanted: dict[str, Any] = {}
    for one, into in ((model, found), (own, wanted)):
        with one.hooked(readers(one, into)):
            close(one.forward(IDS), bare(model), atol=2e-3)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert found[name].device.type == DEVICE.type, name
            close(found[name], value, atol=2e-3)


def test_padding_changes_no_row(model: AdaptedModel) -> None:
    rows = [IDS[0].tolist(), IDS[1, :9].tolist()]
    both = model.forward(pad_left(rows, 0).to(DEVICE), logits="last")
    for number, row in enumerate(rows):
        close(both[number, -1], model.forward(torch.tensor([row]))[0, -1], atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "qwen3moe", "gptoss"])
def test_bit_equal_in_half_precision(family: str, dtype: torch.dtype) -> None:
    model = model_there(family, dtype=dtype)
    want, found = bare(model), {}
    with model.hooked(readers(model, found, but=("pattern", "expert"))):
        assert torch.equal(model.forward(IDS), want)
    assert found["blocks.1.hook_resid_post"].dtype == dtype and model.n_hooks == 0
