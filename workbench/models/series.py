"""A series of fine-tunes of one base: checkpoints of a training run, seeds, ranks, data sets; read one at a time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any

from workbench.errors import UserError
from workbench.models.adapters import detach_adapters
from workbench.models.pair import ModelPair, load_one, load_pair
from workbench.models.sources import Kind, Source, describe

_STEP = re.compile(r"checkpoint-(\d+)$")
_SHAPES = ("model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")


@dataclass(frozen=True, eq=False)
class Member:
    """One fine-tune of the series; ``step`` is its training step where its folder's name says one."""

    name: str
    source: Source = field(repr=False)
    step: int | None = None
    score: float = math.nan


@dataclass(frozen=True, eq=False)
class ModelSeries:
    """A base and its fine-tunes, in order. Nothing is loaded before it is read.

    ``notes`` say what is odd without being wrong, such as uneven steps.
    """

    base: Any
    """As it was handed over: a folder, a hub id or a loaded model."""
    members: tuple[Member, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.members)

    @property
    def names(self) -> list[str]:
        """The members' names, distinct."""
        return [member.name for member in self.members]

    @property
    def scores(self) -> list[float]:
        """The members' scores; NaN where there is none."""
        return [member.score for member in self.members]

    def pairs(self, **options: Any) -> Iterator[tuple[Member, ModelPair]]:
        """Each member beside the base, one after the other: the base is loaded once, each member let go before the
        next, so that memory stays at one base and one member. ``options`` go to :func:`workbench.load_pair`.
        """
        loading = {name: options[name] for name in ("device", "dtype", "tokenizer") if name in options}
        held = load_one(self.base, **loading)
        for member in self.members:
            peft = member.source.kind is Kind.PEFT
            pair = load_pair(held.hf, member.source, **{"tokenizer": held.tokenizer, **options})
            try:
                yield member, pair
            finally:
                if member.source.is_adapter and not peft:
                    detach_adapters(held.hf)


def load_series(
    base: Any,
    members: Any,
    *,
    scores: Sequence[float | int] | Mapping[str, float | int] | str | Path | None = None,
) -> ModelSeries:
    """Describe a series of fine-tunes of ``base`` without loading one.

    Example:
        >>> series = wb.load_series("base", "run/", scores=[0.1, 0.4, 0.6])  # doctest: +SKIP
        >>> [pair.tuned for _, pair in series.pairs()]  # doctest: +SKIP

    Args:
        base: A folder, a hub id or a loaded model.
        members: A Trainer's output folder (its ``checkpoint-N`` in the order of N), or a list of folders, hub ids or
            loaded models, adapters among them.
        scores: A number per member, in their order or by name; or a JSON file with either.

    Returns:
        The series, in order.

    Raises:
        UserError: No member, scores that do not match, members given twice, or of another architecture.
    """
    listed = _listed(members)
    below = describe(base)
    if below.is_adapter:
        raise UserError(f"The base {below.name} is an adapter: give the model that the members were trained from.")
    sources = [describe(member) for member in listed]
    names = _names(sources)
    _check_shapes(below, sources)
    values = _scores(scores, names)
    made = tuple(
        Member(name, source, _step(source.name), value)
        for name, source, value in zip(names, sources, values, strict=True)
    )
    return ModelSeries(base, made, (*_gaps(made), *_bases(sources)))


def trainer_checkpoints(folder: Path) -> list[Path]:
    """The ``checkpoint-N`` of a Trainer's output folder, in the order of N (checkpoint-1000 after checkpoint-500)."""
    steps = [(int(match[1]), path) for path in folder.iterdir() if (match := _STEP.search(path.name)) and path.is_dir()]
    return [path for _, path in sorted(steps)]


def _listed(members: Any) -> list[Any]:
    if not isinstance(members, str | Path):
        listed = list(members)
    else:
        folder = Path(members).expanduser()
        listed = trainer_checkpoints(folder) if folder.is_dir() else []
        if not listed:
            listed = [members]
    spread: list[Any] = []
    for member in listed:
        inside = Path(member) if isinstance(member, str | Path) else None
        is_run = inside is not None and inside.is_dir() and not (inside / "config.json").exists()
        is_run = is_run and inside is not None and not (inside / "adapter_config.json").exists()
        spread += (trainer_checkpoints(inside) if is_run and inside is not None else []) or [member]
    if not spread:
        raise UserError("The series is empty: give a folder that holds checkpoint-N folders, or a list of models.")
    return spread


def _names(sources: Sequence[Source]) -> list[str]:
    """The shortest endings of the paths that tell the members apart."""
    whole = [source.name if source.model is None else f"{source.name}#{n}" for n, source in enumerate(sources)]
    if twice := [name for name in whole if whole.count(name) > 1]:
        raise UserError(f"{twice[0]} is in the series twice: give each member once.")
    for depth in (1, 2, 3):
        short = ["/".join(Path(name).parts[-depth:]) for name in whole]
        if len(set(short)) == len(short):
            return short
    return whole


def _check_shapes(base: Source, sources: Sequence[Source]) -> None:
    for source in sources:
        if source.is_adapter:
            continue
        for name in _SHAPES:
            here, there = _shape(base.config, name), _shape(source.config, name)
            if here is not None and there is not None and here != there:
                raise UserError(
                    f"{source.name} is no fine-tune of this base: {name} is {there!r} there and {here!r} in the base; "
                    "give fine-tunes of one base."
                )


def _shape(config: Any, name: str) -> Any:
    text = {**config, **(config.get("text_config") or {})} if isinstance(config, Mapping) else vars(config)
    return text.get(name)


def _scores(scores: Any, names: Sequence[str]) -> list[float]:
    if scores is None:
        return [math.nan] * len(names)
    if isinstance(scores, str | Path):
        try:
            scores = json.loads(Path(scores).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"Cannot read the scores from {scores} ({error}): give a JSON list or object.") from error
    if isinstance(scores, Mapping):
        if absent := [name for name in names if name not in scores]:
            raise UserError(f"There is no score for {absent[0]}: give one for each of {', '.join(names)}.")
        scores = [scores[name] for name in names]
    if not isinstance(scores, Iterable) or isinstance(scores, str):
        raise UserError(f"The scores are {scores!r}: give a list of numbers, one for each of {', '.join(names)}.")
    return checked_scores(list(scores), names)


def checked_scores(scores: Sequence[Any], names: Sequence[str]) -> list[float]:
    """A finite number per member, or NaN for all of them. Raises :class:`UserError` for anything else."""
    if len(scores) != len(names):
        raise UserError(f"There are {len(scores)} scores for {len(names)} members ({', '.join(names)}): give one each.")
    for name, score in zip(names, scores, strict=True):
        if isinstance(score, bool) or not isinstance(score, Real) or math.isinf(float(score)):
            raise UserError(f"The score of {name} is {score!r}: give a finite number for each member.")
    values = [float(score) for score in scores]
    if any(math.isnan(value) for value in values) and not all(math.isnan(value) for value in values):
        absent = names[[math.isnan(value) for value in values].index(True)]
        raise UserError(f"The score of {absent} is NaN and others have one: give a number for each, or none at all.")
    return values


def _step(name: str) -> int | None:
    match = _STEP.search(name)
    return int(match[1]) if match else None


def _gaps(members: Sequence[Member]) -> list[str]:
    steps = [member.step for member in members if member.step is not None]
    apart = [later - earlier for earlier, later in pairwise(steps)]
    if apart and max(apart) >= 2 * min(apart):
        at = apart.index(max(apart))
        return [f"The steps are uneven: none between {steps[at]} and {steps[at + 1]}, so a change there is dated late."]
    return []


def _bases(sources: Sequence[Source]) -> list[str]:
    said = sorted({str(source.base_name) for source in sources if source.base_name})
    return [f"The adapters name different bases: {', '.join(said)}."] if len(said) > 1 else []
