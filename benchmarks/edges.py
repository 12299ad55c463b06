"""EAP-IG of the indirect-object task beside its forward and backward passes alone, in processor seconds, in turns.

python benchmarks/edges.py MODEL [--prompts 60] [--steps 5] [--batch-size 8] [--rounds 3] [--threads 1]

The yardstick, per batch: one forward pass of the prompts and one of their contrasts, and ``steps`` forward and backward
passes from points between their embeddings, by plain Hugging Face calls. Nothing is kept from them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import probes
import workbench as wb
from benchmarks.timing import hardware, rounds_of
from tunescope.bench.mib.tasks import task
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.prompts import Prompts
from workbench.prompts.encode import Encoded, batches, encode, pad_left
from workbench.typing import Tensor

BAR = 5.0
"""Times the passes alone."""


def paired_batches(model: AdaptedModel, rows: Prompts, size: int) -> Iterator[tuple[Encoded, Encoded]]:
    """Prompts and their contrasts, in the probe's batches."""
    prompts = encode(rows, model.tokenizer)
    contrasts = encode(Prompts.of([{"prompt": row.contrast} for row in rows], chat=False), model.tokenizer)
    pad = pad_id(model.tokenizer)
    for members in batches([len(ids) for ids in prompts], size):
        yield pad_left([prompts[n] for n in members], pad), pad_left([contrasts[n] for n in members], pad)


def passes_alone(model: AdaptedModel, pairs: list[tuple[Encoded, Encoded]], steps: int) -> None:
    """What edge attribution needs of the model, and no more."""
    embed = model.inner.get_input_embeddings()
    for clean, corrupted in pairs:
        with model.active(), torch.no_grad():
            ends = [embed(batch.input_ids) for batch in (corrupted, clean)]
            for embedded, batch in zip(ends, (corrupted, clean), strict=True):
                _logits(model, embedded, batch)
        for step in range(steps):
            start = torch.lerp(ends[0], ends[1], (step + 0.5) / steps).requires_grad_()
            with model.active(), torch.enable_grad():
                logits = _logits(model, start, clean)
                torch.autograd.grad((logits[:, -1, 0] - logits[:, -1, 1]).sum(), [start])


def _logits(model: AdaptedModel, embedded: Tensor, batch: Encoded) -> Tensor:
    called = model.inner(
        inputs_embeds=embedded, attention_mask=batch.attention_mask, position_ids=batch.position_ids,
        use_cache=False, logits_to_keep=1,
    )  # fmt: skip
    logits: Tensor = called.logits
    return logits


def main() -> None:
    """Write the ratio and the most important edges' stability to the standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    for name, usual in (("--prompts", 60), ("--steps", 5), ("--batch-size", 8), ("--rounds", 3), ("--threads", 1)):
        parser.add_argument(name, type=int, default=usual)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = wb.load_model(arguments.model, dtype="float32")
    rows = task("ioi", arguments.prompts, 0)
    pairs = list(paired_batches(model, rows, arguments.batch_size))
    results: list[probes.EdgeAttribution] = []
    measured = rounds_of({
        "ours": lambda: results.append(
            probes.edge_attribution(model, rows, steps=arguments.steps, batch_size=arguments.batch_size)
        ),
        "passes alone": lambda: passes_alone(model, pairs, arguments.steps),
    }, rounds=arguments.rounds, warm_up=0)  # fmt: skip
    timing = measured.against("ours", "passes alone").to_dict()
    provenance = results[-1].provenance
    figures = {
        **timing, "bar": BAR, "met": timing["cpu_ratio"] <= BAR, "prompts": len(rows), "edges": results[-1].edges,
        "forward_passes": provenance.forward_passes, "backward_passes": provenance.backward_passes,
        "says": results[-1].summary(), **hardware(),
    }  # fmt: skip
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
