"""How much of an answer's probability hangs on each word of the prompt, and on the instruction by its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from probes.effects.panel import CHANGE, EffectPanel, paired_lines, scored_line, table_of
from probes.effects.rewriting import column_of
from probes.replay import frozen
from probes.results import Provenance
from probes.row_spans import token_span
from workbench.argument_checks import check_pair
from workbench.behaviour.generation import Decoding, generate_replies
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode, render
from workbench.prompts.row import Prompt
from workbench.prompts.templates import as_read
from workbench.typing import Float, Tensor

LEVELS, CUT, NORM = 10, 7, 4.0
"""Steps of a column, the step up to which influence counts as none, and the norm of the density (Wu et al. 2024)."""
THIRDS = ("first third", "middle third", "last third")


@method(
    "instruction-attribution",
    group="representation",
    question="Do instruction words steer the answer more after tuning, and wherever they stand?",
    papers=(
        "From Language Modeling to Instruction Following: Understanding the Behavior Shift in LLMs after Instruction "
        "Tuning",
    ),
    cost="a generated answer, and a backward pass of each model per word of it",
    example="--instruction instruction",
)
def instruction_attribution(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    instruction: str = "instruction",
    writer: str = "tuned",
    max_new_tokens: int = 12,
    seed: int = 0,
    progress: Progress | None = None,
) -> EffectPanel:
    """Attribution density of the instruction's words, gradient times input embedding (Wu et al. 2024).

    Both models read the prompt and the same answer (the writer's greedy one, or the row's own). The influence of prompt
    token n on answer token m is the gradient of p(m) times n's embedding; per m it is cut at 0, brought to steps of a
    tenth of its largest, and up to step 7 counted as none. A token's density, |S|_1 / |S|_4, is high where it steers
    many answer tokens alike. The instruction's score is the sum of its tokens' densities (over the largest of the
    prompt) over log2(2 + how many they are). The control is a span of as many other prompt tokens. By the third of the
    prompt in which the instruction stands it is reported as well (lost in the middle).

    Args:
        pair: Both models.
        prompts: Rows with the instruction's own text as a column; it must stand in the prompt.
        instruction: The column.
        writer: Whose greedy text is the answer (base or tuned) where a row has no answer of its own: "answer" reads the
            rows' answers.
        max_new_tokens: Answer tokens that are followed back.
        seed: Of control spans and intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is instruction, and the third of the prompt.

    Raises:
        UserError: The instruction does not stand in its prompt.
    """
    check_pair(pair, prompts)
    if writer not in ("base", "tuned", "answer"):
        raise UserError(f"writer={writer!r} is none of base, tuned, answer.")
    rows = Prompts.of(prompts)
    spans = [
        span_of(row, str(text), pair.tokenizer, number)
        for number, (row, text) in enumerate(zip(rows, column_of(rows, instruction), strict=True))
    ]
    ids = encode(rows, pair.tokenizer, pair.tuned.max_positions)
    answers = _answers(pair, rows, writer, max_new_tokens)
    bar = progress or Silent()
    bar.start("instruction attribution", 2 * len(rows))
    random = np.random.default_rng(seed)
    beside = [_other_span(span, len(own), random) for span, own in zip(spans, ids, strict=True)]
    scores: dict[str, np.ndarray] = {}
    controls: dict[str, np.ndarray] = {}
    for role in ("base", "tuned"):
        model = pair.models[role]
        attributions = []
        for own, answer, span, other in zip(ids, answers, spans, beside, strict=True):
            density = densities(influence(model, own, answer))
            attributions.append((span_score(density, span), span_score(density, other)))
            bar.advance()
        scores[role], controls[role] = np.array(attributions).T
    bar.finish()
    third = np.array([min(2, int(3 * (a + b) / 2 / len(own))) for (a, b), own in zip(spans, ids, strict=True)])
    steps = sum(map(len, answers))
    return EffectPanel(
        table=table_of(_lines(scores, controls, third, rows.clusters, seed)),
        control="a random span of as many other tokens of the prompt",
        provenance=Provenance.of(
            "instruction_attribution", pair, rows, seed=seed, forward_passes=2 * len(rows), backward_passes=2 * steps,
        ),
        values=pd.DataFrame({**scores, **{f"control of {role}": control for role, control in controls.items()}}),
        measured="attribution density of the instruction",
        heading="Instruction words",
    )  # fmt: skip


def _lines(
    scores: dict[str, np.ndarray], controls: dict[str, np.ndarray], third: np.ndarray, clusters: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    lines = paired_lines("instruction", scores, controls, clusters, seed)
    lines[-1] = {**scored_line("instruction", CHANGE, scores["tuned"] - scores["base"],
                               controls["tuned"] - controls["base"], clusters, seed)}  # fmt: skip
    for number, name in enumerate(THIRDS):
        own = third == number
        if own.sum() > 1:
            sides, beside = ({role: value[own] for role, value in values.items()} for values in (scores, controls))
            lines += paired_lines(f"instruction in the {name}", sides, beside, clusters[own], seed)
    return lines


def span_of(row: Prompt, text: str, tokenizer: Any, number: int) -> tuple[int, int]:
    """The half-open span of the tokens of ``text`` in the rendered prompt."""
    start = render(as_read(row, tokenizer), tokenizer).find(text)
    if start < 0 or not text:
        raise UserError(f"Prompt {number} does not hold its instruction {text!r}: write it as it stands there.")
    return token_span(row, start, start + len(text), tokenizer)


def _answers(pair: ModelPair, rows: Prompts, writer: str, most: int) -> list[list[int]]:
    if writer == "answer":
        from workbench.behaviour.continuations import continuations_of

        return [own[:most] for own in continuations_of(rows, Subject("tuned", pair.tuned), "answer")]
    replies = generate_replies(Subject(writer, pair.models[writer]), rows, Decoding(most), Work())
    return [list(reply[0].ids) for reply in replies]


def influence(
    model: AdaptedModel,
    prompt: Sequence[int],
    answer: Sequence[int],
    *,
    steps: Sequence[int] | None = None,
    whole: bool = False,
) -> Float[Tensor, "read answer"]:
    """Gradient of the probability of each answer token times the embedding of each prompt token.

    ``steps``: the answer tokens that are followed back, by their place; each costs a backward pass, None: all.
    ``whole``: of every token that is read, the answer's own among them (0 for those that come later).
    """
    followed = range(len(answer)) if steps is None else list(steps)
    read = len(prompt) + len(answer) if whole else len(prompt)
    embeddings: list[Tensor] = []

    def keep(_module: Any, _given: Any, embedded: Tensor) -> Tensor:
        embeddings[:] = [embedded.detach().requires_grad_(True)]
        return embeddings[0]

    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    with frozen(model.hf), model.active():
        handle = model.inner.get_input_embeddings().register_forward_hook(keep)
        try:
            with torch.enable_grad():
                logits = model.inner(input_ids=ids, use_cache=False).logits[0].float()
                chance = logits.softmax(-1)
                columns = []
                for step in followed:
                    own = chance[len(prompt) + step - 1, answer[step]]
                    (slope,) = torch.autograd.grad(own, embeddings[0], retain_graph=step != followed[-1])
                    columns.append((slope[0] * embeddings[0][0]).sum(-1)[:read].detach().float().cpu())
        finally:
            handle.remove()
    return torch.stack(columns, dim=1)


def densities(influenced: Float[Tensor, "prompt answer"]) -> Float[np.ndarray, " prompt"]:
    """Per prompt token |S|_1 / |S|_4 of its cut steps; 0 where it steers nothing."""
    raised = influenced.clamp_min(0)
    largest = raised.amax(0, keepdim=True)
    steps = torch.ceil(LEVELS * raised / largest.clamp_min(1e-30))
    steps = torch.where(steps <= CUT, torch.zeros_like(steps), steps)
    total, norm = steps.sum(1), steps.pow(NORM).sum(1).pow(1 / NORM)
    return (total / norm.clamp_min(1e-30)).double().numpy()


def span_score(density: Float[np.ndarray, " prompt"], span: tuple[int, int]) -> float:
    """Sum of the span's densities over the prompt's largest, over log2(2 + tokens of the span)."""
    largest = density.max()
    size = span[1] - span[0]
    return float(density[span[0] : span[1]].sum() / largest / np.log2(2 + size)) if largest > 0 else 0.0


def _other_span(span: tuple[int, int], length: int, random: np.random.Generator) -> tuple[int, int]:
    """A span of the same size elsewhere in the prompt, or one as large as there is room for."""
    size = span[1] - span[0]
    starts = [s for s in range(length - size + 1) if s + size <= span[0] or s >= span[1]]
    if starts:
        start = int(random.choice(starts))
        return start, start + size
    before, after = (0, span[0]), (span[1], length)
    return max(before, after, key=lambda window: window[1] - window[0])
