"""Damage never becomes truth: it is named, never read, and recorded again to the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workbench.recording.steps import CONFIG, SHARD_BYTES, steps
from workbench.errors import UserError
from workbench.files import DamagedWarning
from workbench.recording.recording import Recording
from workbench.recording.store import ShardReader, ShardWriter

Damage = Callable[[Path], Path]


def flipped(path: Path, at: float = 0.7) -> Path:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(bytes(data))
    return path


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-9])
    return path


def emptied(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def deleted(path: Path) -> Path:
    path.unlink()
    return path


def swapped(path: Path) -> Path:
    other = path.with_name(path.name.replace("00001", "00002"))
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)
    return path


DAMAGES = (flipped, truncated, emptied, deleted, swapped)


def stored(folder: Path, upto: int | None = None) -> Path:
    """A store of the first ``upto`` steps, unfinished where that is given."""
    writer = ShardWriter(folder, CONFIG, shard_bytes=SHARD_BYTES)
    for tensors, index in steps()[:upto]:
        writer.append(tensors, index)
    if upto is None:
        writer.close()
    else:
        writer._wait()
        writer.abandon()
    return folder


def resumed(folder: Path) -> int:
    """Give the same command again; how many steps it had to do."""
    with ShardWriter(folder, CONFIG, shard_bytes=SHARD_BYTES, mend=True) as writer:
        missing = writer.missing(len(steps()))
        for number in missing:
            writer.append(*steps()[number])
    return len(missing)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored(tmp_path_factory.mktemp("store") / "whole")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_of_a_finished_store_is_named_and_not_read(whole: Path, tmp_path: Path, damage: Damage) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    bad = damage(copy / "shard-00001.safetensors")
    with pytest.raises(UserError, match=bad.name):
        Recording.load(copy)


@pytest.mark.parametrize("name", ["index.parquet", "store.json", "shard-00000.safetensors"])
def test_every_flipped_byte_is_found(whole: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    data = (copy / name).read_bytes()
    for place in range(0, len(data), max(1, len(data) // 60)):
        changed = bytearray(data)
        changed[place] ^= 0x10
        (copy / name).write_bytes(bytes(changed))
        with pytest.raises(UserError, match=rf"{name}|newer"):
            ShardReader(copy)
    (copy / name).write_bytes(data)
    assert ShardReader(copy).rows == 120


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_finished_store_is_mended_to_the_same_bytes(whole: Path, tmp_path: Path, damage: Damage) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    damage(copy / "shard-00001.safetensors")
    with pytest.warns(DamagedWarning, match=r"shard-0000[12]\.safetensors .*; what it held is recorded again"):
        done = resumed(copy)
    assert 0 < done < 15 and contents(copy) == contents(whole)
    assert resumed(copy) == 0


@pytest.mark.parametrize("damage", [flipped, truncated, emptied, deleted])
def test_a_damaged_index_is_recorded_again(whole: Path, tmp_path: Path, damage: Damage) -> None:
    copy = shutil.copytree(whole, tmp_path / "copy")
    damage(copy / "index.parquet")
    with pytest.warns(DamagedWarning, match=r"index\.parquet"):
        resumed(copy)
    assert contents(copy) == contents(whole)


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "shard-00001.index.parquet"])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.filterwarnings("ignore::workbench.files.DamagedWarning")
def test_a_damaged_unfinished_store_is_mended_and_keeps_its_good_shards(
    whole: Path, tmp_path: Path, damage: Damage, name: str
) -> None:
    store = stored(tmp_path / "store", 30)
    places = {path.name: path.stat().st_ino for path in store.glob("shard-*.safetensors")}
    damage(store / name)
    resumed(store)
    again = {one for one, place in places.items() if (store / one).stat().st_ino != place}
    assert again <= {"shard-00001.safetensors", "shard-00002.safetensors"} and len(places) > 4
    assert contents(store) == contents(whole)


@pytest.mark.filterwarnings("ignore::workbench.files.DamagedWarning")
def test_two_damaged_shards_in_a_row_and_a_lost_first_one(whole: Path, tmp_path: Path) -> None:
    store = stored(tmp_path / "store", 35)
    for number in (0, 2, 3):
        deleted(store / f"shard-0000{number}.safetensors")
    assert resumed(store) < len(steps())
    assert contents(store) == contents(whole)


def test_files_of_others_beside_the_shards_are_left_alone(whole: Path, tmp_path: Path) -> None:
    store = stored(tmp_path / "store", 30)
    (store / "shard-notes.txt").write_text("mine")
    (store / "shard-1.txt").write_text("mine")
    resumed(store)
    assert {name for name in contents(store)} - {name for name in contents(whole)} == {"shard-notes.txt", "shard-1.txt"}


@pytest.mark.parametrize("damage", [flipped, emptied, deleted])
@pytest.mark.filterwarnings("ignore::workbench.files.DamagedWarning")
def test_shards_outlive_the_loss_of_their_store_json(whole: Path, tmp_path: Path, damage: Damage) -> None:
    store = stored(tmp_path / "store", 30)
    damage(store / "store.json")
    assert resumed(store) < 20 and contents(store) == contents(whole)


@pytest.mark.filterwarnings("ignore::workbench.files.DamagedWarning")
def test_shards_of_another_configuration_are_not_taken(tmp_path: Path) -> None:
    store = stored(tmp_path / "store", 30)
    (store / "store.json").unlink()
    with ShardWriter(store, {**CONFIG, "seed": 1}, shard_bytes=SHARD_BYTES, mend=True) as writer:
        assert writer.missing(40) == list(range(40))
        writer.append(*steps()[0])


def test_a_process_killed_between_index_and_store_finishes_the_same(whole: Path, tmp_path: Path) -> None:
    store = stored(tmp_path / "store", 30)
    (store / "index.parquet").write_bytes((whole / "index.parquet").read_bytes()[:50])
    with pytest.raises(UserError, match=r"unfinished|damaged|readable"):
        ShardReader(store)
    resumed(store)
    assert contents(store) == contents(whole)
