"""Which strengths a dial goes through: from the fluent texts with least of an attribute to those with most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from probes.attributes.dial_texts import Turned
from workbench.behaviour.generation import Reply
from workbench.behaviour.scorers import Behaviour
from workbench.prompts.collection import Prompts
from workbench.typing import Float

POINTS = 5
"""Settings of the dial that are measured."""
REACHES = np.array([-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0])
"""Strengths that a dial is calibrated on, in shares of the largest; the middle one is the plain text."""
PLAIN = len(REACHES) // 2


@runtime_checkable
class Writer(Protocol):
    """Writes texts along directions; :class:`probes.attributes.dial_texts.DialTexts` in earnest."""

    def replies(self, rows: Prompts, texts: Sequence[Turned]) -> list[Reply]:
        """The reply of each text."""

    def perplexities(self, rows: Prompts, replies: Sequence[Sequence[Reply]]) -> list[float]:
        """Perplexity of each list of replies under the plain model."""


@dataclass(frozen=True)
class Curve:
    """How an attribute follows the strength, on the prompts that the dial is calibrated on."""

    strengths: Float[np.ndarray, " strength"]
    values: Float[np.ndarray, " strength"]
    fluent: Float[np.ndarray, " strength"]
    """1 where texts are fluent enough, and at all smaller strengths of that side; else 0."""

    @property
    def ends(self) -> tuple[int, int]:
        """(where there is least of the attribute, where most) among fluent texts; of equals the smaller strength."""
        usable = np.flatnonzero(self.fluent)
        nearest = usable[np.argsort(np.abs(self.strengths[usable]), kind="stable")]
        values = self.values[nearest]
        return int(nearest[values.argmin()]), int(nearest[values.argmax()])

    @property
    def range(self) -> float:
        """Most minus least."""
        low, high = self.ends
        return float(self.values[high] - self.values[low])

    def settings(self) -> Float[np.ndarray, " point"]:
        """The strengths at which the attribute takes equal steps from least to most."""
        low, high = self.ends
        places = np.arange(low, high + 1) if low <= high else np.arange(low, high - 1, -1)
        return inverted(self.strengths[places], self.values[places])


def curve_of(
    writer: Writer, rows: Prompts, rule: Behaviour, plain: Sequence[Reply], *, reach: float, dearest: float
) -> Curve:
    """The attribute in the texts of every strength.

    Args:
        writer: Writes along direction 0.
        rows: The prompts of the choosing half.
        rule: Reads the attribute.
        plain: The texts without an offset, one per prompt.
        reach: The largest strength.
        dearest: The largest perplexity of fluent texts, in multiples of the plain texts'.
    """
    strengths = REACHES * reach
    moved = [place for place in range(len(strengths)) if place != PLAIN]
    replies = writer.replies(rows, [Turned(row, 0, float(strengths[at])) for at in moved for row in range(len(rows))])
    texts = {at: replies[n * len(rows) : (n + 1) * len(rows)] for n, at in enumerate(moved)} | {PLAIN: list(plain)}
    values = np.array([read(rows, texts[at], rule).mean() for at in range(len(strengths))])
    prices = np.array(writer.perplexities(rows, [texts[at] for at in range(len(strengths))]))
    return Curve(strengths, values, _fluent(prices <= dearest * prices[PLAIN]))


def read(rows: Prompts, replies: Sequence[Reply], rule: Behaviour) -> Float[np.ndarray, " prompt"]:
    """The attribute in one reply per prompt."""
    return np.array([rule(reply.text, row) for reply, row in zip(replies, rows, strict=True)])


def _fluent(cheap: np.ndarray) -> Float[np.ndarray, " strength"]:
    """``cheap`` [strength], from the plain text outwards up to the first that is not."""
    above = np.minimum.accumulate(np.r_[True, cheap[PLAIN + 1 :]])
    below = np.minimum.accumulate(np.r_[True, cheap[:PLAIN][::-1]])[::-1]
    return np.r_[below[:-1], above].astype(float)


def inverted(strengths: Float[np.ndarray, " place"], curve: Float[np.ndarray, " place"]) -> Float[np.ndarray, " point"]:
    """The strengths at which a response curve, made monotone, reaches equal steps between its ends; where the curve is
    one place, that strength at every step."""
    rising = curve if curve[-1] >= curve[0] else curve[::-1]
    order = strengths if curve[-1] >= curve[0] else strengths[::-1]
    monotone = np.maximum.accumulate(rising)
    wanted = np.linspace(rising[0], monotone[-1], POINTS)
    steps = monotone + np.arange(len(monotone)) * 1e-9 * max(1.0, float(np.abs(monotone).max()))  # no flat places
    inverse = np.interp(wanted, steps, order)
    inverse[0], inverse[-1] = order[0], order[-1]
    return inverse
