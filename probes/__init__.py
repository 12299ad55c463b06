"""Finding where a behaviour lives: every probe returns a result with its control, interval and cost."""

from __future__ import annotations

from workbench.lazy import lazy

_HOME = {
    "ExpertMap": "experts.mapping",
    "ProbeResult": "results",
    "Provenance": "results",
    "expert_map": "experts.mapping",
}
__all__ = sorted(_HOME)  # noqa: PLE0605

__getattr__ = lazy("probes", _HOME)


def __dir__() -> list[str]:
    return __all__
