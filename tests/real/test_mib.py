"""MIB's circuit track in its smallest form, beside the committed figures of ``benchmarks/outside.md``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunescope.bench.mib.measuring import measure
from tunescope.bench.published import section_table
from workbench.models.pair import load_one


@pytest.mark.slow
def test_attributed_edges_carry_the_task_and_random_ones_do_not_as_committed(smollm2: Path) -> None:
    text = (Path(__file__).parents[2] / "benchmarks" / "outside.md").read_text()
    committed = section_table(text, "mib").set_index(["task", "method"]).loc["ioi"]
    lines = measure(load_one(smollm2, dtype="float32"), ["ioi"], 4, 1, lambda _text: None).set_index("method")
    assert lines.loc["random", "cpr"] == pytest.approx(committed.loc["random", "cpr"], abs=0.05)
    for method in ("EAP", "EAP-IG"):
        assert lines.loc[method, "cpr"] > 3 * lines.loc["random", "cpr"]
        assert lines.loc[method, "cmd"] < lines.loc["random", "cmd"] / 3
        assert lines.loc[method, "cpr"] == pytest.approx(committed.loc[method, "cpr"], rel=0.4)
