"""Finding where a behaviour lives: every probe returns a result with its control, interval and cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import lazy

if TYPE_CHECKING:
    from probes.results import ProbeResult, Provenance

_HOME = {
    "ProbeResult": "results",
    "Provenance": "results",
}
__all__ = ["ProbeResult", "Provenance"]


__getattr__ = lazy("probes", _HOME)


def __dir__() -> list[str]:
    return sorted(__all__)
