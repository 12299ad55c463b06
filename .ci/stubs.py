"""Writes ``__init__.pyi`` of the public packages, whose names are imported on first use, for type checkers and editors.

``python .ci/stubs.py`` writes them; ``--check`` writes nothing and exits 1 where one is out of date. A function that
reads ``**options: Any`` into a dataclass stands there with the dataclass's fields as keywords, and a probe with the
``limit`` that its registration gives it.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("workbench", "probes", "interventions")
HEAD = "# Written by .ci/stubs.py (make stubs) from the package's table of lazy names; do not edit.\n"
FACADE = """
import interventions as interventions
import probes as probes
from workbench import __version__ as __version__
"""
WIDTH = 120
DOC = '"' * 3


class Imports:
    """The import lines of a stub; a name that two modules use for two things gets an alias."""

    def __init__(self, taken: set[str], exported: dict[str, tuple[str, str]]) -> None:
        self.lines = {f"from {home} import {attribute} as {name}" for name, (home, attribute) in exported.items()}
        self._origins = dict(exported)
        self._taken = taken

    def name_for(self, module: str, attribute: str) -> str:
        """The name under which ``module.attribute`` is imported."""
        module, attribute = defined_in(module, attribute)
        for name, origin in self._origins.items():
            if origin == (module, attribute):
                return name
        name = attribute
        while name in self._taken or name in self._origins:
            name = f"_{name}"
        self._origins[name] = (module, attribute)
        if module == attribute:
            self.lines.add(f"import {module}" if name == module else f"import {module} as {name}")
        else:
            self.lines.add(f"from {module} import {attribute}" + ("" if name == attribute else f" as {name}"))
        return name


class Renamed(ast.NodeTransformer):
    """An annotation of one module, with the names that the stub has for them."""

    def __init__(self, module: ModuleType, imports: Imports) -> None:
        self.module, self.imports = module, imports
        self.origins = dict(_origins(module))

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """A global of the module becomes an import; a builtin stays."""
        if node.id in self.origins:
            return ast.Name(self.imports.name_for(*self.origins[node.id]))
        if node.id in vars(self.module):
            return ast.Name(self.imports.name_for(self.module.__name__, node.id))
        return node

    def text(self, annotation: ast.expr | str | None) -> str:
        """Source of the annotation for the stub."""
        if annotation is None:
            return "Any"
        tree = ast.parse(annotation, mode="eval").body if isinstance(annotation, str) else annotation
        return ast.unparse(self.visit(tree))


def defined_in(module: str, attribute: str) -> tuple[str, str]:
    """Where a class or function is defined: the package that offers it may itself be lazy."""
    value = getattr(importlib.import_module(module), attribute, None)
    if module != attribute and (inspect.isclass(value) or inspect.isfunction(value)):
        return value.__module__, value.__name__
    return module, attribute


def _origins(module: ModuleType) -> Iterator[tuple[str, tuple[str, str]]]:
    """Name -> (module, attribute) of everything that ``module`` imports, under TYPE_CHECKING too."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((item.asname or item.name, (node.module, item.name)) for item in node.names)
        if isinstance(node, ast.Import):
            yield from ((item.asname or item.name, (item.name, item.name)) for item in node.names)


def _tree(module: ModuleType) -> ast.Module:
    return ast.parse(inspect.getsource(module))


def _definition(owner: Any) -> Any:
    return ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]


@dataclasses.dataclass(frozen=True)
class Option:
    """A keyword of a function."""

    name: str
    kind: str
    default: str | None

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}" + ("" if self.default is None else f" = {self.default}")


def options_class(function: FunctionType) -> tuple[type, set[str]] | None:
    """The dataclass that ``**options`` of a function are read into, and the fields that the function sets itself."""
    for node in ast.walk(_definition(function)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "read_options":
            kind, annotation = node.args
            assert isinstance(kind, ast.Name)
            keys = annotation.keys if isinstance(annotation, ast.Dict) else []
            own = {key.value for key in keys if isinstance(key, ast.Constant)}
            return function.__globals__[kind.id], own
    return None


def _fields(kind: type, imports: Imports) -> Iterator[Option]:
    """The fields of a dataclass as keywords, with their types as the class that declares them writes them."""
    for field in dataclasses.fields(kind):
        owner = next(base for base in kind.__mro__ if field.name in vars(base).get("__annotations__", {}))
        declared = next(
            node for node in _definition(owner).body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == field.name
        )  # fmt: skip
        renamed = Renamed(importlib.import_module(owner.__module__), imports)
        yield Option(field.name, renamed.text(declared.annotation), _default(declared.value))


def _default(value: ast.expr | None) -> str | None:
    """A plain value as it is written; anything else as three dots."""
    if value is None:
        return None
    try:
        return repr(ast.literal_eval(value))
    except ValueError:
        return "..."


def signature(name: str, function: FunctionType, imports: Imports, *, limited: bool) -> str:
    """The function with every option spelt out; ``limited``: the limit of its prompts among them."""
    parameters: ast.arguments = _definition(function).args
    renamed = Renamed(importlib.import_module(function.__module__), imports)
    before = len(parameters.args) - len(parameters.defaults)
    plain = [
        Option(
            item.arg, renamed.text(item.annotation), None if at < before else _default(parameters.defaults[at - before])
        )
        for at, item in enumerate(parameters.args)
    ]
    named = [
        Option(item.arg, renamed.text(item.annotation), _default(default))
        for item, default in zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True)
    ]
    doc = inspect.cleandoc(function.__doc__ or "").split("\n\n")[0]
    if (options := options_class(function)) is not None:
        kind, own = options
        taken = {item.name for item in (*plain, *named)} | own
        named += [item for item in _fields(kind, imports) if item.name not in taken]
        doc += f"\n\nOptions: :class:`{kind.__module__}.{kind.__name__}`.\n"
    else:
        doc = textwrap.fill(" ".join(doc.split()), WIDTH - len(4 * " " + 2 * DOC))
    named += [Option("limit", "int | None", "None")] if limited else []
    arguments = "".join(f"    {item},\n" for item in (*plain, *(["*"] if named else []), *named))
    body = textwrap.indent(f"{DOC}{doc}{DOC}", "    ")
    returned = renamed.text(_definition(function).returns)
    return f"def {name}(\n{arguments}) -> {returned}:\n{body}\n"


def stub(package: str) -> str:
    """The text of a package's stub."""
    from workbench.method_index import index
    from workbench.prompt_limit import takes_limit

    module = importlib.import_module(package)
    table: dict[str, str] = vars(module).get("_HOMES") or vars(module)["_HOME"]
    registered = index().functions(package).items()
    homes = {**{name: home.removeprefix(f"{package}.") for name, home in registered}, **table}
    origins, spelt = {}, {}
    for name in sorted(homes):
        public = getattr(module, name)
        value, limited = inspect.unwrap(public), takes_limit(public)
        if inspect.isfunction(value) and (limited or options_class(value) is not None):
            spelt[name] = value, limited
            continue
        home, _, attribute = homes[name].partition(":")
        origins[name] = defined_in(f"{package}.{home}", attribute or name)
    imports = Imports(set(homes), origins)
    functions = [signature(name, value, imports, limited=limited) for name, (value, limited) in spelt.items()]
    version = "__version__: str\n" if hasattr(module, "__version__") else ""
    lines = [*sorted(imports.lines), version, listed(sorted(homes)), *functions]
    return HEAD + "\n" + "\n".join(lines)


def facade() -> str:
    """The stub of ``tunescope``: what workbench offers, and two packages."""
    names: list[str] = importlib.import_module("workbench").__all__
    lines = [f"from workbench import {name} as {name}" for name in names]
    return HEAD + FACADE + "\n".join(lines) + "\n\n" + listed(sorted(importlib.import_module("tunescope").__all__))


def listed(names: list[str]) -> str:
    """``__all__``."""
    return "__all__ = [\n" + "".join(f'    "{name}",\n' for name in names) + "]\n"


def formatted(text: str) -> str:
    """``text`` as ruff writes it, so that the linter never changes a stub."""
    import subprocess

    name = ["--stdin-filename", str(ROOT / "probes/__init__.pyi"), "-"]
    for command in (["check", "--select", "I", "--fix-only", "--quiet", *name], ["format", "--quiet", *name]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command], input=text, capture_output=True, text=True, check=True, cwd=ROOT
        )
        text = done.stdout
    return text


def main() -> int:
    """Write, or with ``--check`` compare."""
    sys.path.insert(0, str(ROOT))
    texts = {name: stub(name) for name in PACKAGES} | {"tunescope": facade()}
    stale = []
    for name, text in texts.items():
        path, new = ROOT / name / "__init__.pyi", formatted(text)
        if path.exists() and path.read_text(encoding="utf-8") == new:
            continue
        stale.append(str(path.relative_to(ROOT)))
        if "--check" not in sys.argv:
            path.write_text(new, encoding="utf-8")
    if stale and "--check" in sys.argv:
        sys.stderr.write(f"Out of date: {', '.join(stale)}; run  make stubs.\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
