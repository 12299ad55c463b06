"""Strongly grouped prompts, where there is nothing: 20 seeds, at most 5 % of runs and of cells may say otherwise.

What a group of near copies does by chance, all its prompts do. Counted one by one, they alarm far more often than
allowed, which the same runs without the groups show.
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
from tests.tiny import tiny_model, tokenizer
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import load_pair
from workbench.prompts import Prompts
from workbench.recording.recording import Recording

SEEDS = 20
GROUPS, COPIES = 12, 8
WORDS = "the quick brown fox jumps over lazy dog".split()
Null = Callable[[int, bool], pd.DataFrame]
"""The cells (column q) for a seed, with the prompts' groups or without."""

pytestmark = pytest.mark.slow


def near_copies(seed: int, grouped: bool) -> Prompts:
    """Prompts of one group end with one letter, which no other group has; the words before it differ."""
    random = np.random.default_rng(seed)
    found = []
    for group in range(GROUPS):
        for _ in range(COPIES):
            text = f"{' '.join(random.choice(WORDS, 2))} {chr(ord('A') + group)}"
            found.append({"prompt": text, **({"group": f"g{group}"} if grouped else {})})
    return Prompts.of(found)


def moved_group_by_group(seed: int, grouped: bool, groups: int = GROUPS) -> Recording:
    """Each group moves its own way, and on average nowhere."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"blocks.0.hook_resid_post": (16,), "blocks.1.hook_mlp_out": (16,), "blocks.1.attn.hook_z": (4, 16)}
    group = torch.arange(groups).repeat_interleave(COPIES)
    base = {name: torch.randn(len(group), *shape, generator=random) for name, shape in shapes.items()}
    tuned = {
        name: value
        + torch.randn(groups, *shapes[name], generator=random)[group]
        + 0.1 * torch.randn(value.shape, generator=random)
        for name, value in base.items()
    }
    index = pd.DataFrame({"prompt": np.arange(len(group)), "position": 0, "token": "x"})
    index = index.assign(group=[f"g{value}" for value in group.tolist()]) if grouped else index
    config = {"roles": ["base", "tuned"], "sites": list(shapes), "n_prompts": len(group)}
    return Recording(index, config, {"base": base, "tuned": tuned})


def shifts(seed: int, grouped: bool) -> pd.DataFrame:
    return probes.activation_delta(moved_group_by_group(seed, grouped), components=0).table


def directions(seed: int, grouped: bool) -> pd.DataFrame:
    """Taken one by one, copies of what the directions are found on are also what they are scored on."""
    return probes.concept_directions(moved_group_by_group(seed, grouped, 36), "pca", k=4, seed=seed).table


def embeddings_moved_at_random(seed: int, grouped: bool) -> pd.DataFrame:
    """Each token's residual moves in a random direction, as the control's does: their readings differ alike. Attention
    and MLPs write nothing, so that the last token, one for each group, decides alone."""
    base = tiny_model("llama", seed)
    with torch.no_grad():
        for layer in base.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    tuned = type(base)(base.config)
    tuned.load_state_dict(base.state_dict())
    random = torch.Generator().manual_seed(seed + 1000)  # the model's own weights come from its seed
    with torch.no_grad():
        embedded = tuned.model.embed_tokens.weight
        embedded.add_(0.1 * torch.randn(embedded.shape, generator=random))
    pair = load_pair(base, tuned.eval(), tokenizer=tokenizer(), check=False)
    return probes.logit_lens(pair, near_copies(seed, grouped), positions="last", shown=0, seed=seed).table


def one_odd_group(seed: int, grouped: bool) -> pd.DataFrame:
    """One letter means something else to the tuned model: one observation, however often its prompt is repeated."""
    models = []
    for role in ("base", "tuned"):
        hf = tiny_model("llama", seed)
        hf.generation_config.eos_token_id = None
        models.append(AdaptedModel(hf, tokenizer(), role=role))
    odd = tokenizer()(f" {chr(ord('A') + seed % GROUPS)}")["input_ids"][-1]
    with torch.no_grad():
        embedded = models[1].hf.model.embed_tokens.weight
        embedded[odd] = 3 * torch.randn(embedded.shape[1], generator=torch.Generator().manual_seed(seed + 1000))
    pair: Any = SimpleNamespace(base=models[0], tuned=models[1])
    return probes.token_shift(
        pair, near_copies(seed, grouped), max_new_tokens=2, batch_size=GROUPS * COPIES, seed=seed
    ).table


NULLS: dict[str, Null] = {
    "activation_delta": shifts,
    "concept_directions": directions,
    "logit_lens": embeddings_moved_at_random,
    "token_shift": one_odd_group,
}


def alarms(null: Null, grouped: bool) -> tuple[float, float]:
    """The shares of runs with any alarm, and of cells."""
    runs = [null(seed, grouped)["q"].to_numpy(np.float64) <= 0.05 for seed in range(SEEDS)]
    return float(np.mean([run.any() for run in runs])), float(np.mean(np.concatenate(runs)))


@pytest.mark.parametrize("name", NULLS)
def test_groups_of_near_copies_are_no_evidence_by_number(name: str) -> None:
    with_any, cells = alarms(NULLS[name], grouped=True)
    assert with_any <= 0.05 and cells <= 0.05, f"{with_any:.0%} of runs, {cells:.1%} of cells"
    assert alarms(NULLS[name], grouped=False)[0] >= 0.2, "the same prompts taken one by one raise false alarms"
