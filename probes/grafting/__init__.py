"""Skill localisation by grafting: which tuned weights, put into the base, carry a skill."""

from __future__ import annotations

from probes.grafting.graft import graft
from probes.grafting.overlap import mask_overlap
from probes.grafting.result import GraftResult
from probes.grafting.search import Settings

__all__ = ["GraftResult", "Settings", "graft", "mask_overlap"]
