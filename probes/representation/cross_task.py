"""Which task's examples help with which other task, and whether their activations said so before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from scipy import stats

from probes.effects.answers import Measure, answer_scores
from probes.effects.panel import scored_line, table_of
from probes.effects.rewriting import column_of, joined, retexted, text_of, with_demonstrations
from probes.replay import counted
from probes.results import ProbeResult, Provenance
from workbench.argument_checks import check_pair
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.figures.series import labelled_points
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.recording.record_pair import record
from workbench.typing import Float

DRAWS = 1_000


@dataclass(frozen=True, kw_only=True)
class CrossTask(ProbeResult):
    """Gains of one task's examples on another's questions, and the similarity of their activations.

    ``table``: ``module`` is the task of the examples, ``group`` that of the questions, ``model``; score = gain over no
    examples with its interval, ``control`` = the gain of the same examples with their answers exchanged within the
    task, ``similarity`` at the best layer. ``by_layer``: model, layer, rho of similarity and gain over pairs of tasks,
    p by exchanging tasks (Mantel), and the similarity matrix's entries in ``similarities``.
    """

    by_layer: pd.DataFrame
    similarities: pd.DataFrame
    measured: str
    """What a gain is one of."""

    title: ClassVar[str] = "Cross-task examples"
    unit: ClassVar[str] = "gain over no examples"

    def figure(self) -> go.Figure:
        """The gain of every pair of tasks."""
        names = self.table["module"] + " for " + self.table["group"] + ", " + self.table["model"]
        return labelled_points(self.table.assign(pair=names), "pair", title=self.title, unit=self.unit)

    def summary(self) -> str:
        said = []
        for model, own in self.by_layer.groupby("model", sort=False):
            row = own.iloc[int(own["rho"].to_numpy().argmax())]
            said.append(
                f"{model}: rho {row['rho']:.2f} at layer {row['layer']:.0f} (tasks exchanged {row['control']:.2f}; p = "
                f"{row['p']:.2g} over all layers)"
            )
        row = self.frame().iloc[0]
        return (
            f"Similarity of activations against gain: {'; '.join(said)}. Best: examples of {row['module']} for "
            f"{row['group']} ({row['model']}), {row['score']:+.2g} [{row['low']:.2g}, {row['high']:.2g}] in "
            f"{self.measured}, control {row['control']:+.2g}. Control: {self.control}"
        )


@method(
    "cross-task",
    group="representation",
    question="Which other task's examples will help, and do activations tell?",
    papers=("Language Models can Exploit Cross-Task In-context Learning for Data-Scarce Novel Tasks",),
    needs=Needs(columns=("answer",)),
    cost="a recording, and two scored passes of each model per task of the examples",
    example="--tasks task",
)
def cross_task(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    tasks: str = "task",
    shots: int = 4,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> CrossTask:
    """Gain of every task's examples on every other task's questions, against the similarity of the tasks' activations.

    A task's vector is the mean last-token residual of its questions behind their own task's first example, less the
    mean over tasks; similarities are cosines per layer (Chatterjee et al. 2024). Whether they follow the gains is
    tested by exchanging whole tasks, the largest rho over layers against the largest of every exchange.

    Args:
        pair: Both models.
        prompts: Rows with answers, of three or more tasks.
        tasks: The column of the task.
        shots: Examples of the other task in front of each question.
        metric: What is scored.
        max_new_tokens: Length of a generated answer.
        seed: Of examples, exchanges and intervals.

    Returns:
        A :class:`CrossTask`.

    Raises:
        UserError: Fewer than three tasks, or too few rows for the examples.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    of = np.array([str(value) for value in column_of(rows, tasks, what="the task it belongs to")])
    names = list(dict.fromkeys(of.tolist()))
    if len(names) < 3:
        raise UserError(f"{len(names)} tasks make too few pairs to compare: give rows of three or more tasks.")
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    bar = progress or Silent()
    bar.start("cross-task", 2 * len(names))
    lines, layers, similar = [], [], []
    with counted(pair.base, pair.tuned) as passes:
        for role in ("base", "tuned"):
            model = pair.models[role]
            matrices = similarity(model, rows, of, names, batch_size, seed)
            own, gain = _gains(model, rows, of, names, shots, metric, options, seed, bar)
            table = _by_layer(matrices, gain, seed).assign(model=role)
            best = int(table["rho"].argmax())
            for line in own:
                place = names.index(line["module"]), names.index(line["group"])
                lines.append({**line, "model": role, "similarity": float(matrices[best][place])})
            layers.append(table)
            similar += [
                {"model": role, "layer": layer, "module": a, "group": b, "cosine": float(matrix[i, j])}
                for layer, matrix in enumerate(matrices) for i, a in enumerate(names) for j, b in enumerate(names)
            ]  # fmt: skip
    bar.finish()
    return CrossTask(
        table=table_of(lines),
        control="the same examples with their answers exchanged within the task",
        provenance=Provenance.of("cross_task", pair, rows, seed=seed, forward_passes=passes.forward),
        by_layer=pd.concat(layers, ignore_index=True),
        similarities=pd.DataFrame(similar),
        measured=metric,
    )  # fmt: skip


def similarity(
    model: AdaptedModel, rows: Prompts, of: np.ndarray, names: Sequence[str], batch_size: int, seed: int
) -> list[Float[np.ndarray, "task task"]]:
    """Per layer the cosines of the tasks' vectors."""
    made = list(rows)
    for name in names:
        places = np.flatnonzero(of == name)
        for place, row in zip(places, with_demonstrations(rows[places], rows[places], 1, seed), strict=True):
            made[int(place)] = row
    recording = record(model, Prompts(made), "resid_post", batch_size=batch_size)
    cosines = []
    for site in sorted(recording.sites, key=lambda key: Site.parse(key).layer or 0):
        states = recording[model.role][site][:].float()
        means = torch.stack([states[torch.from_numpy(of == name)].mean(0) for name in names])
        unit = torch.nn.functional.normalize(means - means.mean(0), dim=-1)
        cosines.append((unit @ unit.T).double().numpy())
    return cosines


def _gains(
    model: AdaptedModel, rows: Prompts, of: np.ndarray, names: Sequence[str], shots: int, metric: Measure,
    options: dict[str, Any], seed: int, bar: Progress,
) -> tuple[list[dict[str, Any]], Float[np.ndarray, "task task"]]:  # fmt: skip
    plain = answer_scores(model, rows, metric, **options)
    gain = np.full((len(names), len(names)), np.nan)
    lines = []
    for number, name in enumerate(names):
        pool = rows[np.flatnonzero(of == name)]
        answers = [str(row.answer) for row in pool]
        scores = [
            answer_scores(model, _behind_others(rows, pool, answers_shown, shots, seed), metric, **options)
            for answers_shown in (answers, list(np.roll(answers, 1)))
        ]
        for other, asked_ in enumerate(names):
            if other == number:
                continue
            own = of == asked_
            true, mixed = (score[own] - plain[own] for score in scores)
            gain[number, other] = float(true.mean())
            lines.append({**scored_line(asked_, model.role, true, mixed, rows.clusters[own], seed), "module": name})
        bar.advance()
    return lines, gain


def _behind_others(rows: Prompts, pool: Prompts, answers: Sequence[str], shots: int, seed: int) -> Prompts:
    """Every row behind examples of the pool, with these answers, as text in one turn."""
    if len(pool) < shots:
        raise UserError(f"{shots} examples were asked for and a task has {len(pool)} rows: give more rows.")
    random = np.random.default_rng(seed)
    made = []
    for row in rows:
        choice = random.choice(len(pool), shots, replace=False)
        before = "".join(f"{joined(text_of(pool[int(n)]), answers[int(n)])}\n\n" for n in choice)
        made.append(retexted(row, before + text_of(row)))
    return Prompts(made)


def _by_layer(matrices: Sequence[np.ndarray], gain: np.ndarray, seed: int) -> pd.DataFrame:
    """Per layer rho of similarity and gain; p of the largest over layers, tasks exchanged."""
    rho = [_rho(matrix, gain) for matrix in matrices]
    random, null = np.random.default_rng(seed), []
    for _ in range(DRAWS):
        order = random.permutation(len(gain))
        null.append(max(_rho(matrix[order][:, order], gain) for matrix in matrices))
    p = (1 + sum(value >= max(rho) - 1e-12 for value in null)) / (1 + DRAWS)
    return pd.DataFrame({"layer": range(len(rho)), "rho": rho, "p": p, "control": float(np.mean(null))})


def _rho(matrix: np.ndarray, gain: np.ndarray) -> float:
    apart = ~np.eye(len(gain), dtype=bool)
    x, y = matrix[apart], gain[apart]
    return 0.0 if np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12 else float(stats.spearmanr(x, y).statistic)
