"""Speed and memory of the probes against named peers.

python benchmarks/localize.py [--only weight_delta] [--device cuda] [--json]
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# name -> module with measure() -> dict, or measure(device)
PARTS = {
    "expert_map": "benchmarks.expert_map",
    "graft_memory": "benchmarks.graft_memory",
    "head_probe": "benchmarks.head_probe",
    "patching": "benchmarks.patching",
    "weight_delta": "benchmarks.weight_delta",
}
ON_GPU = ("head_probe", "patching")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(PARTS), help="run one part")
    parser.add_argument("--device", default="cpu", help="of head_probe and patching, the parts that a GPU can run")
    parser.add_argument("--json", action="store_true", help="JSON alone on stdout")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in [arguments.only] if arguments.only else sorted(PARTS if arguments.device == "cpu" else ON_GPU):
        options = {"device": arguments.device} if name in ON_GPU else {}
        results[name] = importlib.import_module(PARTS[name]).measure(**options)
        if not arguments.json:
            print(f"{name}\n{json.dumps(results[name], indent=2)}")
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
