"""record() on the device: the numbers of the CPU in every form, the dtype kept, the memory given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cuda.place import DEVICE, close, pair_on
from workbench.errors import UserError
from workbench.models.pair import ModelPair
from workbench.recording.plan import auto_batch_size
from workbench.recording.record_pair import record
from workbench.recording.recording import Recording

WORDS = "the quick brown fox jumps over lazy dog hello world this is a test".split()
PROMPTS = [" ".join(WORDS[i % 7 : i % 7 + 1 + i % 9]) for i in range(24)]
needs_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="only CUDA has this error")


@pytest.fixture(scope="module", params=["llama", "qwen3moe"])
def both(request: pytest.FixtureRequest) -> tuple[ModelPair, ModelPair]:
    return pair_on(DEVICE, request.param), pair_on("cpu", request.param)


def sites_of(pair: ModelPair) -> list[str]:
    return ["z", "resid_post", "pattern", *(["router"] if pair.tuned.moe_layers else [])]


def agree(found: Recording, wanted: Recording) -> None:
    assert found.sites == wanted.sites and found.index.equals(wanted.index)
    for role in wanted.roles:
        for site in wanted.sites:
            one, other = (torch.as_tensor(rec[role][site][:]) for rec in (found, wanted))
            assert one.device.type == "cpu" and one.dtype == other.dtype, site
            close(one.float(), other.float(), atol=1e-3)


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("size", [5, "auto"])
def test_in_memory_as_on_the_cpu(both: tuple[ModelPair, ModelPair], positions: str, size: Any, memory: None) -> None:
    found, wanted = (
        record(one, PROMPTS, sites_of(one), positions=positions, batch_size=size, logits=True) for one in both
    )
    agree(found, wanted)
    assert all(model.n_hooks == 0 for pair in both for model in pair.models.values())


def test_in_a_folder_as_in_memory(both: tuple[ModelPair, ModelPair], tmp_path: Path, memory: None) -> None:
    pair = both[0]
    kept = record(pair, PROMPTS, sites_of(pair), positions="all", batch_size=4)
    record(pair, PROMPTS, sites_of(pair), positions="all", batch_size=4, store=tmp_path / "a", shard_bytes=100_000)
    stored = Recording.load(tmp_path / "a")
    for role in kept.roles:
        for site in kept.sites:
            assert torch.equal(kept[role][site], stored[role][site].load()), site


def test_statistics_as_on_the_cpu(both: tuple[ModelPair, ModelPair], memory: None) -> None:
    options: dict[str, Any] = {"positions": "all", "store": None, "covariance": True, "top": 3, "batch_size": 4}
    found, wanted = (record(one, PROMPTS, ["z", "resid_post"], **options) for one in both)
    for role, moments in wanted.moments.items():
        for site, moment in moments.items():
            close(found.moments[role][site].mean, moment.mean)
            close(found.moments[role][site].variance, moment.variance)
            assert found.moments[role][site].mean.device.type == "cpu"
    for site, difference in wanted.top["difference"].items():
        values = (torch.tensor(top.frame()["value"].to_numpy()) for top in (found.top["difference"][site], difference))
        close(*values)


def test_continuations_as_on_the_cpu(both: tuple[ModelPair, ModelPair]) -> None:
    agree(*(record(one, PROMPTS[:6], "resid_post", positions="all", new_tokens=3, batch_size=3) for one in both))


def test_traces_as_hooks(both: tuple[ModelPair, ModelPair]) -> None:
    pair = both[0]
    agree(*(record(pair, PROMPTS[:6], ["resid_post", "z"], batch_size=3, backend=one) for one in ("nnsight", "hooks")))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    rec = record(pair_on(DEVICE, dtype=dtype), PROMPTS[:6], ["z", "resid_post"], positions="all", batch_size=3)
    assert {value.dtype for role in rec.roles for value in rec[role].values()} == {dtype}
    wide = record(pair_on(DEVICE, dtype=dtype), PROMPTS[:6], "z", positions="all", dtype=torch.float32, batch_size=3)
    assert wide["tuned"]["z", 1].dtype == torch.float32
    assert torch.equal(wide["tuned"]["z", 1], rec["tuned"]["z", 1].float())


def test_the_automatic_batch_fits_the_devices_memory(both: tuple[ModelPair, ModelPair]) -> None:
    size = auto_batch_size(both[0].tuned, 100)
    assert 1 <= size <= 256 and size * 100 <= 8192


@contextmanager
def exhausted(pair: ModelPair, above: int) -> Iterator[None]:
    """The second layer of the tuned model asks for more than the card has when a batch is larger."""

    def fill(_module: Any, _args: Any, output: Any) -> None:
        rows = (output if isinstance(output, torch.Tensor) else output[0]).shape[0]
        if rows > above:
            torch.empty(2**46, dtype=torch.uint8, device=DEVICE)

    handle = pair.tuned.inner.model.layers[1].register_forward_hook(fill)
    try:
        yield
    finally:
        handle.remove()


@needs_cuda
def test_out_of_memory_is_told_and_leaves_the_model_usable(memory: None) -> None:
    pair = pair_on(DEVICE)
    wanted = record(pair, PROMPTS, "z", batch_size=4)
    with exhausted(pair, above=3), pytest.raises(UserError, match="memory ran out at 4 prompts"):
        record(pair, PROMPTS, "z", batch_size=4)
    assert pair.tuned.n_hooks == 0 and pair.base.n_hooks == 0
    again = record(pair, PROMPTS, "z", batch_size=4)
    assert torch.equal(again["tuned"]["z", 1], wanted["tuned"]["z", 1])


@needs_cuda
def test_an_automatic_batch_is_halved_until_it_fits(tmp_path: Path, memory: None) -> None:
    pair = pair_on(DEVICE)
    with exhausted(pair, above=7):
        found = record(pair, PROMPTS, "z", store=tmp_path / "a")
    size = found.config["batch_size"]
    assert 1 <= size <= 7
    agree(found, record(pair_on("cpu"), PROMPTS, "z", batch_size=size))
