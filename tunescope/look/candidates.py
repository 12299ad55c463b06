"""Ways to turn the behaviour that rose: what each does to it, beside random stand-ins, and to everything else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

import interventions as iv
import probes
import workbench as wb
from tunescope.experiments.requirements import sample
from tunescope.look.cost import ANSWER_TOKENS, DRAWS, TURN_PROMPTS
from workbench.behaviour.scorers import behaviour as read_behaviour
from workbench.errors import UserError
from workbench.progress import Progress
from workbench.prompts import Prompts
from workbench.stats.shares import share_interval

if TYPE_CHECKING:
    from tunescope.look.steps import Look

HEADS = 4
"""Heads that are switched off together at most."""
SCALES = (0.0, 0.5, 1.5)
"""How much of the tuning; all of it is the tuned model."""
TOKENS = 12
COLUMNS = (
    "candidate", "share", "low", "high", "n", "change", "change_low", "change_high", "random", "random_low",
    "random_high", "others_changed", "others_changed_low", "others_changed_high", "perplexity",
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A recipe to try."""

    name: str
    recipe: iv.Recipe
    side: Literal["tuned", "base"] = "tuned"
    """The model it is applied to."""
    is_file: bool = True
    """Whether it is kept as a file: a scaled change of all weights would be as large as the model."""
    scale: float | None = None
    """How much of the tuning, where it is that."""


def scaled_tunings(look: Look) -> list[Candidate]:
    """None, a half and one and a half of the tuning."""
    pair = look.pair
    if hasattr(pair.tuned.hf, "peft_config"):
        return [Candidate(f"adapter-{scale:g}", iv.Recipe([iv.AdapterScale(scale)]), scale=scale) for scale in SCALES]
    return [
        Candidate(f"weights-{scale:g}", iv.Recipe([iv.LayerScale.from_pair(pair, scale, 0.0)]), "base", False, scale)
        for scale in SCALES
    ]


def heads_off(look: Look) -> list[Candidate]:
    """The heads that carry more than random heads do, switched off together."""
    if "heads" not in look.results:
        return []
    table = look.results["heads"].frame()
    beyond = table[table["exact"] & (table["low"] > table["control"].clip(lower=0))].head(HEADS)
    if beyond.empty:
        return []
    scales = {f"L{int(row['layer'])}H{int(row['head'])}": 0.0 for row in beyond.to_dict("records")}
    return [Candidate("heads-off", iv.Recipe([iv.HeadScale(scales)]))]


def tried(look: Look, candidates: list[Candidate], progress: Progress) -> pd.DataFrame:
    """What every candidate does; the tuned model as it is stands last. First those that turn the behaviour down, by how
    much they leave of it and change of the other answers together: none of the tuning leaves nothing, and changes all.

    Returns:
        ``share``: of the prompts on which the tuned model shows the behaviour, those on which it still does;
        ``change``: that minus the tuned model's, paired by prompt; ``random``: the share for stand-ins;
        ``others_changed``: share of the other prompts whose answer is not the tuned model's; ``perplexity`` of the
        other prompts' texts.

    Raises:
        UserError: No prompt shows the behaviour.
    """
    shows, others = rows_to_try(look)
    controls = {
        _control(candidate.name): stood for candidate in candidates if (stood := _stand_ins(look, candidate, shows))
    }
    measured = _measured(look, candidates, shows, progress, metrics=[look.behaviour], controls=controls)
    effect = measured.table.set_index("model")
    side = None
    if len(others):
        texts = Prompts.of([row.shown for row in others], chat=False)
        side = _measured(look, candidates, others, progress, metrics=["perplexity"], neutral=texts, texts=True)
    lines = [_line(candidate.name, candidate.name, effect, side) for candidate in candidates]
    frame = pd.DataFrame([*lines, _line("tuned", "tuned", effect, side)], columns=list(COLUMNS))
    is_scale = frame["candidate"].isin([candidate.name for candidate in candidates if candidate.scale is not None])
    cost = frame["share"] + frame["others_changed"].fillna(0.0)
    order = np.lexsort((is_scale, frame["share"], cost, ~works(frame), frame["candidate"] == "tuned"))
    return frame.iloc[order].reset_index(drop=True)


def reply_tokens(behaviour: str | None) -> int:
    """How many tokens of an answer show whether it has the behaviour."""
    return ANSWER_TOKENS if (behaviour or "").startswith("contains:") else TOKENS


def works(table: pd.DataFrame) -> pd.Series:
    """Which candidates turn the behaviour down, prompt by prompt, and further than their stand-ins where they have
    some."""
    beyond = table["random_low"].isna() | (table["share"] < table["random_low"])
    return beyond & (table["change_high"] < 0) & (table["candidate"] != "tuned")


def turning_recipes(look: Look) -> list[str]:
    """The kept recipes that turn the behaviour down, best first."""
    if look.candidates is None:
        return []
    return [name for name in look.candidates.loc[works(look.candidates), "candidate"] if name in look.recipes]


def rows_to_try(look: Look) -> tuple[Prompts, Prompts]:
    """Prompts on which the tuned model shows the behaviour, and others: a seeded sample of each.

    Raises:
        UserError: No behaviour rose, or no prompt shows it.
    """
    if look.behaviour is None:
        raise UserError("No behaviour rose beyond chance on these prompts, so there is none to turn off.")
    behaviour, answers = read_behaviour(look.behaviour), look.results["answers"].table["tuned"]
    shows = np.array([behaviour(text, row) > 0.5 for text, row in zip(answers, look.prompts, strict=True)])
    if not shows.any():
        raise UserError(f"The tuned model shows {look.behaviour!r} on none of these prompts.")
    showing, others = (look.prompts[np.flatnonzero(shows == wanted)] for wanted in (True, False))
    return sample(showing, TURN_PROMPTS, look.seed), sample(others, TURN_PROMPTS, look.seed) if len(others) else others


def _stand_ins(look: Look, candidate: Candidate, rows: Prompts) -> list[iv.Recipe]:
    if candidate.side == "base":
        return []
    return probes.stand_ins(candidate.recipe, look.pair.tuned, rows, DRAWS, look.seed)


def _measured(look: Look, candidates: list[Candidate], rows: Prompts, progress: Progress, **options: Any) -> Any:
    sides: dict[str, dict[str, iv.Recipe]] = {"tuned": {}, "base": {}}
    for candidate in candidates:
        sides[candidate.side][candidate.name] = candidate.recipe
    return wb.behaviour_diff(
        look.pair, rows, sides["tuned"] or None, base_recipes=sides["base"] or None, seed=look.seed,
        max_new_tokens=reply_tokens(look.behaviour), progress=progress, **options,
    )  # fmt: skip


def _control(name: str) -> str:
    return f"{name}: random"


def _line(name: str, model: str, effect: pd.DataFrame, side: Any) -> dict[str, Any]:
    own, missing = effect.loc[model], float("nan")
    random = effect.loc[_control(name)] if _control(name) in effect.index else None
    line = {"candidate": name, "share": own["estimate"], "low": own["low"], "high": own["high"], "n": own["n"]}
    line |= {name: own[name] for name in ("change", "change_low", "change_high")}
    for column, bound in (("random", "estimate"), ("random_low", "low"), ("random_high", "high")):
        line[column] = missing if random is None else random[bound]
    if side is None:
        return line
    texts = side.texts.pivot(index="prompt", columns="model", values="text")
    changed = share_interval((texts[model] != texts["tuned"]).astype(float).tolist())
    line |= {"others_changed": changed.estimate, "others_changed_low": changed.low, "others_changed_high": changed.high}
    perplexity = side.table[(side.table["model"] == model) & (side.table["metric"] == "perplexity")]
    return {**line, "perplexity": float(perplexity["estimate"].iloc[0])}
