"""Rows that come to main memory while the models go on are those that were on the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.cuda.place import DEVICE, pair_on
from workbench.engine.hub import SiteHook
from workbench.models.adapted import AdaptedModel
from workbench.recording import transfer
from workbench.recording.record_pair import record
from workbench.recording.recording import Recording
from workbench.recording.transfer import BUFFER_BYTES, BUFFERS, SMALL, Transfer

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]
PROMPTS = [" ".join(["the quick brown fox jumps over lazy dog"] * 6) for _ in range(80)]


def given(count: int, dtype: torch.dtype) -> torch.Tensor:
    made = torch.randint(0, 2 if dtype == torch.bool else 100, (count,), device=DEVICE)
    return made.to(dtype)


def test_every_size_and_dtype_arrives_though_the_device_goes_on() -> None:
    """The device's memory is written over as soon as a tensor is dropped."""
    moving, wanted, found = Transfer(), [], []
    sizes = [0, 1, SMALL // 8, SMALL, 3 * SMALL + 5, BUFFER_BYTES // 4 + 1, 2 * BUFFER_BYTES + 77]
    for turn in range(3 * BUFFERS):
        for size in sizes:
            one = given(size, DTYPES[(turn + size) % len(DTYPES)])
            wanted.append(one.cpu())
            found.append(moving.begin({"one": one})["one"])
            del one
            torch.full((max(1, size) * 8,), 7, dtype=torch.uint8, device=DEVICE)
    moving.finish()
    moving.close()
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_views_and_what_is_in_main_memory() -> None:
    moving, table = Transfer(), torch.randn(3000, 700, device=DEVICE)
    here = torch.ones(3)
    found = moving.begin({"columns": table.T, "part": table[::2, :300], "here": here})
    moving.finish()
    assert list(found) == ["columns", "part", "here"] and found["here"] is here
    assert torch.equal(found["columns"], table.T.cpu()) and torch.equal(found["part"], table[::2, :300].cpu())
    moving.close()


def passed(model: AdaptedModel, batch_size: int) -> dict[str, torch.Tensor]:
    """Every value at z and resid_post of the prompts (all of one length), without the recorder."""
    rows: dict[str, list[torch.Tensor]] = {}
    sites = model.expand(["z", "resid_post"])
    hooks = [SiteHook(s, lambda value, _ctx, s=s: rows.setdefault(s.name, []).append(value.flatten(0, 1).cpu()))
             for s in sites]  # fmt: skip
    with model.hooked(hooks):
        for start in range(0, len(PROMPTS), batch_size):
            model.forward(model.encode(PROMPTS[start : start + batch_size]))
    return {name: torch.cat(pieces) for name, pieces in rows.items()}


@pytest.mark.parametrize("batch_size", [16, 80])
@pytest.mark.parametrize("stored", [False, True])
def test_large_recordings_are_what_the_models_computed(
    batch_size: int, stored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "LARGE", SMALL)
    pair = pair_on(DEVICE)
    store = tmp_path / "r" if stored else "memory"
    found = record(pair, PROMPTS, ["z", "resid_post"], positions="all", batch_size=batch_size, store=store)
    found = Recording.load(tmp_path / "r") if stored else found
    for role, model in pair.models.items():
        for name, value in passed(model, batch_size).items():
            assert value.nbytes > SMALL and torch.equal(found[role][name][:], value), (role, name)
