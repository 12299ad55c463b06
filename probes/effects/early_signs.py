"""Whether the first steps of a training run say how it ends: gradient norm and loss early, beside the final change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from interventions.training.log import STEPS
from probes.effects.panel import EffectPanel, table_of
from probes.replay import counted
from probes.results import Provenance
from probes.series.answers import pair_members, updates_of
from workbench.argument_checks import check_pair
from workbench.behaviour.continuations import score_continuations
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts

FEWEST = 4
DRAWS = 5_000
OUTCOMES = ("size of the change", "answers (nats per token)")


@method(
    "early-signs",
    group="effects",
    question="Did the first steps of the training runs say how they would end?",
    papers=("Unveiling the Secret Recipe: A Guide For Supervised Fine-Tuning Small LLMs",),
    needs=Needs(columns=("answer",)),
    cost="one scored pass of the base per run; the logs are read",
    example="--runs ./run_a,./run_b,./run_c,./run_d",
)
def early_signs(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    runs: Sequence[str] = (),
    early: float = 0.1,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> EffectPanel:
    """Gradient norm and loss over the first steps of each run, against the run's final change and answers (Pareja et
    al. 2024).

    A run is a folder that transformers' Trainer or a training of ours saved: weights or adapter, and its log,
    trainer_state.json. Signs are the mean gradient norm, the mean loss and the fall of the loss in the first ``early``
    part of the logged steps; outcomes are the size of the change (its norm over all tensors) and the log-probability of
    held-out answers. The score is Spearman's rho over the runs. The control is the same sign read from the last part of
    the log, which knows the end.

    Args:
        pair: The base of all runs, and one tuned model (of which only the base is read).
        prompts: Held-out rows with answers.
        runs: Folders of four or more runs from the base.
        early: Part of the logged steps that counts as early.
        seed: Of the resamples of runs and the permutations.

    Returns:
        An :class:`EffectPanel`; ``group`` is "sign against outcome"; ``values`` has a line per run.

    Raises:
        UserError: Fewer than four runs, or a run without a log of losses.
    """
    check_pair(pair, prompts)
    if len(runs) < FEWEST:
        raise UserError(
            f"{len(runs)} runs cannot be ranked: give {FEWEST} or more folders of trained models with their log."
        )
    if not 0 < early <= 0.5:
        raise UserError(f"early is {early}: give a part of the steps above 0, up to 0.5.")
    rows = Prompts.of(prompts)
    logs = [read_log(Path(run)) for run in runs]
    bar = progress or Silent()
    bar.start("early signs", len(runs))
    outcomes = []
    with counted(pair.base) as passes:
        vectors, models = updates_of(pair.base, pair_members(pair, list(runs)))
        for vector in list(vectors.values())[: len(runs)]:
            size = sum(float(vector.changes[name].double().square().sum()) for name in vector.changes) ** 0.5
            with vector.graft(pair.base).entered(pair.base):
                continuations = score_continuations(Subject("base", pair.base), rows, ["answer"], Work(batch_size))
            outcomes.append({OUTCOMES[0]: size, OUTCOMES[1]: float(continuations["answer"].mean())})
            bar.advance()
    bar.finish()
    signs = pd.DataFrame([signs_of(log, early) for log in logs])
    ends = pd.DataFrame([signs_of(log.iloc[::-1], early) for log in logs])
    after = pd.DataFrame(outcomes)
    return EffectPanel(
        table=table_of(sign_lines(signs, ends, after, seed)),
        control="the same sign read from the end of the log",
        provenance=Provenance.of(
            "early_signs", models, rows, seed=seed, device=str(pair.base.device), forward_passes=passes.forward,
        ),
        values=pd.concat([pd.Series(list(map(str, runs)), name="run"), signs, after], axis=1),
        measured="Spearman's rho over runs",
        heading="Early signs of the outcome",
    )  # fmt: skip


def read_log(run: Path) -> pd.DataFrame:
    """step, loss, grad_norm of a run, in order of steps."""
    path = run / STEPS
    if not path.is_file():
        raise UserError(f"{run} holds no {STEPS}: give a folder that transformers' Trainer or `tunescope train` saved.")
    try:
        history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
        rows = [{"step": entry["step"], "loss": entry["loss"], "grad_norm": entry.get("grad_norm", np.nan)}
                for entry in history if "loss" in entry]  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no log of a Trainer ({type(error).__name__}): save the run again.") from error
    if len(rows) < 4:
        raise UserError(f"{path} has {len(rows)} logged losses and four are needed: train with logging_steps=1.")
    return pd.DataFrame(rows).astype(float).sort_values("step", ignore_index=True)


def signs_of(log: pd.DataFrame, early: float) -> dict[str, float]:
    """Mean gradient norm and loss of the first rows, and the loss's fall from the first to the last of them."""
    first = log.head(max(2, round(early * len(log))))
    fall = float(first["loss"].iloc[0] - first["loss"].iloc[-1])
    return {
        "gradient norm": float(first["grad_norm"].mean()),
        "loss": float(first["loss"].mean()),
        "fall of the loss": fall,
    }


def sign_lines(signs: pd.DataFrame, ends: pd.DataFrame, after: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    """Rho of every sign and outcome, runs resampled for the interval and exchanged for p."""
    random, n = np.random.default_rng(seed), len(signs)
    drawn, orders = random.integers(0, n, (DRAWS, n)), np.array([random.permutation(n) for _ in range(DRAWS)])
    lines = []
    for sign in signs:
        x, late = signs[sign].to_numpy(), ends[sign].to_numpy()
        if np.isnan(x).any():
            continue
        for outcome in after:
            y = after[outcome].to_numpy()
            rho = _rho(x, y)
            again = [_rho(x[draw], y[draw]) for draw in drawn[:1_000]]
            ranks = stats.rankdata(x), stats.rankdata(y)
            null = [_pearson(ranks[0], ranks[1][order]) for order in orders]
            low, high = np.quantile(again, (0.025, 0.975))
            reached = sum(abs(value) >= abs(rho) - 1e-12 for value in null)
            lines.append({
                "group": f"{sign} against {outcome}", "model": "tuned", "score": rho, "low": low, "high": high,
                "control": _rho(late, y), "p": (1 + reached) / (1 + DRAWS), "n": n,
            })  # fmt: skip
    return lines


def _rho(first: np.ndarray, second: np.ndarray) -> float:
    return _pearson(stats.rankdata(first), stats.rankdata(second))


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
    x, y = first - first.mean(), second - second.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else 0.0
