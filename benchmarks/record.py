"""Recording beside the bare model and its peers:  python benchmarks/record.py [--quick] [--json] [--stories FOLDER]

One process, variants in turns, medians of paired ratios to the bare Hugging Face forward of the same round. The values
of every peer are compared with ours first. Memory is measured in fresh processes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import record_memory
from benchmarks.record_models import llama, stories
from benchmarks.record_speed import speed, storing
from benchmarks.timing import hardware

PARTS = ("speed", "storing", "memory")
STORED = ("llama-8x512", "stories260K")


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {"hardware": hardware(), "models": {}}
    loaded = {"llama-8x512": llama(device=options.device)}
    if options.device != "cpu":
        big = {"layers": 16, "width": 2048, "vocab": 32_000, "dtype": torch.bfloat16}
        loaded["llama-16x2048-bf16"] = llama(device=options.device, **big)
    if options.stories is not None:
        loaded["stories260K"] = stories(options.stories, device=options.device)
    for name, model in loaded.items():
        figures = result["models"][name] = {}
        if "speed" in options.part:
            figures |= speed(model, rounds=3 if options.quick else options.rounds)
        if "storing" in options.part and name in STORED:
            count = 32 if options.quick else 64 if name.startswith("llama") else 512
            figures |= storing(model, count, rounds=2 if options.quick else max(3, options.rounds // 2))
        _say(options, name, figures)
    if "memory" in options.part:
        result["memory"] = record_memory.measure(quick=options.quick, threads=options.threads)
        _say(options, "memory", result["memory"])
    if options.json:
        print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="JSON alone on stdout")
    parser.add_argument("--quick", action="store_true", help="few rounds: does it run, not what is it worth")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    home = os.environ.get("TUNESCOPE_STORIES")
    parser.add_argument(
        "--stories", type=Path, default=Path(home) if home else None,
        help="folder of stories260K (also TUNESCOPE_STORIES); without it only the random Llama is measured",
    )  # fmt: skip
    return parser.parse_args()


def _say(options: argparse.Namespace, title: str, figures: dict[str, Any]) -> None:
    if options.json:
        return
    print(f"\n{title}")
    for name, value in figures.items():
        if isinstance(value, dict) and "wall_ratio" in value:
            spread = f"[{value['low']:.3f}, {value['high']:.3f}]"
            print(
                f"  {name:62} {value['wall_ratio']:6.3f}x {spread:16}  cpu {value['cpu_ratio']:6.3f}x"
                f"  {value['wall_s'] * 1e3:9.1f} ms"
            )
        else:
            print(f"  {name:62} {json.dumps(value)}")


if __name__ == "__main__":
    main()
