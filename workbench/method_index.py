"""Which methods there are, told from source files without importing them, so that lists cost no torch.

A method is found where a source file of our packages (or of a plug-in's module, entry point ``tunescope.methods``)
decorates a function with ``@method("name", group=..., question=...)`` in plain text.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench.errors import UserError, unknown_name
from workbench.methods import VERBS, Kind, Method, Needs, registered

PACKAGES = ("probes", "interventions", "workbench")
ENTRY_POINTS = "tunescope.methods"


@dataclass(frozen=True)
class Entry:
    """A method as its decorator says it."""

    name: str
    kind: str
    group: str
    question: str
    module: str
    function: str
    gives: tuple[str, ...] = ()
    needs: Needs = field(default_factory=Needs)
    """What it cannot do without, as far as the decorator says it in plain values."""
    parameters: tuple[str, ...] = ()
    """Names of the function's parameters before the keyword-only ones."""
    plugin: str = ""
    """The entry point that brought it; empty for ours."""

    @property
    def command(self) -> str:
        """How commands and steps call it."""
        return f"{VERBS[self.kind]} {self.name}"


@dataclass(frozen=True)
class Index:
    """All methods, and what is wrong with plug-ins that could not be read."""

    entries: tuple[Entry, ...]
    broken: Mapping[str, str] = field(default_factory=dict)
    """Entry point -> the reason."""

    def named(self, name: str) -> Entry | None:
        """The method called ``name``."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def called(self, do: str) -> Entry | None:
        """The method that a step names: ``train NAME``, ``localize NAME``, ...; a probe by its name alone too."""
        verb, _, name = do.rpartition(" ")
        entry = self.named(name)
        return entry if entry is not None and VERBS.get(entry.kind) == (verb or VERBS["probe"]) else None

    def giving(self, what: str) -> tuple[str, ...]:
        """The methods from whose results recipes can take ``what``."""
        return tuple(entry.name for entry in self.entries if what in entry.gives)

    def functions(self, package: str) -> dict[str, str]:
        """Public function -> its module, of the methods of a package."""
        return {entry.function: entry.module for entry in self.entries if entry.module.split(".")[0] == package}


@cache
def index() -> Index:
    """The methods of our packages, then those of plug-ins; a native name cannot be taken by a plug-in."""
    entries = [entry for package in PACKAGES for entry in _of_package(package)]
    broken: dict[str, str] = {}
    taken = {entry.name: "Tunescope itself" for entry in entries}
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name):
        try:
            brought = _of_plugin(point)
        except (ImportError, OSError, SyntaxError, ValueError) as error:
            broken[point.name] = f"{type(error).__name__}: {error}"
            continue
        for entry in brought:
            if entry.name in taken:
                broken[point.name] = f"its method {entry.name!r} is already one of {taken[entry.name]}"
            else:
                taken[entry.name] = f"the plug-in {point.name!r}"
                entries.append(entry)
    return Index(tuple(entries), broken)


def load_method(name: str) -> Method:
    """The method called ``name``, its module imported.

    Raises:
        UserError: There is no such method (with the closest name), or its plug-in cannot be imported.
    """
    entry = index().named(name)
    if entry is None:
        raise unknown_name("method", name, [entry.name for entry in index().entries])
    if registered(name) is None:
        try:
            import_module(entry.module)
        except Exception as error:
            if not entry.plugin:
                raise
            raise UserError(
                f"The plug-in {entry.plugin!r}, which brings the method {name!r}, cannot be imported "
                f"({type(error).__name__}: {error}); mend or uninstall it."
            ) from error
    method = registered(name)
    if method is None:
        raise UserError(f"{entry.module} says that it defines the method {name!r}, but does not register it.")
    return method


def _of_plugin(point: EntryPoint) -> list[Entry]:
    spec = find_spec(point.module)
    if spec is None or spec.origin is None:
        raise ImportError(f"there is no module {point.module}")
    path = Path(spec.origin)
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    return [
        entry
        for file in files
        for entry in _of_file(file, _module_name(point.module, path, file), plugin=point.name)
    ]  # fmt: skip


def _module_name(module: str, origin: Path, file: Path) -> str:
    if file == origin:
        return module
    inside = file.relative_to(origin.parent).with_suffix("")
    parts = [part for part in inside.parts if part != "__init__"]
    return ".".join([module, *parts])


def _of_package(package: str) -> list[Entry]:
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    home = Path(spec.origin).parent
    return [
        entry
        for file in sorted(home.rglob("*.py"))
        for entry in _of_file(file, ".".join([package, *_inside(file, home)]))
    ]


def _inside(file: Path, home: Path) -> list[str]:
    return [part for part in file.relative_to(home).with_suffix("").parts if part != "__init__"]


def _of_file(file: Path, module: str, plugin: str = "") -> Iterator[Entry]:
    text = file.read_text(encoding="utf-8")
    if "@method(" not in text:
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "method":
                    yield _entry(decorator, module, node, plugin)


_PLAIN = ("name", "kind", "group", "question", "gives")


def _entry(call: ast.Call, module: str, node: ast.FunctionDef | ast.ClassDef, plugin: str) -> Entry:
    keywords = {word.arg: word.value for word in call.keywords if word.arg in _PLAIN}
    if call.args:
        keywords["name"] = call.args[0]
    values: dict[str, Any] = {str(key): ast.literal_eval(value) for key, value in keywords.items()}
    parameters = tuple(argument.arg for argument in node.args.args) if isinstance(node, ast.FunctionDef) else ()
    return Entry(
        **{"kind": "probe", **values}, module=module, function=node.name, needs=_needs(call), parameters=parameters,
        plugin=plugin,
    )  # fmt: skip


def _needs(call: ast.Call) -> Needs:
    """What is written there in plain values; what is computed is known once the method is imported."""
    written = next((word.value for word in call.keywords if word.arg == "needs"), None)
    if not isinstance(written, ast.Call):
        return Needs()
    try:
        return Needs(**{str(word.arg): ast.literal_eval(word.value) for word in written.keywords})
    except (ValueError, TypeError):
        return Needs()


def all_methods(kind: Kind | None = None) -> list[Method]:
    """Every method of ours and of installed plug-ins, by group and name; imports them all."""
    listed = [load_method(entry.name) for entry in index().entries if kind in (None, entry.kind)]
    return sorted(listed, key=lambda entry: (entry.kind, entry.group, entry.name))
