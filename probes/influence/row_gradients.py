"""The gradient of each row by itself, from one forward and one backward pass of a batch.

A linear layer's gradient is the sum over tokens of (gradient of its output) x (its input); kept apart by row it costs
one small product per layer, and no weight's ``.grad`` is ever formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from interventions.training.examples import IGNORED, Collator, Example
from probes.replay import frozen
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.typing import Float, Int, Tensor

Gradients = dict[str, Tensor]
"""Name of a matrix -> [row, out, in], in float32."""


class RowGradients:
    """Per-row gradients of ``matrices`` (name -> linear module) of one model."""

    def __init__(self, model: AdaptedModel, matrices: Mapping[str, nn.Module]) -> None:
        self.model, self.matrices = model, matrices
        self._inputs: dict[str, Tensor] = {}
        self._gradients: Gradients = {}
        self._rows = 0

    def __getstate__(self) -> dict[str, Any]:
        """For another process, without what the last batch left."""
        return {**self.__dict__, "_inputs": {}, "_gradients": {}}

    def of_answers(self, examples: Sequence[Example]) -> Gradients:
        """Of every row's mean cross-entropy over its answer, in nats per token."""
        batch = Collator(pad_id(self.model.tokenizer))(examples)
        return self._backward(batch["input_ids"], batch["attention_mask"], lambda logits: _losses(logits, batch))

    def of_projection(
        self, ids: Sequence[Sequence[int]], layer: int, direction: Float[Tensor, " d_model"]
    ) -> Gradients:
        """Of minus the last token's residual after ``layer`` along ``direction``: a step down it raises the
        projection."""
        from workbench.engine.hub import SiteHook
        from workbench.engine.sites import Site

        seen: list[Tensor] = []
        batch = Collator(pad_id(self.model.tokenizer))([Example(list(row[:-1]), [row[-1]]) for row in ids])
        ends = batch["attention_mask"].sum(1) - 1

        def read(value: Tensor, _ctx: Any) -> None:
            seen.append(value)

        def objective(_logits: Tensor) -> Tensor:
            ended = seen[0][torch.arange(len(ends)), ends.to(seen[0].device)].float()
            return -(ended @ direction.to(ended))

        with self.model.hooked([SiteHook(Site("resid_post", layer), read)]):
            return self._backward(batch["input_ids"], batch["attention_mask"], objective)

    def _backward(
        self, ids: Int[Tensor, "row pos"], mask: Int[Tensor, "row pos"], objective: Callable[[Tensor], Tensor]
    ) -> Gradients:
        self._inputs, self._gradients, self._rows = {}, {}, len(ids)
        place = self.model.device
        with self._listening(), torch.enable_grad():
            logits = self.model.inner(
                input_ids=ids.to(place), attention_mask=mask.to(place), use_cache=False
            ).logits  # fmt: skip
            objective(logits).sum().backward()
        missing = [name for name in self.matrices if name not in self._gradients]
        for name in missing:  # a matrix that this batch did not go through, or that the objective does not reach
            weight: Any = self.matrices[name].weight
            self._gradients[name] = torch.zeros(len(ids), *weight.shape)
        return self._gradients

    @contextmanager
    def _listening(self) -> Iterator[None]:
        embeddings = self.model.inner.get_input_embeddings()
        with ExitStack() as stack:
            stack.enter_context(self.model.active())
            stack.enter_context(frozen(self.model.hf))
            # with all weights frozen, gradients flow because the embedded tokens ask for theirs
            stack.callback(embeddings.register_forward_hook(_wants_gradient).remove)
            for name, module in self.matrices.items():
                stack.callback(module.register_forward_hook(self._reader(name)).remove)
            yield

    def _reader(self, name: str) -> Callable[..., None]:
        def read(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            entry = inputs[0].detach()
            if output.requires_grad:
                output.register_hook(lambda slope: self._add(name, entry, slope))

        return read

    def _add(self, name: str, entry: Tensor, slope: Tensor) -> None:
        if entry.ndim == 2 and self._rows == 1:
            entry, slope = entry[None], slope[None]
        if entry.ndim != 3 or len(entry) != self._rows:
            raise UserError(
                f"The inputs of {name} are not kept apart by row (an expert's tokens are mixed): give batch_size=1."
            )
        product = torch.bmm(slope.transpose(1, 2).float(), entry.float())
        held = self._gradients.get(name)
        self._gradients[name] = product if held is None else held + product


def _wants_gradient(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output.requires_grad_()


def _losses(logits: Float[Tensor, "row pos vocab"], batch: Mapping[str, Tensor]) -> Float[Tensor, " row"]:
    labels = batch["labels"].to(logits.device)[:, 1:]
    losses = cross_entropy(logits[:, :-1].float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return losses.sum(1) / (labels != IGNORED).sum(1).clamp_min(1)
