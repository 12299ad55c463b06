"""The report: one HTML file of a run that opens offline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import lazy

if TYPE_CHECKING:
    from dashboards.report.write import write_report as write_report

__all__ = ["write_report"]

__getattr__ = lazy(__name__, {"write_report": "write"})
