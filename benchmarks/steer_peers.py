"""The same offsets in other libraries: each function takes a model of its own and gives a run that generates with them.

They raise ImportError where the library is not installed and NotImplementedError where it cannot make the edit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Vectors = dict[int, torch.Tensor]
Strengths = list[float] | None
Generate = Callable[..., torch.Tensor]
Run = Callable[[], torch.Tensor]


def repeng(hf: Any, vectors: Vectors, strengths: Strengths, run: Generate) -> Run:
    if not hasattr(np, "float_"):
        np.float_ = np.float64  # type: ignore[attr-defined]  # repeng 0.4 annotates with the name numpy 2 dropped
    from repeng import ControlModel

    model = ControlModel(hf, list(vectors))
    factors = _factors(strengths, vectors)
    controls = {layer: factors * vector for layer, vector in vectors.items()}

    def steered() -> torch.Tensor:
        model.set_raw_control(controls)
        try:
            return run(model.generate)
        finally:
            model.reset()

    return steered


def steering_vectors(hf: Any, vectors: Vectors, strengths: Strengths, run: Generate) -> Run:
    from steering_vectors import SteeringVector

    if strengths is not None:
        raise NotImplementedError("one vector for all rows of a batch")
    vector = SteeringVector(vectors)

    def steered() -> torch.Tensor:
        with vector.apply(hf):
            return run(hf.generate)

    return steered


def pyvene(hf: Any, vectors: Vectors, strengths: Strengths, run: Generate) -> Run:
    import pyvene as pv

    if strengths is not None:
        raise NotImplementedError("a constant source is one vector for all rows of a batch")
    parts = [
        pv.RepresentationConfig(
            layer=layer, component="block_output", unit="pos", max_number_of_units=1,
            intervention_type=pv.AdditionIntervention, source_representation=vector,
        )
        for layer, vector in vectors.items()
    ]  # fmt: skip
    model = pv.IntervenableModel(pv.IntervenableConfig(parts), hf)
    model.set_device(str(hf.device))

    def generate(input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> torch.Tensor:
        base = {"input_ids": input_ids, "attention_mask": attention_mask}
        return model.generate(base, unit_locations=None, intervene_on_prompt=True, **options)[1]

    return lambda: run(generate)


def transformer_lens(hf: Any, vectors: Vectors, strengths: Strengths, run: Generate) -> Run:
    from tests.tiny import tokenizer
    from workbench.models.adapted import AdaptedModel

    bridge = AdaptedModel(hf, tokenizer()).to_transformer_bridge()
    factors = _factors(strengths, vectors)
    hooks = [(f"blocks.{layer}.hook_resid_post", _adding(factors * vector)) for layer, vector in vectors.items()]

    def steered() -> torch.Tensor:
        with bridge.hooks(fwd_hooks=hooks):
            return run(bridge.original_model.generate)

    return steered


def _factors(strengths: Strengths, vectors: Vectors) -> torch.Tensor:
    """One for each row of the batch, where the vectors are: [row, 1, 1]"""
    device = next(iter(vectors.values())).device
    return torch.tensor(strengths or [1.0], device=device)[:, None, None]


def _adding(step: torch.Tensor) -> Callable[..., torch.Tensor]:
    return lambda value, hook: value + step  # noqa: ARG005


def nnsight(hf: Any, vectors: Vectors, strengths: Strengths, run: Generate) -> Run:
    from nnsight.modeling.transformers import TransformersModel

    from tests.tiny import tokenizer

    model = TransformersModel(hf, tokenizer=tokenizer())
    factors = _factors(strengths, vectors)
    added = {layer: factors * vector for layer, vector in vectors.items()}

    def generate(input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> torch.Tensor:
        steps = options["max_new_tokens"]
        with model.generate({"input_ids": input_ids, "attention_mask": attention_mask}, **options) as tracer:
            for _ in tracer.iter[0:steps]:
                for layer, vector in added.items():
                    model.model.layers[layer].output[:] += vector
            result = tracer.result.save()
        return result

    return lambda: run(generate)


OFFSETS: dict[str, Callable[[Any, Vectors, Strengths, Generate], Run]] = {
    "repeng": repeng,
    "steering-vectors": steering_vectors,
    "pyvene": pyvene,
    "TransformerLens": transformer_lens,
    "nnsight": nnsight,
}
