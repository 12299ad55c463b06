"""What ``tunescope localize`` was asked, as the step of an experiment that asks the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunescope.experiments.head_groups import heads_by_place, parts, place
from tunescope.experiments.naming import plain_names
from workbench.errors import NotSupported, UserError


@dataclass(frozen=True)
class Localized:
    """A step, and the files of prompts that it reads besides the run's own, which are called ``prompts``."""

    step: dict[str, Any]
    reads_prompts: bool = True
    """Whether it reads the run's own."""
    more: Mapping[str, tuple[str, Sequence[str]]] = field(default_factory=dict)
    """Set of prompts -> its file as the run was given it, and where the settings of the result hold its hash."""


def localize_step(verb: str, config: Mapping[str, Any]) -> Localized:
    """What ``verb`` was asked; ``config`` is the run's.

    Raises :class:`NotSupported` for a verb that no step repeats, and :class:`UserError` for needles that are gone.
    """
    make = _STEPS.get(verb)
    if make is None:
        raise NotSupported(f"No step of an experiment file repeats {verb!r}; run the command again.")
    found = make(config)
    found = found if isinstance(found, Localized) else Localized(found, verb not in _WITHOUT_PROMPTS)
    seed = {"seed": config["seed"]} if config.get("seed") else {}
    return replace(found, step={"do": verb, **found.step, **seed})


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


def _circuit(config: Mapping[str, Any]) -> Localized:
    options = {"heads": heads_by_place(config["heads"]), **_given(config, "metric", "minimality")}
    step = {"do": "probe", "call": "circuit", "options": options}
    if not config.get("reference"):
        return Localized(step)
    return Localized(
        {**step, "sets": {"reference": "reference"}}, more={"reference": (config["reference"], ["reference"])}
    )


def _components(config: Mapping[str, Any]) -> Localized:
    """One set of prompts per file, called as the file is."""
    files = {Path(file).stem: file for file in config["prompts"]}  # as the command names its desiderata
    names = plain_names(files, otherwise="desideratum")
    heads = {} if config.get("heads") is None else {"heads": parts(config["heads"])}
    step = {
        "desiderata": names, "position": place(config["position"]), **heads,
        "penalties": [float(part) for part in parts(config["penalties"])], "epochs": config["epochs"],
    }  # fmt: skip
    return Localized(step, False, {names[title]: (file, ["desiderata", title]) for title, file in files.items()})


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
    "localize components": _components,
    "localize heads": _heads,
    "localize skills": lambda config: _given(config, "method", "level", "sparsity"),
    "localize experts": lambda config: _given(config, "target"),
    "localize knob": _knob,
    "localize concepts": _concepts,
    "localize retrieval": _retrieval,
}
