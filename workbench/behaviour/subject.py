"""A model as it is compared: as it is, under a recipe, or with a strength of its own for every row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from workbench.cluster.splitting import Within, in_parts, split_width
from workbench.engine.hub import SiteHook
from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.progress import Progress, Silent, listening
from workbench.prompts.encode import Encoded, batches, pad_left
from workbench.typing import Tensor
from workbench.vllm.route import Route, route_of

Answer = TypeVar("Answer")


@runtime_checkable
class AppliedRecipe(Protocol):
    """Anything that changes a model inside a context, such as ``interventions.Recipe``."""

    def applied(self, model: AdaptedModel) -> AbstractContextManager[Any]:
        """Change ``model`` until the context is left."""


@runtime_checkable
class HookedRecipe(Protocol):
    """A recipe that an engine of many rows can run for one row alone."""

    def row_hooks(self, model: AdaptedModel) -> list[SiteHook]:
        """New hooks for one row. Raises :class:`NotSupported` for what rows share."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and what is done to it while it is measured."""

    name: str
    model: AdaptedModel
    recipe: AppliedRecipe | None = None
    per_row: Callable[[list[int]], AppliedRecipe] | None = None
    """The recipe for a batch of these row numbers; used instead of ``recipe``."""

    def applied(self) -> AbstractContextManager[Any]:
        """The model as it is measured, for all batches."""
        return nullcontext() if self.recipe is None else self.recipe.applied(self.model)

    def within(self) -> AbstractContextManager[Any]:
        """The context of batches whose logits and texts vLLM may compute: there a recipe goes with each request.

        Raises:
            NotSupported: vLLM computes for this model, which was changed here.
        """
        if (route := route_of(self.model)) is None:
            return self.applied()
        if split_width() > 1:
            raise NotSupported("Workers of a Ray cluster have no vLLM engine: leave on_ray, or on_vllm.")
        route.check()
        return nullcontext()

    def applied_to(self, rows: list[int]) -> AbstractContextManager[Any]:
        """The same for one batch, where rows differ."""
        return nullcontext() if self.per_row is None else self.per_row(rows).applied(self.model)

    def row_hooks(self, rows: Sequence[int]) -> dict[int, list[SiteHook]]:
        """Place in ``rows`` -> the hooks of that row, for an engine that runs it by itself.

        Raises:
            NotSupported: The recipe holds what such an engine cannot do.
        """
        if self.recipe is None and self.per_row is None:
            return {}
        recipes = [self.recipe if self.per_row is None else self.per_row([row]) for row in rows]
        for recipe in recipes:
            if not isinstance(recipe, HookedRecipe):
                raise NotSupported(
                    f"vLLM can hold recipes of interventions, and {self.name} has a {type(recipe).__name__}: give an "
                    "interventions.Recipe, or use the local executor."
                )
        return {place: recipe.row_hooks(self.model) for place, recipe in enumerate(recipes)}  # type: ignore[union-attr]


LOGIT_BYTES = 256 * 2**20
"""Of a batch's logits in float32, where many tokens of each row are read."""


@dataclass(frozen=True)
class Work:
    """How much goes through a model at once, and who hears of it."""

    batch_size: int = 32
    progress: Progress | None = None

    def within_bytes(self, tokens: int, vocab: int) -> Work:
        """So few rows at once that their logits [row, token, vocab] stay within :data:`LOGIT_BYTES`."""
        few = max(1, LOGIT_BYTES // (4 * max(1, tokens) * vocab))
        return self if few >= self.batch_size else replace(self, batch_size=few)

    def each(
        self,
        what: str,
        lengths: Sequence[int],
        function: Callable[[list[int]], Answer],
        take: Callable[[list[int], Answer], None],
        within: Within = nullcontext,
        content: Callable[[list[int]], Any] | None = None,
    ) -> None:
        """Hand ``take`` the row numbers of each batch with what ``function`` makes of them, counted as they are done.

        Args:
            what: The name on the progress bar.
            lengths: Tokens of every row.
            function: As :func:`in_parts` takes it: inside ``on_ray`` batches run in the workers.
            take: Called in the order of the batches.
            within: A context around all batches.
            content: What a batch is about, where a run that is stopped keeps its answer.
        """
        report = self.progress or Silent()
        plan = batches(lengths, self.batch_size)

        def counted(rows: list[int], answer: Answer) -> None:
            take(rows, answer)
            report.advance()

        report.start(what, len(plan))
        try:
            with listening(self.progress):
                in_parts(function, plan, counted, within, content)
        finally:
            report.finish()


def last_logits(
    subject: Subject, ids: Sequence[Sequence[int]], take: Callable[[list[int], Tensor], None], work: Work
) -> None:
    """Hand ``take`` the row numbers and the logits [row, vocab] (float32, CPU) of the last token, batch by batch."""
    work.each(subject.name, [len(row) for row in ids], partial(_last_logits, subject, ids), take, subject.within)


def _last_logits(subject: Subject, ids: Sequence[Sequence[int]], rows: list[int]) -> Tensor:
    if (route := route_of(subject.model)) is not None:
        return torch.cat(_by_vllm(route, subject, [ids[row] for row in rows], rows, [1] * len(rows)))
    with subject.applied_to(rows):
        logits = subject.model.forward(padded(subject, [ids[i] for i in rows]), logits="last")
    assert logits is not None
    return logits[:, -1].float().cpu()


def _by_vllm(
    route: Route,
    subject: Subject,
    texts: Sequence[Sequence[int]],
    rows: Sequence[int],
    last: Sequence[int],
    prompt_lengths: dict[int, int] | None = None,
) -> list[Tensor]:
    """Logits of the last tokens of each text, each under its row's own recipe."""
    model = subject.model
    return route.engine.logits(model.role, texts, model, last, subject.row_hooks(rows), prompt_lengths)


def continuation_logits(
    subject: Subject, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], rows: Sequence[int]
) -> list[Tensor]:
    """For each of ``rows`` the logits [token, vocab] (float32, on the model's device) that predict its continuation.

    One forward pass, teacher forced; positions of a recipe mean what they mean in ``generate``. The subject must be
    applied already.
    """
    texts = [[*prompts[i], *continuations[i]] for i in rows]
    sizes, lengths = [len(continuations[i]) for i in rows], [len(prompts[i]) for i in rows]
    if (route := route_of(subject.model)) is not None:
        one_more = [size + 1 for size in sizes]  # the last predicts what comes behind
        from_vllm = _by_vllm(route, subject, texts, rows, one_more, dict(enumerate(lengths)))
        return [logits[:-1] for logits in from_vllm]
    batch = padded(subject, texts)
    with ExitStack() as stack:
        if subject.recipe is not None or subject.per_row is not None:
            stack.enter_context(subject.model.hooked([], prompt_lengths=torch.tensor(lengths)))
        logits = subject.model.forward(batch, logits=max(sizes) + 1)
    assert logits is not None
    return [logit[-1 - size : -1].float() for logit, size in zip(logits, sizes, strict=True)]


def padded(subject: Subject, ids: Sequence[Sequence[int]]) -> Encoded:
    """Rows of token ids as one left-padded batch for the subject's model."""
    return pad_left(ids, pad_id(subject.model.tokenizer))
