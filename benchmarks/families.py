"""Which causal language models of transformers Tunescope takes: every class, as a tiny random model.

Run ``python -m benchmarks.families`` to write docs/families.md.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers as tf
from huggingface_hub.errors import StrictDataclassError
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from workbench.engine.hub import Hub
from workbench.engine.selfcheck import self_check
from workbench.engine.sites import HEAD_KINDS, Site
from workbench.errors import NotSupported
from workbench.models.causal_only import check_causal

Verdict = Literal["resolves", "partly", "refused", "no tiny config"]
_SIZES: dict[int, str] = {
    64: "hidden_size d_model n_embd dim word_embed_proj_dim embedding_size attention_hidden_size lru_width",
    4: "num_hidden_layers n_layer n_layers num_layers num_attention_heads n_head n_heads num_heads num_experts "
    "num_local_experts n_routed_experts moe_num_experts decoder_attention_heads decoder_layers",
    2: "num_key_value_heads num_kv_heads num_experts_per_tok moe_k moe_topk num_experts_per_token n_groups_of_experts",
    96: "intermediate_size ffn_dim n_inner ffn_hidden_size intermediate_size_mlp decoder_ffn_dim",
    32: "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size q_lora_rank kv_lora_rank "
    "expert_ffn_hidden_size",
    16: "head_dim global_head_dim v_head_dim qk_nope_head_dim mamba_d_head mamba_d_state state_size ssm_state_size "
    "mamba_chunk_size chunk_size linear_key_head_dim linear_value_head_dim mamba_head_dim block_size",
    8: "qk_rope_head_dim rotary_dim mamba_n_heads mamba_num_heads mamba_dt_rank hidden_size_per_layer_input",
    1: "n_group topk_group mamba_n_groups n_groups num_shared_experts n_shared_experts first_k_dense_replace",
    128: "mamba_d_ssm",
    256: "max_position_embeddings n_positions max_seq_len",
    300: "vocab_size vocab_size_per_layer_input",
}
_TINY = {name: size for size, names in _SIZES.items() for name in names.split()}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_MOST_PARAMETERS = 30_000_000
_BUILDING = (ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError, ImportError, OSError,
             AssertionError, StrictDataclassError, NotImplementedError, ZeroDivisionError)  # fmt: skip
"""What a generic config of sizes that do not go together raises."""


@dataclass(frozen=True)
class Row:
    """What became of one ``model_type``."""

    model_type: str
    verdict: Verdict
    detail: str


def survey(kinds: Iterable[str] | None = None) -> list[Row]:
    """Try every ``model_type`` that has a causal language model, or ``kinds`` of them.

    Returns:
        One row each: it resolves, resolves without the named kinds of site, is refused, or could not be made tiny.
    """
    return [examine(kind) for kind in (sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) if kinds is None else kinds)]


def examine(kind: str) -> Row:
    """The row of one ``model_type``."""
    try:
        config = tiny_config(kind)
        check_causal({**config.to_dict(), "architectures": [_architecture(kind)]}, kind)
        hf = _built(config)
    except NotSupported as error:
        return Row(kind, "refused", str(error))
    except _BUILDING as error:
        return Row(kind, "no tiny config", _first_line(error))
    try:
        hub = Hub(hf)
        self_check(hub)
    except NotSupported as error:
        return Row(kind, "refused", str(error))
    except _BUILDING as error:
        return Row(kind, "refused", f"not in a sentence yet: {type(error).__name__}: {_first_line(error)}")
    if withheld := hub.withheld.by_kind():
        lacks = "; ".join(f"`{site}`: {why}" for site, why in withheld.items())
        return Row(kind, "partly", f"without {lacks}")
    return Row(kind, "resolves", _special(hub))


def tiny_config(kind: str) -> Any:
    """The default config of ``kind`` with every size made small, in its text part where it has several."""
    plain = tf.AutoConfig.for_model(kind)
    text = plain.get_text_config()
    small = {name: size for name, size in _TINY.items() if _settable(text, name)}
    if "qk_rope_head_dim" in small:
        small["head_dim"] = small["qk_rope_head_dim"]
    small |= {name: value for name, value in _TOKENS.items() if hasattr(text, name)}
    part = next((name for name in plain.sub_configs if getattr(plain, name, None) is text), None)
    if part is None:
        return tf.AutoConfig.for_model(kind, **small)
    return tf.AutoConfig.for_model(kind, **{part: {**small, "model_type": text.model_type}})


def _settable(config: Any, name: str) -> bool:
    is_computed = isinstance(getattr(type(config), name, None), property)
    return not is_computed and isinstance(getattr(config, name, None), int)


def _architecture(kind: str) -> str:
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    return name if isinstance(name, str) else name[0]


def _built(config: Any) -> Any:
    """A random model that runs. Raises :class:`ValueError` where it is not small."""
    with torch.device("meta"):
        size = sum(weight.numel() for weight in tf.AutoModelForCausalLM.from_config(config).parameters())
    if size > _MOST_PARAMETERS:
        raise ValueError(f"{size / 1e6:.0f} million parameters are left")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = tf.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for weight in hf.parameters():
                if weight.ndim >= 2:
                    weight.normal_(std=0.15)
            hf(input_ids=torch.arange(1, 9).view(2, 4), use_cache=False)
    return hf


def _special(hub: Hub) -> str:
    kinds = {Site.parse(name.replace(".expert", ".expert[0]")).kind for name in hub.sites()}
    layers = hub.geometry.attention_layers
    if not kinds & HEAD_KINDS:
        return "without heads: no layer of the tiny model has any in a known place"
    return "" if len(layers) == hub.geometry.n_layers else f"heads in layers {', '.join(map(str, layers))}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def summary(rows: Sequence[Row]) -> str:
    """The counts, in one sentence."""
    n = Counter(row.verdict for row in rows)
    return (
        f"Of {len(rows)} causal language model types in transformers {tf.__version__}, tried as tiny random models, "
        f"{n['resolves']} resolve with no site withheld, {n['partly']} with some kinds withheld, {n['refused']} are "
        f"refused, and {n['no tiny config']} could not be made tiny by a general rule and are untested."
    )


def markdown(rows: Sequence[Row]) -> str:
    """The page docs/families.md."""
    lines = ["# Families of models", "", summary(rows), "", "Layers count in the tiny model (at most four).", "",
             _BESIDE, "", "| model_type | verdict | what |", "| --- | --- | --- |"]  # fmt: skip
    lines += [f"| {row.model_type} | {row.verdict} | {row.detail.replace('|', '/')} |" for row in rows]
    return "\n".join([*lines, ""])


_BESIDE = (
    "Models of images or sound that are no causal language model of their own (LLaVA, Qwen2.5-VL, Idefics3, Mistral 3, "
    "PaliGemma, InternVL, Aya Vision, GLM-4V, Voxtral, Qwen2-Audio were tried) load by their language model, on text; "
    "their other stacks are groups of their own in `weight_delta`."
)


def main() -> None:
    """Write docs/families.md."""
    tf.logging.set_verbosity_error()
    with contextlib.suppress(AttributeError):
        tf.logging.disable_progress_bar()
    Path("docs/families.md").write_text(markdown(survey()), encoding="utf-8")


if __name__ == "__main__":
    main()
