"""Our streamed safetensors files are what the library reads, and the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from workbench.tensor_files import StoredTensors, write_safetensors

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(0, 3)),
        min_size=1,
        max_size=6,
    )
)
def test_the_library_reads_what_we_wrote(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[torch.dtype, list[int], int]]
) -> None:
    path = tmp_path_factory.mktemp("t") / "x.safetensors"
    pieces = {
        f"n{i}/{dtype}": [torch.randint(0, 2, (rows, *[3] * tail)).to(dtype) for rows in lengths]
        for i, (dtype, lengths, tail) in enumerate(shapes)
    }
    write_safetensors(path, pieces, {"rows": 3, "a": [1]})
    found = load_file(path)
    assert set(found) == set(pieces)
    for name, parts in pieces.items():
        whole = (
            torch.cat([part.view(torch.uint8) for part in parts]) if parts[0].element_size() == 1 else torch.cat(parts)
        )
        assert found[name].dtype == parts[0].dtype
        shown = found[name].view(torch.uint8) if parts[0].element_size() == 1 else found[name]
        assert torch.equal(shown, whole)
    with safe_open(str(path), "pt") as file:
        assert file.metadata() == {"tunescope": '{"a": [1], "rows": 3}'}
    before = path.read_bytes()
    write_safetensors(path, dict(reversed(pieces.items())), {"a": [1], "rows": 3})
    assert path.read_bytes() == before


def test_views_scalars_and_gradients(tmp_path: Path) -> None:
    base = torch.randn(4, 6, requires_grad=True)
    write_safetensors(tmp_path / "x", {"t": [base.T[1:3], base.T[5:]], "s": [torch.tensor(7)]})
    found = load_file(tmp_path / "x")
    assert torch.equal(found["t"], torch.cat([base.T[1:3], base.T[5:]])) and found["s"].item() == 7
    with pytest.raises(TypeError, match=r"'c' is torch\.complex64"):
        write_safetensors(tmp_path / "c", {"c": [torch.zeros(2, dtype=torch.complex64)]})
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_one_number_seen_through_expand(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", {"a": [torch.tensor(3.0).expand(1)], "b": [torch.tensor([[2.0]]).T]})
    assert load_file(tmp_path / "x") == {"a": torch.tensor([3.0]), "b": torch.tensor([[2.0]])}


def test_a_stored_tensor_is_overwritten_in_its_place(tmp_path: Path) -> None:
    """Also in a file that the library wrote, whose neighbours stay."""
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(4).to(torch.bfloat16), "c": torch.ones(3)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    stored = StoredTensors.of(tmp_path)
    assert stored.has_room_for("b", tensors["b"]) and not stored.has_room_for("b", tensors["b"].float())
    assert not stored.has_room_for("a", tensors["a"].T) and not stored.has_room_for("d", tensors["a"])
    stored.overwrite("b", -tensors["b"])
    read = load_file(tmp_path / "model.safetensors")
    assert torch.equal(read["b"], -tensors["b"]) and all(torch.equal(read[name], tensors[name]) for name in "ac")
