"""YAML as experiments are written in it: plain values only, ``on`` and ``off`` are words, no key twice."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from workbench.errors import UserError
from workbench.strict_json import BadJson, check_text

_INT = re.compile(r"[-+]?[0-9]+$")
_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$")


_BREAKS = frozenset("\x85\u2028\u2029")


_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")
_ALIASED = 10
"""How many times larger than the file's own nodes the values may become through aliases, beyond the first 10,000."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of booleans and numbers: ``off`` and ``1:30`` are words, ``1e-3`` a number, ``007`` refused."""


class _Dumper(yaml.SafeDumper):
    """Writes what :class:`_Loader` reads back as the same values."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Nothing is written as a reference to another place."""
        return True

    def analyze_scalar(self, scalar: str) -> Any:
        """Breaks that YAML would turn into spaces are escaped: PyYAML writes U+0085, U+2028 and U+2029 as they are."""
        analysis = super().analyze_scalar(scalar)
        if not _BREAKS.isdisjoint(scalar):
            analysis.allow_flow_plain = analysis.allow_block_plain = analysis.allow_single_quoted = (
                analysis.allow_block
            ) = False
        return analysis

    def write_double_quoted(self, text: str, split: bool = True) -> None:
        """The same signs as escapes."""
        unicode, self.allow_unicode = self.allow_unicode, self.allow_unicode and _BREAKS.isdisjoint(text)
        super().write_double_quoted(text, split)
        self.allow_unicode = unicode


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """PyYAML's own, with other booleans and floats."""
    resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    changed = {f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "timestamp")}
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items():
        resolvers[first] = [rule for rule in rules if rule[0] not in changed]
    _add(resolvers, "tag:yaml.org,2002:bool", re.compile(r"(true|True|false|False)$"), "tTfF")
    _add(resolvers, "tag:yaml.org,2002:int", _INT, "-+0123456789")
    _add(resolvers, "tag:yaml.org,2002:float", _FLOAT, "-+.0123456789")
    return resolvers


def _add(
    resolvers: dict[str, list[tuple[str, re.Pattern[str]]]], tag: str, pattern: re.Pattern[str], first: Iterable[str]
) -> None:
    for sign in first:
        resolvers.setdefault(sign, []).append((tag, pattern))  # after int, so that 3 stays a whole number


_Loader.yaml_implicit_resolvers = _resolvers()
_Dumper.yaml_implicit_resolvers = _resolvers()


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool):
            raise ConstructorError(None, None, f"{key!r} is no plain key", key_node.start_mark)
        if key in mapping:
            raise ConstructorError(None, None, f"the key {key!r} stands here a second time", key_node.start_mark)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    digits = str(loader.construct_scalar(node))
    if not _INT.match(digits) or len(digits) > _DIGITS:
        raise ConstructorError(None, None, f"{digits[:20]!r} is no whole number of at most 300 digits", node.start_mark)
    if str(int(digits)) != digits:  # an answer or a label may be meant as it stands there
        raise ConstructorError(
            None, None, f"{digits!r} is {int(digits)} as a number: write that, or put it in quotes if it is text",
            node.start_mark,
        )  # fmt: skip
    return int(digits)


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    digits = str(loader.construct_scalar(node))
    number = float(digits) if _FLOAT.match(digits) else math.inf
    if not math.isfinite(number):
        raise ConstructorError(None, None, f"{digits[:20]!r} is no finite number", node.start_mark)
    return number


_DIGITS = 300
_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix("tag:yaml.org,2002:") in _PLAIN
}
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def _values(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        own: dict[int, int] = {}
        if _size(node, own, set()) > _ALIASED * len(own) + 10_000:
            raise ConstructorError(None, None, "its aliases (*name) repeat too much; write it out", node.start_mark)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int], above: set[int]) -> int:
    """How many values ``node`` becomes once every alias is followed; ``known``: of each node, counted once."""
    if id(node) in above:
        raise ConstructorError(None, None, "an alias (*name) stands inside of what it names", node.start_mark)
    if id(node) not in known:
        if isinstance(node, yaml.ScalarNode):
            try:
                check_text(node.value)
            except BadJson as error:
                raise ConstructorError(None, None, str(error), node.start_mark) from error
            below: list[yaml.Node] = []
        else:
            below = [child for entry in node.value for child in (entry if isinstance(entry, tuple) else (entry,))]
        inside = {*above, id(node)} if below else above
        known[id(node)] = 1 + sum(_size(child, known, inside) for child in below)
    return known[id(node)]


def read_yaml(text: str, name: str) -> Any:
    """The values in ``text``. Raises :class:`UserError` naming ``name``, the line and what is wrong."""
    try:
        return _values(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{name}{where} is not readable YAML: {reason}; correct it and try again.") from error
    except RecursionError as error:
        raise UserError(f"{name} is nested too deeply to be an experiment; write it flatter.") from error


def write_yaml(values: Any) -> str:
    """``values`` as YAML in their own order; :func:`read_yaml` gives them back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
