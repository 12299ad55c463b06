"""weight_delta of a full pair beside the modeldelta package: seconds in one process, peak memory in one each."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]


def make_pair(folder: Path, *, layers: int = 4, width: int = 1024, inner: int = 2816, vocab: int = 8192) -> None:
    """A Llama-shaped pair on disk: the tuned one moved by a rank-8 step and a diffuse one in every matrix."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"model.embed_tokens.weight": (vocab, width), "lm_head.weight": (vocab, width)}
    for layer in range(layers):
        attention = {"q_proj": (width, width), "k_proj": (width // 2, width), "v_proj": (width // 2, width)}
        for name, shape in {**attention, "o_proj": (width, width)}.items():
            shapes[f"model.layers.{layer}.self_attn.{name}.weight"] = shape
        for name, shape in {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}.items():
            shapes[f"model.layers.{layer}.mlp.{name}_proj.weight"] = shape
    base = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}
    tuned = {}
    for name, weight in base.items():
        rows, columns = weight.shape
        step = torch.randn(rows, 8, generator=generator) @ torch.randn(8, columns, generator=generator)
        tuned[name] = weight + 3e-4 * step + 3e-4 * torch.randn(rows, columns, generator=generator)
    config = {
        "model_type": "llama", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64,
        "num_key_value_heads": width // 128, "intermediate_size": inner, "vocab_size": vocab,
    }  # fmt: skip
    for side, tensors in (("base", base), ("tuned", tuned)):
        (folder / side).mkdir()
        (folder / side / "config.json").write_text(json.dumps(config))
        save_file(tensors, folder / side / "model.safetensors", metadata={"format": "pt"})


def ours(folder: Path) -> int:
    import probes

    return len(probes.weight_delta(folder / "base", folder / "tuned").table)


def peers(folder: Path) -> int:
    from modeldelta.core.weight_diff import compare_models
    from modeldelta.utils.model_loader import get_tensor_map

    return len(compare_models(*(get_tensor_map(str(folder / side)) for side in ("base", "tuned")))[0])


def peak_growth(which: str, folder: Path) -> float:
    """Peak resident memory of a fresh process above what its imports took, in MB."""
    code = (
        "import sys, json, resource; from pathlib import Path; import benchmarks.weight_delta as b, torch;"
        "import probes.weights, workbench.models.sources, transformers.models.auto, scipy.stats, peft\n"
        f"start = b.reset_peak(); b.{which}(Path(sys.argv[1])); print(json.dumps(b.peak() - start))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True, env=environment
    )
    return float(done.stdout.strip().splitlines()[-1])


def reset_peak() -> float:
    """Forget the peak so far (Linux); returns the resident memory now, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """The most resident memory since the reset, mapped files included, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def seconds(call: Any, *arguments: Any, repeats: int = 3) -> float:
    """The best of ``repeats``."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        call(*arguments)
        best = min(best, time.perf_counter() - start)
    return best


def measure() -> dict[str, Any]:
    """Both on the same files in the same process; memory in a fresh process each."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_pair(folder)
        mine = {"seconds": seconds(ours, folder), "peak_mb": peak_growth("ours", folder)}
        result: dict[str, Any] = {
            "what": "weight_delta, full pair, 4 layers x 1024 (2816 inner, 8192 tokens), float32",
            "threads": torch.get_num_threads(),
            "tunescope": mine,
        }
        if importlib.util.find_spec("modeldelta") is None:
            return {**result, "modeldelta": None, "note": "modeldelta is not installed: pip install modeldelta"}
        theirs = {"seconds": seconds(peers, folder), "peak_mb": peak_growth("peers", folder)}
        return {**result, "modeldelta": theirs, "times_faster": theirs["seconds"] / mine["seconds"]}
