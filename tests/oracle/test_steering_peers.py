"""The same edit in pyvene, steering-vectors and repeng gives the same logits, on a tiny and on a pretrained Llama."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from interventions.concept_ablation import ConceptAblation
from interventions.exchange.control_vectors import from_gguf, to_gguf
from interventions.exchange.vectors import from_steering_vectors
from interventions.offset import Offset
from interventions.patch import Patch
from interventions.recipe import Recipe
from interventions.subspace_knob import SubspaceKnob
from tests.oracle.peers import peer
from tests.tiny import tiny_model
from workbench.models.adapted import AdaptedModel

TOLERANCE = 1e-5
"""Absolute, in logits."""
Make = Callable[[], Any]


@pytest.fixture(autouse=True)
def _their_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(params=["tiny", "stories260K"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes the model anew: some peers change it for good."""
    if request.param == "tiny":
        return lambda: tiny_model("llama")
    folder: Path = request.getfixturevalue("stories")
    return lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def tokens(hf: Any, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, hf.config.vocab_size, (2, 9), generator=generator)


def direction(hf: Any, rows: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(99)
    found = torch.randn(rows, hf.config.hidden_size, generator=generator)
    return found[0] if rows == 1 else found


def ours(hf: Any, *interventions: Any) -> torch.Tensor:
    with Recipe(list(interventions)).applied(hf), torch.no_grad():
        return hf(tokens(hf), use_cache=False).logits


def theirs(hf: Any) -> torch.Tensor:
    with torch.no_grad():
        return hf(tokens(hf), use_cache=False).logits


def same(a: torch.Tensor, b: torch.Tensor, untouched: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE)
    assert float((a - untouched).abs().max()) > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("kind", "site"), [("decoder_block", "resid_post"), ("self_attn", "attn_out"), ("mlp", "mlp_out")]
)
def test_adding_like_steering_vectors(make: Make, kind: str, site: str) -> None:
    sv, hf = peer("steering_vectors"), make()
    vectors = {1: direction(hf), 2: -0.5 * direction(hf)}
    vector = sv.SteeringVector(vectors, kind)
    plain = theirs(hf)
    with vector.apply(hf, multiplier=0.7):
        expected = theirs(hf)
    recipe = from_steering_vectors(vector, strength=0.7)
    assert [intervention.site for intervention in recipe] == [site, site]  # type: ignore[attr-defined]
    same(ours(hf, *recipe), expected, plain)


def test_ablating_like_steering_vectors(make: Make) -> None:
    sv, hf = peer("steering_vectors"), make()
    plain = theirs(hf)
    with sv.SteeringVector({1: direction(hf)}).apply(hf, operator=sv.ablation_operator()):
        expected = theirs(hf)
    same(ours(hf, ConceptAblation(1, direction(hf))), expected, plain)
    with sv.SteeringVector({1: direction(hf)}).apply(hf, operator=sv.ablation_then_addition_operator()):
        expected = theirs(hf)
    same(ours(hf, ConceptAblation(1, direction(hf)), Offset(1, direction(hf))), expected, plain)


def test_adding_like_pyvene(make: Make) -> None:
    pyvene, hf = peer("pyvene"), make()
    plain, vector = theirs(hf), direction(hf)
    wanted = ours(hf, Offset(1, vector, positions=[2, 5]))
    config = pyvene.IntervenableConfig(
        [
            pyvene.RepresentationConfig(
                layer=1, component="block_output", unit="pos", max_number_of_units=2,
                intervention_type=pyvene.AdditionIntervention, source_representation=vector,
            )
        ]
    )  # fmt: skip
    model = pyvene.IntervenableModel(config, hf, use_fast=False)
    model.set_device("cpu")
    found = model({"input_ids": tokens(hf)}, unit_locations={"base": [[[2, 5]] * 2]})[1].logits
    same(wanted, found, plain)


def test_swapping_heads_like_pyvene(make: Make) -> None:
    pyvene, hf = peer("pyvene"), make()
    plain, other = theirs(hf), tokens(hf, seed=1)
    wanted = ours(hf, Patch.from_run(AdaptedModel(hf, None), other, 1, "z", heads=[1, 2], align="equal"))
    config = pyvene.IntervenableConfig(
        [
            pyvene.RepresentationConfig(
                layer=1, component="head_attention_value_output", unit="h", max_number_of_units=2,
                intervention_type=pyvene.VanillaIntervention,
            )
        ]
    )  # fmt: skip
    model = pyvene.IntervenableModel(config, hf)
    model.set_device("cpu")
    heads = [[[1, 2]] * len(other)]
    found = model({"input_ids": tokens(hf)}, [{"input_ids": other}], {"sources->base": (heads, heads)})[1].logits
    same(wanted, found, plain)


def test_low_rank_das_like_pyvene(make: Make) -> None:
    """b + R R^T (s - b) with a rank-2 R, at one position."""
    pyvene, hf = peer("pyvene"), make()
    plain, other = theirs(hf), tokens(hf, seed=1)
    basis = torch.linalg.qr(direction(hf, 2).T)[0]
    knob = SubspaceKnob.from_run(AdaptedModel(hf, None), other, 1, basis.T.contiguous(), align="equal", positions=[4])
    wanted = ours(hf, knob)
    config = pyvene.IntervenableConfig(
        [
            pyvene.RepresentationConfig(
                layer=1, component="block_output", unit="pos", max_number_of_units=1,
                intervention_type=pyvene.LowRankRotatedSpaceIntervention, low_rank_dimension=2,
            )
        ]
    )  # fmt: skip
    model = pyvene.IntervenableModel(config, hf)
    model.set_device("cpu")
    (intervention,) = model.interventions.values()
    intervention = intervention[0] if isinstance(intervention, tuple) else intervention
    with torch.no_grad():
        intervention.rotate_layer.weight = basis
        found = model({"input_ids": tokens(hf)}, [{"input_ids": other}], {"sources->base": 4})[1].logits
    same(wanted, found, plain)


def test_control_vectors_like_repeng_and_back(make: Make, tmp_path: Path) -> None:
    repeng, hf = peer("repeng"), make()
    plain = theirs(hf)
    directions = {1: direction(hf).numpy(), 2: direction(hf, 2)[1].numpy()}
    vector = repeng.ControlVector(hf.config.model_type, directions)
    vector.export_gguf(str(tmp_path / "theirs.gguf"))
    recipe = from_gguf(tmp_path / "theirs.gguf") * 0.7
    wanted = ours(hf, *recipe)
    to_gguf(from_gguf(tmp_path / "theirs.gguf"), tmp_path / "ours.gguf", hf)
    again = repeng.ControlVector.import_gguf(tmp_path / "ours.gguf")
    assert again.model_type == hf.config.model_type
    assert all(np.array_equal(again.directions[layer], one) for layer, one in directions.items())
    changed = repeng.ControlModel(make(), [1, 2])
    changed.set_control(again, 0.7)
    positions = torch.arange(9).expand(2, -1)
    with torch.no_grad():
        found = changed(tokens(hf), position_ids=positions, use_cache=False).logits
    same(wanted, found, plain)


def test_repeng_generates_the_same_tokens(make: Make) -> None:
    repeng, hf = peer("repeng"), make()
    vector = {1: direction(hf).numpy() * 0.3}
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    prompt = tokens(hf)[:1]
    with Recipe([Offset(1, torch.from_numpy(vector[1]))]).applied(hf):
        wanted = hf.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    changed = repeng.ControlModel(make(), [1])
    changed.set_control(repeng.ControlVector(hf.config.model_type, vector))
    assert torch.equal(changed.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **options), wanted)
