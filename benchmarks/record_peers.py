"""The same sites through other libraries, each on its own copy of the model, since each rewires what it is given."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable

import torch

from workbench.models.adapted import AdaptedModel

Values = dict[str, torch.Tensor]


def transformer_lens(model: AdaptedModel, ids: torch.Tensor) -> Callable[[], Values] | None:
    """``run_with_cache`` with ``names_filter``; the bridge always runs eager attention."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge = model.to_transformer_bridge()
    names = {f"blocks.{layer}.{kind}" for layer in range(model.n_layers) for kind in ("attn.hook_z", "hook_resid_post")}

    def run() -> Values:
        with torch.no_grad():
            _, cache = bridge.run_with_cache(ids, names_filter=lambda name: name in names)
        return {name: cache[name] for name in names}

    return run


def nnsight(model: AdaptedModel, ids: torch.Tensor) -> Callable[[], Values] | None:
    """A trace that saves the inputs of the output projections and the outputs of the layers."""
    if importlib.util.find_spec("nnsight") is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = AdaptedModel(copy.deepcopy(model.hf), model.tokenizer).to_nnsight()
    heads = (model.n_heads, model.d_head)

    def run() -> Values:
        with torch.no_grad(), traced.trace(ids):
            z, post = [].save(), [].save()
            for block in traced.model.layers:
                z.append(block.self_attn.o_proj.input)
                post.append(block.output)
        figures = {f"blocks.{layer}.attn.hook_z": value.unflatten(-1, heads) for layer, value in enumerate(z)}
        return figures | {f"blocks.{layer}.hook_resid_post": value for layer, value in enumerate(post)}

    return run


def hidden_states(model: AdaptedModel, ids: torch.Tensor) -> Callable[[], Values]:
    """``output_hidden_states``: the residual stream alone, without the last layer (which comes normed)."""
    hf = copy.deepcopy(model.hf)

    def run() -> Values:
        with torch.no_grad():
            states = hf(ids, use_cache=False, output_hidden_states=True).hidden_states
        return {f"blocks.{layer}.hook_resid_post": state for layer, state in enumerate(states[1:-1])}

    return run


def plain_hooks(model: AdaptedModel, ids: torch.Tensor) -> Callable[[], Values]:
    """Bare torch hooks that keep references: the least that recording can cost."""
    hf = copy.deepcopy(model.hf)
    heads = (model.n_heads, model.d_head)

    def run() -> Values:
        figures: Values = {}
        handles = []
        for layer, block in enumerate(hf.model.layers):
            name = f"blocks.{layer}."
            handles += [
                block.self_attn.o_proj.register_forward_pre_hook(
                    lambda _m, args, name=name: figures.__setitem__(name + "attn.hook_z", args[0].unflatten(-1, heads))
                ),
                block.register_forward_hook(
                    lambda _m, _a, out, name=name: figures.__setitem__(name + "hook_resid_post", out)
                ),
            ]
        try:
            with torch.no_grad():
                hf(ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return figures

    return run
