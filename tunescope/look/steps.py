"""The four steps of a look: what changed, where, turn it, keep it; each says what it found, or why it found nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

import interventions as iv
import probes
import workbench as wb
from probes.cells import label
from probes.weights.sources import NotInFiles
from tunescope.experiments.requirements import sample
from workbench.errors import UserError
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts import Prompts

WHERE_PROMPTS = 12
"""Prompts that the localizing passes read."""
ANSWER_TOKENS = 16


@dataclass
class Look:
    """What the steps found so far."""

    pair: ModelPair
    prompts: Prompts
    base: str
    tuned: str
    seed: int = 0
    neutral: Prompts | None = None
    """Texts whose perplexity shows what a recipe does to everything else."""
    results: dict[str, Any] = field(default_factory=dict)
    """Name -> result of a probe, in the order in which they came."""
    recipes: dict[str, iv.Recipe] = field(default_factory=dict)
    told: list[tuple[str, str]] = field(default_factory=list)
    """(step, what it found)."""
    parting: Prompts | None = None
    """Rows that end where the two models' answers part, once they are made."""
    behaviour: str | None = None
    """The behaviour that rose, as ``wb.behaviour`` takes it."""

    def tell(self, step: str, sentence: str) -> None:
        """Note what a step found."""
        self.told.append((step, sentence))


def general_questions() -> Prompts:
    """Questions of many topics, for a look without prompts of one's own."""
    text = files("tunescope.look").joinpath("questions.txt").read_text(encoding="utf-8")
    return Prompts.of([line for line in text.splitlines() if line.strip()])


def run_steps(look: Look, progress: Progress, say: Callable[[str], None]) -> Look:
    """Every step in turn. A step that refuses says why, and the next goes on.

    Args:
        look: The pair and its prompts; filled with what is found.
        progress: A bar.
        say: Where each finding is told as soon as it is there.
    """
    for name, step in (
        ("What changed?", what_changed), ("Where?", where_in_weights), ("Where?", where_in_layers),
        ("Where?", where_in_heads), ("Turn it.", turn_by_adapter), ("Turn it.", turn_by_direction),
    ):  # fmt: skip
        before = len(look.told)
        try:
            step(look, progress)
        except UserError as error:
            look.tell(name, f"{step.__name__.replace('_', ' ')}: {error}")
        for told, sentence in look.told[before:]:
            say(f"{told:14} {sentence}")
    return look


def what_changed(look: Look, progress: Progress) -> None:
    """Answers side by side, and the behaviour that rose."""
    found = probes.answers(look.pair, look.prompts, max_new_tokens=ANSWER_TOKENS, progress=progress)
    look.results["answers"] = found
    look.tell("What changed?", f"{found.summary()}.")
    look.behaviour = found.behaviour


def where_in_weights(look: Look, progress: Progress) -> None:
    """The change of the weights, which needs no prompt."""
    try:
        found = probes.weight_delta(look.base, look.tuned, progress=progress)
    except NotInFiles:
        found = probes.weight_delta(look.pair, progress=progress)
    look.results["weights"] = found
    top = found.layers.sort_values("relative", ascending=False).head(3) if "relative" in found.layers else None
    places = "" if top is None else f"; most in layers {', '.join(map(str, top['layer'].tolist()))}"
    look.tell("Where?", f"weights: {len(found.frame())} matrices compared{places}.")


def where_in_layers(look: Look, progress: Progress) -> None:
    """The residual stream of the tuned model put into the base, layer by layer, where the answers part."""
    rows = _parting(look, progress)
    found = probes.patching(
        look.pair, rows, "resid_post", positions="last", seed=look.seed, progress=progress,
    )  # fmt: skip
    look.results["layers"] = found
    by_layer = found.frame().sort_values("layer")
    reached = by_layer[by_layer["score"] >= 0.5]
    first = (
        "none carries half of it" if reached.empty else f"half of it from layer {reached['layer'].tolist()[0]:.0f} on"
    )
    look.tell("Where?", f"layers: the change of the next word, by the residual stream at the last token: {first}.")


def where_in_heads(look: Look, progress: Progress) -> None:
    """Heads by attribution, the strongest confirmed exactly."""
    rows = _parting(look, progress)
    found = probes.patching(
        look.pair, rows, "heads", method="attribution", confirm=0.05, what=_what(look.pair), seed=look.seed,
        together=0, progress=progress,
    )  # fmt: skip
    look.results["heads"] = found
    top = found.frame()[found.frame()["exact"]].head(3)
    named = ", ".join(f"{label(row)} {row['score']:.0%} [{row['low']:.0%}, {row['high']:.0%}]" for row in _records(top))
    look.tell("Where?", f"heads (attribution, the first 5 % confirmed exactly): {named}; random heads "
              f"{top['control'].mean():.0%}.")  # fmt: skip


def turn_by_adapter(look: Look, progress: Progress) -> None:
    """How much of an adapter is needed: the share of the behaviour at 0, a half and all of it."""
    if look.behaviour is None or not hasattr(look.pair.tuned.hf, "peft_config"):
        return
    steps = {f"adapter x {scale:g}": iv.Recipe([iv.AdapterScale(scale)]) for scale in (0.0, 0.25, 0.5)}
    measured = wb.behaviour_diff(
        look.pair, look.prompts, steps, metrics=[look.behaviour], controls={}, max_new_tokens=ANSWER_TOKENS,
        progress=progress,
    )  # fmt: skip
    look.results["adapter"] = measured
    look.recipes["adapter-half"] = steps["adapter x 0.5"]
    look.tell("Turn it.", f"how much of the adapter: {_shares(measured.frame())}.")


def turn_by_direction(look: Look, progress: Progress) -> None:
    """The direction that carries the behaviour, and a recipe without it."""
    if look.behaviour is None:
        look.tell("Turn it.", "no behaviour rose beyond chance on these prompts, so there is none to turn off.")
        return
    found = probes.find_direction(
        look.pair, look.prompts, look.behaviour, limit=8, candidates=4, max_new_tokens=12, seed=look.seed,
        neutral=look.neutral, progress=progress,
    )  # fmt: skip
    look.results["direction"] = found
    look.recipes["direction-off"] = found.recipe
    look.tell("Turn it.", f"{found.summary()}.")


def _parting(look: Look, progress: Progress) -> Prompts:
    """Rows that end where the two models' answers part, made once."""
    if look.parting is None:
        look.parting = sample(wb.contrast(look.pair, look.prompts, progress=progress), WHERE_PROMPTS, look.seed)
    return look.parting


def _what(pair: ModelPair) -> str:
    """A head's write, where it is one: a norm behind the heads leaves only z."""
    return "z" if "gemma" in str(pair.tuned.inner.config.model_type) else "write"


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _shares(table: pd.DataFrame) -> str:
    lines = [f"{row['model']} {row['estimate']:.0%}" for row in table.to_dict("records")]
    return ", ".join(lines)


def saved(look: Look, folder: Path) -> dict[str, Path]:
    """Every recipe as a file in ``folder``."""
    made = {}
    for name, recipe in look.recipes.items():
        made[name] = recipe.save(folder / f"{name}.safetensors", model=look.pair.tuned)
    return made
