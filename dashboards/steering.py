"""One steer: base, tuned and steered answers to the same prompts, and the proof that the model came back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from interventions.recipe import Recipe
    from workbench.models.pair import ModelPair


@dataclass(frozen=True)
class Steered:
    """Answers by prompt, and what was checked afterwards."""

    prompts: tuple[str, ...]
    base: tuple[str, ...]
    tuned: tuple[str, ...]
    steered: tuple[str, ...]
    n_hooks: int
    """Hooks left on the steered model after the run."""
    identical: bool
    """Whether its logits on the prompts are, bit by bit, those from before the run."""

    @property
    def restored(self) -> bool:
        return self.identical and self.n_hooks == 0

    def frame(self) -> pd.DataFrame:
        """A row per prompt."""
        import pandas as pd

        return pd.DataFrame({"prompt": self.prompts, "base": self.base, "tuned": self.tuned, "steered": self.steered})


def run_steer(
    pair: ModelPair, recipe: Recipe, prompts: list[str], *, strength: float, side: str, max_new_tokens: int
) -> Steered:
    """Answer greedily with base, tuned, and ``side`` under ``recipe`` times ``strength``.

    Holds both models throughout. Raises :class:`workbench.errors.ModelBusy` when another tab holds them, and
    :class:`workbench.errors.UserError` for a recipe that does not fit.
    """
    import torch

    model = pair.models[side]
    with pair.base.hub.owned(), pair.tuned.hub.owned():
        applied = recipe * strength
        applied.check(model)
        encoded = model.encode(prompts)
        before = model.forward(encoded, logits="last")
        plain = {name: one.generate(prompts, max_new_tokens=max_new_tokens) for name, one in pair.models.items()}
        with applied.applied(model):
            steered = model.generate(prompts, max_new_tokens=max_new_tokens)
        after = model.forward(encoded, logits="last")
        assert before is not None and after is not None
        identical = bool(torch.equal(before, after))
    return Steered(
        tuple(prompts), tuple(plain["base"]), tuple(plain["tuned"]), tuple(steered), model.n_hooks, identical
    )
