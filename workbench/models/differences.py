"""What sets a tuned model apart from its base beside the weights, and whether the two compare at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from workbench.errors import UserError
from workbench.models.generation_settings import ends_of, of_effect
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
# fields of a config that change nothing in what the same weights compute, or are told elsewhere
_INCIDENTAL = {
    "_name_or_path", "_model_name_or_path", "_commit_hash", "_attn_implementation", "_experts_implementation",
    "architectures", "attention_dropout", "attn_implementation", "attn_pdrop", "auto_map", "bos_token_id",
    "chunk_size_feed_forward", "classifier_dropout", "dtype", "embd_pdrop", "eos_token_id", "experts_implementation",
    "finetuning_task", "gradient_checkpointing", "hidden_dropout", "id2label", "initializer_range", "label2id",
    "output_attentions", "output_hidden_states", "output_router_logits", "pad_token_id", "pretraining_tp",
    "problem_type", "quantization_config", "resid_pdrop", "return_dict", "router_aux_loss_coef", "router_jitter_noise",
    "task_specific_params", "torch_dtype", "transformers_version", "unk_token_id", "use_cache", "vocab_size",
}  # fmt: skip


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
    template: str = "tuned"
    """Whose chat template prompts are put through: "base", "tuned", or "own": each model's by its own."""
    special_tokens: tuple[tuple[str, str | None, str | None], ...] = ()
    computation: tuple[tuple[str, Any, Any], ...] = ()
    around_texts: tuple[str, str] = ("", "")
    """The special tokens that each tokenizer puts around a text: a BOS in front, mostly."""
    generation: tuple[tuple[str, Any, Any], ...] = ()
    """Settings of the generation configs that change greedy texts, with both values."""
    own_generation_config: bool = False
    ends: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    """The token ids that end a text."""
    attention: tuple[str, str] | None = None
    """How attention is computed ("sdpa", "eager")."""
    dtypes: tuple[str, str] | None = None
    quantization: tuple[str | None, str | None] = (None, None)
    device_maps: tuple[str, str] | None = None
    notes: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """The differences for people, one sentence each; empty when only the weights differ."""
        said = list(self.notes) + _about_tokens(self.tokens)
        if self.chat_templates:
            said.append(f"The chat templates differ: {_TEMPLATES[self.template]}.")
        if self.around_texts[0] != self.around_texts[1]:
            base, tuned = (text or "nothing" for text in self.around_texts)
            said.append(
                f"The base's tokenizer puts {base} around a text, the tuned model's {tuned}: both models read what the "
                "tuned model's tokenizer writes."
            )
        said += [f"The {n} differs: {b!r} in the base, {t!r} in the tuned model." for n, b, t in self.special_tokens]
        said += [f"The config's {n} differs: {b} in the base, {t} in the tuned model." for n, b, t in self.computation]
        said += _about_generation(self.generation, self.own_generation_config)
        if self.ends[0] != self.ends[1]:
            base_ends, tuned_ends = map(list, self.ends)
            said.append(f"Texts end with the tokens {base_ends} in the base, {tuned_ends} in the tuned model.")
        if self.attention is not None and self.attention[0] != self.attention[1]:
            said.append(f"The base computes attention by {self.attention[0]}, the tuned model by {self.attention[1]}.")
        if self.dtypes is not None and self.dtypes[0] != self.dtypes[1]:
            said.append(f"The base computes in {self.dtypes[0]}, the tuned model in {self.dtypes[1]}.")
        for which, how in zip(("base", "tuned model"), self.quantization, strict=True):
            if how is not None:
                said.append(f"The {which}'s weights are quantized ({how}): differences include its rounding.")
        if self.device_maps is not None and self.device_maps[0] != self.device_maps[1]:
            said.append(f"The base lies on {self.device_maps[0]}, the tuned model on {self.device_maps[1]}.")
        return said


_TEMPLATES = {
    "tuned": "chats and questions are put through the tuned model's for both (template='base' or 'own' for another)",
    "base": "chats and questions are put through the base's for both, as asked for",
    "own": "each model reads chats and questions through its own, as asked for",
}


def compare(  # noqa: PLR0913 (all but four by keyword)
    base_config: Any,
    tuned_config: Any,
    base_tok: Any,
    tuned_tok: Any,
    *,
    base_model: Any = None,
    tuned_model: Any = None,
    own_base_tok: Any = None,
    quantized: tuple[str | None, str | None] | None = None,
    template: str = "tuned",
    own_generation_config: bool = False,
    notes: tuple[str, ...] = (),
) -> Differences:
    """Compare two models by their configs and tokenizers, and by the loaded models when they are given.

    Of an adapter pair both configs, and both models, may be the same object. ``quantized`` says how the files are
    stored where the configs of the loaded models no longer do. ``own_base_tok``: the base's own tokenizer, where
    ``base_tok`` is the one that an adapter pair reads with. Raises UserError when
    architecture or widths differ, naming the first field and both values, or when a token has another id
    in each tokenizer.
    """
    check_same_shape(base_config, tuned_config)
    base, tuned = base_config.get_text_config(), tuned_config.get_text_config()
    both = base_model is not None and tuned_model is not None
    own = base_tok if own_base_tok is None else own_base_tok
    return Differences(
        tokens=compare_tokens(base_tok, tuned_tok, int(base.vocab_size), int(tuned.vocab_size)),
        chat_templates=_template(own) != _template(tuned_tok),
        template=template,
        around_texts=(_around_texts(own), _around_texts(tuned_tok)),
        special_tokens=_changed(_special(own), _special(tuned_tok)),
        computation=_changed(_computation(base), _computation(tuned)),
        generation=_generation(base_model, tuned_model) if both else (),
        own_generation_config=own_generation_config,
        ends=(tuple(ends_of(base_model)), tuple(ends_of(tuned_model))) if both else ((), ()),
        attention=(_attention(base_model), _attention(tuned_model)) if both else None,
        dtypes=(_dtype(base_model), _dtype(tuned_model)) if both else None,
        quantization=quantized or (quantization(base_config), quantization(tuned_config)),
        device_maps=(_places(base_model), _places(tuned_model)) if both else None,
        notes=notes + _about_rules(own, tuned_tok),
    )


def check_same_shape(base_config: Any, tuned_config: Any) -> None:
    """Raises UserError naming the first field in which architecture or widths differ, and both values."""
    base, tuned = _shapes(base_config.get_text_config()), _shapes(tuned_config.get_text_config())
    for name, base_value, other in _changed(base, tuned):
        what = "architectures" if name == "model_type" else "shapes"
        raise UserError(
            f"The two models have different {what}: {name} is {base_value!r} in the base and {other!r} in the tuned "
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


def _computation(config: Any) -> dict[str, Any]:
    """Every field of a config but the incidental ones, as both models' transformers fill them in."""
    return {name: value for name, value in config.to_dict().items() if name not in _INCIDENTAL and name not in _SHAPES}


def _changed(base: Mapping[str, Any], tuned: Mapping[str, Any]) -> tuple[tuple[str, Any, Any], ...]:
    names = [*base, *(name for name in tuned if name not in base)]
    return tuple((name, base.get(name), tuned.get(name)) for name in names if base.get(name) != tuned.get(name))


def _template(tokenizer: Any) -> Any:
    return getattr(tokenizer, "chat_template", None)


def _special(tokenizer: Any) -> dict[str, str | None]:
    return {f"{kind} token": getattr(tokenizer, f"{kind}_token", None) for kind in ("bos", "eos")}


def _about_rules(base: Any, tuned: Any) -> tuple[str, ...]:
    """A sentence where two tokenizers of the same words cut or clean texts by other rules."""
    if base is tuned:
        return ()
    rules = ("normalizer", "pre_tokenizer", "decoder")
    base_words, other = (getattr(words, "backend_tokenizer", None) for words in (base, tuned))
    if base_words is None or other is None:
        return ()
    different = [rule for rule in rules if repr(getattr(base_words, rule, None)) != repr(getattr(other, rule, None))]
    different += _other_cuts(base_words.to_str(), other.to_str())
    if not different:
        return ()
    return (
        f"The tokenizers' rules differ ({', '.join(different)}): both models read what the tuned model's tokenizer "
        "writes.",
    )


def _other_cuts(base: str, tuned: str) -> list[str]:
    """What differs in how two tokenizers (as JSON) cut words that both know: merges, scores, flags of added tokens."""
    if base == tuned:
        return []
    states = [json.loads(text) for text in (base, tuned)]
    models = [dict(state["model"]) for state in states]
    vocabularies = [model.pop("vocab", {}) for model in models]
    parts = [name for name in models[0] | models[1] if models[0].get(name) != models[1].get(name)]
    if all(isinstance(vocabulary, list) for vocabulary in vocabularies):  # unigrams, each with its score
        scores = [{token: score for token, score in vocabulary} for vocabulary in vocabularies]
        parts += ["scores"] * any(scores[0][token] != scores[1][token] for token in scores[0].keys() & scores[1].keys())
    flags = [{token["content"]: token for token in state["added_tokens"]} for state in states]
    added = flags[0].keys() & flags[1].keys()
    return parts + ["flags of added tokens"] * any(flags[0][token] != flags[1][token] for token in added)


def _around_texts(tokenizer: Any) -> str:
    """The special tokens that the tokenizer puts before and behind a text, with a dot in its place."""
    if tokenizer is None:
        return ""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    place = next((at for at in range(len(ids) - len(bare) + 1) if ids[at : at + len(bare)] == bare), 0)
    before, behind = ids[:place], ids[place + len(bare) :]
    return " ".join(tokenizer.convert_ids_to_tokens(before) + tokenizer.convert_ids_to_tokens(behind))


def _generation(base: Any, tuned: Any) -> tuple[tuple[str, Any, Any], ...]:
    """Settings that either model's generation config has, same or not: greedy texts are not the weights' alone."""
    base_settings, other = of_effect(base), of_effect(tuned)
    return tuple((name, base_settings.get(name), other.get(name)) for name in dict.fromkeys([*base_settings, *other]))


def _about_generation(settings: tuple[tuple[str, Any, Any], ...], own: bool) -> list[str]:
    if not settings:
        return []
    listed = "; ".join(f"{name}: {base} in the base, {tuned} in the tuned model" for name, base, tuned in settings)
    how = (
        "and is obeyed, as asked for" if own else "and is left out of texts here (own_generation_config=True keeps it)"
    )
    return [f"The generation config is no part of the weights {how}: {listed}."]


def _attention(model: Any) -> str:
    return str(getattr(model.config.get_text_config(), "_attn_implementation", None))


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
    base, tuned = _vocabulary(base_tok), _vocabulary(tuned_tok)
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
    here = {index: token for token, index in _vocabulary(base_tok).items()}
    there = {index: token for token, index in _vocabulary(tuned_tok).items()}
    size = min(base_size, tuned_size)
    return torch.tensor([i for i in range(size) if here.get(i) == there.get(i)], dtype=torch.long)


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    """Token -> id; nothing of models that came without a tokenizer, whose ids are taken as they are."""
    return {} if tokenizer is None else tokenizer.get_vocab()


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
