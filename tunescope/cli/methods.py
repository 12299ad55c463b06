"""``tunescope methods``: every method, the question that it answers, what it needs and costs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.methods import Kind, Method


def methods(
    kind: Annotated[str | None, typer.Option(help="probe, intervention, behaviour or training; default: all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")] = False,
) -> None:
    """List the methods: question, needs, cost and papers; those of plug-ins too.

    Example, offline:  tunescope methods --kind probe
    """
    from typing import get_args

    from tunescope.cli.output import emit
    from workbench.method_index import all_methods, index

    if kind is not None and kind not in get_args(Kind):
        raise typer.BadParameter(f"{kind!r} is none of {', '.join(get_args(Kind))}.", param_hint="--kind")
    rows = [row_of(method) for method in all_methods(kind)]  # type: ignore[arg-type]
    for point, reason in index().broken.items():
        typer.echo(f"The plug-in {point!r} is left out: {reason}.", err=True)
    if as_json:
        emit(rows, as_json=True)
        return
    columns = ("name", "kind", "question", "needs", "cost")
    shown = [{name: ", ".join(row[name]) if name == "needs" else row[name] for name in columns} for row in rows]
    emit(None, False, shown, title=f"{len(rows)} methods")


def row_of(method: Method) -> dict[str, Any]:
    """A method as plain values."""
    return {
        "name": method.name, "kind": method.kind, "group": method.group, "question": method.question,
        "needs": needs_of(method), "cost": method.cost, "caution": method.caution,
        "papers": list(method.papers),
        "python": f"{method.module}.{method.function}",
        "options": [
            {"name": option.name, "kind": option.kind, "default": _plain(option.default), "help": option.help}
            for option in method.options
        ],
    }  # fmt: skip


def needs_of(method: Method) -> list[str]:
    """What it cannot do without, in words."""
    named = {"recording": "activations of both models", "prompts": "prompts"}
    needs = [words for role, words in named.items() if role in method.arguments]
    needs += [f"column {column}" for column in method.needs.columns]
    needs += ["a mixture of experts"] if method.needs.experts else []
    return needs + (["an adapter"] if method.needs.adapter else [])


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
