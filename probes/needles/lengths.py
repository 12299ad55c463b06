"""Whether the heads that retrieve after long-context training are those that did before, length by length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from probes.call_settings import call_settings
from probes.comparison import overlap
from probes.needles.heads import RetrievalOptions, ScoredTrials, scored_trials
from probes.needles.search import as_needles
from probes.needles.trials import QUESTION, Needle, Trial, check_template, contents, needle_trials
from probes.resampling import bootstrap_weights, interval
from probes.results import ProbeResult, Provenance
from probes.scored import with_q
from workbench.argument_checks import check_pair
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress, Silent

DRAWS, PERMUTATIONS = 500, 2000


@dataclass(frozen=True, kw_only=True)
class SameHeads(ProbeResult):
    """Retrieval before and after, by length.

    ``table``: ``module`` names the length; ``score``, the rank correlation over heads of the tuned model's retrieval
    scores at this length with the base's at the shortest length that it answers, with interval over needles;
    ``control``, the same with heads exchanged at random, ``q``; ``base_answered`` and ``tuned_answered``, shares of
    trials; ``shared`` of the ``best`` heads, beside ``chance``. NaN where the tuned model answers nothing.
    """

    reference: int
    """The length at which the base's map was taken."""

    title: ClassVar[str] = "Retrieval heads before and after"
    unit: ClassVar[str] = "rank correlation with the base's heads"

    def summary(self) -> str:
        """Each length."""
        lines = [
            f"{row['module']} tokens: base answers {row['base_answered']:.0%}, tuned {row['tuned_answered']:.0%}, "
            + ("no map" if np.isnan(row["score"]) else
               f"rho {row['score']:.2f} [{row['low']:.2f}, {row['high']:.2f}] (control {row['control']:.2f}), "
               f"{row['shared']:.0f} of "
               f"{row['best']:.0f} best heads shared (chance {row['chance']:.1f}), q = {row['q']:.2g}")
            for row in self.table.to_dict("records")
        ]  # fmt: skip
        return f"{'; '.join(lines)}. The base's map is that at {self.reference} tokens. Control: {self.control}."


@method(
    "same-heads",
    group="heads",
    question="After training on long contexts, do the same heads retrieve, and over longer stretches?",
    papers=("How to Train Long-Context Language Models (Effectively)",),
    cost="one generation per needle, length and depth, in each model",
    example="--haystack book.txt --needles needles.jsonl --lengths 128,256",
)
def same_heads(  # noqa: PLR0913 (a public call)
    pair: Any,
    haystack: Annotated[str | Path, As("file")],
    needles: Annotated[Sequence[Mapping[str, str] | Needle] | str | Path, As("needles")],
    *,
    lengths: Sequence[int] = (256, 512, 1024),
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    template: str = QUESTION,
    chat: bool | None = None,
    best: int = 10,
    max_new_tokens: int = 50,
    seed: int = 0,
    progress: Progress | None = None,
) -> SameHeads:
    """Map retrieval heads at every length in both models, and compare with the base's map at its shortest length.

    The base may fail at lengths that it was not trained for; its heads are then those of a length that it can do, and
    the question is whether the tuned model uses the same ones beyond. ``iv.lengthen_context`` trains such a model.

    Args:
        pair: The model before and after long-context training.
        haystack: A text file to hide the needles in.
        needles: Rows with question and text, or a JSONL file of them.
        lengths: Tokens of haystack.
        depths: Where the needle is hidden: 0 at the beginning, 1 at the end.
        template: The text behind the haystack, with {question} where the question goes.
        chat: Haystack and question as one user turn; default: where the tokenizer has a chat template.
        best: How many best heads of both maps are compared.
        max_new_tokens: Tokens that an answer may have.
        seed: Of the decoys, resamples and exchanges.

    Returns:
        A :class:`SameHeads`.

    Raises:
        UserError: A file is missing or holds no needles, the haystack is too short, or the base answers at no length.
    """
    check_pair(pair)
    check_template(template)
    text, hidden = as_needles(haystack, needles)
    where: dict[str, Any] = {"depths": depths, "template": template, "chat": chat}
    trials = {
        length: needle_trials(text, hidden, pair.tokenizer, lengths=[length], **where)
        for length in sorted(set(lengths))
    }
    options = RetrievalOptions(max_new_tokens=max_new_tokens, seed=seed)
    bar = progress or Silent()
    bar.start("retrieval by length", 2 * len(trials))
    scored: dict[str, dict[int, ScoredTrials | None]] = {"base": {}, "tuned": {}}
    for length, own in trials.items():
        for role in scored:
            scored[role][length] = _measured(pair.models[role], own, options)
            bar.advance()
    bar.finish()
    reference = next((length for length, maps in scored["base"].items() if maps is not None), None)
    if reference is None:
        raise UserError(
            f"The base answers no needle at {', '.join(map(str, trials))} tokens, so it has no retrieval heads to "
            "compare with: add a shorter length."
        )
    bench = _Bench(trials, scored, reference, best, seed)
    table = pd.DataFrame([bench.line(length) for length in trials])
    everything = [maps for own in scored.values() for maps in own.values() if maps is not None]
    return SameHeads(
        table=with_q(table, keep_p=False),
        control="heads exchanged at random",
        provenance=Provenance.of(
            "same_heads", pair, contents([trial for own in trials.values() for trial in own]), seed=seed,
            forward_passes=sum(scores.passes for scores in everything),
            settings=call_settings(None, haystack=str(haystack), needles=[vars(needle) for needle in hidden]),
        ),
        reference=reference,
    )  # fmt: skip


def _measured(model: AdaptedModel, trials: Sequence[Trial], options: RetrievalOptions) -> ScoredTrials | None:
    """None where the model answers no trial, or cannot read as much."""
    try:
        return scored_trials(model, trials, options)
    except UserError:
        return None


@dataclass(frozen=True)
class _Bench:
    trials: Mapping[int, Sequence[Trial]]
    scored: Mapping[str, Mapping[int, ScoredTrials | None]]
    reference: int
    best: int
    seed: int

    def line(self, length: int) -> dict[str, Any]:
        base, tuned = (self.scored[role][length] for role in ("base", "tuned"))
        before = self.scored["base"][self.reference]
        assert before is not None
        answered = {
            f"{role}_answered": 0.0 if scores is None else len(scores.rows) / len(self.trials[length])
            for role, scores in (("base", base), ("tuned", tuned))
        }
        empty = dict.fromkeys(("score", "low", "high", "control", "p", "shared", "best", "chance"), np.nan)
        comparison = empty if tuned is None else self._compared(tuned, length, before)
        return {"module": str(length), **comparison, **answered, "n": len(self.trials[length])}

    def _compared(self, tuned: ScoredTrials, length: int, before: ScoredTrials) -> dict[str, float]:
        ours, theirs = _flat(tuned), _flat(before)
        rho = _correlation(ours.mean(0), theirs.mean(0))
        units = [
            np.array([self.trials[at][row].group for row in scores.rows])
            for at, scores in ((length, tuned), (self.reference, before))
        ]
        drawn = [
            bootstrap_weights(len(flat), DRAWS, self.seed + number, own) @ flat
            for number, (flat, own) in enumerate(zip((ours, theirs), units, strict=True))
        ]
        low, high = interval(np.array([[_correlation(*both)] for both in zip(*drawn, strict=True)]))
        random = np.random.default_rng(self.seed)
        null = np.array([_correlation(random.permutation(ours.mean(0)), theirs.mean(0)) for _ in range(PERMUTATIONS)])
        k = min(self.best, ours.shape[1])
        leading = [set(np.argsort(-map_.mean(0), kind="stable")[:k].tolist()) for map_ in (ours, theirs)]
        shared = overlap(len(leading[0] & leading[1]), k, k, ours.shape[1])
        return {
            "score": rho, "low": float(low[0]), "high": float(high[0]), "control": float(np.nanmean(null)),
            "p": float((1 + (null >= rho - 1e-12).sum()) / (1 + PERMUTATIONS)), "shared": shared.shared, "best": k,
            "chance": shared.expected,
        }  # fmt: skip


def _flat(scored: ScoredTrials) -> np.ndarray:
    return scored.scores.reshape(len(scored.scores), -1)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's; 0 where one of both is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(spearmanr(first, second).statistic)
