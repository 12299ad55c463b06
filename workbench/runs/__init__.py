"""Runs: folders that hold a result, what made it, and the hash of every file.

``runs.create(home, name, kind=..., config=...)``, ``runs.open(path)``, ``runs.list(home)``,
``runs.verify(path)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.lazy import lazy

if TYPE_CHECKING:
    from workbench.runs.beginning import begun as begun
    from workbench.runs.checking import Verification as Verification
    from workbench.runs.checking import verify_run as verify
    from workbench.runs.folder import Run as Run
    from workbench.runs.folder import create_run as create
    from workbench.runs.folder import create_run_at as create_at
    from workbench.runs.folder import open_run as open
    from workbench.runs.listing import RunSummary as RunSummary
    from workbench.runs.listing import list_runs as list
    from workbench.runs.places import default_home as default_home

__all__ = [
    "Run",
    "RunSummary",
    "Verification",
    "begun",
    "create",
    "create_at",
    "default_home",
    "list",
    "open",
    "verify",
]

__getattr__ = lazy(
    __name__,
    {
        "Run": "folder",
        "RunSummary": "listing",
        "Verification": "checking",
        "begun": "beginning",
        "create": "folder:create_run",
        "create_at": "folder:create_run_at",
        "default_home": "places",
        "list": "listing:list_runs",
        "open": "folder:open_run",
        "verify": "checking:verify_run",
    },
)
