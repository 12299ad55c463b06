"""Subspaces that may hold one attribute: of all dimensions, random, principal, class means, and trained (DAS)."""

from __future__ import annotations

from collections.abc import Callable

import torch

import interventions as iv
from probes.replay import frozen
from tunescope.bench.ravel.entities import Known, templates
from workbench.engine.hub import SiteHook
from workbench.engine.positions import Where
from workbench.engine.sites import Site
from workbench.models.adapted import AdaptedModel
from workbench.typing import Float, Tensor

Basis = Float[Tensor, "rank d_model"]
STEPS = 60
BATCH = 16


def entity_states(model: AdaptedModel, known: Known, template: str, layer: int) -> Float[Tensor, "city d_model"]:
    """The residual stream after ``layer`` at each city's last token."""
    kept: list[Tensor] = []
    for start in range(0, len(known.cities), BATCH):
        cities = list(range(start, min(start + BATCH, len(known.cities))))
        back = torch.tensor([known.ends[template][city] for city in cities])
        values: list[Tensor] = []
        reader = SiteHook(Site("resid_post", layer), lambda value, _ctx, into=values: into.append(value))  # type: ignore[misc]
        with model.hooked([reader], stop=True):
            model.forward(known.batch(template, cities), logits=None)
        kept.append(values[0][torch.arange(len(cities)), values[0].shape[1] + back])
    return torch.cat(kept).float()


def swapped(
    model: AdaptedModel, known: Known, template: str, layer: int, pairs: list[tuple[int, int]], basis: Basis,
    states: Float[Tensor, "city d_model"], *, grad: bool = False,
) -> Float[Tensor, "pair vocab"]:  # fmt: skip
    """Logits of the first city's prompt with the second's coordinates in the subspace, at the city's last token."""
    bases, sources = [one for one, _ in pairs], [one for _, one in pairs]
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


def random(rank: int, seed: int) -> Callable[..., Basis]:
    """A random subspace: the control."""
    return lambda model, *_: (
        torch.linalg.qr(torch.randn(model.d_model, rank, generator=torch.Generator().manual_seed(seed)))[0].T
    )


def principal(rank: int) -> Callable[..., Basis]:
    """The leading principal components of the cities."""

    def found(_model: AdaptedModel, _known: Known, _attribute: str, states: Tensor, *_: object) -> Basis:
        basis: Tensor = torch.linalg.svd(states - states.mean(0), full_matrices=False).Vh[:rank]
        return basis

    return found


def class_means(rank: int) -> Callable[..., Basis]:
    """The span of the attribute's class means (what ``concept_directions`` finds with labels), its leading part."""

    def found(_model: AdaptedModel, known: Known, attribute: str, states: Tensor, *_: object) -> Basis:
        values = known.values[attribute]
        groups = [[place for place, one in enumerate(values) if one == value] for value in sorted(set(values))]
        means = torch.stack([states[group].mean(0) for group in groups])
        weights = torch.tensor([len(group) for group in groups]).sqrt()[:, None]
        basis: Tensor = torch.linalg.svd((means - states.mean(0)) * weights, full_matrices=False).Vh
        return basis[: min(rank, len(groups) - 1)]

    return found


def trained(rank: int, seed: int, *, isolating: bool) -> Callable[..., Basis]:
    """Distributed alignment search: the subspace whose exchange gives the other city's value (Geiger et al. 2023); with
    ``isolating``, and leaves the other attributes as they are (RAVEL's multi-task DAS)."""

    def found(
        model: AdaptedModel, known: Known, attribute: str, states: Tensor, layer: int, cities: list[int]
    ) -> Basis:
        draw = torch.Generator().manual_seed(seed)
        raw = torch.linalg.qr(torch.randn(model.d_model, rank, generator=draw))[0].T.clone().requires_grad_()
        optimiser = torch.optim.Adam([raw], lr=3e-2)
        others = [answer for answer in known.answers if answer != attribute]
        with frozen(model.hf):
            for step in range(STEPS):
                caused = not isolating or step % 2 == 0
                about = attribute if caused else others[step // 2 % len(others)]
                fitting = templates(about, test=False)
                template = fitting[int(torch.randint(len(fitting), (1,), generator=draw))]
                order = torch.randint(len(cities), (BATCH, 2), generator=draw).tolist()
                pairs = [(cities[a], cities[b]) for a, b in order]
                basis = torch.linalg.qr(raw.T)[0].T
                logits = swapped(model, known, template, layer, pairs, basis, states, grad=True)
                wanted = known.answers[about][[b if caused else a for a, b in pairs]]
                loss = torch.nn.functional.cross_entropy(logits.float(), wanted.to(logits.device))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return torch.linalg.qr(raw.detach().T)[0].T.contiguous()

    return found
