"""Whether a tune trusts some sources more: what it took in from each, and whether their gradients say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch

from probes.call_settings import call_settings
from probes.effects.answers import Measure, role_scores
from probes.effects.panel import CHANGE, EffectPanel, between_line, paired_lines, table_of
from probes.effects.rewriting import column_of
from probes.replay import counted
from probes.results import Provenance
from workbench.argument_checks import check_pair
from workbench.behaviour.subject import Subject
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.models.pair import ModelPair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import encode
from workbench.typing import Float, Tensor

SKETCH = 4_096


@method(
    "source-trust",
    group="representation",
    question="Did the model take in more from sources that it learnt to trust?",
    papers=("Implicit meta-learning may lead language models to trust more reliable sources",),
    needs=Needs(columns=("answer",)),
    cost="a scored pass of each model; with definitions a backward pass per row and model",
    example="--tags tag --definitions definitions.jsonl",
)
def source_trust(  # noqa: PLR0913 (a public call)
    pair: ModelPair,
    prompts: Prompts | Sequence[Any],
    *,
    tags: str = "tag",
    items: str = "item",
    definitions: Annotated[Any, As("prompts")] = None,
    metric: Measure = "accuracy",
    max_new_tokens: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> EffectPanel:
    """The internalisation gap between tags, and the alignment of definitions' gradients with the questions'
    (Krasheninnikov et al. 2023).

    The tuned model read definitions marked with a tag (reliable or not) and is asked about them. What it gained on each
    tag's questions is internalisation; the gap between tags, tested by exchanging questions, is trust. With
    ``definitions`` (texts with a tag and an item) the cosine of each definition's loss gradient with that of its own
    questions is measured in both models, through one random projection of all weights: in the paper it rises for
    trusted tags with the first stage of tuning. Its control is the cosine with the questions of another item of the
    same tag. That a tag can be read off the states, by layer and place, is asked with ``probe-suite --labels tag
    --by-position``.

    Args:
        pair: The model before (or after the first stage) and after tuning.
        prompts: Questions with an answer, a tag and an item.
        tags: The column of the tag.
        items: The column that joins questions and definitions.
        definitions: Texts that define the items, with the same two columns.
        metric: What is scored.
        max_new_tokens: Length of a generated answer.
        seed: Of the projection and intervals.

    Returns:
        An :class:`EffectPanel`; ``group`` is the tag, "first - second tag" (in sorted order), and "gradient, tag".

    Raises:
        UserError: Only one tag, or definitions that no question is about.
    """
    check_pair(pair, prompts)
    rows = Prompts.of(prompts)
    of = np.array([str(value) for value in column_of(rows, tags, what="the tag of its source")])
    names = sorted(set(of.tolist()))
    if len(names) < 2:
        raise UserError(f"All questions have the tag {names[0]!r}: give questions of two or more tags.")
    definition_rows = None if definitions is None else Prompts.of(definitions)
    with counted(pair.base, pair.tuned) as passes:
        scores = role_scores(pair, rows, metric, max_new_tokens=max_new_tokens, batch_size=batch_size)
        aligned = (
            {}
            if definition_rows is None
            else _alignments(pair, rows, definition_rows, tags, items, seed, progress or Silent())
        )
    lines = trust_lines(scores, of, names, rows.clusters, seed)
    for name in dict.fromkeys(aligned.get("tag", [])):
        own = aligned["tag"] == name
        sides = {role: aligned[role][own] for role in ("base", "tuned")}
        beside = {role: aligned[f"{role}, other item"][own] for role in ("base", "tuned")}
        lines += paired_lines(f"gradient, {name}", sides, beside, np.arange(int(own.sum())), seed)
    return EffectPanel(
        table=table_of(lines),
        control="of tags no change; of gradients, questions of another item of the same tag",
        provenance=Provenance.of(
            "source_trust", pair, rows, seed=seed, forward_passes=passes.forward,
            backward_passes=0 if definition_rows is None else 2 * (len(rows) + len(definition_rows)),
            settings=call_settings(None, definitions=definition_rows),
        ),
        values=pd.DataFrame({**scores, "tag": of}),
        measured=f"{metric}, or a cosine of gradients",
        heading="Trust in sources",
    )  # fmt: skip


def trust_lines(
    scores: dict[str, np.ndarray], of: np.ndarray, names: Sequence[str], clusters: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    """What was taken in of each tag, and the gap between each pair of tags."""
    zero = {"base": 0.0, "tuned": 0.0}
    lines = []
    for name in names:
        own = of == name
        sides = {role: score[own] for role, score in scores.items()}
        lines += paired_lines(name, sides, zero, clusters[own], seed)
    gained = scores["tuned"] - scores["base"]
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            parts = of == first, of == second
            sides_ = gained[parts[0]], gained[parts[1]]
            units = clusters[parts[0]], clusters[parts[1]]
            lines.append(between_line(f"{first} - {second}", CHANGE, sides_, units, seed))
    return lines


def _alignments(
    pair: ModelPair, rows: Prompts, definition_rows: Prompts, tags: str, items: str, seed: int, bar: Progress
) -> dict[str, np.ndarray]:
    """Per definition: its tag, the cosine with its own questions, and with those of another item of its tag."""
    asked_of = [str(value) for value in column_of(rows, items, what="the item it is about")]
    defined = [str(value) for value in column_of(definition_rows, items, what="the item that it defines")]
    tag = np.array([str(value) for value in column_of(definition_rows, tags)])
    known = [number for number, row_name in enumerate(defined) if row_name in asked_of]
    if not known:
        raise UserError(f"No question is about an item of the definitions (column {items!r}): give the same names.")
    bar.start("gradients", 2 * (len(rows) + len(definition_rows)))
    alignments: dict[str, list[float]] = {
        name: [] for name in ("base", "tuned", "base, other item", "tuned, other item")
    }
    for role in ("base", "tuned"):
        sketch = GradientSketch(pair.models[role], seed)
        of_rows = [sketch.of_answer(row) for row in _advancing(rows, bar)]
        of_item = {name: _mean([g for g, own in zip(of_rows, asked_of, strict=True) if own == name])
                   for name in dict.fromkeys(asked_of)}  # fmt: skip
        of_texts = [sketch.of_text(row) for row in _advancing(definition_rows, bar)]
        for number in known:
            others = [of_item[defined[n]] for n in known if tag[n] == tag[number] and defined[n] != defined[number]]
            alignments[role].append(_cosine(of_texts[number], of_item[defined[number]]))
            alignments[f"{role}, other item"].append(
                float(np.mean([_cosine(of_texts[number], other) for other in others])) if others else 0.0
            )
    bar.finish()
    return {"tag": tag[known], **{name: np.array(values) for name, values in alignments.items()}}


def _advancing(rows: Prompts, bar: Progress) -> Any:
    for row in rows:
        yield row
        bar.advance()


def _mean(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).mean(0)


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first, second, dim=0))


class GradientSketch:
    """Loss gradients of all floating weights as a count sketch of :data:`SKETCH` numbers, the same for every row, which
    keeps cosines (Charikar et al. 2002)."""

    def __init__(self, model: AdaptedModel, seed: int) -> None:
        self.model, self.seed = model, seed

    def of_answer(self, row: Any) -> Float[Tensor, " sketch"]:
        """Of the loss of a question's answer."""
        from workbench.behaviour.continuations import continuations_of

        prompts = Prompts([row])
        prompt = encode(prompts, self.model.tokenizer, self.model.max_positions)[0]
        return self._of(prompt, continuations_of(prompts, Subject("model", self.model), "answer")[0])

    def of_text(self, row: Any) -> Float[Tensor, " sketch"]:
        """Of the loss of a whole text after its first token."""
        ids = encode(Prompts([row]), self.model.tokenizer, self.model.max_positions)[0]
        return self._of(ids[:1], ids[1:])

    def _of(self, prompt: Sequence[int], answer: Sequence[int]) -> Float[Tensor, " sketch"]:
        model = self.model
        ids = torch.tensor([[*prompt, *answer]], device=model.device)
        with model.active(), torch.enable_grad():
            named = [
                (name, parameter) for name, parameter in model.inner.named_parameters() if parameter.is_floating_point()
            ]
            flags = [weight.requires_grad for _, weight in named]
            try:
                for _, tensor in named:
                    tensor.requires_grad_(True)
                logits = model.inner(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
                loss = torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :])
                slopes = torch.autograd.grad(loss, [weight for _, weight in named], allow_unused=True)
            finally:
                for (_, tensor), flag in zip(named, flags, strict=True):
                    tensor.requires_grad_(flag)
        sketch = torch.zeros(SKETCH)
        for number, slope in enumerate(slopes):
            if slope is not None:
                self._add(sketch, slope.detach().flatten().float().cpu(), number)
        return sketch

    def _add(self, sketch: Tensor, flat: Tensor, number: int) -> None:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        place = torch.randint(SKETCH, flat.shape, generator=generator)
        sign = torch.randint(2, flat.shape, generator=generator).mul_(2).sub_(1)
        sketch.index_add_(0, place, flat * sign)
