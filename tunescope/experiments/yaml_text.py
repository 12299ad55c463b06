"""YAML as experiments are written in it: plain values only, ``on`` and ``off`` are words, no key twice."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from workbench.errors import UserError

_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$")


_BREAKS = frozenset("\x85\u2028\u2029")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of booleans and numbers: ``off`` is a word, ``1e-3`` a number."""


class _Dumper(yaml.SafeDumper):
    """Writes what :class:`_Loader` reads back as the same values."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Nothing is written as a reference to another place."""
        return True

    def analyze_scalar(self, scalar: str) -> Any:
        """Breaks that YAML would turn into spaces are escaped: PyYAML writes U+0085, U+2028 and U+2029 as they are."""
        found = super().analyze_scalar(scalar)
        if not _BREAKS.isdisjoint(scalar):
            found.allow_flow_plain = found.allow_block_plain = found.allow_single_quoted = found.allow_block = False
        return found

    def write_double_quoted(self, text: str, split: bool = True) -> None:
        """The same signs as escapes."""
        unicode, self.allow_unicode = self.allow_unicode, self.allow_unicode and _BREAKS.isdisjoint(text)
        super().write_double_quoted(text, split)
        self.allow_unicode = unicode


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """PyYAML's own, with other booleans and floats."""
    kept: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    changed = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"}
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items():
        kept[first] = [rule for rule in rules if rule[0] not in changed]
    _add(kept, "tag:yaml.org,2002:bool", re.compile(r"(true|True|false|False)$"), "tTfF")
    _add(kept, "tag:yaml.org,2002:float", _FLOAT, "-+.0123456789")
    return kept


def _add(
    kept: dict[str, list[tuple[str, re.Pattern[str]]]], tag: str, pattern: re.Pattern[str], first: Iterable[str]
) -> None:
    for sign in first:
        kept.setdefault(sign, []).append((tag, pattern))  # after int, so that 3 stays a whole number


_Loader.yaml_implicit_resolvers = _resolvers()
_Dumper.yaml_implicit_resolvers = _resolvers()


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool):
            raise ConstructorError(None, None, f"{key!r} is no plain key", key_node.start_mark)
        if key in found:
            raise ConstructorError(None, None, f"the key {key!r} stands here a second time", key_node.start_mark)
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_yaml(text: str, name: str) -> Any:
    """The values in ``text``. Raises :class:`UserError` naming ``name``, the line and what is wrong."""
    try:
        return yaml.load(text, _Loader)
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
