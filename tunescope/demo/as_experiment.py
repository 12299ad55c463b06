"""The chapters as experiment files: for every result of the demo's run the step that makes it again.

Kept in the run's provenance, from where the dashboard takes the file of what a page shows; paths start at the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunescope.demo.chapter import Settings
from tunescope.demo.looking import DIRECTIONS, NEW_TOKENS

_HELD_OUT = ["validation", "ood"]


def context_experiment(settings: Settings, looks: dict[str, Any]) -> dict[str, Any]:
    """Of ``context-knob``; ``looks`` are the steps of :func:`looked_steps`."""
    knob = {"file": "results/context-knob-knob.safetensors"}
    heads, draws = {"do": "localize heads", "prompts": "few"}, {"draws": settings.draws}
    return {
        **_head("context-knob", settings),
        "prompts": {
            "pairs": {"split": "train", "limit": 2 * settings.pairs},
            "few": {"split": "train", "limit": settings.heads},
            "shown": {"file": "prompts/context-knob.jsonl"},
            "asked-memory": {"split": _HELD_OUT, "where": {"intent": "memory"}, "answer": "context_answer"},
            "asked-context": {"split": _HELD_OUT, "where": {"intent": "context"}, "answer": "memory_answer"},
            "held": {"split": _HELD_OUT},
        },
        "recipes": {
            **{f"knob-{to}": [{"kind": "SubspaceKnob", "knob": {**knob, "to": to}}] for to in ("context", "memory")},
            "offset": {"file": "recipes/offset-context.safetensors"},
            "ablation": {"file": "recipes/ablate-knob.safetensors"},
        },
        "steps": {
            "weights": {"do": "localize weights"},
            "heads-write": {**heads, "what": "write"},
            "heads-z": {**heads, "what": "z", "options": {"together": 0}},
            "knob": {"do": "localize knob", "prompts": "pairs", "steps": settings.steps, "options": draws},
            **looks,
            "from-context": _shares("asked-memory", settings, ["knob-context", "offset"], ["knob-context"]),
            "from-memory": _shares("asked-context", settings, ["knob-memory"], ["knob-memory"]),
            "as-asked": _shares("held", settings, ["ablation"]),
        },
    }  # fmt: skip


def experts_experiment(
    settings: Settings,
    rankings: Mapping[str, Sequence[str]],
    counts: Sequence[int],
    switched: Mapping[str, Sequence[str]],
    grafts: Mapping[str, Any],
    looks: dict[str, Any],
) -> dict[str, Any]:
    """Of ``refusal-moe``; ``rankings`` are the experts in the order in which each curve switches them off,
    ``switched`` those that the two recipes switch off, ``grafts`` the options of the two grafts by method."""
    experts = {"do": "localize experts", "prompts": "train", "label": "topic", "target": "topic", "positions": "last"}
    curve = {"do": "localize switching", "prompts": "topical", "begins": "sorry", "mode": "replace",
             "counts": [*counts], "options": {"max_new_tokens": 1, "controls": settings.draws}}  # fmt: skip
    skill = {"do": "localize skills", "prompts": "train"}
    recipes = [*(f"off-by-{name}" for name in switched), "ablation"]
    return {
        **_head("refusal-moe", settings),
        "prompts": {
            "train": {"split": "train"},
            "topical": {"split": "train", "where": {"topic": "topic"}},
            "shown": {"file": "prompts/refusal-moe.jsonl"},
            "topic": {"split": _HELD_OUT, "where": {"topic": "topic"}},
            "facts": {"split": _HELD_OUT, "where": {"topic": "topic"}, "answer": "fact"},
            "rest": {"split": _HELD_OUT, "where": {"topic": "other"}},
        },
        "recipes": {
            **{f"off-by-{name}": [{"kind": "ExpertSwitch", "off": [*off]}] for name, off in switched.items()},
            "ablation": {"file": "recipes/refusal-ablated.safetensors"},
        },
        "steps": {
            "weights": {"do": "localize weights"},
            "experts-tuned": {**experts, "within": "tuned"},
            "experts-base": {**experts, "within": "base"},
            "experts": experts,
            **{f"switching-{name}": {**curve, "ranking": [*ranking]} for name, ranking in rankings.items()},
            **{f"graft-{method}": {**skill, "method": method, **graft} for method, graft in grafts.items()},
            **looks,
            "refuses": _shares("topic", settings, recipes),
            "answers-topic": _shares("facts", settings, recipes),
            "answers-rest": _shares("rest", settings, recipes),
        },
    }  # fmt: skip


def looked_steps(label: str, layer: int, shown: int) -> dict[str, Any]:
    """The steps of :func:`tunescope.demo.looking.looked` on the ``shown`` prompts that the run keeps."""
    return {
        "tokens": {"do": "probe", "call": "token_shift", "prompts": "shown", "options": {"max_new_tokens": NEW_TOKENS}},
        "lens": {"do": "probe", "call": "logit_lens", "prompts": "shown", "options": {"shown": shown}},
        "head-probe": {"do": "localize head-probe", "prompts": "shown", "label": label},
        "concepts": {
            "do": "localize concepts",
            "prompts": "shown",
            "layer": layer,
            "k": DIRECTIONS,
            "method": "pca-uncentred",
        },
    }


def _head(organism: str, settings: Settings) -> dict[str, Any]:
    pair = {"organism": organism, "seed": settings.seed, "device": "cpu"}
    return {"name": f"demo-{organism}", "seed": settings.seed, "pair": pair}


def _shares(
    prompts: str, settings: Settings, recipes: Sequence[str], base_recipes: Sequence[str] = ()
) -> dict[str, Any]:
    """One behaviour of the demo's first table; its random stand-ins are drawn anew."""
    return {
        "do": "diff", "prompts": prompts, "recipes": [*recipes], "base_recipes": [*base_recipes],
        "metrics": ["accuracy"], "controls": settings.draws,
    }  # fmt: skip
