"""A calibrated dial: an attribute turned from 0 to 1, with its range, calibration and consistency (smooth control)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from probes.attributes.dial_calibration import POINTS, REACHES, Curve, curve_of, read
from probes.attributes.dial_result import IntensityDial
from probes.attributes.dial_texts import DialTexts, Turned, control_texts
from probes.attributes.text_states import mean_size, text_states
from probes.halves import halves
from probes.replay import counted
from probes.resampling import bootstrap_weights, units_of
from probes.results import Provenance
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

DRAWS = 1_000


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
        "23 texts per two prompts as it stands: 7 samples and 6 strengths of the one, 6 settings and 4 random "
        "directions of the other; it says how many before the first, and --dry-run --timed how long they take"
    ),
    example="--attribute punctuation --samples 4 --max-new-tokens 8",
)
def intensity_dial(  # noqa: PLR0913
    subject: Any,
    prompts: Prompts | Sequence[object],
    attribute: str = "length",
    *,
    layers: Any = 0.5,
    reach: float = 0.4,
    dearest: float = 3.0,
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
    There too strengths up to ``reach`` either way are tried: the dial goes from the fluent texts with least of the
    attribute to those with most, so it may lie on one side of the plain texts alone, and in equal steps of the
    attribute between. On the other half range, calibration, consistency and monotonicity are measured, and for either
    side of the plain texts whether it has any range (``sides``).

    AttriCtrl learns an embedding of the value in [0, 1] for an image model. Carried over is the scalar in [0, 1] with a
    learned map to what is added to the states (a strength along one direction), and the two checks of it.

    Args:
        subject: A model, or a pair (its tuned model).
        prompts: What the texts answer.
        attribute: What is turned: length, readability, punctuation, pronouns, or any behaviour of a text.
        layers: Where the offset may act: indices or fractions of depth; of several, the one with the longest range on
            the choosing half.
        reach: The largest strength either way, in mean norms of the site.
        dearest: The largest perplexity of fluent texts under the plain model, in multiples of the plain texts'.
        samples: Sampled texts per prompt, from which the direction is found.
        off_target: Other attributes whose change is reported; by default readability, repetition and variety.
        controls: Random directions, of which each prompt meets two; 0: none.
        max_new_tokens: Tokens of a text at most.
        batch_size: Texts per forward pass.
        seed: Of halves, samples, random directions and resampling.

    Returns:
        An :class:`IntensityDial`; ``.recipe(0.7)`` is the recipe at a setting.

    Raises:
        UserError: An attribute that never varies in the samples, fewer than two samples, a reach of 0, or a ``dearest``
            below 1.
    """
    check_subject(subject)
    model: AdaptedModel = getattr(subject, "tuned", subject)
    if samples < 2 or not reach > 0:
        raise UserError("Give two samples or more, so that texts of a prompt can differ, and a reach above 0.")
    if dearest < 1:
        raise UserError(f"dearest is {dearest}: plain texts have 1 by definition, so give 1 or more.")
    if controls:
        check_draws(controls)
    rule = read_behaviour(attribute)
    others = ["readability", "repetition", "variety"] if off_target is None else off_target
    places = resolve_layers(layers, model.n_layers)
    rows = Prompts.of(prompts)
    choosing, reported = halves(rows, seed)
    plan = _Plan(len(choosing), len(reported), samples, controls, len(places))
    bar = progress or Silent()
    bar.start(f"intensity dial: {plan.texts} texts of up to {max_new_tokens} tokens", plan.batches(batch_size))
    work = Work(batch_size, JoinedProgress(bar))
    with counted(model) as passes:
        drafts = _samples(model, choosing, rule, places, Decoding(max_new_tokens, samples, seed=seed), work)
        place, vector, curve = _best_layer(model, choosing, rule, places, drafts, reach, dearest, max_new_tokens, work)
        drawn = list(random_directions(vector, draws=controls, seed=seed)) if controls else []
        trial = DialTexts(model, place, [vector, *drawn], max_new_tokens, work)
        settings = curve.settings()
        replies, plain, ends = _reported(trial, reported, rule, settings)
        values = np.array([read(reported, reply, rule) for reply in replies])
        off = _off_target(reported, [other for other in others if other != rule.name], replies, plain)
        fluency = trial.perplexities(reported, replies)
    bar.finish()
    cut = [_cut(texts) for texts in replies]
    return IntensityDial(
        table=_table(values, settings, ends, fluency, cut, reported, seed),
        control=f"{controls} random directions of the same norm, each prompt under two of them or more",
        provenance=Provenance.of("intensity_dial", model, rows, seed=seed, forward_passes=passes.forward),
        attribute=rule.name, numbers=_numbers(values / drafts.sd, ends / drafts.sd, reported, seed),
        sides=_sides(values, read(reported, plain, rule), ends, drafts.sd, settings, cut, reported, seed),
        plain_cut=_cut(plain), off_target=off, layer=place, vector=vector,
        settings=[float(setting) for setting in settings], resampled=units_of(reported.clusters),
    )  # fmt: skip


@dataclass(frozen=True)
class _Plan:
    """How much is written."""

    choosing: int
    reported: int
    samples: int
    controls: int
    layers: int

    @property
    def loops(self) -> tuple[int, ...]:
        """Texts of each loop: samples, calibration of each layer, report."""
        control = len(control_texts(self.reported, self.controls, (0.0, 1.0))) if self.controls else 0
        calibration = [(len(REACHES) - 1) * self.choosing] * self.layers
        return (self.samples + 1) * self.choosing, *calibration, (POINTS + 1) * self.reported + control

    @property
    def texts(self) -> int:
        """All of them."""
        return sum(self.loops)

    def batches(self, batch_size: int) -> int:
        """Batches that are written or, at the end, read."""
        readings = [len(REACHES) * self.choosing] * self.layers + [POINTS * self.reported]
        return sum(-(-texts // batch_size) for texts in (*self.loops, *readings))


@dataclass(frozen=True)
class _Samples:
    """What the model writes by itself on the choosing half."""

    greedy: list[Reply]
    slopes: Float[Tensor, "layer d_model"]
    """Covariance of the attribute and the texts' mean states, within prompts."""
    sizes: list[float]
    """The mean norm of the states, by layer."""
    sd: float
    """Of the attribute in samples."""


def _samples(
    model: AdaptedModel, rows: Prompts, rule: Behaviour, layers: Sequence[int], decoding: Decoding, work: Work
) -> _Samples:
    """Sampled texts, their attribute and the direction in which their states vary with it.

    Raises:
        UserError: The attribute never varies within a prompt.
    """
    ids = encode(rows, model.tokenizer, model.max_positions)
    drawn = generate_replies(Subject("samples", model), rows, decoding, work)
    texts = [list(reply.ids) for replies in drawn for reply in replies[1:]]
    before = [row for row, replies in zip(ids, drawn, strict=True) for _ in replies[1:]]
    scores = np.array([
        [rule(reply.text, row) for reply in replies[1:]] for row, replies in zip(rows, drawn, strict=True)
    ])  # fmt: skip
    centred = torch.from_numpy(scores - scores.mean(1, keepdims=True)).float()
    if not bool(centred.any()):
        raise UserError(f"{rule.name} is the same in all samples of every prompt, so nothing shows its direction.")
    flat = text_states(model, before, texts, layers, work.batch_size)
    states = flat.unflatten(0, scores.shape)
    slopes = torch.einsum("ps,psld->ld", centred, states - states.mean(1, keepdim=True))
    sizes = [mean_size(flat[:, place]) for place in range(len(layers))]
    return _Samples([replies[0] for replies in drawn], slopes, sizes, float(scores.std()) or 1.0)


def _best_layer(
    model: AdaptedModel, rows: Prompts, rule: Behaviour, layers: Sequence[int], drafts: _Samples, reach: float,
    dearest: float, max_new_tokens: int, work: Work,
) -> tuple[int, Tensor, Curve]:  # fmt: skip
    """(layer, one mean norm along its direction, response curve) where the range is longest.

    Raises:
        UserError: States vary with the attribute at no layer.
    """
    candidates: list[tuple[int, Tensor, Curve]] = []
    for layer, slope, size in zip(layers, drafts.slopes, drafts.sizes, strict=True):
        if bool(slope.any()):
            vector = slope / slope.norm() * size
            writer = DialTexts(model, layer, [vector], max_new_tokens, work)
            candidates.append(
                (layer, vector, curve_of(writer, rows, rule, drafts.greedy, reach=reach, dearest=dearest))
            )
    if not candidates:
        raise UserError(f"States do not vary with {rule.name} at layer {layers[0]}: choose another layer.")
    return max(candidates, key=lambda candidate: candidate[2].range)


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


def _cut(replies: Sequence[Reply]) -> float:
    """The share of texts that the limit of new tokens ended."""
    return float(np.mean([not reply.ended for reply in replies]))


def _sides(
    values: Float[np.ndarray, "point prompt"], plain: Float[np.ndarray, " prompt"],
    ends: Float[np.ndarray, "end prompt"], sd: float, settings: np.ndarray, cut: list[float], rows: Prompts, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """How far the dial's ends lie from the plain texts, to the side that they are for."""
    lines: list[dict[str, Any]] = []
    for side, end, sign in (("less", 0, -1.0), ("more", -1, 1.0)):
        own = scored(sign * (values[end] - plain) / sd, seed=seed, clusters=rows.clusters)
        control = float((sign * (ends[end] - plain) / sd).mean()) if ends.size else float("nan")
        usable = own["low"] > 0 and not own["score"] <= control
        lines.append({"side": side, "strength": float(settings[end]), **own, "control": control, "usable": usable,
                      "cut": cut[end]})  # fmt: skip
    return pd.DataFrame(lines)


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
        before = read(rows, plain, rule)
        scale = float(before.std()) or 1.0
        for dial, texts in zip(np.linspace(0, 1, len(replies)), replies, strict=True):
            change = (read(rows, texts, rule) - before).mean() / scale
            lines.append({"dial": float(dial), "attribute": name, "change": float(change)})
    return pd.DataFrame(lines, columns=["dial", "attribute", "change"])


def _table(
    values: np.ndarray, settings: np.ndarray, ends: np.ndarray, fluency: list[float], cut: list[float], rows: Prompts,
    seed: int,
) -> pd.DataFrame:  # fmt: skip
    means = values.mean(1)
    control = np.full(len(means), np.nan)
    if ends.size:
        control[0], control[-1] = ends.mean(1)
    return pd.DataFrame([
        {"dial": float(dial), "strength": float(strength), **scored(own, seed=seed, clusters=rows.clusters),
         "wanted": float(line), "control": float(random), "perplexity": price, "cut": share}
        for dial, strength, own, line, random, price, share in zip(
            np.linspace(0, 1, len(means)), settings, values, np.linspace(means[0], means[-1], len(means)), control,
            fluency, cut, strict=True,
        )
    ])  # fmt: skip
