"""Rules on the next word, multiplied with the model's own distribution: an end ramp, word biases, no repetition."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from interventions.base import Intervention
from interventions.logit_hook import LogitHook
from interventions.strength import Amount, Number, Strength, as_strength, multiplied, working
from workbench.engine.context import ForwardContext
from workbench.engine.positions import PositionSpec, Where, where
from workbench.errors import NotSupported, UserError
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Float, Int, Tensor

PAPER_BIASES = {"<": -4.0, "|": -4.0, "I": -5.0, "We": -3.0, "What": -5.0, "should": -6.0}
"""Words that a base model begins its own texts with, and their biases in the paper's released rules."""


@method(
    "token-rules",
    group="decoding",
    question="What if plain rules, not weights, decide which words a response may use?",
    kind="intervention",
    papers=("Instruction Following without Instruction Tuning",),
)
@dataclass(frozen=True, eq=False, repr=False)
class TokenRules(Intervention):
    """The model's distribution times that of rules (a product of experts, Hewitt et al. 2024): logits + rule scores.

    ``end_ramp`` grows in a straight line over the first ``ramp_tokens`` tokens of the response and is added to every
    token that ends a text; ``biases`` (word or token id -> score) are added to the words' tokens, with and without a
    space in front; ``repeated`` is added to every token that the response holds already. What counts as the response
    is known inside ``generate`` and with ``prompt_lengths``; elsewhere everything is prompt, and only biases act.
    :meth:`of_the_paper` has the released rules' main settings.

    Example:
        ``iv.TokenRules(end_ramp=15, ramp_tokens=250, biases={"I": -5}, repeated=-1.5)``
    """

    end_ramp: Number = 0.0
    ramp_tokens: int = 250
    biases: Mapping[str, float] | Mapping[int, float] | Mapping[str | int, float] = field(default_factory=dict)
    repeated: Number = 0.0
    strength: Strength = field(default=1.0, kw_only=True)
    positions: PositionSpec | Where = field(default="all", kw_only=True)

    scopes: ClassVar[tuple[str, ...]] = ("positions",)

    def __post_init__(self) -> None:
        where(self.positions)
        object.__setattr__(self, "strength", as_strength(self.strength))
        # keys of a recipe file are text, so a number is written #17
        biases: dict[str, float] = {}
        for word, bias in self.biases.items():
            name = f"#{word}" if isinstance(word, int) else str(word)
            if biases.setdefault(name, float(bias)) != float(bias):
                raise UserError(f"The word {name!r} has two biases, {biases[name]:g} and {bias:g}: give one.")
        object.__setattr__(self, "biases", biases)
        if not all(map(math.isfinite, (self.end_ramp, self.repeated, *biases.values()))):
            raise UserError("Scores of rules are finite numbers: a word that may never come gets a bias such as -50.")
        if self.ramp_tokens < 1:
            raise UserError(f"ramp_tokens is {self.ramp_tokens}: the ramp needs one token or more to rise over.")

    @classmethod
    def of_the_paper(cls) -> TokenRules:
        """A ramp to 15 over 250 tokens, the word biases that the paper names, and -1.5 for repetition."""
        return cls(15.0, 250, PAPER_BIASES, -1.5)

    @property
    def neutral(self) -> bool:
        """Whether this leaves the model exactly as it is."""
        silent = not self.end_ramp and not self.repeated and not any(self.biases.values())
        return silent or (not isinstance(self.strength, Tensor) and self.strength == 0)

    def validate(self, model: AdaptedModel) -> None:
        """Every biased word must be one token of this model, and there must be an end to ramp up to."""
        self.token_biases(model)
        if self.end_ramp and not _ends(model):
            raise UserError(f"{model.name} knows no token that ends a text, so there is no end to ramp up to.")

    def token_biases(self, model: AdaptedModel) -> dict[int, float]:
        """Token id -> score.

        Raises:
            UserError: A word that is no single token, an id beyond the vocabulary, or two scores for one token.
        """
        biases: dict[int, float] = {}
        for word, score in self.biases.items():
            for token in _tokens(str(word), model):
                if biases.setdefault(token, score) != score:
                    raise UserError(f"The word {word!r} is token {token}, which has another bias already: give one.")
        return biases

    @contextmanager
    def entered(self, model: AdaptedModel) -> Iterator[Any]:
        """The rules act inside, in forward passes and in ``generate``."""
        if self.neutral:
            with model.active():
                yield
            return
        with _RuleHook(self, model).on(model):
            yield

    def scaled(self, factor: Number) -> TokenRules:
        """The same with ``factor`` times the strength."""
        return replace(self, strength=multiplied(self.strength, factor))


class _RuleHook(LogitHook):
    def __init__(self, rules: TokenRules, model: AdaptedModel) -> None:
        super().__init__(rules.positions, model)
        self.rules, self.amount = rules, Amount(rules.strength)
        self.ends = torch.tensor(sorted(_ends(model)), dtype=torch.long)
        biases = rules.token_biases(model)
        self.words = torch.tensor(list(biases), dtype=torch.long)
        self.scores = torch.tensor(list(biases.values()), dtype=torch.float32)
        self.seen: Tensor | None = None

    def read(self, kwargs: dict[str, Any], ctx: ForwardContext, cache: Any) -> tuple[Tensor, ...]:  # noqa: ARG002
        return (self._ids(ctx),) if self.rules.repeated else ()

    def combined(self, own: Tensor, *others: Any) -> Tensor:
        *read, ctx = others
        exact, length = working(own.dtype), own.shape[1]
        added = torch.zeros_like(own, dtype=exact)
        width = own.shape[-1]
        words = self.words.to(own.device)
        added[..., words[words < width]] += self.scores.to(own.device, exact)[words < width]
        if self.rules.end_ramp:
            added[..., self.ends.to(own.device)] += self._ramp(ctx, length).to(exact)[..., None]
        if self.rules.repeated:
            added += self.rules.repeated * self._met(read[0], ctx, length, width).to(exact)
        return (own.to(exact) + self.amount(own, ctx) * added).to(own.dtype)

    def _ramp(self, ctx: ForwardContext, length: int) -> Float[Tensor, "batch pos"]:
        written = ctx.index[:, -length:] + 1 - ctx.prompt_lengths[:, None]
        return self.rules.end_ramp * (written / self.rules.ramp_tokens).clamp(0, 1)

    def _met(self, ids: Int[Tensor, "batch column"], ctx: ForwardContext, length: int, width: int) -> Tensor:
        """[batch, kept, vocab]: 1 for tokens that the response holds up to that position."""
        first = ctx.start + ctx.length - length
        whole = replace(ctx, start=0, length=ctx.start + ctx.length, input_ids=ids, scratch={})
        response = (whole.index >= ctx.prompt_lengths[:, None]) & whole.real
        met = torch.zeros(len(ids), length, width, device=ids.device)
        now = torch.zeros(len(ids), width, device=ids.device)
        for column in range(ids.shape[1]):
            token = ids[:, column, None]
            now = now.scatter_reduce(1, token, response[:, column, None].to(now), "amax")
            if column >= first:
                met[:, column - first] = now
        return met

    def _ids(self, ctx: ForwardContext) -> Tensor:
        if ctx.input_ids is None:
            raise NotSupported("Repetition needs token ids, but the model was given embeddings.")
        if ctx.generation is not None and ctx.generation.beams > 1:
            raise NotSupported(
                "Beam search exchanges rows between steps, so repetition cannot be followed: use no beams."
            )
        if ctx.start == 0:
            self.seen = ctx.input_ids
        elif self.seen is None or self.seen.shape[1] < ctx.start or len(self.seen) != ctx.batch:
            raise NotSupported("Repetition must have seen the whole text: enter the recipe before the prompt runs.")
        else:
            self.seen = torch.cat([self.seen[:, : ctx.start], ctx.input_ids], dim=1)
        return self.seen


def _ends(model: AdaptedModel) -> set[int]:
    from workbench.behaviour.generation import end_ids

    return {token for token in end_ids(model) if token < model.vocab_size}


def _tokens(word: str, model: AdaptedModel) -> list[int]:
    if word[:1] == "#" and word[1:].isdecimal():
        if int(word[1:]) >= model.vocab_size:
            raise UserError(f"Token {word[1:]} is out of range: the model knows 0 to {model.vocab_size - 1}.")
        return [int(word[1:])]
    if model.tokenizer is None:
        raise UserError(f"The bias names the word {word!r} and this model has no tokenizer: name tokens by number.")
    spelt = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (word, f" {word}")]
    tokens = sorted({ids[0] for ids in spelt if len(ids) == 1})
    if not tokens:
        raise UserError(f"The word {word!r} is {len(spelt[0])} tokens to this model; a bias needs a word of one token.")
    return tokens
