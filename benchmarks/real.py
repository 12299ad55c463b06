"""Real sizes: SmolLM2-135M-Instruct and smol-refusal against the fewest forward passes that each question needs.

python benchmarks/real.py [--prompts 120] [--few 12] [--rounds 3] [--only heads] [--memory] [--json]

Each row names its yardstick: bare Hugging Face calls over the same tokens in the same batches, or a number of suffix
passes times what a bare pass took in the same run. Processor time decides where the machine is shared.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import probes
import workbench as wb
from benchmarks.memory import in_fresh_process, peak, reset_peak, resident
from benchmarks.timing import hardware, rounds_of
from probes.patches.cells import all_cells
from probes.patches.fast_pass import exact_cost
from workbench import organisms
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.models.pair import ModelPair
from workbench.prompts import Prompts
from workbench.prompts.encode import Encoded, batches, encode, pad_left

BATCH, NEW = 32, 24
LAYERS = [0, 6, 12, 18, 24]
POSITIONS = [-1, -2, -3, -4]
FAST_PASSES, FAST_SHARE = 5, 0.12
"""The bar of the fast pass: so many forward passes, and this share of the exact cost."""


class Bench:
    """The pair, its prompts, and the same tokens in the same batches for bare calls."""

    def __init__(self, prompts: int, few: int) -> None:
        organism = organisms.build("smol-refusal")
        self.pair: ModelPair = wb.load_pair(organism.base, organism.tuned, dtype="float32")
        rows = Prompts.of(organism.splits["held_out"])
        self.rows = Prompts([row for row in rows][:prompts])
        self.few = Prompts([row for row in rows][:few])
        self._parting: Prompts | None = None

    @property
    def answered(self) -> Prompts:
        """The rows with an answer, which accuracy and prob need."""
        return Prompts([row for row in self.rows if row.answer])

    @property
    def parting(self) -> Prompts:
        """Rows that end where the answers of a few questions part."""
        if self._parting is None:
            self._parting = wb.contrast(self.pair, self.few)
        return self._parting

    def batches_of(self, rows: Prompts, size: int = BATCH) -> list[Encoded]:
        ids = encode(rows, self.pair.tokenizer)
        pad = pad_id(self.pair.tokenizer)
        return [pad_left([ids[n] for n in some], pad) for some in batches([len(row) for row in ids], size)]

    def bare(self, rows: Prompts, size: int = BATCH, *, both: bool = True) -> None:
        """One Hugging Face call per batch and model, last logits alone."""
        for model in self.pair.models.values() if both else [self.pair.tuned]:
            for batch in self.batches_of(rows, size):
                self._call(model, batch)

    def bare_generate(self, rows: Prompts) -> None:
        """One greedy ``generate`` per batch and model."""
        for model in self.pair.models.values():
            for batch in self.batches_of(rows):
                with model.active(), torch.no_grad():
                    model.inner.generate(
                        batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=NEW, do_sample=False,
                        pad_token_id=pad_id(self.pair.tokenizer),
                    )  # fmt: skip

    @staticmethod
    def _call(model: AdaptedModel, batch: Encoded) -> None:
        with model.active(), torch.no_grad():
            model.inner(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids,
                use_cache=False, logits_to_keep=1,
            )  # fmt: skip


def diff(bench: Bench, rounds: int) -> dict[str, Any]:
    rows = bench.answered
    measured = rounds_of({
        "ours": lambda: wb.behaviour_diff(bench.pair, rows, metrics=["accuracy", "prob", "kl"], batch_size=BATCH),
        "bare": lambda: bench.bare(rows),
    }, rounds=rounds)  # fmt: skip
    return _row(measured, "two forward passes over the same tokens", 1.15, len(rows))


def refusals(bench: Bench, rounds: int) -> dict[str, Any]:
    measured = rounds_of({
        "ours": lambda: wb.behaviour_diff(
            bench.pair, bench.rows, metrics=["refusal"], batch_size=BATCH, max_new_tokens=NEW
        ),
        "bare": lambda: bench.bare_generate(bench.rows),
    }, rounds=rounds, warm_up=0)  # fmt: skip
    return _row(measured, f"two batched generate calls of {NEW} tokens", 1.10, len(bench.rows))


def activations(bench: Bench, rounds: int) -> dict[str, Any]:
    measured = rounds_of({
        "ours": lambda: wb.record(bench.pair, bench.rows, ["resid_post", "z"], positions="last", batch_size=BATCH),
        "bare": lambda: bench.bare(bench.rows),
    }, rounds=rounds)  # fmt: skip
    return _row(measured, "two forward passes over the same tokens", 1.10, len(bench.rows))


def heads(bench: Bench, rounds: int) -> dict[str, Any]:
    """The fast pass as called; its bar in passes of the same batches, and what it spent by its own count."""
    rows, model = bench.parting, bench.pair.tuned
    cells = all_cells(model, ["write"], range(model.n_layers), [None])
    exact = exact_cost(cells, model.n_layers, 1)
    results: list[Any] = []
    measured = rounds_of({
        "ours": lambda: results.append(probes.patching(bench.pair, rows, "heads", together=0)),
        "bare": lambda: bench.bare(rows, 16, both=False),
    }, rounds=rounds, warm_up=0)  # fmt: skip
    row, batches_ = _row(measured, "one forward pass", FAST_PASSES + FAST_SHARE * exact, len(rows)), _count(bench, rows)
    made = results[-1].provenance
    passes = (made.forward_passes + 2 * made.backward_passes) / batches_
    return {
        **row, "exact_passes": exact, "passes_counted": round(passes, 1),
        "said": results[-1].summary(), "exact_cells": int(results[-1].table["exact"].sum()),
    }  # fmt: skip


def grid(bench: Bench, rounds: int) -> dict[str, Any]:
    """Layers by positions of the residual stream, in the suffix passes that it needs (two whole passes first)."""
    rows, model = bench.parting, bench.pair.tuned
    tokens = max(len(ids) for ids in encode(rows, bench.pair.tokenizer))
    cells = all_cells(model, ["resid_post"], LAYERS, [(place,) for place in POSITIONS])
    needed = 2 + exact_cost(cells, model.n_layers, tokens)
    measured = rounds_of({
        "ours": lambda: probes.patching(bench.pair, rows, "resid_post", layers=LAYERS, positions=POSITIONS, exact=True),
        "bare": lambda: bench.bare(rows, 16, both=False),
    }, rounds=rounds, warm_up=0)  # fmt: skip
    row = _row(measured, "one forward pass", needed * 1.15, len(rows))
    return {**row, "passes_needed": round(needed, 1), "over_needed": round(row["cpu_ratio"] / needed, 3)}


ROWS: dict[str, Callable[[Bench, int], dict[str, Any]]] = {
    "diff": diff, "refusals": refusals, "activations": activations, "heads": heads, "grid": grid,
}  # fmt: skip


def memory(part: str, prompts: int, few: int) -> dict[str, Any]:
    """Peak resident memory beyond the loaded pair, in MB, of one row's own call, in a fresh process."""
    torch.set_num_threads(1)
    bench = Bench(prompts, few)
    if part in ("heads", "grid"):
        bench.parting  # noqa: B018 (made before the peak is looked at)
    bench.bare(bench.few)
    loaded = resident()
    reset_peak()
    calls: dict[str, Callable[[], Any]] = {
        "diff": lambda: wb.behaviour_diff(
            bench.pair, bench.answered, metrics=["accuracy", "prob", "kl"], batch_size=BATCH
        ),
        "refusals": lambda: wb.behaviour_diff(
            bench.pair, bench.rows, metrics=["refusal"], batch_size=BATCH, max_new_tokens=NEW
        ),
        "activations": lambda: wb.record(
            bench.pair, bench.rows, ["resid_post", "z"], positions="last", batch_size=BATCH
        ),
        "heads": lambda: probes.patching(bench.pair, bench.parting, "heads", together=0),
        "grid": lambda: probes.patching(
            bench.pair, bench.parting, "resid_post", layers=LAYERS, positions=POSITIONS, exact=True
        ),
    }  # fmt: skip
    calls[part]()
    return {"peak_beyond_weights_mb": round(peak() - loaded), "loaded_mb": round(loaded)}


def _count(bench: Bench, rows: Prompts) -> int:
    return len(bench.batches_of(rows, 16))


def _row(measured: Any, yardstick: str, bar: float, n: int) -> dict[str, Any]:
    timing = measured.against("ours", "bare").to_dict()
    return {**timing, "yardstick": yardstick, "bar": round(bar, 2), "met": timing["cpu_ratio"] <= bar, "prompts": n}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=120)
    parser.add_argument("--few", type=int, default=12, help="questions for heads and grid")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=sorted(ROWS))
    parser.add_argument("--memory", action="store_true", help="peak memory of each row instead of its time")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = [arguments.only] if arguments.only else list(ROWS)
    figures: dict[str, Any] = {"hardware": hardware(), "at": time.strftime("%Y-%m-%d")}
    bench = None if arguments.memory else Bench(arguments.prompts, arguments.few)
    for name in names:
        figures[name] = (
            ROWS[name](bench, arguments.rounds) if bench is not None
            else in_fresh_process("benchmarks.real", "memory", part=name, prompts=arguments.prompts, few=arguments.few)
        )  # fmt: skip
        if not arguments.json:
            print(f"{name}\n{json.dumps(figures[name], indent=2)}", flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
