"""One steer: base, tuned and steered answers to the same prompts, and the proof that the model came back."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.errors import ModelBusy, UserError

if TYPE_CHECKING:
    import pandas as pd

    from interventions.recipe import Recipe
    from workbench.behaviour.first_difference import Parted
    from workbench.models.pair import ModelPair


@dataclass(frozen=True)
class Steered:
    """Answers by prompt, and what was checked afterwards."""

    prompts: tuple[str, ...]
    base: tuple[str, ...]
    tuned: tuple[str, ...]
    steered: tuple[str, ...]
    parted: tuple[Parted | None, ...]
    """Where each steered answer leaves that of its own model; None where it is the same."""
    n_hooks: int
    """Hooks left on the steered model after the run."""
    identical: bool
    """Whether its logits on the prompts are, bit by bit, those from before the run."""
    device: str = "cpu"
    seconds: float = 0.0
    reads: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """The text that the steered model read of each prompt, and its token ids."""

    @property
    def restored(self) -> bool:
        return self.identical and self.n_hooks == 0

    def frame(self) -> pd.DataFrame:
        """A row per prompt."""
        import pandas as pd

        return pd.DataFrame({"prompt": self.prompts, "base": self.base, "tuned": self.tuned, "steered": self.steered})


@dataclass(frozen=True)
class Swept:
    """Answers [prompt][strength], and what was checked afterwards."""

    prompts: tuple[str, ...]
    strengths: tuple[float, ...]
    texts: tuple[tuple[str, ...], ...]
    n_hooks: int
    identical: bool
    device: str = "cpu"
    seconds: float = 0.0

    @property
    def restored(self) -> bool:
        return self.identical and self.n_hooks == 0

    def frame(self) -> pd.DataFrame:
        """A row per prompt and strength."""
        import pandas as pd

        return pd.DataFrame([
            {"prompt": prompt, "strength": strength, "answer": text}
            for prompt, texts in zip(self.prompts, self.texts, strict=True)
            for strength, text in zip(self.strengths, texts, strict=True)
        ])  # fmt: skip


def run_steer(
    pair: ModelPair, recipe: Recipe, prompts: Sequence[Any], *, strength: float, side: str, max_new_tokens: int
) -> Steered:
    """Answer greedily with base, tuned, and ``side`` under ``recipe`` times ``strength``.

    Holds both models throughout. Raises :class:`ModelBusy` when another tab holds them, and :class:`UserError` for a
    recipe that does not fit.
    """
    from workbench.behaviour.first_difference import first_difference

    model, began = pair.models[side], time.perf_counter()
    with _held(pair), _watched(model, prompts) as watch:
        read = model.reads(prompts)
        applied = recipe if strength == 1.0 else recipe * strength
        applied.check(model)
        plain = {name: model.generate(prompts, max_new_tokens=max_new_tokens) for name, model in pair.models.items()}
        with applied.applied(model):
            steered = model.generate(prompts, max_new_tokens=max_new_tokens)
    parted = [first_difference(new, old, pair.tokenizer) for new, old in zip(steered, plain[side], strict=True)]
    return Steered(
        tuple(read["prompt"]), tuple(plain["base"]), tuple(plain["tuned"]), tuple(steered), tuple(parted),
        device=str(model.device), seconds=time.perf_counter() - began,
        reads=tuple((text, tuple(ids)) for text, ids in zip(read["text"], read["input_ids"], strict=True)), **watch,
    )  # fmt: skip


def run_sweep(
    pair: ModelPair,
    recipe: Recipe,
    prompts: Sequence[Any],
    *,
    strengths: Sequence[float],
    side: str,
    max_new_tokens: int,
) -> Swept:
    """Answer with ``side`` under ``recipe`` times each strength, as one batch where the recipe allows it."""
    from interventions.sweep import steered_texts

    model, began = pair.models[side], time.perf_counter()
    with _held(pair), _watched(model, prompts) as watch:
        read = model.reads(prompts)
        texts = steered_texts(model, recipe, list(prompts), strengths, max_new_tokens=max_new_tokens)
    return Swept(
        tuple(read["prompt"]), tuple(strengths), tuple(tuple(row) for row in texts),
        device=str(model.device), seconds=time.perf_counter() - began, **watch,
    )  # fmt: skip


@contextmanager
def _held(pair: ModelPair) -> Iterator[None]:
    """Both models for this tab alone."""
    held = False
    try:
        with pair.base.hub.owned(), pair.tuned.hub.owned():
            held = True
            yield
    except ModelBusy:
        if held:
            raise
        raise ModelBusy(
            "Another tab is using these models; one pair answers one tab at a time: try again when it is done."
        ) from None


@contextmanager
def _watched(model: Any, prompts: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Logits on the prompts before and after: what is yielded holds ``n_hooks`` and ``identical`` at the end."""
    import torch

    if not prompts:
        raise UserError("There is no prompt: write at least one line.")
    values: dict[str, Any] = {}
    encoded = model.encode(prompts)
    before = model.forward(encoded, logits="last")
    yield values
    after = model.forward(encoded, logits="last")
    values.update(n_hooks=model.n_hooks, identical=bool(torch.equal(before, after)))
