"""The command line. ``tunescope --help`` imports no model code; each verb pays for its own."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> None:
    """Run ``tunescope``. Exit codes: 0 ok, 1 failed, 2 wrong use, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.showwarning = _shown_warning
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code. A user's mistake prints one sentence, a bug its traceback."""
    import typer

    from tunescope.cli.app import Interrupted, app
    from tunescope.cli.output import plain
    from workbench.errors import UserError, full_gpu_told

    click = _click_errors()
    try:
        with full_gpu_told():
            result = app(arguments, standalone_mode=False)
    except UserError as error:
        sys.stderr.write(f"Error: {plain(str(error))}\n")
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except typer.Exit as stop:
        return stop.exit_code
    except (Interrupted, KeyboardInterrupt, typer.Abort) as error:
        sys.stderr.write(f"Interrupted. {plain(_kept(error))}\n")
        return 130
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()
            return 0
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        name = Path(str(error.filename or "")).name
        sys.stderr.write(f"Error: {plain(name[:60])}…: {error.strerror}; give another name.\n")
        return 1
    return result if isinstance(result, int) else 0


def _shown_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """What a stored file had wrong is a sentence; other warnings are as Python shows them."""
    from tunescope.cli.output import plain
    from workbench.files import DamagedWarning

    ours = issubclass(category, DamagedWarning)
    text = (
        f"Warning: {plain(str(message))}\n"
        if ours
        else warnings.formatwarning(message, category, filename, lineno, line)
    )
    (file or sys.stderr).write(text)


def _kept(error: BaseException) -> str:
    """What is kept and how to go on, as the run that was being written noted it on Ctrl-C."""
    notes = getattr(error.__cause__, "__notes__", ())
    return " ".join(notes) or "No run was being written; the same command begins again."


def _click_errors() -> Any:
    """Click's exceptions: recent Typer carries its own copy of click."""
    try:
        return import_module("typer._click.exceptions")
    except ImportError:
        return import_module("click.exceptions")
