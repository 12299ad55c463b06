"""Positions as a small language, the same for recording and for every intervention.

=====================  ===================================================================================
``"all"``              every real token
``"content"``          every real token but sinks: not the first, no special token, none of the chat template's
``"first"``            the row's first real token (usually the beginning-of-sequence token)
``"last"``             the last prompt token: the one that writes the first new token
``"prompt"``           the prompt
``"generated"``        the new tokens
``"last+generated"``   what steering usually means; terms join with ``+``
``"all - first"``      terms after `` - `` are taken away
``"prompt[2:5]"``      a window of the prompt, negatives count from its end; ``"generated[0:8]"`` of the new tokens
``3``, ``-1``          one position: from the row's first real token, or back from the prompt's end; ``"-1"`` too
``slice(2, -1)``       half-open; a negative bound counts from the prompt's end; no stop: to the very end
``[0, 3, -1]``         their union
a function             token ids [batch, pos] -> bool [batch, pos]; must look at each token on its own
=====================  ===================================================================================

:class:`Where` adds token ids, exclusions and rows. Padding is never selected.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from workbench.engine.context import ForwardContext
from workbench.errors import NotSupported, UserError
from workbench.typing import Tensor

TokenRule = Callable[[Tensor], Tensor]
PositionSpec = str | int | slice | Sequence[int] | TokenRule

_NAMED = ("all", "content", "first", "last", "prompt", "generated")
_FARTHEST = 10**12
_NUMBER = re.compile(r"-?\d+")
_WINDOW = re.compile(r"(prompt|generated)\[(-?\d*)(:)?(-?\d*)\]")


@dataclass(frozen=True)
class Where:
    """Which positions of which rows: ``at``, limited to ``tokens`` and ``rows``, minus ``exclude``."""

    at: PositionSpec = "all"
    tokens: tuple[int, ...] | None = None
    """Only where the input token is one of these ids."""
    exclude: PositionSpec | None = None
    rows: tuple[bool, ...] | None = None
    """One entry per prompt row: whether that row is touched at all."""

    def __post_init__(self) -> None:
        check_positions(self.at)
        if self.tokens is not None and not all(_is_index(token) for token in self.tokens):
            raise UserError("Positions: tokens are token ids, whole numbers.")
        if self.rows is not None and not all(isinstance(row, bool) for row in self.rows):
            raise UserError("Positions: rows are true or false, one for each prompt.")
        if self.exclude is not None:
            check_positions(self.exclude)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a recipe file. Raises :class:`NotSupported` when a function is part of it."""
        plain = {"at": _plain(self.at), "exclude": None if self.exclude is None else _plain(self.exclude)}
        return {**plain, "tokens": self.tokens, "rows": self.rows}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Where:
        """The inverse of :meth:`to_json`."""
        at, exclude = _parsed(data["at"]), data.get("exclude")
        return cls(
            at=at,
            tokens=None if data.get("tokens") is None else tuple(data["tokens"]),
            exclude=None if exclude is None else _parsed(exclude),
            rows=None if data.get("rows") is None else tuple(data["rows"]),
        )


@dataclass(frozen=True)
class Selection:
    """Selected positions of the new columns. ``mask`` [batch, pos] is None when all or none are selected."""

    everything: bool
    nothing: bool
    mask: Tensor | None = None


ALL = Selection(everything=True, nothing=False)
NONE = Selection(everything=False, nothing=True)


def where(positions: PositionSpec | Where) -> Where:
    """``positions`` as a :class:`Where`. Raises :class:`UserError` when it is none of the forms above."""
    return positions if isinstance(positions, Where) else Where(positions)


def needs_prompt(scope: Where) -> bool:
    """Whether ``scope`` counts from the prompt's end, or tells the prompt from what was generated."""
    return _needs_prompt(scope.at) or (scope.exclude is not None and _needs_prompt(scope.exclude))


def _needs_prompt(spec: PositionSpec) -> bool:
    if isinstance(spec, str):
        wanted, unwanted = _terms(spec)
        return any(term not in ("all", "first") and not term.isdecimal() for term in (*wanted, *unwanted))
    if isinstance(spec, int):
        return spec < 0
    if isinstance(spec, slice):
        return any(bound is not None and bound < 0 for bound in (spec.start, spec.stop))
    return not callable(spec) and any(position < 0 for position in spec)


def select(positions: PositionSpec | Where, ctx: ForwardContext) -> Selection:
    """What ``positions`` selects among the new columns of this forward pass."""
    scope = where(positions)
    quick = _quick_difference(scope, ctx)
    if quick is NONE or (quick is ALL and scope.tokens is None and scope.rows is None):
        return quick
    mask = _mask(scope.at, ctx)
    if scope.tokens is not None:
        mask = mask & torch.isin(_ids(ctx), torch.tensor(scope.tokens, device=ctx.device))
    if scope.exclude is not None:
        mask = mask & ~_mask(scope.exclude, ctx)
    if scope.rows is not None:
        mask = mask & _row_mask(scope.rows, ctx)[:, None]
    return Selection(everything=False, nothing=False, mask=mask & ctx.real)


def _is_index(number: Any) -> bool:
    """Whether ``number`` can be the number of a token or of a position."""
    return isinstance(number, int) and not isinstance(number, bool) and abs(number) < _FARTHEST


def _check_far(numbers: Sequence[Any]) -> None:
    for number in numbers:
        if isinstance(number, int) and abs(number) >= _FARTHEST:
            raise UserError("Positions hold a number that is larger than any text is long.")


def check_positions(spec: Any) -> None:
    """Raise :class:`UserError` when ``spec`` is not in the language."""
    if isinstance(spec, str) and re.search(r"\d{13}", spec):
        raise UserError(f"Positions {spec[:40]!r} hold a number that is larger than any text is long.")
    if isinstance(spec, int):
        _check_far([spec])
    elif isinstance(spec, slice):
        _check_far([spec.start, spec.stop])
    elif isinstance(spec, Sequence) and not isinstance(spec, str):
        _check_far(spec)
    if isinstance(spec, str):
        for term in _terms(spec)[0] + _terms(spec)[1]:
            if term not in _NAMED and not _WINDOW.fullmatch(term) and not _NUMBER.fullmatch(term):
                close = difflib.get_close_matches(term, (*_NAMED, "last+generated"), n=1, cutoff=0.5)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise UserError(
                    f"Unknown position {term!r} in {spec!r}.{hint} Use {', '.join(_NAMED)}, last+generated, "
                    "prompt[2:5], generated[0:8], a number, a slice, a list of numbers or a function of token ids."
                )
    elif isinstance(spec, slice):
        if spec.step not in (None, 1):
            raise UserError(f"Positions {spec} have a step; windows are contiguous: leave the step out.")
    elif not callable(spec) and not isinstance(spec, int):
        if not isinstance(spec, Sequence) or not all(isinstance(position, int) for position in spec) or not spec:
            raise UserError(f"Positions {spec!r} are not a word, a number, a slice, a list of numbers or a function.")


def _quick_difference(scope: Where, ctx: ForwardContext) -> Selection | None:
    """``at`` without ``exclude``, decided without tensors; None when a mask is needed."""
    at = _quick(scope.at, ctx)
    if scope.exclude is None or at is NONE:
        return at
    unwanted = _quick(scope.exclude, ctx)
    if unwanted is ALL:
        return NONE
    return at if unwanted is NONE else None


def _quick(spec: PositionSpec, ctx: ForwardContext) -> Selection | None:
    """Decide without tensors where every row has the same positions; None when a mask is needed."""
    if ctx.decoding and isinstance(spec, str):
        return _while_decoding(spec)
    if isinstance(spec, str) and spec == "all" and not ctx.padded:
        return ALL
    if (
        ctx.uniform is None
        or not isinstance(spec, str)
        or spec not in ("last", "prompt", "generated", "last+generated")
    ):
        return None
    start, prompt = ctx.uniform
    end = start + ctx.length
    low, high = {
        "last": (prompt - 1, prompt),
        "prompt": (0, prompt),
        "generated": (prompt, end),
        "last+generated": (prompt - 1, end),
    }[spec]
    if high <= start or low >= end:
        return NONE
    return ALL if low <= start and end <= high else None


@lru_cache(maxsize=256)
def _while_decoding(spec: str) -> Selection | None:
    """The same for new columns that are all generated, padded prompts or not."""
    wanted, unwanted = ([_generated(term) for term in terms] for terms in _terms(spec))
    if any(unwanted) or not any(term is not False for term in wanted):
        return NONE
    return ALL if any(wanted) and all(term is False for term in unwanted) else None


def _generated(term: str) -> bool | None:
    """Whether a term covers generated tokens; None: some of them."""
    if term.startswith("generated[") or term.isdecimal() or term == "content":
        return None
    return term in ("all", "generated")


def _mask(spec: PositionSpec, ctx: ForwardContext) -> Tensor:
    """[batch, pos] bool, padding not yet taken out."""
    if isinstance(spec, str):
        wanted, unwanted = _terms(spec)
        mask = torch.zeros_like(ctx.real)
        for term in wanted:
            mask = mask | _term_mask(term, ctx)
        for term in unwanted:
            mask = mask & ~_term_mask(term, ctx)
        return mask
    if isinstance(spec, int):
        return ctx.index == _from_prompt_end(spec, ctx)
    if isinstance(spec, slice):
        return _window_mask(ctx.index, spec.start, spec.stop, ctx.prompt_lengths[:, None])
    if callable(spec):
        mask = spec(_ids(ctx))
        if not isinstance(mask, Tensor) or mask.shape != ctx.real.shape or mask.dtype != torch.bool:
            raise UserError("A function of positions must return a bool tensor of the shape of the token ids.")
        return mask
    return torch.stack([ctx.index == _from_prompt_end(position, ctx) for position in spec]).any(0)


def _term_mask(term: str, ctx: ForwardContext) -> Tensor:
    length = ctx.prompt_lengths[:, None]
    if window := _WINDOW.fullmatch(term):
        return _named_window(window, ctx)
    if _NUMBER.fullmatch(term):
        return ctx.index == _from_prompt_end(int(term), ctx)
    return {
        "all": lambda: ctx.real,
        "content": lambda: _content(ctx),
        "first": lambda: ctx.index == 0,
        "last": lambda: ctx.index == length - 1,
        "prompt": lambda: ctx.index < length,
        "generated": lambda: ctx.index >= length,
    }[term]()


def _content(ctx: ForwardContext) -> Tensor:
    """Real tokens without sinks; where the model has no tokenizer (or reads embeddings), all but the first."""
    mask = ctx.real & (ctx.index > 0)
    if ctx.template is None or ctx.input_ids is None:
        return mask
    return mask & ~ctx.template.mark(ctx.input_ids, ctx.real)


def _named_window(window: re.Match[str], ctx: ForwardContext) -> Tensor:
    region, low, colon, high = window.groups()
    length = ctx.prompt_lengths[:, None]
    start = int(low) if low else None
    stop = (int(high) if high else None) if colon else None
    if not colon:
        if start is None:
            raise UserError(f"{region}[] names no position: write {region}[0] or {region}[0:4].")
        stop = start + 1 if start != -1 else None
    if region == "generated":
        if (start or 0) < 0 or (stop or 0) < 0:
            raise UserError("generated[…] counts from the first new token: negative bounds have no meaning yet.")
        return _window_mask(ctx.index - length, start or 0, stop, length)
    return _window_mask(ctx.index, start, stop, length) & (ctx.index < length)


def _window_mask(index: Tensor, start: int | None, stop: int | None, length: Tensor) -> Tensor:
    mask = index >= 0
    if start is not None:
        mask = mask & (index >= (start if start >= 0 else length + start))
    if stop is not None:
        mask = mask & (index < (stop if stop >= 0 else length + stop))
    return mask


def _from_prompt_end(position: int, ctx: ForwardContext) -> Tensor | int:
    return position if position >= 0 else ctx.prompt_lengths[:, None] + position


def _row_mask(rows: tuple[bool, ...], ctx: ForwardContext) -> Tensor:
    needed = ctx.n_prompts
    if len(rows) != needed:
        raise UserError(
            f"The scope names {len(rows)} rows but the batch has {needed} prompts: give one entry per prompt."
        )
    return torch.tensor(rows, device=ctx.device)[ctx.rows]


def _ids(ctx: ForwardContext) -> Tensor:
    if ctx.input_ids is None:
        raise NotSupported("Positions by token id need token ids, but the model was given embeddings: pass input_ids.")
    return ctx.input_ids


def _terms(spec: str) -> tuple[list[str], list[str]]:
    wanted, *unwanted = (part.strip() for part in spec.split(" - "))
    return [term.strip() for term in wanted.split("+")], unwanted


def _plain(spec: PositionSpec) -> Any:
    if isinstance(spec, slice):
        return {"start": spec.start, "stop": spec.stop}
    if isinstance(spec, (str, int)):
        return spec
    if callable(spec):
        raise NotSupported("Positions given as a function cannot be saved: use words, numbers or token ids instead.")
    return list(spec)


def _parsed(data: Any) -> PositionSpec:
    return slice(data["start"], data["stop"]) if isinstance(data, dict) else data
