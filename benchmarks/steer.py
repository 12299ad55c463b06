"""Steered against unsteered generation, and against other libraries making the same edit.

    python benchmarks/steer.py [--quick] [--json] [--repeats N] [--width N] [--device cuda] [--rows 1,3]
                               [--peers repeng] [--memory]

One process. Every repeat runs each contestant once, in an order that rotates; the figure is the median over repeats
of its time divided by the time of plain ``generate`` in the same repeat, with the quartiles: wall-clock time, and the
processor time of the process, which other programs on the machine disturb less. Who is faster is told by the peer's
time over ours in the same repeat, with the 95 % interval of that median. Each contestant's tokens are compared
with ours first. Peers that are not installed are reported as skipped; put them on PYTHONPATH, for example after
``pip install --no-deps --target peers pyvene steering-vectors repeng matplotlib``.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binom

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from benchmarks import steer_memory, steer_peers
from interventions.expert_switch import ExpertSwitch
from interventions.offset import Offset
from interventions.recipe import Recipe
from interventions.sweep import swept
from workbench.models.adapted import AdaptedModel

Run = Callable[[], torch.Tensor]


@dataclass
class Row:
    """One line of the table: plain generation, ours, and who else can make the edit."""

    name: str
    plain: Run
    ours: Run
    peers: dict[str, Run] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Size:
    """How large the models are, and how many tokens and repeats."""

    layers: int = 8
    width: int = 512
    tokens: int = 64
    repeats: int = 15
    device: str = "cpu"


def llama(size: Size) -> Any:
    config = LlamaConfig(
        vocab_size=4096, hidden_size=size.width, intermediate_size=size.width * 3, num_hidden_layers=size.layers,
        num_attention_heads=8, num_key_value_heads=4, pad_token_id=0, eos_token_id=None, bos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval().to(size.device)


def mixture(size: Size) -> Any:
    config = Qwen3MoeConfig(
        vocab_size=4096, hidden_size=size.width // 2, intermediate_size=size.width, num_hidden_layers=size.layers,
        moe_intermediate_size=size.width // 4, num_attention_heads=8, num_key_value_heads=4, num_experts=16,
        num_experts_per_tok=4, norm_topk_prob=True, head_dim=32, pad_token_id=0, eos_token_id=None, bos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(config).eval().to(size.device)


def generator(hf: Any, batch: int, tokens: int) -> Callable[..., torch.Tensor]:
    """Greedy generation of exactly ``tokens`` tokens with the key/value cache, with whichever ``generate`` is given."""
    ids = torch.randint(2, hf.config.vocab_size, (1, 16), generator=torch.Generator().manual_seed(1))
    ids = ids.to(hf.device).expand(batch, -1)
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}

    def run(generate: Callable[..., Any] | None = None) -> torch.Tensor:
        with torch.no_grad():
            figures = (generate or hf.generate)(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        if ids.is_cuda:
            torch.cuda.synchronize()
        return figures if isinstance(figures, torch.Tensor) else figures[0]

    return run


def offset_row(name: str, size: Size, peers: list[str], layers: list[int], strengths: list[float] | None = None) -> Row:
    hf = llama(size)
    directions = torch.randn(size.layers, size.width, generator=torch.Generator().manual_seed(2)).to(size.device)
    vectors = {layer: directions[layer] * 0.5 for layer in layers}
    recipe = Recipe([Offset(layer, vector) for layer, vector in vectors.items()])
    recipe = recipe if strengths is None else swept(recipe, strengths)
    run, model = generator(hf, len(strengths or [1.0]), size.tokens), AdaptedModel(hf, None)

    def ours() -> torch.Tensor:
        with recipe.applied(model):
            return run()

    row = Row(name, run, ours)
    for peer in peers:
        try:
            row.peers[peer] = steer_peers.OFFSETS[peer](copy.deepcopy(hf), vectors, strengths, run)
        except (ImportError, NotImplementedError) as error:
            row.skipped[peer] = str(error)
    return row


def switch_row(size: Size, peers: list[str]) -> Row:
    hf = mixture(size)
    model = AdaptedModel(hf, None)
    recipe = Recipe([ExpertSwitch(off=[f"L{layer}E{layer % 16}" for layer in range(size.layers)], mode="replace")])
    run = generator(hf, 1, size.tokens)

    def ours() -> torch.Tensor:
        with recipe.applied(model):
            return run()

    reason = "has no switch for experts that takes effect on transformers 5"
    return Row("ExpertSwitch on every layer", run, ours, skipped=dict.fromkeys(peers, reason))


def rows(size: Size, peers: list[str]) -> list[Callable[[], Row]]:
    strengths = [round(-2 + 4 * step / 15, 3) for step in range(16)]
    middle, every = [size.layers // 2], list(range(size.layers))
    return [
        lambda: offset_row("one offset", size, peers, middle),
        lambda: offset_row("an offset on every layer", size, peers, every),
        lambda: offset_row("16 strengths as one batch (against a plain batch of 16)", size, peers, middle, strengths),
        lambda: switch_row(size, peers),
    ]


def measure(row: Row, repeats: int) -> dict[str, Any]:
    """Median and quartiles of each contestant's time over plain generation's, paired by repeat."""
    contestants: dict[str, Run] = {"plain": row.plain, "plain again": row.plain, "ours": row.ours, **row.peers}
    wanted = row.ours()
    same: dict[str, bool] = {}
    for name, run in row.peers.items():
        try:
            same[name] = bool(torch.equal(run(), wanted))
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
            row.skipped[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[-1][:160]}"
            del contestants[name]
    differs = not torch.equal(row.plain(), wanted)
    names, times = list(contestants), {name: [] for name in contestants}  # type: ignore[var-annotated]
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            start, busy = time.perf_counter(), time.process_time()
            contestants[name]()
            times[name].append((time.perf_counter() - start, time.process_time() - busy))
    plain_seconds = statistics.median(wall for wall, _ in times["plain"])
    report: dict[str, Any] = {"row": row.name, "plain_seconds": round(plain_seconds, 4)}
    report["edit_changes_the_tokens"] = differs
    report["ratios"] = {name: ratios(times[name], times["plain"]) for name in names if name != "plain"}
    report["over_ours"] = {name: over(times[name], times["ours"]) for name in row.peers if name in names}
    return {**report, "same_tokens_as_ours": same, "skipped": row.skipped}


def ratios(times: list[tuple[float, float]], plain: list[tuple[float, float]]) -> dict[str, list[float]]:
    """{"wall": [lower quartile, median, upper quartile], "processor": the same}."""
    figures = {}
    for place, clock in enumerate(("wall", "processor")):
        paired = [run_times[place] / other[place] for run_times, other in zip(times, plain, strict=True)]
        figures[clock] = [round(value, 3) for value in statistics.quantiles(paired, n=4)]
    return figures


def over(times: list[tuple[float, float]], ours: list[tuple[float, float]]) -> dict[str, list[float]]:
    """{"wall": [low, median, high], "processor": the same}: paired ratios; the interval of the median is exact (order
    statistics, 95 %)."""
    figures = {}
    for place, clock in enumerate(("wall", "processor")):
        paired = sorted(run_times[place] / mine[place] for run_times, mine in zip(times, ours, strict=True))
        beyond = max(0, int(binom.ppf(0.025, len(paired), 0.5)) - 1)
        ends = paired[beyond], statistics.median(paired), paired[-1 - beyond]
        figures[clock] = [round(value, 4) for value in ends]
    return figures


def shown(report: dict[str, Any]) -> str:
    lines = [f"{report['row']}  (plain: {report['plain_seconds']} s)"]
    for name, ratio in report["ratios"].items():
        tokens = {True: "same tokens", False: "OTHER TOKENS", None: ""}[report["same_tokens_as_ours"].get(name)]
        wall, busy = ([*ratio[clock]] for clock in ("wall", "processor"))
        lines.append(
            f"  {name:18} wall {wall[1]:.3f}x [{wall[0]:.3f}, {wall[2]:.3f}]  "
            f"processor {busy[1]:.3f}x [{busy[0]:.3f}, {busy[2]:.3f}]  {tokens}"
        )
    for name, ratio in report["over_ours"].items():
        (low, middle, high), busy = ratio["wall"], ratio["processor"]
        lines.append(
            f"  {name:18} over ours: wall {middle:.4f} [{low:.4f}, {high:.4f}]  "
            f"processor {busy[1]:.4f} [{busy[0]:.4f}, {busy[2]:.4f}]"
        )
    return "\n".join(lines + [f"  {name:18} skipped: {why}" for name, why in report["skipped"].items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models, few repeats: does it run?")
    parser.add_argument("--json", action="store_true", help="JSON alone on stdout")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--memory", action="store_true", help="peak memory against new tokens, instead of seconds")
    parser.add_argument("--width", type=int, default=Size.width, help="of the model; a small one shows the overhead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", default="1,2,3,4", help="which lines of the table, by commas")
    parser.add_argument("--peers", default=",".join(steer_peers.OFFSETS), help="by commas")
    arguments = parser.parse_args()
    wanted = [int(word) for word in arguments.rows.split(",")]
    size = Size(layers=3, width=128, tokens=8, repeats=3) if arguments.quick else Size(width=arguments.width)
    size = replace(size, device=arguments.device)
    warnings.simplefilter("ignore")
    if arguments.memory:
        print(json.dumps(steer_memory.growth(width=size.width, repeats=1 if arguments.quick else 3)))
        return
    reports = []
    for make in [rows(size, arguments.peers.split(","))[number - 1] for number in wanted]:
        reports.append(measure(make(), arguments.repeats or size.repeats))
        if not arguments.json:
            print(shown(reports[-1]), flush=True)
    if arguments.json:
        where = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
        print(json.dumps({"size": vars(size), **where, "rows": reports}))


if __name__ == "__main__":
    main()
