"""A counter-test for "sparse models calibrate better": dense and pruned models under two light readers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch

from interventions.training.soft_prompt import train_soft_prompt
from interventions.training.trainer import Schedule
from probes.effects.panel import EffectPanel, table_of
from probes.effects.rewriting import column_of
from probes.halves import in_first_half
from probes.representation.classifier import held_out_probabilities
from probes.resampling import bootstrap_weights
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.behaviour.calibration import BINS, calibration_error
from workbench.behaviour.scores import next_token_logits
from workbench.engine.families import submodule
from workbench.errors import UserError
from workbench.method_options import Within
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.answers import answer_tokens
from workbench.prompts.collection import Prompts
from workbench.recording.record_pair import record

DRAWS = 1_000
DENSE = "dense"


@method(
    "calibration-counter-test",
    group="effects",
    question="Does keeping fewer weights calibrate a model better, or worse?",
    papers=("Reprogramming under constraints: Revisiting efficient and reliable transferability of lottery tickets",),
    needs=Needs(columns=("answer",)),
    cost="a recording, and a short training of a soft prompt, of each model at each sparsity",
    example="--sparsities 0.5,0.9",
)
def calibration_counter_test(  # noqa: PLR0913 (a public call)
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    sparsities: Annotated[Sequence[float], Within(0, 1)] = (0.5, 0.9),
    reprogram: bool = True,
    tokens: int = 4,
    epochs: int | float = 5,
    folds: int = 5,
    ridge: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> EffectPanel:
    """Expected calibration error of dense and magnitude-pruned models, read by a linear probe and by a soft prompt.

    Each model keeps its largest weights (layer by layer, the lottery ticket's mask at its start); the rest are 0 while
    it is read. A linear probe on the last token's final residual and a soft prompt trained on half of the prompts (the
    language model's form of visual reprogramming) classify the prompts by their answers, always held out (Misra et
    al. 2023 find dense models calibrated better under both). The control keeps as many weights at random.

    Args:
        pair: Both models.
        prompts: Rows whose answers are a few classes.
        sparsities: Shares of the layers' weights that are set to 0.
        reprogram: Whether the soft prompt is trained as well.
        tokens: Vectors of the soft prompt.
        epochs: Passes over its training half.
        folds: Folds of the linear probe.
        ridge: Strength of its L2 penalty.
        seed: Of folds, halves, training, controls and intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is "ECE, linear probe, 50 % pruned", ..., with accuracies beside and
        "pruned - dense" lines that decide.

    Raises:
        UserError: Answers of one class only, or too few prompts.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    classes = np.unique([str(value) for value in column_of(rows, "answer")], return_inverse=True)[1]
    if classes.max() < 1:
        raise UserError("All rows have one answer, which nothing need be read for: give rows of two or more classes.")
    bar = progress or Silent()
    levels = [0.0, *sorted(set(sparsities) - {0.0})]
    bar.start("calibration", 2 * (2 * len(levels) - 1))
    readings: dict[tuple[str, str, float, bool], tuple[np.ndarray, np.ndarray]] = {}
    for role in ("base", "tuned"):
        model = pair.models[role]
        for level in levels:
            for random in (False, True) if level else (False,):
                with pruned(model, level, random=random, seed=seed):
                    for reader, both in _read(model, rows, classes, reprogram, tokens, epochs, folds, ridge, batch_size,
                                              seed).items():  # fmt: skip
                        readings[role, reader, level, random] = both
                bar.advance()
    bar.finish()
    return EffectPanel(
        table=table_of(calibration_lines(readings, rows.clusters, seed)),
        control="as many weights kept at random",
        provenance=Provenance.of("calibration_counter_test", pair, rows, seed=seed),
        values=pd.DataFrame({
            f"{role}, {reader}, {level:g}{', random' if random else ''}, {name}": pd.Series(values)
            for (role, reader, level, random), both in readings.items()
            for name, values in zip(("confidence", "right"), both, strict=True)
        }),
        measured="expected calibration error, or a share",
        heading="Calibration of dense and pruned models",
    )  # fmt: skip


@contextmanager
def pruned(model: AdaptedModel, sparsity: float, *, random: bool = False, seed: int = 0) -> Iterator[None]:
    """Set the smallest (or random) entries of every matrix of the layers to 0, until the context is left."""
    originals: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    generator = torch.Generator().manual_seed(seed)
    layers = submodule(model.inner, model.hub.family.layers)
    try:
        for parameter in layers.parameters():
            if parameter.ndim < 2 or not sparsity:
                continue
            count = int(sparsity * parameter.numel())
            size = (
                torch.rand(parameter.shape, generator=generator) if random else parameter.detach().abs().float().cpu()
            )
            limit = size.flatten().kthvalue(max(1, count)).values
            originals.append((parameter, parameter.detach().clone()))
            with torch.no_grad():
                parameter.masked_fill_((size <= limit).to(parameter.device), 0.0)
        yield
    finally:
        with torch.no_grad():
            for parameter, before in originals:
                parameter.copy_(before)


def _read(  # noqa: PLR0913 (how both readers read)
    model: AdaptedModel, rows: Prompts, classes: np.ndarray, reprogram: bool, tokens: int, epochs: int | float,
    folds: int, ridge: float, batch_size: int, seed: int,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Reader -> (confidence, right) by prompt, held out."""
    recording = record(model, rows, "resid_post", layers=[-1], batch_size=batch_size)
    states = recording[model.role][recording.sites[0]][:].float()
    chance = held_out_probabilities(states, classes, rows.clusters, folds, ridge, seed)
    readings = {"linear probe": (chance.max(1), (chance.argmax(1) == classes).astype(float))}
    if reprogram:
        readings["soft prompt"] = _reprogrammed(model, rows, classes, tokens, epochs, batch_size, seed)
    return readings


def _reprogrammed(
    model: AdaptedModel,
    rows: Prompts,
    classes: np.ndarray,
    tokens: int,
    epochs: int | float,
    batch_size: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(confidence, right) of the answers' first tokens behind a soft prompt trained on the other half."""
    inside = in_first_half(rows, seed)
    words = answer_tokens(rows, model.tokenizer).answer
    of_class = torch.stack([words[int(np.flatnonzero(classes == number)[0])] for number in range(classes.max() + 1)])
    confidence, right = np.zeros(len(rows)), np.zeros(len(rows))
    for train, test in ((inside, ~inside), (~inside, inside)):
        soft = train_soft_prompt(model, rows[train], tokens=tokens, also_read=[rows[test]],
                                 schedule=Schedule(epochs=epochs, seed=seed))  # fmt: skip
        logits = next_token_logits(model, soft.before(rows[test], model.tokenizer), soft, batch_size)
        among = logits[:, of_class].softmax(-1).numpy()
        confidence[test], right[test] = among.max(1), among.argmax(1) == classes[test]
    return confidence, right


def calibration_lines(
    readings: dict[tuple[str, str, float, bool], tuple[np.ndarray, np.ndarray]], clusters: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    """ECE and accuracy of every model, and pruned - dense; p from resamples, controls from the random masks."""
    n = len(clusters)
    weights = np.concatenate([np.ones((1, n)), bootstrap_weights(n, DRAWS, seed, clusters)])
    error = {key: calibration_error(weights, *both, BINS) for key, both in readings.items()}
    right = {key: (weights @ both[1]) / weights.sum(1) for key, both in readings.items()}
    lines = []
    for role, reader, level, random in readings:
        if random:
            continue
        name = f"{reader}, {f'{level:.0%} pruned' if level else DENSE}"
        key, beside = (role, reader, level, False), (role, reader, level, bool(level))
        for what, values in (("ECE", error), ("accuracy", right)):
            lines.append(_line(f"{what}, {name}", role, values[key], float(values[beside][0]), n, None))
        if level:
            dense = (role, reader, 0.0, False)
            apart, control = error[key] - error[dense], float((error[beside] - error[dense])[0])
            lines.append(_line(f"ECE, {name} - dense", role, apart, control, n, 0.0))
    return lines


def _line(group: str, model: str, drawn: np.ndarray, control: float, n: int, null: float | None) -> dict[str, Any]:
    low, high = np.quantile(drawn[1:], (0.025, 0.975))
    p = np.nan
    if null is not None:
        sides = min(int((drawn[1:] <= null).sum()), int((drawn[1:] >= null).sum()))
        p = min(1.0, 2 * (1 + sides) / len(drawn))
    return {"group": group, "model": model, "score": float(drawn[0]), "low": low, "high": high, "control": control,
            "p": p, "n": n}  # fmt: skip
