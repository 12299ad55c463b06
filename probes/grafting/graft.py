"""graft: the smallest set of weights that carries a skill (Panigrahi, Saunshi, Zhao & Arora 2023)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import numpy as np

from probes.call_settings import call_settings
from probes.grafting.blend import Blender
from probes.grafting.curve import Judge, sparsity_curve, variants
from probes.grafting.cutting import pair_region
from probes.grafting.language import AnswerRows, answer_rows
from probes.grafting.regions import LEVELS, Level
from probes.grafting.result import GraftResult, density_table, stored_mask
from probes.grafting.search import METHODS, Method, Settings, search
from probes.grafting.tasks import outcome
from probes.grafting.units import entries_in, tensor_effects
from probes.results import Provenance
from workbench.argument_checks import read_options
from workbench.errors import UserError, unknown_name
from workbench.method_options import As, Within
from workbench.methods import Needs, method
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts

Name = TypeVar("Name", bound=str)
_FEWEST = 8
_HELD_OUT = 0.4
CONTROL = "random masks with as many entries in every tensor, and the entries that moved most (movement only)"


@method(
    "skills",
    gives=("region",),
    group="skills",
    question="Which tuned weights, put into the base, carry the task?",
    papers=("Task-Specific Skill Localization in Fine-tuned Language Models",),
    needs=Needs(columns=("answer",)),
    cost="epochs x one forward and backward pass per batch",
    example="--level modules",
)
def graft(
    pair: Any,
    prompts: Any,
    *,
    method: Method | str = "adaptive",
    level: Level | str = "entries",
    sparsity: Annotated[float, Within(1e-12, 1)] = 1e-3,
    answer_tokens: Literal["first", "all"] | str = "first",
    ood: Annotated[Any, As("prompts")] = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> GraftResult:
    """Find the weights of the tuned model that, put into the base, carry the task of ``prompts``.

    Each prompt needs an ``answer``; a ``distractor`` in every row makes it a choice of two, else all answers
    are candidates. 60 % of the prompts fit the mask, the others judge it (groups stay together). ``ood``: prompts
    of the same task from elsewhere. Weights inside the layers are eligible, embeddings and the head are not.

    ``method``: "adaptive" (bounded steps and a price per unit: small regions, which may be compared between skills),
    "optimised" (the paper's mask, which has no price, so it keeps entries that do nothing), "movement", "first_order"
    (one forward and backward; the table's ``effect`` is then the loss that each tensor's whole change takes away to
    first order). ``level``: "entries", "rows", "heads", "modules", "ranks" of a LoRA.
    ``sparsity``: the share to start from (optimised) or to take. ``options``: fields of
    :class:`probes.grafting.Settings` (epochs, start, offset, lr, penalty, sparsities, draws, batch_size).

    Memory for float32 weights by entries, in copies of them: base, tuned, logits (float32) and, while optimising,
    slopes (float16), later two masks (a quarter each). That is 3.5, and a few tensors at a time: below 4 where no
    tensor is large beside the whole. Logits and slopes take 6 bytes an entry whatever the weights' type: with two
    bfloat16 models 10 bytes in all, five copies of 2.

    Raises :class:`UserError` when the tuned model is no better than the base, nothing differs, or prompts are
    too few.

    Args:
        method: How the region is chosen.
        level: What is chosen: entries, rows, heads, modules or ranks.
        sparsity: The share of weights to start from.
        answer_tokens: Candidates are compared by their first tokens, or by the summed log-probability of all their
            tokens, teacher-forced in one pass.
        ood: Prompts of the same task from elsewhere, which judge too.
    """
    how = _one_of("method", method, METHODS)
    units = _one_of("level", level, LEVELS)
    if not 0 < sparsity <= 1:
        raise UserError(f"The sparsity is the share of weights to graft, above 0 and at most 1; got {sparsity:g}.")
    settings = read_options(Settings, {"sparsity": sparsity, "seed": seed, **options})
    watch = progress or Silent()
    rows = Prompts.of(prompts)
    whole = _one_of("answer_tokens", answer_tokens, ("first", "all")) == "all"
    data = answer_rows(rows, pair.base, whole=whole)
    fit, held_out = _split(data, seed)
    blender = Blender(pair.base.hf, pair_region(pair, units))
    judge = _judge(pair, data, held_out, ood, blender, settings)
    found_region = search(blender, data.task(fit, pair.base, settings.batch_size), how, settings, watch)
    ranking = found_region.pop_ranking()
    effects = tensor_effects(ranking) if how == "first_order" else np.nan
    curve = sparsity_curve(judge, ranking, settings.sparsities, settings.draws, watch)
    mask = found_region.mask
    models = variants(judge, mask, settings.draws)
    made = Provenance.of(
        "graft",
        pair,
        rows,
        seed=seed,
        forward_passes=found_region.forward_passes + judge.forward_passes,
        backward_passes=found_region.backward_passes,
        settings=call_settings(settings, ood=None if ood is None else Prompts.of(ood)),
    )
    return GraftResult(
        table=density_table(blender.region, mask).assign(effect=effects), control=CONTROL, provenance=made,
        mask=stored_mask(blender.region, mask, units), curve=curve, models=models, method=method, level=level,
        entries=entries_in(blender.region, mask), eligible=blender.region.n_entries, dropped=data.dropped,
        history=[[accuracy, float(size)] for accuracy, size in found_region.history],
    )  # fmt: skip


def _one_of(what: str, value: str, known: tuple[Name, ...]) -> Name:
    for name in known:
        if name == value:
            return name
    raise unknown_name(what, value, known)


def _split(data: AnswerRows, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to fit on and to judge by; a group is never on both sides."""
    groups = np.unique(data.clusters)
    held = set(np.random.default_rng(seed).permutation(groups)[: round(len(groups) * _HELD_OUT)].tolist())
    outside = np.array([cluster in held for cluster in data.clusters])
    fit, held_out = np.flatnonzero(~outside), np.flatnonzero(outside)
    if min(len(fit), len(held_out)) < _FEWEST:
        raise UserError(
            f"{len(data.ids)} usable prompts in {len(groups)} groups are too few: at least {_FEWEST} are needed to "
            f"fit the mask and {_FEWEST} others to judge it."
        )
    return fit, held_out


def _judge(pair: Any, data: AnswerRows, rows: np.ndarray, ood: Any, blender: Blender, settings: Settings) -> Judge:
    """Measures both models first: there is nothing to localize where tuning brought nothing."""
    batch_size = settings.batch_size
    before = outcome(data.task(rows, pair.base, batch_size), pair.base.hf)
    tuned = outcome(data.task(rows, pair.tuned, batch_size), pair.tuned.hf)
    if tuned.accuracy <= before.accuracy:
        raise UserError(
            f"Nothing to localize: the tuned model's accuracy on the held-out prompts ({tuned.accuracy:.3f}) is no "
            f"better than the base's ({before.accuracy:.3f}); give prompts of the task it was tuned for."
        )
    judge = Judge(blender, data.task(rows, pair.base, batch_size), tuned, seed=settings.seed)
    judge.forward_passes = 2 * len(judge.test.batches)
    if ood is not None:
        other = answer_rows(Prompts.of(ood), pair.base, whole=data.whole is not None)
        every = np.arange(len(other.ids))
        judge.ood = other.task(every, pair.base, batch_size)
        judge.tuned_ood = outcome(other.task(every, pair.tuned, batch_size), pair.tuned.hf)
    return judge
