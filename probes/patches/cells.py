"""What can be patched: one head or one site of a layer, at one position, at some, or at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from workbench.engine.sites import Site
from workbench.errors import UserError, unknown_name
from workbench.models.adapted import AdaptedModel

STREAMS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
HEADS = ("z", "write")


@dataclass(frozen=True)
class Cell:
    """A place of the forward pass. ``kind``: one of the residual kinds, or ``z`` / ``write`` of ``head``.

    ``positions`` counts back from the last prompt token (-1); None means every position.
    """

    kind: str
    layer: int
    head: int | None = None
    positions: tuple[int, ...] | None = None

    @property
    def site(self) -> Site:
        """Where the source run is recorded for it."""
        return Site("z" if self.kind in HEADS else self.kind, self.layer)

    @property
    def columns(self) -> slice | list[int]:
        """The columns of a left-padded batch."""
        return slice(None) if self.positions is None else list(self.positions)

    def before(self, columns: int) -> Cell:
        """The same cell in rows that have so many columns behind the last prompt token."""
        if self.positions is None:
            return self
        return replace(self, positions=tuple(place - columns for place in self.positions))


Patch = tuple[Cell, ...]
"""Cells that are patched together in one forward pass."""


def kinds_of(sites: str | Sequence[str], what: str) -> tuple[str, ...]:
    """The kinds of cells asked for: ``"heads"``, ``"resid"`` (resid_pre), or names of residual sites."""
    names = [sites] if isinstance(sites, str) else list(sites)
    if names == ["heads"]:
        if what not in HEADS:
            raise unknown_name("way to patch a head", what, HEADS)
        return (what,)
    kinds = tuple("resid_pre" if name == "resid" else Site.parse(name).kind for name in names)
    for name, kind in zip(names, kinds, strict=True):
        if kind not in STREAMS:
            raise unknown_name("site to patch", name, ("heads", "resid", *STREAMS))
    return kinds


def all_cells(
    model: AdaptedModel, kinds: Sequence[str], layers: Sequence[int], places: Sequence[tuple[int, ...] | None]
) -> list[Cell]:
    """Every cell of the map: kinds x layers x (heads) x places; heads of the layers that have attention.

    Raises:
        UserError: The model lacks a site, or none of the layers has heads.
    """
    known, with_heads = set(model.sites()), model.hub.geometry.attention_layers
    if set(kinds) & set(HEADS) and not set(layers) & set(with_heads):
        where = f"its layers with heads are {', '.join(map(str, with_heads))}" if with_heads else "no layer has"
        raise UserError(
            f"These layers have no attention heads ({where}): patch resid_post, mlp_out or another site of theirs."
        )
    cells = []
    for kind in kinds:
        for layer in layers:
            if kind in HEADS and layer not in with_heads:
                continue
            heads = range(model.n_heads) if kind in HEADS else (None,)
            cells += [Cell(kind, layer, head, place) for head in heads for place in places]
    for cell in cells:
        if cell.site.name not in known:
            raise unknown_name("site of this model", cell.site.name, known)
    return cells


def places_of(positions: str | int | Sequence[int], lengths: Sequence[int]) -> list[tuple[int, ...] | None]:
    """Which positions are patched together: ``"all"`` -> one cell with every position, ``"last"`` -> the last,
    ``"each"`` -> one cell per position that all prompts have, numbers -> one cell each.

    Numbers from the front need prompts of equal length, because a cell is the same distance from the end everywhere.
    """
    if positions == "all":
        return [None]
    if positions == "last":
        return [(-1,)]
    shortest = min(lengths)
    if positions == "each":
        return [(place,) for place in range(-shortest, 0)]
    if isinstance(positions, str):
        raise unknown_name("positions", positions, ("all", "each", "last", "a number", "a list of numbers"))
    numbers = [positions] if isinstance(positions, int) else list(positions)
    places: list[tuple[int, ...] | None] = []
    for number in numbers:
        if number >= 0 and len(set(lengths)) > 1:
            raise UserError(
                f"Position {number} counts from the front, but the prompts have {shortest} to {max(lengths)} tokens: "
                "count from the end (-1 is the last prompt token), or use prompts of one length."
            )
        back = number - shortest if number >= 0 else number
        if not -shortest <= back < 0:
            raise UserError(f"Position {number} is outside the shortest prompt of {shortest} tokens.")
        places.append((back,))
    return places
