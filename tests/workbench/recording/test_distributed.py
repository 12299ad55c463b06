"""executor="ray": rows, stored bytes and statistics are those of one process, also when a worker is killed."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import interventions as iv
from tests.ray_cluster import QUIET, worker_processes
from tests.ray_cluster import cluster as cluster
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.errors import MissingExtra, NotSupported, UserError
from workbench.models.origin import fingerprint
from workbench.models.pair import ModelPair, load_one, load_pair
from workbench.progress import Silent
from workbench.recording.record_pair import record
from workbench.recording.recording import Recording

PROMPTS = [
    {
        "prompt": " ".join("the quick brown fox jumps over lazy dog".split()[i % 5 : i % 5 + 1 + i % 7]),
        "group": f"g{i % 4}",
    }
    for i in range(60)
]
SITES = ["resid_post", "z"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    base = tiny_model("llama")
    for name, model in (("base", base), ("tuned", tuned_copy(base))):
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    return folder / "base", folder / "tuned"


@pytest.fixture(scope="module")
def pair(folders: tuple[Path, Path]) -> ModelPair:
    return load_pair(*folders, device="cpu")


pytestmark = QUIET


def same_rows(one: Recording, other: Recording) -> None:
    assert one.index.equals(other.index) and one.config == other.config
    for role in one.roles:
        assert list(one[role]) == list(other[role])
        for site in one[role]:
            assert torch.equal(one[role][site][:], other[role][site][:]), (role, site)


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_rows_in_memory_are_bit_identical(cluster: Any, pair: ModelPair) -> None:
    options: dict[str, Any] = {"positions": "all", "batch_size": 2, "new_tokens": 2}
    same_rows(
        record(pair, PROMPTS, SITES, executor="ray", workers=3, **options), record(pair, PROMPTS, SITES, **options)
    )


@pytest.mark.slow
def test_an_adapter_pair_is_one_copy_in_every_worker(cluster: Any, folders: tuple[Path, Path], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_model("llama")
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    pair = load_pair(folders[0], tmp_path / "adapter", device="cpu")
    assert pair.one_copy
    same_rows(
        record(pair, PROMPTS, SITES, batch_size=4, executor="ray", workers=2),
        record(pair, PROMPTS, SITES, batch_size=4),
    )


@pytest.mark.slow
def test_a_single_model(cluster: Any, folders: tuple[Path, Path]) -> None:
    model = load_one(folders[1], device="cpu")
    options: dict[str, Any] = {"batch_size": 4, "logits": True}
    same_rows(record(model, PROMPTS, "z", executor="ray", workers=1, **options), record(model, PROMPTS, "z", **options))


@pytest.mark.slow
def test_a_store_has_the_same_bytes(cluster: Any, pair: ModelPair, tmp_path: Path) -> None:
    options: dict[str, Any] = {"positions": "all", "batch_size": 2, "shard_bytes": 60_000}
    record(pair, PROMPTS, SITES, store=tmp_path / "one", **options)
    record(pair, PROMPTS, SITES, store=tmp_path / "ray", executor="ray", workers=3, **options)
    assert len(digests(tmp_path / "one")) > 3
    assert digests(tmp_path / "ray") == digests(tmp_path / "one")
    deadline = time.monotonic() + 60
    while worker_processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not worker_processes(), "a worker outlived its recording"


@pytest.mark.slow
def test_statistics_are_those_of_one_process(cluster: Any, pair: ModelPair) -> None:
    options: dict[str, Any] = {"positions": "all", "batch_size": 2, "store": None, "covariance": True, "top": 5}
    alone = record(pair, PROMPTS, SITES, **options)
    two, three = (record(pair, PROMPTS, SITES, executor="ray", workers=count, **options) for count in (2, 3))
    assert len(alone) == len(two) == len(three) and set(two.moments) == {"base", "tuned", "difference"}
    for role, sites in alone.moments.items():
        for site, moments in sites.items():
            again, other = two.moments[role][site], three.moments[role][site]
            assert moments.count == again.count == other.count
            for name in ("mean", "variance", "covariance"):
                exact, merged = getattr(moments, name), getattr(again, name)
                assert torch.equal(merged, getattr(other, name)), "the number of workers changes the statistics"
                assert float((merged - exact).abs().max()) <= 1e-12 * float(exact.abs().max())
    for role, sites in alone.top.items():
        for site, top in sites.items():
            assert top.frame().equals(two.top[role][site].frame())


class KillsOne(Silent):
    """Kills one worker, as ``kill -9`` does, once some prompts are done."""

    def __init__(self) -> None:
        self.done = 0
        self.killed: list[int] = []

    def advance(self, by: int = 1) -> None:
        self.done += by
        if self.done >= 16 and not self.killed:
            victim = worker_processes()[0]
            os.kill(victim.pid, signal.SIGKILL)
            self.killed.append(victim.pid)


@pytest.mark.slow
def test_a_killed_workers_share_is_run_again(cluster: Any, pair: ModelPair, tmp_path: Path) -> None:
    options: dict[str, Any] = {"positions": "all", "batch_size": 1, "shard_bytes": 60_000}
    killer = KillsOne()
    record(
        pair, PROMPTS, SITES, store=tmp_path / "ray", executor="ray", workers=2, progress=killer, **options
    )  # fmt: skip
    assert killer.killed and killer.done == len(PROMPTS)
    record(pair, PROMPTS, SITES, store=tmp_path / "one", **options)
    assert digests(tmp_path / "ray") == digests(tmp_path / "one")


@pytest.mark.slow
def test_more_workers_than_the_cluster_has(cluster: Any, pair: ModelPair, tmp_path: Path) -> None:
    for count in (0, 4):
        with pytest.raises(UserError, match=r"the cluster has 3 CPUs.*give 1 to 3"):
            record(pair, PROMPTS, "z", store=tmp_path / "new", executor="ray", workers=count)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_other_weights_in_the_workers_are_refused(cluster: Any, folders: tuple[Path, Path]) -> None:
    changed = load_pair(*folders, device="cpu")
    with torch.no_grad():
        next(changed.tuned.hf.parameters())[0, 0] += 1
    with pytest.raises(UserError, match="other weights for the tuned model"):
        record(changed, PROMPTS[:4], "z", executor="ray", workers=1)


def test_loaded_models_cannot_be_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", object())
    base = tiny_model("llama")
    live = load_pair(base, tuned_copy(base), tokenizer=tokenizer())
    with pytest.raises(UserError, match="load it from folders or hub ids"):
        record(live, PROMPTS, "z", executor="ray")


def test_interventions_would_not_reach_the_workers(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", object())
    offset = iv.Recipe([iv.Offset(0, torch.ones(pair.tuned.d_model))])
    graft = iv.Recipe([iv.Graft.from_pair(pair)])
    for recipe, model in ((offset, pair.tuned), (graft, pair.base)):
        with recipe.applied(model), pytest.raises(NotSupported, match="the workers' models would not have them"):
            record(pair, PROMPTS, "z", executor="ray")
    assert not pair.base.hub.held and not pair.tuned.hub.held


def test_without_ray_the_error_names_the_extra(
    pair: ModelPair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'tunescope\[ray\]'"):
        record(pair, PROMPTS, "z", store=tmp_path / "new", executor="ray")
    assert not (tmp_path / "new").exists()


def test_wrong_use(pair: ModelPair) -> None:
    with pytest.raises(UserError, match="workers are processes of a Ray cluster"):
        record(pair, PROMPTS, "z", workers=2)
    with pytest.raises(UserError, match=r"Unknown executor 'rai'\. Did you mean 'ray'"):
        record(pair, PROMPTS, "z", executor="rai")


def test_a_fingerprint_tells_weights_apart(folders: tuple[Path, Path], pair: ModelPair) -> None:
    again = load_pair(*folders, device="cpu")
    assert fingerprint(again.base) == fingerprint(pair.base) != fingerprint(pair.tuned)
    half = load_pair(*folders, device="cpu", dtype="bfloat16")
    assert fingerprint(half.base) != fingerprint(pair.base)
