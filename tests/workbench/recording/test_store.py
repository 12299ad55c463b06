"""The store: bytes survive a kill, reading equals what was written, two writers cannot meet."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.workbench.recording.steps import CONFIG, PICKED, RESID, SHARD_BYTES, Z, joined, steps
from workbench.errors import UserError
from workbench.recording.store import ShardReader, ShardWriter, StoredTensor

ROOT = Path(__file__).resolve().parents[3]


def write(folder: Path, upto: int | None = None) -> Path:
    with ShardWriter(folder, CONFIG, shard_bytes=SHARD_BYTES) as writer:
        for tensors, index in steps()[writer.steps_done : upto]:
            writer.append(tensors, index)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("store") / "whole")


def test_rows_come_back_bit_equal_with_their_index(folder: Path) -> None:
    reader = ShardReader(folder)
    assert len(list(folder.glob("shard-*.safetensors"))) > 3
    assert list(reader) == ["base", "tuned"] and reader.config["dtype"] == "bfloat16"
    for role, sites in reader.items():
        for site, stored in sites.items():
            whole = joined(f"{role}/{site}")
            assert stored.dtype == whole.dtype and stored.shape == whole.shape and len(stored) == len(whole)
            assert torch.equal(stored.load(), whole)
    wanted = {name: [value for _, index in steps() for value in index[name]] for name in reader.index}
    assert list(wanted) == ["prompt", "position", "text", "group"]
    pd.testing.assert_frame_equal(reader.index, pd.DataFrame(wanted).convert_dtypes(), check_dtype=False)


def test_files_are_ordinary_safetensors_and_parquet(folder: Path) -> None:
    shards = [load_file(path) for path in sorted(folder.glob("shard-*.safetensors"))]
    assert torch.equal(torch.cat([shard[Z] for shard in shards]), joined(Z))
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith("shard")) == [
        "index.parquet", "store.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "key",
    [
        0, -1, 57, slice(None), slice(3, 90), slice(10, 3), slice(None, None, 7), slice(1, None, 4),
        (slice(4, 60), 1), (slice(2, 80, 3), slice(None), 2), (5, 1), (Ellipsis, 0), (slice(None), [1, 0]),
    ],
)  # fmt: skip
def test_indexing_is_torchs(folder: Path, key: object) -> None:
    stored, whole = ShardReader(folder)["tuned"]["blocks.0.attn.hook_z"], joined(Z)
    assert torch.equal(stored[key], whole[key])


def test_arrays_masks_and_lists_pick_rows(folder: Path) -> None:
    stored, whole = ShardReader(folder)["tuned"]["blocks.0.attn.hook_z"], joined(Z)
    rows = torch.randint(-len(whole), len(whole), (50,))
    mask = torch.rand(len(whole)) > 0.5
    for key in (rows, rows.numpy(), rows.tolist(), mask, mask.numpy(), mask.tolist(), rows.reshape(5, 10)):
        wanted = whole[torch.as_tensor(key)]
        assert torch.equal(stored[key], wanted)
    assert torch.equal(stored[pd.Series(mask.numpy())], whole[mask])
    assert torch.equal(stored[mask, 1], whole[mask, 1])
    assert torch.equal(stored[torch.empty(0, dtype=torch.long)], whole[:0])
    for key, message in ((len(whole), "row 120 of 120"), (torch.ones(3, dtype=torch.bool), "mask has shape")):
        with pytest.raises(IndexError, match=message):
            stored[key]


def test_it_passes_for_a_tensor(folder: Path) -> None:
    reader = ShardReader(folder)
    stored, half = reader["tuned"]["blocks.0.attn.hook_z"], reader["base"]["blocks.1.hook_resid_post"]
    whole = joined(Z)
    assert torch.equal(torch.as_tensor(stored), whole)
    assert torch.equal(torch.einsum("rhd->hd", stored), torch.einsum("rhd->hd", whole))
    assert torch.equal(torch.cat([stored, stored]), torch.cat([whole, whole]))
    assert np.array_equal(np.asarray(stored), whole.numpy())
    assert torch.equal(torch.as_tensor(half), joined(RESID))
    assert np.array_equal(half.numpy(), joined(RESID).float().numpy())
    assert stored.to(torch.float64).dtype == torch.float64 and stored.ndim == 3
    assert sum(1 for _ in stored) == len(whole)


def test_what_is_read_is_ones_own(folder: Path) -> None:
    before = contents(folder)
    stored = ShardReader(folder)["tuned"]["blocks.0.attn.hook_z"]
    stored[:2].zero_()
    stored[0].zero_()
    stored.load().zero_()
    assert torch.equal(stored[:2], joined(Z)[:2]) and contents(folder) == before


def test_unknown_names_are_answered_with_the_known(folder: Path) -> None:
    reader = ShardReader(folder)
    with pytest.raises(UserError, match=r"Unknown role in this store 'tunde'\. Did you mean 'tuned'"):
        reader["tunde"]
    with pytest.raises(UserError, match=r"hook_zz'\. Did you mean 'blocks\.0\.attn\.hook_z'"):
        reader["tuned"]["blocks.0.attn.hook_zz"]


def test_resume_after_an_exception_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        ShardWriter(tmp_path, CONFIG, shard_bytes=SHARD_BYTES) as writer,
    ):
        for tensors, index in steps()[:23]:
            writer.append(tensors, index)
        raise RuntimeError("on purpose")
    assert not (tmp_path / ".lock").exists()
    with pytest.raises(UserError, match="unfinished; run the same record"):
        ShardReader(tmp_path)
    with ShardWriter(tmp_path, CONFIG, shard_bytes=10**9) as writer:  # the stored shard size holds
        assert 0 < writer.steps_done < 23
        assert writer.rows_done == sum(len(index["prompt"]) for _, index in steps()[: writer.steps_done])
        for tensors, index in steps()[writer.steps_done :]:
            writer.append(tensors, index)
    assert contents(tmp_path) == contents(folder)


@pytest.mark.parametrize("kills", [1, 3])
def test_a_process_killed_in_mid_write_resumes_to_the_same_bytes(folder: Path, tmp_path: Path, kills: int) -> None:
    store = tmp_path / "killed"
    for kill in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.workbench.recording.killed_writer", str(store)], cwd=ROOT
        )
        wanted = 2 * (kill + 1)
        deadline = time.monotonic() + 60
        while len(list(store.glob("shard-*.safetensors"))) < wanted:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert (store / ".lock").exists() and not (store / "index.parquet").exists()
    (store / ".partial-0123-shard-00009.safetensors").write_bytes(b"half")
    assert contents(write(store)) == contents(folder)


def test_a_shard_without_its_index_part_is_written_again(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, CONFIG, shard_bytes=SHARD_BYTES) as writer:
        for tensors, index in steps()[:30]:
            writer.append(tensors, index)
        raise KeyboardInterrupt
    parts = sorted(tmp_path.glob("shard-*.index.parquet"))
    parts[1].unlink()
    with ShardWriter(tmp_path, CONFIG) as writer:
        assert len(list(tmp_path.glob("shard-*.safetensors"))) == 1
        for tensors, index in steps()[writer.steps_done :]:
            writer.append(tensors, index)
    assert contents(tmp_path) == contents(folder)


def test_a_finished_store_is_left_alone(folder: Path) -> None:
    before = contents(folder)
    with ShardWriter(folder, CONFIG) as writer:
        assert writer.complete and writer.steps_done == len(steps())
        with pytest.raises(ValueError, match="is complete"):
            writer.append(*steps()[0])
    assert contents(folder) == before


def test_another_configuration_is_refused_by_its_first_differing_key(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(UserError, match="'seed' is 0 there and 1 here"):
        ShardWriter(folder, {**CONFIG, "seed": 1})
    assert contents(folder) == before


def test_one_writer_at_a_time_and_a_dead_ones_lock_falls(tmp_path: Path) -> None:
    first = ShardWriter(tmp_path, CONFIG)
    with pytest.raises(UserError, match=f"Another process .id {os.getpid()}. is writing"):
        ShardWriter(tmp_path, CONFIG)
    code = (
        "import sys\n"
        "from workbench.errors import UserError\n"
        "from workbench.recording.store import ShardWriter\n"
        "try: ShardWriter(sys.argv[1], {})\nexcept UserError as error: sys.exit(str(error))"
    )
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert other.returncode == 1 and "is writing to" in other.stderr
    first.abandon()
    (tmp_path / ".lock").write_text("999999\n")  # left by a process that is gone
    ShardWriter(tmp_path, CONFIG).abandon()
    assert not (tmp_path / ".lock").exists()


def test_steps_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, CONFIG)
    tensors, index = steps()[3]
    writer.append(tensors, index)
    with pytest.raises(ValueError, match="'base/short' has 1 rows and the index has 4"):
        writer.append({"base/short": torch.zeros(1, 2)}, index)
    with pytest.raises(ValueError, match="this step brings"):
        writer.append({**tensors, Z: tensors[Z].double()}, index)
    writer.abandon()


def test_damage_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no store of activations.*store\.json"):
        ShardReader(tmp_path)
    copy = tmp_path / "copy"
    for name, data in contents(folder).items():
        copy.mkdir(exist_ok=True)
        (copy / name).write_bytes(data)
    last = sorted(copy.glob("shard-*.safetensors"))[-1]
    whole = last.read_bytes()
    last.write_bytes(whole[:-7])
    with pytest.raises(UserError, match=f"{last.name} is not a readable shard"):
        ShardReader(copy)
    last.unlink()
    with pytest.raises(UserError, match="a shard is missing"):
        ShardReader(copy)
    last.write_bytes(whole)
    store = (copy / "store.json").read_text()
    (copy / "store.json").write_text(store.replace('"schema": 1', '"schema": 2'))
    with pytest.raises(UserError, match="newer Tunescope"):
        ShardReader(copy)


def test_full_disk_is_a_sentence_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    code = (
        "import resource, sys, torch\n"
        "from workbench.recording.store import ShardWriter\n"
        "from workbench.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n"
        "    with ShardWriter(sys.argv[1], {}, shard_bytes=100_000) as writer:\n"
        "        for _ in range(9): writer.append({'base/x': torch.zeros(100, 100)}, {'prompt': [0] * 100})\n"
        "except UserError as error: sys.exit(str(error))\n"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.startswith("No space left for")
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]


def test_bytes_on_disk_and_memory_while_reading(tmp_path: Path) -> None:
    rows, width, count = 2_000, 512, 20
    with ShardWriter(tmp_path, {}, shard_bytes=16 * 2**20) as writer:
        for step in range(count):
            prompts = [step * 100 + row // 20 for row in range(rows)]
            index = {
                "prompt": prompts,
                "position": [row % 20 for row in range(rows)],
                "text": ["word"] * rows,
            }
            writer.append({"base/x": torch.full((rows, width), float(step))}, index)
    tensors = rows * width * 4 * count
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert tensors <= on_disk <= 1.02 * tensors
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stored = ShardReader(tmp_path)["base"]["x"]
    assert isinstance(stored, StoredTensor)
    assert stored[::4_000, 0].tolist() == [float(step) for step in range(0, count, 2)]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < tensors / 1024 / 4


def test_an_empty_store_reads_as_empty(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, {}):
        pass
    assert len(ShardReader(tmp_path)) == 0
    assert PICKED in steps(1)[0][0]
