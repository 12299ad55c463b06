"""edit_sites: the same facts written into each matrix in turn, and what each edit brings and costs (LocFT-BF)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch

from interventions.training.editing import site_name, train_site, written_right
from interventions.training.examples import Example, examples_of
from interventions.training.trainer import Schedule
from interventions.weightspace.swapping import base_parameters, swapped
from probes.call_settings import call_settings
from probes.results import ProbeResult, Provenance
from probes.scored import paired_p, scored_share, with_q
from workbench.argument_checks import check_subject
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts

_MEASURES = ("reliability", "paraphrase", "locality", "general")


@dataclass(frozen=True, kw_only=True)
class EditSites(ProbeResult):
    """One row per layer and matrix that was edited alone.

    ``score``: the mean over prompts of what was measured: facts written right (``reliability``), other wordings of
    them (``paraphrase``), next words of unrelated prompts that stayed (``locality``), other tasks' answers still right
    (``general``), each of which has a column (NaN: no such prompts) and counts the same. ``control``: the score of the
    unedited model, ``q`` of the difference. ``shuffled``: the paraphrases' share after the same edit with the answers
    dealt out anew, NaN without paraphrases: what is not knowledge of the facts. ``loss``: of the last step, in nats.
    """

    title: ClassVar[str] = "Sites of an edit"
    unit: ClassVar[str] = "mean of reliability, paraphrase, locality and general ability"

    def summary(self) -> str:
        best = self.frame().iloc[0]
        parts = ", ".join(f"{name} {best[name]:.2f}" for name in _MEASURES if not np.isnan(best[name]))
        return (
            f"Best of {len(self.table)} sites: L{best['layer']:.0f} {best['module']}, {best['score']:.2f} "
            f"[{best['low']:.2f}, {best['high']:.2f}] ({parts}); unedited {best['control']:.2f}. "
            f"Control: {self.control}."
        )


@method(
    "edit-sites",
    group="weights",
    question="Into which matrix are these facts best written, and what does the edit cost elsewhere?",
    papers=("Fine-tuning Done Right in Model Editing",),
    needs=Needs(columns=("answer",)),
    cost="a training of one matrix per site (two with paraphrases), and a few forward passes",
    example="--layers 0 --epochs 1",
)
def edit_sites(  # noqa: PLR0913
    subject: Any,
    prompts: Any,
    *,
    paraphrases: Annotated[Any, As("prompts")] = None,
    locality: Annotated[Any, As("prompts")] = None,
    general: Annotated[Any, As("prompts")] = None,
    layers: Any = None,
    modules: Sequence[str] = ("mlp.down_proj",),
    order: Literal["breadth", "depth"] = "breadth",
    epochs: int = 20,
    learning_rate: float = 1e-3,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> EditSites:
    """Write the facts of ``prompts`` into each matrix alone, measure, and put the matrix back.

    Then :func:`interventions.edit_facts` makes the edit at the best site. Answers end with the end-of-text token.

    Args:
        subject: The model, or a pair, whose base is edited.
        prompts: The facts: rows with an answer.
        paraphrases: The same facts in other words, with their answers.
        locality: Prompts that the edit should leave alone; no answers needed.
        general: Prompts with answers of other tasks.
        layers: Layers to edit: indices or fractions of depth; all by default.
        modules: Paths of matrices inside a layer.
        order: breadth (epochs over mini-batches) or depth (fact by fact).
        epochs: Passes over the facts.
        learning_rate: Step size of the optimiser.
        batch_size: Facts per step.
        seed: Of the order of the facts, the dealing of the control and the intervals.

    Raises:
        UserError: A matrix that the model lacks, rows without answers.
    """
    check_subject(subject)
    model: AdaptedModel = getattr(subject, "base", subject)
    if model.tokenizer is None:
        raise UserError("This model has no tokenizer, which facts need: load it with one.")
    rows = Prompts.of(prompts)
    measures = _Measures.of(model, rows, paraphrases, locality, general)
    schedule = Schedule(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    sites = [(layer, module) for layer in _layers(model, layers) for module in modules]
    for layer, module in sites:
        site_name(model, layer, module)
    before = measures.take(model)
    watch = progress or Silent()
    watch.start("edit sites", len(sites))
    table = []
    for layer, module in sites:
        watch.advance()
        row = _edited(model, site_name(model, layer, module), measures, order, schedule)
        table.append({"layer": layer, "module": module, **_row(row, before, measures, seed)})
    watch.finish()
    frame = pd.DataFrame(table)
    return EditSites(
        table=with_q(frame, keep_p=False),
        control="the unedited model on the same prompts; and the same edit with the answers dealt out anew (shuffled)",
        provenance=Provenance.of(
            "edit_sites", model, rows, seed=seed,
            settings=call_settings(
                None, paraphrases=_prompts(paraphrases), locality=_prompts(locality), general=_prompts(general)
            ),
        ),
    )  # fmt: skip


def _prompts(rows: Any) -> Prompts | None:
    return None if rows is None else Prompts.of(rows)


def _layers(model: AdaptedModel, layers: Any) -> list[int]:
    if layers is None:
        return list(range(model.n_layers))
    return sorted({site.layer for site in model.expand("resid_post", layers) if site.layer is not None})


@dataclass
class _Measures:
    """What is asked of every edited model: per measure, a number from 0 to 1 for each of its prompts."""

    facts: list[Example]
    answered: dict[str, list[Example]]
    locality: Prompts | None
    clusters: dict[str, np.ndarray]
    dealt: list[Example]
    unedited: np.ndarray = field(default_factory=lambda: np.empty(0))

    @classmethod
    def of(cls, model: AdaptedModel, facts: Prompts, paraphrases: Any, locality: Any, general: Any) -> _Measures:
        sets = {"reliability": facts, "paraphrase": _prompts(paraphrases), "general": _prompts(general)}
        answered = {name: examples_of(rows, model.tokenizer) for name, rows in sets.items() if rows is not None}
        local = _prompts(locality)
        clusters = {name: rows.clusters for name, rows in sets.items() if rows is not None}
        if local is not None:
            clusters["locality"] = local.clusters
        made = cls(answered["reliability"], answered, local, clusters, _dealt(answered["reliability"]))
        made.unedited = np.empty(0) if local is None else _next_words(model, local)
        return made

    def take(self, model: AdaptedModel) -> dict[str, np.ndarray]:
        """Measure -> prompt by prompt."""
        taken = {name: written_right(model, examples).astype(float) for name, examples in self.answered.items()}
        if self.locality is not None:
            taken["locality"] = (_next_words(model, self.locality) == self.unedited).astype(float)
        return taken


def _dealt(examples: list[Example]) -> list[Example]:
    """Each fact with the answer of the next one whose answer differs."""
    answers = [example.answer for example in examples]
    made = []
    for place, example in enumerate(examples):
        others = [*answers[place + 1 :], *answers[:place]]
        made.append(
            Example(example.prompt, next((other for other in others if other != example.answer), example.answer))
        )
    return made


@torch.no_grad()
def _next_words(model: AdaptedModel, rows: Prompts) -> np.ndarray:
    logits = model.forward(model.encode(rows), logits="last")
    assert logits is not None
    return logits[:, -1].argmax(-1).cpu().numpy()


def _edited(
    model: AdaptedModel, name: str, measures: _Measures, order: Literal["breadth", "depth"], schedule: Schedule
) -> dict[str, Any]:
    """Measures of the model with the facts written into one tensor, which comes back after."""
    parameter = base_parameters(model.hf)[name]
    with swapped({parameter: parameter.detach().clone()}):
        history = train_site(model, name, measures.facts, order, schedule, Silent())
        taken: dict[str, Any] = dict(measures.take(model))
    shuffled = np.nan
    if "paraphrase" in measures.answered:
        with swapped({parameter: parameter.detach().clone()}):
            train_site(model, name, measures.dealt, order, schedule, Silent())
            shuffled = float(written_right(model, measures.answered["paraphrase"]).mean())
    return {**taken, "shuffled": shuffled, "loss": history[-1]["loss"] if history else np.nan}


def _row(edited: dict[str, Any], before: dict[str, np.ndarray], measures: _Measures, seed: int) -> dict[str, float]:
    """Every measure counts the same: its prompts have weights that add up to their number over the measures."""
    names = [name for name in _MEASURES if name in before]
    sizes = {name: len(before[name]) for name in names}
    weight = {name: sum(sizes.values()) / len(names) / sizes[name] for name in names}
    clusters = _joined(measures.clusters, names)
    after = np.concatenate([edited[name] * weight[name] for name in names])
    apart = after - np.concatenate([before[name] * weight[name] for name in names])
    means = {name: float(edited[name].mean()) if name in names else np.nan for name in _MEASURES}
    score = float(np.mean([means[name] for name in names]))
    each = [scored_share(edited[name], seed=seed, clusters=measures.clusters[name]) for name in names]
    below = np.sqrt(sum((part["score"] - part["low"]) ** 2 for part in each)) / len(names)
    above = np.sqrt(sum((part["high"] - part["score"]) ** 2 for part in each)) / len(names)
    return {
        "score": score,
        "low": float(max(0.0, score - below)),
        "high": float(min(1.0, score + above)),
        "control": float(np.mean([before[name].mean() for name in names])),
        "p": paired_p(apart, clusters, seed=seed),
        **means,
        "shuffled": edited["shuffled"],
        "loss": edited["loss"],
        "n": sum(sizes.values()),
    }


def _joined(clusters: dict[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Clusters of several sets of prompts, numbered apart."""
    parts, start = [], 0
    for name in names:
        numbers = np.unique(clusters[name], return_inverse=True)[1]
        parts.append(numbers + start)
        start += int(numbers.max()) + 1
    return np.concatenate(parts)
