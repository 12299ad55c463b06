"""Running only the part of a forward pass that an edit can change.

Two exact shortcuts. Layers below an edited residual need not run again (:func:`layers_skipped`). And an edit
at the last token leaves all earlier tokens as they were, since attention is causal, so their keys and values
are kept and only the last token runs (:class:`LastToken`).
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from workbench.engine.families import submodule
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.models.passes import Passes as Passes
from workbench.models.passes import counted as counted
from workbench.prompts.encode import Encoded, batches, pad_left
from workbench.typing import Float, Int, Tensor

_PARTS: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


@contextmanager
def layers_skipped(model: AdaptedModel, through: int) -> Iterator[None]:
    """Layers 0 to ``through`` hand their input on unchanged; an edit at ``resid_post`` gives the output.

    Everything else (embedding, masks, later layers, final norm, unembedding, soft-caps) is the model's own. Enter it
    before the hooks go on: at first it looks at one token to see what a layer returns.
    """
    layers = submodule(model.inner, model.hub.family.layers)
    hand_on = _handing_on(_parts_returned(model))
    with ExitStack() as stack:
        for layer in layers[: through + 1]:
            stack.callback(_put_back, layer, layer.__dict__.get("forward"))
            layer.__dict__["forward"] = hand_on
        yield


def _handing_on(parts: int) -> Callable[..., Any]:
    """A layer that hands its input on as the first of so many outputs; 0: alone."""

    def hand_on(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return (hidden_states, *[None] * (parts - 1)) if parts else hidden_states

    return hand_on


def _put_back(layer: nn.Module, own: Any) -> None:
    if own is None:
        del layer.__dict__["forward"]
    else:
        layer.__dict__["forward"] = own


def _parts_returned(model: AdaptedModel) -> int:
    """How many outputs this family's layers return in a tuple or list, 0: the stream alone; seen once, on one token."""
    if model.inner not in _PARTS:
        seen: list[int] = []
        first = submodule(model.inner, f"{model.hub.family.layers}.0")
        handle = first.register_forward_hook(
            lambda _module, _args, out: seen.append(len(out) if isinstance(out, tuple | list) else 0)
        )
        try:
            model.forward(torch.zeros(1, 1, dtype=torch.long), logits=None)
        finally:
            handle.remove()
        _PARTS[model.inner] = seen[0]
    return _PARTS[model.inner]


@contextmanager
def frozen(hf: nn.Module) -> Iterator[None]:
    """No gradients for the model's weights inside, so that backward passes compute only what is trained."""
    trainable = [parameter for parameter in hf.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def read_out(model: AdaptedModel, residual: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
    """What the model would say if ``residual`` were its last layer's output: its own final norm, unembedding,
    soft-caps and scalings (the logit lens)."""
    last = Site("resid_post", model.n_layers - 1)
    ids = torch.zeros(len(residual), 1, dtype=torch.long)

    def put(value: Tensor, _ctx: Any) -> Tensor:
        return residual[:, None].to(value)

    with layers_skipped(model, last.layer or 0), model.hooked([SiteHook(last, put, edit=True)]):
        logits = model.forward(ids, logits="all")
    assert logits is not None
    return logits[:, 0]


class LastToken:
    """Rows of token ids, run once; afterwards only their last token runs, with edits there.

    ``ends`` [layer, row, d_model] is the residual after each layer at the last token. Raises
    :class:`NotSupported` for a model whose cached run does not give its own logits back.
    """

    def __init__(self, model: AdaptedModel, ids: Sequence[Sequence[int]], batch_size: int = 32) -> None:
        self.model = model
        self.passes = 0
        self.ends = torch.empty(model.n_layers, len(ids), model.d_model, dtype=model.dtype)
        self.rows = [torch.tensor(rows) for rows in batches([len(row) for row in ids], batch_size)]
        self._batches: list[tuple[Encoded, Any]] = []
        padding = 0 if model.tokenizer is None else pad_id(model.tokenizer)
        logits = []
        for rows in self.rows:
            batch = pad_left([ids[row] for row in rows.tolist()], padding).to(model.device)
            logits.append(self._first_run(batch, rows))
        self.logits: Float[Tensor, "row vocab"] = self._in_order(logits)
        self._check()

    def _first_run(self, batch: Encoded, rows: Int[Tensor, " batch"]) -> Float[Tensor, "batch vocab"]:
        def keep(layer: int) -> Any:
            def reader(value: Tensor, _ctx: Any) -> None:
                self.ends[layer, rows] = value[:, -1].detach().to("cpu")

            return reader

        past = None
        if batch.input_ids.shape[1] > 1:
            with self.model.active(), torch.no_grad():
                past = self.model.inner.base_model(
                    input_ids=batch.input_ids[:, :-1],
                    attention_mask=batch.attention_mask[:, :-1],
                    position_ids=batch.position_ids[:, :-1],
                    use_cache=True,
                ).past_key_values
        self._batches.append((batch, past))
        readers = [SiteHook(Site("resid_post", layer), keep(layer)) for layer in range(self.model.n_layers)]
        return self.run(len(self._batches) - 1, readers)

    def run(
        self, number: int, hooks: Sequence[SiteHook], *, skip_through: int = -1, grad: bool = False
    ) -> Float[Tensor, "batch vocab"]:
        """Logits of batch ``number`` at its last token, with ``hooks``; layers up to ``skip_through`` do not run."""
        batch, past = self._batches[number]
        with layers_skipped(self.model, skip_through), self.model.hooked(hooks), torch.set_grad_enabled(grad):
            output = self.model.inner(
                input_ids=batch.input_ids[:, -1:],
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids[:, -1:],
                past_key_values=_shallow(past),
                use_cache=past is not None,
            )
        self.passes += 1
        return output.logits[:, -1]

    def after(
        self, number: int, layer: int, end: Float[Tensor, "batch d_model"], *, grad: bool = False
    ) -> Float[Tensor, "batch vocab"]:
        """Logits of batch ``number`` when the residual after ``layer`` is ``end`` at the last token."""

        def put(value: Tensor, _ctx: Any) -> Tensor:
            return end[:, None].to(value)

        hook = SiteHook(Site("resid_post", layer), put, edit=True)
        return self.run(number, [hook], skip_through=layer, grad=grad)

    def all_after(self, layer: int, ends: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """:meth:`after` for every row, in the rows' order."""
        return self._in_order([self.after(n, layer, ends[rows]) for n, rows in enumerate(self.rows)])

    def all_run(self, hooks_of: Any) -> Float[Tensor, "row vocab"]:
        """:meth:`run` for every row; ``hooks_of(rows)`` gives the hooks of a batch."""
        return self._in_order([self.run(n, hooks_of(rows)) for n, rows in enumerate(self.rows)])

    def _in_order(self, parts: Sequence[Float[Tensor, "_ vocab"]]) -> Float[Tensor, "row vocab"]:
        ordered = torch.empty(sum(map(len, parts)), parts[0].shape[-1], dtype=parts[0].dtype)
        for rows, part in zip(self.rows, parts, strict=True):
            ordered[rows] = part.detach().to("cpu")
        return ordered

    def _check(self) -> None:
        """The first batch, run without any shortcut, must give the same logits."""
        batch, _ = self._batches[0]
        whole = self.model.forward(batch, logits="last")
        assert whole is not None
        self.passes += 1
        apart = (whole[:, -1].float().cpu() - self.logits[self.rows[0]].float()).abs().max().item()
        allowed = 50 * torch.finfo(self.model.dtype).eps * max(1.0, whole.float().abs().max().item())
        if not apart <= max(allowed, 1e-3):
            raise NotSupported(
                f"Run from its key/value cache this model's logits are {apart:.2g} away from a plain forward "
                "pass, so replaying the last token is not exact; load it with attn_implementation='eager'."
            )


def _shallow(past: Any) -> Any:
    """A copy whose layers grow on their own: updates make new tensors, so the kept ones stay as they are."""
    if past is None:
        return None
    twin = copy.copy(past)
    twin.layers = [copy.copy(layer) for layer in past.layers]
    return twin
