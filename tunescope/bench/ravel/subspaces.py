"""Subspaces that may hold one attribute: of all dimensions, random, principal, class means, and trained (DAS)."""

from __future__ import annotations

from collections.abc import Callable

import torch

import interventions as iv
from probes.knob.subspace import orthonormal, random_basis
from probes.replay import frozen
from tunescope.bench.ravel.entities import Known
from workbench.engine.hub import SiteHook
from workbench.engine.positions import Where
from workbench.engine.sites import Site
from workbench.models.adapted import AdaptedModel
from workbench.typing import Float, Tensor

Basis = Float[Tensor, "rank d_model"]
States = Callable[[str], Float[Tensor, "city d_model"]]
"""Template -> the residual stream at each city's last token."""
Find = Callable[[AdaptedModel, Known, str, States, int], Basis]
"""The model, what it knows of the cities to fit on, the attribute, their states, and the layer -> a subspace."""
STEPS = 60
BATCH = 16
TURN = 0.2
"""How far, in radians, the first steps of the training may turn a row of the basis; the last ones do not turn it."""


def entity_states(model: AdaptedModel, known: Known, template: str, layer: int) -> Float[Tensor, "city d_model"]:
    """The residual stream after ``layer`` at each city's last token."""
    batches: list[Tensor] = []
    for start in range(0, len(known.cities), BATCH):
        cities = list(range(start, min(start + BATCH, len(known.cities))))
        back = torch.tensor([known.ends[template][city] for city in cities])
        values: list[Tensor] = []
        reader = SiteHook(Site("resid_post", layer), lambda value, _ctx, into=values: into.append(value))  # type: ignore[misc]
        with model.hooked([reader], stop=True):
            model.forward(known.batch(template, cities), logits=None)
        batches.append(values[0][torch.arange(len(cities)), values[0].shape[1] + back])
    return torch.cat(batches).float()


def swapped(
    model: AdaptedModel, known: Known, template: str, layer: int, pairs: list[tuple[int, int]], basis: Basis,
    states: Float[Tensor, "city d_model"], *, grad: bool = False,
) -> Float[Tensor, "pair vocab"]:  # fmt: skip
    """Logits of the first city's prompt with the second's coordinates in the subspace, at the city's last token."""
    bases, sources = [first for first, _ in pairs], [second for _, second in pairs]
    back = {known.ends[template][base] for base in bases}
    assert len(back) == 1, "a template ends alike for every city"
    knob = iv.SubspaceKnob(layer, basis, mode="swap", source=states[sources], positions=Where(at=back.pop()))
    with iv.Recipe([knob]).applied(model):
        logits = model.forward(known.batch(template, bases), logits="last", grad=grad)
    assert logits is not None
    return logits[:, -1]


def every_dimension(model: AdaptedModel, *_: object) -> Basis:
    """The whole residual stream."""
    return torch.eye(model.d_model)


def random(rank: int, seed: int) -> Find:
    """A random subspace: the control."""
    return lambda model, *_: random_basis(model.d_model, rank, seed).T


def principal(rank: int) -> Find:
    """The leading principal components of the cities."""

    def axes(_model: AdaptedModel, known: Known, attribute: str, states: States, *_: object) -> Basis:
        means = _over_templates(known, attribute, states)
        basis: Tensor = torch.linalg.svd(means - means.mean(0), full_matrices=False).Vh[:rank]
        return basis

    return axes


def class_means(rank: int) -> Find:
    """The span of the attribute's class means (what ``concept_directions`` finds with labels), its leading part."""

    def axes(_model: AdaptedModel, known: Known, attribute: str, states: States, *_: object) -> Basis:
        values, cities = known.values[attribute], _over_templates(known, attribute, states)
        groups = [[place for place, label in enumerate(values) if label == value] for value in sorted(set(values))]
        means = torch.stack([cities[group].mean(0) for group in groups])
        weights = torch.tensor([len(group) for group in groups]).sqrt()[:, None]
        basis: Tensor = torch.linalg.svd((means - cities.mean(0)) * weights, full_matrices=False).Vh
        return basis[: min(rank, len(groups) - 1)]

    return axes


def trained(rank: int, seed: int, *, isolating: bool, steps: int = STEPS) -> Find:
    """Distributed alignment search: the subspace whose exchange gives the other city's value (Geiger et al. 2023); with
    ``isolating``, and leaves the other attributes as they are (RAVEL's multi-task DAS, Huang et al. 2024).

    Gradient descent with momentum, whose every step turns the rows by the same angle (:data:`TURN`). Adam, which makes
    the steps of all numbers alike, keeps half of a wide model's random start: most directions change no exchange, and
    where the gradient is noise it walks as far as elsewhere.
    """

    def axes(model: AdaptedModel, known: Known, attribute: str, states: States, layer: int) -> Basis:
        draw = torch.Generator().manual_seed(seed)
        raw = random_basis(model.d_model, rank, seed).requires_grad_()
        optimiser = torch.optim.SGD([raw], lr=TURN * rank**0.5, momentum=0.9, dampening=0.9)
        decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
        others = [name for name in known.answers if name != attribute]
        with frozen(model.hf):
            for step in range(steps):
                optimiser.zero_grad()
                for about in (attribute, others[step % len(others)]) if isolating else (attribute,):
                    basis = orthonormal(raw).T
                    _exchange_loss(model, known, attribute, about, basis, states, layer, draw).backward()
                assert raw.grad is not None
                raw.grad /= raw.grad.norm().clamp(min=1e-12)
                optimiser.step()
                decay.step()
        return orthonormal(raw.detach()).T.contiguous()

    return axes


def _exchange_loss(
    model: AdaptedModel, known: Known, attribute: str, about: str, basis: Basis, states: States, layer: int,
    draw: torch.Generator,
) -> Tensor:  # fmt: skip
    """Of a batch of cities that differ in ``attribute``, asked for ``about``: the other city's value is wanted of the
    attribute itself, the own value of any other."""
    template = known.fitting[about][int(torch.randint(len(known.fitting[about]), (1,), generator=draw))]
    every = differing(known, attribute)
    pairs = [every[number] for number in torch.randint(len(every), (BATCH,), generator=draw).tolist()]
    logits = swapped(model, known, template, layer, pairs, basis, states(template), grad=True)
    wanted = known.answers[about][[other if about == attribute else own for own, other in pairs]]
    return torch.nn.functional.cross_entropy(logits.float(), wanted.to(logits.device))


def differing(known: Known, attribute: str) -> list[tuple[int, int]]:
    """Every pair of cities whose values of the attribute begin with another token."""
    answers = known.answers[attribute].tolist()
    return [(a, b) for a in range(len(answers)) for b in range(len(answers)) if answers[a] != answers[b]]


def _over_templates(known: Known, attribute: str, states: States) -> Float[Tensor, "city d_model"]:
    """Each city's mean over the attribute's templates for fitting."""
    return torch.stack([states(template) for template in known.fitting[attribute]]).mean(0)
