"""A site replaced by what another run computed there, in the same model or in the other one of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from interventions.base import SiteIntervention
from interventions.checks import Layer, as_label, as_tensor, by_layer, check_width, site_in
from interventions.claims import Claim
from interventions.scope import Change
from interventions.source_run import Align, Aligned, check_alignment, head_writes, record_run
from interventions.strength import Amount
from workbench.engine.context import ForwardContext
from workbench.engine.sites import Site
from workbench.errors import UserError, unknown_name
from workbench.methods import method
from workbench.models.adapted import AdaptedModel
from workbench.typing import Tensor

_WIDE = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_post")
_PER_HEAD = ("z", "q", "k", "v")
_WHAT = ("z", "write")


@method(
    "patch",
    group="activations",
    question="What if a site has the activations of another run?",
    kind="intervention",
)
@dataclass(frozen=True, eq=False, repr=False)
class Patch(SiteIntervention):
    """The value at a site becomes ``values``, recorded elsewhere (activation patching; across models: CMAP).

    ``values``: [...] for every position, [row, ...] for each prompt, or [row, pos, ...] counted from each row's
    first real token, with ``lengths`` [row]. ``align="last"`` puts the last recorded position on the last prompt
    token and counts back, ``"equal"`` the first on the first; positions without a recorded one stay as they are.

    ``heads`` limits a per-head site to some heads; ``values`` may then hold those heads alone. ``what="write"``
    replaces what each head adds to the residual stream, W_O z, rather than z: the two differ when the run comes
    from a model with another W_O. ``strength`` 0.5 goes half the way.
    """

    layer: Layer
    values: Tensor
    site: str = "resid_post"
    lengths: Tensor | None = None
    heads: Sequence[int | str] | None = None
    what: Literal["z", "write"] = "z"
    align: Align = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        site = Site.parse(self.site)
        if site.layer is not None or site.kind not in _WIDE + _PER_HEAD:
            raise unknown_name("site that can be patched", self.site, _WIDE + _PER_HEAD)
        self._set("site", site.kind)
        check_alignment(self.align)
        if self.what not in _WHAT:
            raise unknown_name("thing of a head to patch", self.what, _WHAT)
        if self.heads is not None:
            if site.kind not in _PER_HEAD:
                raise UserError(f"Site {site.kind} has no heads: leave heads= out, or patch z, q, k or v.")
            self._set("heads", tuple(sorted({self._head(head) for head in self.heads})))
        if self.what == "write" and (site.kind != "z" or not self.heads):
            raise UserError('what="write" is about heads: give site="z" and heads=.')
        self._set("values", as_tensor(self.values, "The recorded activation", ndim=(1, 2, 3, 4)))
        Aligned(self.values, self.lengths, self._axes, self.align)

    @classmethod
    def from_run(
        cls,
        model: AdaptedModel,
        prompts: Any,
        layer: Layer,
        site: str = "resid_post",
        *,
        heads: Sequence[int | str] | None = None,
        what: Literal["z", "write"] = "z",
        **options: Any,
    ) -> Patch:
        """The patch with what ``model`` computes on ``prompts``: text, chats, ids [row, pos] or Encoded."""
        numbers = None if heads is None else sorted({cls._head(head) for head in heads})
        run = record_run(model, prompts, site, layer, write_of=numbers if what == "write" else None)
        made = cls(layer, run.values, site, lengths=run.lengths, heads=numbers, what=what)
        return replace(made, **options)

    def validate(self, model: AdaptedModel) -> None:
        """The layer, the site and the heads must exist, and the recorded shape be the model's."""
        site = site_in(model, self.site, self.layer)
        if self.site == "mlp_post":
            return
        if self.site in _WIDE:
            check_width("The recorded activation", self.values, model.d_model)
            return
        count = model.n_kv_heads if self.site in ("k", "v") else model.n_heads
        heads = self._chosen(count)
        if heads[-1] >= count:
            raise UserError(f"Head L{site.layer}H{heads[-1]} is out of range: the model has heads 0 to {count - 1}.")
        if self.values.shape[-2] not in (len(heads), count):
            raise UserError(f"The recorded activation has {self.values.shape[-2]} heads; the patch names {len(heads)}.")
        if self.what == "write":
            check_width("The recorded write", self.values, model.d_model)
            head_writes(
                model, site, torch.zeros(1, 1, count, model.d_head, dtype=model.dtype, device=model.device), heads
            )
        elif self.site in ("z", "v"):
            check_width("The recorded activation", self.values, model.d_head)

    def claims(self, model: AdaptedModel) -> list[Claim]:
        """A patched site, or patched heads of it."""
        heads = frozenset(() if self.heads is None else self._chosen(0))
        return [Claim(site_in(model, self.site, self.layer), "patches the site", parts=heads)]

    def changes(self, model: AdaptedModel) -> list[tuple[Site, Change]]:
        """One replacement at the site; for writes, reading z and moving attn_out by the difference."""
        site = site_in(model, self.site, self.layer)
        aligned = Aligned(self.values, self.lengths, self._axes, self.align)
        if self.what == "write":
            return [(site, self._note_writes(model, site)), (Site("attn_out", site.layer), self._move(aligned, site))]
        amount = Amount(self.strength)

        def change(value: Tensor, ctx: ForwardContext) -> Tensor:
            recorded, present = aligned(value, ctx)
            new = self._inserted(recorded.to(value.dtype), value)
            new = _part_way(amount(value, ctx), new, value)
            return new if present is None else torch.where(_reach(present, value), new, value)

        return [(site, change)]

    def _inserted(self, recorded: Tensor, value: Tensor) -> Tensor:
        """``recorded`` in place of the chosen heads of ``value``, or of all of it."""
        if self.heads is None:
            return recorded.expand_as(value)
        tensor = torch.tensor(self.heads, device=value.device)
        if recorded.shape[-2] != len(tensor):
            recorded = recorded.index_select(-2, tensor)
        return value.index_copy(2, tensor, recorded.expand(*value.shape[:2], *recorded.shape[-2:]))

    def _note_writes(self, model: AdaptedModel, site: Site) -> Change:
        heads = self._chosen(model.n_heads)

        def note(z: Tensor, ctx: ForwardContext) -> None:
            ctx.scratch[id(self), site] = head_writes(model, site, z, heads)

        return note

    def _move(self, aligned: Aligned, site: Site) -> Change:
        amount = Amount(self.strength)

        def change(value: Tensor, ctx: ForwardContext) -> Tensor:
            recorded, present = aligned(value, ctx)
            own = ctx.scratch.pop((id(self), site))
            new = value + amount(value, ctx) * (recorded.to(own.dtype) - own).sum(2)
            new = new.to(value.dtype)
            return new if present is None else torch.where(_reach(present, value), new, value)

        return change

    @property
    def _axes(self) -> int:
        return 2 if self.site in _PER_HEAD else 1

    def _chosen(self, count: int) -> list[int]:
        return list(range(count)) if self.heads is None else [int(head) for head in self.heads]

    @staticmethod
    def _head(head: int | str) -> int:
        if isinstance(head, str):
            return next(iter(by_layer([as_label(head, "head")]).values()))[0]
        return int(head)


def _part_way(amount: float | Tensor, new: Tensor, old: Tensor) -> Tensor:
    if isinstance(amount, float) and amount == 1:
        return new
    return (old + amount * (new - old)).to(old.dtype)


def _reach(present: Tensor, value: Tensor) -> Tensor:
    return present.view(*present.shape, *[1] * (value.ndim - 2))
