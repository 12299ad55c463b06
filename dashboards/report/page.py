"""HTML of a report. Every text that comes from the run is escaped; the browser is told to load nothing."""

from __future__ import annotations

import json
from html import escape

import pandas as pd

from dashboards.model_names import short
from dashboards.report.content import Content, Section
from dashboards.report.figures import drawing_script, figure_html
from workbench.glossary import meanings
from workbench.tables import with_intervals

ROWS = 30
"""Longer tables are cut, and say so."""
COLUMNS = 11
"""Further columns are left to the run's own tables."""
TEXT = 2
"""Spaces of the mean cell of a column of whole texts."""
WORD = 40
"""Longer words are broken."""
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)
"""Nothing is fetched, whatever a figure asks for."""
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #1b1b1b; }
body { margin: 0 auto; max-width: 1060px; padding: 2rem 1.25rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; color: #444; }
nav ol { margin: .5rem 0; padding-left: 1.4rem; max-width: 46rem; } nav li { margin: .4rem 0; } a { color: #005a9c; }
p { max-width: 46rem; white-space: pre-line; overflow-wrap: anywhere; }
.note { color: #555; font-size: .875rem; } .state { border-left: 4px solid #d55e00; padding-left: .75rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td { max-width: 26rem; white-space: pre-wrap; } .long { overflow-wrap: anywhere; }
th { background: #f4f4f4; border-bottom: 2px solid #999; } .number { text-align: right; white-space: normal; }
.range { white-space: nowrap; color: #555; }
figure { margin: 1rem 0; }
pre { background: #f6f6f6; padding: .75rem; overflow: auto; max-height: 30rem; font-size: .8rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .85rem; } dd { margin: 0; }
@media print { section { break-inside: auto; } figure, tr { break-inside: avoid; } pre { max-height: none; }
  thead { display: table-header-group; } .wide { overflow: visible; } table { width: 100%; font-size: 7.5pt; }
  th, td { padding: .15rem .25rem; } .range { white-space: normal; } }
"""


def render(content: Content) -> str:
    """The whole page, with plotly's script in it once when there is a figure."""
    chapters = [_chapter(number, section) for number, section in enumerate(content.sections, 1)]
    has_figures = any(section.figures for section in content.sections)
    script = drawing_script() if has_figures else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(_title(content))} - Tunescope</title><style>{_STYLE}</style></head>\n<body>\n"
        f"{_top(content)}\n{''.join(chapters)}\n{_provenance(content)}\n{script}\n</body></html>\n"
    )


def _title(content: Content) -> str:
    """What was compared, where the run names one pair; else the run's name."""
    config, provenance = content.manifest.config, content.manifest.provenance
    pairs = provenance.get("pairs")
    pair = next(iter(pairs.values())) if isinstance(pairs, dict) and len(pairs) == 1 else config
    models = [_model(pair.get(role)) for role in ("base", "tuned")] if isinstance(pair, dict) else []
    if len(models) != 2 or not all(models):
        return content.name
    base, tuned = models
    return f"{short(base)} and {short(tuned, base)}"


def _model(model: object) -> str:
    """A model's path or hub id."""
    name = model.get("name") if isinstance(model, dict) else model
    return name.replace("\\", "/").rstrip("/") if isinstance(name, str) else ""


def _top(content: Content) -> str:
    manifest = content.manifest
    links = "".join(
        f'<li><a href="#section-{number}">{escape(section.title)}</a>{_first_finding(section)}</li>'
        for number, section in enumerate(content.sections, 1)
    )
    state = ""
    if manifest.state != "complete":
        reason = f": {escape(manifest.error)}" if manifest.error else ""
        state = f'<p class="state">This run is {manifest.state}, not complete{reason}</p>'
    return (
        f"<header><h1>{escape(_title(content))}</h1>"
        f'<p class="note">Report of the run {escape(content.name)} ({escape(manifest.kind)}), by Tunescope. Brackets '
        f"hold 95 % intervals.</p>{state}</header>\n"
        f'<nav aria-label="Summary"><ol>{links}<li><a href="#provenance">Provenance</a></li></ol></nav>'
    )


def _first_finding(section: Section) -> str:
    return f"<br>{escape(section.paragraphs[0])}" if section.paragraphs else ""


def _chapter(number: int, section: Section) -> str:
    text = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs)
    tables = "".join(_table(name, table) for name, table in section.tables.items())
    figures = "".join(
        figure_html(name, figure, f"figure-{number}-{place}")
        for place, (name, figure) in enumerate(section.figures.items())
    )
    return f'<section id="section-{number}"><h2>{escape(section.title)}</h2>{text}{figures}{tables}</section>\n'


def _table(name: str, table: pd.DataFrame) -> str:
    shown = _texts_first(with_intervals(table.dropna(axis=1, how="all").head(ROWS)), table)
    left_out = len(shown.columns) - COLUMNS
    shown = shown.iloc[:, :COLUMNS]
    columns = [str(column) for column in shown]
    numeric = {name for name in columns if pd.api.types.is_numeric_dtype(table[name]) and table[name].dtype != bool}
    head = "".join(_cell("th", _words(column), numeric=column in numeric) for column in columns)
    body = "".join(
        "<tr>" + "".join(_cell("td", row[column], numeric=column in numeric) for column in columns) + "</tr>"
        for row in shown.to_dict("records")
    )
    known = meanings(columns)
    legend = "".join(f"<dt>{escape(_words(column))}</dt><dd>{escape(text)}</dd>" for column, text in known.items())
    more = f'<p class="note">The first {ROWS} of {len(table)} rows.</p>' if len(table) > ROWS else ""
    more += f'<p class="note">{left_out} more columns are in the run.</p>' if left_out > 0 else ""
    explained = f"<details><summary>What the columns mean</summary><dl>{legend}</dl></details>" if known else ""
    return (
        f"<h3>{escape(_words(name))}</h3>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}{explained}'
    )


def _texts_first(shown: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Columns of whole texts (prompts, answers) before numbers: a row is about them."""
    texts = [
        name for name in shown
        if not pd.api.types.is_numeric_dtype(table[name]) and table[name].astype(str).str.count(" ").mean() >= TEXT
    ]  # fmt: skip
    return shown[[*texts, *(name for name in shown if name not in texts)]]


def _cell(tag: str, text: str, *, numeric: bool) -> str:
    if numeric:
        value, bracket, bounds = text.partition(" [")
        interval = f' <span class="range">[{escape(bounds)}</span>' if bracket else ""
        return f'<{tag} class="number">{escape(value)}{interval}</{tag}>'
    long = any(len(word) > WORD for word in text.split())
    kind = ' class="long"' if long else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"


def _provenance(content: Content) -> str:
    manifest = content.manifest
    parts = {
        "kind": manifest.kind,
        "state": manifest.state,
        "config": manifest.config,
        "provenance": manifest.provenance,
        "files": {name: f"{entry.size} bytes, sha256 {entry.sha256}" for name, entry in manifest.files.items()},
    }
    text = json.dumps(parts, indent=2, ensure_ascii=False)
    return (
        '<section id="provenance"><h2>Provenance</h2><p class="note">What was asked for, what it was made '
        f"with, and the hash of every file of the run.</p><pre>{escape(text)}</pre></section>"
    )


def _words(name: str) -> str:
    return name.replace("_", " ")
