"""Attention in the mask of sdpa, arithmetic on the logits of an adapter pair, and recorded routers over adapters,
beside the plain steps they need.

    python benchmarks/decode_time.py [--rounds N] [--width N] [--layers N] [--tokens N]

One process, variants in turns. Each figure is the median over rounds of a time divided by its baseline's
in the same round, with quartiles; its name says what the baseline is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import interventions as iv
from benchmarks.timing import hardware, rounds_of
from probes.routing.reading import adapter_weights
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts.encode import Encoded

ROWS, PROMPT = 4, 64


def llama(width: int, layers: int) -> Any:
    config = LlamaConfig(
        vocab_size=4096, hidden_size=width, intermediate_size=width * 3, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, pad_token_id=0, eos_token_id=None, bos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def adapter_pair(width: int, layers: int) -> ModelPair:
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
    lora = get_peft_model(llama(width, layers), config).eval()
    return load_pair(lora.get_base_model(), lora, check=False)


def batch(rows: int) -> Encoded:
    ids = torch.randint(2, 4000, (rows, PROMPT), generator=torch.Generator().manual_seed(0))
    return Encoded(ids, torch.ones_like(ids))


def writes(model: AdaptedModel, rows: int, tokens: int, recipe: iv.Recipe | None = None) -> Callable[[], Any]:
    options: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens, "pad_token_id": 0}

    def run() -> Any:
        with (recipe or iv.Recipe()).applied(model):
            return model.generate_ids(batch(rows), **options)

    return run


def reads(model: AdaptedModel, recipe: iv.Recipe | None = None) -> Callable[[], Any]:
    prompts = Encoded(batch(ROWS).input_ids.repeat(1, 8), torch.ones(ROWS, 8 * PROMPT, dtype=torch.long))

    def run() -> Any:
        with (recipe or iv.Recipe()).applied(model):
            return model.forward(prompts, logits="last")

    return run


def attention(width: int, layers: int, tokens: int, rounds: int) -> dict[str, Any]:
    """All heads, and some heads of every layer, beside plain generation and a plain pass over long prompts."""
    model = AdaptedModel(llama(width, layers), None)
    some = iv.Recipe([iv.AttentionScale({f"L{layer}H{layer % 8}": 2.0 for layer in range(layers)})])
    every = iv.Recipe([iv.AttentionScale(2.0)])
    eager = AdaptedModel(llama(width, layers), None)
    eager.hf.set_attn_implementation("eager")
    figures: dict[str, Any] = {}
    for what, of in {
        "decode": lambda side, recipe=None: writes(side, ROWS, tokens, recipe),
        "read 512 tokens": reads,
    }.items():
        taken = rounds_of(
            {"plain": of(model), "all heads": of(model, every), "some heads": of(model, some),
             "eager, all heads": of(eager, every)},
            rounds=rounds,
        )  # fmt: skip
        names = ("all heads", "some heads", "eager, all heads")
        figures |= {f"{what}: {name}, over plain": taken.against(name, "plain").to_dict() for name in names}
    return figures


def arithmetic(width: int, layers: int, tokens: int, rounds: int) -> dict[str, Any]:
    """A shift by the pair's own change, beside base and tuned alone, and beside twice the rows in the tuned model."""
    pair = adapter_pair(width, layers)
    shift = iv.Recipe([iv.LogitShift(pair.tuned, pair.base, 1.5)])
    base, tuned = (writes(side, ROWS, tokens) for side in (pair.base, pair.tuned))

    def both() -> None:
        base()
        tuned()

    taken = rounds_of(
        {"shift": writes(pair.base, ROWS, tokens, shift), "both alone": both,
         "one batch": writes(pair.tuned, 2 * ROWS, tokens)},
        rounds=rounds,
    )  # fmt: skip
    return {
        f"shift in one batch, over {name}": taken.against("shift", other).to_dict()
        for name, other in (
            ("the sum of both models' own steps", "both alone"),
            ("one batched step of the tuned model", "one batch"),
        )
    }


def routing(width: int, layers: int, rounds: int) -> dict[str, Any]:
    """The weights of a router over four adapters, recorded, beside the same pass with the router alone."""
    model, generator = AdaptedModel(llama(width, layers), None), torch.Generator().manual_seed(0)
    paths = [
        f"model.layers.{layer}.{name}" for layer in range(layers) for name in ("self_attn.o_proj", "mlp.down_proj")
    ]
    shapes = {path: model.inner.get_submodule(path).weight.shape for path in paths}
    router = iv.AdapterRouting(
        list("abcd"),
        {path: torch.randn(4, 8, shape[1], generator=generator) * 0.01 for path, shape in shapes.items()},
        {path: torch.randn(4, shape[0], 8, generator=generator) * 0.01 for path, shape in shapes.items()},
        {path: torch.randn(4, shape[1], generator=generator) for path, shape in shapes.items()},
        "meteora",
    )
    ids = batch(ROWS).input_ids.repeat(1, 8)
    alone = Encoded(ids, torch.ones_like(ids))

    def routed() -> Any:
        with iv.Recipe([router]).applied(model):
            return model.forward(alone, logits=None)

    taken = rounds_of({"routed": routed, "recorded": lambda: adapter_weights(model, router, ids)}, rounds=rounds)
    return {"router recorded, over the router alone": taken.against("recorded", "routed").to_dict()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("rounds", 7), ("width", 512), ("layers", 8), ("tokens", 24)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    sizes = (arguments.width, arguments.layers, arguments.tokens, arguments.rounds)
    figures = {
        "hardware": hardware(),
        **attention(*sizes),
        **arithmetic(*sizes),
        **routing(arguments.width, arguments.layers, arguments.rounds),
    }
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
