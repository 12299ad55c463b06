"""One batch of prompts patched many ways: the source run recorded once, the target run replayed from the patched layer.

Patches of the same layer run as copies along the batch axis. Layers before it are skipped, and so is that layer's
attention (its input is the same in every copy, so z is known). The last layer's output projection and MLP run for the
last position alone, the unembedding for the tokens that are read, and patches of the last position run only that token
on the cached keys and values.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import nn

from probes.patches.cells import HEADS, Cell, Patch
from probes.patches.vocabulary import only_tokens
from probes.replay import layers_skipped
from probes.whole_answers import summed_log_probability
from workbench.engine.context import ForwardContext
from workbench.engine.families import submodule
from workbench.engine.hub import SiteHook
from workbench.engine.sites import ORDER, Site
from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel
from workbench.prompts.encode import Encoded
from workbench.typing import Bool, Float, Int, Tensor

LAST = ((-1,),)
Values = dict[Site, Tensor]


def record(
    model: AdaptedModel,
    batch: Encoded,
    sites: Iterable[Site],
    edits: Sequence[SiteHook] = (),
    tokens: Int[Tensor, "prompt token"] | None = None,
    *,
    grad: bool = False,
    targets: Int[Tensor, "prompt answer_token"] | None = None,
) -> tuple[Values, Float[Tensor, "prompt vocab"]]:
    """Activations [prompt, pos, ...] at ``sites`` and the logits of the last position (of ``tokens``), in one forward
    pass; with ``grad`` the logits keep their graph. ``targets``: instead of logits the summed log-probability [prompt,
    1] of these tokens at the last columns."""
    values: Values = {}

    def keep(site: Site) -> Callable[[Tensor, ForwardContext], None]:
        def reader(value: Tensor, _ctx: ForwardContext) -> None:
            values[site] = value.detach()

        return reader

    readers = [SiteHook(site, keep(site)) for site in dict.fromkeys(sites)]
    with model.hooked([*edits, *readers]), only_tokens(model, tokens), torch.set_grad_enabled(grad):
        read = _read(model, batch, targets, grad=grad)
    return values, read


def _read(
    model: AdaptedModel, batch: Encoded, targets: Int[Tensor, "prompt answer_token"] | None, *, grad: bool
) -> Float[Tensor, "row vocab"]:
    """Logits of the last position, or the summed log-probability of whole answers."""
    logits = model.forward(batch, logits="last" if targets is None else targets.shape[1], grad=grad)
    assert logits is not None
    if targets is None:
        return logits[:, -1]
    with torch.set_grad_enabled(grad):
        return summed_log_probability(logits, targets)


def output_matrix(model: AdaptedModel, layer: int) -> Float[Tensor, "head d_head d_model"]:
    """W_O of every head with whatever adapter the projection carries, read from its outputs; biases cancel.

    Raises :class:`NotSupported` where a norm stands between the projection and the residual stream.
    """
    family = model.hub.family
    if family.attn_out != family.output:
        raise NotSupported(
            f"{model.inner.config.model_type} normalises the attention output before it is added, so a single head "
            'writes nothing of its own to the residual stream: patch what="z" instead.'
        )
    width = model.n_heads * model.d_head
    with model.active(), torch.no_grad():
        project = model.hub.module(Site("z", layer)).forward  # not the module: hooks are for the real pass
        units = torch.eye(width, dtype=model.dtype, device=model.device)[None]
        written = project(units) - project(torch.zeros_like(units))
    return rearrange(written, "1 (head d_head) d_model -> head d_head d_model", head=model.n_heads)


class TargetRun:
    """The run that is patched, on one batch, with what is needed to replay parts of it."""

    def __init__(
        self,
        model: AdaptedModel,
        batch: Encoded,
        source: Values,
        source_matrices: dict[int, Tensor] | None = None,
        tokens: Int[Tensor, "prompt token"] | None = None,
        *,
        also: Sequence[Site] = (),
        leaves: Sequence[SiteHook] = (),
        targets: Int[Tensor, "prompt answer_token"] | None = None,
    ) -> None:
        """``tokens``: those whose logits each prompt needs, all by default. ``also``: further sites to keep.
        ``leaves``: edits that change nothing and begin a graph, which ``graded`` is the end of. ``targets``: answer
        tokens at the last columns, whose summed log-probability takes the place of the logits."""
        self.model, self.batch, self.source, self.tokens = model, batch, source, tokens
        self.targets = targets
        self.source_matrices = source_matrices or {}
        self._matrices = {layer: output_matrix(model, layer) for layer in self.source_matrices}
        known = [Site("resid_post", layer) for layer in range(model.n_layers - 1)]
        self._with_heads = model.hub.geometry.attention_layers
        known += [Site("z", layer) for layer in self._with_heads]
        with ExitStack() as stack:
            attention = [_part(model, layer, "attention") for layer in self._with_heads[:1]]
            seen = [stack.enter_context(returns_of(module)) for module in attention]
            sites = [*known, *source, *also]
            self.values, logits = record(model, batch, sites, leaves, tokens, grad=bool(leaves), targets=targets)
        self.logits = logits.detach()
        self.graded = logits if leaves else None
        self._attention_returns = seen[0][0] if seen else None
        self.shortcuts = True
        """Whether replays skip what they can; off, every patch is a whole forward pass."""
        self.passes = 1.0
        """Forward passes of this batch spent, replayed parts as the fraction of the layers that ran."""
        self.backward = 0.0
        """Backward passes, in the same unit."""
        self._past: Any = None
        self._equals: dict[Site, Tensor] = {}

    def patched(self, patches: Sequence[Patch], *, grad: bool = False) -> Float[Tensor, "prompt copy vocab"]:
        """Logits of the last position with each of ``patches``, run together as copies."""
        start = min(cell.layer for patch in patches for cell in patch)
        last_only = all(cell.positions == (-1,) for patch in patches for cell in patch)
        touched = {(cell.kind, cell.layer) for patch in patches for cell in patch}
        return self.replay(
            len(patches),
            self._edits(patches),
            start,
            last_only=last_only,
            known_z=("resid_pre", start) not in touched,
            grad=grad,
        )

    def unmoved(self, patch: Patch) -> Bool[Tensor, " prompt"]:
        """Prompts in which every value that ``patch`` puts in is the one that is there already."""
        same = torch.ones(len(self.batch.input_ids), dtype=torch.bool, device=self.logits.device)
        for cell in patch:
            equal = self._equal(cell.site)[:, cell.columns]
            same &= (equal[..., cell.head] if cell.kind in HEADS else equal).all(1).to(same.device)
            if cell.kind == "write":
                by_theirs, by_ours = self.matrices_of(cell.layer)
                same &= bool(torch.equal(by_theirs[cell.head], by_ours[cell.head]))
        return same

    def _equal(self, site: Site) -> Bool[Tensor, "prompt pos *head"]:
        """Where source and target have the same value at ``site``; compared once."""
        if site not in self._equals:
            ours = self.values[site]
            self._equals[site] = (self.source[site].to(ours) == ours).all(-1)
        return self._equals[site]

    def replay(
        self,
        copies: int,
        edits: Sequence[SiteHook],
        start: int,
        *,
        last_only: bool = False,
        known_z: bool = False,
        grad: bool = False,
    ) -> Float[Tensor, "prompt copy vocab"]:
        """Run ``copies`` copies of the batch (those of a prompt side by side) from layer ``start`` with ``edits``.

        ``known_z``: no edit changes what the attention of layer ``start`` reads, so its z is taken from the first run.
        What comes after the edits in the last layer runs for the last position alone.
        """
        self.passes += self.share(copies, start, last_only=last_only)
        start = start if self.shortcuts else 0
        last_only = last_only and self._can_run_last_alone
        hooks = [*self._supply(start, copies, last_only=last_only), *edits]
        past = self._cached(start, copies) if last_only else None
        others = self.model.n_hooks  # somebody else's hooks expect every position everywhere
        with ExitStack() as stack:
            # first, because it may run the model once to look at it, and that run must not meet our hooks
            stack.enter_context(layers_skipped(self.model, start - 1))
            stack.enter_context(self.model.hooked(hooks))
            if known_z and self.shortcuts and start in self._with_heads:
                stack.enter_context(self._attention_given(start, copies, last_only=last_only))
            for module in self._unedited_end(edits) if self.shortcuts and not others else ():
                stack.enter_context(_last_position_alone(module))
            stack.enter_context(torch.set_grad_enabled(grad))
            stack.enter_context(only_tokens(self.model, self.tokens))
            logits = self._last_token(copies, past) if last_only else self._whole(copies, grad=grad)
        return logits.unflatten(0, (-1, copies))

    def share(self, copies: int, start: int, *, last_only: bool = False) -> float:
        """What a replay of ``copies`` from layer ``start`` costs, in forward passes of the whole batch."""
        ran = self.model.n_layers - (start if self.shortcuts else 0)
        alone = last_only and self._can_run_last_alone
        return copies * ran / self.model.n_layers / (self.batch.input_ids.shape[1] if alone else 1)

    @property
    def _can_run_last_alone(self) -> bool:
        """Keys and values say all of earlier tokens where every layer has attention; other mixers keep states."""
        whole = len(self._with_heads) == self.model.n_layers
        return whole and self.shortcuts and self.batch.input_ids.shape[1] > 1 and self.targets is None

    @property
    def nbytes(self) -> int:
        """Bytes of the activations that it holds; one that several sites share counts once."""
        layers = [] if self._past is None else self._past.layers
        cached = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
        held = [*self.values.values(), *self.source.values(), *cached]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in held}.values())

    def matrices_of(self, layer: int) -> tuple[Tensor, Tensor]:
        """W_O [head, d_head, d_model] of the source's and of the target's ``layer``."""
        ours = self._matrices[layer]
        return self.source_matrices[layer].to(ours), ours

    def exact(self, last_only: bool) -> bool:
        """Whether replaying the unpatched run from the middle gives its own logits back."""
        again = self.replay(1, [], self.model.n_layers // 2, last_only=last_only, known_z=True)[:, 0]
        scale = max(1.0, self.logits.abs().max().item())
        apart = (again - self.logits).abs().max().item()
        return apart <= max(1e-5, 100 * torch.finfo(self.logits.dtype).eps) * scale

    def _unedited_end(self, edits: Sequence[SiteHook]) -> list[nn.Module]:
        """The output projection and the MLP of the last layer, unless an edit (or reader) there comes after them, or
        other positions are read than the last."""
        if self.targets is not None:
            return []
        last = self.model.n_layers - 1
        latest = max((ORDER[hook.site.kind] for hook in edits if hook.site.layer == last), default=-1)
        modules = []
        if last not in self._with_heads:
            return []
        if latest <= ORDER["z"]:
            modules.append(self.model.hub.module(Site("z", last)))
        if latest <= ORDER["resid_mid"]:
            modules.append(_part(self.model, last, "mlp"))
        return modules

    def _whole(self, copies: int, *, grad: bool) -> Float[Tensor, "row vocab"]:
        batch = Encoded(_repeat(self.batch.input_ids, copies), _repeat(self.batch.attention_mask, copies))
        return _read(self.model, batch, self.targets, grad=grad)

    def _last_token(self, copies: int, past: Any) -> Float[Tensor, "row vocab"]:
        batch = self.batch
        output = self.model.inner(
            input_ids=_repeat(batch.input_ids[:, -1:], copies),
            attention_mask=_repeat(batch.attention_mask, copies),
            position_ids=_repeat(batch.position_ids[:, -1:], copies),
            past_key_values=past,
            use_cache=True,
        )
        return output.logits[:, -1]

    def _supply(self, start: int, copies: int, *, last_only: bool) -> list[SiteHook]:
        """The input of layer ``start``, put where the skipped layer before it would have left it."""
        if start == 0:
            return []
        state = self.values[Site("resid_post", start - 1)]
        state = _repeat(state[:, -1:] if last_only else state, copies)
        return [SiteHook(Site("resid_post", start - 1), lambda _value, _ctx: state, edit=True)]

    @contextmanager
    def _attention_given(self, layer: int, copies: int, *, last_only: bool) -> Iterator[None]:
        """The attention of ``layer`` hands its known z to its output projection and computes nothing else."""
        attention = _part(self.model, layer, "attention")
        project = self.model.hub.module(Site("z", layer))
        z = self.values[Site("z", layer)].flatten(-2)
        z = _repeat(z[:, -1:] if last_only else z, copies)
        places = self._attention_returns

        def supplied(*_args: Any, **_kwargs: Any) -> Any:
            written = project(z)
            return written if places is None else (written, *[None] * (places - 1))

        own = attention.__dict__.get("forward")
        attention.__dict__["forward"] = supplied
        try:
            yield
        finally:
            del attention.__dict__["forward"]
            if own is not None:  # accelerate keeps its own there
                attention.__dict__["forward"] = own

    def _cached(self, start: int, copies: int) -> Any:
        """Keys and values of all earlier tokens, for ``copies`` copies; made on first use."""
        if self._past is None:
            batch = self.batch
            with self.model.active(), torch.no_grad():
                self._past = self.model.inner.base_model(
                    input_ids=batch.input_ids[:, :-1],
                    attention_mask=batch.attention_mask[:, :-1],
                    position_ids=batch.position_ids[:, :-1],
                    use_cache=True,
                ).past_key_values
            self.passes += 1 - 1 / batch.input_ids.shape[1]
        twin = copy.copy(self._past)
        twin.layers = [copy.copy(layer) for layer in self._past.layers]
        for layer in twin.layers[start:]:
            layer.keys, layer.values = _repeat(layer.keys, copies), _repeat(layer.values, copies)
        return twin

    def _edits(self, patches: Sequence[Patch]) -> list[SiteHook]:
        """Hooks that put the source's values into each copy, one or two per site."""
        by_place: dict[tuple[str, int], list[tuple[int, Cell]]] = {}
        for number, patch in enumerate(patches):
            for cell in patch:
                by_place.setdefault((cell.kind, cell.layer), []).append((number, cell))
        hooks: list[SiteHook] = []
        for (kind, layer), members in by_place.items():
            if kind == "write":
                hooks += self._write_hooks(layer, members, len(patches))
            else:
                hooks.append(SiteHook(members[0][1].site, self._replace(members, len(patches)), edit=True))
        return hooks

    def _replace(self, members: Sequence[tuple[int, Cell]], copies: int) -> Callable[[Tensor, ForwardContext], Tensor]:
        source = self.source[members[0][1].site]

        def edit(value: Tensor, _ctx: ForwardContext) -> Tensor:
            new = value.unflatten(0, (-1, copies)).clone()
            for number, cell in members:
                at = _columns(cell, value.shape[1])
                if cell.kind in HEADS:
                    new[:, number, at, cell.head] = source[:, cell.columns, cell.head].to(new)
                else:
                    new[:, number, at] = source[:, cell.columns].to(new)
            return new.flatten(0, 1)

        return edit

    def _write_hooks(self, layer: int, members: Sequence[tuple[int, Cell]], copies: int) -> list[SiteHook]:
        """Read z as it is in this run, and exchange W_O z of each head at the attention output."""
        z_site = Site("z", layer)
        source, (theirs, ours) = self.source[z_site], self.matrices_of(layer)

        def note(value: Tensor, ctx: ForwardContext) -> None:
            ctx.scratch[z_site] = value.unflatten(0, (-1, copies))

        def edit(value: Tensor, ctx: ForwardContext) -> Tensor:
            z, new = ctx.scratch[z_site], value.unflatten(0, (-1, copies)).clone()
            for number, cell in members:
                at = _columns(cell, value.shape[1])
                new[:, number, at] += (
                    source[:, cell.columns, cell.head].to(new) @ theirs[cell.head]
                    - z[:, number, at, cell.head] @ ours[cell.head]
                )
            return new.flatten(0, 1)

        return [SiteHook(z_site, note), SiteHook(Site("attn_out", layer), edit, edit=True)]


def _part(model: AdaptedModel, layer: int, part: str) -> Any:
    """The ``attention`` or ``mlp`` module of a layer."""
    family = model.hub.family
    return submodule(model.inner, f"{family.layers}.{layer}.{getattr(family, part)}")


@contextmanager
def _last_position_alone(module: nn.Module) -> Iterator[None]:
    """``module`` sees the last position only. What it returns is added to every position of the residual stream, and
    only the last is read afterwards."""
    handle = module.register_forward_pre_hook(lambda _module, args: (args[0][:, -1:], *args[1:]) if args else None)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def returns_of(module: nn.Module) -> Iterator[list[int | None]]:
    """What each call of ``module`` returns: the length of a tuple, or None for a single value."""
    seen: list[int | None] = []
    handle = module.register_forward_hook(
        lambda _module, _args, out: seen.append(len(out) if isinstance(out, tuple) else None)
    )
    try:
        yield seen
    finally:
        handle.remove()


def _columns(cell: Cell, width: int) -> slice | list[int]:
    """The cell's columns in a run that may hold the last token alone."""
    return [0] if width == 1 and cell.positions == (-1,) else cell.columns


def _repeat(tensor: Tensor, copies: int) -> Tensor:
    return tensor if copies == 1 else tensor.repeat_interleave(copies, 0)
