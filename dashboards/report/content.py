"""What a report shows, read from a run's folder and checked before a line of HTML is written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import plotly.io
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from workbench.errors import UserError
from workbench.runs import Run
from workbench.runs import open as open_run
from workbench.runs.manifest import Manifest, hash_file

SECTIONS = "sections.json"


class _Section(BaseModel):
    """One entry of ``sections.json``."""

    model_config = ConfigDict(extra="forbid")

    title: str
    text: str = ""
    tables: list[str] = []
    figures: list[str] = []


@dataclass(frozen=True)
class Section:
    """A chapter of the report: paragraphs, then tables, then figures, each under its name."""

    title: str
    paragraphs: tuple[str, ...] = ()
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, go.Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Content:
    """A run as a report shows it."""

    name: str
    manifest: Manifest
    sections: tuple[Section, ...]


def read_content(folder: str | Path) -> Content:
    """Everything the report of a run shows.

    Without ``sections.json`` it is the run's own tables. Raises :class:`UserError` for what is no run, a damaged or
    newer one, files that changed after the run ended, and names that lead out of its folder.
    """
    run = open_run(folder)
    described = _sections(run) if run.file(SECTIONS).is_file() else _own_tables(run)
    sections = tuple(
        Section(
            title=section.title,
            paragraphs=tuple(part.strip() for part in section.text.split("\n\n") if part.strip()),
            tables={name: _table(run, name) for name in section.tables},
            figures={name: _figure(run, name) for name in section.figures},
        )
        for section in described
    )
    return Content(run.path.resolve().name, run.manifest, sections)


def _sections(run: Run) -> list[_Section]:
    path = _unchanged(run, SECTIONS)
    try:
        return TypeAdapter(list[_Section]).validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "its top level"
        raise UserError(
            f"{path} is no list of sections ({where}: {first['msg']}); run the command that made the run again."
        ) from error


def _own_tables(run: Run) -> list[_Section]:
    tables = sorted(path.stem for path in (*run.path.glob("*.parquet"), *run.file("tables").glob("*.parquet")))
    drawn = sorted(path.stem for path in run.file("figures").glob("*.json"))
    if not tables:
        raise UserError(
            f"{run.path} holds neither {SECTIONS} nor a table, so there is nothing to report; "
            "make a run with  tunescope demo  or  tunescope record."
        )
    return [_Section(title=f"Tables of this {run.manifest.kind} run", tables=tables, figures=drawn)]


def _table(run: Run, name: str) -> pd.DataFrame:
    path = _unchanged(run, _place(run, (f"tables/{name}.parquet", f"{name}.parquet")))
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no readable table ({_short(error)}); run again into another folder.") from error


def _figure(run: Run, name: str) -> go.Figure:
    path = _unchanged(run, _place(run, (f"figures/{name}.json",)))
    try:
        return plotly.io.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no plotly figure ({_short(error)}); run again into another folder.") from error


def _place(run: Run, names: Iterable[str]) -> str:
    """The first of ``names`` that is there; the first of all where none is."""
    candidates = list(names)
    return next((name for name in candidates if run.file(name).is_file()), candidates[0])


def _unchanged(run: Run, name: str) -> Path:
    """The path of a file that is as it was when the run ended."""
    path = run.file(name)
    if not path.is_file():
        raise UserError(f"The run {run.path} has no {name}, which its report names; its state is {run.state}.")
    entry = run.manifest.files.get(name)
    if run.state in ("complete", "failed") and (entry is None or hash_file(path) != entry):
        raise UserError(
            f"{path} is not the file that the run ended with; see  tunescope runs verify {run.path}  and run again."
        )
    return path


def _short(error: Any) -> str:
    text = json.dumps(str(error).splitlines()[0] if str(error) else type(error).__name__)
    return text if len(text) <= 160 else text[:159] + "…"
