"""One batch of path patching: a head's output from another run, felt only through chosen receivers.

With the attention of every head frozen at the sender's position and after it, what the sender changes stays in the
residual stream of that position. So the first step runs this one token alone, from the sender's layer on, with every
other head's z supplied; the second step replays the run with the receivers' inputs changed by what arrived there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from einops import rearrange

from probes.patches.runs import TargetRun, record
from probes.paths.places import Head
from probes.replay import layers_skipped
from workbench.engine.context import ForwardContext
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import NotSupported
from workbench.models.adapted import AdaptedModel
from workbench.prompts.encode import Encoded
from workbench.typing import Bool, Float, Int, Tensor


@dataclass(frozen=True)
class Receivers:
    """The heads that may feel the sender, and through which of their inputs (q, k or v); None: the logits."""

    through: str
    heads: tuple[Head, ...]
    """(layer, head); for k and v the head counts key/value heads."""

    def after(self, layer: int) -> dict[int, list[int]]:
        """layer -> heads, of the layers a sender in ``layer`` can reach."""
        receivers: dict[int, list[int]] = {}
        for place, head in self.heads:
            if place > layer:
                receivers.setdefault(place, []).append(head)
        return receivers


class PathRun:
    """The clean run of one batch at one position of each row, ready to be sent to."""

    def __init__(
        self,
        model: AdaptedModel,
        batch: Encoded,
        at: Int[Tensor, " prompt"],
        sent: Float[Tensor, "layer prompt head d_head"],
        *,
        freeze_mlps: bool = False,
    ) -> None:
        """``at``: each row's position, counted back from the last column. ``sent``: the other run's z there."""
        self.model, self.batch, self.at, self.sent = model, batch, at, sent
        self.freeze_mlps = freeze_mlps
        self.passes = 1.0
        layers = range(model.n_layers)
        sites = [Site(kind, layer) for layer in layers for kind in ("resid_pre", "z")]
        sites += [Site("mlp_out", layer) for layer in layers] if freeze_mlps else []
        values, self.logits = record(model, batch, sites)
        self._clean = {site: at_positions(value, at) for site, value in values.items()}
        self._ids = at_positions(batch.input_ids, at)[:, None]
        self._checked = False

    @cached_property
    def silent(self) -> Bool[Tensor, "prompt layer head"]:
        """Where the sender's z is the clean one, bit for bit."""
        silent = torch.zeros(*self.sent.shape[1::-1], self.sent.shape[2], dtype=torch.bool, device=self.at.device)
        for layer, theirs in enumerate(self.sent):
            ours = self._clean[Site("z", layer)]
            silent[:, layer] = (theirs.to(ours) == ours).all(-1)
        return silent

    def to_logits(self, layer: int, heads: Sequence[int]) -> Float[Tensor, "prompt copy vocab"]:
        """Logits at the position with each of ``heads`` of ``layer`` sending; the first copy sends nothing."""
        logits = self._alone(layer, heads, [])
        self._check(logits[:, 0])
        return logits

    def to_heads(
        self, layer: int, heads: Sequence[int], receivers: Receivers
    ) -> tuple[Float[Tensor, "prompt copy vocab"], Bool[Tensor, "prompt sender"]]:
        """Last logits with each of ``heads`` of ``layer`` felt by the receivers alone (the first copy by none), and
        where nothing reached them, bit for bit."""
        arrived: dict[int, Tensor] = {}
        reached = receivers.after(layer)

        def keep(place: int) -> Callable[[Tensor, ForwardContext], None]:
            def reader(value: Tensor, _ctx: ForwardContext) -> None:
                by_copy = rearrange(
                    value[:, 0, reached[place]], "(prompt copy) ... -> prompt copy ...", copy=len(heads) + 1
                )
                arrived[place] = by_copy - by_copy[:, :1]

            return reader

        readers = [SiteHook(Site(receivers.through, place), keep(place)) for place in reached]
        self._check(self._alone(layer, heads, readers)[:, 0])
        edits = [
            SiteHook(Site(receivers.through, place), self._added(arrived[place], reached[place]), edit=True)
            for place in reached
        ]
        before = self._run.passes
        logits = self._run.replay(len(heads) + 1, edits, min(reached), last_only=bool((self.at == -1).all()))
        self.passes += self._run.passes - before
        nothing = torch.stack([(change == 0).flatten(2).all(-1).to(logits.device) for change in arrived.values()]).all(
            0
        )
        return logits, nothing[:, 1:]

    @cached_property
    def _run(self) -> TargetRun:
        run = TargetRun(self.model, self.batch, {})
        run.shortcuts = all(run.exact(last) for last in ((True, False) if self.batch.input_ids.shape[1] > 1 else ()))
        self.passes += run.passes
        return run

    def _added(self, change: Tensor, heads: list[int]) -> Callable[[Tensor, ForwardContext], Tensor]:
        """The clean value plus ``change`` [prompt, copy, head, d_head] at the row's position."""

        def edit(value: Tensor, _ctx: ForwardContext) -> Tensor:
            new = value.unflatten(0, (-1, change.shape[1])).clone()
            at = (torch.zeros_like(self.at) if value.shape[1] == 1 else self.at).to(value.device)
            rows = torch.arange(len(new), device=value.device)[:, None, None]
            copies = torch.arange(new.shape[1], device=value.device)[None, :, None]
            places = torch.tensor(heads, device=value.device)[None, None]
            clean = new[rows, torch.zeros_like(copies), at[:, None, None], places]  # the first copy changes nothing
            new[rows, copies, at[:, None, None], places] = clean + change.to(new)
            return new.flatten(0, 1)

        return edit

    def _alone(
        self, layer: int, heads: Sequence[int], readers: Sequence[SiteHook]
    ) -> Float[Tensor, "prompt copy vocab"]:
        """The position's token from ``layer`` on: copy 0 clean, then one copy for each sender."""
        copies = len(heads) + 1
        hooks = [self._supplied(Site("resid_pre", layer), copies), self._sending(layer, heads)]
        hooks += [self._supplied(Site("z", later), copies) for later in range(layer + 1, self.model.n_layers)]
        if self.freeze_mlps:
            hooks += [self._supplied(Site("mlp_out", later), copies) for later in range(layer, self.model.n_layers)]
        self.passes += copies * (self.model.n_layers - layer) / self.model.n_layers / self.batch.input_ids.shape[1]
        with layers_skipped(self.model, layer - 1), self.model.hooked([*hooks, *readers]):
            logits = self.model.forward(self._ids.repeat_interleave(copies, 0), logits="last")
        assert logits is not None
        return logits[:, -1].unflatten(0, (-1, copies))

    def _supplied(self, site: Site, copies: int) -> SiteHook:
        clean_value = self._clean[site].repeat_interleave(copies, 0)[:, None]
        return SiteHook(site, lambda value, _ctx: clean_value.to(value), edit=True)

    def _sending(self, layer: int, heads: Sequence[int]) -> SiteHook:
        site = Site("z", layer)
        z = self._clean[site][:, None].repeat(1, len(heads) + 1, 1, 1)
        for copy, head in enumerate(heads, start=1):
            z[:, copy, head] = self.sent[layer, :, head].to(z)
        z = z.flatten(0, 1)[:, None]
        return SiteHook(site, lambda value, _ctx: z.to(value), edit=True)

    def _check(self, clean: Float[Tensor, "prompt vocab"]) -> None:
        """Once: with nothing sent, the token alone must say what it said in the whole run."""
        if self._checked or not bool((self.at == -1).all()):
            return
        apart = (clean - self.logits).abs().max().item()
        allowed = max(1e-3, 100 * torch.finfo(clean.dtype).eps) * max(1.0, self.logits.abs().max().item())
        if not apart <= allowed:
            raise NotSupported(
                f"With every head's output supplied, this model's last token says something else than in the whole "
                f"run (logits {apart:.2g} apart), so its layers read more than the residual stream and paths through "
                "it cannot be patched."
            )
        self._checked = True


def at_positions(value: Tensor, at: Int[Tensor, " row"]) -> Tensor:
    """Each row's entry of ``value`` [row, pos, ...] at its own position, on the device the values are on."""
    return value[torch.arange(len(value), device=value.device), at.to(value.device)]
