"""A series of LoRA checkpoints: its profile beside as many calls of weight_delta, in one process, in turns.

``python benchmarks/series.py BASE ADAPTER``: the adapter's B is scaled to stand for the steps of a training.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import probes
from benchmarks.timing import hardware, rounds_of

STEPS = 10
TARGET = 1.2
"""Times as many calls of weight_delta."""


def checkpoints(adapter: Path, folder: Path) -> list[str]:
    """Copies of the adapter with its B from a tenth of its size to the whole."""
    found = []
    for step in range(1, STEPS + 1):
        place = folder / f"checkpoint-{step * 100}"
        shutil.copytree(adapter, place)
        stored = load_file(str(place / "adapter_model.safetensors"))
        scaled = {name: value * (step / STEPS) if "lora_B" in name else value for name, value in stored.items()}
        save_file(scaled, str(place / "adapter_model.safetensors"))
        found.append(str(place))
    return found


def main(base: str, adapter: str, rounds: int) -> None:
    """Write the figures as JSON to the standard output."""
    with tempfile.TemporaryDirectory() as held:
        members = checkpoints(Path(adapter), Path(held))
        last = members[-1]
        taken = rounds_of(
            {
                "profile": lambda: probes.series_profile(base, last, checkpoints=members[:-1]),
                "ten times weight_delta": lambda: [probes.weight_delta(base, member) for member in members],
            },
            rounds=rounds,
        )
        timing = taken.against("profile", "ten times weight_delta")
    sys.stdout.write(json.dumps({"series_profile": timing.to_dict(), "target": TARGET, **hardware()}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 3)
