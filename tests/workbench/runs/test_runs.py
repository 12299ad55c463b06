"""Runs: whole or absent, found again by their configuration, verified file by file, kept below their
folder."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from workbench import runs
from workbench.errors import UserError
from workbench.files import write_text

ROOT = Path(__file__).resolve().parents[3]
CONFIG = {"model": "tiny", "sites": ["z"], "layers": {"first": 0, "last": 3}, "path": Path("a/b")}


def finished(home: Path, name: str = "x") -> runs.Run:
    with runs.create(home, name, kind="record", config=CONFIG, provenance={"seed": 0}) as run:
        run.write_table("heads", pd.DataFrame({"layer": [0, 1], "score": [0.5, np.nan]}))
        run.write_tensors("sub/vectors", {"u": torch.randn(3).to(torch.bfloat16), "n": torch.tensor(5)})
        run.write_json("summary", {"score": np.float32(0.5), "bad": float("nan"), "table": pd.DataFrame({"a": [1]})})
        run.write_text("notes.md", "Grüße\n")
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    finished(tmp_path)
    run = runs.open(tmp_path / "x")
    assert run.is_complete and run.config["layers"] == {"first": 0, "last": 3} and run.config["path"] == "a/b"
    assert run.read_table("heads")["layer"].tolist() == [0, 1]
    tensors = run.read_tensors("sub/vectors")
    assert tensors["u"].dtype == torch.bfloat16 and tensors["n"].item() == 5 and tensors["n"].shape == ()
    assert run.read_json("summary") == {"score": 0.5, "bad": None, "table": [{"a": 1}]}
    assert (run.path / "notes.md").read_text(encoding="utf-8") == "Grüße\n"
    manifest = json.loads((tmp_path / "x" / "run.json").read_text())
    assert manifest["schema"] == 1 and manifest["state"] == "complete" and manifest["provenance"] == {"seed": 0}
    assert set(manifest["files"]) == {"heads.parquet", "notes.md", "sub/vectors.safetensors", "summary.json"}
    assert manifest["files"]["notes.md"]["size"] == 8
    with pytest.raises(UserError, match=r"has no file absent\.json"):
        run.read_json("absent")


def test_the_same_work_gives_the_same_bytes(tmp_path: Path) -> None:
    for home in ("a", "b"):
        torch.manual_seed(0)
        finished(tmp_path / home)
        time.sleep(0.01)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_run_is_found_again_by_its_configuration(tmp_path: Path) -> None:
    first = runs.create(tmp_path, kind="record", config=CONFIG)
    first.write_text("part.txt", "kept")
    again = runs.create(tmp_path, kind="record", config=dict(reversed(CONFIG.items())))
    assert again.path == first.path and again.state == "running"
    assert again.file("part.txt").read_text() == "kept"
    again.finish()
    done = runs.create(tmp_path, kind="record", config=CONFIG)
    assert done.is_complete
    with pytest.raises(UserError, match=r"has ended \(complete\); call reopen"):
        done.write_text("more.txt", "")
    done.reopen()
    done.write_text("more.txt", "")
    done.finish()
    assert set(runs.open(done.path).manifest.files) == {"part.txt", "more.txt"}
    assert runs.create(tmp_path, kind="record", config={**CONFIG, "model": "other"}).path != first.path


def test_another_configuration_is_refused_by_its_first_differing_key(tmp_path: Path) -> None:
    finished(tmp_path)
    before = contents(tmp_path)
    other = {**CONFIG, "layers": {"first": 0, "last": 4}, "model": "tiny"}
    with pytest.raises(UserError, match=r"another configuration: 'layers\.last' is 3 there and 4 here"):
        runs.create(tmp_path, "x", kind="record", config=other)
    with pytest.raises(UserError, match=r"'kind' is \"record\" there and \"steer\" here"):
        runs.create_at(tmp_path / "x", kind="steer", config=CONFIG)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("")
    with pytest.raises(UserError, match="exists and is no run"):
        runs.create(tmp_path, "thesis", kind="record", config=CONFIG)
    assert {name: data for name, data in contents(tmp_path).items() if "thesis" not in name} == before


def test_a_failed_run_says_why_and_can_be_taken_up(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no luck"), runs.create(tmp_path, "x", kind="record", config=CONFIG) as run:
        run.write_text("a.txt", "a")
        raise UserError("no luck")
    found = runs.open(tmp_path / "x").manifest
    assert (found.state, found.error, set(found.files)) == ("failed", "no luck", {"a.txt"})
    assert runs.create(tmp_path, "x", kind="record", config=CONFIG).state == "running"
    with pytest.raises(KeyboardInterrupt), runs.create(tmp_path, "x", kind="record", config=CONFIG):
        raise KeyboardInterrupt
    assert runs.open(tmp_path / "x").state == "interrupted"
    assert runs.create(tmp_path, "x", kind="record", config=CONFIG).state == "running"


def test_a_killed_run_is_not_called_running(tmp_path: Path) -> None:
    """Told by the lock, which falls with its process; while that lives, it is the only writer."""
    code = (
        "import sys; from workbench import runs\n"
        f"with runs.create({str(tmp_path)!r}, 'x', kind='record', config={{}}):\n"
        "    print('in', flush=True); sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        assert runs.open(tmp_path / "x").state == "running"
        half = tmp_path / "x" / ".partial-of-the-writer"
        half.write_text("half")
        with pytest.raises(UserError, match=f"Another process .id {process.pid}. is writing"):
            runs.create(tmp_path, "x", kind="record", config={})
        assert half.read_text() == "half"
        assert runs.list(tmp_path)[0].state == "running"
        process.kill()
    assert runs.list(tmp_path)[0].state == "interrupted"
    assert "the run is interrupted, not complete" in str(runs.verify(tmp_path / "x"))
    with runs.create(tmp_path, "x", kind="record", config={}) as again:
        assert again.state == "running"
    assert runs.verify(tmp_path / "x").ok and contents(tmp_path / "x").keys() == {"run.json"}


def test_a_lock_that_cannot_be_taken_is_a_sentence(tmp_path: Path) -> None:
    from workbench.folder_lock import FolderLock

    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="Cannot write"):
        FolderLock(tmp_path / "file")


def test_verify_names_every_missing_changed_and_foreign_file(tmp_path: Path) -> None:
    run = finished(tmp_path)
    assert runs.verify(run.path).ok and runs.verify(run.path).checked == 4
    (run.path / "heads.parquet").unlink()
    data = bytearray((run.path / "sub" / "vectors.safetensors").read_bytes())
    data[-1] ^= 1
    (run.path / "sub" / "vectors.safetensors").write_bytes(bytes(data))
    (run.path / "notes.md").unlink()
    (run.path / "notes.md").symlink_to(run.path / "summary.json")
    (run.path / "sub" / "extra.bin").write_bytes(b"")
    (run.path / ".partial-1-x").write_bytes(b"")
    found = runs.verify(run.path)
    assert not found.ok
    assert found.missing == ("heads.parquet", "notes.md")
    assert found.changed == ("sub/vectors.safetensors",)
    assert found.foreign == (".partial-1-x", "notes.md", "sub/extra.bin")
    assert "2 missing (heads.parquet, notes.md)" in str(found)
    assert not runs.verify(runs.create(tmp_path, "running", kind="record", config={}).path).ok


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", ".", "a\0b", "..\\x", "link/x", "deep/link/x"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    home, outside = tmp_path / "home", tmp_path / "outside"
    (home / "deep").mkdir(parents=True)
    outside.mkdir()
    for link in (home / "link", home / "deep" / "link"):
        link.symlink_to(outside)
    with pytest.raises(UserError):
        runs.create(home, name, kind="record", config={})
    run = runs.create(home, "good", kind="record", config={})
    for link in (run.path / "link", run.path / "deep" / "link"):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(outside)
    for write in (lambda: run.write_text(name, "x"), lambda: run.write_json(name, 1), lambda: run.file(name)):
        with pytest.raises(UserError):
            write()
    assert list(outside.iterdir()) == [] and [p.name for p in tmp_path.iterdir() if p.is_file()] == []


def test_links_and_the_manifest_itself_are_protected(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "x", kind="record", config={})
    with pytest.raises(UserError, match="own manifest"):
        run.write_json("run", {})
    run.file("data.bin").symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"data\.bin is a link|leads out"):
        run.finish()


def test_a_hostile_manifest_reads_nothing_outside(tmp_path: Path) -> None:
    run = finished(tmp_path)
    manifest = json.loads((run.path / "run.json").read_text())
    manifest["files"]["../../etc/passwd"] = {"size": 1, "sha256": "0"}
    (run.path / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="no name inside"):
        runs.verify(run.path)


def test_a_pickle_in_a_tensor_file_is_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "boom"),)

    run = finished(tmp_path)
    run.file("sub/vectors.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(Exception, match="not the file that the run ended with"):
        run.read_tensors("sub/vectors")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is no run"),
        ("{", "is damaged"),
        ("[]", "no valid manifest"),
        ('{"schema": 1, "kind": "record"}', "no valid manifest .config: Field required"),
        ('{"schema": 99, "new": true}', r"newer Tunescope \(schema 99; this one reads up to 1\)"),
        ('{"schema": 1, "kind": "r", "config": {}, "state": "odd"}', "state: Input should be"),
    ],
)
def test_manifests_that_cannot_be_read(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match=message):
        runs.open(tmp_path)


def test_list_shows_every_run_latest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path))
    assert runs.default_home() == tmp_path
    finished(tmp_path, "old")
    runs.create(tmp_path / "deep", "new", kind="steer", config={})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    for name, when in (("old", 100), ("deep/new", 300), ("broken", 200)):
        os.utime(tmp_path / name / "run.json", (when, when))
    found = runs.list()
    assert [(run.name, run.state) for run in found] == [
        ("deep/new", "running"), ("broken", "unreadable"), ("old", "complete"),
    ]  # fmt: skip
    assert found[2].size > 1_000 and "damaged" in str(found[1].problem)
    assert runs.list(tmp_path / "none") == []


@pytest.mark.parametrize("what", ["write_text('big', 'x' * 100_000)", "write_table('big', table)"])
def test_full_disk_is_a_sentence_and_leaves_nothing_half_written(tmp_path: Path, what: str) -> None:
    code = (
        "import resource, sys\n"
        "import numpy as np, pandas as pd\n"
        "from workbench import runs\n"
        "from workbench.errors import UserError\n"
        "table = pd.DataFrame({'x': np.random.default_rng(0).random(20_000)})\n"
        "run = runs.create(sys.argv[1], 'x', kind='record', config={})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        f"try: run.{what}\n"
        "except UserError as error: sys.exit(str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("No space left for"), done.stderr
    assert os.strerror(errno.EFBIG) in done.stderr
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["run.json"]


def test_a_kill_in_mid_write_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from workbench.files import write_text\n"
        "while True:\n"
        "    for sign in 'ab': write_text(Path(sys.argv[1]), sign * 3_000_000)\n"
    )
    target = tmp_path / "file.txt"
    process = subprocess.Popen([sys.executable, "-c", code, str(target)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not target.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert target.read_text() in ("a" * 3_000_000, "b" * 3_000_000)


def test_an_exception_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "x", kind="record", config={})
    run.write_json("a", [1])
    with pytest.raises(TypeError, match=r"a\.bad holds object"):
        run.write_json("a", {"bad": object()})
    assert run.read_json("a") == [1]


@pytest.mark.skipif(os.geteuid() == 0, reason="a superuser may write anywhere")
def test_a_folder_without_write_permission_is_a_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="permission denied"):
            write_text(tmp_path / "new.txt", "x")
    finally:
        tmp_path.chmod(0o700)


def test_a_run_that_was_moved_while_it_was_written_is_a_sentence_and_does_not_come_back(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "here", kind="record", config={})
    with pytest.raises(UserError, match="moved or deleted while it was written"), run:
        run.path.rename(tmp_path / "there")
    assert not (tmp_path / "here").exists() and (tmp_path / "there" / "run.json").is_file()


def test_one_bad_run_hides_no_other(tmp_path: Path) -> None:
    runs.create(tmp_path, "good", kind="record", config={}).finish()
    for name in ("link", "deep", "digits", "folder"):
        (tmp_path / name).mkdir()
    (tmp_path / "link" / "run.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "deep" / "run.json").write_text("[" * 200_000)
    (tmp_path / "digits" / "run.json").write_text("9" * 5000)
    strange = os.fsencode(tmp_path) + b"/\xff\xfe"
    Path(os.fsdecode(strange)).mkdir()
    Path(os.fsdecode(strange + b"/run.json")).write_text("{}")
    for name in ("pipe", "device", "endless"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "run.json")
    (tmp_path / "device" / "run.json").symlink_to("/dev/zero")
    with (tmp_path / "endless" / "run.json").open("wb") as file:
        file.truncate(2**33)  # a hole: it takes no room on the disk
    found = {run.name: run.state for run in runs.list(tmp_path)}
    assert found.pop("good") == "complete" and set(found.values()) == {"unreadable"} and len(found) == 7
    for name in ("pipe", "device", "endless"):
        with pytest.raises(UserError, match=r"run\.json cannot be read"):
            runs.verify(tmp_path / name)
    assert all(name.encode("utf-8") for name in found)
