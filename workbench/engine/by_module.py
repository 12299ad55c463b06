"""Families that no table knows, from the modules themselves: layers of one kind or of several.

Names are only candidates. What they point at is proved by the load-time self-check, and withheld where it is not.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from workbench.engine.families import MIXERS, Family, submodule
from workbench.errors import NotSupported

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_OUTPUT = ("o_proj", "out_proj", "dense", "c_proj", "wo")
_MLP = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "shared_mlp")
_DOWN = ("down_proj", "w2", "c_proj", "dense_4h_to_h", "fc2")
_BEFORE_MLP = ("pre_ff_layernorm", "ffn_norm", "post_attention_layernorm", "pre_feedforward_layernorm", "ln_2")
_QKV = ("q_proj", "k_proj", "v_proj")


_WORDS = re.compile(r"[a-z0-9]+")
_OTHER_STACKS = {
    "vision", "visual", "vit", "image", "img", "audio", "speech", "encoder", "mtp", "talker", "token2wav", "code2wav",
    "perceiver", "resampler", "qformer", "vq", "vqmodel", "gan", "tower", "codec", "depth", "projector", "connector",
    "merger", "multi", "modal", "mm", "loaded",
}  # fmt: skip


def family_by_module(hf: nn.Module) -> Family:
    """The family of a decoder whose layers lie in one list of modules.

    Raises:
        NotSupported: There is no such list, or its layers hold neither attention, nor another mixer, nor an MLP.
    """
    path = _layers_path(hf)
    layers = list(submodule(hf, path).children())
    attention = _present(layers, _ATTENTION)
    if attention is None and _present(layers, ("mixer.o_proj",)):
        attention = "mixer"  # Nemotron-H: one name for every kind of mixer
    output = None if attention is None else _present(layers, tuple(f"{attention}.{name}" for name in _OUTPUT))
    mlp = _present(layers, _MLP)
    if attention is None and mlp is None and _present(layers, MIXERS) is None:
        raise NotSupported(
            f"The layers of this {type(hf).__name__} hold no attention, mixer or MLP under a name that Tunescope "
            "knows: use another model."
        )
    inner = None if mlp is None else _present(layers, tuple(f"{mlp}.{name}" for name in _DOWN))
    query, key, value = (_present(layers, (f"{attention}.{name}",)) for name in _QKV)
    return Family(
        layers=path,
        attention=attention or "self_attn",
        output=output or f"{attention or 'self_attn'}.o_proj",
        attention_in=_present(layers, ("input_layernorm", "operator_norm")),
        query=query,
        key=key,
        value=value,
        attn_out=output or f"{attention or 'self_attn'}.o_proj",
        resid_mid=None if mlp is None else _present(layers, _BEFORE_MLP),
        mlp=mlp or "mlp",
        mlp_out=mlp or "mlp",
        mlp_post=inner,
    )


def _present(layers: list[nn.Module], paths: tuple[str, ...]) -> str | None:
    """The first of these paths that any layer has."""
    return next((path for path in paths if any(submodule(layer, path) is not None for layer in layers)), None)


def _layers_path(hf: Any) -> str:
    """Where the decoder layers are: the outermost list of modules that is as long as the model is deep."""
    text = hf.config.get_text_config(decoder=True)
    depth = getattr(text, "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in hf.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if not lists:
        raise NotSupported(
            f"This {type(hf).__name__} keeps its layers in no list of {depth} modules: give a decoder-only causal "
            "language model (AutoModelForCausalLM)."
        )
    return min(lists, key=lambda pair: (of_another_stack(pair[0]), pair[0].count(".")))[0]


def of_another_stack(name: str) -> bool:
    """Whether a weight's or module's name says that it is outside the language model: vision, audio, an encoder."""
    return bool(_OTHER_STACKS & set(_WORDS.findall(name.lower())))
