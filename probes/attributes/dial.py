"""A calibrated dial: an attribute turned from 0 to 1, with its range, calibration and consistency (smooth control)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

import interventions as iv
from probes.attributes.dial_texts import DialTexts, Turned, control_texts
from probes.attributes.text_states import mean_size, text_states
from probes.halves import halves
from probes.replay import counted
from probes.resampling import bootstrap_weights, units_of
from probes.results import ProbeResult, Provenance
from probes.scored import scored
from workbench.argument_checks import check_subject
from workbench.behaviour.generation import Decoding, Reply, generate_replies
from workbench.behaviour.scorers import Behaviour
from workbench.behaviour.scorers import behaviour as read_behaviour
from workbench.behaviour.subject import Subject, Work
from workbench.engine.sites import resolve_layers
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.progress import JoinedProgress, Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.stats.controls import check_draws, random_directions
from workbench.typing import Float, Tensor

POINTS = 5
"""Settings of the dial that are measured, and strengths that it is calibrated on."""
DRAWS = 1_000


@dataclass(frozen=True, kw_only=True)
class IntensityDial(ProbeResult):
    """An attribute under a dial that was calibrated on other prompts.

    ``table``: dial (0 to 1), strength (of the offset, in mean norms of the site); ``score``, the attribute in texts,
    with interval; ``wanted``, where a straight line between the ends lies; ``control``, the attribute under random
    directions (at both ends; NaN between); ``perplexity`` of the texts under the plain model.
    """

    attribute: str
    numbers: pd.DataFrame
    """number, score, low, high, control: ``range`` (end minus end), ``calibration`` (mean distance from the straight
    line; 0 is best), ``consistency`` (mean over settings of the standard deviation over prompts; low is steady), in
    standard deviations of the attribute in plain samples, and ``monotonicity`` (Kendall's tau of setting and mean
    attribute: 1 where every step up is more of it); ``control`` is the range under random directions, and 0 for
    monotonicity, which is what settings in random order have."""
    off_target: pd.DataFrame
    """dial, attribute, change (in standard deviations of plain samples, from the plain text)."""
    layer: int
    vector: Float[Tensor, " d_model"]
    """One mean norm of the site along the attribute's direction."""
    settings: list[float]
    """Strength at each setting of the dial."""
    resampled: str = "prompts"

    title: ClassVar[str] = "Intensity dial"
    unit: ClassVar[str] = "attribute in the texts"

    def recipe(self, dial: float) -> iv.Recipe:
        """The recipe at a setting from 0 to 1.

        Raises:
            UserError: The setting lies outside.
        """
        if not 0 <= dial <= 1:
            raise UserError(f"The dial is {dial}: give a setting from 0 to 1.")
        strength = float(np.interp(dial, np.linspace(0, 1, len(self.settings)), self.settings))
        return dialled(self.layer, self.vector, strength)

    def frame(self) -> pd.DataFrame:
        """The table by setting."""
        return self.table.copy()

    def figure(self) -> go.Figure:
        """The attribute against the dial, with the straight line."""
        drawn = go.Figure([
            go.Scatter(x=self.table["dial"], y=self.table["score"], name=self.attribute, mode="lines+markers",
                       error_y={"type": "data", "symmetric": False, "array": self.table["high"] - self.table["score"],
                                "arrayminus": self.table["score"] - self.table["low"]}),
            go.Scatter(x=self.table["dial"], y=self.table["wanted"], name="straight", line={"dash": "dot"}),
        ])  # fmt: skip
        drawn.update_layout(title=self.title, xaxis_title="dial", yaxis_title=self.attribute)
        return drawn

    def summary(self) -> str:
        """Range, calibration and consistency."""
        said = ", ".join(
            f"{row.number} {row.score:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in self.numbers.itertuples()
        )
        return (
            f"{self.attribute} at L{self.layer}: {said} (standard deviations of plain samples, a tau); range under "
            f"random directions {self.numbers['control'].iloc[0]:.2f}; intervals over {self.resampled}; "
            f"control: {self.control}"
        )


@method(
    "intensity-dial",
    group="attributes",
    question="Can an attribute be turned smoothly from little to much, and what else moves?",
    papers=(
        "Evaluating the Smooth Control of Attribute Intensity in Text Generation with LLMs",
        "Personalized Text Generation with Fine-Grained Linguistic Control",
        "AttriCtrl: Fine-Grained Control of Aesthetic Attribute Intensity in Diffusion Models",
    ),
    cost=(
        "22 texts per two prompts as it stands: 7 samples and 4 strengths of the one, 6 settings and 4 random "
        "directions of the other; it says how many before the first, and --dry-run --timed how long they take"
    ),
    example="--attribute punctuation --samples 4 --max-new-tokens 8",
)
def intensity_dial(  # noqa: PLR0913
    subject: Any,
    prompts: Prompts | Sequence[object],
    attribute: str = "length",
    *,
    layer: int | float | str = 0.5,
    reach: float = 0.4,
    samples: int = 6,
    off_target: list[str] | None = None,
    controls: int = 10,
    max_new_tokens: int = 32,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> IntensityDial:
    """Find an attribute's direction in the model's own samples, calibrate a dial on it, and measure the dial.

    On one half of the prompts sampled texts are scored by the attribute, which is counted and not judged
    (``workbench.behaviour.linguistic``), and the direction is the covariance of score and mean state, prompt by prompt.
    There too strengths are mapped so that the attribute rises in a straight line. On the other half range, calibration,
    consistency and monotonicity are measured.

    AttriCtrl learns an embedding of the value in [0, 1] for an image model. Carried over is the scalar in [0, 1] with a
    learned map to what is added to the states (a strength along one direction), and the two checks of it.

    Args:
        subject: A model, or a pair (its tuned model).
        prompts: What the texts answer.
        attribute: What is turned: length, readability, punctuation, pronouns, or any behaviour of a text.
        layer: Where the offset acts: an index, or a fraction of the depth.
        reach: The largest strength either way, in mean norms of the site.
        samples: Sampled texts per prompt, from which the direction is found.
        off_target: Other attributes whose change is reported; by default readability, repetition and variety.
        controls: Random directions, of which each prompt meets two; 0: none.
        max_new_tokens: Tokens of a text at most.
        batch_size: Texts per forward pass.
        seed: Of halves, samples, random directions and resampling.

    Returns:
        An :class:`IntensityDial`; ``.recipe(0.7)`` is the recipe at a setting.

    Raises:
        UserError: An attribute that never varies in the samples, fewer than two samples, or a reach of 0.
    """
    check_subject(subject)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    if samples < 2 or not reach > 0:
        raise UserError("Give two samples or more, so that texts of a prompt can differ, and a reach above 0.")
    if controls:
        check_draws(controls)
    rule = read_behaviour(attribute)
    others = ["readability", "repetition", "variety"] if off_target is None else off_target
    (place,) = resolve_layers(layer, model.n_layers)
    rows = Prompts.of(prompts)
    choosing, reported = halves(rows, seed)
    plan = _Plan(len(choosing), len(reported), samples, controls)
    bar = progress or Silent()
    bar.start(f"intensity dial: {plan.texts} texts of up to {max_new_tokens} tokens", plan.batches(batch_size))
    work = Work(batch_size, JoinedProgress(bar))
    with counted(model) as passes:
        vector, sd, middle = _direction(
            model, choosing, rule, place, Decoding(max_new_tokens, samples, seed=seed), work
        )  # fmt: skip
        drawn = list(random_directions(vector, draws=controls, seed=seed)) if controls else []
        trial = DialTexts(model, place, [vector, *drawn], max_new_tokens, work)
        settings = _calibrated(trial, choosing, rule, reach, middle)
        replies, plain, ends = _reported(trial, reported, rule, settings)
        values = np.array([_read(reported, reply, rule) for reply in replies])
        off = _off_target(reported, [other for other in others if other != rule.name], replies, plain)
        fluency = trial.perplexities(reported, replies)
    bar.finish()
    return IntensityDial(
        table=_table(values, settings, ends, fluency, reported, seed),
        control=f"{controls} random directions of the same norm, each prompt under two of them or more",
        provenance=Provenance.of("intensity_dial", model, rows, seed=seed, forward_passes=passes.forward),
        attribute=rule.name, numbers=_numbers(values / sd, ends / sd, reported, seed), off_target=off, layer=place,
        vector=vector, settings=[float(setting) for setting in settings], resampled=units_of(reported.clusters),
    )  # fmt: skip


def dialled(layer: int, vector: Tensor, strength: float) -> iv.Recipe:
    """The offset at one strength."""
    return iv.Recipe([iv.Offset(layer, vector, strength=strength, positions="last+generated")])


@dataclass(frozen=True)
class _Plan:
    """How much is written."""

    choosing: int
    reported: int
    samples: int
    controls: int

    @property
    def loops(self) -> tuple[int, int, int]:
        """Texts of each loop: samples, calibration, report."""
        control = len(control_texts(self.reported, self.controls, (0.0, 1.0))) if self.controls else 0
        return (self.samples + 1) * self.choosing, (POINTS - 1) * self.choosing, (POINTS + 1) * self.reported + control

    @property
    def texts(self) -> int:
        """All of them."""
        return sum(self.loops)

    def batches(self, batch_size: int) -> int:
        """Batches that are written or, at the end, read."""
        return sum(-(-texts // batch_size) for texts in (*self.loops, POINTS * self.reported))


def _direction(
    model: AdaptedModel, rows: Prompts, rule: Behaviour, layer: int, decoding: Decoding, work: Work
) -> tuple[Tensor, float, float]:
    """(one mean norm along the covariance of attribute and state, standard deviation of the attribute, its mean in
    greedy texts)."""
    ids = encode(rows, model.tokenizer, model.max_positions)
    drawn = generate_replies(Subject("samples", model), rows, decoding, work)
    scores = np.array([[rule(reply.text, row) for reply in replies] for row, replies in zip(rows, drawn, strict=True)])
    greedy, sampled = scores[:, 0], scores[:, 1:]
    texts = [list(reply.ids) for replies in drawn for reply in replies[1:]]
    before = [row for row, replies in zip(ids, drawn, strict=True) for _ in replies[1:]]
    states = text_states(model, before, texts, [layer], work.batch_size)[:, 0].view(*sampled.shape, -1)
    centred = torch.from_numpy(sampled - sampled.mean(1, keepdims=True)).float()
    if not bool(centred.any()):
        raise UserError(f"{rule.name} is the same in all samples of every prompt, so nothing shows its direction.")
    slope = torch.einsum("ps,psd->d", centred, states - states.mean(1, keepdim=True))
    if not bool(slope.any()):
        raise UserError(f"States do not vary with {rule.name} at layer {layer}: choose another layer.")
    vector = slope / slope.norm() * mean_size(states.flatten(0, 1))
    return vector, float(sampled.std()) or 1.0, float(greedy.mean())


def _calibrated(
    trial: DialTexts, rows: Prompts, rule: Behaviour, reach: float, middle: float
) -> Float[np.ndarray, " point"]:
    """The strength at each setting; ``middle``: the attribute without any offset."""
    strengths = np.linspace(-reach, reach, POINTS)
    places = [place for place in range(POINTS) if place != POINTS // 2]
    texts = [Turned(row, 0, float(strengths[place])) for place in places for row in range(len(rows))]
    replies = trial.replies(rows, texts)
    curve = np.full(POINTS, middle)
    for number, place in enumerate(places):
        curve[place] = _read(rows, replies[number * len(rows) : (number + 1) * len(rows)], rule).mean()
    return inverted(strengths, curve)


def _reported(
    trial: DialTexts, rows: Prompts, rule: Behaviour, settings: Float[np.ndarray, " point"]
) -> tuple[list[list[Reply]], list[Reply], Float[np.ndarray, "end prompt"]]:
    """(replies of each setting, those without an offset, the attribute at both ends under random directions)."""
    n, levels = len(rows), [float(setting) for setting in settings]
    own = [Turned(row, 0, level) for level in (*levels, 0.0) for row in range(n)]
    directions = len(trial.vectors) - 1
    control = control_texts(n, directions, (levels[0], levels[-1])) if directions else []
    replies = trial.replies(rows, own + control)
    parts = [replies[start : start + n] for start in range(0, len(own), n)]
    values = [rule(reply.text, rows[text.row]) for reply, text in zip(replies[len(own) :], control, strict=True)]
    ends = np.array(values).reshape(n, -1, 2).mean(1).T if control else np.zeros((2, 0))
    return parts[:-1], parts[-1], ends


def _read(rows: Prompts, replies: Sequence[Reply], rule: Behaviour) -> Float[np.ndarray, " prompt"]:
    return np.array([rule(reply.text, row) for reply, row in zip(replies, rows, strict=True)])


def inverted(strengths: Float[np.ndarray, " point"], curve: Float[np.ndarray, " point"]) -> Float[np.ndarray, " point"]:
    """The strengths at which a response curve, made monotone, reaches equal steps between its ends."""
    rising = curve if curve[-1] >= curve[0] else curve[::-1]
    order = strengths if curve[-1] >= curve[0] else strengths[::-1]
    monotone = np.maximum.accumulate(rising)
    wanted = np.linspace(rising[0], monotone[-1], len(strengths))
    steps = monotone + np.arange(len(monotone)) * 1e-9 * max(1.0, float(np.abs(monotone).max()))  # no flat places
    inverse = np.interp(wanted, steps, order)
    inverse[0], inverse[-1] = order[0], order[-1]
    return inverse


def dial_numbers(values: Float[np.ndarray, "point prompt"]) -> tuple[float, float, float, float]:
    """(range, calibration, consistency, monotonicity) of an attribute at equal steps of a dial.

    A linear responder has calibration 0 and monotonicity 1; one that steps has full range and bad calibration; a
    constant one range and monotonicity 0.
    """
    means = values.mean(1)
    line = np.linspace(means[0], means[-1], len(means))
    steps = np.sign(means[None] - means[:, None])[np.triu_indices(len(means), 1)]
    calibration, consistency = np.abs(means - line).mean(), values.std(1).mean()
    return float(means[-1] - means[0]), float(calibration), float(consistency), float(steps.mean())


def _numbers(values: np.ndarray, ends: np.ndarray, rows: Prompts, seed: int) -> pd.DataFrame:
    weights = bootstrap_weights(len(rows), DRAWS, seed, rows.clusters).astype(int)
    usable = weights[weights.sum(1) > 0]
    drawn = np.array([dial_numbers(np.repeat(values, times, axis=1)) for times in usable])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    control = float((ends[1] - ends[0]).mean()) if ends.size else float("nan")
    return pd.DataFrame({
        "number": ["range", "calibration", "consistency", "monotonicity"], "score": dial_numbers(values), "low": low,
        "high": high, "control": [control, float("nan"), float("nan"), 0.0],
    })  # fmt: skip


def _off_target(
    rows: Prompts, names: Sequence[str], replies: Sequence[list[Reply]], plain: list[Reply]
) -> pd.DataFrame:
    lines = []
    for name in names:
        rule = read_behaviour(name)
        before = _read(rows, plain, rule)
        scale = float(before.std()) or 1.0
        for dial, texts in zip(np.linspace(0, 1, len(replies)), replies, strict=True):
            change = (_read(rows, texts, rule) - before).mean() / scale
            lines.append({"dial": float(dial), "attribute": name, "change": float(change)})
    return pd.DataFrame(lines, columns=["dial", "attribute", "change"])


def _table(
    values: np.ndarray, settings: np.ndarray, ends: np.ndarray, fluency: list[float], rows: Prompts, seed: int
) -> pd.DataFrame:
    means = values.mean(1)
    control = np.full(len(means), np.nan)
    if ends.size:
        control[0], control[-1] = ends.mean(1)
    return pd.DataFrame([
        {"dial": float(dial), "strength": float(strength), **scored(own, seed=seed, clusters=rows.clusters),
         "wanted": float(line), "control": float(random), "perplexity": price}
        for dial, strength, own, line, random, price in zip(
            np.linspace(0, 1, len(means)), settings, values, np.linspace(means[0], means[-1], len(means)), control,
            fluency, strict=True,
        )
    ])  # fmt: skip
