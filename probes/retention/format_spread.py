"""How much of a model's accuracy is the format of the prompt, before and after tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
from scipy import stats

from probes.effects.answers import Measure, answer_scores
from probes.effects.panel import CHANGE, EffectPanel, columns_by_role, scored_line, table_of
from probes.effects.rewriting import retexted, text_of, with_demonstrations
from probes.halves import halves
from probes.replay import counted
from probes.results import Provenance
from probes.retention.formats import Format, Searched, atomic_edits, sampled_formats, search_extremes
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.method_options import Within
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.recording.record_pair import record

SPREAD = "spread (best - worst)"


@dataclass(frozen=True, kw_only=True)
class FormatSpread(EffectPanel):
    """Best and worst format of each model, and the spread between them on prompts that the search did not see.

    ``table``: group "usual", "best", "worst", "spread (best - worst)" and single edits ("separator: ..."). ``formats``:
    every format with how often it was tried and how many were right, per model.
    """

    formats: pd.DataFrame

    title: ClassVar[str] = "Format spread"


@method(
    "format-spread",
    group="retention",
    question="How far does accuracy move with nothing but the prompt's format, before and after tuning?",
    papers=(
        "Quantifying Language Models' Sensitivity to Spurious Features in Prompt Design or: How I learned to start "
        "worrying about prompt formatting",
    ),
    needs=Needs(columns=("answer",)),
    cost="the budget in scored prompts of each model, and a few formats on half of the prompts",
    example="--formats 12 --budget 400",
)
def format_spread(  # noqa: PLR0913 (a public call)
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    formats: int = 12,
    budget: int = 400,
    batch: int = 8,
    shots: Annotated[int, Within(0, None)] = 0,
    atomic: bool = False,
    separability: bool = False,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> FormatSpread:
    """Spread of accuracy over formats that mean the same, of each model (Sclar et al. 2024).

    A grammar writes each question with other descriptors, casing, separators and joints. Thompson sampling finds each
    model's best and worst of ``formats`` on half of the prompts; both are scored on the other half, so that a model
    that ignores format has spread 0 there. The control is the mean absolute gap of formats drawn at random, on the same
    half.

    Args:
        pair: Both models.
        prompts: Questions with answers, as bare text: the format brings its own Question and Answer.
        formats: How many formats are drawn from the grammar, the usual one included.
        budget: Prompts scored in the search, per model.
        batch: Prompts per trial of a format.
        shots: Examples in the same format in front of each question.
        atomic: Whether every single change of the usual format is scored by itself.
        separability: Whether formats are told apart by the last token's final residual (a nearest-centroid probe).
        metric: What is scored; values must lie in 0..1.
        max_new_tokens: Length of a generated answer.
        seed: Of formats, halves, search and intervals.

    Returns:
        A :class:`FormatSpread`; ``numbers`` holds the rank correlation of the formats' accuracies between the models.

    Raises:
        UserError: Too few prompts to search on one half and score on the other, or a metric outside 0..1.
    """
    check_pair(pair, prompts)
    if metric == "answer":
        raise UserError("The bandit counts rights and wrongs: choose a metric between 0 and 1, such as accuracy.")
    rows = Prompts.of(prompts)
    search, report = halves(rows, seed)
    sampled = sampled_formats(formats, seed)
    options: dict[str, Any] = {"metric": metric, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    bar = progress or Silent()
    bar.start("format spread", 2)
    searched, lines, tables = {}, {}, []
    with counted(pair.base, pair.tuned) as passes:
        for role in ("base", "tuned"):
            trial = _Trial(pair.models[role], search, report, shots, seed, options)
            searched[role] = trial.searched(sampled, budget, batch)
            lines[role] = trial.lines(sampled, searched[role], atomic)
            tables.append(_formats(role, sampled, searched[role]))
            bar.advance()
        numbers = _numbers(searched)
        if separability:
            numbers |= _separability(pair, report, sampled, shots, seed, batch_size)
    bar.finish()
    table = table_of(_table_lines(lines, report.clusters, seed))
    return FormatSpread(
        table=table,
        control="formats drawn at random, on the same prompts: their mean absolute gap",
        provenance=Provenance.of("format_spread", pair, rows, seed=seed, forward_passes=passes.forward),
        values=columns_by_role(lines),
        measured=metric,
        heading="Format spread",
        numbers=numbers,
        formats=pd.concat(tables, ignore_index=True),
    )  # fmt: skip


def formatted(rows: Prompts, form: Format, shots: int, seed: int, pool: Prompts | None = None) -> Prompts:
    """Every row written in a format, behind examples in the same one. Answers follow without a space of their own."""

    def write(own: Prompts) -> Prompts:
        return Prompts([retexted(row, form.write(text_of(row))) for row in own])

    return with_demonstrations(write(rows), write(rows if pool is None else pool), shots, seed)


class _Trial:
    """One model's scores of formats."""

    def __init__(
        self, model: AdaptedModel, search: Prompts, report: Prompts, shots: int, seed: int, options: dict[str, Any]
    ) -> None:
        self.model, self.search, self.report = model, search, report
        self.shots, self.seed, self.options = shots, seed, options

    def searched(self, sampled: Sequence[Format], budget: int, batch: int) -> Searched:
        def pull(arm: int, numbers: np.ndarray) -> np.ndarray:
            asked_ = formatted(self.search[numbers], sampled[arm], self.shots, self.seed, self.search)
            return answer_scores(self.model, asked_, **self.options)

        return search_extremes(pull, len(sampled), len(self.search), budget=budget, batch=batch, seed=self.seed)

    def reported(self, form: Format) -> np.ndarray:
        return answer_scores(self.model, formatted(self.report, form, self.shots, self.seed), **self.options)

    def lines(self, sampled: Sequence[Format], searched: Searched, atomic: bool) -> dict[str, np.ndarray]:
        """Score by prompt of the formats that are reported; "random gap" is the control's, by prompt."""
        usual, best, worst = (
            self.reported(sample) for sample in (sampled[0], sampled[searched.best], sampled[searched.worst])
        )
        random = np.random.default_rng(self.seed + 7)
        drawn = [
            self.reported(sampled[int(n)]) for n in random.choice(len(sampled), min(4, len(sampled)), replace=False)
        ]
        gaps = [abs(float(a.mean() - b.mean())) for n, a in enumerate(drawn) for b in drawn[n + 1 :]]
        own = {"usual": usual, "best": best, "worst": worst, SPREAD: best - worst,
               "random gap": np.full(len(usual), float(np.mean(gaps)))}  # fmt: skip
        if atomic:
            for element, form in atomic_edits(sampled[0]):
                own[f"{element}: {form.name}"] = self.reported(form) - usual
        return own


def _table_lines(lines: dict[str, dict[str, np.ndarray]], clusters: np.ndarray, seed: int) -> list[dict[str, Any]]:
    spread_lines = []
    for role, own in lines.items():
        gap = float(own["random gap"][0])
        for name, values in own.items():
            if name == "random gap":
                continue
            line = scored_line(name, role, values, 0.0, clusters, seed)
            spread_lines.append({**line, "control": gap} if name == SPREAD else line)
    change = lines["tuned"][SPREAD] - lines["base"][SPREAD]
    apart = float(lines["tuned"]["random gap"][0] - lines["base"]["random gap"][0])
    return [*spread_lines, {**scored_line(SPREAD, CHANGE, change, 0.0, clusters, seed), "control": apart}]


def _formats(role: str, sampled: Sequence[Format], searched: Searched) -> pd.DataFrame:
    return pd.DataFrame({"model": role, "format": [sample.name for sample in sampled], "tried": searched.tried,
                         "right": searched.right})  # fmt: skip


def _numbers(searched: dict[str, Searched]) -> dict[str, float]:
    both = [searched[role] for role in ("base", "tuned")]
    known = (both[0].tried > 0) & (both[1].tried > 0)
    means = [(arm.right / np.maximum(arm.tried, 1))[known] for arm in both]
    flat = known.sum() < 3 or any(np.ptp(mean) == 0 for mean in means)
    rho = float("nan") if flat else float(stats.spearmanr(*means).statistic)
    return {"correlation of formats between the models": rho}


def _separability(
    pair: ModelPair, rows: Prompts, sampled: Sequence[Format], shots: int, seed: int, batch_size: int
) -> dict[str, float]:
    """Share of held-out rows whose format the nearest centroid names, from the last token's final residual."""
    made = [formatted(rows, form, shots, seed) for form in sampled]
    recording = record(pair, Prompts([row for own in made for row in own]), "resid_post", layers=[-1],
                       batch_size=batch_size)  # fmt: skip
    of = np.repeat(np.arange(len(sampled)), len(rows))
    even = np.tile(np.arange(len(rows)) % 2 == 0, len(sampled))
    shares = {"formats told apart by chance": 1 / len(sampled)}
    for role in ("base", "tuned"):
        states = recording[role][recording.sites[0]][:].float().numpy()
        centres = np.stack([states[even & (of == number)].mean(0) for number in range(len(sampled))])
        held, truth = states[~even], of[~even]
        named = np.linalg.norm(held[:, None] - centres[None], axis=-1).argmin(1)
        shares[f"formats told apart, {role}"] = float((named == truth).mean())
    return shares
