"""Where the weights changed: norms, directions and spectra of a change, streamed tensor by tensor."""

from __future__ import annotations

from probes.weights.delta import weight_delta
from probes.weights.result import WeightDelta

__all__ = ["WeightDelta", "weight_delta"]
