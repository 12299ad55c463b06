"""Every adapter type of the installed PEFT, and how it is read here: exactly, as realised, as tokens, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workbench.errors import NotSupported
from workbench.models.sources import check_adapter_type
from workbench.models.virtual_tokens import EMBEDDINGS, PREFIXES

Reading = Literal["exact", "realised", "virtual tokens", "refused", "untested"]

EXACT = (
    "ADALORA", "ADAMSS", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA", "HIRA", "HRA", "IA3",
    "LOHA", "LOKR", "LORA", "MISS", "OFT", "OSF", "PEANUT", "PSOFT", "PVERA", "RANDLORA", "ROAD", "SHIRA",
    "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT",
)  # fmt: skip
"""A linear change of each module: its whole effect is one dW, which the tests compare with the module's outputs."""
REALISED = {
    "BEFT": "it changes biases alone, so dW is 0 and the change is the same for every token: see adapter_panel",
    "LILY": "its parts are mixed anew for each input: adapter_panel records the change of each token",
    "LN_TUNING": "it changes norms, which are no linear maps: adapter_panel records the change of each token",
}
"""No one dW: the change is recorded where it happens, for the prompts at hand."""


@dataclass(frozen=True)
class AdapterKind:
    """``sentence`` says why a kind is not read as one change of weights, and what reads it instead."""

    name: str
    reading: Reading
    sentence: str


def adapter_kinds() -> list[AdapterKind]:
    """One entry per type that the installed PEFT knows, by name; a type that no test here covers is "untested"."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return [_kind(str(name.value)) for name in sorted(PEFT_TYPE_TO_CONFIG_MAPPING, key=lambda name: str(name.value))]


def _kind(name: str) -> AdapterKind:
    if name in EMBEDDINGS:
        return AdapterKind(name, "virtual tokens", "no pair of one length: virtual_tokens reads its tokens one by one")
    if name in PREFIXES:
        return AdapterKind(name, "virtual tokens", "no pair of one length: prefix_gates reads it as gates of heads")
    try:
        check_adapter_type(name, "this")
    except NotSupported as error:
        return AdapterKind(name, "refused", str(error))
    if name in REALISED:
        return AdapterKind(name, "realised", REALISED[name])
    if name in EXACT:
        return AdapterKind(name, "exact", "one change of weights: weight_delta, Graft, TaskVector and AdapterScale")
    return AdapterKind(name, "untested", "newer than this table: weight_delta reads it where it is linear, and says so")
