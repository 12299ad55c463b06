"""What the probe suite adds to a recording: 30 layers of width 576, 400 prompts in 100 groups, five tasks.

python benchmarks/probe_suite.py [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import probes
from benchmarks.timing import hardware
from workbench.recording.recording import Recording

LAYERS, ROWS, WIDTH, GROUPS, TASKS = 30, 400, 576, 100, 5


def planted() -> tuple[Recording, torch.Tensor]:
    """Planted states of both models, and what they have in common [row, d_model], which the tasks' labels follow."""
    random = torch.Generator().manual_seed(0)
    sites = [f"blocks.{layer}.hook_resid_post" for layer in range(LAYERS)]
    common = torch.randn(ROWS, WIDTH, generator=random)
    base = {site: common + torch.randn(ROWS, WIDTH, generator=random) for site in sites}
    tuned = {site: states + 0.1 * torch.randn(ROWS, WIDTH, generator=random) for site, states in base.items()}
    index = pd.DataFrame({
        "prompt": range(ROWS), "position": 0, "token_id": 5, "token": "x", "phase": "prompt", "content": True,
        "group": [f"g{row % GROUPS}" for row in range(ROWS)], "label": "a", "nonfinite": "",
    })  # fmt: skip
    about = {"roles": ["base", "tuned"], "sites": sites, "n_prompts": ROWS, "prompts": "planted", "positions": "last"}
    return Recording(index, about, {"base": base, "tuned": tuned}), common


def main() -> None:
    """Write the processor seconds of every task to the standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    recording, common = planted()
    seconds = []
    for task in range(TASKS):
        labels = np.where((common[:, task] > 0).numpy(), "a", "b").tolist()
        started = time.process_time()
        probes.probe_suite(recording, labels)
        seconds.append(round(time.process_time() - started, 1))
    sys.stdout.write(json.dumps({"processor_s": seconds, "together_s": round(sum(seconds), 1), **hardware()}) + "\n")


if __name__ == "__main__":
    main()
