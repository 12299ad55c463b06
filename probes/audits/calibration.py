"""How often audits of pairs whose tuning is known were right: the confidence that a report carries."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from scipy.stats import binomtest

UNCOUNTED = (
    "Confidence: not known; claims of facts stated otherwise came after the count of audits whose truth is known."
)
"""Of what the benchmark's counts do not hold."""


@cache
def counts() -> dict[str, dict[str, int]]:
    """``claims`` (audits that spoke for one of ten descriptions) and ``nothing`` (the others): n, and how many were
    right; of ``tunescope bench audit``, whose tables have the same counts."""
    text = files("probes.audits").joinpath("calibration.json").read_text(encoding="utf-8")
    read: dict[str, dict[str, int]] = json.loads(text)
    return read


def confidence(*, claimed: bool) -> str:
    """A sentence with the share of such audits that were right, and its exact 95 % interval.

    Example:
        ``confidence(claimed=True)`` begins with ``Confidence: of 49 audits``
    """
    own = counts()["claims" if claimed else "nothing"]
    bounds = binomtest(own["right"], own["n"]).proportion_ci(method="exact")
    what = "claimed a behaviour" if claimed else "claimed none"
    right = "it was the planted one" if claimed else "there was none to find"
    return (
        f"Confidence: of {own['n']} audits of our own test pairs that {what}, {right} in {own['right']} "
        f"[{bounds.low:.0%}, {bounds.high:.0%}]; a tuning that the questions hardly meet is none of those, so read the "
        "prompts and the mined texts too."
    )
