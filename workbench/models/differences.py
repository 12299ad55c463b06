"""What sets a tuned model apart from its base beside the weights, and whether the two compare at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from workbench.errors import UserError
from workbench.models.loading import quantization
from workbench.typing import Int, Tensor

# attributes of a config that fix the shapes of activations; the first that differs ends the comparison
_SHAPES = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "v_head_dim",
    "intermediate_size",
    "moe_intermediate_size",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_experts_per_tok",
)
# attributes that change what the same weights compute; both values are allowed and told
_COMPUTATION = (
    "hidden_act",
    "rms_norm_eps",
    "layer_norm_eps",
    "rope_theta",
    "rope_parameters",
    "max_position_embeddings",
    "sliding_window",
    "layer_types",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "norm_topk_prob",
    "routed_scaling_factor",
    "tie_word_embeddings",
)


@dataclass(frozen=True)
class TokenDifferences:
    """How two vocabularies differ. ``common`` counts the ids that mean the same in both models."""

    common: int
    added: tuple[str, ...]  # tokens only the tuned model's tokenizer has, in the order of their ids
    removed: tuple[str, ...]  # tokens only the base's has
    vocab_sizes: tuple[int, int]  # rows of the vocabulary projection: base, tuned

    @property
    def same(self) -> bool:
        """Whether every id means the same in both."""
        return not self.added and not self.removed and self.vocab_sizes[0] == self.vocab_sizes[1]


@dataclass(frozen=True)
class Differences:
    """Everything that differs between two comparable models, beside the weights; pairs are (base, tuned)."""

    tokens: TokenDifferences
    chat_templates: bool = False
    special_tokens: tuple[tuple[str, str | None, str | None], ...] = ()
    computation: tuple[tuple[str, Any, Any], ...] = ()
    dtypes: tuple[str, str] | None = None
    quantization: tuple[str | None, str | None] = (None, None)
    device_maps: tuple[str, str] | None = None
    notes: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """The differences for people, one sentence each; empty when only the weights differ."""
        said = list(self.notes) + _about_tokens(self.tokens)
        if self.chat_templates:
            said.append("The chat templates differ: chat prompts are built with the tuned model's for both.")
        said += [f"The {n} differs: {b!r} in the base, {t!r} in the tuned model." for n, b, t in self.special_tokens]
        said += [f"The config's {n} differs: {b} in the base, {t} in the tuned model." for n, b, t in self.computation]
        if self.dtypes is not None and self.dtypes[0] != self.dtypes[1]:
            said.append(f"The base computes in {self.dtypes[0]}, the tuned model in {self.dtypes[1]}.")
        for which, how in zip(("base", "tuned model"), self.quantization, strict=True):
            if how is not None:
                said.append(f"The {which}'s weights are quantized ({how}): differences include its rounding.")
        if self.device_maps is not None and self.device_maps[0] != self.device_maps[1]:
            said.append(f"The base lies on {self.device_maps[0]}, the tuned model on {self.device_maps[1]}.")
        return said


def compare(
    base_config: Any,
    tuned_config: Any,
    base_tok: Any,
    tuned_tok: Any,
    *,
    base_model: Any = None,
    tuned_model: Any = None,
    quantized: tuple[str | None, str | None] | None = None,
    notes: tuple[str, ...] = (),
) -> Differences:
    """Compare two models by their configs and tokenizers, and by the loaded models when they are given.

    Of an adapter pair both configs, and both models, may be the same object. ``quantized`` says how the files are
    stored where the configs of the loaded models no longer do. Raises UserError when
    architecture or widths differ, naming the first field and both values, or when a token has another id
    in each tokenizer.
    """
    check_same_shape(base_config, tuned_config)
    base, tuned = base_config.get_text_config(), tuned_config.get_text_config()
    both = base_model is not None and tuned_model is not None
    return Differences(
        tokens=compare_tokens(base_tok, tuned_tok, int(base.vocab_size), int(tuned.vocab_size)),
        chat_templates=_template(base_tok) != _template(tuned_tok) and _template(tuned_tok) is not None,
        special_tokens=_changed(_special(base_tok), _special(tuned_tok)),
        computation=_changed(_values(base, _COMPUTATION), _values(tuned, _COMPUTATION)),
        dtypes=(_dtype(base_model), _dtype(tuned_model)) if both else None,
        quantization=quantized or (quantization(base_config), quantization(tuned_config)),
        device_maps=(_places(base_model), _places(tuned_model)) if both else None,
        notes=notes,
    )


def check_same_shape(base_config: Any, tuned_config: Any) -> None:
    """Raises UserError naming the first field in which architecture or widths differ, and both values."""
    base, tuned = _shapes(base_config.get_text_config()), _shapes(tuned_config.get_text_config())
    for name, one, other in _changed(base, tuned):
        what = "architectures" if name == "model_type" else "shapes"
        raise UserError(
            f"The two models have different {what}: {name} is {one!r} in the base and {other!r} in the tuned "
            "model. Give the base that the tuned model was trained from."
        )


def _shapes(config: Any) -> dict[str, Any]:
    shapes = _values(config, _SHAPES)
    heads, width = shapes["num_attention_heads"], shapes["hidden_size"]
    if heads and width:  # what transformers takes where a config leaves these out
        shapes["num_key_value_heads"] = shapes["num_key_value_heads"] or heads
        shapes["head_dim"] = shapes["head_dim"] or width // heads
    return shapes


def _values(config: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(config, name, None) for name in names}


def _changed(base: Mapping[str, Any], tuned: Mapping[str, Any]) -> tuple[tuple[str, Any, Any], ...]:
    return tuple((name, base[name], tuned.get(name)) for name in base if base[name] != tuned.get(name))


def _template(tokenizer: Any) -> Any:
    return getattr(tokenizer, "chat_template", None)


def _special(tokenizer: Any) -> dict[str, str | None]:
    return {f"{kind} token": getattr(tokenizer, f"{kind}_token", None) for kind in ("bos", "eos")}


def _dtype(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def _places(model: Any) -> str:
    spread = getattr(model, "hf_device_map", None)
    places = sorted({str(place) for place in spread.values()}) if spread else [str(model.device)]
    return " + ".join(places)


def compare_tokens(base_tok: Any, tuned_tok: Any, base_size: int, tuned_size: int) -> TokenDifferences:
    """Compare two vocabularies of ``base_size`` and ``tuned_size`` rows.

    Raises UserError when one token has different ids, as then the same prompt is no longer the same input.
    """
    base, tuned = base_tok.get_vocab(), tuned_tok.get_vocab()
    moved = sorted((base[token], token) for token in base.keys() & tuned.keys() if base[token] != tuned[token])
    if moved:
        token = moved[0][1]
        raise UserError(
            f"The tokenizers differ: {len(moved)} tokens have another id in the tuned model ({token!r}: "
            f"{base[token]} in the base, {tuned[token]} in the tuned model), so no input is the same to "
            "both; give the base that the tuned model was trained from."
        )
    return TokenDifferences(
        common=len(common_token_ids(base_tok, tuned_tok, base_size, tuned_size)),
        added=tuple(sorted(tuned.keys() - base.keys(), key=tuned.__getitem__)),
        removed=tuple(sorted(base.keys() - tuned.keys(), key=base.__getitem__)),
        vocab_sizes=(base_size, tuned_size),
    )


def common_token_ids(base_tok: Any, tuned_tok: Any, base_size: int, tuned_size: int) -> Int[Tensor, " token"]:
    """The ids, in order, that both models have a row for and that name the same token, or none, in both."""
    here = {index: token for token, index in base_tok.get_vocab().items()}
    there = {index: token for token, index in tuned_tok.get_vocab().items()}
    size = min(base_size, tuned_size)
    return torch.tensor([i for i in range(size) if here.get(i) == there.get(i)], dtype=torch.long)


def _about_tokens(tokens: TokenDifferences, most: int = 5) -> list[str]:
    said = []
    for names, whose in ((tokens.added, "tuned model's"), (tokens.removed, "base's")):
        if names:
            listed = ", ".join(repr(name) for name in names[:most]) + (", …" if len(names) > most else "")
            said.append(f"{len(names)} tokens are only in the {whose} tokenizer ({listed}).")
    base, tuned = tokens.vocab_sizes
    if base != tuned:
        said.append(f"The vocabulary has {base} rows in the base, {tuned} in the tuned model.")
    if said:
        said.append(f"Logits are compared on the {tokens.common} ids common to both.")
    return said
