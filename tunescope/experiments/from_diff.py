"""What ``tunescope diff`` was asked, as an experiment with a step per result, called as the result is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunescope.experiments.from_loading import loading_of
from tunescope.experiments.input_files import further_prompts, given_file, hash_in, settings_of
from tunescope.experiments.naming import plain_names
from workbench.runs import Run

BATCH = 32
"""Prompts per batch where nothing is said."""
_SCOPE = "results/scope.safetensors"
_SETS = {"near": "near scope", "outside": "out of scope"}
"""Option -> what the scope panel calls its prompts."""


def diff_parts(run: Run) -> dict[str, Any]:
    """``recipes`` and ``steps`` of the experiment, and the ``neutral``, ``near`` and ``outside`` sets of its
    ``prompts``.

    The run's own prompts are called ``prompts``; how the models are loaded is ``pair``. Raises :class:`NotSupported`
    for models that were loaded as no experiment loads them, and :class:`UserError` for files that are gone or changed.
    """
    config = run.config
    loaded = loading_of(run)
    names = plain_names((Path(file).stem for file in config["recipes"]), taken=("base", "tuned"), otherwise="recipe")
    recipes = {names[Path(file).stem]: {"file": given_file(run, file, "recipe")} for file in config["recipes"]}
    prompts = _further_sets(run)
    shared = {"prompts": "prompts", "seed": config["seed"]}
    steps = {"behaviour": {**shared, **_behaviour(run, [*recipes], prompts)}}
    if config.get("strengths") is not None:
        step = {**shared, **_dose(run, prompts)}
        steps |= {f"dose-{number}": {**step, "recipe": name} for number, name in enumerate(recipes, 1)}
    if "outside" in prompts:
        steps["scope"] = {**shared, **_scope(config, [*recipes], prompts)}
    if config.get("split") is not None:
        steps[config["split"]] = {**shared, **_split(run, [*recipes])}
    return {"recipes": recipes, "steps": steps, "prompts": prompts, "pair": loaded}


def _further_sets(run: Run) -> dict[str, Any]:
    """The run keeps their hashes: that of neutral texts among its own settings, the others in the scope panel."""
    paths = {key: run.config[key] for key in ("neutral", *_SETS) if run.config.get(key) is not None}
    hashes = settings_of(run, _SCOPE) if {*paths} & {*_SETS} else {}
    own = run.manifest.provenance.get("settings", {})
    return {
        key: further_prompts(run, file, hash_in(own, [key]) or hash_in(hashes, ["prompts", _SETS.get(key, "")]))
        for key, file in paths.items()
    }


def _behaviour(run: Run, recipes: list[str], prompts: Mapping[str, Any]) -> dict[str, Any]:
    config = run.config
    side = "recipes" if config["on"] == "tuned" else "base_recipes"
    return {
        "do": "diff", side: recipes, "metrics": _metrics(run, "behaviour"), "controls": config["draws"],
        **_named("neutral", prompts), "options": {**_texts(config), "samples": config["samples"], "texts": True},
    }  # fmt: skip


def _dose(run: Run, prompts: Mapping[str, Any]) -> dict[str, Any]:
    """The side effect is on neutral texts; without them on prompts out of scope."""
    from workbench.behaviour.dosing import DOSED

    config = run.config
    followed = config.get("follow") or next((metric for metric in _metrics(run, "behaviour") if metric in DOSED), "kl")
    side = ["perplexity"] if "neutral" in prompts and followed != "perplexity" else []
    return {
        "do": "dose", "strengths": config["strengths"], "metrics": [followed, *side], "on": config["on"],
        "controls": config["draws"], **_named("neutral" if "neutral" in prompts else "outside", prompts),
        "options": _texts(config),
    }  # fmt: skip


def _scope(config: Mapping[str, Any], recipes: list[str], prompts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "do": "scope", "recipes": recipes, "on": config["on"], "changed": config["changed"],
        "controls": config["draws"], "max_new_tokens": config["max_new_tokens"],
        **_named("near", prompts), **_named("outside", prompts),
    }  # fmt: skip


def _split(run: Run, recipes: list[str]) -> dict[str, Any]:
    """Recipes on the base are left out there, as the command leaves them out."""
    config = run.config
    return {
        "do": "parts", "by": config["split"], "recipes": recipes if config["on"] == "tuned" else [],
        "metrics": _metrics(run, f"{config['split']}-long"), "options": _texts(config),
    }  # fmt: skip


def _metrics(run: Run, table: str) -> list[str]:
    return list(dict.fromkeys(str(name) for name in run.read_table(f"tables/{table}")["metric"]))


def _named(key: str, prompts: Mapping[str, Any]) -> dict[str, str]:
    return {key: key} if key in prompts else {}


def _texts(config: Mapping[str, Any]) -> dict[str, Any]:
    batch = {} if config.get("batch_size", BATCH) == BATCH else {"batch_size": config["batch_size"]}
    return {"max_new_tokens": config["max_new_tokens"], **batch}
