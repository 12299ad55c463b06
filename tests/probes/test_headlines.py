"""Several results in one table, two results cell by cell, and what a file says without being loaded."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from probes.headlines import beside, headlines
from tests.dashboards.sample_runs import results, save_pair
from workbench.errors import UserError
from workbench.result_glance import glance


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return dict(results(*save_pair(tmp_path_factory.mktemp("pair"))))


def test_the_strongest_cell_of_each(found: dict[str, object]) -> None:
    table = headlines(found).set_index("finding")
    best = found["heads"].frame().iloc[0]  # type: ignore[attr-defined]
    assert table.loc["heads", "strongest"] == f"L{int(best['layer'])}H{int(best['head'])}"
    assert table.loc["heads", "score"] == best["score"] and table.loc["heads", "low"] == best["low"]
    assert set(table["beyond control"]) <= {"yes", "no"}


def test_two_results_cell_by_cell(found: dict[str, object]) -> None:
    same = beside(found["heads"], found["heads"])
    assert len(same) == 12 and (same["difference"] == 0).all()
    with pytest.raises(UserError, match="nothing to pair"):
        beside(found["weights"], type("Empty", (), {"frame": lambda _self: pd.DataFrame({"score": [1.0]})})())


def test_a_glance_tells_kind_models_and_sizes(found: dict[str, object], tmp_path: Path) -> None:
    path = found["heads"].save(tmp_path / "heads")  # type: ignore[attr-defined]
    seen = glance(path)
    assert seen is not None
    assert (seen.kind, seen.sizes, seen.n_prompts) == ("Patching", {"layer": 3, "head": 4}, 7)
    assert set(seen.models) == {"base", "tuned"}
    (tmp_path / "broken.safetensors").write_bytes(b"\x80")
    with pytest.raises(UserError, match="not a readable result"):
        glance(tmp_path / "broken.safetensors")
