"""``tunescope localize``, ``train`` and ``measure``: one verb per registered method, made from its registration; each
writes a run."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup


class _Methods(TyperGroup):
    """Lists the methods of a kind from their sources, and imports one when it is called or its help is asked for."""

    kind = "probe"

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 (click's signature)
        from workbench.method_index import index

        return sorted(entry.name for entry in index().entries if entry.kind == self.kind)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.list_commands(ctx):
            return None
        return _listed(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            _check_first(ctx, str(name), rest)
        return name, command_named(str(name)) if command is not None else command, rest


def _check_first(ctx: Any, name: str, arguments: list[str]) -> None:
    from tunescope.cli.first_checks import check_first, missing_option
    from workbench.method_index import index

    entry = index().named(name)
    assert entry is not None
    if (missing := missing_option(entry, arguments)) is not None:
        ctx.fail(f"Missing option '{missing}' of {entry.command}.")
    check_first(entry, arguments)


class _Trainings(_Methods):
    kind = "training"


class _Behaviours(_Methods):
    kind = "behaviour"


def _listed(name: str) -> Any:
    """The line of a method in the list of verbs; nothing of it is imported."""
    from typer.core import TyperCommand

    from workbench.method_index import index

    entry = index().named(name)
    assert entry is not None
    return TyperCommand(name, help=entry.question, rich_help_panel=entry.group.capitalize())


def command_named(name: str) -> Any:
    """The command of a method, which is imported for it."""
    from tunescope.cli.method_command import command_of
    from workbench.method_index import load_method

    return command_of(load_method(name))


def _group(kind: type[_Methods], words: str) -> typer.Typer:
    made = typer.Typer(cls=kind, no_args_is_help=True, help=words)

    @made.callback(help=words)
    def _any() -> None:
        """What comes before each verb: nothing."""

    return made


app = _group(_Methods, "Find where the change lives. Each verb writes a run.")
train = _group(_Trainings, "Train a model as a paper proposes. Each verb writes a run; what it made is in trained/.")
measure = _group(_Behaviours, "Compare what base, tuned and steered models do. Each verb writes a run.")
