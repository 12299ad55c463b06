"""Seconds: hooks and record() beside the bare forward and the peers; memory beside disk."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks import record_peers
from benchmarks.record_models import BATCH, LENGTH, pair_of, prompts_for
from benchmarks.timing import rounds_of
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.recording.record_pair import record
from workbench.recording.recording import Recording

KINDS = ("z", "resid_post")
BARE = "bare HF forward"
FROM_TEXT = "tokenizer and bare HF forward"
"""What record() begins with too where it is given text; everything else here is given token ids."""
RECORD = "tunescope record(ids), all tokens"
RECORD_TEXT = "tunescope record(text), all tokens"
TOLERANCE = {"cpu": 2e-5, "cuda": 1e-4}
"""Largest absolute difference allowed from a peer in float32, times the largest value of the site."""
TOLERANCE_BF16 = 0.05


def speed(model: AdaptedModel, rounds: int) -> dict[str, Any]:
    """Every variant against the bare forward on one batch of 16 x 128 tokens."""
    prompts = prompts_for(model)
    ids = model.encode(prompts).input_ids
    assert ids.shape == (BATCH, LENGTH)
    half = list(range(model.n_layers // 2))
    ours = {
        BARE: lambda: bare(model, ids),
        f"{BARE}, again": lambda: bare(model, ids),
        FROM_TEXT: lambda: bare_from_text(model, prompts),
        "tunescope hooks": lambda: hooked(model, ids, model.expand(KINDS)),
        f"tunescope hooks, layers 0-{half[-1]}": lambda: hooked(model, ids, model.expand(KINDS, half), stop=True),
        RECORD: lambda: whole(model, ids),
        RECORD_TEXT: lambda: whole(model, prompts),
        "tunescope record(ids), last token": lambda: whole(model, ids, positions="last"),
        f"tunescope record(ids), layers 0-{half[-1]}": lambda: whole(model, ids, layers=half),
    }
    peers = {
        "plain torch hooks": record_peers.plain_hooks(model, ids),
        "TransformerLens run_with_cache": record_peers.transformer_lens(model, ids),
        "nnsight trace": record_peers.nnsight(model, ids),
        "HF output_hidden_states": record_peers.hidden_states(model, ids),
    }
    known = {name: call for name, call in peers.items() if call is not None}
    agreement = {name: agree(model, ids, prompts, call) for name, call in known.items()}
    measured = rounds_of({**ours, **known}, rounds=rounds)
    timings = {name: measured.against(name, BARE) for name in (*ours, *known)}
    timings[f"{RECORD_TEXT} / {FROM_TEXT}"] = measured.against(RECORD_TEXT, FROM_TEXT)
    return {**{name: timing.to_dict() for name, timing in timings.items()}, "largest difference": agreement}


def bare(model: AdaptedModel, ids: torch.Tensor) -> torch.Tensor:
    """What anybody would run."""
    with torch.no_grad():
        return model.hf(ids, use_cache=False).logits


def bare_from_text(model: AdaptedModel, prompts: list[str]) -> torch.Tensor:
    """What anybody would run on prompts (all of one length here)."""
    return bare(model, model.tokenizer(prompts, return_tensors="pt").input_ids.to(model.device))


def hooked(model: AdaptedModel, ids: torch.Tensor, sites: list[Site], *, stop: bool = False) -> dict[str, torch.Tensor]:
    """Our readers, which keep references; with ``stop`` the forward ends after the last of them."""
    figures: dict[str, torch.Tensor] = {}

    def keep(site: Site) -> SiteHook:
        return SiteHook(site, lambda value, _ctx: figures.__setitem__(site.name, value))

    with model.hooked([keep(site) for site in sites], stop=stop):
        model.forward(ids, logits=None if stop else "all")
    return figures


def whole(
    model: AdaptedModel, prompts: list[str] | torch.Tensor, positions: str = "all", layers: Any = None
) -> Recording:
    """The public call: reading the prompts, encoding texts, batching, copies, the index, the search for NaN."""
    return record(model, prompts, list(KINDS), layers=layers, positions=positions, batch_size=BATCH)


def agree(
    model: AdaptedModel, ids: torch.Tensor, prompts: list[str], peer: Callable[[], dict[str, torch.Tensor]]
) -> float:
    """The largest difference of a peer's values from those of our hooks; record() must equal our hooks exactly."""
    mine, theirs, rows = hooked(model, ids, model.expand(KINDS)), peer(), whole(model, ids)[model.role]
    assert all(torch.equal(value, rows[name]) for name, value in whole(model, prompts)[model.role].items())
    assert len(theirs) >= model.n_layers - 1
    worst = 0.0
    for name, value in theirs.items():
        assert torch.equal(rows[name], mine[name].flatten(0, 1).cpu()), name
        worst = max(worst, float((value - mine[name]).abs().max() / mine[name].abs().max().clamp(min=1)))
    if worst > (TOLERANCE[ids.device.type] if model.dtype == torch.float32 else TOLERANCE_BF16):
        raise AssertionError(f"a peer differs from our values by {worst}")
    return worst


def storing(model: AdaptedModel, prompts: int, rounds: int) -> dict[str, Any]:
    """A pair recorded at all tokens to a folder and to memory: seconds, and bytes on disk over those of the rows."""
    pair, texts = pair_of(model), prompts_for(model, prompts)
    _ = pair.base.identity, pair.tuned.identity  # hashed once per loaded model, not per recording

    def run(store: str | Path) -> Recording:
        return record(pair, texts, list(KINDS), positions="all", batch_size=BATCH, store=store)

    with tempfile.TemporaryDirectory() as folder:
        fresh = (Path(folder) / f"{number}" for number in count())
        in_memory, first = run("memory"), next(fresh)
        stored = run(first)
        for role in in_memory.roles:
            for site in in_memory.sites:
                assert torch.equal(in_memory[role][site], stored[role][site].load())
        tensors = sum(rows.nbytes for role in in_memory.roles for rows in in_memory[role].values())
        written = sum(path.stat().st_size for path in first.iterdir())
        del in_memory, stored
        batches = [model.encode(texts[start : start + BATCH]).input_ids for start in range(0, prompts, BATCH)]
        variants = {
            "bare": lambda: bare_pair(pair, batches),
            "memory": lambda: run("memory"),
            "disk": lambda: run(next(fresh)),
        }
        measured = rounds_of(variants, rounds=rounds, warm_up=0)
        probe = _disk_rate(Path(folder) / "probe", tensors)
    return {
        f"record(pair) of {prompts} prompts / bare": measured.against("memory", "bare").to_dict(),
        "record(pair) to disk / in memory": measured.against("disk", "memory").to_dict(),
        "store": {
            "megabytes": round(tensors / 1e6, 1), "bytes_over_tensors": round(written / tensors, 4),
            "plain_write_s": round(probe, 3),
        },
    }  # fmt: skip


def bare_pair(pair: ModelPair, batches: list[torch.Tensor]) -> None:
    """The forwards that recording the pair needs, and nothing else."""
    for ids in batches:
        for model in pair.models.values():
            bare(model, ids)


def _disk_rate(path: Path, size: int) -> float:
    """Seconds to write and flush as many bytes in one go: what the disk itself takes."""
    data = torch.zeros(size, dtype=torch.uint8).numpy().data
    start = time.perf_counter()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - start
