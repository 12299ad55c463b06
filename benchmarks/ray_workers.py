"""Work shared out over one and over two workers of a Ray cluster on this machine: by the clock and by processor time.

    python benchmarks/ray_workers.py BASE TUNED PROMPTS.jsonl [--limit 64] [--repeats 3] [--json]

A behaviour diff (KL of the next token, and whole answers, of both models) is done by this process alone, then by one
worker and by two, each with one thread; workers have loaded the models and done a little before the clock starts. Bar:
two workers at least 1.6 times as fast as one.

By processor time, which other programs on the machine disturb less, the work takes what this process used plus what its
busiest worker used: as if the two never ran at the same time, which they do. The load of the machine is told, as the
clock's ratio is only the bar's on a machine with two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import workbench as wb
from workbench.behaviour import behaviour_diff
from workbench.cluster.splitting import RunsHereWarning

Seconds = tuple[float, float]
"""By the clock, and of processor time."""


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("tuned")
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error", RunsHereWarning)
    pair = wb.load_pair(arguments.base, arguments.tuned, device="cpu", dtype="float32")
    rows = list(wb.Prompts.load(arguments.prompts))[: arguments.limit]

    def work(count: int) -> Any:
        return behaviour_diff(pair, wb.Prompts.of(rows[:count]), metrics=("kl", "answer_logprob"), batch_size=2).table

    figures = measured(pair, work, len(rows), arguments.repeats)
    figures |= {"load": os.getloadavg()[0], "cores": os.cpu_count(), "prompts": len(rows), "repeats": arguments.repeats}
    print(json.dumps(figures) if arguments.json else "\n".join(f"{name}: {value}" for name, value in figures.items()))


def measured(pair: wb.ModelPair, work: Callable[[int], Any], count: int, repeats: int) -> dict[str, Any]:
    """Seconds of each way of working, and how many times as fast two workers are."""
    tables: list[Any] = []

    def timed() -> list[Seconds]:
        return [_timed(lambda: tables.append(work(count))) for _ in range(repeats)]

    taken = {"this process": timed()}
    for workers in (1, 2):
        with wb.on_ray(pair, workers=workers):
            work(4)  # workers start and load
            taken[f"{workers} worker(s)"] = timed()
    figures: dict[str, Any] = {
        name: {"wall_s": round(_median(times, 0), 2), "cpu_s": round(_median(times, 1), 2)}
        for name, times in taken.items()
    }
    for name, place in (("clock", 0), ("processor time", 1)):
        one_worker, two = (_median(taken[f"{workers} worker(s)"], place) for workers in (1, 2))
        figures[f"two workers over one, by {name}"] = round(one_worker / two, 2)
    return {**figures, "equal": all(table.equals(tables[0]) for table in tables)}


def _timed(work: Callable[[], Any]) -> Seconds:
    began, own, theirs = time.perf_counter(), time.process_time(), _workers()
    work()
    spent = [seconds - theirs.get(pid, 0.0) for pid, seconds in _workers().items()]
    return time.perf_counter() - began, time.process_time() - own + max(spent, default=0.0)


def _workers() -> dict[int, float]:
    """Process -> seconds of processor time of each worker that this process started."""
    children = psutil.Process().children(recursive=True)
    return {child.pid: sum(child.cpu_times()[:2]) for child in children if "ModelWorker" in " ".join(child.cmdline())}


def _median(times: list[Seconds], place: int) -> float:
    return statistics.median(seconds[place] for seconds in times)


if __name__ == "__main__":
    main()
