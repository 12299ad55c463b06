"""Gathers the pages of the site in ``build/docs``: what is written in the repository, and what the code says of itself.

Written: ``docs/``, the README, the benchmarks. Made: the tutorials (``examples/*.py``), the reference of the four
packages, the command line from its own ``--help``, and a page per registered method.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "docs"
PACKAGES = ("workbench", "probes", "interventions", "tunescope")
LINKS = {"docs/": "", "examples/README.md": "tutorials/index.md", "examples/": "tutorials/"}
"""How links of files at the root read on the site."""


def write(name: str, text: str) -> None:
    """A page of the site."""
    path = OUT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def written_pages() -> None:
    """Pages and pictures as they are in the repository; the README is the front page."""
    for path in (*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").glob("*.png")):
        target = OUT / path.relative_to(ROOT / "docs")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for name in (
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "benchmarks/RESULTS.md",
        "benchmarks/localization.md",
        "benchmarks/audit.md",
        "benchmarks/outside.md",
    ):
        write(name, (ROOT / name).read_text(encoding="utf-8"))
    write("index.md", _site_links((ROOT / "README.md").read_text(encoding="utf-8")))


def rooms() -> None:
    """The picture of the rooms, from the imports."""
    from docs.rooms import rooms_svg

    write("rooms.svg", rooms_svg())


def _site_links(text: str) -> str:
    for before, after in LINKS.items():
        text = text.replace(f"]({before}", f"]({after}")
    return text


def tutorials() -> None:
    """The notebooks of ``examples/`` as pages; the tests run them."""
    import jupytext

    for path in sorted((ROOT / "examples").glob("*.py")):
        text = jupytext.writes(jupytext.read(path), fmt="md")
        write(f"tutorials/{path.stem}.md", re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL).lstrip())
    index = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    write("tutorials/index.md", re.sub(r"`(\w+)\.py` \|", r"[`\1.py`](\1.md) |", index))


def reference() -> None:
    """A page per package: every public name, with the options of those that take some."""
    stubs = runpy.run_path(str(ROOT / ".ci" / "stubs.py"))
    for package in PACKAGES:
        module = importlib.import_module(package)
        doc = inspect.cleandoc(module.__doc__ or "")
        lines = [f"# {package}", re.sub(r":\w+:`([^`]+)`", r"`\1`", doc)]
        if package == "tunescope":
            names = ", ".join(f"`{name}`" for name in module.__all__)
            write("reference/tunescope.md", "\n\n".join([*lines, f"Names: {names}.", *_shown("tunescope.experiments")]))
            continue
        homes = vars(module).get("_HOMES") or vars(module)["_HOME"]
        for name in module.__all__:
            if name not in homes:
                continue  # a package that can be called is shown by its own functions
            home, _, attribute = homes[name].partition(":")
            place = stubs["defined_in"](f"{package}.{home}", attribute or name)
            lines += [f"::: {'.'.join(place)}", *_options(getattr(module, name), stubs)]
        write(f"reference/{package}.md", "\n\n".join(lines) + "\n")


def _shown(package: str) -> list[str]:
    names = importlib.import_module(package).__all__
    homes = {name: getattr(importlib.import_module(package), name) for name in names}
    return [
        f"::: {public.__module__}.{public.__name__}"
        for public in homes.values()
        if inspect.isclass(public) or callable(public)
    ]


def _options(value: Any, stubs: dict[str, Any]) -> list[str]:
    options = stubs["options_class"](inspect.unwrap(value)) if inspect.isfunction(value) else None
    if options is None:
        return []
    kind = options[0]
    return [f"::: {kind.__module__}.{kind.__name__}\n    options:\n      heading_level: 3"]


def command_line() -> None:
    """Every verb's ``--help``."""
    os.environ |= {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    import typer.main
    from typer.testing import CliRunner

    from tunescope.cli.app import app

    parts = ["# Command line", "Every verb as it explains itself. `--json` gives JSON alone on stdout; exit codes: "
             "0 done, 1 refused or failed, 2 wrong use, 130 stopped by Ctrl-C."]  # fmt: skip
    for path in _verbs(typer.main.get_command(app)):
        shown = CliRunner().invoke(app, [*path, "--help"], prog_name="tunescope").stdout
        text = "\n".join(line.rstrip() for line in shown.strip("\n").splitlines())
        parts.append(f"## tunescope {' '.join(path)}\n\n```text\n{text}\n```")
    write("cli.md", "\n\n".join(parts) + "\n")


def _verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, verb in sorted(getattr(command, "commands", {}).items()):
        if verb.hidden:
            continue
        if hasattr(verb, "commands"):
            yield from _verbs(verb, (*path, name))
        else:
            yield (*path, name)


def methods() -> None:
    """A page per registered method, by the question it answers; without the registry, the packages' own summaries."""
    if importlib.util.find_spec("workbench.methods") is None:
        write("methods/index.md", "\n\n".join(["# Methods", *_summaries()]) + "\n")
        return
    known = list(importlib.import_module("workbench.method_index").all_methods())
    groups = dict.fromkeys(method.group for method in known)
    parts = ["# Methods", "By what they look at. Every number comes with its control and a 95 % interval."]
    for group in groups:
        parts.append(f"## {group[:1].upper()}{group[1:]}")
        parts.append("| question | method |\n|---|---|\n" + "\n".join(
            f"| {method.question} | [{method.name}]({_file(method)}) |" for method in known if method.group == group
        ))  # fmt: skip
    write("methods/index.md", "\n\n".join(parts) + "\n")
    for method in known:
        write(f"methods/{_file(method)}", _method_page(method))


def _file(method: Any) -> str:
    return re.sub(r"\W+", "_", f"{method.kind}_{method.name}".lower()).strip("_") + ".md"


def _method_page(method: Any) -> str:
    lines = [f"# {method.name}", f"**{method.question}**", f"A {method.kind}, about {method.group}."]
    if method.papers:
        lines.append("After: " + "; ".join(f"*{title}*" for title in method.papers) + ".")
    if needs := _needs(method.needs):
        lines.append(f"Needs {needs}.")
    if getattr(method, "cost", ""):
        lines.append(f"Costs {method.cost}.")
    if getattr(method, "caution", ""):
        lines.append(f"**What `q` is no evidence of.** {method.caution}")
    if method.kind != "intervention" and "tunescope.cli.app" in sys.modules and getattr(method, "example", ""):
        example_of = importlib.import_module("tunescope.cli.method_command").example_of
        lines.append(f"```\n{example_of(method)}\n```")
    if method.options:
        cells = [[f"`{option.name}`", f"`{_cell(getattr(option, 'default', ''))}`", _cell(getattr(option, "help", ""))]
                 for option in method.options]  # fmt: skip
        rows = [f"| {' | '.join(row)} |" for row in cells]
        lines += ["## Options", "| option | default | meaning |\n|---|---|---|\n" + "\n".join(rows)]
    call = inspect.unwrap(method.call)
    if tests := _tests_of(method.function):
        lines.append("## Tests\n\nIts known answers, its null and its errors: " + ", ".join(tests) + ".")
    return "\n\n".join([*lines, "## Reference", f"::: {call.__module__}.{call.__qualname__}"]) + "\n"


def _needs(needs: Any) -> str:
    """What the method cannot do without, in words."""
    columns = [f"the column `{name}`" for name in needs.columns]
    columns += [f"the column `{name}` where {when}" for name, when in needs.wants.items()]
    kinds = {"experts": "a mixture of experts", "adapter": "a PEFT adapter as the tuned model"}
    return ", ".join([*columns, *(words for flag, words in kinds.items() if getattr(needs, flag))])


@cache
def _test_texts() -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py"))}


def _tests_of(function: str) -> list[str]:
    """The test files that call a method most."""
    call = re.compile(rf"\b{function}\(")
    counts = {name: len(call.findall(text)) for name, text in _test_texts().items()}
    most = sorted((name for name, count in counts.items() if count), key=lambda name: -counts[name])
    return [f"`{name}`" for name in most[:3]]


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _summaries() -> Iterator[str]:
    for package in ("probes", "interventions"):
        module = importlib.import_module(package)
        rows = [(name, inspect.getdoc(getattr(module, name)) or "") for name in module.__all__]
        listed = "\n".join(f"| `{name}` | {_plain(doc)} |" for name, doc in rows)
        yield f"## {package}\n\n| name | what it does |\n|---|---|\n{listed}"


def _plain(doc: str) -> str:
    return _cell(re.sub(r":\w+:`([^`]+)`", r"`\1`", doc.split("\n\n")[0])).replace("][", "]\\[")


def main() -> None:
    """Everything anew."""
    sys.path.insert(0, str(ROOT))
    shutil.rmtree(OUT, ignore_errors=True)
    for step in (written_pages, rooms, tutorials, reference, command_line, methods):
        step()


if __name__ == "__main__":
    main()
