"""Contracts: what a tuned model must and must not do, as a file that a machine checks before it ships."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import lazy

if TYPE_CHECKING:
    from tunescope.contracts.checking import Checked as Checked
    from tunescope.contracts.checking import check as check
    from tunescope.contracts.decisions import Finding as Finding
    from tunescope.contracts.schema import Contract as Contract

_HOMES = {"Checked": "checking", "check": "checking", "Finding": "decisions", "Contract": "schema"}
__all__ = ["Checked", "Contract", "Finding", "check"]
__getattr__ = lazy(__name__, _HOMES)
