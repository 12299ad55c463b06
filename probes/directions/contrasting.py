"""The label x model contrast at every layer and role, and what removing it would do, by gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from probes.directions.material import Part
from probes.patches.gradients import Leaves
from probes.replay import frozen
from workbench.behaviour.texts import common_tokens
from workbench.engine.dispatch import SiteHook, layer_readers
from workbench.engine.sites import Site
from workbench.engine.template_tokens import TemplateTokens
from workbench.errors import UserError
from workbench.models.adapted import AdaptedModel, pad_id
from workbench.models.pair import ModelPair
from workbench.prompts.encode import Encoded, batches, pad_left
from workbench.typing import Float, Int, Tensor

ROLES = ("content", "end", "last")
"""Where directions are read: the last content token of the prompt, the token behind it, the last token."""
SCOPES = ("last - first", "last+generated - first", "all - first")
"""Where a recipe acts; the first token, an attention sink, is never touched, also where a text has no prompt before it
and the first token is the last of the prompt."""


@dataclass(frozen=True)
class Directions:
    """At every layer and role: the contrast, and the tuned model's mean where it does not show the behaviour."""

    contrast: Float[Tensor, "role layer d_model"]
    """(tuned[shows] - tuned[other]) - (base[shows] - base[other])."""
    other: Float[Tensor, "role layer d_model"]
    roles: tuple[str, ...]
    passes: float

    @property
    def unit(self) -> Float[Tensor, "role layer d_model"]:
        return torch.nn.functional.normalize(self.contrast, dim=-1)


def directions_of(pair: ModelPair, part: Part, batch_size: int) -> Directions:
    """The difference of differences of resid_post at every layer and role, from one forward pass of each model."""
    places = role_places(pair, part.ids)
    states = {role: _states(model, part.ids, places, batch_size) for role, model in pair.models.items()}
    shows = torch.from_numpy(part.shows)
    means = {role: (state[shows].mean(0), state[~shows].mean(0)) for role, state in states.items()}
    contrast = (means["tuned"][0] - means["tuned"][1]) - (means["base"][0] - means["base"][1])
    last = places.shape[1] - 1
    distinct = [
        number for number in range(last + 1)
        if not any((places[:, number] == places[:, later]).all() for later in range(number + 1, last + 1))
    ]  # fmt: skip
    return Directions(
        contrast[distinct], means["tuned"][1][distinct], tuple(ROLES[number] for number in distinct),
        2.0 * len(batches([len(row) for row in part.ids], batch_size)),
    )  # fmt: skip


def role_places(pair: ModelPair, ids: Sequence[Sequence[int]]) -> Int[np.ndarray, "prompt role"]:
    """The position of each role in each prompt, counted from its start."""
    template = TemplateTokens(pair.tokenizer)
    places = []
    for row in ids:
        content = np.flatnonzero(template.content(row))
        last = len(row) - 1
        final = int(content[-1]) if len(content) else last
        places.append([final, min(final + 1, last), last])
    return np.array(places)


def _states(
    model: AdaptedModel, ids: Sequence[Sequence[int]], places: Int[np.ndarray, "prompt role"], batch_size: int
) -> Float[Tensor, "prompt role layer d_model"]:
    states = torch.zeros(len(ids), places.shape[1], model.n_layers, model.d_model)
    for rows in batches([len(row) for row in ids], batch_size):
        batch = pad_left([ids[row] for row in rows], pad_id(model.tokenizer))
        width = batch.input_ids.shape[1]
        columns = torch.tensor([[width - len(ids[row]) + int(place) for place in places[row]] for row in rows])

        def keep(layer: int, rows: list[int] = rows, columns: Tensor = columns) -> Any:
            def read(value: Tensor, _ctx: Any) -> None:
                at = columns.to(value.device)
                at_places = value.detach()[torch.arange(len(rows), device=value.device)[:, None], at]
                states[rows, :, layer] = at_places.float().cpu()

            return read

        hooks = [SiteHook(Site("resid_post", layer), keep(layer)) for layer in range(model.n_layers)]
        with model.hooked(hooks, stop=True):
            model.forward(batch, logits=None)
    return states


def estimated(pair: ModelPair, part: Part, directions: Directions, batch_size: int) -> pd.DataFrame:
    """For every layer, role and scope the first-order drop of the tuned model's own word against the base's, when the
    coordinate along the direction is set to the other class's mean (attribution patching, Nanda 2023).

    Columns: layer, role, positions, estimate (nats, the mean over prompts; large: removing it turns the behaviour off).
    """
    rows, wanted = _parted(part)
    model = pair.tuned
    drops = np.zeros((len(directions.roles), len(SCOPES), model.n_layers))
    for members in batches([len(row) for row in rows], batch_size):
        batch = pad_left([rows[member] for member in members], pad_id(model.tokenizer)).to(model.device)
        lengths = torch.tensor([len(part.ids[int(wanted[member][0])]) for member in members])
        drops += _of_batch(model, batch, lengths, torch.tensor([wanted[member][1:] for member in members]), directions)
    table = [
        {"layer": layer, "role": role, "positions": scope, "estimate": drops[number, place, layer] / len(rows)}
        for number, role in enumerate(directions.roles)
        for place, scope in enumerate(SCOPES)
        for layer in range(model.n_layers)
    ]
    return pd.DataFrame(table)


def _of_batch(
    model: AdaptedModel, batch: Encoded, lengths: Tensor, words: Int[Tensor, "row two"], directions: Directions
) -> Float[np.ndarray, "role scope layer"]:
    """Summed over the rows of one batch."""
    states: dict[int, Tensor] = {}
    leaves = Leaves([("resid_post", layer) for layer in range(model.n_layers)])
    readers = layer_readers("resid_post", range(model.n_layers), states)
    with frozen(model.hf), model.hooked([*leaves.hooks, *readers]):
        logits = model.forward(batch, logits="last", grad=True)
        assert logits is not None
        at = words.to(logits.device)
        last = logits[:, -1].float()
        gradients = leaves.gradients((last.gather(1, at[:, :1]) - last.gather(1, at[:, 1:])).sum())
    masks = _scope_masks(batch, lengths.to(model.device))
    drops = np.zeros((len(directions.roles), len(SCOPES), model.n_layers))
    for layer in range(model.n_layers):
        gradient = gradients["resid_post", layer].float()
        for role in range(len(directions.roles)):
            unit, mean = (vectors[role, layer].to(gradient.device) for vectors in (directions.unit, directions.other))
            gain = ((states[layer].float() - mean) @ unit) * (gradient @ unit)
            drops[role, :, layer] = [float((gain * mask).sum()) for mask in masks]
    return drops


def _scope_masks(batch: Encoded, lengths: Int[Tensor, " row"]) -> list[Tensor]:
    """Of :data:`SCOPES`, in order."""
    index = batch.position_ids.masked_fill(batch.attention_mask == 0, -1)
    end = lengths[:, None] - 1
    return [mask & (index > 0) for mask in (index == end, index >= end, index > 0)]


def _parted(part: Part) -> tuple[list[list[int]], list[tuple[int, int, int]]]:
    """Prompts of the class that shows the behaviour, with all that both models say alike; and which row it is, the
    tuned model's next word and the base's."""
    rows, wanted = [], []
    for row in part.of(shows=True).tolist():
        tuned, base = (part.answers[role][row].ids for role in ("tuned", "base"))
        shared = common_tokens(tuned, base)
        if shared < min(len(tuned), len(base)):
            rows.append([*part.ids[row], *tuned[:shared]])
            wanted.append((row, int(tuned[shared]), int(base[shared])))
    if not rows:
        raise UserError("Nothing to find: base and tuned model give the same answers to every prompt of the class.")
    return rows, wanted
