"""RAVEL's subspaces on a model whose weights were set by hand, so that the subspace of each attribute is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.tiny import tokenizer
from tunescope.bench.ravel import measuring
from tunescope.bench.ravel.entities import Known
from tunescope.bench.ravel.subspaces import Find, entity_states, principal, trained
from workbench.models.adapted import AdaptedModel
from workbench.runs import begun
from workbench.typing import Float, Tensor

WIDTH = 576
"""As wide as SmolLM2-135M: a step that is right for a narrow model turns a wide one's subspace too far."""
SIZES = {"colour": 5, "shape": 4}
COPIES, PREFIXES, ASK, SAY = 2, 40, 50, 60
CITIES = [*product(range(5), range(4), range(COPIES))]


@cache
def planted() -> tuple[AdaptedModel, Known, dict[str, Float[Tensor, "rank d_model"]]]:
    """A Llama of two layers: the first does nothing, the second copies every token's embedding to the last one.

    A city's embedding is a direction of its colour, one of its shape, and twice as much of its own; the question's
    says which of the two kinds of answers come in question. So an attribute lies in the span of the differences of its
    values' directions, exactly, and the largest principal components are the cities' own.
    """
    draw = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(WIDTH, 100, generator=draw))[0].T
    of = {"colour": directions[:5], "shape": directions[5:9]}
    asked = dict(zip(SIZES, directions[9:11], strict=True))
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=9, num_key_value_heads=9, intermediate_size=8,
        vocab_size=80, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ))  # fmt: skip
    with torch.no_grad():
        for weight in (weight for name, weight in model.named_parameters() if "norm" not in name):
            weight.zero_()
        attention = model.model.layers[1].self_attn
        attention.v_proj.weight.copy_(torch.eye(WIDTH))
        attention.o_proj.weight.copy_(torch.eye(WIDTH))
        embeddings, said = model.model.embed_tokens.weight, model.lm_head.weight
        for city, (colour, shape, _) in enumerate(CITIES):
            own = torch.randn(40, generator=draw) @ directions[20:60]
            embeddings[3 + city] = of["colour"][colour] + of["shape"][shape] + 2 * own / own.norm()
        embeddings[PREFIXES + 3 : PREFIXES + 6] = directions[60:63]
        for number, (name, values) in enumerate(of.items()):
            embeddings[ASK + number] = 0.5 * asked[name]
            for value, direction in enumerate(values):
                said[SAY + 8 * number + value] = direction + 2 * asked[name]
    spans = {name: torch.linalg.svd(values - values.mean(0)).Vh[: len(values) - 1] for name, values in of.items()}
    return AdaptedModel(model, tokenizer(), name="planted"), _cities(), spans


def _cities() -> Known:
    asks = {name: [f"{name} {prefix}" for prefix in range(3)] for name in SIZES}
    ids = {f"{name} {prefix}": [[PREFIXES + 3 + prefix, 3 + city, ASK + number] for city in range(len(CITIES))]
           for number, name in enumerate(SIZES) for prefix in range(3)}  # fmt: skip
    return Known(
        tuple(map(str, CITIES)), ids, {template: [-2] * len(CITIES) for template in ids},
        {name: torch.tensor([SAY + 8 * number + city[number] for city in CITIES]) for number, name in enumerate(SIZES)},
        {name: [str(city[number]) for city in CITIES] for number, name in enumerate(SIZES)},
        {name: templates[:2] for name, templates in asks.items()},
        {name: templates[2:] for name, templates in asks.items()},
    )  # fmt: skip


def fitted(find: Find, attribute: str) -> tuple[float, dict[str, float]]:
    """How much of the planted span a subspace holds, and its scores on cities that it was not fitted on."""
    model, known, spans = planted()
    order = np.random.default_rng(0).permutation(len(known.cities)).tolist()
    fitting, held = order[:20], order[20:]
    states = cache(lambda template: entity_states(model, known, template, 0))
    basis = find(model, known.of(fitting), attribute, lambda template: states(template)[fitting], 0)
    assert torch.allclose(basis @ basis.T, torch.eye(len(basis)), atol=1e-5)
    others = known.of(held)
    scores = measuring._scores(model, others, attribute, 0, basis, 0, lambda template: states(template)[held])
    return float((spans[attribute] @ basis.T).square().sum() / len(spans[attribute])), scores


@pytest.mark.parametrize("attribute", SIZES)
@pytest.mark.parametrize("isolating", [False, True])
def test_the_trained_subspace_is_the_planted_one(attribute: str, isolating: bool) -> None:
    overlap, scores = fitted(trained(SIZES[attribute] - 1, 0, isolating=isolating), attribute)
    assert overlap > 0.8, scores
    assert scores["cause"] > 0.95 and scores["isolate"] > 0.95


def test_principal_components_are_not_the_planted_subspace() -> None:
    """The attribute varies less than what every city has of its own, so that variance alone must miss it."""
    overlap, scores = fitted(principal(4), "colour")
    assert overlap < 0.5 and scores["cause"] < 0.5


def test_a_killed_bench_goes_on_behind_the_last_finished_subspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cities, _ = planted()
    monkeypatch.setattr(measuring, "known", lambda _model: cities)
    fits: list[str] = []

    def measured(say: Callable[[str], None]) -> pd.DataFrame:
        with begun("bench-ravel", {"seeds": 1}, tmp_path / "run"):
            return measuring.measure(model, ["colour"], 0, 1, say, training=False)

    def killed(text: str) -> None:
        if "principal" in text:
            raise KeyboardInterrupt

    def counted(*parts: Any) -> dict[str, Any]:
        fits.append("a subspace")
        return line(*parts)

    line = measuring._line
    with pytest.raises(KeyboardInterrupt):
        measured(killed)
    monkeypatch.setattr(measuring, "_line", counted)
    lines = measured(lambda _text: None)
    assert len(fits) == 1 and list(lines["method"]) == [*measuring.methods(0, training=False)]
    whole = measuring.measure(model, ["colour"], 0, 1, lambda _text: None, training=False)
    pd.testing.assert_frame_equal(lines.drop(columns="seconds"), whole.drop(columns="seconds"))
    assert not (tmp_path / "run" / "batches").exists()
