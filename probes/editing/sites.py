"""edit_sites: the same facts written into each matrix in turn, and what each edit brings and costs (LocFT-BF)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd

from interventions.training.editing import KEPT_TOKENS, Edit, own_replies, scattered_masks, site_name, written_right
from interventions.training.examples import Example
from interventions.training.trainer import Schedule
from interventions.weightspace.swapping import base_parameters, swapped
from probes.call_settings import call_settings
from probes.editing.measures import MEASURES, EditMeasures, mean_of, prompts_or_none
from probes.results import ProbeResult, Provenance
from probes.scored import with_q
from workbench.argument_checks import check_subject
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.progress import Progress, Silent, tracked
from workbench.prompts.collection import Prompts


@dataclass(frozen=True, kw_only=True)
class EditSites(ProbeResult):
    """One row per layer and matrix that was edited alone.

    ``score``: the mean over prompts of what was measured: facts written right (``reliability``), other wordings of
    them (``paraphrase``), replies to unrelated prompts that stayed (``locality``), other tasks' answers still right
    (``general``), each of which has a column (NaN: no such prompts) and counts the same. ``control``: the score of the
    unedited model, ``q`` of the difference. ``shuffled``: the paraphrases' share after the same edit with the answers
    dealt out anew, NaN without paraphrases: what is not knowledge of the facts. ``scattered``: the score after the
    same edit of as many entries, drawn at random from the matrices of that kind in all layers: what any place gives.
    ``perplexity``: of the neutral texts, edited over unedited (NaN: no such texts). ``loss``: of the last step, in
    nats; ``epochs``: passes that the edit took.
    """

    title: ClassVar[str] = "Sites of an edit"
    unit: ClassVar[str] = "mean of reliability, paraphrase, locality and general ability"

    def summary(self) -> str:
        best = self.frame().iloc[0]
        parts = ", ".join(f"{name} {best[name]:.2f}" for name in MEASURES if not np.isnan(best[name]))
        text = (
            f"Best of {len(self.table)} sites: L{best['layer']:.0f} {best['module']}, {best['score']:.2f} "
            f"[{best['low']:.2f}, {best['high']:.2f}] ({parts}); unedited {best['control']:.2f}, as many scattered "
            f"entries {best['scattered']:.2f}"
        )
        if not np.isnan(best["perplexity"]):
            text += f"; perplexity of neutral text x {best['perplexity']:.3f}"
        return f"{text}. Control: {self.control}."


@method(
    "edit-sites",
    group="weights",
    question="Into which matrix are these facts best written, and what does the edit cost elsewhere?",
    papers=("Fine-tuning Done Right in Model Editing",),
    needs=Needs(columns=("answer",)),
    cost="a training of one matrix per site (two with paraphrases) and of scattered entries per kind of matrix, and a "
    "few forward passes",
    example="--layers 0 --epochs 1",
)
def edit_sites(  # noqa: PLR0913
    subject: Any,
    prompts: Any,
    *,
    paraphrases: Annotated[Any, As("prompts")] = None,
    locality: Annotated[Any, As("prompts")] = None,
    general: Annotated[Any, As("prompts")] = None,
    neutral: Annotated[Any, As("prompts")] = None,
    keep: Annotated[Any, As("prompts")] = None,
    locality_tokens: int = 1,
    layers: Any = None,
    modules: Sequence[str] = ("mlp.down_proj",),
    order: Literal["breadth", "depth"] = "breadth",
    epochs: int = 20,
    early: bool = True,
    learning_rate: float = 1e-3,
    batch_size: int = 2,
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
        neutral: Plain texts whose perplexity is compared with the unedited model's.
        keep: Prompts whose replies are trained to stay, at every site, as in :func:`interventions.edit_facts`; none of
            them may be among those of ``locality``, which measure what was not trained.
        locality_tokens: First tokens of the unedited model's own reply to each locality prompt that must all stay.
        layers: Layers to edit: indices or fractions of depth; all by default.
        modules: Paths of matrices inside a layer.
        order: breadth (epochs over mini-batches) or depth (fact by fact).
        epochs: Passes over the facts, at most.
        early: Stop after the first pass that has every fact written right.
        batch_size: Facts per step; a few dozen steps are needed, whatever their size.
        seed: Of the order of the facts, the dealing of the control and the intervals.

    Raises:
        UserError: A matrix that the model lacks, rows without answers, a prompt both kept and measured.
    """
    check_subject(subject)
    model: AdaptedModel = getattr(subject, "base", subject)
    if model.tokenizer is None:
        raise UserError("This model has no tokenizer, which facts need: load it with one.")
    rows = Prompts.of(prompts)
    others = {
        "paraphrases": paraphrases, "locality": locality, "general": general, "neutral": neutral, "keep": keep,
    }  # fmt: skip
    read = {name: prompts_or_none(texts) for name, texts in others.items()}
    sites = [(layer, module) for layer in _layers(model, layers) for module in modules]
    for layer, module in sites:
        site_name(model, layer, module)
    measures = EditMeasures.of(
        model,
        {"reliability": rows, "paraphrase": read["paraphrases"], "locality": read["locality"],
         "general": read["general"]},
        read["neutral"], locality_tokens,
    )  # fmt: skip
    schedule = Schedule(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    own = [] if read["keep"] is None else _kept(model, read["keep"], measures)
    edit = Edit(measures.facts, own, order, early, schedule)
    watch = progress or Silent()
    watch.start("edit sites", len(sites) + len(modules))
    edits = _Edits(model, measures, edit, watch)
    return EditSites(
        table=with_q(edits.table(sites), keep_p=False),
        control="the unedited model on the same prompts; the same edit with the answers dealt out anew (shuffled), and "
        "of as many entries drawn at random from all layers (scattered)",
        provenance=Provenance.of("edit_sites", model, rows, seed=seed, settings=call_settings(None, **read)),
    )


def _layers(model: AdaptedModel, layers: Any) -> list[int]:
    if layers is None:
        return list(range(model.n_layers))
    return sorted({site.layer for site in model.expand("resid_post", layers) if site.layer is not None})


def _kept(model: AdaptedModel, keep: Prompts, measures: EditMeasures) -> list[Example]:
    """Rows that hold replies to other prompts in place. Raises :class:`UserError` for one that locality measures."""
    kept = own_replies(model, keep, KEPT_TOKENS)
    measured = {tuple(example.prompt) for example in measures.answered.get("locality", [])}
    if shared := [number for number, example in enumerate(kept) if tuple(example.prompt) in measured]:
        raise UserError(
            f"Prompt {shared[0]} of keep is among those of locality too, where it would measure what was trained: "
            "take it out of one."
        )
    return kept


@dataclass(frozen=True)
class _Edits:
    """The same facts written into one place after the other; every weight comes back."""

    model: AdaptedModel
    measures: EditMeasures
    edit: Edit
    watch: Progress

    def table(self, sites: Sequence[tuple[int, str]]) -> pd.DataFrame:
        """One row per site."""
        before, perplexity = self.measures.take(self.model), self.measures.perplexity(self.model)
        scattered = {module: self._scattered(module) for module in dict.fromkeys(module for _, module in sites)}
        rows = []
        for layer, module in tracked(sites, self.watch):
            taken, others = self._edited(site_name(self.model, layer, module))
            row = self.measures.row(taken, before, self.edit.schedule.seed)
            others["perplexity"] /= perplexity
            rows.append({"layer": layer, "module": module, **row, **others, "scattered": scattered[module]})
        self.watch.finish()
        return pd.DataFrame(rows)

    def _edited(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Measures with the facts in one tensor, and beside them perplexity, shuffled and the last loss."""
        parameter, silent = base_parameters(self.model.hf)[name], Silent()
        with swapped({parameter: parameter.detach().clone()}):
            history = self.edit.of_tensor(self.model, name, silent)
            taken, perplexity = self.measures.take(self.model), self.measures.perplexity(self.model)
        shuffled = np.nan
        if "paraphrase" in self.measures.answered:
            with swapped({parameter: parameter.detach().clone()}):
                replace(self.edit, facts=self.measures.dealt).of_tensor(self.model, name, silent)
                shuffled = float(written_right(self.model, self.measures.answered["paraphrase"]).mean())
        loss = history[-1]["loss"] if history else np.nan
        epochs = round(history[-1]["epoch"], 2) if history else np.nan
        return taken, {"perplexity": perplexity, "shuffled": shuffled, "loss": loss, "epochs": epochs}

    def _scattered(self, module: str) -> float:
        """The score after the same edit of as many entries drawn from that module in all layers."""
        masks = scattered_masks(self.model, module, self.edit.schedule.seed)
        parameters = base_parameters(self.model.hf)
        with swapped({parameters[name]: parameters[name].detach().clone() for name in masks}):
            self.edit.of_entries(self.model, masks, Silent())
            score = mean_of(self.measures.take(self.model))
        self.watch.advance()
        return score
