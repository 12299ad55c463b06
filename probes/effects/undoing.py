"""undoing: what training an instruction-tuned model on plain text, word after word, takes away of its instructions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from interventions.training.ablated import caft_finetune
from interventions.training.trainer import Schedule
from probes.call_settings import call_settings
from probes.halves import answer_scores
from probes.replay import counted
from probes.resampling import bootstrap_weights, interval, units_of
from probes.results import ProbeResult, Provenance
from probes.scored import beside_control, with_q
from workbench.argument_checks import check_pair
from workbench.behaviour.subject import Subject, Work
from workbench.errors import UserError
from workbench.method_options import As, Within
from workbench.methods import Needs, method
from workbench.models.adapted import AdaptedModel
from workbench.models.export import plain_copy
from workbench.models.null_adapters import null_adapter
from workbench.models.pair import ModelPair, load_pair
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.typing import Float

DRAWS = 1_000
FIRST_WORDS = 3
"""Words of a text that are read and not learnt: something must stand before what is predicted."""


@dataclass(frozen=True, kw_only=True)
class Undoing(ProbeResult):
    """One row per training of the tuned model (``module``): on the texts as they are, and on instruction rows.

    ``score``: change of the answers' log-probability (nats per token) on the instructions, with its interval over
    prompts; below 0: following was lost; ``control``: the same under random changes of the same norm in every module,
    ``q`` of the difference; ``retained``: what is left of tuned - base, as a share, from ``retained_low`` to
    ``retained_high`` (NaN where the interval of tuned - base holds 0: then there is nothing to keep a share of);
    ``learnt``: fall of the loss (nats per token) on the training rows; ``base``, ``tuned``: the answers before.
    """

    resampled: str = "prompts"

    title: ClassVar[str] = "What continued training undoes"
    unit: ClassVar[str] = "change of the answers' log-probability (nats per token)"

    def summary(self) -> str:
        said = "; ".join(
            f"after {row['module']} {row['score']:+.3g} nats [{row['low']:+.3g}, {row['high']:+.3g}] (random change "
            f"{row['control']:+.3g}, q = {row['q']:.2g}), {_left(row)}, learnt {row['learnt']:.3g}"
            for row in self.table.to_dict("records")
        )
        return f"{said}; over {self.resampled}. Control: {self.control}."


def _left(row: Mapping[Any, Any]) -> str:
    if np.isnan(row["retained"]):
        return f"no gain of the tuning is shown ({row['tuned'] - row['base']:+.3g} nats)"
    span = f"{row['retained_low']:.0%}, {row['retained_high']:.0%}"
    return f"{row['retained']:.0%} [{span}] of the tuning's gain left"


@method(
    "undoing",
    group="effects",
    question="Does training on plain text take instruction following away again, and do instruction rows spare it?",
    papers=("Learning to Generate Instruction Tuning Datasets for Zero-Shot Task Adaptation",),
    needs=Needs(columns=("answer",)),
    cost="a training per kind of rows, and a scored pass for each, its random changes and both models",
    example="--texts texts.jsonl --epochs 1 --draws 1",
    any_adapter="whether the further training moves the answers at all, whatever the pair",
)
def undoing(  # noqa: PLR0913
    pair: ModelPair,
    prompts: Prompts | Sequence[object],
    *,
    texts: Annotated[Any, As("prompts")],
    instructions: Annotated[Any, As("prompts")] = None,
    rank: int = 8,
    epochs: int = 3,
    learning_rate: Annotated[float, Within(0, None)] = 1e-3,
    batch_size: int = 8,
    draws: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Undoing:
    """Train a LoRA on a copy of the tuned model with the next-word loss on raw texts, and ask the instructions again.

    Bonito (Nayak et al. 2024) finds that adapting instruction-tuned models to a domain by its plain text undoes some of
    their tuning, and that rows of instructions made from the text do not. The pair is left as it is. The random changes
    tell what any change of that size would do.

    Args:
        pair: Base and the instruction-tuned model.
        prompts: Instructions with their answers: what should still be followed.
        texts: Plain texts of four words or more (without answers), or rows whose answer continues the prompt.
        instructions: Rows with answers made from the same texts, to train on beside.
        rank: Rank of the LoRA.
        epochs: Passes over the training rows.
        learning_rate: Its step size, falling linearly to 0.
        batch_size: Rows per step and per forward pass.
        draws: Random changes per training.
        seed: Of weights, order, random changes and intervals.

    Returns:
        An :class:`Undoing`.

    Raises:
        UserError: A text that is too short, or rows without answers.
    """
    check_pair(pair, prompts)
    rows, bar = Prompts.of(prompts), progress or Silent()
    kinds = {"plain texts": continued(Prompts.of(texts))}
    if instructions is not None:
        kinds["instruction rows"] = Prompts.of(instructions)
    schedule = Schedule(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    work = Work(batch_size)
    with counted(pair.base, pair.tuned) as passes:
        before = {role: answer_scores(Subject(role, model), rows, work) for role, model in pair.models.items()}
        lines = [
            {"module": name, **_line(pair, rows, own, before, (rank, schedule, draws), (work, bar))}
            for name, own in kinds.items()
        ]
    return Undoing(
        table=with_q(lines),
        control=f"random changes of the same norm in every module ({draws} draws)",
        provenance=Provenance.of(
            "undoing", pair, rows, seed=seed, forward_passes=passes.forward,
            settings=call_settings(
                None, texts=Prompts.of(texts), instructions=None if instructions is None else kinds["instruction rows"]
            ),
        ),
        resampled=units_of(rows.clusters),
    )  # fmt: skip


def continued(texts: Prompts) -> Prompts:
    """Plain texts as rows: the first words as they are, without a user's turn, and the rest to learn.

    Raises:
        UserError: A text is too short.
    """
    made = []
    for number, row in enumerate(texts):
        if row.answer:
            made.append({"prompt": row.prompt, "answer": row.answer})
            continue
        words = (row.prompt or "").split(" ")
        if len(words) <= FIRST_WORDS:
            raise UserError(f"Text {number} has {len(words)} words: give texts of {FIRST_WORDS + 1} words or more.")
        made.append({"prompt": " ".join(words[:FIRST_WORDS]), "answer": " " + " ".join(words[FIRST_WORDS:])})
    return Prompts.of(made).turned(chat=False)


def _line(
    pair: ModelPair, rows: Prompts, own: Prompts, before: dict[str, np.ndarray], how: tuple[int, Schedule, int],
    fronts: tuple[Work, Progress],
) -> dict[str, Any]:  # fmt: skip
    rank, schedule, draws = how
    work, bar = fronts
    taught = answer_scores(Subject("tuned", pair.tuned), own, work)
    trained = _trained(pair.tuned, own, rank, schedule, bar)
    change = answer_scores(Subject("tuned", trained.tuned), rows, work) - before["tuned"]
    learnt = answer_scores(Subject("tuned", trained.tuned), own, work) - taught
    random = np.array([outcome - before["tuned"] for outcome in _random(trained, rows, draws, schedule.seed, work)])
    chance = random.mean(0) if draws else np.zeros_like(change)
    gain = before["tuned"] - before["base"]
    return {
        **beside_control(change, chance, rows.clusters, seed=schedule.seed),
        **({} if draws else {"control": float("nan")}),
        **_retained(gain, change, rows.clusters, schedule.seed), "learnt": float(learnt.mean()),
        "base": float(before["base"].mean()), "tuned": float(before["tuned"].mean()), "n": len(rows),
    }  # fmt: skip


def _retained(gain: np.ndarray, change: np.ndarray, clusters: np.ndarray, seed: int) -> dict[str, float]:
    """The share of tuned - base that is left, with its interval over prompts; NaN where there is no such gain."""
    weights = bootstrap_weights(len(gain), DRAWS, seed, clusters)
    gains, changes = weights @ gain, weights @ change
    names = ("retained", "retained_low", "retained_high")
    if np.quantile(gains, 0.025) <= 0:
        return dict.fromkeys(names, float("nan"))
    low, high = interval((1 + changes / gains)[:, None])
    return dict(zip(names, (1 + change.mean() / gain.mean(), low[0], high[0]), strict=True))


def _trained(tuned: AdaptedModel, own: Prompts, rank: int, schedule: Schedule, bar: Progress) -> ModelPair:
    """A copy of the tuned model beside itself with a new LoRA; the pair's own model is as before."""
    from peft import LoraConfig

    with tuned.active():
        bare = AdaptedModel(plain_copy(tuned), tuned.tokenizer, role="model")
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    before = plain_copy(bare)
    made = caft_finetune(bare, own, None, lora=lora, schedule=schedule, progress=bar).model
    return load_pair(before, made.eval(), device=str(tuned.device), tokenizer=tuned.tokenizer, check=False)


def _random(
    trained: ModelPair, rows: Prompts, draws: int, seed: int, work: Work
) -> Iterator[Float[np.ndarray, " prompt"]]:
    for draw in range(draws):
        with null_adapter(trained, seed * 1009 + draw):
            yield answer_scores(Subject("tuned", trained.tuned), rows, work)
