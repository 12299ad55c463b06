"""A small pair and runs about it, for the tests of the app."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from streamlit.testing.v1 import AppTest

import dashboards
import interventions as iv
import probes
from tests.tiny import tiny_model, tokenizer, tuned_copy
from workbench import runs
from workbench.models.pair import load_pair
from workbench.prompts import Prompts

HOSTILE = (
    "<script>alert(1)</script> [x](javascript:alert(2)) ![p](https://example.org/p.png) \x1b[31m $x$ \u202e\u200b "
    + "long" * 99
)
WORDS = ("the quick brown fox", "the lazy dog", "a quick dog", "the brown dog jumps", "a lazy fox", "the fox", "a dog")


def save_pair(home: Path) -> tuple[str, str]:
    """A tiny mixture of experts and a tuned copy, as folders."""
    base = tiny_model("olmoe")
    for name, model in (("base", base), ("tuned", tuned_copy(base, size=0.1))):
        model.save_pretrained(home / name)
        tokenizer().save_pretrained(home / name)
    return str(home / "base"), str(home / "tuned")


def told_run(home: Path, name: str, seed: int = 0, said: str = HOSTILE) -> Path:
    """A run whose every text a model could have written; no model is loaded."""
    figure = go.Figure(go.Heatmap(z=[[0.1, -0.2], [0.4, 0.0]], zmid=0, colorscale="RdBu", text=[[said] * 2] * 2))
    figure.update_layout(title={"text": "Scores"}, images=[{"source": "https://example.org/tracker.png"}])
    with runs.create(home, name, kind="demo", config={"seed": seed, "model": {"name": "tiny"}}) as run:
        run.write_table("tables/answers", pd.DataFrame({"answer": [said], "score": [0.5]}))
        run.write_text("figures/answers.json", figure.to_json())
        run.write_json("sections", [{"title": said, "text": said, "tables": ["answers"], "figures": ["answers"]}])
        iv.Recipe([iv.ExpertSwitch(off=["L1E0"])]).save(run.file("switch.safetensors"))
        run.write_tensors("result", {"values": torch.arange(3.0)})
    return run.path


def prompts() -> Prompts:
    rows = [{"prompt": text, "answer": " fox", "distractor": " dog", "label": i % 2} for i, text in enumerate(WORDS)]
    return Prompts.of(rows)


@cache
def results(base: str, tuned: str) -> dict[str, Any]:
    """Results of real probes on the pair."""
    pair = load_pair(base, tuned, device="cpu")
    return {
        "weights": probes.weight_delta(pair),
        "heads": probes.patching(pair, prompts(), "heads", what="write", draws=10, normalise=False),
        "experts": probes.expert_map(pair.tuned, prompts(), [i % 2 for i in range(len(WORDS))], 1),
    }


def lab_run(home: Path, base: str, tuned: str, name: str = "lab") -> Path:
    """A run with results, prompts and a recipe for its one pair, as the demo writes them."""
    with runs.create(home, name, kind="demo", config={"name": name}) as run:
        pair = {"base": base, "tuned": tuned, "prompts": "prompts/tiny.jsonl"}
        files = [f"results/tiny-{result}.safetensors" for result in results(base, tuned)]
        run.note(pairs={"tiny": {**pair, "results": files}})
        for folder in ("results", "prompts", "recipes"):
            run.file(folder).mkdir()
        for one, result in results(base, tuned).items():
            result.save(run.file(f"results/tiny-{one}.safetensors"))
        prompts().save(run.file("prompts/tiny.jsonl"))
        switch = iv.Recipe([iv.ExpertSwitch(off=["L0E1", "L1E3"])])
        switch.save(run.file("recipes/off.safetensors"), model=load_pair(base, tuned, device="cpu").tuned)
        offset = iv.Recipe([iv.Offset(layer=1, vector=torch.arange(3.0).repeat(22)[:64])])
        offset.save(run.file("recipes/offset.safetensors"), model=load_pair(base, tuned, device="cpu").tuned)
    return run.path


APP = str(Path(dashboards.__file__).with_name("app.py"))


def opened(page: str = "overview", **query: str) -> AppTest:
    """The app on a page, as a link with these query parameters opens it."""
    app = AppTest.from_file(APP, default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    if page != "overview":
        app.switch_page(f"app_pages/{page}.py").run()
    assert not app.exception, app.exception
    return app


def shown(app: AppTest) -> str:
    """The errors on the page."""
    return " ".join(element.value for element in app.error)


def warned(app: AppTest) -> str:
    """The warnings on the page."""
    return " ".join(element.value for element in app.warning)
