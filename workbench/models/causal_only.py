"""What is no causal language model is told so before a weight is read: encoders, encoder-decoders, heads for labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.errors import NotSupported

_LABEL_HEADS = {
    "ForSequenceClassification": "a classification or reward head",
    "ForTokenClassification": "a head that labels tokens",
    "ForQuestionAnswering": "a head that marks answers",
    "ForMultipleChoice": "a multiple-choice head",
    "RewardModel": "a reward head",
}
_INSTEAD = "Tunescope compares decoder-only causal language models (AutoModelForCausalLM)"


def check_causal(config: Mapping[str, Any], name: str) -> None:
    """Refuse a config that is of no decoder-only causal language model.

    Args:
        config: The content of ``config.json``, or a config's ``to_dict()``.
        name: What the model is called in the sentence.

    Raises:
        NotSupported: It is an encoder, an encoder-decoder, or ends in a head that predicts no next token.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list | tuple) and named else ""
    head = next((what for ending, what in _LABEL_HEADS.items() if architecture.endswith(ending)), None)
    if head is not None:
        raise NotSupported(
            f"{name} is a {architecture}, which ends in {head} and predicts no next token: {_INSTEAD}, so give the "
            "language model that it was trained from."
        )
    kind = str(config.get("model_type", ""))
    if config.get("is_encoder_decoder"):
        raise NotSupported(f"{name} ({kind}) is an encoder-decoder: {_INSTEAD}, so give one without an encoder.")
    masked = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder")
    if masked or architecture.endswith("ForMaskedLM"):
        raise NotSupported(f"{name} ({kind}) is an encoder, which sees later tokens: {_INSTEAD}, so give one of those.")
