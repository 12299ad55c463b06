"""What the two sides of a weight comparison are, by content: the same hashes that the loaded pair has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.errors import UserError
from workbench.models.identity import ModelIdentity, identify, identify_stored, with_adapter
from workbench.models.loading import load_tokenizer
from workbench.models.sources import Kind, Source
from workbench.models.stored_model import StoredModel


def identities(
    models: Mapping[str, Any], sources: Mapping[str, Source], stored: Mapping[Source, StoredModel]
) -> dict[str, ModelIdentity]:
    """By role. A side of a loaded pair keeps its own identity; a bare loaded model is hashed where it lies.

    Both have the tokenizer that :func:`workbench.load_pair` would give them, the tuned model's before the base's.
    """
    words = _tokenizer(sources["tuned"], sources["base"])
    identities_of: dict[str, ModelIdentity] = {}
    for role, source in sources.items():
        if hasattr(models[role], "identity"):
            identities_of[role] = models[role].identity
        elif source.kind is Kind.ADAPTER:
            identities_of[role] = with_adapter(identities_of["base"], source, words)
        elif source.kind is Kind.MODEL:
            identities_of[role] = identify_stored(stored[source], words)
        else:
            identities_of[role] = identify(source.model, words, name=source.name, adapter=role == "tuned")
    return identities_of


def _tokenizer(*sources: Source) -> Any:
    """None where neither brings one that can be read; weights are compared without."""
    try:
        return load_tokenizer(*sources)[0]
    except UserError:
        return None
