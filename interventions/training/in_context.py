"""IA2 (Mishra et al. 2025): without examples in its prompt, a model learns to compute as it does behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch

from interventions.recipe import as_adapted
from interventions.training.examples import IGNORED, Collator, Example, examples_of
from interventions.training.objectives import Lesson
from interventions.training.stages import taught
from interventions.training.trainer import Schedule, answer_logits
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site, resolve_layers
from workbench.errors import UserError
from workbench.method_options import As
from workbench.methods import method
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.progress import Progress, Silent
from workbench.prompts.collection import Prompts
from workbench.prompts.encode import batches, encode
from workbench.stats.bootstrap import mean_interval
from workbench.stats.intervals import Interval
from workbench.typing import Float, Int, Tensor

Targets = list[Float[Tensor, "layer token d_model"]]
"""Of every row, at the tokens that predict its answer."""


@dataclass(frozen=True)
class ContextAlignment:
    """A model trained towards its own activations behind examples."""

    model: Any
    """The model that was given, trained in place."""
    distance_before: Interval
    """Squared distance from the activations behind examples, as a share of their own size, over rows."""
    distance_after: Interval
    history: tuple[dict[str, float], ...]


_SCHEDULE = Schedule(epochs=5, learning_rate=1e-4)
"""How long and how fast, where nothing else is said."""


@method(
    "in-context-alignment",
    group="training",
    question="What does a model become that is trained to compute as examples in the prompt would make it?",
    kind="training",
    papers=("IA2: Alignment with ICL Activations Improves Supervised Fine-Tuning",),
    cost="a forward pass per row behind its examples, then a forward and backward pass per batch",
    expands={"schedule": _SCHEDULE},
    example="--shown shown.jsonl --epochs 1",
)
def align_with_context(
    model: Any,
    prompts: Any,
    shown: Annotated[Any, As("prompts")],
    *,
    site: str = "attn_out",
    layers: Any = None,
    end: bool = True,
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> ContextAlignment:
    """Train what takes gradients (all weights, or an adapter's), in place, on the distance of activations alone.

    The model first reads every row behind its examples; what the ``site`` of each layer holds at the tokens that
    predict the answer is the goal. Then it learns to hold the same without the examples, by mean squared error, each
    layer as a share of its goal's size. Tokens are matched by what they are, since their positions differ. Fine-tuning
    on the answers (:func:`tune_in_stages`) comes after, as in the paper; ``localize in-context-activations`` says
    how like both kinds of adaptation are.

    Args:
        model: A bare model, or one with a trainable adapter.
        prompts: Rows with an answer.
        shown: The same rows, each behind its examples (``probes.effects.rewriting.with_demonstrations`` makes them).
        site: Which activations are matched, as attn_out or resid_post.
        layers: Layers: indices or fractions of depth; by default all.
        end: The end of the answer is matched too.
        schedule: How long and how fast.

    Returns:
        The model, and how far it was and is from its activations behind examples.

    Raises:
        UserError: Rows without answers, or another number of rows with examples.

    Example:
        >>> shown = with_demonstrations(rows, rows, 4, seed=0)  # doctest: +SKIP
        >>> align_with_context(model, rows, shown).distance_after  # doctest: +SKIP
    """
    adapted, schedule = as_adapted(model), schedule or _SCHEDULE
    rows, behind = Prompts.of(prompts), Prompts.of(shown)
    if len(rows) != len(behind):
        raise UserError(f"There are {len(rows)} rows and {len(behind)} with examples: give each row once in both.")
    examples = examples_of(rows, adapted.tokenizer, end=end)
    before = [Example(list(ids), own.answer) for ids, own in zip(_read(adapted, behind), examples, strict=True)]
    reader = _Reader(adapted, [Site(site, layer) for layer in resolve_layers(layers, adapted.n_layers)])
    moving = [parameter for parameter in adapted.hf.parameters() if parameter.requires_grad]
    if not moving:
        raise UserError("Nothing in this model takes gradients: give a bare model, or one with a trainable adapter.")
    goals = reader.of(before, schedule.batch_size)
    lesson = Lesson(
        [replace(example, reference=(float(number),)) for number, example in enumerate(examples)],
        Collator(pad_id(adapted.tokenizer)), reader.objective(goals),
    )  # fmt: skip
    apart = [reader.apart(examples, goals, schedule.batch_size)]
    with reader.open():
        history = taught(adapted, moving, lesson, schedule, "in-context alignment", progress or Silent())
    adapted.hf.eval()
    apart.append(reader.apart(examples, goals, schedule.batch_size))
    intervals = [mean_interval(distances, clusters=rows.clusters) for distances in apart]
    return ContextAlignment(model, intervals[0], intervals[1], history)


def _read(model: AdaptedModel, rows: Prompts) -> list[list[int]]:
    return encode(rows, model.tokenizer, model.max_positions)


def share_apart(
    states: Float[Tensor, "layer token d_model"], goal: Float[Tensor, "layer token d_model"]
) -> Float[Tensor, ""]:
    """Squared distance as a share of the goal's squared size, the mean over layers; 0 for states that are the goal."""
    size = goal.square().mean((1, 2)).clamp_min(torch.finfo(torch.float32).tiny)
    return ((states - goal).square().mean((1, 2)) / size).mean()


class _Reader:
    """What some sites held in the last forward pass, at the tokens that predict answers."""

    def __init__(self, model: AdaptedModel, sites: Sequence[Site]) -> None:
        self.model, self.sites = model, sites
        self._held: dict[Site, Tensor] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Read every forward pass inside."""

        def keep(site: Site) -> Callable[[Tensor, Any], None]:
            def read(value: Tensor, _ctx: Any) -> None:
                self._held[site] = value

            return read

        with self.model.hooked([SiteHook(site, keep(site)) for site in self.sites]):
            yield

    def rows(self, labels: Int[Tensor, "row pos"]) -> Targets:
        """Row by row, of the last pass."""
        at = labels[:, 1:] != IGNORED
        held = torch.stack([self._held[site].to(labels.device).float() for site in self.sites])
        return [held[:, row, :-1][:, where] for row, where in enumerate(at)]

    def objective(self, goals: Targets) -> Callable[..., Tensor]:
        """The loss of a batch: its rows' distances from their goals."""

        def loss(_logits: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
            numbers = reference[:, 0].long().tolist()
            pairs = zip(self.rows(labels), numbers, strict=True)
            return torch.stack([share_apart(own, goals[number].to(own.device)) for own, number in pairs]).mean()

        return loss

    @torch.no_grad()
    def of(self, examples: Sequence[Example], batch_size: int) -> Targets:
        """The states of every example."""
        states_of: dict[int, Tensor] = {}
        collate = Collator(pad_id(self.model.tokenizer))
        with self.open():
            for members in batches([len(example.prompt) + len(example.answer) for example in examples], batch_size):
                batch = collate([examples[member] for member in members])
                answer_logits(self.model, batch["input_ids"], batch["attention_mask"])
                states = self.rows(batch["labels"])
                states_of |= {member: own.cpu() for member, own in zip(members, states, strict=True)}
        return [states_of[number] for number in range(len(examples))]

    def apart(self, examples: Sequence[Example], goals: Targets, batch_size: int) -> Float[np.ndarray, " row"]:
        """How far each example's states are from its goal."""
        pairs = zip(self.of(examples, batch_size), goals, strict=True)
        return np.array([float(share_apart(own, goal)) for own, goal in pairs])
