"""The same model in other people's toolboxes."""

from __future__ import annotations

import copy
import logging
import tempfile
from typing import TYPE_CHECKING, Any

from workbench.errors import NotSupported

if TYPE_CHECKING:
    from workbench.models.adapted import AdaptedModel


def to_transformer_bridge(model: AdaptedModel) -> Any:
    """TransformerLens's ``TransformerBridge`` on a copy of ``model`` (adapter merged), weights unprocessed.

    The copy runs eager attention, as the bridge forces it. Raises :class:`NotSupported` for an architecture that
    TransformerLens cannot bridge, and while hooks are on the model (they would be copied too).
    """
    if model.n_hooks:
        raise NotSupported("Interventions are on this model: leave their context before bridging a copy of it.")
    logger = logging.getLogger("transformers")
    level = logger.level
    from transformer_lens.model_bridge import TransformerBridge

    with model.active():
        hf = plain_copy(model)
    hf.config.architectures = [type(hf).__name__]  # a model built from a config does not say
    try:
        with tempfile.TemporaryDirectory() as folder:  # the bridge reads the tokenizer a second time from its folder
            return TransformerBridge.boot_transformers(
                model.name,
                hf_model=hf,
                tokenizer=_saved(model.tokenizer, folder),
                device=str(model.device),
                dtype=model.dtype,
            )
    except (ValueError, NotImplementedError, KeyError, OSError) as error:
        raise NotSupported(f"TransformerLens cannot bridge {type(hf).__name__}: {str(error)[:200]}") from error
    finally:
        logger.setLevel(level)  # importing TransformerLens turns transformers' warnings off for the process


def _saved(tokenizer: Any, folder: str) -> Any:
    from transformers import AutoTokenizer

    if tokenizer is None:
        return None
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def plain_copy(model: AdaptedModel) -> Any:
    """A separate Hugging Face model that computes what ``model`` does: adapter merged or, for the base, left out."""
    with model.hub.listener.silenced():
        copied = copy.deepcopy(model.hf)
    if model.hf is model.inner:
        return copied
    return copied.unload() if model.role == "base" else copied.merge_and_unload()


def to_nnsight(model: AdaptedModel) -> Any:
    """nnsight's ``TransformersModel`` around this very model, for your own traces.

    Recipes and recordings of ours may be active at the same time. Importing nnsight gives every Python object a
    ``save`` attribute; that is nnsight's way.
    """
    from nnsight import TransformersModel

    with model.active() as hf:
        return TransformersModel(hf, tokenizer=model.tokenizer)
