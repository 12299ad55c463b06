"""Whether tuning erased an ability or only displaced it: does another way of asking bring it back?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd

from probes.effects.answers import Measure
from probes.effects.panel import EffectPanel, columns_by_role, scored_line, table_of
from probes.halves import in_first_half
from probes.replay import counted
from probes.results import Provenance
from probes.retention.routes import BANK, PLAIN, route_scores, routed, soft_scores
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.method_options import Within
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.recording.record_pair import record

SOFT = "soft prompt"
LOSS, RECOVERED, REST = "lost when asked plainly", "recovered by another route", "still missing"


@dataclass(frozen=True, kw_only=True)
class ErasureVerdict(EffectPanel):
    """A verdict with what it rests on.

    ``table``: scores of base and tuned for every route, and three lines that decide: what the tuned model lost when
    asked plainly, what the best other route brings back (chosen on one half of the prompts, scored on the other), and
    what is still missing then. ``outcome``: kept, displaced, partly displaced, lost, or undecided. ``states``: per
    layer how far the tuned model's last-token residual is from the base's, asked plainly and by the best route.
    """

    outcome: str
    best: str
    """The route that brings back most."""
    states: pd.DataFrame

    title: ClassVar[str] = "Erased or displaced"


@method(
    "erased-or-displaced",
    group="retention",
    question="Is what tuning lost erased, or does it come back when asked another way?",
    papers=(
        "(Dynamic) Prompting might be all you need to repair Compressed LLMs",
        "Understanding Catastrophic Forgetting in Language Models via Implicit Inference",
    ),
    needs=Needs(columns=("answer",)),
    cost="a scored pass of each model per route; a short training where a soft prompt is asked for",
    example="--codes leetspeak --shots 4",
)
def erased_or_displaced(  # noqa: PLR0913 (a public call)
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    shots: Annotated[int, Within(0, None)] = 4,
    bank: Sequence[str] = BANK,
    codes: Sequence[str] = ("leetspeak", "pig latin"),
    soft_tokens: Annotated[int, Within(0, None)] = 0,
    margin: float = 0.1,
    metric: Measure = "contained",
    max_new_tokens: int = 24,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> ErasureVerdict:
    """Ask what the base could and the tuned model no longer does by other routes, and say: kept, displaced or lost.

    Routes: examples in front, prompts of a bank (each, and for every prompt the one that the model is surest under:
    dynamic prompting), reversible codes that tuning data never holds (conjugate prompting), a soft prompt trained on
    half of the prompts. The best route is chosen on one half and scored on the other, both ways. The control of a
    route is what it does to the base: a route that teaches the task raises the base as well.

    Undecided without more where the base scores no more than ``margin``: nothing can be lost then. Kept: the loss is
    below ``margin`` for sure. Displaced: it is not, and by the best route less than ``margin`` is
    missing for sure; partly displaced: the route brings back some; lost: no route brings back anything that can be
    told from 0.

    Args:
        pair: The model before (the original) and after tuning, pruning or compression.
        prompts: Questions with answers that the base knew.
        shots: Examples of the few-shot route; 0 for none.
        bank: Templates with {question}; an empty list for none.
        codes: Of leetspeak, dashes, reversed words, pig latin, rot13, base64.
        soft_tokens: Vectors of the soft-prompt route; 0 for none.
        margin: The loss that would not matter, in units of the score.
        metric: What is scored.
        max_new_tokens: Length of a generated answer.
        seed: Of examples, halves and intervals.

    Returns:
        An :class:`ErasureVerdict`.

    Raises:
        UserError: No route, an unknown code, or too few prompts to choose on one half and score on the other.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    if not (shots or bank or codes or soft_tokens):
        raise UserError("There is no other route to ask by: give shots, a bank, codes or soft_tokens.")
    inside = in_first_half(rows, seed)
    routes = routed(rows, bank, codes, shots, seed)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    bar = progress or Silent()
    bar.start("erased or displaced", 2)
    scores: dict[str, dict[str, np.ndarray]] = {}
    with counted(pair.base, pair.tuned) as passes:
        for role in ("base", "tuned"):
            scores[role] = route_scores(pair.models[role], routes, metric, options, bank)
            if soft_tokens:
                scores[role][SOFT] = soft_scores(pair.models[role], rows, soft_tokens, metric, options, seed)
            bar.advance()
        best = best_route(scores["tuned"], np.ones(len(rows), dtype=bool))
        states = _states(pair, rows, routes.get(best), batch_size)
    bar.finish()
    table = table_of(erasure_lines(scores, inside, rows.clusters, seed))
    outcome = verdict_of(table.set_index("group"), margin)
    return ErasureVerdict(
        table=table,
        control="the same route on the base, beyond the base asked plainly",
        provenance=Provenance.of("erased_or_displaced", pair, rows, seed=seed, forward_passes=passes.forward),
        values=columns_by_role(scores),
        measured=metric,
        heading="Erased or displaced",
        verdict=_said(outcome, best, table.set_index("group"), margin),
        outcome=outcome,
        best=best,
        states=states,
    )  # fmt: skip


def best_route(scores: dict[str, np.ndarray], rows: np.ndarray) -> str:
    """The route other than the plain one of the highest mean over ``rows``."""
    return max((name for name in scores if name != PLAIN), key=lambda name: float(scores[name][rows].mean()))


def cross_fitted(scores: dict[str, dict[str, np.ndarray]], inside: np.ndarray) -> dict[str, np.ndarray]:
    """Score by prompt of each model under the route that was best for the tuned model on the other half."""
    scores_of = {role: np.zeros(len(inside)) for role in scores}
    for choose, report in ((inside, ~inside), (~inside, inside)):
        name = best_route(scores["tuned"], choose)
        for role, own in scores.items():
            scores_of[role][report] = own[name][report]
    return scores_of


def erasure_lines(
    scores: dict[str, dict[str, np.ndarray]], inside: np.ndarray, clusters: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    """Lines of every route and model, and the three that decide."""
    plain = {role: own[PLAIN] for role, own in scores.items()}
    lines = [
        scored_line(name, role, values, 0.0 if name == PLAIN else plain[role], clusters, seed)
        for role, own in scores.items()
        for name, values in own.items()
    ]
    again = cross_fitted(scores, inside)
    raised = again["base"] - plain["base"]
    right = all(np.isin(values, (0.0, 1.0)).all() for own in scores.values() for values in own.values())
    of: Literal["changes", "numbers"] = "changes" if right else "numbers"
    loss, back, rest = plain["base"] - plain["tuned"], again["tuned"] - plain["tuned"], plain["base"] - again["tuned"]
    return [
        *lines,
        scored_line(LOSS, "base - tuned", loss, 0.0, clusters, seed, of=of),
        {**scored_line(RECOVERED, "tuned", back, 0.0, clusters, seed, of=of), "control": float(raised.mean())},
        {**scored_line(REST, "base, plain - tuned, by route", rest, 0.0, clusters, seed, of=of),
         "control": float((again["base"] - again["tuned"]).mean())},
    ]  # fmt: skip


def verdict_of(table: pd.DataFrame, margin: float) -> str:
    """kept, displaced, partly displaced, lost or undecided, from the three deciding lines."""
    loss, back, rest = (table.loc[name] for name in (LOSS, RECOVERED, REST))
    if _nothing_to_lose(table, margin):
        return "undecided"
    if loss["high"] < margin:
        return "kept"
    if loss["low"] <= 0:
        return "undecided"
    if back["low"] > 0:
        return "displaced" if rest["high"] < margin else "partly displaced"
    return "lost" if back["high"] < max(margin, loss["score"]) else "undecided"


def _nothing_to_lose(table: pd.DataFrame, margin: float) -> bool:
    """Whether the base, asked plainly, scores no more than a loss that would not matter."""
    return bool(((table.index == PLAIN) & (table["model"] == "base") & table["score"].between(0, margin)).any())


def _said(outcome: str, best: str, table: pd.DataFrame, margin: float) -> str:
    loss, back, rest = (table.loc[name] for name in (LOSS, RECOVERED, REST))
    if _nothing_to_lose(table, margin):
        base = table[(table.index == PLAIN) & (table["model"] == "base")].iloc[0]
        return (
            f"{outcome}: the base scores {base['score']:.2f} [{base['low']:.2f}, {base['high']:.2f}] asked plainly, no "
            f"more than the margin of {margin:g}, so there was nothing to lose: give questions that it answers, or "
            "another metric"
        )
    return (
        f"{outcome}: the tuned model lost {loss['score']:.2f} [{loss['low']:.2f}, {loss['high']:.2f}] asked plainly; "
        f"by another route (best: {best}) {back['score']:+.2f} [{back['low']:.2f}, {back['high']:.2f}] come back, "
        f"{rest['score']:.2f} [{rest['low']:.2f}, {rest['high']:.2f}] are still missing"
    )


def _states(pair: ModelPair, rows: Prompts, by_route: Prompts | None, batch_size: int) -> pd.DataFrame:
    """Per layer the distance of last-token residuals from the base's, over the base's length: the tuned model asked
    plainly, by the best route, and (control) the base by that route."""
    read: dict[str, Any] = {"sites": "resid_post", "batch_size": batch_size}
    plain = record(pair, rows, **read)
    other = plain if by_route is None else record(pair, by_route, **read)
    lines = []
    for site in plain.sites:
        base = plain["base"][site][:].float()
        length = base.norm(dim=-1).mean().clamp_min(1e-12)
        gaps = {
            "tuned, plain": plain["tuned"][site][:], "tuned, by route": other["tuned"][site][:],
            "base, by route": other["base"][site][:],
        }  # fmt: skip
        lines.append({
            "layer": int(site.split(".")[1]),
            **{name: float((gap.float() - base).norm(dim=-1).mean() / length) for name, gap in gaps.items()},
        })  # fmt: skip
    return pd.DataFrame(lines)
