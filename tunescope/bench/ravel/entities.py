"""Cities, their attributes and RAVEL's prompts about them; and which of them a model knows.

The data are RAVEL's (explanare/ravel, MIT licence), some of its cities and four templates per attribute.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.resources import files
from typing import Any

import torch

from workbench.errors import UserError
from workbench.finished_batches import batch
from workbench.models.adapted import AdaptedModel
from workbench.prompts.encode import Encoded, pad_left
from workbench.typing import Int, Tensor


@dataclass(frozen=True)
class Known:
    """What a model knows: ``cities`` whose every attribute it says on every template, and the token it says first."""

    cities: tuple[str, ...]
    ids: dict[str, list[list[int]]]
    """Template -> the token ids of its prompt for each city."""
    ends: dict[str, list[int]]
    """Template -> for each city, where its last token stands, counted back from the prompt's end."""
    answers: dict[str, Int[Tensor, " city"]]
    """Attribute -> first token of each city's value."""
    values: dict[str, list[str]]
    """Attribute -> value of each city."""
    fitting: dict[str, list[str]]
    """Attribute -> templates that subspaces may be fitted on."""
    testing: dict[str, list[str]]
    """Attribute -> templates that they are scored on."""

    def of(self, cities: list[int]) -> Known:
        """What is known of some cities (numbers) alone."""
        return replace(
            self,
            cities=tuple(self.cities[city] for city in cities),
            ids={name: [rows[city] for city in cities] for name, rows in self.ids.items()},
            ends={name: [rows[city] for city in cities] for name, rows in self.ends.items()},
            answers={name: tokens[cities] for name, tokens in self.answers.items()},
            values={name: [values[city] for city in cities] for name, values in self.values.items()},
        )

    def batch(self, template: str, cities: list[int]) -> Encoded:
        """Prompts of some cities (numbers), padded on the left."""
        return pad_left([self.ids[template][city] for city in cities], 0)


@cache
def data() -> dict[str, Any]:
    """The shipped part of RAVEL."""
    text = (files("tunescope.bench.ravel") / "cities.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def templates(attribute: str, *, test: bool) -> list[str]:
    """RAVEL's test templates of an attribute, or those for fitting."""
    return [value["text"] for value in data()["templates"][attribute] if (value["split"] == "test") == test]


def known(model: AdaptedModel, least: float = 0.75) -> Known:
    """The cities of which the model says each attribute's right value on at least ``least`` of its templates.

    Raises :class:`UserError` where it knows fewer than eight.
    """
    cities = list(data()["cities"])
    ids, ends, answers, right = {}, {}, {}, torch.ones(len(cities), dtype=torch.bool)
    values = {attribute: [data()["cities"][city][attribute] for city in cities] for attribute in data()["templates"]}
    for attribute, every in data()["templates"].items():
        first = every[0]["text"]
        answers[attribute] = torch.tensor([_first_token(model, first % city, value)
                                           for city, value in zip(cities, values[attribute], strict=True)])  # fmt: skip
        hits = []
        for template in (entry["text"] for entry in every):
            ids[template], ends[template] = _encoded(model, template, cities)
            says = batch("known", [template, ids[template]], partial(_says, model, ids[template]))
            hits.append(says == answers[attribute])
        right &= torch.stack(hits).float().mean(0) >= least
    if int(right.sum()) < 8:
        raise UserError(
            f"{model.name} knows every attribute of {int(right.sum())} of {len(cities)} cities, too few to exchange "
            "them: give a model that knows more."
        )
    fitting, testing = ({name: templates(name, test=test) for name in values} for test in (False, True))
    return Known(tuple(cities), ids, ends, answers, values, fitting, testing).of(right.nonzero()[:, 0].tolist())


def _encoded(model: AdaptedModel, template: str, cities: list[str]) -> tuple[list[list[int]], list[int]]:
    start = template.index("%s")
    rows, ends = [], []
    for city in cities:
        made = model.tokenizer(template % city, return_offsets_mapping=True)
        stop = start + len(city)
        inside = [place for place, (_, end) in enumerate(made["offset_mapping"]) if 0 < end <= stop]
        rows.append(list(made["input_ids"]))
        ends.append(max(inside) - len(rows[-1]))
    return rows, ends


def _first_token(model: AdaptedModel, prompt: str, value: str) -> int:
    """The token that follows the prompt when ``value`` comes next."""
    before = model.tokenizer(prompt)["input_ids"]
    return int(model.tokenizer(f"{prompt} {value}")["input_ids"][len(before)])


def _says(model: AdaptedModel, rows: list[list[int]]) -> Int[Tensor, " row"]:
    words = []
    for start in range(0, len(rows), 16):
        logits = model.forward(pad_left(rows[start : start + 16], 0), logits="last")
        assert logits is not None
        words.append(logits[:, -1].argmax(-1).cpu())
    return torch.cat(words)
