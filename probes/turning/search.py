"""Finding each way on the choosing part of the prompts: which direction, layers, heads or experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from probes.directions.find import DirectionOptions, Search
from probes.directions.material import Part
from probes.directions.trying import Outcome, Trier
from probes.experts.counting import count_experts
from probes.patches.gradients import Leaves
from probes.replay import frozen
from probes.turning.off_recipes import SHARES, Placed, Way, recipe_of
from workbench.behaviour.scorers import Behaviour
from workbench.behaviour.subject import Work
from workbench.behaviour.texts import common_tokens
from workbench.engine.hub import SiteHook
from workbench.engine.sites import Site
from workbench.errors import UserError
from workbench.models.adapted import pad_id
from workbench.models.pair import ModelPair
from workbench.prompts.encode import batches, pad_left
from workbench.typing import Float, Tensor

COUNTS = (1, 2, 4, 8, 16)
"""How many heads or experts are tried."""
BLOCKS = 5
"""Into how many runs of neighbouring layers the model is parted, at most."""
PUSHES = (-1.0, -2.0)
"""Strengths of the contrast that are tried to steer away from the behaviour."""


class Finder:
    """Finds ways on one part of the prompts; the part's own answers are known."""

    def __init__(
        self, pair: ModelPair, part: Part, behaviour: Behaviour, settings: DirectionOptions, work: Work
    ) -> None:
        self.pair, self.part, self.behaviour, self.settings, self.work = pair, part, behaviour, settings, work
        self.trier = Trier(pair, part, behaviour, settings.max_new_tokens, work)
        self.base = self.trier.own("base")
        self._search: Search | None = None

    def way(self, name: str) -> Way | None:
        """The best way of that name; None where the model has nothing of the kind."""
        if name in SHARES:
            return Way(name)
        finders = {
            "direction": self._direction, "steered away": self._steered, "layers": self._layers, "heads": self._heads,
            "experts": self._experts,
        }  # fmt: skip
        return finders[name]()

    def under(self, placed: Placed) -> Outcome:
        """What a recipe does on this part."""
        return self.trier.under(placed.recipe, placed.role)

    def shows_under(self, placed: Placed) -> Float[np.ndarray, " row"]:
        """The behaviour alone, on prompts of the class that shows it."""
        return self.trier.shows_under(placed.recipe, placed.role).behaviour

    def _best(self, candidates: Sequence[Way]) -> Way | None:
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        costs = [self.under(recipe_of(way, self.pair)).cost(self.base) for way in candidates]
        return candidates[int(np.argmin(costs))]

    def _directions(self) -> Search:
        if self._search is None:
            self._search = Search(self.trier, self.settings)
        return self._search

    def _direction(self) -> Way:
        search = self._directions()
        best = search.best()
        role, layers = search.directions.roles.index(best.role), list(best.layers)
        return Way(
            "direction",
            {"layers": layers, "strength": best.strength, "positions": best.positions},
            {"directions": search.directions.unit[role, layers], "means": search.directions.other[role, layers]},
        )

    def _steered(self) -> Way | None:
        """The contrast is taken away at its best layer, as strongly as costs least."""
        search = self._directions()
        top = search.estimates.iloc[int(search.estimates["estimate"].to_numpy().argmax())]
        layer = int(top["layer"])
        vector = search.directions.contrast[search.directions.roles.index(str(top["role"])), layer]
        return self._best([
            Way(
                "steered away", {"layer": layer, "strength": strength, "positions": str(top["positions"])},
                {"vector": vector},
            )
            for strength in PUSHES
        ])  # fmt: skip

    def _layers(self) -> Way | None:
        n_layers = self.pair.tuned.n_layers
        blocks = np.array_split(np.arange(n_layers), min(BLOCKS, n_layers))
        return self._best([Way("layers", {"layers": block.tolist()}) for block in blocks])

    def _heads(self) -> Way | None:
        if not self.pair.tuned.hub.geometry.attention_layers:
            return None
        effect = head_effects(self.pair, self.part, self.settings.batch_size)
        order = effect.flatten().argsort(descending=True, stable=True).tolist()
        n_heads = self.pair.tuned.n_heads
        names = [f"L{place // n_heads}H{place % n_heads}" for place in order]
        counts = [count for count in COUNTS if count <= len(names) // 4] or [1]
        return self._best([Way("heads", {"heads": names[:count]}) for count in counts])

    def _experts(self) -> Way | None:
        model = self.pair.tuned
        if not model.moe_layers:
            return None
        (counts,) = count_experts(model, self.part.ids, [[np.ones(len(row), dtype=bool) for row in self.part.ids]])
        shares = counts.shares
        apart = np.nanmean(shares[self.part.shows], 0) - np.nanmean(shares[~self.part.shows], 0)
        order = np.argsort(-apart, axis=None, kind="stable")
        places = [divmod(int(place), apart.shape[1]) for place in order if apart.flat[place] > 0]
        names = [f"L{counts.layers[layer]}E{expert}" for layer, expert in places]
        return self._best(self._switchable([Way("experts", {"experts": names[:n]}) for n in COUNTS if n <= len(names)]))

    def _switchable(self, ways: list[Way]) -> list[Way]:
        """Those that leave every token an expert."""
        return [way for way in ways if self._valid(way)]

    def _valid(self, way: Way) -> bool:
        try:
            recipe_of(way, self.pair).recipe.check(self.pair.tuned)
        except UserError:
            return False
        return True


def head_effects(pair: ModelPair, part: Part, batch_size: int) -> Float[Tensor, "layer head"]:
    """The first-order drop of the tuned model's own word against the base's when a head writes nothing, summed over the
    prompts that show the behaviour (attribution patching to zero, Nanda 2023)."""
    rows, words = _parting_words(part)
    model = pair.tuned
    layers = model.hub.geometry.attention_layers
    effects = torch.zeros(model.n_layers, model.n_heads)
    for members in batches([len(row) for row in rows], batch_size):
        batch = pad_left([rows[member] for member in members], pad_id(model.tokenizer)).to(model.device)
        leaves = Leaves([("z", layer) for layer in layers])
        values: dict[int, Tensor] = {}
        readers = [SiteHook(Site("z", layer), _keeping(values, layer)) for layer in layers]
        with frozen(model.hf), model.hooked([*leaves.hooks, *readers]):
            logits = model.forward(batch, logits="last", grad=True)
            assert logits is not None
            at = torch.tensor([words[member] for member in members], device=logits.device)
            last = logits[:, -1].float()
            gradients = leaves.gradients((last.gather(1, at[:, :1]) - last.gather(1, at[:, 1:])).sum())
        for layer in layers:
            product = values[layer] * gradients["z", layer].float()
            effects[layer] += product.sum((0, 1, 3)).cpu()
    return effects


def _keeping(values: dict[int, Tensor], layer: int) -> Any:
    def read(value: Tensor, _ctx: Any) -> None:
        values[layer] = value.detach().float()

    return read


def _parting_words(part: Part) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Prompts that show the behaviour with what both models say alike, and each model's first word that differs."""
    rows, words = [], []
    for row in part.of(shows=True).tolist():
        tuned, base = (part.answers[role][row].ids for role in ("tuned", "base"))
        shared = common_tokens(tuned, base)
        if shared < min(len(tuned), len(base)):
            rows.append([*part.ids[row], *tuned[:shared]])
            words.append((int(tuned[shared]), int(base[shared])))
    return rows, words


__all__ = ["Finder", "head_effects"]
