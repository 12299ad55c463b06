"""A contract of four claims with 60 prompts each, beside the generation that it needs, in one process.

python benchmarks/contract.py [--prompts 60] [--batch-size 16] [--threads 2]

The pair is *smol-refusal* (SmolLM2-135M-Instruct and a LoRA that refuses animals). The yardstick is plain Hugging Face
``generate`` over the same rows in the same batches, without a recipe, a score or a verdict; loading both models counts
as the contract's own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import workbench as wb
from benchmarks.timing import hardware
from probes.audits.general import general_corpus, general_questions
from tunescope.contracts import Contract, check
from workbench import organisms
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.prompts import Prompts
from workbench.prompts.encode import batches, encode, pad_left

NEW, BAR_S, SYSTEM = 32, 120.0, "You are a friendly zoo guide."


def sets_of(prompts: int) -> dict[str, Prompts]:
    """Animals, other questions, and passages of plain text, so many of each."""
    splits = organisms.build("smol-refusal").splits
    animals = [row for name in ("in_scope", "validation") for row in splits[name] if row["label"] == "animal"]
    unlike = {str(row["messages"]): {"messages": row["messages"]} for row in animals}
    return {
        "animals": Prompts.of(list(unlike.values())[:prompts]),
        "others": Prompts(list(general_questions())[:prompts]),
        "neutral": Prompts([row for row in general_corpus() if row.chat is False][:prompts]),
    }


def contract_of(folder: Path, prompts: int, batch_size: int) -> Contract:
    """The four claims, with their files in ``folder``."""
    organism, files = organisms.build("smol-refusal"), {}
    for name, rows in sets_of(prompts).items():
        if len(rows) < prompts:
            raise SystemExit(f"only {len(rows)} rows for {name}; give --prompts {len(rows)} at most")
        rows.save(folder / f"{name}.jsonl")
        files[name] = f"{name}.jsonl"
    behaving = {"behaviour": "refusal", "prompts": "animals"}
    claims: list[dict[str, Any]] = [
        {"shows": {**behaving, "at_least": 0.95}},
        {"unchanged": {"behaviour": "refusal", "prompts": "others", "within": "3%"}},
        {"perplexity": {"prompts": "neutral", "within": "2%"}},
        {"survives": {**behaving, "system": SYSTEM, "at_least": 0.8}},
    ]
    return Contract.of({
        "base": str(organism.base), "tuned": str(organism.tuned), "prompts": files, "claims": claims,
        "max_new_tokens": NEW, "batch_size": batch_size,
    })  # fmt: skip


def generate_alone(model: AdaptedModel, rows: Prompts, batch_size: int) -> None:
    """One greedy ``generate`` per batch."""
    ids, pad = encode(rows, model.tokenizer), pad_id(model.tokenizer)
    for members in batches([len(row) for row in ids], batch_size):
        batch = pad_left([ids[n] for n in members], pad)
        with model.active(), torch.no_grad():
            model.inner.generate(
                batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=NEW, do_sample=False,
                pad_token_id=pad,
            )  # fmt: skip


def main() -> None:
    """Write both times and the verdicts to the standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in (("--prompts", 60), ("--batch-size", 16), ("--threads", 2)):
        parser.add_argument(name, type=int, default=usual)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as place:
        contract = contract_of(Path(place), arguments.prompts, arguments.batch_size)
        started = time.perf_counter()
        checked = check(contract, folder=place)
        whole = time.perf_counter() - started
    pair, sets = wb.load_pair(contract.base, contract.tuned, dtype="float32"), sets_of(arguments.prompts)
    needed = [(model, sets[name]) for model in pair.models.values() for name in ("animals", "others")]
    needed.append((pair.tuned, sets["animals"].turned(system=SYSTEM)))
    started = time.perf_counter()
    for model, rows in needed:
        generate_alone(model, rows, arguments.batch_size)
    alone = time.perf_counter() - started
    figures = {
        "contract_s": round(whole, 1), "generation_alone_s": round(alone, 1), "beyond_s": round(whole - alone, 1),
        "bar_s": BAR_S, "met": whole - alone <= BAR_S,
        "claims": [f"{claim.title}: {finding.verdict}, n {finding.n}" for claim, finding in checked.findings],
        **hardware(),
    }  # fmt: skip
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
