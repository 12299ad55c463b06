"""A behaviour: anything that scores a text, under a name that metrics, commands and files share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import regex  # type: ignore[import-untyped]

from workbench.behaviour.linguistic import ATTRIBUTES
from workbench.behaviour.metrics import METRICS, TEXT
from workbench.behaviour.refusals import is_refusal
from workbench.behaviour.text_quality import language, readability, repeated_words, words_in
from workbench.errors import UserError, unknown_name
from workbench.method_index import index, load_method
from workbench.method_options import summary_of
from workbench.prompts.row import Prompt

if TYPE_CHECKING:
    from workbench.behaviour.fitted import StateClassifier

Score = Callable[[str, Prompt], float | bool]
"""``score(response, prompt)``: a number, or whether the text shows the behaviour."""
PREFIXES = ("begins", "contains", "regex")
READ = 4000
"""Signs of a text that a regular expression reads."""
SECONDS = 2.0
"""How long one text may keep a regular expression busy."""


@dataclass(frozen=True)
class Behaviour:
    """Something that a text shows more or less of. Make one with ``wb.behaviour(...)``.

    ``name`` is what tables, commands and files call it; ``share``: scores are 0 or 1, so a mean is a share of texts.
    ``states``: a classifier on the model's own states instead of a rule on the text.
    """

    name: str
    meaning: str
    score: Score = field(repr=False, compare=False)
    share: bool = True
    states: StateClassifier | None = field(default=None, repr=False, compare=False)

    def __call__(self, response: str, prompt: Prompt | str | None = None) -> float:
        """The score of one response; a plain text is taken as the prompt's text.

        Raises :class:`UserError` for a behaviour that reads states, and for a score that is no number.
        """
        if self.states is not None:
            raise UserError(
                f"{self.name} reads a model's states, not a text alone: use it as a metric of a comparison."
            )
        row = prompt if isinstance(prompt, Prompt) else Prompt(prompt=prompt or "")
        try:
            return float(self.score(response, row))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"The behaviour {self.name!r} gave no number for a text ({error}); return true, false or a number."
            ) from error


def in_words(name: str) -> str:
    """What a behaviour's name says to a person: ``contains:be`` is "texts that contain 'be'"; an unknown name and one
    that is no share stay as they are."""
    try:
        known = behaviour(name)
    except UserError:
        return name
    return known.meaning.removeprefix("share of ").partition(" (rule")[0] if known.share else name


def behaviour(what: str | Score | Behaviour, name: str | None = None, *, share: bool | None = None) -> Behaviour:
    """A behaviour by which texts are scored, in ``behaviour_diff``, in ``find_direction`` and wherever metrics go.

    Args:
        what: ``"begins:I am sorry"`` (case aside), ``"contains:dragon"`` (case aside, as whole words), ``"regex:..."``
            (searched in the first 4000 signs, two seconds at most), ``"refusal"``, ``"length"`` (words),
            ``"repetition"``, ``"readability"``, ``"language"`` or ``"language:de"``, an attribute that is counted
            (:mod:`workbench.behaviour.linguistic`: ``"punctuation"``, ``"pronouns"``, ...), or a function
            ``score(response, prompt)`` that gives a number or true or false; or the name that a plug-in
            registered.
        name: what tables call it; by default ``what`` itself, or the function's name.
        share: whether scores are 0 or 1; by default they are, but for functions annotated to return a number.

    Returns:
        A :class:`Behaviour`.

    Raises:
        UserError: for an unknown name, an empty pattern, and a regular expression that does not compile.

    Example:
        ``wb.behaviour_diff(pair, questions, metrics=[wb.behaviour("begins:I am sorry"), "refusal"])``
    """
    if isinstance(what, Behaviour):
        return what
    if callable(what):
        return _of_function(what, name, share)
    if not isinstance(what, str):
        raise UserError(
            f"A behaviour is a text such as 'contains:sorry' or a function of (response, prompt), not a "
            f"{type(what).__name__}."
        )
    kind, colon, pattern = what.partition(":")
    if colon and kind in PREFIXES:
        return _of_pattern(kind, pattern, name or what)
    if colon and kind == "language":
        return Behaviour(name or what, f"share of texts in the language {pattern!r}", _is_language(pattern))
    if what in _NAMED:
        made = _NAMED[what]
        return made if name is None else Behaviour(name, made.meaning, made.score, made.share)
    if what in _registered():
        score = load_method(what).call
        return Behaviour(name or what, summary_of(score).rstrip("."), score, _says_yes_or_no(score))
    raise unknown_name(
        "behaviour", what, [*_NAMED, *_registered(), *(f"{prefix}:..." for prefix in PREFIXES), "language:en"]
    )


def _registered() -> list[str]:
    """Scores of texts that a file registers: ``@method(NAME, group="texts", kind="behaviour", ...)`` on a function of
    (response, prompt)."""
    return [entry.name for entry in index().entries if (entry.kind, entry.group) == ("behaviour", "texts")]


def is_behaviour_text(text: str) -> bool:
    """Whether ``text`` names a behaviour rather than a metric."""
    kind, colon, _ = text.partition(":")
    return text in _NAMED or bool(colon and kind in (*PREFIXES, "language")) or text in _registered()


def read_metrics(metrics: Sequence[Any]) -> tuple[tuple[str, ...], dict[str, Behaviour]]:
    """Metrics and behaviours, mixed, as names without repeats and the behaviours among them by name.

    Raises :class:`UserError` for what is neither, and for two behaviours of one name.
    """
    if isinstance(metrics, str | Behaviour) or callable(metrics):
        metrics = [metrics]
    names: list[str] = []
    behaviours: dict[str, Behaviour] = {}
    for metric in metrics:
        if isinstance(metric, str) and metric in METRICS:
            names.append(metric)
            continue
        if isinstance(metric, str) and not is_behaviour_text(metric):
            raise unknown_name(
                "metric", metric, [*METRICS, *_NAMED, *_registered(), *(f"{kind}:..." for kind in PREFIXES)]
            )
        made = behaviour(metric)
        if made.name in METRICS and not (isinstance(metric, Behaviour) and made is _NAMED.get(made.name)):
            raise UserError(f"A behaviour is called {made.name!r}, as a metric is: give it a name of its own.")
        if made.name in behaviours and behaviours[made.name] != made:
            raise UserError(f"Two behaviours are called {made.name!r}: give each a name of its own.")
        names.append(made.name)
        if made.name not in METRICS:
            behaviours[made.name] = made
    return tuple(dict.fromkeys(names)), behaviours


def meaning_of(name: str) -> str:
    """What a metric or a behaviour measures, by its name."""
    if name in METRICS:
        return METRICS[name]
    return behaviour(name).meaning if is_behaviour_text(name) else "a score of your own"


def _of_function(score: Score, name: str | None, share: bool | None) -> Behaviour:
    named: str = name or str(getattr(score, "__name__", type(score).__name__))
    return Behaviour(named, "a score of your own", score, _says_yes_or_no(score) if share is None else share)


def _says_yes_or_no(score: Score) -> bool:
    return getattr(score, "__annotations__", {}).get("return") in (bool, "bool")


def _of_pattern(kind: str, pattern: str, name: str) -> Behaviour:
    wanted = pattern.strip() if kind != "regex" else pattern
    if not wanted:
        raise UserError(f"{kind}: names no text: write it behind the colon, as in {kind}:sorry.")
    if kind == "begins":
        opening = _folded(wanted)
        return Behaviour(name, f"share of texts that begin with {wanted!r}", lambda text, _: _begins(text, opening))
    if kind == "contains":
        words = re.compile(rf"(?<!\w){re.escape(_folded(wanted))}(?!\w)")
        meaning = f"share of texts that contain {wanted!r}"
        return Behaviour(name, meaning, lambda text, _: words.search(_folded(text)) is not None)
    try:
        compiled = regex.compile(wanted)
    except regex.error as error:
        raise UserError(f"{wanted!r} is no regular expression ({error}): correct it, or use contains:.") from error
    meaning = f"share of texts in which the regular expression {wanted!r} is found"
    return Behaviour(name, meaning, lambda text, _: _searched(compiled, text))


def _folded(text: str) -> str:
    return " ".join(text.replace("\u2019", "'").casefold().split())


def _begins(text: str, opening: str) -> bool:
    return re.match(rf"{re.escape(opening)}(?!\w)", _folded(text).lstrip(" \"'*>")) is not None


def _searched(pattern: Any, text: str) -> bool:
    """Whether ``pattern`` is found; a pattern that backtracks without end is given up with a sentence."""
    try:
        return pattern.search(text[:READ], timeout=SECONDS) is not None
    except TimeoutError as error:
        raise UserError(
            f"The regular expression {pattern.pattern!r} took longer than {SECONDS:g} s on one text: write it without "
            "nested repeats, or use contains:."
        ) from error


def _is_language(code: str) -> Score:
    return lambda text, _: language(text) == code.strip().casefold()


_NAMED: dict[str, Behaviour] = {
    "refusal": Behaviour("refusal", TEXT["refusal"], is_refusal),
    "length": Behaviour("length", "words of a text", lambda text, _: float(len(words_in(text))), share=False),
    "repetition": Behaviour("repetition", TEXT["repetition"], lambda text, _: repeated_words(text), share=False),
    "readability": Behaviour(
        "readability", "Flesch reading ease of a text (100 easy, 0 hard; English)", lambda text, _: readability(text),
        share=False,
    ),
    "language": Behaviour(
        "language", "share of texts in the prompt's own language",
        lambda text, row: language(text) == language(str(row)),
    ),
}  # fmt: skip
_NAMED |= {
    name: Behaviour(name, meaning, lambda text, _, count=count: count(text), share=False)  # type: ignore[misc]
    for name, (meaning, count) in ATTRIBUTES.items()
}
