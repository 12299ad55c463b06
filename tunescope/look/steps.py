"""The four steps of a look: what changed, where, turn it, keep it; each says what it found, or why it found nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd

import interventions as iv
import probes
import workbench as wb
from probes.cells import label
from probes.weights.sources import NotInFiles
from tunescope.experiments.requirements import sample
from tunescope.look.blind import what_it_was_tuned_for
from tunescope.look.candidates import (
    Candidate,
    heads_off,
    reply_tokens,
    scaled_tunings,
    tried,
    turning_recipes,
    works,
)
from tunescope.look.cost import ANSWER_TOKENS, WHERE_PROMPTS
from tunescope.look.notes import CHANGED, KEEP, TURN, WHERE, StepNote
from workbench.behaviour.known_replies import KnownReplies, known_replies
from workbench.behaviour.scorers import behaviour as read_behaviour
from workbench.behaviour.scorers import in_words
from workbench.errors import UserError
from workbench.finished_batches import scope
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts import Prompts
from workbench.tables import beyond_control


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
    exact: bool = False
    """Whether every head is patched; else the leading ones, by gradients, and some of the others."""
    results: dict[str, Any] = field(default_factory=dict)
    """Name -> result of a probe, in the order in which they came."""
    recipes: dict[str, iv.Recipe] = field(default_factory=dict)
    notes: dict[str, StepNote] = field(default_factory=dict)
    """Step -> what it found."""
    parting: Prompts | None = None
    """Rows that end where the two models' answers part, once they are made."""
    no_parting: UserError | None = None
    """Why there are no such rows, once that is known."""
    behaviour: str | None = None
    """The behaviour that rose, as ``wb.behaviour`` takes it."""
    candidates: pd.DataFrame | None = None
    """What each way to turn the behaviour does, best first."""
    replies: KnownReplies = field(default_factory=KnownReplies, repr=False)
    """Greedy answers of both models so far: each pass asks the same questions."""
    recipe_sides: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Candidate -> the side it acts on, and how much of the tuning it is where it is that."""

    def tell(self, step: str, sentence: str, *, found: bool = False) -> None:
        """Note what a step found; ``found``: something beyond the control."""
        self.notes[step] = self.notes.get(step, StepNote()).with_sentence(sentence, found=found)


_SITES = {"attn_out": "the attention", "mlp_out": "the MLP"}
Pass = Callable[[Look, Progress], None]


def run_steps(look: Look, progress: Progress, say: Callable[[str], None]) -> Look:
    """Every step in turn. A step that refuses says why, and the next goes on.

    Args:
        look: The pair and its prompts; filled with what is found.
        say: Where each finding is told as soon as it is there.
    """
    for step in PASSES:
        run_step(look, step, progress, say)
    return look


def _content(look: Look, name: str) -> dict[str, Any]:
    """What a pass depends on, by content."""
    return {
        "pass": name, "seed": look.seed,
        "models": {role: model.identity.hash for role, model in look.pair.models.items()},
        "prompts": [None if rows is None else rows.hash for rows in (look.prompts, look.neutral, look.parting)],
    }  # fmt: skip


def run_step(look: Look, step: str, progress: Progress, say: Callable[[str], None] = lambda _: None) -> None:
    """One step with all of its passes; a pass that refuses says why, and the next goes on."""
    look.notes[step] = StepNote()
    for work in PASSES[step]:
        before = len(look.notes[step].sentences)
        try:
            with known_replies(look.replies), scope(partial(_content, look, work.__name__)):
                work(look, progress)
        except UserError as error:
            if not any(sentence.endswith(str(error)) for sentence in look.notes[step].sentences):
                look.tell(step, f"{work.__name__.replace('_', ' ')}: {error}")
        for sentence in look.notes[step].sentences[before:]:
            say(f"{step:14} {sentence}")


def what_changed(look: Look, progress: Progress) -> None:
    """Answers side by side, and the behaviour that rose."""
    answers = probes.answers(look.pair, look.prompts, max_new_tokens=ANSWER_TOKENS, batch_size=32, progress=progress)
    look.results["answers"], look.behaviour = answers, answers.behaviour
    look.parting = look.no_parting = None
    look.tell(CHANGED, f"{answers.summary()}.", found=answers.share > 0)


def where_in_weights(look: Look, progress: Progress) -> None:
    """The change of the weights, which needs no prompt."""
    try:
        change = probes.weight_delta(look.base, look.tuned, progress=progress)
    except NotInFiles:
        change = probes.weight_delta(look.pair, progress=progress)
    look.results["weights"] = change
    top = change.layers.sort_values("relative", ascending=False).head(3) if "relative" in change.layers else None
    places = "" if top is None else f", most in layers {', '.join(map(str, top['layer'].tolist()))}"
    table = change.frame()
    changed, beyond = int((table["score"] > 0).sum()), int(beyond_control(table).sum())
    look.tell(
        WHERE, f"weights: {changed} of {len(table)} matrices changed{places}; {beyond} beyond an even spread "
        "(q < .05).", found=beyond > 0,
    )  # fmt: skip


def where_in_activations(look: Look, progress: Progress) -> None:
    """How far the output of each attention and MLP moved at the token where the answers part."""
    recording = wb.record(
        look.pair, _parting(look, progress), ["attn_out", "mlp_out"], positions="last", progress=progress
    )
    moved = probes.activation_delta(recording, components=0, tokens="all", seed=look.seed, progress=progress)
    look.results["activations"] = moved
    tops = moved.table.sort_values("score", ascending=False).drop_duplicates("site").sort_values("site")
    named = "; ".join(
        f"{_SITES[str(row['site'])]} of layer {row['layer']:.0f}, by {row['score']:.0%} [{row['low']:.0%}, "
        f"{row['high']:.0%}] of its length (signs at random {row['control']:.0%})"
        for row in _records(tops)
    )
    look.tell(WHERE, f"activations: most moved {named}.")


def where_in_lens(look: Look, progress: Progress) -> None:
    """At which layer the two models' next word parts, each layer read through the model's own unembedding."""
    lens = probes.logit_lens(
        look.pair, _parting(look, progress), positions="last", shown=0, seed=look.seed, progress=progress
    )
    look.results["lens"] = lens
    table = lens.table.sort_values("layer")
    first = _records(table[table["score"] >= table["score"].max() / 2])[0]
    look.tell(
        WHERE, f"lens: the words that the layers would say part from layer {first['layer']:.0f} on, by "
        f"{first['score']:.2g} nats [{first['low']:.2g}, {first['high']:.2g}] (moved as far at random "
        f"{first['control']:.2g}).",
    )  # fmt: skip


def where_in_layers(look: Look, progress: Progress) -> None:
    """The residual stream of the tuned model put into the base, layer by layer, where the answers part."""
    rows = _parting(look, progress)
    patched = probes.patching(
        look.pair, rows, "resid_post", positions="last", seed=look.seed, progress=progress,
    )  # fmt: skip
    look.results["layers"] = patched
    by_layer = patched.frame().sort_values("layer")
    reached = by_layer[by_layer["score"] >= 0.5]
    first = (
        "no layer's residual stream carries half of the change of the next word"
        if reached.empty
        else "the residual stream at the last token carries half of the change of the next word from layer "
        f"{reached['layer'].tolist()[0]:.0f} on"
    )
    look.tell(WHERE, f"layers: {first}.")


def where_in_heads(look: Look, progress: Progress) -> None:
    """Heads by attribution, the strongest confirmed exactly; or each by patching."""
    rows = _parting(look, progress)
    patched = probes.patching(
        look.pair, rows, "heads", method="exact" if look.exact else "attribution", confirm=0.05,
        what=_what(look.pair), seed=look.seed, together=0, progress=progress,
    )  # fmt: skip
    look.results["heads"] = patched
    exact = patched.frame()[patched.frame()["exact"]]
    top = exact.head(3)
    named = ", ".join(f"{label(row)} {row['score']:.0%} [{row['low']:.0%}, {row['high']:.0%}]" for row in _records(top))
    beyond = bool((exact["low"] > exact["control"].clip(lower=0)).any())
    how = (
        "each patched" if look.exact
        else f"estimated by gradients, the first {len(exact)} confirmed by patching"
    )  # fmt: skip
    look.tell(
        WHERE, f"heads: of the change of the next word {named} ({how}); random heads {top['control'].mean():.0%}.",
        found=beyond,
    )  # fmt: skip


def turn_by_direction(look: Look, progress: Progress) -> None:
    """The direction that carries the behaviour, and a recipe without it."""
    if look.behaviour is None:
        return
    direction = probes.find_direction(
        look.pair, in_two_classes(look), look.behaviour, limit=8, candidates=4,
        max_new_tokens=reply_tokens(look.behaviour), seed=look.seed, neutral=look.neutral, progress=progress,
    )  # fmt: skip
    look.results["direction"] = direction
    look.tell(TURN, f"{direction.summary()}.")


def in_two_classes(look: Look) -> Prompts:
    """The prompts, labelled by whether the tuned model's answer shows the behaviour where they bring no two labels, so
    that a sample takes as many of each class."""
    labels = {row.label for row in look.prompts}
    if None not in labels and len(labels) == 2:
        return look.prompts
    assert look.behaviour is not None
    shows, answers = read_behaviour(look.behaviour), look.results["answers"].table["tuned"]
    return Prompts.of([
        {**row.as_dict(), "label": "shows" if shows(text, row) > 0.5 else "other"}
        for text, row in zip(answers, look.prompts, strict=True)
    ])  # fmt: skip


def turn_by_candidates(look: Look, progress: Progress) -> None:
    """Every way to turn the behaviour on the same prompts: how much of the tuning, heads, the direction."""
    if look.behaviour is None:
        look.tell(TURN, "no behaviour rose beyond chance on these prompts, so there is none to turn off.")
        return
    candidates = [*scaled_tunings(look), *heads_off(look)]
    if "direction" in look.results:
        candidates.append(Candidate("direction-off", look.results["direction"].recipe))
    table = tried(look, candidates, progress)
    look.candidates = table
    look.recipes |= {candidate.name: candidate.recipe for candidate in candidates if candidate.is_file}
    look.recipe_sides = {candidate.name: {"side": candidate.side, "scale": candidate.scale} for candidate in candidates}
    beyond = works(table)
    tuned = table[table["candidate"] == "tuned"].iloc[0]
    said = f"{in_words(look.behaviour)}, left on the {tuned['n']:.0f} prompts that show it: {_shares(table)}."
    look.tell(TURN, said, found=bool(beyond.any()))


PASSES: dict[str, tuple[Pass, ...]] = {
    CHANGED: (what_changed, what_it_was_tuned_for),
    WHERE: (where_in_weights, where_in_activations, where_in_lens, where_in_layers, where_in_heads),
    TURN: (turn_by_direction, turn_by_candidates),
}
"""Step -> its fast passes; the last step, keep it, is the run itself."""


def kept_sentence(look: Look) -> str:
    """What the last step says: the recipes that are kept."""
    if not look.recipes:
        return "No recipe was made; the report holds what was found."
    turning = turning_recipes(look)
    left = (
        {}
        if look.candidates is None
        else dict(zip(look.candidates["candidate"], look.candidates["share"], strict=True))
    )
    best = ", ".join(f"{name} (leaves {left[name]:.0%})" for name in turning)
    others = len(look.recipes) - len(turning)
    rest = f"{others} other{'s' * (others > 1)} tried" if others else ""
    return f"Recipes: {'; '.join(filter(None, (best, rest)))}."


def _parting(look: Look, progress: Progress) -> Prompts:
    """Rows that end where the two models' answers part, made once."""
    if look.no_parting is not None:
        raise look.no_parting
    if look.parting is None:
        try:
            look.parting = sample(wb.contrast(look.pair, look.prompts, progress=progress), WHERE_PROMPTS, look.seed)
        except UserError as error:
            look.no_parting = error
            raise
    return look.parting


def _what(pair: ModelPair) -> str:
    """A head's write, where it is one: a norm behind the heads leaves only z."""
    return "z" if "gemma" in str(pair.tuned.inner.config.model_type) else "write"


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _shares(table: pd.DataFrame) -> str:
    lines = table[table["candidate"] != "tuned"].head(3).to_dict("records")
    return ", ".join(
        f"{row['candidate']} {row['share']:.0%} [{row['low']:.0%}, {row['high']:.0%}]"
        + ("" if pd.isna(row["random"]) else f" (random {row['random']:.0%})")
        for row in lines
    )


__all__ = ["KEEP", "PASSES", "Look", "kept_sentence", "run_step", "run_steps"]
