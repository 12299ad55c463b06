"""PPLM on a real model, beside the passes that it cannot do without: steps forward-backward, and two forward.

``python benchmarks/pplm.py MODEL [ROUNDS]``: float32, one text and eight at once, in turns. The passes beside it read
the same caches and take gradients of the same keys and values; they move nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import hardware, rounds_of
from probes.attributes.perturbed_cache import Push, PushedDecoding, copied_cache
from probes.attributes.pplm import bag_ids
from probes.replay import frozen
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_one

PROMPT, TOKENS, TARGET = 40, 4, 1.2
BAG = ["sea", "ship", "water", "island", "fish"]


def passes(model: AdaptedModel, ids: torch.Tensor, steps: int) -> Callable[[], None]:
    """For each new token ``steps`` forward-backward passes and two forward passes, with a cache of that length."""

    def run() -> None:
        with model.active(), frozen(model.hf):
            with torch.no_grad():
                past = model.inner.base_model(ids[:, :-1], use_cache=True).past_key_values
            for _ in range(TOKENS):
                pairs = [(layer.keys, layer.values) for layer in past.layers]
                for _ in range(steps):
                    leaves = [tuple(tensor.detach().requires_grad_() for tensor in pair) for pair in pairs]
                    out = model.inner(ids[:, -1:], past_key_values=copied_cache(leaves), use_cache=True)
                    torch.autograd.grad(
                        out.logits[:, -1].logsumexp(-1).sum(), [tensor for pair in leaves for tensor in pair]
                    )
                with torch.no_grad():
                    model.inner(ids[:, -1:], past_key_values=copied_cache(pairs), use_cache=True)
                    past = model.inner(ids[:, -1:], past_key_values=past, use_cache=True).past_key_values

    return run


def measured(model: AdaptedModel, rows: int, rounds: int) -> dict[str, Any]:
    """The ratio for a batch of so many texts."""
    ids = torch.randint(5, 20_000, (rows, PROMPT), generator=torch.Generator().manual_seed(0))
    push, bag = Push(), bag_ids(model, BAG)
    taken = rounds_of(
        {"pplm": lambda: PushedDecoding(model, bag, push).texts(ids.tolist(), TOKENS, set()),
         "its passes": passes(model, ids, push.steps)},
        rounds=rounds,
    )  # fmt: skip
    return taken.against("pplm", "its passes").to_dict()


def main(folder: str, rounds: int) -> None:
    """Write the figures as JSON to the standard output."""
    model = load_one(folder, dtype="float32")
    figures = {f"{rows} texts": measured(model, rows, rounds) for rows in (1, 8)}
    sys.stdout.write(json.dumps({"pplm": figures, "target": TARGET, **hardware()}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3)
