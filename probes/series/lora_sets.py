"""The factors of several LoRAs of one base, and the modules that all of them change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probes.series.members import Members
from probes.weights.sources import Factors
from workbench.errors import UserError
from workbench.progress import Progress, tracked

Adapters = dict[str, Mapping[str, Factors]]
"""Member -> tensor -> factors."""


def read_adapters(members: Members, watch: Progress) -> tuple[Adapters, dict[str, Any]]:
    """Factors of every member, and what all models are. Raises :class:`UserError` for what is no plain LoRA."""
    adapters: Adapters = {}
    models: dict[str, Any] = {}
    watch.start("adapters", len(members.models))
    for title, opened in tracked(members.opened(), watch):
        if not opened.factors:
            raise UserError(f"{title} is no plain LoRA, and its factors are what is read here: give LoRA adapters.")
        adapters[title] = opened.factors
        sides = opened.identities()
        models |= {"base": sides["base"], title: sides["tuned"]}
    watch.finish()
    return adapters, models


def shared_modules(adapters: Adapters) -> list[str]:
    """Modules that every adapter changes. Raises :class:`UserError` where there is none."""
    sets = [set(adapter) for adapter in adapters.values()]
    names = sorted(set.intersection(*sets))
    if not names:
        raise UserError("The adapters change no module in common: give adapters of the same target modules.")
    return names
