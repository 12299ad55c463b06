"""Which stack of layers a weight belongs to: the language model, or a vision, audio, encoder or prediction stack."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from probes.weights.naming import Layout, Place, place_of
from workbench.engine.by_module import of_another_stack

LANGUAGE = "language"
"""The stack that a causal language model's own layers, embeddings and head belong to."""
UNLOADED = "not_loaded"
"""Stored weights that the loaded model has no place for, such as layers that predict further tokens."""

_LIST = re.compile(r"(?:^|\.)(?P<list>layers|h|layer|blocks|block|resblocks)\.(?P<layer>\d+)\.(?P<module>.+)$")
_HEADS = ("lm_head", "embed_out", "output", "score", "shared", "final_logits_bias")


@dataclass(frozen=True)
class Stacks:
    """The stacks among a model's weights: for each the part of the names in front of its list of layers."""

    prefixes: tuple[str, ...] = ()
    """With the dot at the end; the language model's first."""

    @classmethod
    def of(cls, names: Iterable[str]) -> Stacks:
        """From the names of all weights."""
        sizes = Counter(prefix for name in names if (prefix := _prefix(name)) is not None)
        return cls(tuple(sorted(sizes, key=lambda prefix: (of_another_stack(prefix), -sizes[prefix], prefix))))

    @property
    def language(self) -> str:
        """What stands in front of the names of the language model's layers and embeddings; empty mostly."""
        return self.prefixes[0] if self.prefixes else ""

    def stack_of(self, name: str) -> str:
        """``language``, or the name of another stack, or the first part of the name of what is in none."""
        prefix = _prefix(name)
        if prefix is not None:
            return LANGUAGE if prefix == self.language else prefix.rstrip(".") or "outer"
        if len(self.prefixes) <= 1 or name.startswith(_HEADS):
            return LANGUAGE
        # the longest name of a stack, or else of the folder a stack is in, that the name begins with
        homes = [prefix for prefix in self.prefixes if prefix and name.startswith(prefix)]
        if homes:
            longest = max(homes, key=len)
            return LANGUAGE if longest == self.language else longest.rstrip(".")
        first = name.partition(".")[0]
        inside = [prefix for prefix in self.prefixes[1:] if prefix.partition(".")[0] == first]
        if len(inside) == 1:
            return inside[0].rstrip(".")
        return LANGUAGE if not inside and not self.language and not of_another_stack(first) else first

    def place(self, name: str) -> Place:
        """As :func:`probes.weights.naming.place_of`; modules outside the language model carry their stack's name."""
        stack, place = self.stack_of(name), _place(name)
        if stack == LANGUAGE:
            return place
        module = place.module if place.layer is None else f"{stack}.{place.module}"
        return Place(place.layer, module, place.expert)

    def aligned(self, names: Iterable[str], other: Stacks, known: Mapping[str, Any]) -> dict[str, str]:
        """``names`` of a model with these stacks -> its name in a model of ``other`` stacks, among ``known``.

        A text model is compared with the language model inside an image-text model.
        """
        if self.language == other.language:
            return {name: name for name in names}
        renamed = {}
        for name in names:
            moved = other.language + name.removeprefix(self.language)
            renamed[name] = moved if name not in known and moved in known else name
        return renamed


def layouts(config: Mapping[str, Any], stacks: Iterable[str]) -> dict[str, Layout]:
    """Stack -> how its heads lie. They are told apart in the language model, and in its encoder where it has one."""
    language = Layout.of(config)
    encoded = bool(config.get("is_encoder_decoder"))
    alone = Layout(n_heads=0, n_kv_heads=0)
    return {
        stack: language if stack == LANGUAGE or (encoded and stack.endswith("encoder")) else alone for stack in stacks
    }


def _prefix(name: str) -> str | None:
    match = _LIST.search(name)
    return None if match is None else name[: match.start("list")]


def _place(name: str) -> Place:
    match = _LIST.search(name)
    if match is None or match["list"] not in ("block", "resblocks"):
        return place_of(name)
    inner = place_of(f"layers.0.{match['module']}")
    return Place(int(match["layer"]), inner.module, inner.expert)
