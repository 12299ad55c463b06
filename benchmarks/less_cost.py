"""What LESS adds to the forward and backward passes of the training rows, batch beside batch, in processor seconds.

python benchmarks/less_cost.py BASE TUNED ROWS [--most 96] [--batch-size 8] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import workbench as wb
from benchmarks.timing import hardware
from interventions.training.examples import Collator, answer_loss, examples_of
from probes.influence.less import WARM_UP
from probes.influence.row_gradients import RowGradients
from probes.influence.sketch import SecondMoments, Sketch
from probes.influence.weights import trained_matrices
from workbench.models.adapted import pad_id

ALL = 500
"""Rows that the cost is told for: the second moments are read from WARM_UP of them, whatever their number."""


def timed(work: Callable[[Any], Any], batches: Sequence[Any]) -> float:
    """Processor seconds of ``work`` on each batch."""
    started = time.process_time()
    for batch in batches:
        work(batch)
    return time.process_time() - started


def main() -> None:
    """Write both sums and their ratio to the standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "tuned", "rows"):
        parser.add_argument(name)
    for name, usual in (("--most", 96), ("--batch-size", 8), ("--threads", 1)):
        parser.add_argument(name, type=int, default=usual)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pair = wb.load_pair(arguments.base, arguments.tuned, dtype="float32")
    model = pair.tuned
    examples = examples_of(wb.Prompts.load(arguments.rows)[: arguments.most], model.tokenizer)
    batches = [
        examples[start : start + arguments.batch_size] for start in range(0, len(examples), arguments.batch_size)
    ]
    matrices = trained_matrices(pair)
    gradients, sketch, moments = RowGradients(model, matrices), Sketch(8192, 0), SecondMoments()
    trained = [module.weight for module in matrices.values()]

    def passed(batch: Any) -> None:
        made = Collator(pad_id(model.tokenizer))(batch)
        with model.active(), torch.enable_grad():
            logits = model.inner(input_ids=made["input_ids"], attention_mask=made["attention_mask"]).logits
            torch.autograd.grad(answer_loss(logits, made["labels"]), trained)

    for parameter in model.hf.parameters():
        parameter.requires_grad_(False)
    for weight in trained:
        weight.requires_grad_(True)

    def featured(batch: Any) -> None:
        sketch(moments.steps(gradients.of_answers(batch)))

    warm = timed(lambda batch: moments.add(gradients.of_answers(batch)), batches[: WARM_UP // arguments.batch_size])
    bare = less = 0.0
    for batch in batches:
        bare += timed(passed, [batch])
        less += timed(featured, [batch])
    rows = len(examples)
    ratio = (less / rows * ALL + warm) / (bare / rows * ALL)
    said = {"rows": rows, "bare_s": bare, "less_s": less, "moments_s": warm, f"ratio of {ALL} rows": round(ratio, 3)}
    sys.stdout.write(json.dumps({**said, **hardware()}) + "\n")


if __name__ == "__main__":
    main()
