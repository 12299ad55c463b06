"""Files of strangers: each is read or refused in one sentence; nothing else ever comes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interventions as iv
from tunescope.cli import run as command
from tunescope.experiments import Experiment
from workbench import runs
from workbench.errors import UserError
from workbench.prompts import Prompts

Inputs = Callable[[int, int], settings]
"""How many inputs are tried, without and with ``--runslow``."""
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.just("\ud800"), st.just(10**400),
    st.just("=1+1"), st.just("../../x"), st.just("x" * 300), st.just(True),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
)


def answered(call: Callable[[], Any]) -> None:
    """``call`` comes to an end, or refuses with one line."""
    try:
        call()
    except UserError as error:
        assert str(error).strip() and "Traceback" not in str(error)


def changed(data: bytes, draw: Any) -> bytes:
    """``data`` cut, flipped, doubled or filled in at a place that hypothesis chooses."""
    place = draw(st.integers(0, max(0, len(data) - 1)))
    how = draw(st.sampled_from(["cut", "flip", "insert", "twice", "empty"]))
    junk = draw(st.binary(min_size=1, max_size=8))
    return {
        "cut": data[:place], "flip": data[:place] + junk + data[place + len(junk) :],
        "insert": data[:place] + junk + data[place:], "twice": data + data, "empty": b"",
    }[how]  # fmt: skip


def dumped(value: Any) -> bytes:
    return json.dumps(value, allow_nan=True).encode("utf-8", errors="surrogatepass")


def test_prompt_files_of_any_values(tmp_path: Path, inputs: Inputs) -> None:
    rows = st.lists(st.dictionaries(
        st.sampled_from(["prompt", "messages", "input_ids", "attention_mask", "label", "answer", "group", "x"]), VALUES
    ), max_size=3)  # fmt: skip

    @inputs(60, 600)
    @given(rows, st.sampled_from([".json", ".jsonl"]))
    def check(items: list[Any], ending: str) -> None:
        path = tmp_path / f"p{ending}"
        path.write_bytes(dumped(items) if ending == ".json" else b"\n".join(map(dumped, items)))
        answered(lambda: Prompts.load(path).hash)

    check()


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".txt", ".jsonl", ".parquet"])
def test_damaged_prompt_files(tmp_path: Path, inputs: Inputs, ending: str) -> None:
    path = tmp_path / f"p{ending}"
    table = pd.DataFrame({"prompt": ["Hello, world", "b"], "label": [1.5, 2], "answer": ["x", None]})
    if ending == ".parquet":
        table.to_parquet(path)
    else:
        path.write_text(
            table.to_csv(index=False) if ending != ".jsonl" else table.to_json(orient="records", lines=True)
        )
    whole = path.read_bytes()

    @inputs(60, 600)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        path.write_bytes(changed(whole, data.draw))
        answered(lambda: Prompts.load(path).hash)

    check()


def test_experiments_of_any_values(inputs: Inputs) -> None:
    keys = st.sampled_from(["name", "seed", "pair", "prompts", "recipes", "steps", "sweep", "tracker", "about"])
    good = {"name": "a", "pair": {"base": "b", "tuned": "t"}, "prompts": {"rows": ["x"]},
            "steps": {"one": {"do": "localize weights"}}}  # fmt: skip

    @inputs(60, 600)
    @given(keys, VALUES)
    def check(key: str, value: Any) -> None:
        answered(lambda: Experiment.parse(json.dumps({**good, key: value})))

    check()


def test_recipes_with_any_setting_and_damaged_ones(tmp_path: Path, inputs: Inputs) -> None:
    from workbench.tensor_files import write_safetensors

    path = iv.Recipe([iv.Offset(1, torch.randn(8))]).save(tmp_path / "whole.safetensors")
    whole, bad = path.read_bytes(), tmp_path / "bad.safetensors"
    names = st.sampled_from(["positions", "site", "units", "match_norm", "strength", "layer", "vector", "site_norm"])
    vector = {"0.vector": [torch.randn(8)]}

    @inputs(60, 600)
    @given(st.data(), names, VALUES)
    def check(data: st.DataObject, name: str, value: Any) -> None:
        bad.write_bytes(changed(whole, data.draw))
        answered(lambda: iv.Recipe.load(bad))
        given_ = {"layer": 1, "vector": {"tensor": "vector"}, name: value}
        note = {"version": 1, "interventions": [{"kind": "Offset", "settings": given_}], "made_with": {}}
        try:
            write_safetensors(bad, vector, note)
        except (ValueError, UnicodeEncodeError):
            return  # not even a header
        answered(lambda: iv.Recipe.load(bad))

    check()


def test_run_folders(tmp_path: Path, inputs: Inputs) -> None:
    run = runs.create(tmp_path, "whole", kind="record", config={"a": 1})
    with run:
        run.write_json("x", {"n": 1})
        run.write_table("t", pd.DataFrame({"a": [1]}))
    manifest = json.loads((tmp_path / "whole" / "run.json").read_text())

    @inputs(60, 600)
    @given(st.data(), st.sampled_from(sorted(manifest)), VALUES)
    def check(data: st.DataObject, key: str, value: Any) -> None:
        home = tmp_path / "home"
        shutil.rmtree(home, ignore_errors=True)
        copy = shutil.copytree(tmp_path / "whole", home / "copy")
        file = copy / data.draw(st.sampled_from(["run.json", "x.json", "t.parquet"]))
        file.write_bytes(changed(file.read_bytes(), data.draw))
        if data.draw(st.booleans()):
            (copy / "run.json").write_bytes(dumped({**manifest, key: value}))
        assert len(runs.list(home)) == 1
        answered(lambda: runs.verify(copy))
        answered(lambda: runs.open(copy).read_table("t"))
        answered(lambda: runs.open(copy).read_json("x"))
        assert not list(home.rglob(".partial-*"))

    check()


def test_command_lines(tmp_path: Path, inputs: Inputs, capsys: pytest.CaptureFixture[str]) -> None:
    words = st.sampled_from([
        "runs", "list", "show", "verify", "recipe", "report", "run", "record", "--home", "--out", "--json", "--prompts",
        "--new-tokens", "-1", "--positions", "9" * 400, "x" * 300, "../..", "/nope", "", "\u202e", "--help",
    ])  # fmt: skip

    @inputs(60, 600)
    @given(st.lists(words, max_size=5))
    def check(line: list[str]) -> None:
        assert command(line) in (0, 1, 2)
        said = capsys.readouterr()
        assert "Traceback" not in said.err

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        check()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
