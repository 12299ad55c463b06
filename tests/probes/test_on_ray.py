"""Probes, audits, LESS, null adapters and behaviour diffs over two workers: the numbers of one process, bit for bit."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model

import interventions as iv
import probes
import workbench as wb
from tests.ray_cluster import QUIET, worker_processes
from tests.ray_cluster import cluster as cluster
from tests.tiny import tiny_model, tokenizer
from workbench.behaviour import behaviour_diff
from workbench.cluster.shipping import addresses, packed, unpacked
from workbench.cluster.splitting import RunsHereWarning, in_parts
from workbench.errors import UserError
from workbench.finished_batches import resumable, scope
from workbench.models.passes import counted
from workbench.progress import Silent

pytestmark = [*QUIET, pytest.mark.slow]
WORDS = "the quick brown fox jumps over lazy dog".split()
ROWS = [
    {"prompt": " ".join(WORDS[i % 5 : i % 5 + 2 + i % 3]), "answer": " fox", "distractor": " dog"} for i in range(20)
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> wb.ModelPair:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    base = tiny_model("llama")
    base.save_pretrained(folder / "base")
    tokenizer().save_pretrained(folder / "base")
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["o_proj", "q_proj"], init_lora_weights=False))
    adapted.save_pretrained(folder / "adapter")
    return wb.load_pair(folder / "base", folder / "adapter", device="cpu")


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def diff_of(pair: wb.ModelPair) -> list[pd.DataFrame]:
    recipe = iv.Recipe([iv.Offset(1, torch.linspace(-1, 1, pair.tuned.d_model))])
    graft = iv.Recipe([iv.Graft.from_pair(pair)])  # holds the tuned model: the worker's own there
    made = behaviour_diff(
        pair, ROWS, {"moved": recipe}, base_recipes={"grafted": graft}, batch_size=4, max_new_tokens=3, samples=1,
        metrics=("accuracy", "prob", "kl", "answer_logprob", "kl_base_model", "length"), texts=True,
    )  # fmt: skip
    return [made.table, made.rows, made.texts]


def patching_of(pair: wb.ModelPair) -> list[pd.DataFrame]:
    made = probes.patching(pair, ROWS, metric="kl", batch_size=8, normalise=False, draws=50)
    assert made.together is not None
    return [made.table, pd.DataFrame(made.effects), made.together]


def gradients_of(pair: wb.ModelPair) -> list[pd.DataFrame]:
    return [
        probes.patching(pair, ROWS, metric="kl", method=method, batch_size=8, normalise=False, draws=50).table
        for method in ("attribution", "ig")
    ]


def nulls_of(pair: wb.ModelPair) -> list[pd.DataFrame]:
    made = probes.against_nulls(probes.logit_lens, pair, ROWS[:6])
    return [made.table, made.nulls]


def less_of(pair: wb.ModelPair) -> list[pd.DataFrame]:
    queries = [{"prompt": f"lazy {word}", "answer": " quick"} for word in WORDS]
    made = probes.row_influence(pair, ROWS, queries=queries, dim=64, controls=4, batch_size=3, draws=50)
    return [made.table]


def audit_of(pair: wb.ModelPair) -> list[pd.DataFrame]:
    made = probes.audit(
        pair, questions=[row["prompt"] for row in ROWS], texts=[row["prompt"] for row in ROWS], max_new_tokens=2,
        batch_size=4,
    )  # fmt: skip
    return [made.table, made.answers, made.readings, made.tokens]


def recording_of(pair: wb.ModelPair) -> list[pd.DataFrame]:
    made = wb.record(pair, ROWS, "resid_post", batch_size=2, new_tokens=1)
    values = [made[role][site][:].numpy() for role in made.roles for site in made[role]]
    return [made.index, *map(pd.DataFrame, values)]


def pollution_of(pair: wb.ModelPair) -> list[pd.DataFrame]:
    made = probes.pollution(pair, ROWS[:8], samples=2, max_new_tokens=3, batch_size=2)
    return [made.table, made.path, pd.DataFrame({"passes": [made.provenance.forward_passes]})]


def where(_part: int) -> int:
    return os.getpid()


class Stops(Silent):
    """Stops the work once some batches are done, unless it is told not to."""

    def __init__(self, after: float) -> None:
        self.done, self.after = 0, after

    def advance(self, by: int = 1) -> None:
        self.done += by
        if self.done >= self.after:
            raise KeyboardInterrupt


class KillsOne(Silent):
    """Kills one worker, as ``kill -9`` does, once some batches are done."""

    def __init__(self) -> None:
        self.done, self.victim = 0, 0

    def advance(self, by: int = 1) -> None:
        self.done += by
        if self.done >= 3 and not self.victim:
            self.victim = worker_processes()[0].pid
            os.kill(self.victim, signal.SIGKILL)


COMPUTED = [
    diff_of, patching_of, gradients_of, nulls_of, less_of, audit_of, recording_of, pollution_of
]  # fmt: skip
BY_PROMPT: dict[str, Any] = {"metrics": ("prob", "kl"), "batch_size": 1}
Shared = dict[str, Any]


@pytest.fixture(scope="module")
def shared(cluster: Any, pair: wb.ModelPair, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """What two workers make of everything; they start once."""
    folder, killer, pids = tmp_path_factory.mktemp("run") / "batches", KillsOne(), dict[int, int]()
    with warnings.catch_warnings(), wb.on_ray(pair, workers=2):
        warnings.simplefilter("error", RunsHereWarning)
        made: Shared = {computed.__name__: computed(pair) for computed in COMPUTED}
        in_parts(where, range(8), lambda part, pid: pids.__setitem__(part, pid))
        with pytest.raises(KeyboardInterrupt), resumable(folder), scope(lambda: "the run"):
            behaviour_diff(pair, ROWS, progress=Stops(5), **BY_PROMPT)
        with counted(pair.base, pair.tuned) as passes, resumable(folder), scope(lambda: "the run"):
            made["resumed"] = behaviour_diff(pair, ROWS, **BY_PROMPT).table
        made["killed"] = behaviour_diff(pair, ROWS, progress=killer, **BY_PROMPT).table
    return {**made, "pids": pids, "victim": killer.victim, "passes": passes.forward}


@pytest.mark.parametrize("computed", COMPUTED)
def test_two_workers_give_the_numbers_of_one_process(
    shared: Shared, pair: wb.ModelPair, computed: Callable[[wb.ModelPair], list[pd.DataFrame]]
) -> None:
    for one, other in zip(computed(pair), shared[computed.__name__], strict=True):
        same(one, other)


def test_work_is_done_elsewhere_and_in_order(shared: Shared) -> None:
    pids = shared["pids"]
    assert list(pids) == list(range(8))
    assert len(set(pids.values())) == 2 and os.getpid() not in pids.values()


def test_a_lost_workers_parts_are_done_again_and_a_stopped_run_goes_on(shared: Shared, pair: wb.ModelPair) -> None:
    with counted(pair.base, pair.tuned) as passes:
        here = behaviour_diff(pair, ROWS, **BY_PROMPT).table
    assert shared["victim"]
    same(here, shared["killed"])
    same(here, shared["resumed"])
    assert passes.forward == shared["passes"] > 0


def test_models_that_are_not_as_loaded_run_here_with_a_warning(cluster: Any, pair: wb.ModelPair) -> None:
    recipe = iv.Recipe([iv.Offset(1, torch.ones(pair.tuned.d_model))])
    options: dict[str, Any] = {"metrics": ("prob",), "batch_size": 4}
    with recipe.applied(pair.tuned):
        here = behaviour_diff(pair, ROWS, **options)
    with (
        wb.on_ray(pair, workers=2),
        recipe.applied(pair.tuned),
        pytest.warns(RunsHereWarning, match="model here is not as the workers loaded it"),
    ):
        there = behaviour_diff(pair, ROWS, **options)
    same(here.table, there.table)


def test_our_models_stand_for_the_workers_own(pair: wb.ModelPair, tmp_path: Path) -> None:
    module = pair.tuned.inner.model.layers[0].mlp
    names = addresses(pair)
    parts = unpacked(packed([pair, pair.base, module, np.arange(3), pair.tokenizer], names), pair)
    assert parts[0] is pair and parts[1] is pair.base and parts[2] is module and parts[4] is pair.tokenizer
    other = wb.load_pair(tiny_model("gpt2"), tiny_model("gpt2"), tokenizer=tokenizer())
    with pytest.raises(UserError, match="a model that the workers did not load"):
        packed([other.tuned], names)
