"""Timings that hold on a shared machine: variants take turns in one process, each beside the baseline of its round."""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """One variant over all rounds. Ratios are to the baseline of the same round, so drifts of the machine cancel."""

    wall_s: float
    """Median seconds by the clock."""
    wall_ratio: float
    """Median of the paired ratios of wall_s; ``low`` and ``high`` are their quartiles."""
    low: float
    high: float
    cpu_s: float
    """Median seconds of processor time of this process: what the work costs, whoever else is running."""
    cpu_ratio: float
    """Median of the paired ratios of cpu_s."""
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, rounded to what was measured."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


class Rounds:
    """Seconds of every variant in every round."""

    def __init__(self, taken: Mapping[str, list[tuple[float, float]]]) -> None:
        self.taken = taken

    def against(self, name: str, baseline: str) -> Timing:
        """One variant beside another of the same rounds."""
        return _summary(self.taken[name], self.taken[baseline])


def rounds_of(variants: Mapping[str, Callable[[], Any]], *, rounds: int, warm_up: int = 1) -> Rounds:
    """Run ``variants`` in turns, in a new order each round (seeded)."""
    order, shuffle = list(variants), random.Random(0)
    for _ in range(warm_up):
        for name in order:
            variants[name]()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in order}
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            taken[name].append(_seconds(variants[name]))
    return Rounds(taken)


def _seconds(call: Callable[[], Any]) -> tuple[float, float]:
    _wait_for_gpu()
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    _wait_for_gpu()
    taken = time.perf_counter() - wall, time.process_time() - cpu
    del result  # after the clock: freeing what was recorded is nobody's forward pass
    return taken


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _summary(taken: list[tuple[float, float]], base: list[tuple[float, float]]) -> Timing:
    ratios = [
        [run_times[i] / max(other[i], 1e-9) for run_times, other in zip(taken, base, strict=True)] for i in (0, 1)
    ]
    low, _, high = statistics.quantiles(ratios[0], n=4) if len(taken) > 1 else [ratios[0][0]] * 3
    return Timing(
        wall_s=statistics.median(wall for wall, _ in taken),
        wall_ratio=statistics.median(ratios[0]),
        low=low,
        high=high,
        cpu_s=statistics.median(cpu for _, cpu in taken),
        cpu_ratio=statistics.median(ratios[1]),
        rounds=len(taken),
    )


def hardware() -> dict[str, Any]:
    """Where figures were taken: processor, cores, threads, GPU, load, versions."""
    import transformers

    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_1min": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpu_name() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
