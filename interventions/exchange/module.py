"""Recipes as a small module of plain torch: for what is exact in no weight, such as an ablation at one layer."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from interventions.base import Intervention
from interventions.checks import site_in
from interventions.concept_ablation import ConceptAblation
from interventions.directions import orthonormal
from interventions.exchange import exported_module
from interventions.exchange.bake import check_everywhere
from interventions.exchange.biases import z_maps
from interventions.exchange.exported_module import STEPS, VECTORS
from interventions.gate import Gate
from interventions.heads import HeadOffset, HeadScale
from interventions.offset import Offset
from interventions.recipe import Recipe, as_adapted
from workbench.engine.positions import where
from workbench.engine.sites import Site
from workbench.errors import NotSupported
from workbench.files import check_new_folder, whole_folder
from workbench.models.adapted import AdaptedModel
from workbench.models.export import plain_copy
from workbench.typing import Tensor


@dataclass(frozen=True)
class Step:
    """What is done at the ``side`` (in, out) of a module, with which vectors; behind a gate, where it reads them."""

    module: str
    side: str
    does: str
    vectors: dict[str, Tensor]
    gate: Gate | None = None
    gate_module: str = ""
    positions: str = "all"
    """One of the values of :data:`POSITIONS`."""


SIDES = {"resid_pre": "in", "resid_post": "out", "attn_out": "out", "mlp_out": "out", "z": "in"}
POSITIONS = {
    where(positions): positions.removesuffix(" - first")
    for positions in (
        "all", "last", "last - first", "generated", "generated - first", "last+generated", "last+generated - first",
    )
}  # fmt: skip
"""Positions that a module can tell, and what it calls them. A prompt has two tokens or more, so its first is not its
last."""
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF = 0.05
_READ = 6
"""Tokens of the text of the check that are its prompt."""


def to_module(model: Any, recipe: Recipe, folder: str | Path) -> Path:
    """Save a recipe as a folder with a Python file that hooks it into the Hugging Face model, without Tunescope.

    ``ConceptAblation`` and ``Offset`` at resid_pre, resid_post, attn_out or mlp_out of any layer, ``HeadScale`` and
    ``HeadOffset``, in the recipe's order, on every token, the prompt's last, those that are written, or both; or behind
    a gate that every token opens for itself. For
    an adapter pair it is attached to the base with the adapter, as PEFT loads it, or merged. The file needs torch and
    safetensors alone. Before anything is written it is attached to a copy of the model and compared with the recipe on
    a few tokens.

    Args:
        model: The model that the recipe is for.
        recipe: What is exported.
        folder: A new folder.

    Returns:
        The folder: ``exported_module.py``, ``steps.json``, ``vectors.safetensors``.

    Raises:
        NotSupported: Something acts at other positions or sites, on some rows, or behind a gate that looks back.
        UserError: The folder exists, or the recipe does not fit the model.

    Example:
        ``to_module(pair.tuned, recipe, "off")``, then ``from exported_module import attach; attach(model)`` there.
    """
    adapted, target = as_adapted(model), Path(folder)
    recipe.check(adapted)
    check_new_folder(target)
    check_module(recipe)
    flat = [step for intervention in recipe for step in _gated(intervention, adapted)]
    with whole_folder(target) as partial:
        _write(flat, partial)
        _check_same(adapted, recipe, partial)
    return target


def check_module(recipe: Recipe) -> None:
    """Refuse what the module cannot do, told from the recipe alone.

    Raises:
        NotSupported: With the reason.
    """
    for number, intervention in enumerate(recipe):
        what = f"{intervention.kind} (number {number} of the recipe)"
        check_everywhere(intervention, what, runs=True)
        if where(intervention.positions) not in POSITIONS:  # type: ignore[attr-defined]
            raise NotSupported(
                f"{what} acts on positions that a module cannot tell: it knows "
                f"{', '.join(dict.fromkeys(POSITIONS.values()))}. Use one of them, or keep it as a recipe."
            )
        gate = getattr(intervention, "when", None)
        if gate is not None and (gate.reach != "token" or gate.site not in SIDES):
            raise NotSupported(
                f"{what} acts behind a gate that looks back, or reads {gate.site}; a module sees each token by itself: "
                f'give the gate reach="token" at one of {", ".join(SIDES)}, or keep it as a recipe.'
            )
        site = getattr(intervention, "site", "z")
        if site not in SIDES:
            raise NotSupported(
                f"{what} acts at {site}, which is no module's input or output: use {', '.join(SIDES)}, or keep it."
            )
        of_norm = isinstance(intervention, Offset) and (intervention.units == "fraction" or intervention.match_norm)
        if of_norm:
            raise NotSupported(f"{what} depends on each token's norm, which the module does not measure: keep it.")


def _gated(intervention: Intervention, model: AdaptedModel) -> list[Step]:
    """The steps of an intervention, behind its gate where it has one."""
    gate: Gate | None = getattr(intervention, "when", None)
    positions = POSITIONS[where(intervention.positions)]  # type: ignore[attr-defined]
    steps = [replace(step, positions=positions) for step in _step(intervention, model)]
    if gate is None:
        return steps
    path, _ = _place(site_in(model, gate.site, gate.layer), model)
    return [replace(step, gate=gate, gate_module=path) for step in steps]


def _step(intervention: Intervention, model: AdaptedModel) -> list[Step]:
    if isinstance(intervention, HeadScale | HeadOffset):
        maps = z_maps([intervention], model)
        return [
            _at(Site("z", layer), "map", {"scale": scale.flatten(), "offset": offset.flatten()}, model)
            for layer, (scale, offset) in maps.items()
        ]  # fmt: skip
    assert isinstance(intervention, ConceptAblation | Offset) and isinstance(intervention.strength, float)
    site = site_in(model, intervention.site, intervention.layer)
    if isinstance(intervention, Offset):
        vector = intervention.vector.detach().double().cpu()
        length = 1.0 if intervention.units == "raw" else float(intervention.site_norm or 1.0) / float(vector.norm())
        return [_at(site, "add", {"vector": intervention.strength * length * vector}, model)]
    basis = orthonormal(intervention.directions.detach().cpu())
    mean = torch.zeros(basis.shape[1]) if intervention.mean is None else intervention.mean.detach().cpu()
    return [
        _at(site, "project", {"basis": basis, "mean": mean, "strength": torch.tensor(intervention.strength)}, model)
    ]


def _at(site: Site, does: str, vectors: dict[str, Tensor], model: AdaptedModel) -> Step:
    path, side = _place(site, model)
    return Step(path, side, does, vectors)


def _place(site: Site, model: AdaptedModel) -> tuple[str, str]:
    """The path of a site's module, and whether the site is its input or its output."""
    module = model.hub.module(site)
    path = next(name for name, submodule in model.inner.named_modules() if submodule is module)
    return path, SIDES[site.kind]


def _write(steps: list[Step], folder: Path) -> None:
    folder.mkdir(parents=True)
    named: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for number, step in enumerate(steps):
        tensors |= {f"{number}.{name}": vector.float().contiguous() for name, vector in step.vectors.items()}
        keys = {name: f"{number}.{name}" for name in step.vectors}
        said: dict[str, Any] = {"module": step.module, "side": step.side, "does": step.does, "vectors": keys}
        said["positions"] = step.positions
        if step.gate is not None:
            gate, key = step.gate, f"gate.{step.gate.key}"
            tensors[key] = gate.direction.detach().cpu().float().contiguous()
            said["gate"] = {"module": step.gate_module, "side": SIDES[gate.site], "direction": key,
                            "threshold": gate.threshold, "fires": gate.fires}  # fmt: skip
        named.append(said)
    (folder / STEPS).write_text(json.dumps(named, indent=2), encoding="utf-8")
    save_file(tensors, folder / VECTORS)
    shutil.copyfile(exported_module.__file__, folder / Path(exported_module.__file__).name)


def _check_same(model: AdaptedModel, recipe: Recipe, folder: Path) -> None:
    """Raise when the module, on a plain copy, does not compute what the recipe does: six tokens are read, two follow
    one by one."""
    ids = torch.arange(8, device=model.device).reshape(1, 8) * 7 % model.vocab_size
    with recipe.applied(model, prompt_lengths=_READ):
        wanted = model.forward(ids)
    as_it_is = model.forward(ids)
    assert wanted is not None and as_it_is is not None
    with model.active():
        plain = plain_copy(model).eval()
    merging = float((_logits(plain, ids) - as_it_is).abs().max())
    exported_module.attach(plain, folder)
    gap = float((_logits(plain, ids) - wanted).abs().max())
    if not gap <= merging * 4 + _ROUNDING.get(model.dtype, _HALF) * float(wanted.std()):
        raise NotSupported(
            f"The module would not compute what the recipe does (logits differ by {gap:.2g}): this architecture "
            "uses the changed values in another way. Keep the recipe."
        )


@torch.no_grad()
def _logits(hf: Any, ids: Tensor) -> Tensor:
    read = hf(input_ids=ids[:, :_READ], use_cache=True)
    cache, parts = read.past_key_values, [read.logits]
    for place in range(_READ, ids.shape[1]):
        step = hf(input_ids=ids[:, place : place + 1], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        parts.append(step.logits)
    return torch.cat(parts, dim=1)
