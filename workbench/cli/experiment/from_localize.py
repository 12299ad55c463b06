"""What ``tunescope localize`` was asked, as the step of an experiment that asks the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workbench.cli.head_groups import heads_by_place, parts, place
from workbench.errors import NotSupported, UserError


def localize_step(verb: str, config: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The file of prompts (None where the verb reads none) and the step; ``config`` is the run's.

    Raises :class:`NotSupported` for a verb that no step repeats, or an option that the file cannot hold.
    """
    make = _STEPS.get(verb)
    if make is None:
        raise NotSupported(f"No step of an experiment file repeats {verb!r}; run the command again.")
    step = {"do": verb, **make(config)}
    if config.get("seed"):
        step["seed"] = config["seed"]
    return (None if verb in _WITHOUT_PROMPTS else str(config.get("prompts", ""))), step


def _given(config: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: config[key] for key in keys if config.get(key) is not None}


def _activations(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"sites": parts(config["sites"]), "positions": config["positions"]}


def _heads(config: Mapping[str, Any]) -> dict[str, Any]:
    layers = {} if config.get("layers") is None else {"layers": parts(config["layers"])}
    return {**_given(config, "what", "metric"), **layers}


def _knob(config: Mapping[str, Any]) -> dict[str, Any]:
    layers = config["layers"]
    return {"layers": layers if layers in ("search", "all") else [_number(part) for part in parts(layers)]}


def _concepts(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"layer": _number(config["layer"]), **_given(config, "method", "dictionary")}


def _retrieval(config: Mapping[str, Any]) -> dict[str, Any]:
    """Its needles are in a file of rows, which an experiment holds itself."""
    path = Path(config["needles"])
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        needles = [{key: row[key] for key in ("question", "text")} for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} no longer holds the needles ({type(error).__name__}): put the file back.") from error
    lengths = [int(part) for part in parts(config["lengths"])]
    haystack = str(Path(config["haystack"]).resolve())
    return {"haystack": haystack, "needles": needles, "lengths": lengths, **_given(config, "template")}


def _paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """``within`` the tuned model is what both models are asked for; across them, its heads in the base."""
    receivers = config["receivers"]
    layers = {} if config.get("layers") is None else {"layers": parts(config["layers"])}
    across = {"source": "tuned", "target": "base"} if config["within"] == "across" else {}
    return {
        "do": "probe", "call": "path_patching", "within": "base" if config["within"] == "base" else "pair",
        "options": {
            "receivers": receivers if receivers == "logits" else parts(receivers),
            "position": place(config["position"]), "only_correct": not config["all_prompts"],
            **_given(config, "through", "metric", "freeze_mlps"), **layers, **across,
        },
    }  # fmt: skip


def _circuit(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("reference"):
        raise NotSupported("No experiment file holds the reference prompts of a circuit; run the command again.")
    options = {"heads": heads_by_place(config["heads"]), **_given(config, "metric", "minimality")}
    return {"do": "probe", "call": "circuit", "options": options}


def _cmap(config: Mapping[str, Any]) -> dict[str, Any]:
    options = {"heads": heads_by_place(config["heads"]), **_given(config, "metric")}
    return {"do": "probe", "call": "cmap", "options": options}


def _number(text: Any) -> int | float:
    """A layer: an index, or a fraction of the depth."""
    return float(text) if "." in str(text) else int(text)


_WITHOUT_PROMPTS = ("localize weights", "localize retrieval")
_STEPS: dict[str, Any] = {
    "localize weights": lambda _config: {},
    "localize activations": _activations,
    "localize paths": _paths,
    "localize circuit": _circuit,
    "localize cmap": _cmap,
    "localize heads": _heads,
    "localize skills": lambda config: _given(config, "method", "level", "sparsity"),
    "localize experts": lambda config: _given(config, "target"),
    "localize knob": _knob,
    "localize concepts": _concepts,
    "localize retrieval": _retrieval,
}
