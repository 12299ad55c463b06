"""The page Steer with its models on the device: it answers, and proves that the model came back."""

from __future__ import annotations

from pathlib import Path

import pytest

from dashboards import jobs
from dashboards.state import RUN
from tests.cuda.place import DEVICE
from tests.dashboards.sample_runs import opened, shown


def test_steer(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESCOPE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv(RUN, raising=False)
    query = {"base": str(home / "olmoe-base"), "tuned": str(home / "olmoe-tuned"), "off": "L0E1, L1E3"}
    try:
        app = opened("steer", **query)
        app.text_area(key="prompts").set_value("the quick brown fox\na lazy dog")
        app.number_input(key="tokens").set_value(4)
        app.run().button(key="go-steer").click().run()
        assert not app.exception and not app.error, shown(app)
        assert app.success[0].value == "Model restored: 0 hooks, logits identical"
        if DEVICE.type == "cuda":
            assert app.session_state["_kept-steer"][1].device.startswith("cuda")
    finally:
        jobs.desk().clear()
