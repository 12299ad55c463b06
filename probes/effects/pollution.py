"""pollution: where the tuned response leaves the base's path, and which attributes move that should not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.replay import counted
from probes.resampling import cluster_means, units_of
from probes.results import ProbeResult, Provenance
from probes.scored import scored
from workbench.argument_checks import check_pair
from workbench.behaviour.continuations import logits_at
from workbench.behaviour.generation import Decoding, Reply, generate_replies
from workbench.behaviour.scorers import behaviour as read_behaviour
from workbench.behaviour.scores import kl
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.figures.series import labelled_points
from workbench.methods import method
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.stats.fdr import q_values
from workbench.stats.tests import paired_permutation

OTHERS = ("length", "sentence_length", "word_length", "punctuation", "variety", "repetition")


@dataclass(frozen=True, kw_only=True)
class Pollution(ProbeResult):
    """One row per attribute (``module``).

    ``score``: its change, tuned - base, in standard deviations of the base's samples, with its interval over prompts;
    ``control``: the change from one draw of the base's samples to another, ``q`` of the difference; ``wanted``: whether
    it is what was tuned for; ``base``, ``tuned``: its means. ``path``: prompt, position, token (of the base's greedy
    response, the reference), kl (nats of tuned from base there), map (as a share of the prompt's largest).
    """

    path: pd.DataFrame
    leaves: tuple[float, float, float]
    """Share of a reference response's divergence that lies in its first quarter, with its interval: 0.25 where the
    tuned model differs evenly, 1 where it leaves at once."""
    resampled: str = "prompts"

    title: ClassVar[str] = "Attributes that moved"
    unit: ClassVar[str] = "change (standard deviations of the base's texts)"

    def figure(self) -> go.Figure:
        """Every attribute beside resampled texts of the base."""
        return labelled_points(self.table, "module", title=self.title, unit=self.unit)

    def summary(self) -> str:
        wanted = ", ".join(
            f"{row['module']} {row['score']:+.2f} standard deviations [{row['low']:+.2f}, {row['high']:+.2f}] "
            f"(resampled base {row['control']:+.2f}, q = {row['q']:.2g})"
            for _, row in self.table[self.table["wanted"]].iterrows()
        )
        others = self.table[~self.table["wanted"]]
        moved = ", ".join(f"{row['module']} {row['score']:+.2f}" for _, row in others[others["q"] < 0.05].iterrows())
        return (
            f"Wanted: {wanted or 'none named'}; other attributes moved by {others['score'].abs().mean():.2f} standard "
            f"deviations (resampled base {others['control'].abs().mean():.2f}), beyond chance: {moved or 'none'}; "
            f"{self.leaves[0]:.0%} [{self.leaves[1]:.0%}, {self.leaves[2]:.0%}] of the divergence lies in the first "
            f"quarter of the response; over {self.resampled}. Control: {self.control}."
        )


@method(
    "pollution",
    group="effects",
    question="Which attributes did tuning move besides the one it was for, and where do responses part?",
    papers=("SPF-Portrait: Towards Pure Portrait Customization with Semantic Pollution-Free Fine-tuning",),
    cost="two sampled generations of the base and one of the tuned model, and a scored pass of each",
    example="--wanted punctuation --samples 2 --max-new-tokens 8",
)
def pollution(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    wanted: list[str] | None = None,
    others: list[str] | None = None,
    samples: int = 4,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pollution:
    """Hold the tuned model's texts against the base's as the reference path.

    SPF-Portrait keeps the original image model beside the tuned one, maps where the two respond otherwise, and wants
    attributes that were not asked for to stay. Carried over to text are the map (divergence at every token of the
    base's own response) and the drift of unrelated attributes, counted and not judged; its alignment in training is
    not.

    Args:
        pair: Base and tuned model.
        prompts: What the texts answer.
        wanted: Attributes or behaviours of a text that tuning was for.
        others: Attributes that should stay; by default length, sentence_length, word_length, punctuation, variety and
            repetition.
        samples: Sampled texts per prompt and model.
        max_new_tokens: Tokens of a text at most.
        batch_size: Texts per forward pass.
        seed: Of samples and resampling.

    Returns:
        A :class:`Pollution`. A base against itself moved nothing.

    Raises:
        UserError: Fewer than two samples, or no attribute.
    """
    check_pair(pair, prompts)
    if samples < 2:
        raise UserError("Give samples of 2 or more: a change is told beside how texts of one model differ.")
    named = list(dict.fromkeys([*(wanted or []), *(OTHERS if others is None else others)]))
    if not named:
        raise UserError("Name an attribute: wanted, or others that should stay.")
    rows, work = Prompts.of(prompts), Work(batch_size, progress)
    with counted(pair.base, pair.tuned) as passes:
        texts = {
            name: generate_replies(Subject(name, model), rows, Decoding(max_new_tokens, samples, seed=draw), work)
            for name, model, draw in (
                ("base", pair.base, seed),
                ("again", pair.base, seed + 1),
                ("tuned", pair.tuned, seed),
            )
        }
        path = _path(pair, rows, [drawn[0] for drawn in texts["base"]], work)
    table = pd.DataFrame([_row(name, texts, rows, name in (wanted or []), seed) for name in named])
    return Pollution(
        table=table.assign(q=q_values(table["p"].to_numpy(np.float64))),
        control="another draw of the base's samples in place of the tuned model's",
        provenance=Provenance.of(
            "pollution", pair.models, rows, seed=seed, device=str(pair.tuned.device), forward_passes=passes.forward,
        ),
        path=path,
        leaves=_leaves(path, rows, seed),
        resampled=units_of(rows.clusters),
    )  # fmt: skip


def _row(name: str, texts: dict[str, list[list[Reply]]], rows: Prompts, wanted: bool, seed: int) -> dict[str, Any]:
    rule = read_behaviour(name)
    values = {
        side: np.array(
            [[rule(reply.text, row) for reply in replies[1:]] for row, replies in zip(rows, drawn, strict=True)]
        )
        for side, drawn in texts.items()
    }  # [prompt, sample]
    scale = float(values["base"].std()) or 1.0
    change, chance = ((values[side] - values["base"]).mean(1) / scale for side in ("tuned", "again"))
    apart = cluster_means((np.abs(change) - np.abs(chance))[:, None], rows.clusters)
    p = float(paired_permutation(apart, seed=seed, alternative="greater").p[0]) if change.any() else 1.0
    return {
        "module": name, **scored(change, seed=seed, clusters=rows.clusters), "control": float(chance.mean()), "p": p,
        "wanted": wanted, "base": float(values["base"].mean()), "tuned": float(values["tuned"].mean()), "n": len(rows),
    }  # fmt: skip


def _path(pair: ModelPair, rows: Prompts, reference: list[Reply], work: Work) -> pd.DataFrame:
    ids = encode(rows, pair.tokenizer, pair.tuned.max_positions)
    answers = [list(reply.ids) for reply in reference]
    lines: list[dict[str, Any]] = []

    def take(step: list[int], divergences: list[np.ndarray]) -> None:
        for number, apart in zip(step, divergences, strict=True):
            lines.extend(
                {"prompt": number, "position": place, "token": pair.tokenizer.decode([token]), "kl": apart[place],
                 "map": apart[place] / max(float(apart.max()), 1e-30)}
                for place, token in enumerate(answers[number])
            )  # fmt: skip

    lengths = [len(tokens) + len(two) for tokens, two in zip(ids, answers, strict=True)]
    work.each("path", lengths, partial(_apart, pair, ids, answers), take)
    return pd.DataFrame(lines).sort_values(["prompt", "position"], kind="stable", ignore_index=True)


def _apart(pair: ModelPair, ids: list[list[int]], answers: list[list[int]], rows: list[int]) -> list[np.ndarray]:
    """KL(tuned || base) [token] of each answer of one batch."""
    sides = [logits_at(Subject(role, model), ids, answers, rows) for role, model in pair.models.items()]
    return [kl(tuned, base).double().numpy() for base, tuned in zip(*sides, strict=True)]


def _leaves(path: pd.DataFrame, rows: Prompts, seed: int) -> tuple[float, float, float]:
    """Over prompts whose reference diverges at all; NaN where none does."""
    shares, units = [], []
    for prompt in range(len(rows)):
        apart = path["kl"].to_numpy(np.float64)[(path["prompt"] == prompt).to_numpy()]
        if apart.sum() > 0:
            shares.append(float(apart[: max(1, len(apart) // 4)].sum() / apart.sum()))
            units.append(rows.clusters[prompt])
    if not shares:
        return (float("nan"),) * 3
    line = scored(np.array(shares), seed=seed, clusters=np.array(units))
    return line["score"], line["low"], line["high"]
