"""First chapter, ``context-knob``: a fine-tuned Llama answers from a note or from memory, as it is asked."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch

import interventions as iv
import probes
from probes import Knob
from tunescope.demo.as_experiment import context_experiment, looked_steps
from tunescope.demo.chapter import Chapter, Section, Settings, titled, verdict
from tunescope.demo.comparing import Behaviour, Tried, compared
from tunescope.demo.looking import looked, shown_rows
from tunescope.demo.recorded import marked, mean_difference, rows_at
from workbench.models.pair import load_pair
from workbench.organisms import Organism
from workbench.progress import Progress
from workbench.prompts import Prompts
from workbench.recording.job import difference_table
from workbench.recording.record_pair import record
from workbench.stats.controls import random_directions
from workbench.typing import Float, Tensor

NAME = "context-knob"
_BOTH = "does as it is asked"
_WEIGHTS = ["layer", "module", "score", "control", "q", "effective_rank", "n"]
_DIRECTIONS = "random directions of the same size"


def context_chapter(organism: Organism, settings: Settings, progress: Progress) -> Chapter:
    """Record, localize and steer; everything is fitted on training rows and judged on validation and OOD rows."""
    pair = load_pair(organism.base, organism.tuned, device="cpu")
    rows, held_out = organism.splits["train"], organism.splits["validation"] + organism.splits["ood"]
    train = Prompts.of(rows)
    recording = record(pair, train, ["resid_post", "z"], positions="last", progress=progress)
    weights = probes.weight_delta(pair, progress=progress)
    few = train[: settings.heads]
    heads = probes.patching(pair, few, "heads", what="write", seed=settings.seed, progress=progress)
    handed = probes.patching(pair, few, "heads", what="z", together=0, seed=settings.seed, progress=progress)
    by_head = _by_head(heads, handed)
    knob = probes.find_knob(
        pair, train[: 2 * settings.pairs],
        training=probes.KnobTraining(steps=settings.steps), setup=probes.KnobSetup(draws=settings.draws),
        seed=settings.seed, progress=progress,
    )  # fmt: skip
    tries = _Tries(knob, settings)
    layer_rows = rows_at(recording, "tuned", knob.layer)
    shift = mean_difference(layer_rows, marked(rows, "intent", knob.intents[0]))
    offset = tries.offset(shift)
    ablation = tries.ablation(layer_rows.mean(0))
    behaviour = compared(pair, NAME, _questions(held_out, tries, offset, ablation), settings.seed)
    shown = shown_rows(organism.splits["validation"], "intent")
    looks = looked(pair, shown, [row["intent"] for row in shown], knob.layer, seed=settings.seed, progress=progress)
    return Chapter(
        NAME, {"base": pair.base.identity.to_dict(), "tuned": pair.tuned.identity.to_dict()},
        _sections(difference_table(recording), weights, heads, by_head, knob), behaviour,
        _truth(organism, weights, by_head, knob, settings),
        {"knob-context": (tries.knob_to("context").recipe, pair.tuned), "offset-context": (offset.recipe, pair.tuned),
         "ablate-knob": (ablation.recipe, pair.tuned)},
        {"weights": weights, "heads-write": heads, "heads-z": handed, "knob": knob, **looks}, shown,
        context_experiment(settings, looked_steps("intent", knob.layer, len(shown))),
    )  # fmt: skip


class _Tries:
    """Recipes from a knob, each with random stand-ins that move the residual stream just as far."""

    def __init__(self, knob: Knob, settings: Settings) -> None:
        self.knob, self.seed = knob, settings.seed
        self.random = random_directions(knob.direction[:, 0], draws=settings.draws, seed=settings.seed)

    def knob_to(self, intent: str, on: str = "tuned") -> Tried:
        """The knob found in the tuned model, set to one intent for every prompt, there or in the base."""
        other = next(name for name in self.knob.intents if name != intent)
        distance = self.knob.settings[intent] - self._natural(on, other)
        controls = [self._added(draw, distance) for draw in self.random]
        return Tried(f"knob set to '{intent}'", self.knob.recipe(intent), controls, _DIRECTIONS, on)

    def offset(self, shift: Float[Tensor, " d_model"]) -> Tried:
        """The difference of the two intents' means, added."""
        vectors = random_directions(shift, draws=len(self.random), seed=self.seed + 1)
        recipes = [
            iv.Recipe([iv.Offset(self.knob.layer, vector, positions="last+generated")]) for vector in (shift, *vectors)
        ]
        return Tried("offset: difference of means", recipes[0], recipes[1:], _DIRECTIONS)

    def ablation(self, mean: Float[Tensor, " d_model"]) -> Tried:
        """The knob's direction taken out: every prompt gets the mean coordinate."""
        layer, directions = self.knob.layer, (self.knob.direction[:, 0], *self.random)
        recipes = [
            iv.Recipe([iv.ConceptAblation(layer, direction, mean=mean, positions="last+generated")])
            for direction in directions
        ]
        return Tried("knob's direction ablated", recipes[0], recipes[1:], "random directions ablated")

    def _added(self, direction: Float[Tensor, " d_model"], distance: float) -> iv.Recipe:
        knob = iv.SubspaceKnob(self.knob.layer, direction, distance, mode="add", positions="last+generated")
        return iv.Recipe([knob])

    def _natural(self, model: str, intent: str) -> float:
        table = self.knob.natural
        return float(table[(table["model"] == model) & (table["intent"] == intent)]["value"].mean())


def _questions(
    rows: list[dict[str, Any]], tries: _Tries, offset: Tried, ablation: Tried
) -> list[tuple[Behaviour, Tried]]:
    asked_memory = [row for row in rows if row["intent"] == "memory"]
    asked_context = [row for row in rows if row["intent"] == "context"]
    both = Behaviour.of(_BOTH, rows, "answer")
    from_context = Behaviour.of("asked for memory, answers from context", asked_memory, "context_answer")
    from_memory = Behaviour.of("asked for context, answers from memory", asked_context, "memory_answer")
    return [
        (from_context, tries.knob_to("context")),
        (from_memory, tries.knob_to("memory")),
        (from_context, offset),
        (both, ablation),
        (from_context, tries.knob_to("context", "base")),
        (from_memory, tries.knob_to("memory", "base")),
    ]


def _by_head(write: Any, handed: Any) -> pd.DataFrame:
    """layer, head, score (write), low, high, control, q, by z, own: what z does not explain is the tuned weights' own
    doing. The largest own part first."""
    both = write.frame().merge(
        handed.frame()[["layer", "head", "score"]].rename(columns={"score": "by z"}), on=["layer", "head"]
    )
    columns = both[["layer", "head", "score", "low", "high", "control", "q", "by z"]]
    return (
        columns.assign(own=columns["score"] - columns["by z"])
        .round(6)
        .sort_values("own", ascending=False, ignore_index=True)
    )


def _sections(differences: pd.DataFrame, weights: Any, heads: Any, by_head: pd.DataFrame, knob: Knob) -> list[Section]:
    return [
        Section(
            "context-knob: what tuning moved",
            "A small Llama knows facts and reads a note that contradicts them; tuning taught it to answer from the "
            "note or from memory, as asked. Weights: change of each module relative to its norm, known exactly. "
            "Activations: root mean square change at the last prompt token, relative to the base.",
            {
                "weights of context-knob": weights.frame()[_WEIGHTS].head(10),
                "activations of context-knob": differences.head(12),
            },
        ),
        Section(
            "context-knob: which heads carry it",
            "Each head's write of the tuned model is put into the base, one head at a time: 0 is the base's logit "
            "difference between right and wrong answer, 1 the tuned model's. Patching z instead moves only what the "
            "head was handed by earlier layers; what is left (own) is done by the head's own tuned weights.\n\n"
            f"{heads.summary()}",
            {"heads of context-knob": by_head.head(8)},
            {
                "heads of context-knob": titled(
                    heads.figure(), f"Heads' writes, tuned into base (n = {len(heads.effects)}); grey: as the control"
                )
            },
        ),
        Section(
            "context-knob: the knob",
            "One direction of the residual stream at the last prompt token, trained by swapping its coordinate between "
            f"prompts of opposite intent, then set by hand, in the tuned model and in the base.\n\n{knob.summary()}",
            {"layers tried for the knob": knob.frame(), "knob set to each intent": knob.flips},
            {
                "knob of context-knob": titled(
                    knob.figure(), f"Answers from the context against the knob's setting (layer {knob.layer})"
                )
            },
        ),
    ]


def _truth(organism: Organism, weights: Any, heads: pd.DataFrame, knob: Knob, settings: Settings) -> pd.DataFrame:
    planted = organism.truth
    assert planted.direction is not None and planted.layer is not None
    direction = planted.direction.float()
    cosine = float((knob.direction[:, 0] @ direction).abs())
    random = random_directions(direction, draws=100, seed=settings.seed)
    top = weights.frame().iloc[0]
    own = heads.groupby("layer")["own"].sum()
    carrier, layers = int(own.index.to_numpy()[own.to_numpy().argmax()]), len(own)
    module = f"layer {int(top['layer'])} {top['module']}"
    return pd.DataFrame([
        verdict(NAME, "module that changed most", ", ".join(planted.modules), module,
                float(any(str(top["name"]).startswith(name.removeprefix("model.")) for name in planted.modules)),
                "1: found", 1 / (7 * layers)),
        verdict(NAME, "layer whose heads do most of their own", str(planted.layer), str(carrier),
                float(carrier == planted.layer), "1: found", 1 / layers),
        verdict(NAME, "layer of the knob", str(planted.layer), str(knob.layer), float(knob.layer == planted.layer),
                "1: found", 1 / layers),
        verdict(NAME, "direction of the knob", "a unit vector", "a unit vector", cosine, "|cosine|",
                float(torch.mv(random, direction).abs().mean())),
    ])  # fmt: skip
