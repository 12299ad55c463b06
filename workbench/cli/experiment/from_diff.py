"""What ``tunescope diff`` was asked, as an experiment: the comparison, and every recipe over its strengths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.runs import Run

_LEFT_OUT = {"outside": "the scope panel", "split": "the division of the prompts"}


def diff_parts(run: Run) -> dict[str, Any]:
    """``about``, ``recipes`` and ``steps`` of the experiment, and the ``neutral`` texts among its ``prompts``.

    The run's own prompts are called ``prompts``; how the models are loaded is ``pair``.
    """
    config = run.config
    recipes = {_plain(Path(file).stem): {"file": str(Path(file).resolve())} for file in config["recipes"]}
    side = "recipes" if config["on"] == "tuned" else "base_recipes"
    table = run.read_table("tables/behaviour")
    metrics = list(dict.fromkeys(str(name) for name in table["metric"]))
    shared = {"prompts": "prompts", "controls": config["draws"], "seed": config["seed"]}
    neutral = {} if config.get("neutral") is None else {"neutral": {"file": str(Path(config["neutral"]).resolve())}}
    reads = {"neutral": "neutral"} if neutral else {}
    options = {"max_new_tokens": config["max_new_tokens"], "samples": config["samples"]}
    steps: dict[str, Any] = {
        "behaviour": {"do": "diff", **shared, side: [*recipes], "metrics": metrics, **reads, "options": options}
    }
    if config.get("strengths") is not None:
        steps |= {f"dose-{name}": {**_dose(config, metrics), **shared, **reads, "recipe": name} for name in recipes}
    left = [what for key, what in _LEFT_OUT.items() if config.get(key) is not None]
    about = {"about": f"Without {' and '.join(left)}: tunescope diff makes that."} if left else {}
    loaded = {key: config[key] for key in ("device", "dtype")}
    return {**about, "recipes": recipes, "steps": steps, "prompts": neutral, "pair": loaded}


def _dose(config: Mapping[str, Any], metrics: list[str]) -> dict[str, Any]:
    from workbench.behaviour.dosing import DOSED

    followed = config.get("follow") or next((one for one in metrics if one in DOSED), "kl")
    options = {"max_new_tokens": config["max_new_tokens"]}
    side = [] if config.get("neutral") is None or followed == "perplexity" else ["perplexity"]
    return {
        "do": "dose", "strengths": config["strengths"], "metrics": [followed, *side], "on": config["on"],
        "options": options,
    }  # fmt: skip


def _plain(name: str) -> str:
    """A file's name as the name of a recipe."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:50].lstrip("-_") or "recipe"
