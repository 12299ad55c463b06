"""Ablations, knobs and clamps: known answers in the residual stream, gradients, dependent directions."""

from __future__ import annotations

import pytest
import torch

import interventions as iv
from interventions.directions import orthonormal
from tests.interventions.zoo import captured, ids, layer_of, model_of, noise, other_ids
from tests.tiny import tiny_model, tokenizer
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel


def residual(recipe: iv.Recipe, model: AdaptedModel | None = None, layer: int = 1) -> torch.Tensor:
    """The residual stream after the recipe's layer."""
    model = model or model_of("llama")
    kept: list[torch.Tensor] = []
    with (
        recipe.applied(model),
        model.hooked([SiteHook(Site("resid_post", layer), lambda value, ctx: kept.append(value))]),
    ):
        model.forward(ids(), logits=None)
    return kept[0]


def test_ablation_removes_the_coordinates() -> None:
    directions = noise(5, 64)
    basis = orthonormal(directions).float()
    once = iv.ConceptAblation(1, directions)
    ablated = residual(iv.Recipe([once]))
    assert (ablated @ basis.T).abs().max() < 1e-5
    twice = residual(iv.Recipe([once, iv.ConceptAblation(1, 3.0 * directions[[4, 0, 2, 1, 3]])]))
    torch.testing.assert_close(twice, ablated)
    half = residual(iv.Recipe([once]) * 0.5)
    torch.testing.assert_close(half, (residual(iv.Recipe()) + ablated) / 2)


def test_ablation_to_a_mean() -> None:
    mean = noise(64, seed=6)
    changed = residual(iv.Recipe([iv.ConceptAblation(1, noise(5, 64), mean=mean)]))
    basis = orthonormal(noise(5, 64)).float()
    torch.testing.assert_close(changed @ basis.T, (basis @ mean).expand(2, 20, 5))


def test_projection_is_exact_in_half_precision() -> None:
    """Directions kept in bfloat16 would leave about 1 % of the coordinate behind."""
    model = AdaptedModel(tiny_model("llama", dtype=torch.bfloat16), tokenizer())
    basis = orthonormal(noise(5, 64)).float()
    left = residual(iv.Recipe([iv.ConceptAblation(1, noise(5, 64))]), model).float() @ basis.T
    before = residual(iv.Recipe(), model).float() @ basis.T
    assert left.abs().max() < 0.02 * before.abs().max()
    assert left.pow(2).mean().sqrt() < 4e-3 * before.pow(2).mean().sqrt()


def test_no_gradient_along_ablated_directions() -> None:
    model = model_of("llama")
    basis = orthonormal(noise(3, 64)).float()
    source = torch.zeros(64, requires_grad=True)
    recipe = iv.Recipe([iv.Offset(1, source), iv.ConceptAblation(1, noise(3, 64))])
    with recipe.applied(model):
        model.forward(ids(), grad=True).pow(2).mean().backward()
    assert source.grad is not None
    assert (basis @ source.grad).abs().max() < 1e-6 * source.grad.norm()
    assert source.grad.norm() > 1e-4


def test_dependent_directions_are_said_and_left_out() -> None:
    a, b = noise(2, 64)
    with pytest.warns(iv.RankWarning, match=r"of 4 directions only 2 are independent; left out: \[1, 3\]"):
        reduced = iv.ConceptAblation(1, torch.stack([a, 2 * a, b, a - 0.3 * b]))
    torch.testing.assert_close(
        residual(iv.Recipe([reduced])), residual(iv.Recipe([iv.ConceptAblation(1, torch.stack([a, b]))]))
    )
    with pytest.warns(iv.RankWarning, match="only 0"):
        empty = iv.ConceptAblation(1, torch.zeros(1, 64))
    assert torch.equal(residual(iv.Recipe([empty])), residual(iv.Recipe()))


def test_many_nearly_parallel_directions() -> None:
    """Without an orthonormal basis twenty correlated directions take away many times what is there."""
    directions = noise(1, 64, seed=1) + 0.3 * noise(20, 64)
    ablated = residual(iv.Recipe([iv.ConceptAblation(1, directions)]))
    assert (ablated @ directions.T).abs().max() < 1e-4
    naive = residual(iv.Recipe()) - (residual(iv.Recipe()) @ directions.T) @ directions
    assert naive.norm() > 10 * ablated.norm()


def test_knob_sets_the_coordinate_and_nothing_else() -> None:
    u = noise(64) / noise(64).norm()
    knob = iv.SubspaceKnob(1, noise(64), 6.0)
    set_once = residual(iv.Recipe([knob]))
    torch.testing.assert_close(set_once @ u, torch.full((2, 20), 6.0))
    plain = residual(iv.Recipe())
    outside = torch.eye(64) - torch.outer(u, u)
    torch.testing.assert_close(set_once @ outside, plain @ outside, atol=1e-5, rtol=1e-5)
    added = residual(iv.Recipe([iv.SubspaceKnob(1, noise(64), 6.0, mode="add")]))
    torch.testing.assert_close(added @ u, plain @ u + 6.0)


def test_knob_per_row_and_per_dimension() -> None:
    basis = orthonormal(noise(2, 64)).float()
    values = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    changed = residual(iv.Recipe([iv.SubspaceKnob(1, noise(2, 64), values)]))
    torch.testing.assert_close(changed @ basis.T, values[:, None].expand(2, 20, 2))
    with pytest.raises(UserError, match="2 dimensions"):
        iv.SubspaceKnob(1, noise(2, 64), [1.0, 2.0, 3.0])


def test_swapping_the_whole_space_is_patching() -> None:
    model = model_of("llama")
    swap = iv.SubspaceKnob.from_run(model, other_ids(), 1, torch.eye(64), positions="last")
    patch = iv.Patch.from_run(model, other_ids(), 1, positions="last")
    torch.testing.assert_close(residual(iv.Recipe([swap])), residual(iv.Recipe([patch])))
    source = captured(model, layer_of(model), side="out")
    assert torch.equal(residual(iv.Recipe([patch]))[:, -1], source[:, -1])


def test_setting_to_the_other_runs_coordinate_is_the_swap() -> None:
    model, u = model_of("llama"), noise(64) / noise(64).norm()
    source = captured(model, layer_of(model), side="out")[:, -1]
    swap = iv.SubspaceKnob(1, u, mode="swap", source=source, positions="last")
    knob = iv.SubspaceKnob(1, u, source @ u, positions="last")
    torch.testing.assert_close(residual(iv.Recipe([swap])), residual(iv.Recipe([knob])))


@pytest.mark.parametrize("target", [4.0, -4.0])
def test_clamp_lands_on_the_target_from_both_sides(target: float) -> None:
    u = noise(64) / noise(64).norm()
    before = residual(iv.Recipe()) @ u
    assert before.min() < 0 < before.max()
    clamped = residual(iv.Recipe([iv.Clamp(1, noise(64), target, target)])) @ u
    torch.testing.assert_close(clamped, torch.full_like(before, target))
    inside = residual(iv.Recipe([iv.Clamp(1, noise(64), -0.3, 0.2)])) @ u
    torch.testing.assert_close(inside, before.clamp(-0.3, 0.2), atol=1e-5, rtol=1e-5)
    above = residual(iv.Recipe([iv.Clamp(1, noise(64), low=0.0)])) @ u
    torch.testing.assert_close(above, before.clamp(min=0.0), atol=1e-5, rtol=1e-5)


def test_learned_parameters_keep_their_graph() -> None:
    model = model_of("llama")
    direction = noise(2, 64).clone().requires_grad_()
    offset = torch.zeros(16, requires_grad=True)
    scale = torch.ones(16, requires_grad=True)
    recipe = iv.Recipe([
        iv.SubspaceKnob(1, direction, mode="swap", source=noise(64), positions="last"),
        iv.HeadOffset({"L2H1": offset}),
        iv.HeadScale({"L2H3": scale}),
    ])  # fmt: skip
    assert torch.equal(model.forward(ids()), applied(iv.Recipe(recipe.interventions[1:]), model))
    for _ in range(2):
        with recipe.applied(model):
            model.forward(ids(), grad=True).pow(2).mean().backward()
    for parameter in (direction, offset, scale):
        assert parameter.grad is not None and parameter.grad.norm() > 1e-5
    numeric = (loss_at(recipe, offset, 1e-2) - loss_at(recipe, offset, -1e-2)) / 2e-2
    assert offset.grad is not None
    torch.testing.assert_close(offset.grad[0] / 2, numeric, rtol=2e-2, atol=1e-4)


def applied(recipe: iv.Recipe, model: AdaptedModel) -> torch.Tensor:
    with recipe.applied(model):
        return model.forward(ids())


def loss_at(recipe: iv.Recipe, parameter: torch.Tensor, step: float) -> torch.Tensor:
    with torch.no_grad():
        parameter[0] = step
    loss = applied(recipe, model_of("llama")).pow(2).mean()
    with torch.no_grad():
        parameter[0] = 0
    return loss
