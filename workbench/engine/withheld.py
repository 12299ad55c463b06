"""The sites that a model's self-check could not prove, layer by layer, each with its reason."""

from __future__ import annotations

from collections.abc import Iterable

from workbench.engine.sites import Site


class Withheld:
    """Sites that are not offered; the rest of the model works."""

    def __init__(self) -> None:
        self._reasons: dict[str, dict[int, str]] = {}

    def add(self, kind: str, layers: Iterable[int], reason: str) -> None:
        """Withhold a kind of site in ``layers``; the first reason counts."""
        at = self._reasons.setdefault(kind, {})
        for layer in layers:
            at.setdefault(layer, reason)

    def __contains__(self, site: Site) -> bool:
        return site.layer in self._reasons.get(site.kind, {})

    def reason(self, site: Site) -> str:
        """Why a withheld site is withheld."""
        assert site.layer is not None
        return self._reasons[site.kind][site.layer]

    def by_kind(self) -> dict[str, str]:
        """Kind of site -> the reason in the first layer that it is withheld in, and in how many more it is."""
        return {kind: _told(at) for kind, at in sorted(self._reasons.items()) if at}


def _told(at: dict[int, str]) -> str:
    layers = sorted(at)
    more = f" (and in {len(layers) - 1} more layers)" if len(layers) > 1 else ""
    return at[layers[0]] + more
