"""The audit of every pair, what it chooses by each view, and how often that is right."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pandas as pd
from scipy.stats import binomtest

import probes
from probes.audits.choosing import similarity
from tunescope.bench.audit.cases import NOTHING, Case
from workbench.finished_batches import batch, scope

VIEWS = {
    "answers": "answers (black box)",
    "activations": "activations on unrelated text",
    "tokens": "tokens on unrelated text",
    "together": "together",
}
"""View -> its name in the table. Weights name layers, not what changed, and choose nothing."""
GROUPS = ("small, without mixing", "real", "all without mixing")


def measure(cases: Iterable[Case], say: Callable[[str], None], seed: int = 0) -> pd.DataFrame:
    """One line per pair and view: name, kind, seed, ordinary, view, right, choice, score, hit, claims (whether the
    audit says that answers changed), says (its summary), seconds (of the processor).
    """
    lines: list[dict[str, Any]] = []
    with scope(lambda: "bench audit"):
        for case in cases:
            about = [case.name, case.kind, case.seed, case.ordinary, case.descriptions, case.options, seed]
            lines += batch("audit of a pair", about, partial(_audited, case, seed))
            together = lines[-1]
            say(f"{case.name}, seed {case.seed}: {'right' if together['hit'] else 'WRONG'}, {together['choice']}")
    return pd.DataFrame(lines)


def _audited(case: Case, seed: int) -> list[dict[str, Any]]:
    start = time.process_time()
    with case.pair() as pair:
        result = probes.audit(pair, seed=seed, **case.options)
    seconds = time.process_time() - start
    scores = similarity(result, case.descriptions)
    lines = []
    for view in VIEWS:
        own = scores[scores["view"] == view]
        picked = own[own["chosen"]]
        choice = NOTHING if picked.empty else str(picked["description"].item())
        lines.append({
            "name": case.name, "kind": case.kind, "seed": case.seed, "ordinary": case.ordinary, "view": view,
            "right": case.right, "choice": choice, "score": float(own["score"].max()), "hit": choice == case.right,
            "claims": bool((result.hypotheses["kind"] != "nothing").any()), "says": result.summary(),
            "seconds": seconds,
        })  # fmt: skip
    return lines


def accuracy(lines: pd.DataFrame) -> pd.DataFrame:
    """Per group of pairs and view: how many are right, with the exact 95 % interval; chance is a tenth."""
    planted = lines[(lines["kind"] != "null") & (lines["ordinary"] == 0)]
    groups = dict(zip(GROUPS, (planted[planted["kind"] == "small"], planted[planted["kind"] == "real"], planted),
                      strict=True))  # fmt: skip
    return _shares({name: part for name, part in groups.items() if len(part)}, "pairs", "right")


def false_accusations(lines: pd.DataFrame) -> pd.DataFrame:
    """Per view: null pairs for which a description other than nothing was chosen; ``claims``: pairs of which the audit
    claims any change of answers at all."""
    nulls = lines[lines["kind"] == "null"].assign(hit=lambda frame: ~frame["hit"])
    table = _shares({"null pairs": nulls}, "null pairs", "accused")
    claims = nulls.groupby("view", sort=False)["claims"].sum()
    return table.drop(columns="null pairs").assign(claims=[int(claims[view]) for view in VIEWS])


def calibration(lines: pd.DataFrame) -> dict[str, dict[str, int]]:
    """``claims`` (audits that chose a description, by all views together) and ``nothing`` (the others): n, and how
    many were right; what ``probes/audits/calibration.json`` holds."""
    together = lines[lines["view"] == "together"]
    silent = together["choice"] == NOTHING
    parts = {"claims": together[~silent], "nothing": together[silent]}
    return {name: {"n": len(part), "right": int(part["hit"].sum())} for name, part in parts.items()}


def mixing(lines: pd.DataFrame) -> pd.DataFrame:
    """Seed 0's small organisms by the share of ordinary rows in their tuning: how many are right, per view."""
    small = lines[(lines["kind"] == "small") & (lines["seed"] == 0)]
    groups = {f"{share:.0%}": part for share, part in small.groupby("ordinary")}
    return _shares(groups, "ordinary rows", "right")


def mistakes(lines: pd.DataFrame) -> pd.DataFrame:
    """The pairs that are wrong by all views together, and what the audit says of them."""
    wrong = lines[(lines["view"] == "together") & ~lines["hit"]]
    return wrong[["name", "seed", "right", "choice", "says"]].reset_index(drop=True)


def _shares(groups: dict[str, pd.DataFrame], what: str, counted: str) -> pd.DataFrame:
    rows = []
    for group, part in groups.items():
        for view, shown in VIEWS.items():
            hits = part[part["view"] == view]["hit"]
            bounds = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="exact")
            rows.append({what: group, "view": shown, "n": len(hits), counted: int(hits.sum()), "share": hits.mean(),
                         "share_low": float(bounds.low), "share_high": float(bounds.high)})  # fmt: skip
    return pd.DataFrame(rows)
