"""Path patching, circuits, circuits across models and component masking where there is nothing, 20 seeds or more each:
no more than 5 % of runs or of cells may be reported (q <= .05). See ``test_false_alarms.py`` for the other probes.

What stands for nothing: a model beside itself (every effect is exactly 0); answers and distractors exchanged by the
toss of a coin for each group, so that no head favours either; heads drawn at random and called a circuit, in a model
and a copy of it with noise on its weights; targets that nothing in the prompts foretells.
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
from tests.probes.desiderata.test_masking import WORDS, model_of, texts
from tests.probes.paths.planted import induction_model, repeated_pairs
from tests.probes.test_false_alarms import SEEDS, Null
from tests.tiny import tiny_model
from workbench.models.pair import load_pair
from workbench.organisms.vocabulary import word_tokenizer

pytestmark = pytest.mark.slow
HEADS = [f"L{layer}H{head}" for layer in range(3) for head in range(4)]


def noisy(seed: int, noise: float = 0.05) -> Any:
    """A random model beside a copy with noise on every weight, as a share of that tensor's standard deviation."""
    model, generator = tiny_model("llama", seed), torch.Generator().manual_seed(seed)
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        for weight in copy.parameters() if noise else ():
            weight += noise * weight.std() * torch.randn(weight.shape, generator=generator)
    return load_pair(model, copy.eval(), tokenizer=word_tokenizer(WORDS), check=False)


def twins(seed: int) -> Any:
    """A random model beside a copy of itself."""
    return noisy(seed, 0.0)


def rows(seed: int, groups: int = 10, per_group: int = 2) -> list[dict[str, Any]]:
    """Groups of near copies with near copies as contrasts; a coin says which of two words a group calls the answer."""
    random, found = np.random.default_rng(seed), []
    for group in range(groups):
        words, others, pair = (random.choice(WORDS, n, replace=False) for n in (6, 6, 2))
        for copy in range(per_group):
            own, theirs = words.copy(), others.copy()
            own[copy] = theirs[copy] = random.choice(WORDS)
            found.append({
                "prompt": " ".join(own), "contrast": " ".join(theirs), "answer": pair[0], "distractor": pair[1],
                "group": f"g{group}",
            })  # fmt: skip
    return found


def sent(subject: Any, seed: int, *, groups: int = 10, **options: Any) -> pd.DataFrame:
    options = {"metric": "logit_diff", "only_correct": False, "seed": seed, **options}
    return probes.path_patching(subject, rows(seed, groups), **options).frame()


def crossed(pair: Any, seed: int, metric: str = "prob") -> pd.DataFrame:
    """Cells whose score is how far the other model's heads moved the answer."""
    table = probes.cmap(pair, rows(seed), some_heads(seed), metric, seed=seed).table
    return table.assign(score=table["change"])


def some_heads(seed: int) -> dict[Any, list[str]]:
    """Heads drawn at random, by another generator than the controls."""
    random = np.random.default_rng(1000 + seed)
    return {place: random.choice(HEADS, 3, replace=False).tolist() for place in ("last", "all")}


ACROSS = {"source": "tuned", "target": "base"}
EXACT: dict[str, Null] = {
    "path_patching across models": lambda seed: sent(twins(seed), seed, **ACROSS),
    "path_patching across models, by share": lambda seed: sent(twins(seed), seed, metric="prob_ratio", **ACROSS),
    "path_patching across models, to heads": lambda seed: sent(
        twins(seed), seed, receivers=["L2H1", "L2H3"], through="k", position=-2, **ACROSS
    ),
    "cmap": lambda seed: crossed(twins(seed), seed),
    "cmap, by logits": lambda seed: crossed(twins(seed), seed, "logit_diff"),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_model_against_itself_shows_exactly_nothing(name: str) -> None:
    for seed in range(SEEDS):
        cells = EXACT[name](seed)
        assert (cells["score"] == 0).all(), f"seed {seed}: {cells['score'].abs().max()}"
        assert not (cells["q"] <= 0.05).any()


def a_random_circuit(seed: int) -> pd.DataFrame:
    return probes.circuit(noisy(seed), rows(seed, 6), some_heads(seed), "prob", parts=0, seed=seed).frame()


def masked(subject: Any, prompts: Any, seed: int) -> pd.DataFrame:
    return probes.component_masking(
        subject, prompts, batch_size=16, penalties=(0.01, 0.1), epochs=1, controls=40, seed=seed
    ).frame()


def targets_by_a_coin(seed: int) -> pd.DataFrame:
    """The induction head moves the answer to that of the source; which of both is wanted, no prompt tells."""
    random, pairs = np.random.default_rng(seed), repeated_pairs(48, seed)
    turned = [
        {"prompt": row.prompt, "contrast": other.prompt, "answer": (row if random.random() < 0.5 else other).answer}
        for row, other in zip(pairs, [*pairs[1:], *pairs[:1]], strict=True)
    ]
    base, tuned = induction_model(seed), induction_model(seed + 1)
    base.role, tuned.role = "base", "tuned"
    return masked(SimpleNamespace(base=base, tuned=tuned), turned, seed)


def targets_by_lot(seed: int) -> pd.DataFrame:
    """Words drawn from a few, so that some are hit by chance."""
    random, prompts = np.random.default_rng(seed), texts(64, seed)
    return masked(model_of(), [{**row.as_dict(), "answer": random.choice(WORDS)} for row in prompts], seed)


CHANCE: dict[str, Callable[[int], pd.DataFrame]] = {
    "path_patching, sides by a coin": lambda seed: sent(twins(seed).base, seed, groups=16),
    "path_patching to heads, sides by a coin": lambda seed: sent(
        twins(seed).base, seed, groups=16, receivers=["L2H0", "L2H2"], through="q"
    ),
    "path_patching across models, sides by a coin": lambda seed: sent(noisy(seed), seed, groups=16, **ACROSS),
    "circuit, of random heads": a_random_circuit,
    "cmap, of random heads": lambda seed: crossed(noisy(seed), seed),
    "component_masking, targets by a coin": targets_by_a_coin,
    "component_masking, targets by lot": targets_by_lot,
}


MORE_SEEDS = {"path_patching to heads, sides by a coin": 100, "circuit, of random heads": 100}
"""Where alarms are nearly as frequent as allowed (a circuit's p-value is its rank among 20 random ones, so 1 in 21 by
construction), 20 runs have two of them once in four times; 100 tell 5 % better from more."""


@pytest.mark.parametrize("name", CHANCE)
def test_where_only_chance_is_left_few_runs_and_few_cells_are_significant(name: str) -> None:
    seeds = range(MORE_SEEDS.get(name, SEEDS))
    runs = [CHANCE[name](seed)["q"].to_numpy(np.float64) <= 0.05 for seed in seeds]
    with_any, cells = np.mean([run.any() for run in runs]), np.mean(np.concatenate(runs))
    assert with_any <= 0.05 and cells <= 0.05, f"{with_any:.0%} of runs, {cells:.1%} of cells"
