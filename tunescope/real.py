"""``tunescope.real.smollm2()``: the folder of a real chat model of 135 million parameters, from PyPI."""

from __future__ import annotations

from workbench.organisms.real import installed, smollm2

__all__ = ["installed", "smollm2"]
