"""Options of a comparison that most calls leave alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from workbench.behaviour.calibration import BINS
from workbench.behaviour.generation import Decoding
from workbench.behaviour.refusals import is_refusal
from workbench.behaviour.texts import TextRule
from workbench.errors import UserError, unknown_name
from workbench.method_options import As
from workbench.progress import Progress
from workbench.prompts.collection import Prompts
from workbench.vllm.route import Executor, executor_settings

Options = TypeVar("Options")
_CONTINUATIONS = ("answer", "base", "tuned")


@dataclass(frozen=True)
class DiffOptions:
    """Options of :func:`behaviour_diff`."""

    base_prompts: Any = None
    """What the base (and recipes on it) reads instead, row for row the same questions: plain texts for a raw base
    beside chats for the tuned model, with an answer in each row where metrics read one."""
    neutral: Annotated[Any, As("prompts")] = None
    """Texts for perplexity: whatever prompts are made of, without answers."""
    max_new_tokens: int = 32
    samples: int = 0
    """Sampled texts per prompt beside the greedy one; metrics of texts are then the mean over the sampled ones."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    refusal: TextRule = is_refusal
    """``refusal(text, prompt)``: whether a text refuses."""
    scored: str = "auto"
    """What of an answer accuracy, prob, logit_diff, distracted and brier read: ``"first"`` (its first token),
    ``"whole"`` (all tokens), or ``"auto"``: whole where different answers begin with the same token."""
    continuation: str = "tuned"
    """Over whose tokens KL per token goes: the row's answer, or the greedy text of the base or of the tuned model."""
    controls_on: str = "tuned"
    """The side that the random recipes of ``controls`` are applied to."""
    bins: int = BINS
    """Bins of confidence for calibration."""
    texts: bool = False
    """Generate texts for the table even when no metric needs them."""
    executor: Executor = "local"
    """Who writes and reads the texts: this process, or vLLM."""
    engine_settings: Mapping[str, Any] | None = None
    """For ``executor="vllm"``: what ``vllm.LLM`` is opened with, such as ``{"max_model_len": 4096}``."""
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.continuation not in _CONTINUATIONS:
            raise unknown_name("continuation", self.continuation, _CONTINUATIONS)
        if self.controls_on not in ("tuned", "base"):
            raise unknown_name("side", self.controls_on, ("tuned", "base"))
        if self.bins < 2:
            raise UserError(f"Calibration over {self.bins} bins says nothing: give 2 or more.")

    def decoding(self, seed: int) -> Decoding:
        """How texts are generated."""
        return Decoding(self.max_new_tokens, self.samples, self.temperature, self.top_p, self.top_k, seed)

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on, as plain values; the texts themselves are counted by their hash elsewhere."""
        plain = {
            name: value
            for name, value in vars(self).items()
            if name not in ("base_prompts", "neutral", "progress", "refusal", "executor", "engine_settings")
        }
        plain |= executor_settings(self.executor, self.engine_settings)
        own = {} if self.base_prompts is None else {"base_prompts": Prompts.of(self.base_prompts).hash}
        return {**plain, **own, "refusal": getattr(self.refusal, "__qualname__", repr(self.refusal))}
