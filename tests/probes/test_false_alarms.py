"""Base against base, 20 seeds each: no probe may report a cell (q <= .05) in more than 5 % of runs or of cells.

Where a probe reads a difference between models, both are one model twice, and every effect must be exactly 0. Where it
needs a difference to run at all, refusing ("nothing to localize") is the right answer. Where it reads labels, they are
drawn at random, group by group.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import probes
from probes.needles.trials import Trial
from tests.probes.planted_knob import planted_knob
from tests.tiny import VOCAB, tiny_model, token_batch, tokenizer
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.prompts import Prompts
from workbench.recording.record_pair import record

SEEDS = 20
WORDS = "the quick brown fox jumps over lazy dog box pack my with five dozen jugs".split()
Null = Callable[[int], pd.DataFrame]
"""The cells (columns score, q) that a probe reports for one seed where there is nothing."""

pytestmark = pytest.mark.slow


def twins(seed: int, family: str = "llama") -> Any:
    """A random model beside a copy of itself."""
    model = tiny_model(family, seed)
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return load_pair(model, copy.eval(), tokenizer=tokenizer(), check=False)


def prompts(seed: int, n: int = 16, per_group: int = 2) -> Prompts:
    """Groups of near copies; a group's label is a coin toss (both sides come up)."""
    random = np.random.default_rng(seed)
    rows = []
    for group in range(n // per_group):
        words = random.choice(WORDS, 6)
        label = bool(random.random() < 0.5) if group > 1 else bool(group)
        for copy in range(per_group):
            own = words.copy()
            own[copy] = random.choice(WORDS)
            rows.append(
                {"prompt": " ".join(own), "answer": " fox", "distractor": " dog", "label": label, "group": f"g{group}"}
            )
    return Prompts.of(rows)


def recorded(seed: int, sites: list[str], positions: str = "last", n: int = 16, **more: Any) -> Any:
    return record(twins(seed), prompts(seed, n), sites, positions=positions, **more)


def patched(seed: int, **options: Any) -> pd.DataFrame:
    return probes.patching(twins(seed), prompts(seed), normalise=False, **options).frame()


def concepts(seed: int, method: str) -> pd.DataFrame:
    return probes.concept_directions(recorded(seed, ["resid_post"], "all", layers=[1]), method, k=4).frame()


def switched(seed: int) -> pd.DataFrame:
    """The ranking of a map of base against base; the behaviour, a word that is never said, is as absent after."""
    pair, rows = twins(seed, "qwen3moe"), prompts(seed, 8)
    ranking = probes.expert_map(pair, rows, target=True, draws=50)
    return probes.switching_curve(
        pair, rows, lambda text, _row: "zebra" in text, ranking, (1,), max_new_tokens=1, draws=100, seed=seed
    ).frame()


def compared_weights(seed: int) -> pd.DataFrame:
    """Maps of two models against themselves: all cells equal, so their best cells mean nothing."""
    return probes.compare(*(probes.weight_delta(twins(one)).frame("head") for one in (seed, seed + 100))).table


def compared_noise(seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    cells = {"layer": np.arange(64) // 8, "head": np.arange(64) % 8}
    return probes.compare(*(pd.DataFrame({**cells, "score": random.normal(size=64)}) for _ in range(2))).table


EXACT: dict[str, Null] = {
    "weight_delta": lambda seed: probes.weight_delta(twins(seed)).frame(),
    "weight_delta, heads": lambda seed: probes.weight_delta(twins(seed)).frame("head"),
    "weight_delta, experts": lambda seed: probes.weight_delta(twins(seed, "qwen3moe")).frame("expert"),
    "activation_delta": lambda seed: probes.activation_delta(recorded(seed, ["resid_post", "mlp_out", "z"])).frame(),
    "logit_lens": lambda seed: probes.logit_lens(twins(seed), prompts(seed), seed=seed).frame(),
    "token_shift": lambda seed: probes.token_shift(twins(seed), prompts(seed, 8), max_new_tokens=3).frame(),
    "patching, z": lambda seed: patched(seed, what="z", together=0),
    "patching, write": lambda seed: patched(seed, what="write", together=0),
    "patching, z of the last token": lambda seed: patched(seed, what="z", positions="last", together=0),
    "patching, on the target's inputs": lambda seed: patched(seed, what="z", inputs="target", together=0),
    "patching, sites": lambda seed: patched(seed, sites=["resid_mid", "attn_out", "mlp_out"], positions="last"),
    "patching, prefiltered": lambda seed: patched(seed, what="z", method="ig", together=0),
    "expert_map": lambda seed: probes.expert_map(twins(seed, "qwen3moe"), prompts(seed), target=True).frame(),
    "switching_curve": switched,
    "concept_directions, mean": lambda seed: concepts(seed, "mean"),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_a_model_against_itself_shows_exactly_nothing(name: str) -> None:
    for seed in range(SEEDS):
        cells = EXACT[name](seed)
        assert (cells["score"] == 0).all(), f"seed {seed}: {cells['score'].abs().max()}"
        assert not (cells["q"] <= 0.05).any()


def random_labels_on_heads(seed: int) -> pd.DataFrame:
    return probes.head_probe(recorded(seed, ["z"], n=48), seed=seed).frame()


def random_labels_on_experts(seed: int, test: str = "mannwhitney") -> pd.DataFrame:
    rows = prompts(seed, 48, per_group=6)
    return probes.expert_map(twins(seed, "qwen3moe").tuned, rows, target=True, test=test, seed=seed).frame()


def needles_that_are_none(seed: int) -> pd.DataFrame:
    """Random spans of random tokens as needles, in a random model; every trial counts as answered."""
    model = AdaptedModel(tiny_model("llama", seed), tokenizer(), role="model", name="random")
    starts = np.random.default_rng(seed).integers(0, 18, 10).tolist()
    ids = token_batch(10, 24, seed).tolist()
    trials = [Trial(tuple(row), start, start + 4, n) for n, (row, start) in enumerate(zip(ids, starts, strict=True))]
    return probes.retrieval_heads(model, trials, keep_above=-1.0, max_new_tokens=4, seed=seed).frame()


def heads_that_are_all_alike(seed: int) -> pd.DataFrame:
    """One layer of eight identical heads and answers by the toss of a coin: none stands out but by its random start."""
    model, width = tiny_model("llama", seed, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=8), 16
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj"):
            weight = getattr(attention, name).weight
            weight.copy_(weight[:width].repeat(8, 1))
        attention.o_proj.weight.copy_(attention.o_proj.weight[:, :width].repeat(1, 8))
    random = np.random.default_rng(seed)
    rows = [
        {"prompt": row.prompt, "answer": random.choice([" fox", " dog"]), "group": row.group} for row in prompts(seed)
    ]
    alike = AdaptedModel(model, tokenizer(), role="model", name="alike")
    return probes.head_selection(alike, rows, epochs=2, controls=10, heads=1, end=False, seed=seed).frame()


CHANCE: dict[str, Null] = {
    "head_probe, random labels": random_labels_on_heads,
    "expert_map, random labels": random_labels_on_experts,
    "expert_map, random labels, by permutation": lambda seed: random_labels_on_experts(seed, "permutation"),
    "retrieval_heads, random spans": needles_that_are_none,
    "head_selection, heads alike": heads_that_are_all_alike,
    "compare, maps of zeros": compared_weights,
    "compare, maps of noise": compared_noise,
}


@pytest.mark.parametrize("name", CHANCE)
def test_where_only_chance_is_left_few_runs_and_few_cells_are_significant(name: str) -> None:
    runs = [CHANCE[name](seed)["q"].to_numpy(np.float64) <= 0.05 for seed in range(SEEDS)]
    with_any, cells = np.mean([run.any() for run in runs]), np.mean(np.concatenate(runs))
    assert with_any <= 0.05 and cells <= 0.05, f"{with_any:.0%} of runs, {cells:.1%} of cells"


def test_what_needs_a_difference_refuses_where_there_is_none() -> None:
    knob = planted_knob(20)
    for seed in range(SEEDS):
        with pytest.raises(UserError, match="do not differ inside any layer"):
            probes.graft(twins(seed), prompts(seed, 48), seed=seed)
        with pytest.raises(UserError, match="Nothing to localize"):
            probes.patching(twins(seed), prompts(seed), seed=seed)
        with pytest.raises(UserError, match="nothing to localize"):
            same = SimpleNamespace(base=knob.pair.tuned, tuned=knob.pair.tuned)
            probes.find_knob(same, knob.prompts, layers=[0], seed=seed)


def test_a_graft_of_a_task_that_tuning_did_not_touch_is_refused() -> None:
    """The models differ, the task does not: the tuned model moved only rows of tokens that no prompt or answer has."""
    for seed in range(SEEDS):
        pair = twins(seed)
        with torch.no_grad():
            pair.tuned.hf.lm_head.weight[VOCAB - 1] -= 5.0
            pair.tuned.hf.model.layers[0].mlp.down_proj.weight[:, 0] += 1e-7
        with pytest.raises(UserError, match=r"no better than the base|do not differ"):
            probes.graft(pair, prompts(seed, 48), seed=seed)
