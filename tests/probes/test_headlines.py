"""Several results in one table, two results cell by cell, and what a file says without being loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from probes.directions.result import FoundDirection
from probes.headlines import beside, headlines
from tests.dashboards.sample_runs import results, save_pair
from workbench.errors import UserError
from workbench.figures.cells import inside_band
from workbench.result_glance import glance
from workbench.tables import beyond_control


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return dict(results(*save_pair(tmp_path_factory.mktemp("pair"))))


def test_the_strongest_cell_of_each(found: dict[str, object]) -> None:
    table = headlines(found).set_index("finding")
    best = found["heads"].frame().iloc[0]  # type: ignore[attr-defined]
    assert table.loc["heads", "strongest"] == f"L{int(best['layer'])}H{int(best['head'])}"
    assert table.loc["heads", "score"] == best["score"] and table.loc["heads", "low"] == best["low"]
    assert set(table["beyond control"]) <= {"yes", "no"}


def test_a_direction_is_spoken_for_by_the_prompts_it_was_not_chosen_on(found: dict[str, object]) -> None:
    """The candidates' own scores chose it: eight prompts cannot reach q < .05, and are no evidence."""
    held_out = pd.DataFrame(
        [
            {"model": "tuned", "behaviour": 1.0, "low": 0.6, "high": 1.0, "n": 8},
            {"model": "tuned + recipe", "behaviour": 0.25, "low": 0.0, "high": 0.62, "n": 8},
            {"model": "tuned + random", "behaviour": 1.0, "low": 0.6, "high": 1.0, "n": 8},
        ]
    )
    direction = FoundDirection(
        control="10 random recipes", behaviour="contains:be", held_out=held_out, estimates=pd.DataFrame(), layers=[28],
        table=pd.DataFrame([{"layer": 28, "score": 0.5, "low": 0.0, "high": 1.0, "control": 0.0, "q": 0.25}]),
        directions=torch.zeros(1, 4), means=torch.zeros(1, 4), positions="last", strength=1.0, push_layer=28,
        push_vector=torch.zeros(4), push_strength=1.0, push_positions="last",
        provenance=found["heads"].provenance,  # type: ignore[attr-defined]
    )  # fmt: skip
    line = headlines({"direction": direction}).iloc[0]
    assert (line["score"], line["control"], line["n prompts"], line["beyond control"]) == (0.75, 0.0, 8, "yes")
    assert line["low"] == pytest.approx(0.38)


def test_what_is_beyond_its_control() -> None:
    cells = pd.DataFrame(
        [
            ("tested, beyond", 0.5, 0.3, 0.7, 0.1, 0.01, True),
            ("tested, not beyond", 0.5, 0.3, 0.7, 0.1, 0.2, False),
            ("small q, nearer to 0 than the control", 0.2, 0.1, 0.3, 0.8, 0.01, False),
            ("on the other side of 0", 0.2, 0.1, 0.3, -0.8, 0.01, True),
            ("below 0, beyond", -0.5, -0.7, -0.3, -0.1, 0.01, True),
            ("below 0, not beyond", -0.5, -0.7, -0.3, -0.6, 0.01, False),
            ("exact, stands out, and is less than an even spread", 0.053, 0.053, 0.053, 0.054, 0.001, False),
            ("exact, stands out, and is more", 0.053, 0.053, 0.053, 0.02, 0.001, True),
            ("no test, farther than random", 9.0, 5.0, 12.0, 2.0, np.nan, True),
            ("no test, moved less than at random", 9.0, 5.0, 12.0, 19.0, np.nan, False),
            ("no test, control inside", 9.0, 5.0, 12.0, 6.0, np.nan, False),
        ],
        columns=["what", "score", "low", "high", "control", "q", "beyond"],
    )
    assert beyond_control(cells).tolist() == cells["beyond"].tolist()
    assert not beyond_control(cells[["score", "control"]]).any()
    grey = inside_band(cells)
    assert grey.tolist() == (~cells["beyond"] | cells["q"].isna()).tolist()


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
