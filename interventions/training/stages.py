"""Stages of tuning: a model is trained on one set of rows after another, each with an objective of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from interventions.recipe import as_adapted
from interventions.training.ablated import with_lora
from interventions.training.log import save_steps
from interventions.training.masked_optimizer import holding_small_steps
from interventions.training.objectives import OBJECTIVES, Lesson, lesson_of
from interventions.training.trainer import OnFrozen, Schedule, frozen, seeded
from workbench.errors import UserError, unknown_name
from workbench.method_options import As
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.models.export import plain_copy
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.resumable_trainer import ResumableTrainer

FEW = 0.05
"""Share of the special rows that dual-stage tuning shows again."""


class Stage(NamedTuple):
    """Rows and what is learnt from them."""

    rows: Any
    objective: str = "answer"
    """One of :data:`interventions.training.objectives.OBJECTIVES`."""


@dataclass(frozen=True)
class StagedTuning:
    """A model after all stages."""

    model: Any
    """The Hugging Face model that was given, or the ``PeftModel`` on it."""
    histories: tuple[tuple[dict[str, float], ...], ...]
    """Per stage and step: ``step``, ``epoch``, ``loss`` in nats, ``learning_rate``, ``grad_norm``."""


_SCHEDULE = Schedule(epochs=1, learning_rate=1e-4)
"""How long and how fast, where nothing else is said."""


@method(
    "tune-in-stages",
    group="training",
    question="What does a model learn from texts, answers or preferences, one stage after the other?",
    kind="training",
    papers=(
        "Masked Thought: Simply Masking Partial Reasoning Steps Can Improve Mathematical Reasoning Learning of "
        "Language Models",
    ),
    cost="a forward and backward pass per batch and stage",
    expands={"schedule": _SCHEDULE},
    example="--stages text=long.jsonl --stages answer=p.jsonl",
)
def tune_in_stages(
    model: Any,
    stages: Annotated[Sequence[Stage] | Mapping[str, Any], As("prompt sets")],
    *,
    lora: Annotated[Any, As("lora")] = None,
    beta: float = 0.1,
    mask_share: float = 0.4,
    end: bool = True,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> StagedTuning:
    """Train ``model`` in place, stage by stage: continued pre-training, fine-tuning, preferences, in any order.

    Example:
        >>> tuned = tune_in_stages(model, [Stage(texts, "text"), Stage(rows), Stage(pairs, "dpo")])  # doctest: +SKIP

    Args:
        model: A bare model; its weights are changed unless ``lora`` is given.
        stages: Rows, each with its objective: text, answer, masked_thought, dpo or orpo; or objective -> rows.
        lora: A PEFT config (on the command line the rank of a LoRA on every linear layer), put on the model before the
            first stage; None trains every weight.
        beta: Strength of dpo, weight of orpo's odds ratio.
        mask_share: Share of an answer's tokens that masked_thought hides in the input.
        schedule: How long and how fast, each stage alike; every stage starts at the full learning rate.

    Returns:
        The model with the history of each stage.

    Raises:
        UserError: No stage, an unknown objective, or rows that lack what the objective reads.
    """
    stages = [Stage(rows, name) for name, rows in stages.items()] if isinstance(stages, Mapping) else stages
    stages = [Stage(*stage) if isinstance(stage, tuple) else Stage(stage) for stage in stages]
    if not stages:
        raise UserError("There is nothing to train on: give at least one stage.")
    for stage in stages:
        if stage.objective not in OBJECTIVES:
            raise unknown_name("objective", stage.objective, OBJECTIVES)
    if not 0 <= mask_share < 1:
        raise UserError(f"mask_share is a share of an answer's tokens, from 0 to below 1; got {mask_share:g}.")
    adapted, schedule = as_adapted(model), schedule or _SCHEDULE
    trained = adapted.hf if lora is None else with_lora(adapted, lora, schedule.seed)
    moving = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    histories = []
    for number, stage in enumerate(stages):
        lesson = lesson_of(
            adapted, stage.rows, stage.objective, end=end, beta=beta, mask_share=mask_share,
            seed=schedule.seed + number,
            batch=schedule.batch_size,
        )  # fmt: skip
        histories.append(taught(adapted, moving, lesson, schedule, stage.objective, progress or Silent()))
    return StagedTuning(trained, tuple(histories))


def taught(
    model: AdaptedModel, moving: Sequence[Any], lesson: Lesson, schedule: Schedule, what: str, progress: Progress
) -> tuple[dict[str, float], ...]:
    """Train the parameters ``moving`` on a lesson; flags, modes and random states come back after. The history."""
    if not lesson.examples:
        raise UserError("There is nothing to train on: a stage has no rows.")
    with ExitStack() as stack:
        stack.enter_context(frozen(model))
        stack.enter_context(seeded(schedule.seed))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(model.active())
        for parameter in moving:
            parameter.requires_grad_(True)
        trainer = ResumableTrainer(
            model=OnFrozen(model, {str(place): weight for place, weight in enumerate(moving)}, lesson.objective),
            args=schedule.arguments(folder, model.device),
            train_dataset=list(lesson.examples),
            data_collator=lesson.collator,
            **holding_small_steps(moving, schedule.learning_rate),
        )
        try:
            return trainer.run(what, progress)
        finally:
            for parameter in moving:
                parameter.grad = None


@method(
    "tune-series",
    group="training",
    question="What becomes of one base under different data, or the same data in another order?",
    kind="training",
    papers=(
        "How Abilities in Large Language Models are Affected by Supervised Fine-tuning Data Composition",
        "How Far Can Camels Go? Exploring the State of Instruction Tuning on Open Resources",
        "Fine-tuning large language models for domain adaptation: Exploration of training strategies, scaling, model "
        "merging and synergistic capabilities",
    ),
    cost="a training per member, each of a copy of the base",
    expands={"schedule": _SCHEDULE},
    example="--members near=p.jsonl --members far=long.jsonl",
)
def tune_series(
    model: Any,
    members: Annotated[Mapping[str, Any], As("prompt sets")],
    out: str | Path,
    *,
    lora: Annotated[Any, As("lora")] = None,
    beta: float = 0.1,
    mask_share: float = 0.4,
    end: bool = True,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Train one member of a series per entry, each from the same base, and save it in ``out/<name>``.

    :func:`compositions` makes the members of the data composition study (alone, mixed, sequential, dual-stage). One
    member per data set, ``{name: [Stage(rows)]}``, is the set-up of Tulu; CPT, SFT, DPO and ORPO of one domain that of
    domain adaptation. What the members can do, and whether their updates collide, tell ``probes.ability_collisions``
    and ``probes.merge_synergy``.

    Args:
        model: The base; it stays as it is.
        members: Name -> its stages, or the rows of the one stage that it has.
        out: A folder, made if it is not there.
        lora: A function without arguments that makes a PEFT config, or a config (on the command line the rank of a LoRA
            on every linear layer); None trains every weight.
        beta: Strength of dpo, weight of orpo's odds ratio.
        mask_share: Share of an answer's tokens that masked_thought hides in the input.
        end: The models also learn to stop after an answer.
        schedule: How long and how fast, each stage alike.

    Returns:
        Name -> folder, in the members' order: what ``workbench.load_series`` takes.

    Raises:
        UserError: No member, a name that is no folder name, a folder that is there already, or what
            :func:`tune_in_stages` refuses.
    """
    base, home = as_adapted(model), Path(out)
    members = {name: [Stage(rows)] if isinstance(rows, Prompts) else rows for name, rows in members.items()}
    _check_members(members, home)
    folders: dict[str, Path] = {}
    for name, stages in members.items():
        with base.active():
            copied = AdaptedModel(plain_copy(base), base.tokenizer, role="model")
        config = lora() if callable(lora) else lora
        made = tune_in_stages(
            copied, stages, lora=config, beta=beta, mask_share=mask_share, end=end, schedule=schedule,
            progress=progress,
        )  # fmt: skip
        made.model.eval().save_pretrained(home / name)
        base.tokenizer.save_pretrained(home / name)
        save_steps(made, home / name)
        folders[name] = home / name
    return folders


def _check_members(members: Mapping[str, Sequence[Stage]], home: Path) -> None:
    if not members:
        raise UserError("The series is empty: name at least one member with its stages.")
    for name in members:
        if not name or Path(name).name != name:
            raise UserError(f"{name!r} cannot be the name of a folder: use letters, digits, dots and dashes.")
        if (home / name).exists():
            raise UserError(f"{home / name} exists already: choose another folder or delete it first.")


def compositions(
    abilities: Mapping[str, Any], general: Any = None, *, few: float = FEW, seed: int = 0
) -> dict[str, list[Stage]]:
    """The data compositions of Dong et al. (2023): each ability alone, all mixed, one after the other, dual-stage.

    Dual-stage learns the special abilities mixed, and then the general one with a ``few`` of their rows. Sequential
    learns the abilities in their order and the general one last.

    Args:
        abilities: Name -> rows with answers of a special ability (mathematics, code).
        general: Rows of the general ability (chat), the last to be learnt; None: the last of ``abilities`` is it.
        few: Share of the special rows that dual-stage shows again.
        seed: Of the order and of which rows are shown again.

    Returns:
        Member -> stages, for :func:`tune_series`.

    Raises:
        UserError: There is nothing to compose: fewer than two sets of rows.
    """
    named = {name: Prompts.of(rows) for name, rows in abilities.items()}
    if general is not None:
        named["general"] = Prompts.of(general)
    if len(named) < 2:
        raise UserError("A composition needs two sets of rows at least: give more abilities, or general rows.")
    *special, last = named.values()
    random = np.random.default_rng(seed)
    repeated = [rows[random.permutation(len(rows))[: max(1, round(few * len(rows)))]] for rows in special]
    return {
        **{f"only-{name}": [Stage(rows)] for name, rows in named.items()},
        "mixed": [Stage(_joined(list(named.values())))],
        "sequential": [Stage(rows) for rows in named.values()],
        "dual-stage": [Stage(_joined(special)), Stage(_joined([last, *repeated]))],
    }


def _joined(sets: Sequence[Prompts]) -> Prompts:
    return Prompts([row for rows in sets for row in rows])
