"""record(): both models on the same tokens; memory, store and statistics agree; a killed run resumes byte for byte."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.engine.hub import SiteHook
from workbench.engine.positions import Where
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair, load_pair
from workbench.prompts.collection import Prompts
from workbench.recording.plan import auto_batch_size, plan, recorded_bytes, sized_windows
from workbench.recording.record_pair import record
from workbench.recording.recording import NonFiniteWarning, Recording

WORDS = "the quick brown fox jumps over lazy dog hello world this is a test".split()
PROMPTS = [" ".join(WORDS[i % 7 : i % 7 + 1 + i % 9]) for i in range(40)]


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    base = tiny_model("llama")
    return load_pair(base, tuned_copy(base), tokenizer=tokenizer())


def one_by_one(model: AdaptedModel, site: Site, position: int) -> torch.Tensor:
    """The value of a site for each prompt alone, without the recorder."""
    rows: list[torch.Tensor] = []
    with model.hooked([SiteHook(site, lambda value, _ctx: rows.append(value[0, position]))]):
        for prompt in PROMPTS:
            model.forward(model.encode([prompt]))
    return torch.stack(rows)


def test_rows_are_the_models_values_in_the_order_of_the_prompts(pair: ModelPair) -> None:
    rec = record(pair, PROMPTS, ["resid_post", "z"], batch_size=6)
    assert rec.index["prompt"].tolist() == list(range(40))
    for role, model in pair.models.items():
        got = rec[role]["z", 1]
        torch.testing.assert_close(got, one_by_one(model, Site("z", 1), -1), atol=2e-6, rtol=1e-4)
        assert rec[role]["blocks.2.hook_resid_post"].shape == (40, 64)
    assert not torch.equal(rec["base"]["z", 2], rec["tuned"]["z", 2])


def test_every_position_with_its_token(pair: ModelPair) -> None:
    rec = record(pair, PROMPTS[:9], "resid_pre", layers=0, positions="all", batch_size=4)
    ids = [pair.tokenizer(prompt)["input_ids"] for prompt in PROMPTS[:9]]
    assert rec.index["token_id"].tolist() == [token for row in ids for token in row]
    assert rec.index["position"].tolist() == [place for row in ids for place in range(len(row))]
    embedded = pair.base.inner.get_input_embeddings()(torch.tensor(rec.index["token_id"].tolist()))
    assert torch.equal(rec["base"]["resid_pre", 0], embedded.detach())


def test_the_index_is_made_when_it_is_asked_for(pair: ModelPair) -> None:
    rec = record(pair, PROMPTS[:9], "resid_pre", layers=0, positions="all", batch_size=4)
    assert rec.nonfinite == () and len(rec) == len(rec["base"]["blocks.0.hook_resid_pre"])
    assert "index" not in vars(rec)  # neither needs it
    assert len(rec.index) == len(rec) and rec.index is rec.index


def test_base_against_itself_is_null() -> None:
    base = tiny_model("gpt2")
    rec = record(load_pair(base, base, tokenizer=tokenizer()), PROMPTS, ["resid_post", "z"], positions="all")
    for site in rec.sites:
        assert torch.equal(rec["base"][site], rec["tuned"][site])


def test_logits_are_those_of_the_bare_model(pair: ModelPair) -> None:
    rec = record(pair, PROMPTS[:5], [], logits=True, batch_size=1)
    with torch.no_grad():
        want = torch.stack([pair.tuned.hf(**pair.tokenizer(p, return_tensors="pt")).logits[0, -1] for p in PROMPTS[:5]])
    assert torch.equal(rec["tuned"]["logits"], want)


def test_a_store_holds_what_memory_holds(pair: ModelPair, tmp_path: Path) -> None:
    sites = ["resid_post", "z", "pattern"]
    kept = record(pair, PROMPTS, sites, positions="all", batch_size=2)
    stored = record(pair, PROMPTS, sites, positions="all", batch_size=2, store=tmp_path / "a", shard_bytes=200_000)
    assert len(list((tmp_path / "a").glob("shard-*.safetensors"))) > 2
    for role in kept.roles:
        for site in kept.sites:
            assert torch.equal(kept[role][site], stored[role][site].load()), site
    assert stored.index.equals(Recording.load(tmp_path / "a").index)
    tensors = sum(t.numel() * t.element_size() for role in kept.roles for t in kept[role].values())
    written = sum(path.stat().st_size for path in (tmp_path / "a").iterdir())
    assert tensors <= written <= 1.02 * tensors + 20_000


def test_statistics_equal_those_of_the_rows(pair: ModelPair) -> None:
    rows = record(pair, PROMPTS, "z", positions="all")
    flat = record(pair, PROMPTS, "z", positions="all", store=None, covariance=True, top=3, batch_size=3)
    difference = rows["tuned"]["z", 1].double() - rows["base"]["z", 1].double()
    moments = flat.moments["difference"]["blocks.1.attn.hook_z"]
    torch.testing.assert_close(moments.mean, difference.mean(0), atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(moments.variance, difference.var(0), atol=1e-7, rtol=1e-4)
    norms = difference.flatten(1).norm(dim=1)
    top = flat.top["difference"]["blocks.1.attn.hook_z"].frame()
    assert top.iloc[0]["value"] == pytest.approx(float(norms.max()))
    place = (
        rows.index[["prompt", "position"]]
        .apply(tuple, axis=1)
        .tolist()
        .index((top.iloc[0]["prompt"], top.iloc[0]["position"]))
    )
    assert float(norms[place]) == pytest.approx(float(norms.max()))
    assert len(flat) == len(rows)
    with pytest.raises(UserError, match="streamed statistics"):
        flat["base"]


def test_continuations_are_read_by_both_models(pair: ModelPair) -> None:
    rec = record(pair, PROMPTS[:6], "resid_post", layers=0, positions="generated", new_tokens=4, batch_size=2)
    assert set(rec.index["phase"]) == {"generated"}
    texts = rec.index.groupby("prompt")["token_id"].apply(list)
    for number, prompt in enumerate(PROMPTS[:6]):
        batch = pair.tuned.encode([prompt])
        new = pair.tuned.generate_ids(batch, max_new_tokens=4)[0, batch.input_ids.shape[1] :].tolist()
        assert texts[number] == new


def test_moe_routing_is_recorded_with_experts_and_weights() -> None:
    model = AdaptedModel(tiny_model("mixtral"), tokenizer())
    rec = record(model, PROMPTS[:8], "router", positions="all")
    name = "blocks.1.mlp.hook_router"
    experts, weights = rec["model"][f"{name}.experts"], rec["model"][f"{name}.weights"]
    assert experts.shape == weights.shape == (len(rec), 2)
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(rec)))
    top = rec["model"][name].topk(2).indices.sort(-1).values
    assert torch.equal(experts.sort(-1).values, top)


def test_stored_patterns_count_keys_from_the_rows_first_token(pair: ModelPair) -> None:
    rec = record(pair, PROMPTS[:12], "pattern", positions="last", batch_size=12)
    pattern = rec["base"]["pattern", 0]
    torch.testing.assert_close(pattern.sum(-1), torch.ones(12, 4))
    for row, position in enumerate(rec.index["position"]):
        assert float(pattern[row, :, position + 1 :].abs().sum()) == 0.0
        assert float(pattern[row, :, : position + 1].min()) > 0.0


def test_nan_activations_are_kept_and_named(pair: ModelPair) -> None:
    def poison(value: torch.Tensor, ctx: Any) -> torch.Tensor:
        bad = (ctx.input_ids == 1) & (ctx.input_ids.shape[1] - ctx.real.sum(1) == 0)[:, None]
        return value.masked_fill(bad[..., None], float("nan"))

    hooks = [SiteHook(Site("mlp_out", 1), poison, edit=True)]
    with pytest.warns(NonFiniteWarning, match=r"hook_resid_post of the tuned model"), pair.tuned.hooked(hooks):
        rec = record(pair.tuned, PROMPTS[:4], "resid_post", positions="first", batch_size=1)
    assert {site for _, site, _ in rec.nonfinite} == {"blocks.1.hook_resid_post", "blocks.2.hook_resid_post"}
    assert {prompt for *_, prompt in rec.nonfinite} == {0, 1, 2, 3}
    assert bool(torch.isnan(rec["tuned"]["resid_post", 1]).all())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sites": "resid_pots"}, "Did you mean 'resid_post'"),
        ({"sites": "router"}, "Unknown site of this model"),
        ({"layers": 9}, "layers 0 to 2"),
        ({"positions": "lst"}, "Unknown position"),
        ({"positions": 99}, "select no token"),
        ({"prompts": []}, "no prompts"),
        ({"prompts": ["fox " * 400]}, "Prompt 0 has"),
        ({"sites": []}, "Nothing to record"),
        ({"batch_size": 0}, "batch size is 0"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    pair: ModelPair, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    call: dict[str, Any] = {"prompts": PROMPTS[:3], "sites": "resid_post", "store": tmp_path / "s", **change}
    with pytest.raises(UserError, match=says):
        record(pair, call.pop("prompts"), call.pop("sites"), **call)
    assert pair.base.n_hooks == 0 and pair.tuned.n_hooks == 0


@contextmanager
def exhausted(pair: ModelPair, above: int) -> Iterator[None]:
    """As a GPU answers batches of more rows; tests/cuda has a real one."""

    def fill(_module: Any, args: tuple[Any, ...]) -> None:
        if args[0].shape[0] > above:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 4 GiB.")

    handle = pair.tuned.inner.model.layers[1].register_forward_pre_hook(fill)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("stored", [False, True])
def test_an_automatic_batch_is_halved_where_memory_runs_out(pair: ModelPair, tmp_path: Path, stored: bool) -> None:
    with exhausted(pair, above=11):
        found = record(pair, PROMPTS, "z", positions="all", store=tmp_path / "s" if stored else "memory")
    assert found.config["batch_size"] == 8
    wanted = record(pair, PROMPTS, "z", positions="all", batch_size=8)
    assert found.index.equals(wanted.index)
    assert all(torch.equal(found[role]["z", 1][:], wanted[role]["z", 1]) for role in wanted.roles)


def test_a_chosen_batch_is_not_halved(pair: ModelPair, tmp_path: Path) -> None:
    with exhausted(pair, above=11), pytest.raises(UserError, match=r"ran out at 20 prompts .* and another folder"):
        record(pair, PROMPTS, "z", batch_size=20, store=tmp_path / "s")
    with exhausted(pair, above=0), pytest.raises(UserError, match="ran out at 1 prompts"):
        record(pair, PROMPTS[:4], "z")
    assert pair.tuned.n_hooks == 0


def test_what_else_lies_in_the_folder_stays(pair: ModelPair, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="select no token"):
        record(pair, PROMPTS, "z", positions=99, store=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_another_configuration_does_not_overwrite(pair: ModelPair, tmp_path: Path) -> None:
    record(pair, PROMPTS[:3], "z", store=tmp_path / "s")
    with pytest.raises(UserError, match="positions"):
        record(pair, PROMPTS[:3], "z", store=tmp_path / "s", positions="all")
    again = record(pair, PROMPTS[:3], "z", store=tmp_path / "s")
    assert len(again) == 3


KILLED = """
import sys, torch
sys.path.insert(0, {root!r})
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.models.pair import load_pair
from workbench.prompts.collection import Prompts
from workbench.recording.plan import auto_batch_size, plan, recorded_bytes, sized_windows
from workbench.recording.record_pair import record
torch.set_num_threads(1)
base = tiny_model("llama")
pair = load_pair(base, tuned_copy(base), tokenizer=tokenizer())
words = "the quick brown fox jumps over lazy dog hello world".split()
prompts = [" ".join(words[i % 5 : i % 5 + 1 + i % 5] * 6) for i in range({n})]
rec = record(pair, prompts, ["resid_post", "z"], positions="all", batch_size=2, store={store!r}, shard_bytes=400_000)
print(len(rec))
"""


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_kill_minus_nine_in_mid_recording_then_resume_to_the_same_bytes(tmp_path: Path) -> None:
    root, n = str(Path(__file__).resolve().parents[3]), 400

    def script(store: Path) -> list[str]:
        return [sys.executable, "-c", KILLED.format(root=root, store=str(store), n=n)]

    killed = subprocess.Popen(script(tmp_path / "killed"), stdout=subprocess.DEVNULL, env={**os.environ})
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed").glob("shard-*.index.parquet"))) < 2:
        assert killed.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    with pytest.raises(UserError, match="unfinished"):
        Recording.load(tmp_path / "killed")
    subprocess.run(script(tmp_path / "killed"), check=True, stdout=subprocess.DEVNULL)
    subprocess.run(script(tmp_path / "whole"), check=True, stdout=subprocess.DEVNULL)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_an_automatic_batch_shrinks_with_what_is_recorded(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites x layers x tokens of a batch stay below a bound, so that memory is flat in the number of prompts."""
    few, many = pair.base.expand(["resid_post"], [0]), pair.base.expand(["resid_post", "z", "mlp_out"])
    each = recorded_bytes(pair.models, many, Where("all"), 100, logits=False)
    assert each == 2 * 4 * 100 * 9 * pair.base.d_model
    assert recorded_bytes(pair.models, few, Where("last"), 100, logits=False) * 900 == each
    assert auto_batch_size(pair.base, 100, each) == auto_batch_size(pair.base, 100), "small models are as they were"
    monkeypatch.setattr("workbench.recording.plan.BATCH_BYTES", 3 * each)
    assert auto_batch_size(pair.base, 100, each) == 3 and auto_batch_size(pair.base, 100, 10 * each) == 1
    monkeypatch.setattr("workbench.recording.plan.BATCH_BYTES", 40_000)
    kept = record(pair, PROMPTS, ["resid_post", "z"], positions="all", store=None)
    assert kept.config["batch_size"] < len(PROMPTS)


def test_rows_that_are_many_bytes_are_handed_on_batch_by_batch(
    pair: ModelPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window holds eight batches, or fewer where that would be too much memory; the rows are the same."""
    want = record(pair, PROMPTS, ["resid_post", "z"], positions="all", batch_size=4)
    sites = pair.base.expand(["resid_post", "z"])
    planned = plan(pair.models, Prompts.of(PROMPTS), 4, 0, "tuned")
    assert sized_windows(planned, pair.models, sites, Where("last"), logits=False).batches_per_window == 8
    monkeypatch.setattr("workbench.recording.plan.WINDOW_BYTES", 100_000)
    assert sized_windows(planned, pair.models, sites, Where("all"), logits=False).batches_per_window == 1
    stored = record(
        pair, PROMPTS, ["resid_post", "z"], positions="all", batch_size=4, store=tmp_path / "s", shard_bytes=1
    )
    assert len(list((tmp_path / "s").glob("shard-*.safetensors"))) == 10
    assert stored.index["prompt"].is_monotonic_increasing and len(stored) == len(want)
    for role in want.roles:
        torch.testing.assert_close(stored[role]["z", 2].load(), want[role]["z", 2], atol=2e-6, rtol=1e-4)
