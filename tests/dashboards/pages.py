"""A run that fills the pages Tokens, Heads, Skills, Experts, Knobs and concepts, and what a page shows."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from streamlit.testing.v1 import AppTest

import dashboards
import probes
from probes.grafting.result import GraftResult
from tests.dashboards.sample_runs import HOSTILE, prompts, results
from workbench import runs
from workbench.models.pair import load_pair
from workbench.recording.record_pair import record

APP = str(Path(dashboards.__file__).with_name("app.py"))
LABELS = [number % 2 for number in range(7)]


@cache
def looks(base: str, tuned: str) -> dict[str, Any]:
    """Results of real probes, their texts replaced by one that must not be obeyed."""
    pair = load_pair(base, tuned, device="cpu")
    shift = probes.token_shift(pair, prompts(), max_new_tokens=3)
    lens = probes.logit_lens(pair, prompts(), shown=7)
    residual = record(pair, prompts(), "resid_post", layers=[1], positions="all")
    concepts = probes.concept_directions(residual, "pca-uncentred", layer=1, k=3, model=pair.tuned)
    curve = probes.switching_curve(
        pair, prompts(), lambda text, _row: len(text) % 2, ["L0E1", "L1E3"], (1, 2), max_new_tokens=2
    )
    knob = a_knob(pair.tuned.d_model)
    return {
        "tokens": dataclasses.replace(shift, tokens=shift.tokens.assign(token=HOSTILE)),
        "lens": dataclasses.replace(lens, cells=lens.cells.assign(token=HOSTILE, says=HOSTILE, top=HOSTILE)),
        "concepts": dataclasses.replace(
            concepts, table=concepts.table.assign(up=HOSTILE), contexts=concepts.contexts.assign(context=HOSTILE)
        ),
        "switching": curve, "graft-one": a_graft("optimised", 0), "graft-two": a_graft("movement", 40), "knob": knob,
    }  # fmt: skip


def a_graft(method: str, start: int) -> GraftResult:
    """A region of 100 of 10000 weights, from ``start`` on."""
    curve = pd.DataFrame({
        "sparsity": [0.001, 0.01], "entries": [10, 100], "accuracy": [0.5, 0.9], "low": [0.4, 0.8], "high": [0.6, 1.0],
        "n": 40, "movement": [0.5, 0.6], "random": 0.5, "random_low": 0.4, "random_high": 0.6,
    })  # fmt: skip
    models = pd.DataFrame({
        "model": ["base", "tuned", "graft", "complement", HOSTILE], "entries": [0, 10000, 100, 9900, 100],
        "accuracy": [0.4, 1.0, 0.9, 0.5, 0.4], "low": 0.3, "high": 1.0, "n": 40,
    })  # fmt: skip
    table = pd.DataFrame({
        "layer": pd.array([0, 1], dtype="Int64"), "module": ["mlp", HOSTILE], "name": ["a", "b"], "score": [0.02, 0.0],
        "low": [0.01, 0.0], "high": [0.03, 0.01], "entries": [100, 0], "control": 0.01, "q": [0.001, 1.0],
    })  # fmt: skip
    return GraftResult(
        table=table, control="random masks", provenance=probes.Provenance.of("graft", {"base": "b", "tuned": "t"}),
        mask={"layers.0.mlp": torch.arange(start, start + 100)}, curve=curve, models=models, method=method,
        level="entries", entries=100, eligible=10000, dropped=0, history=[],
    )  # fmt: skip


def a_knob(d_model: int) -> probes.Knob:
    """A knob whose intents are named by a text that must not be obeyed."""
    intents = ("context", HOSTILE[:60])
    sweep = pd.DataFrame([
        {"model": model, "direction": kind, "value": value, "intent": intent, "share": 0.5, "low": 0.4, "high": 0.6}
        for model in ("tuned", "base") for kind in ("knob", "random") for value in (-1.0, 1.0) for intent in intents
    ])  # fmt: skip
    natural = pd.DataFrame([
        {"model": model, "group": "g", "intent": intent, "value": value}
        for model in ("tuned", "base") for intent, value in zip(intents * 2, (1.0, -1.0, 1.2, -0.8), strict=True)
    ])  # fmt: skip
    flips = pd.DataFrame({"model": ["tuned", "base"], "intent": intents[0], "value": 1.0, "share": 0.9, "low": 0.8,
                          "high": 1.0, "before": 0.1, "control": 0.2})  # fmt: skip
    swaps = pd.DataFrame({"model": ["tuned", "base"], "score": 0.8, "low": 0.7, "high": 0.9, "control": 0.5})
    table = pd.DataFrame({"layer": [1], "score": [0.8], "low": [0.7], "high": [0.9], "control": [0.5], "q": [0.01]})
    return probes.Knob(
        table=table, control="random subspaces", provenance=probes.Provenance.of("find_knob", {"tuned": "t"}), layer=1,
        direction=torch.nn.functional.normalize(torch.ones(d_model, 1), dim=0), line=torch.ones(1),
        offset=torch.zeros(1), intents=intents, settings=dict(zip(intents, (1.0, -1.0), strict=True)), natural=natural,
        sweep=sweep, flips=flips, swaps=swaps, search=pd.DataFrame({"layers": [1]}),
        counts={"given": 9, "train": 5, "held_out": 4}, skill={"tuned": 1.0, "base": 0.5},
    )  # fmt: skip


def full_run(home: Path, base: str, tuned: str, *, only: tuple[str, ...] | None = None, keep: bool = True) -> Path:
    """A run with every kind of result (or ``only`` some), and prompts unless ``keep`` is false."""
    every = {**results(base, tuned), **looks(base, tuned)}
    kept = every if only is None else {name: every[name] for name in only}
    with runs.create(home, "full", kind="demo", config={"only": list(only or [])}) as run:
        pair = {"base": base, "tuned": tuned, "results": [f"results/tiny-{one}.safetensors" for one in kept]}
        run.note(pairs={"tiny": {**pair, **({"prompts": "prompts/tiny.jsonl"} if keep else {})}})
        for folder in ("results", "prompts"):
            run.file(folder).mkdir(exist_ok=True)
        for one, result in kept.items():
            result.save(run.file(f"results/tiny-{one}.safetensors"))
        if keep:
            prompts().save(run.file("prompts/tiny.jsonl"))
    return run.path


def opened(page: str, **query: str) -> AppTest:
    """The app on a page, as a link with these query parameters opens it."""
    app = AppTest.from_file(APP, default_timeout=90)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    app.switch_page(f"app_pages/{page}.py").run()
    assert not app.exception, app.exception
    return app


def figures(app: AppTest) -> list[dict[str, Any]]:
    """Every figure on the page, as plotly's JSON."""
    return [json.loads(element.proto.spec) for element in app.get("plotly_chart")]


def titles(app: AppTest) -> str:
    return " | ".join(str(figure["layout"].get("title", {}).get("text", "")) for figure in figures(app))


def errors(app: AppTest) -> str:
    return " ".join(element.value for element in app.error)


_DRAWN = {"text", "hovertemplate", "hovertext", "name", "ticktext", "label"}


def drawn_texts(part: Any, key: str = "") -> list[str]:
    """Every text of a figure that is drawn, wherever it stands; values of axes are data."""
    if isinstance(part, str):
        return [part] if key in _DRAWN else []
    if isinstance(part, dict):
        return [text for name, value in part.items() for text in drawn_texts(value, name)]
    return [text for value in part for text in drawn_texts(value, key)] if isinstance(part, list) else []


def obeyed(app: AppTest) -> list[str]:
    """Where on the page a text stands that a browser or a terminal would obey."""
    pieces = {
        "html": [one.proto.body for one in app.get("html")],
        "figure": [text for figure in figures(app) for text in drawn_texts(figure)],
        "markdown": [one.value for one in (*app.markdown, *app.caption, *app.info, *app.warning)],
        "code": [element.value for element in app.code],
        "table": [element.value.to_csv() for element in app.dataframe],
    }
    found = [f"{where}: <script>" for where in ("html", "figure") for text in pieces[where] if "<script>" in text]
    found += [f"{where}: escape code" for where, texts in pieces.items() for text in texts if "\x1b" in text]
    found += ["markdown: link" for text in pieces["markdown"] if "](javascript" in text or "![p](" in text]
    return found
