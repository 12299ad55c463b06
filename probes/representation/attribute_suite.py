"""attribute_suite: which attributes of the things spoken of can be read from the states, of unseen things too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.call_settings import of_recording
from probes.representation.cells import PromptRows, cells_of, n_readings
from probes.representation.classifier import dealt_folds, held_out_right
from probes.resampling import bootstrap_weights, units_of
from probes.results import ProbeResult
from probes.scored import with_q
from workbench.argument_checks import check_recording
from workbench.errors import UserError
from workbench.figures.series import labelled_points
from workbench.method_options import As
from workbench.methods import Needs, Recorded, method
from workbench.progress import Progress, Silent, tracked
from workbench.recording.recording import Recording
from workbench.typing import Bool, Float, Int

DRAWS = 500
FEWEST = 4
"""Things with, and things without an attribute, that it needs."""


@dataclass(frozen=True, kw_only=True)
class AttributeSuite(ProbeResult):
    """One row per cell: diagnostic classifiers of all attributes.

    ``score``: macro F1 over the attributes on things that no classifier saw (zero-shot), of the tuned model, with its
    interval over things; ``control``: of classifiers of attributes given out at random to the things, ``q`` of a larger
    one; ``base``: the same of the base, ``change``, ``change_low``, ``change_high``: tuned - base; ``seen``: macro F1
    where other prompts of the same things were trained on, ``gap``: seen - zero-shot. ``attributes``: per cell and
    attribute F1 of both models and how many things have it.
    """

    attributes: pd.DataFrame
    left_out: tuple[str, ...]
    """Attributes that too few things have, or too many."""
    resampled: str

    title: ClassVar[str] = "Attributes in the states"
    unit: ClassVar[str] = "macro F1 on unseen things"

    def figure(self) -> go.Figure:
        """F1 by cell, the control as a cross."""
        names = self.table["site"] + " " + self.table["layer"].astype(int).astype(str)
        return labelled_points(self.table.assign(cell=names), "cell", title=self.title, unit=self.unit)

    def summary(self) -> str:
        best = self.table.sort_values("score", kind="stable").iloc[-1]
        names = self.attributes["attribute"].nunique()
        return (
            f"{names} attributes; best {best['site']} of layer {best['layer']:.0f}: F1 {best['score']:.2f} "
            f"[{best['low']:.2f}, {best['high']:.2f}] on unseen things (attributes at random {best['control']:.2f}), "
            f"base {best['base']:.2f}, change {best['change']:+.2f} [{best['change_low']:+.2f}, "
            f"{best['change_high']:+.2f}]; on seen things {best['seen']:.2f}; over {self.resampled}. Control: "
            f"{self.control}."
        )


@method(
    "attribute-suite",
    group="representation",
    question="Which attributes of things can be read from the states, and of things that no classifier saw?",
    papers=("CompGuessWhat?!: A Multi-task Evaluation Framework for Grounded Language Learning",),
    records=Recorded(sites=("resid_post",)),
    needs=Needs(columns=("label",)),
    cost="one forward pass of each model; a probe per cell, attribute, fold and split",
    example="--things item",
)
def attribute_suite(
    recording: Recording,
    attributes: Annotated[Sequence[Any] | None, As("column")] = None,
    *,
    things: Annotated[Sequence[Any] | None, As("column")] = None,
    spans: Annotated[Sequence[Any] | None, As("spans")] = None,
    folds: int = 5,
    ridge: float = 1.0,
    draws: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> AttributeSuite:
    """Fit a linear classifier per attribute on each cell, once with whole things held out and once with prompts.

    The source is a game about pictures, whose attribute classifiers read the dialogue's state. Carried over are those
    diagnostic classifiers and the zero-shot split: what can be told of things that were not in training is in the
    states, and what only of seen ones the classifier may have memorised. Its game and its pictures are not.

    Args:
        recording: Both models on prompts that speak of things.
        attributes: What each prompt's thing is: texts such as "red, round"; by default the column label.
        things: Which thing a prompt speaks of; by default its group, else itself.
        spans: Where in each prompt is looked: a column that holds a text of it or two numbers of characters, or
            role:user; in Python token spans, as ``row_spans`` gives them. By default everything that was recorded.
        folds: Folds of the cross-validation.
        draws: Random assignments of the attributes to the things.
        seed: Of folds, assignments and intervals.

    Returns:
        An :class:`AttributeSuite`. A base against itself changes nowhere.

    Raises:
        UserError: No attribute that enough things have and enough lack, or fewer things than folds.
    """
    check_recording(recording)
    rows = PromptRows.of(recording, spans)
    of = rows.clusters if things is None else _numbers(rows.labels(things))
    names, wanted, left_out = _attributes(rows.labels(attributes), of)
    splits = {"unseen": of, "seen": np.arange(len(of))}
    random = _given_out(wanted, of, draws, seed)
    bar = progress or Silent()
    bar.start("attributes", n_readings(recording, rows))
    lines, each = [], []
    for own, sides in tracked(cells_of(recording, rows), bar):
        said = {
            role: {split: _told(features, wanted, groups, folds, ridge, seed) for split, groups in splits.items()}
            for role, features in sides.items()
        }
        null = np.stack([_told(sides["tuned"], labels, of, folds, ridge, seed) for labels in random])
        for number, cell in enumerate(own):
            line, details = _cell(
                names, wanted, {role: {split: cell[number] for split, cell in by.items()} for role, by in said.items()},
                (null[:, number], random), of, seed,
            )  # fmt: skip
            lines.append({**cell, **line})
            each += [{**cell, **detail} for detail in details]
    bar.finish()
    if not lines:
        raise UserError("The recording has no site of a layer to read: record resid_post, z, mlp_out or another one.")
    return AttributeSuite(
        table=with_q(lines),
        control=f"classifiers of attributes given out at random to the things ({draws} times)",
        provenance=of_recording("attribute_suite", recording, ("base", "tuned"), seed),
        attributes=pd.DataFrame(each),
        left_out=tuple(left_out),
        resampled="things" if things is not None else units_of(rows.clusters),
    )  # fmt: skip


def _numbers(names: Sequence[Any]) -> Int[np.ndarray, " row"]:
    return np.unique([str(name) for name in names], return_inverse=True)[1]


def macro_f1(
    said: Bool[np.ndarray, "attribute row"], wanted: Bool[np.ndarray, "attribute row"],
    times: Float[np.ndarray, "draw row"],
) -> Float[np.ndarray, "draw attribute"]:  # fmt: skip
    """F1 of every attribute for every weighting of the rows; 0 where nothing is said or true."""
    both, either = times @ (said & wanted).T, times @ (said.astype(float) + wanted).T
    return np.divide(2 * both, either, out=np.zeros_like(both), where=either > 0)


def _attributes(texts: Sequence[Any], of: Int[np.ndarray, " row"]) -> tuple[list[str], np.ndarray, list[str]]:
    """Names, [attribute, row] which rows' things have it, and the names that cannot be told."""
    sets = [{part.strip() for part in str(text).split(",") if part.strip()} for text in texts]
    every = sorted(set().union(*sets))
    table = np.array([[name in group for group in sets] for name in every], dtype=bool)
    enough = [len(np.unique(of[row])) >= FEWEST and len(np.unique(of[~row])) >= FEWEST for row in table]
    names = [name for name, tellable in zip(every, enough, strict=True) if tellable]
    if not names:
        raise UserError(
            f"No attribute is had by {FEWEST} things and lacked by {FEWEST}: write them as 'red, round' in the column "
            "label, and name the things."
        )
    return names, table[np.array(enough)], [name for name, tellable in zip(every, enough, strict=True) if not tellable]


def _given_out(wanted: np.ndarray, of: np.ndarray, draws: int, seed: int) -> list[np.ndarray]:
    """The attributes of another thing for every thing, prompts of a thing together."""
    _, first, number = np.unique(of, return_index=True, return_inverse=True)
    random = np.random.default_rng(seed)
    return [wanted[:, first][:, random.permutation(len(first))][:, number] for _ in range(draws)]


def _told(
    features: Any, wanted: np.ndarray, groups: np.ndarray, folds: int, ridge: float, seed: int
) -> Bool[np.ndarray, "cell attribute row"]:
    """What the classifiers say of rows that they were not trained on."""
    labels = wanted.astype(np.int64)
    dealt = np.stack([dealt_folds(folds, groups, row, seed) for row in labels])
    return held_out_right(features, labels, dealt, ridge=ridge, seed=seed) == wanted[None]


def _cell(
    names: list[str], wanted: np.ndarray, said_of: dict[str, dict[str, np.ndarray]],
    null: tuple[np.ndarray, list[np.ndarray]], of: np.ndarray, seed: int,
) -> tuple[dict[str, float], list[dict[str, Any]]]:  # fmt: skip
    times = np.concatenate([np.ones((1, len(of))), bootstrap_weights(len(of), DRAWS, seed, of)])
    f1 = {
        role: {split: macro_f1(said, wanted, times) for split, said in by.items()} for role, by in said_of.items()
    }  # [draw, attribute]
    own = {role: scores["unseen"].mean(1) for role, scores in f1.items()}
    change = own["tuned"] - own["base"]
    band = [np.quantile(values[1:], (0.025, 0.975)) for values in (own["tuned"], change)]
    chance = np.stack([macro_f1(said, truth, times).mean(1) for said, truth in zip(*null, strict=True)]).mean(0)
    above = own["tuned"] - chance
    seen = float(f1["tuned"]["seen"][0].mean())
    line = {
        "score": float(own["tuned"][0]), "low": band[0][0], "high": band[0][1], "control": float(chance[0]),
        "p": float((1 + (above[1:] <= 0).sum()) / (1 + DRAWS)), "base": float(own["base"][0]),
        "change": float(change[0]), "change_low": band[1][0], "change_high": band[1][1], "seen": seen,
        "gap": seen - float(own["tuned"][0]), "n": len(np.unique(of)),
    }  # fmt: skip
    details = [
        {"attribute": name, "base": f1["base"]["unseen"][0, place], "tuned": f1["tuned"]["unseen"][0, place],
         "things": len(np.unique(of[wanted[place]]))}
        for place, name in enumerate(names)
    ]  # fmt: skip
    return line, details
