"""Sites: the places of a transformer where a value can be read or changed, under TransformerLens's names.

===================================  ==========================================================
name                                 value
===================================  ==========================================================
``blocks.L.hook_resid_pre|mid|post``  residual stream, [batch, pos, d_model]
``blocks.L.hook_attn_out|mlp_out``    what the sublayer adds to it, [batch, pos, d_model]
``blocks.L.hook_mixer_out``             output of what mixes tokens without heads (SSM, linear attention, convolution)
``blocks.L.attn.hook_q|z``            per query head, [batch, pos, head, d_head]; q is before rotary embedding
``blocks.L.attn.hook_k|v``            per key/value head, [batch, pos, kv_head, d_head]
``blocks.L.attn.hook_pattern``        attention weights, [batch, head, query, key]
``blocks.L.mlp.hook_post``            the MLP's inner activation, [batch, pos, d_mlp]
``blocks.L.mlp.hook_router``          :class:`~workbench.engine.routing.Routing` of a mixture of experts
``blocks.L.mlp.expert[e]``            what expert e adds, weighted by the router, 0 where not selected
===================================  ==========================================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from workbench.errors import UserError, unknown_name

_PATHS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mixer_out": "hook_mixer_out",
    "mlp_out": "hook_mlp_out",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "z": "attn.hook_z",
    "pattern": "attn.hook_pattern",
    "mlp_post": "mlp.hook_post",
    "router": "mlp.hook_router",
}
KINDS: tuple[str, ...] = (*_PATHS, "expert")
"""Every kind of site, by its short name."""

HEAD_KINDS = frozenset({"q", "k", "v", "z", "pattern"})
"""Kinds of site that a layer has only where it has attention heads."""

ORDER: dict[str, int] = {
    kind: place
    for place, kind in enumerate(
        ("resid_pre", "q", "k", "v", "pattern", "z", "mixer_out", "attn_out", "resid_mid", "router", "expert",
         "mlp_post", "mlp_out", "resid_post")
    )
}  # fmt: skip
"""In which order a layer computes its sites; the early stop relies on it."""

_BY_PATH = {path: kind for kind, path in _PATHS.items()}
_FULL = re.compile(r"blocks\.(?P<layer>\d+)\.(?P<path>.+)")
_EXPERT = re.compile(r"(?:mlp\.)?expert\[(?P<expert>\d+)\]")
_LABEL = re.compile(r"L(?P<layer>\d+)(?:(?P<kind>[HE])(?P<index>\d+))?")


@dataclass(frozen=True)
class Site:
    """A kind of value at a layer; ``layer`` is None when it still has to be chosen ("resid_post")."""

    kind: str
    layer: int | None = None
    expert: int | None = None

    @property
    def name(self) -> str:
        """The canonical name, such as ``blocks.3.attn.hook_z``."""
        path = f"mlp.expert[{self.expert}]" if self.kind == "expert" else _PATHS[self.kind]
        return path if self.layer is None else f"blocks.{self.layer}.{path}"

    @property
    def order(self) -> tuple[int, int]:
        """Sorts sites in the order of computation."""
        return (-1 if self.layer is None else self.layer, ORDER[self.kind])

    def at(self, layer: int) -> Site:
        """The same kind of site at ``layer``."""
        return Site(self.kind, layer, self.expert)

    def at_first(self) -> Site:
        """The same place; an expert stands for all experts of its layer."""
        return self if self.expert is None else Site(self.kind, self.layer, 0)

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read ``blocks.3.attn.hook_z``, ``z``, ``hook_z``, ``resid_post`` or ``expert[5]``.

        Raises :class:`UserError` naming the closest known site otherwise.
        """
        full = _FULL.fullmatch(text.strip())
        layer = int(full["layer"]) if full else None
        path = full["path"] if full else text.strip()
        if expert := _EXPERT.fullmatch(path):
            return cls("expert", layer, int(expert["expert"]))
        kind = _BY_PATH.get(path) or _BY_PATH.get(f"attn.{path}") or _BY_PATH.get(f"mlp.{path}")
        if kind is None and path in _PATHS:
            kind = path
        if kind is None:
            known = list(_PATHS) + [f"blocks.{layer or 0}.{p}" for p in _PATHS.values()] + ["expert[0]"]
            raise unknown_name("site", text, known)
        return cls(kind, layer)


def parse_label(text: str) -> tuple[int, str | None, int | None]:
    """Split a short label: ``L3H5`` -> (3, "head", 5), ``L3E12`` -> (3, "expert", 12), ``L3`` -> (3, None, None)."""
    match = _LABEL.fullmatch(text.strip())
    if match is None:
        raise UserError(f"{text!r} is not a label: write L3 (layer), L3H5 (head) or L3E12 (expert).")
    if match["kind"] is None:
        return int(match["layer"]), None, None
    return int(match["layer"]), "head" if match["kind"] == "H" else "expert", int(match["index"])


def resolve_layers(layers: int | float | str | Iterable[int | float | str] | None, n_layers: int) -> list[int]:
    """Layer indices from ints, negative ints, or fractions of depth (0.5 or "0.5"); None means every layer.

    A fraction f means layer ``round(f * (n_layers - 1))``.
    """
    if layers is None:
        return list(range(n_layers))
    wanted = [layers] if isinstance(layers, (int, float, str)) else list(layers)
    return sorted({_resolve_layer(layer, n_layers) for layer in wanted})


def _resolve_layer(layer: int | float | str, n_layers: int) -> int:
    if isinstance(layer, str):
        try:
            layer = float(layer) if "." in layer else int(layer)
        except ValueError:
            raise UserError(f"Layer {layer!r} is neither an index (3) nor a fraction of depth (0.5).") from None
    if isinstance(layer, float):
        if not 0.0 <= layer <= 1.0:
            raise UserError(f"Layer {layer} is not a fraction of depth: write 0.0 to 1.0, or a whole number.")
        return round(layer * (n_layers - 1))
    if not -n_layers <= layer < n_layers:
        raise UserError(f"Layer {layer} is out of range: the model has layers 0 to {n_layers - 1}.")
    return layer % n_layers


def expand_sites(
    sites: str | Site | Sequence[str | Site],
    layers: int | float | str | Iterable[int | float | str] | None,
    n_layers: int,
    available: Iterable[str],
) -> list[Site]:
    """Every site asked for, with its layer, in the order of computation.

    A site without a layer is taken at ``layers`` (default: all layers that have it). Raises
    :class:`UserError` for a site that this model lacks.
    """
    known = set(available)
    expanded: set[Site] = set()
    for pattern in [sites] if isinstance(sites, (str, Site)) else sites:
        site = Site.parse(pattern) if isinstance(pattern, str) else pattern
        wanted = [site] if site.layer is not None else [site.at(i) for i in resolve_layers(layers, n_layers)]
        present = [name for name in wanted if _general(name) in known]
        if not present or (site.layer is not None and site not in present):
            raise unknown_name("site of this model", (wanted or [site])[0].name, known)
        expanded.update(present)
    if not expanded:
        raise UserError("No site was asked for: name at least one, such as resid_post or z.")
    return sorted(expanded, key=lambda site: (*site.order, site.expert or 0))


def _general(site: Site) -> str:
    """The name under which a model lists a site; experts are listed once per layer, without their number."""
    return f"blocks.{site.layer}.mlp.expert" if site.kind == "expert" else site.name
