"""Results: shared columns, file round trip, what a bad file says, escaping."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import probes
from probes.results import ProbeResult, Provenance
from workbench import result_file as storage
from workbench.errors import UserError


def result(**changes: object) -> ProbeResult:
    table = pd.DataFrame(
        {
            "extra": ["<b>a</b>", None, "c"],
            "score": [0.1, 0.9, 0.5],
            "q": [0.5, 0.01, float("nan")],
            "head": np.array([0, 1, 2]),
            "layer": pd.array([0, None, 2], dtype="Int64"),
        }
    )
    made = Provenance.of("test", {"base": "abc"}, ["one", "two"], seed=3, settings={"k": (1, 2), "x": float("inf")})
    return ProbeResult(**{"table": table, "control": "<script>", "provenance": made, **changes})


def test_frame_has_the_shared_columns_first_and_is_sorted() -> None:
    frame = result().frame()
    assert list(frame.columns) == ["layer", "head", "score", "low", "high", "control", "q", "extra"]
    assert frame["score"].tolist() == [0.9, 0.5, 0.1]


def test_a_file_brings_everything_back(tmp_path: Path) -> None:
    before = result()
    path = before.save(tmp_path / "deep" / "r")
    assert path.name == "r.safetensors"
    after = ProbeResult.load(tmp_path / "deep" / "r")
    pd.testing.assert_frame_equal(after.table, before.table, check_dtype=False)
    assert after.table["layer"].dtype == "Int64" and after.table["head"].dtype == before.table["head"].dtype
    assert after.provenance == before.provenance
    assert [p.name for p in path.parent.iterdir()] == ["r.safetensors"]


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    assert result().save(tmp_path / "a").read_bytes() == result().save(tmp_path / "b").read_bytes()


def test_values_of_every_kind_survive(tmp_path: Path) -> None:
    value = {
        "tensor": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "mask": {"a.weight": torch.tensor([True, False])},
        "array": np.eye(2),
        "tuple": (1, "two", None, (3.5,)),
        "numbers": [np.float64(1.5), float("-inf"), np.int32(4)],
        "keys": {1: "one"},
    }
    storage.write(tmp_path / "v", "probes.results:ProbeResult", value)
    _, back = storage.read(tmp_path / "v")
    assert torch.equal(back["tensor"], value["tensor"]) and back["tensor"].dtype == torch.bfloat16
    assert torch.equal(back["mask"]["a.weight"], value["mask"]["a.weight"])
    assert np.array_equal(back["array"], np.eye(2))
    assert back["tuple"] == value["tuple"] and back["keys"] == {1: "one"}
    assert back["numbers"] == [1.5, float("-inf"), 4]


def test_a_failed_save_leaves_the_old_file_and_no_partial(tmp_path: Path) -> None:
    path = result().save(tmp_path / "r")
    before = path.read_bytes()
    with pytest.raises(TypeError, match="control"):
        storage.write(path, "x", {"control": object()})
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_bad_files_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no result at"):
        ProbeResult.load(tmp_path / "absent")
    (tmp_path / "junk.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="not a readable"):
        ProbeResult.load(tmp_path / "junk.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(UserError, match="but no result"):
        ProbeResult.load(tmp_path / "plain.safetensors")


@pytest.mark.parametrize(
    "kind",
    [
        "os:system",
        "workbench.result_file:write",
        "workbench.behaviour.diff:behaviour_diff",
        "probes.absent:Thing",
        "subprocess:Popen",
    ],
)
def test_a_file_cannot_name_other_code(tmp_path: Path, kind: str) -> None:
    storage.write(tmp_path / "r", kind, {})
    with pytest.raises(UserError, match="unknown kind"):
        ProbeResult.load(tmp_path / "r")


def test_html_is_escaped_and_json_is_plain() -> None:
    shown = result()._repr_html_()
    assert "<script>" not in shown and "<b>a" not in shown and "&lt;b&gt;a" in shown
    rows = json.loads(result().to_json())["rows"]
    assert rows[0]["score"] == 0.9 and rows[1]["q"] is None


def test_the_same_prompts_have_the_same_hash() -> None:
    def of(prompts: list[str]) -> str | None:
        return Provenance.of("x", {}, prompts).prompts

    assert of(["a", "b"]) == of(["a", "b"]) != of(["b", "a"])


def test_no_module_hides_a_public_function() -> None:
    folder = Path(probes.__file__).parent
    modules = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not modules & set(probes.__all__)
    assert all(getattr(probes, name) is not None for name in probes.__all__)
