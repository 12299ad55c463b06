"""The settings of a call, for its provenance: of a probe that reads prompts, and of one that reads a recording.

What a function registered by ``@method`` was given is in its result's settings by itself
(:meth:`workbench.results.Result.of_call`); said by hand is what the arguments do not show.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probes.results import Provenance
from workbench.call_settings import call_settings, plain
from workbench.recording.recording import Recording

__all__ = ["call_settings", "of_recording", "plain"]

_OF_A_RECORDING = ("sites", "positions", "dtype", "new_tokens", "batch_size")


def of_recording(
    probe: str, recording: Recording, roles: tuple[str, ...], seed: int, settings: Mapping[str, Any] | None = None
) -> Provenance:
    """The provenance of what was read from a recording: its models and prompts, and in the settings where and how they
    were recorded."""
    config = recording.config
    models = config.get("models", {})
    recorded = {name: config[name] for name in _OF_A_RECORDING if name in config}
    return Provenance(
        probe=probe,
        models={role: models.get(role, role) for role in roles},
        prompts=config.get("prompts"),
        n_prompts=recording.n_prompts,
        seed=seed,
        settings={"recording": plain(recorded), **(settings or {})},
    )
