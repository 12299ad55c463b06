"""fault_tokens: whether tuning moves the tokens that tell a right answer from a faulty one (FAIT's segments)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from probes.replay import counted
from probes.resampling import cluster_means, units_of
from probes.results import ProbeResult, Provenance
from probes.scored import scored
from workbench.argument_checks import check_pair
from workbench.behaviour.continuations import continuations_of, logits_at
from workbench.behaviour.scores import kl
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.figures.series import labelled_points
from workbench.methods import Needs, method
from workbench.models.pair import ModelPair
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.stats.fdr import q_values
from workbench.stats.tests import paired_permutation
from workbench.typing import Bool, Float

LEVELS = ("token", "line")


@dataclass(frozen=True, kw_only=True)
class FaultTokens(ProbeResult):
    """One row per level (``module``): tokens that differ from the faulty variant, and whole lines that differ.

    ``score``: KL (nats) of tuned from base at the tokens of the answer where the variants differ, the mean over them,
    then over prompts; ``control``: the same at every other place of the answer that as many tokens in a row could have
    had (the differing places moved round), ``q`` of the difference; ``elsewhere``: at the answer's other tokens;
    ``rise``: of those tokens' log-probability (nats), ``rise_elsewhere``; ``auc``: how often a differing token moved
    more than another one of its answer; ``share`` of the tokens that differ; ``n`` prompts. ``tokens``: prompt,
    position in the answer, token, token_differs, line_differs, kl, rise.
    """

    tokens: pd.DataFrame
    dropped: int
    """Prompts whose answer differs everywhere or nowhere from the faulty one, at the level of tokens."""
    resampled: str = "prompts"

    title: ClassVar[str] = "Movement where right and faulty answers differ"
    unit: ClassVar[str] = "KL of tuned from base (nats per token)"

    def figure(self) -> go.Figure:
        """Movement at differing tokens and lines, beside other places."""
        return labelled_points(self.table, "module", title=self.title, unit=self.unit)

    def summary(self) -> str:
        said = "; ".join(
            f"differing {row['module']}s {row['score']:.3g} nats [{row['low']:.3g}, {row['high']:.3g}] (other places "
            f"{row['control']:.3g}, AUC {row['auc']:.2f}, log-probability {row['rise']:+.3g})"
            for _, row in self.table.iterrows()
        )
        return f"{said}; {self.dropped} prompts left out; over {self.resampled}. Control: {self.control}."


@method(
    "fault-tokens",
    group="effects",
    question="Did tuning move the tokens that tell right answers from faulty ones, or all alike?",
    papers=("FAIT: Fault-Aware Fine-Tuning for Better Code Generation",),
    needs=Needs(columns=("answer", "distractor")),
    cost="one scored pass of each model",
    any_adapter="whether these words moved more than others, and any adapter moves some words more",
)
def fault_tokens(
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> FaultTokens:
    """Read every right answer with both models, and split how far each token moved by whether the faulty answer has it.

    Differences are those of a longest-matching alignment of the two answers' tokens, and of their lines. Where the
    faulty answer only has something more, the token behind the gap differs.

    Args:
        pair: Both models, of one vocabulary.
        prompts: Rows with a right answer and, as the distractor, a faulty variant of it (code, say).
        seed: Of resampling and tests.

    Returns:
        A :class:`FaultTokens`. A base against itself moved nothing.

    Raises:
        UserError: A row without answer or distractor, or no answer that differs in a part from its variant.
    """
    check_pair(pair, prompts)
    rows, work = Prompts.of(prompts), Work(batch_size, progress)
    subjects = [Subject(role, model) for role, model in pair.models.items()]
    ids = encode(rows, pair.tokenizer, pair.tuned.max_positions)
    right, faulty = (continuations_of(rows, subjects[1], column) for column in ("answer", "distractor"))
    decode = pair.tokenizer.decode
    masks = [
        {"token": differing(own, other), "line": differing_lines(own, other, decode)}
        for own, other in zip(right, faulty, strict=True)
    ]
    usable = [number for number, mask in enumerate(masks) if mask["token"].any() and not mask["token"].all()]
    if not usable:
        raise UserError("No answer shares a part with its faulty variant and differs in another: give closer variants.")
    with counted(pair.base, pair.tuned) as passes:
        moved = _moved(subjects, ids, right, work)
    table = pd.DataFrame([
        {"module": level, **line} for level in LEVELS if (line := _row(level, masks, moved, usable, rows, seed))
    ])  # fmt: skip
    return FaultTokens(
        table=table.assign(q=q_values(table["p"].to_numpy(np.float64))),
        control="the same answers with the differing places moved round, every shift alike",
        provenance=Provenance.of(
            "fault_tokens", pair.models, rows, seed=seed, device=str(pair.tuned.device), forward_passes=passes.forward,
        ),
        tokens=_tokens(right, masks, moved, decode),
        dropped=len(rows) - len(usable),
        resampled=units_of(rows.clusters),
    )  # fmt: skip


def differing(own: Sequence[Any], other: Sequence[Any]) -> Bool[np.ndarray, " item"]:
    """Which items of ``own`` the alignment with ``other`` does not match; behind a gap the next item counts."""
    marked = np.zeros(len(own), dtype=bool)
    matcher = difflib.SequenceMatcher(a=list(other), b=list(own), autojunk=False)
    for tag, _, _, start, end in matcher.get_opcodes():
        if tag == "delete" and len(own):
            marked[min(start, len(own) - 1)] = True
        elif tag != "equal":
            marked[start:end] = True
    return marked


def differing_lines(own: Sequence[int], other: Sequence[int], decode: Any) -> Bool[np.ndarray, " token"]:
    """Which tokens of ``own`` stand in a line that the other text does not have in its place."""
    texts = [decode([token]) for token in own]
    numbers = np.cumsum([0, *(text.count("\n") for text in texts[:-1])])
    lines = differing("".join(texts).split("\n"), decode(list(other)).split("\n"))
    return lines[np.minimum(numbers, len(lines) - 1)]


def _moved(
    subjects: Sequence[Subject], ids: list[list[int]], answers: list[list[int]], work: Work
) -> list[Float[np.ndarray, "token two"]]:
    """Per prompt and token of the answer: KL(tuned || base) and the rise of the token's log-probability."""
    moves: list[np.ndarray] = [np.zeros((0, 2))] * len(ids)

    def take(rows: list[int], moved: list[np.ndarray]) -> None:
        for row, values in zip(rows, moved, strict=True):
            moves[row] = values

    lengths = [len(tokens) + len(two) for tokens, two in zip(ids, answers, strict=True)]
    work.each("fault tokens", lengths, partial(_batch_moved, subjects, ids, answers), take)
    return moves


def _batch_moved(
    subjects: Sequence[Subject], ids: list[list[int]], answers: list[list[int]], rows: list[int]
) -> list[Float[np.ndarray, "token two"]]:
    sides, moved = [logits_at(subject, ids, answers, rows) for subject in subjects], []
    for row, base, tuned in zip(rows, *sides, strict=True):
        place = np.arange(len(answers[row]))
        words = [logits.double().log_softmax(-1)[place, answers[row]] for logits in (base, tuned)]
        moved.append(np.stack([kl(tuned, base).double().numpy(), (words[1] - words[0]).numpy()], 1))
    return moved


def _row(
    level: str, masks: list[dict[str, np.ndarray]], moved: list[np.ndarray], usable: list[int], rows: Prompts, seed: int
) -> dict[str, Any]:
    """Empty where no answer's lines differ in a part."""
    members = [number for number in usable if masks[number][level].any() and not masks[number][level].all()]
    if not members:
        return {}
    lines = []
    for number in members:
        inside, own = masks[number][level], moved[number]
        round_ = [np.roll(inside, shift) for shift in range(1, len(inside))]
        lines.append({
            "score": own[inside, 0].mean(), "control": float(np.mean([own[mask, 0].mean() for mask in round_])),
            "elsewhere": own[~inside, 0].mean(), "rise": own[inside, 1].mean(),
            "rise_elsewhere": own[~inside, 1].mean(),
            "auc": float(_auc(own[inside, 0], own[~inside, 0])), "share": inside.mean(),
        })  # fmt: skip
    per_prompt = pd.DataFrame(lines)
    clusters = rows.clusters[members]
    apart = cluster_means((per_prompt["score"] - per_prompt["control"]).to_numpy()[:, None], clusters)
    return {
        **scored(per_prompt["score"].to_numpy(), seed=seed, clusters=clusters),
        **{str(name): float(values.mean()) for name, values in per_prompt.drop(columns="score").items()},
        "p": float(paired_permutation(apart, seed=seed).p[0]) if apart.any() else 1.0, "n": len(members),
    }  # fmt: skip


def _auc(own: np.ndarray, other: np.ndarray) -> float:
    return float(((own[:, None] > other) + 0.5 * (own[:, None] == other)).mean())


def _tokens(answers: list[list[int]], masks: list[dict[str, np.ndarray]], moved: list[np.ndarray], decode: Any) -> Any:
    return pd.DataFrame([
        {"prompt": number, "position": place, "token": decode([token]),
         "token_differs": bool(masks[number]["token"][place]), "line_differs": bool(masks[number]["line"][place]),
         "kl": moved[number][place, 0], "rise": moved[number][place, 1]}
        for number, answer in enumerate(answers) for place, token in enumerate(answer)
    ])  # fmt: skip
