"""A series of LoRA checkpoints: its profile beside as many calls of weight_delta, in one process, in turns.

``python benchmarks/series.py BASE ADAPTER [ROUNDS]``: the adapter's B is scaled to stand for the steps of a training.
``python benchmarks/series.py BASE ADAPTER memory``: the most memory that each takes in a process of its own, beyond
what the same call on a model of a few kilobytes left behind: libraries and their caches.
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
from benchmarks.memory import in_fresh_process, peak, reset_peak, resident
from benchmarks.timing import hardware, rounds_of

STEPS = 10
TARGET = 1.2
"""Times as many calls of weight_delta."""
MEMORY = 1.1
"""Times the files of one base and one adapter."""


def checkpoints(adapter: Path, folder: Path) -> list[str]:
    """Copies of the adapter with its B from a tenth of its size to the whole."""
    folders = []
    for step in range(1, STEPS + 1):
        place = folder / f"checkpoint-{step * 100}"
        shutil.copytree(adapter, place)
        stored = load_file(str(place / "adapter_model.safetensors"))
        scaled = {name: value * (step / STEPS) if "lora_B" in name else value for name, value in stored.items()}
        save_file(scaled, str(place / "adapter_model.safetensors"))
        folders.append(str(place))
    return folders


def tiny(folder: Path) -> tuple[str, Path]:
    """A model of a few kilobytes and a LoRA on it, saved."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    base, adapter = folder / "base", folder / "adapter"
    LlamaForCausalLM(config).save_pretrained(base)
    lora = LoraConfig(r=2, target_modules=["v_proj"])
    get_peft_model(LlamaForCausalLM.from_pretrained(base), lora).save_pretrained(adapter)
    return str(base), adapter


def measure(name: str, base: str, members: list[str]) -> None:
    """The one call of that name."""
    if name == "profile":
        probes.series_profile(base, members[-1], checkpoints=members[:-1])
    else:
        probes.weight_delta(base, members[-1])


def beyond_libraries(name: str, base: str, members: list[str]) -> dict[str, float]:
    """MB at the peak of one call, before it, and the difference; run in a fresh process."""
    with tempfile.TemporaryDirectory() as held:
        small, adapter = tiny(Path(held))
        measure(name, small, checkpoints(adapter, Path(held)))
    before, libraries = reset_peak(), resident()
    measure(name, base, members)
    return {"peak_mb": peak(), "before_mb": libraries, "beyond_mb": peak() - before}


def memory(base: str, adapter: str) -> None:
    """Write what a series and one weight_delta take, beside the bar, as JSON to the standard output."""
    files = [Path(base) / "model.safetensors", Path(adapter) / "adapter_model.safetensors"]
    bar = MEMORY * sum(file.stat().st_size for file in files) / 1e6
    with tempfile.TemporaryDirectory() as held:
        members = checkpoints(Path(adapter), Path(held))
        taken = {
            name: in_fresh_process("benchmarks.series", "beyond_libraries", name=name, base=base, members=members)
            for name in ("profile", "weight_delta")
        }
    sys.stdout.write(json.dumps({"series_memory": taken, "bar_mb": bar, **hardware()}) + "\n")


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
    if sys.argv[3:] == ["memory"]:
        memory(sys.argv[1], sys.argv[2])
    else:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 3)
