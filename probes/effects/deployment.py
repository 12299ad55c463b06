"""What is lost between the tuned model as trained and as shipped: merged, in half precision, in eight or four bits."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import nn

from probes.effects.answers import Measure, answer_scores, greedy_texts
from probes.effects.panel import EffectPanel, scored_line, table_of
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.behaviour.scores import kl, next_token_logits
from workbench.errors import UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair, load_pair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts

Precision = Literal["float32", "bfloat16", "float16", "int8", "int4"]
_BITS = {"int8": 8, "int4": 4}


@method(
    "deployment-gap",
    group="effects",
    question="Does the tuned model still do the same once it is merged and quantised?",
    papers=("Empowering Smaller Models: Tuning LLaMA and Gemma with Chain-of-Thought for Ukrainian Exam Tasks",),
    cost="one scored pass and one generation of a copy of the tuned model per form",
    example="--precisions bfloat16,int8",
)
def deployment_gap(
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    precisions: Sequence[str] = ("bfloat16", "int8", "int4"),
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> EffectPanel:
    """The tuned model in every precision, its adapter merged and not, against itself as it was loaded.

    Per form: KL of the next word from the model as loaded (nats), and the share of greedy texts that stay; with answers
    also the score. int8 and int4 round every weight matrix row by row to that many bits (symmetric, largest entry at
    the end of the scale) and compute in float: the weights a quantised file stands for, without its kernels. Unmerged,
    only the base's matrices are rounded and the adapter stays as it is. The control of a form is how far the tuned
    model is from the base: a gap of that size undoes the tuning.

    Args:
        pair: Base and tuned model.
        prompts: Rows; with an answer in every one they are scored as well.
        precisions: float32, bfloat16, float16, int8, int4.
        metric: How answers are scored.
        max_new_tokens: Length of the compared texts.
        seed: Of the intervals.

    Returns:
        An :class:`EffectPanel`; ``model`` is the form ("merged int8"), ``group`` kl, "same text" or the score's change.

    Raises:
        UserError: An unknown precision.
    """
    check_pair(pair, prompts)
    if unknown := [
        precision for precision in precisions if precision not in (*_BITS, "float32", "bfloat16", "float16")
    ]:
        raise UserError(f"{unknown[0]!r} is no precision: give float32, bfloat16, float16, int8 or int4.")
    rows = Prompts.of(prompts)
    scored = all(row.answer for row in rows)
    bar, forms = progress or Silent(), _forms(pair, precisions)
    bar.start("deployment gap", len(forms))
    reference = _Read.of(pair.tuned, rows, metric if scored else None, max_new_tokens, batch_size)
    base = _Read.of(pair.base, rows, metric if scored else None, max_new_tokens, batch_size)
    lines: list[dict[str, Any]] = []
    for name, merged, precision in forms:
        with deployed(pair, merged, precision) as model:
            own = _Read.of(model, rows, metric if scored else None, max_new_tokens, batch_size)
        lines += own.lines(name, reference, base, rows.clusters, seed, metric)
        bar.advance()
    bar.finish()
    table = table_of(lines)
    return EffectPanel(
        table=table,
        control="the base in the place of the deployed form",
        provenance=Provenance.of("deployment_gap", pair, rows, seed=seed),
        values=pd.DataFrame({"kl of the base": base.kl_from(reference)}),
        measured="nats, shares, or a change of the score",
        heading="Deployed against trained",
        verdict=_said(table),
    )  # fmt: skip


def _said(table: pd.DataFrame) -> str:
    """The form that is furthest from the trained model, in every measure, beside the base."""
    far = table[table["group"] == "kl"].nlargest(1, "score")["model"].iloc[0]
    lines = "; ".join(
        f"{line['group']} {line['score']:.3g} [{line['low']:.3g}, {line['high']:.3g}] (base {line['control']:.3g})"
        for line in table[table["model"] == far].to_dict("records")
    )
    return f"of {table['model'].nunique()} forms {far} is furthest: {lines}"


def _forms(pair: ModelPair, precisions: Sequence[str]) -> list[tuple[str, bool, str]]:
    adapter = hasattr(pair.tuned.hf, "merge_and_unload")
    kinds = (False, True) if adapter else (True,)
    names = {True: "merged", False: "unmerged"} if adapter else {True: "whole"}
    forms = [(f"{names[merged]} {precision}", merged, precision) for precision in precisions for merged in kinds]
    return ([("merged as loaded", True, "")] if adapter else []) + forms


@contextmanager
def deployed(pair: ModelPair, merged: bool, precision: str) -> Iterator[AdaptedModel]:
    """A copy of the tuned model in a form it may be shipped in; the pair is untouched."""
    with pair.tuned.active() as hf:
        twin = copy.deepcopy(hf)
    if merged and hasattr(twin, "merge_and_unload"):
        twin = twin.merge_and_unload()
    if precision in _BITS:
        _round_weights(twin, _BITS[precision])
    elif precision:
        twin = twin.to(getattr(torch, precision))
    made = load_pair(twin, twin, tokenizer=pair.tuned.tokenizer, check=False) if merged else None
    yield made.tuned if made is not None else AdaptedModel(twin, pair.tuned.tokenizer, role="tuned")


def _round_weights(model: nn.Module, bits: int) -> None:
    """Every matrix of the layers but the adapter's, in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "lora_" not in name and "embed" not in name and "lm_head" not in name:
                parameter.copy_(rounded(parameter, bits))


def rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """Row by row, to the ``2^bits - 1`` evenly spaced values between minus and plus the row's largest entry."""
    top = 2 ** (bits - 1) - 1
    scale = weight.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / top
    return ((weight.float() / scale).round().clamp(-top, top) * scale).to(weight.dtype)


class _Read:
    """What one form says: logits, texts and scores by prompt."""

    def __init__(self, logits: torch.Tensor, texts: list[str], scores: np.ndarray | None) -> None:
        self.logits, self.texts, self.scores = logits, texts, scores

    @classmethod
    def of(cls, model: AdaptedModel, rows: Prompts, metric: Measure | None, new: int, batch_size: int) -> _Read:
        scores = None
        if metric is not None:
            scores = answer_scores(model, rows, metric, max_new_tokens=new, batch_size=batch_size)
        logits = next_token_logits(model, rows, batch_size=batch_size)
        return cls(logits, greedy_texts(model, rows, new, batch_size), scores)

    def kl_from(self, other: _Read) -> np.ndarray:
        return kl(self.logits, other.logits).numpy()

    def lines(
        self, name: str, reference: _Read, base: _Read, clusters: np.ndarray, seed: int, metric: str
    ) -> list[dict[str, Any]]:
        same = np.array([a == b for a, b in zip(self.texts, reference.texts, strict=True)], float)
        base_same = np.array([a == b for a, b in zip(base.texts, reference.texts, strict=True)], float)
        lines = [
            scored_line("kl", name, self.kl_from(reference), base.kl_from(reference), clusters, seed, of="numbers"),
            scored_line("same text", name, same, base_same, clusters, seed),
        ]
        if self.scores is not None and reference.scores is not None and base.scores is not None:
            change, undone = self.scores - reference.scores, float((base.scores - reference.scores).mean())
            scored = scored_line(f"change of {metric}", name, change, 0.0, clusters, seed, of="changes")
            lines.append({**scored, "control": undone})
        return lines
