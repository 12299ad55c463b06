"""Five full fine-tunes merged and written as a model: the most memory, in models, of a soup and of Model Stock.

``python benchmarks/merging.py BASE [float32|bfloat16]``: the fine-tunes are the base with other noise in every matrix.
Each merge is made in a process of its own, beyond what the same on a model of a few kilobytes left behind.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import interventions as iv
import probes
import workbench as wb
from benchmarks.memory import in_fresh_process, peak, reset_peak, resident
from benchmarks.series import tiny
from benchmarks.timing import hardware

MEMBERS = 5
TARGET = 2.0
"""Models."""
RULES = {"uniform_soup": iv.uniform_soup, "model_stock": iv.model_stock}


def fine_tunes(base: str, folder: Path, dtype: str, words: str) -> list[str]:
    """The base and its noisy copies, saved with the tokenizer of ``words``; the first folder is the base."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = []
    for seed in range(MEMBERS + 1):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters() if seed else ():
                parameter += 0.01 * parameter.std() * torch.randn(parameter.shape, generator=generator)
        made.append(str(folder / f"{seed}"))
        model.save_pretrained(made[-1])
        AutoTokenizer.from_pretrained(words).save_pretrained(made[-1])
    return made


def merged(rule: str, folders: list[str], out: str) -> None:
    """The merge of all but the first, written as a model."""
    base = wb.load_model(folders[0], device="cpu")
    vectors = probes.task_vectors(base, folders[1:])
    RULES[rule](list(vectors.values())).save(base, out)


def beyond_libraries(rule: str, folders: list[str], small: list[str]) -> dict[str, float]:
    """MB at the peak of one merge, before it, and the difference; run in a fresh process."""
    with tempfile.TemporaryDirectory() as held:
        merged(rule, small, f"{held}/small")
        before, libraries = reset_peak(), resident()
        merged(rule, folders, f"{held}/merged")
    return {"peak_mb": peak(), "before_mb": libraries, "beyond_mb": peak() - before}


def main(base: str, dtype: str) -> None:
    """Write the figures as JSON to the standard output."""
    with tempfile.TemporaryDirectory() as held:
        place = Path(held)
        for name in ("tiny", "models", "small"):
            (place / name).mkdir()
        small = fine_tunes(tiny(place / "tiny")[0], place / "small", dtype, base)
        folders = fine_tunes(base, place / "models", dtype, base)
        model = sum(file.stat().st_size for file in Path(folders[0]).glob("*.safetensors")) / 1e6
        taken = {
            rule: in_fresh_process("benchmarks.merging", "beyond_libraries", rule=rule, folders=folders, small=small)
            for rule in RULES
        }
    models = {rule: round(found["beyond_mb"] / model, 2) for rule, found in taken.items()}
    figures = {"models": models, "target": TARGET, "model_mb": model, "dtype": dtype, "members": MEMBERS, **taken}
    sys.stdout.write(json.dumps({**figures, **hardware()}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "bfloat16")
