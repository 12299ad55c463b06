"""What a recording's run keeps of how its models were loaded, and which runs are gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench.errors import UserError
from workbench.recording.job import record_run
from workbench.recording.load_options import LOAD_OPTIONS, load_options
from workbench.runs.config import config_hash
from workbench.runs.folder import Run, open_run


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pair")
    base = tiny_model("llama")
    for name, model in (("base", base), ("tuned", tuned_copy(base))):
        model.save_pretrained(home / name)
        tokenizer().save_pretrained(home / name)
    return home


def recorded(folders: Path, out: Path | None, **more: Any) -> Run:
    call = {"sites": ["z"], "out": out, **more}
    return record_run(folders / "base", folders / "tuned", ["the quick", "brown fox jumps"], **call).run


def kept(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if key in LOAD_OPTIONS}


def as_before(run: Run) -> None:
    """The manifest of a run that was killed before the options were kept."""
    file = run.path / "run.json"
    manifest = json.loads(file.read_text())
    manifest["config"] = {key: value for key, value in manifest["config"].items() if key not in LOAD_OPTIONS}
    file.write_text(json.dumps({**manifest, "state": "running", "files": {}}))
    run.file("difference.parquet").unlink()


def test_options_are_plain_and_only_those_that_are_not_the_default() -> None:
    assert load_options({"device": "auto", "dtype": "auto", "allow_pickle": False, "backend": "hooks"}) == {}
    assert load_options({"workers": 2, "executor": "ray", "check": False, "device_map": None}) == {}
    given = {
        "device": torch.device("cpu"), "dtype": "bf16", "device_map": {"": 0}, "tokenizer": tokenizer(),
        "trust_remote_code": True, "backend": "nnsight",
    }  # fmt: skip
    options = load_options(given)
    assert options == {
        "device": "cpu", "dtype": "bfloat16", "device_map": {"": 0}, "tokenizer": type(tokenizer()).__name__,
        "trust_remote_code": True, "backend": "nnsight",
    }  # fmt: skip
    assert json.loads(json.dumps(options)) == options and load_options({"dtype": torch.float16}) == {"dtype": "float16"}


def test_a_run_keeps_how_its_models_were_loaded(folders: Path, tmp_path: Path) -> None:
    run = recorded(folders, tmp_path / "run", device="cpu", dtype="bf16", flags={"attn_implementation": "eager"})
    assert kept(run) == {"device": "cpu", "dtype": "bfloat16", "attn_implementation": "eager"}
    assert run.config["base"]["dtype"] == "bfloat16"
    with pytest.raises(UserError, match="'attn_implementation' is \"eager\" there and null here"):
        recorded(folders, tmp_path / "run", device="cpu", dtype="bf16")


def test_a_run_with_the_defaults_has_the_name_and_the_configuration_it_always_had(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path))
    run = recorded(folders, None)
    before = ("base", "tuned", "prompts", "sites", "layers", "positions", "statistics", "new_tokens")
    assert set(run.config) == set(before)
    assert run.name == f"record-{config_hash({key: run.config[key] for key in before})[:10]}"
    assert recorded(folders, None, dtype="float32").name != run.name


@pytest.mark.parametrize("options", [{}, {"device": "cpu", "dtype": "float32"}])
def test_a_run_of_before_is_gone_on_with(folders: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    run = recorded(folders, tmp_path / "run", **options)
    wanted = run.read_table("difference")
    as_before(run)
    shards = {path: path.stat().st_mtime_ns for path in run.file("activations").iterdir()}
    again = recorded(folders, tmp_path / "run", **options)
    assert again.is_complete and not kept(again)
    pd.testing.assert_frame_equal(open_run(run.path).read_table("difference"), wanted)
    assert {path: path.stat().st_mtime_ns for path in run.file("activations").iterdir()} == shards, "nothing made anew"
    with pytest.raises(UserError, match=r"base.dtype"):
        recorded(folders, tmp_path / "run", dtype="bfloat16")
