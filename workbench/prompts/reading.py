"""Rows from files and from other people's objects, with the line or row named when something is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import UserError, unknown_name
from workbench.files import is_file
from workbench.prompts.csv_form import check_csv
from workbench.prompts.row import FIELDS, KINDS, Prompt, is_message, row_from
from workbench.prompts.token_ids import IDS, are_ids, rows_of_batch
from workbench.strict_json import BadJson, read_json

if TYPE_CHECKING:
    import pandas as pd

Rename = Mapping[str, str]
_TEXT_COLUMNS = [name for name in FIELDS if name not in ("label", "chat")]


def read_file(path: Path, rename: Rename) -> list[Prompt]:
    """The rows of a file, read by its ending."""
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise unknown_name("kind of prompt file", suffix or path.name, _READERS)
    if not is_file(path):
        raise UserError(f"There is no prompt file at {path}; give the path of a {', '.join(_READERS)} file.")
    try:
        rows = _READERS[suffix](path, rename)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    if not rows:
        raise UserError(f"{path} holds no prompts; expected at least one row.")
    return rows


def read_object(source: Any, rename: Rename) -> list[Prompt]:
    """The rows of a text, list, table, data set, tokenized batch or of the file at a ``Path``."""
    library = type(source).__module__.partition(".")[0]
    if isinstance(source, Path):
        return read_file(source, rename)
    if library == "pandas":
        rows = _from_table(source, rename, "Row")
    elif library == "datasets":
        rows = _rows(_dataset_rows(source), rename, "Row")
    elif (tokenized := rows_of_batch(_renamed(source, rename))) is not None:
        rows = _rows(tokenized, {}, "Row")
    elif isinstance(source, str | Mapping):
        _check_no_file_name(source)
        rows = _rows([source], rename, "Row")
    elif isinstance(source, Iterable) and getattr(source, "shape", None) != ():
        items = [source] if are_ids(source) else list(source)
        one_chat = bool(items) and all(is_message(item) for item in items)
        rows = _rows([items] if one_chat else items, rename, "Row")
    else:
        raise UserError(
            f"Prompts cannot be made of {type(source).__name__}; give a list of texts, dicts, chats or token ids, "
            "a DataFrame, or a Hugging Face Dataset."
        )
    if not rows:
        raise UserError("There are no prompts: the list or table is empty.")
    return rows


def _check_no_file_name(source: Any) -> None:
    """A text alone that is the name of a prompt file was meant as the file, not as what a model reads."""
    if isinstance(source, str) and len(source.split()) == 1 and Path(source).suffix.lower() in _READERS:
        raise UserError(
            f"{source!r} is the name of a file, and text is read as a prompt: give Prompts.load({source!r}), "
            f"or [{source!r}] if a model shall read these words."
        )


def _rows(items: Iterable[Any], rename: Rename, unit: str, first: int = 0) -> list[Prompt]:
    return [row_from(_renamed(item, rename), f"{unit} {number}") for number, item in enumerate(items, first)]


def _renamed(item: Any, rename: Rename) -> Any:
    if not rename or not isinstance(item, Mapping):
        return item
    if missing := [old for old in rename if old not in item]:
        raise unknown_name("column", missing[0], [str(name) for name in item])
    renamed = {rename.get(name, name): value for name, value in item.items()}
    if len(renamed) < len(item):
        names = [rename.get(name, name) for name in item]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"rename gives two columns the name {twice!r}; give each a name of its own.")
    return renamed


def _read_jsonl(path: Path, rename: Rename) -> list[Prompt]:
    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path.name}, line {number}"
            try:
                item = read_json(line)
            except BadJson as error:
                said = str(error).replace("line 1, ", "")
                raise UserError(f"{where} is not JSON ({said}); expected one object per line.") from error
            rows.append(row_from(_renamed(item, rename), where))
    return rows


def _read_json(path: Path, rename: Rename) -> list[Prompt]:
    try:
        items = read_json(path.read_text(encoding="utf-8-sig"))
    except BadJson as error:
        raise UserError(f"{path.name} is not JSON ({error}); expected a list of prompts.") from error
    if not isinstance(items, list):
        raise UserError(f"{path.name} holds {type(items).__name__}; expected a list of prompts.")
    return _rows(items, rename, f"{path.name}, row")


def _read_text(path: Path, _rename: Rename) -> list[Prompt]:
    with path.open(encoding="utf-8-sig") as file:
        return [Prompt(prompt=text) for line in file if (text := line.rstrip("\n")).strip()]


def _read_csv(path: Path, rename: Rename) -> list[Prompt]:
    import pandas as pd

    ours = {
        **{old: str for old, new in rename.items() if new in _TEXT_COLUMNS},
        **dict.fromkeys(_TEXT_COLUMNS, str),
    }
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    check_csv(path, separator)
    try:
        # "NA" and "null" are answers like any other; only an empty cell is a missing one.
        table = pd.read_csv(
            path,
            sep=separator,
            dtype=ours,
            keep_default_na=False,
            na_values=[""],
            encoding="utf-8-sig",
            index_col=False,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, OverflowError) as error:
        raise UserError(f"{path.name} is not a readable table ({str(error).strip()}).") from error
    return _from_table(table, rename, f"{path.name}, row", read_cell=_json_cell)


def _read_parquet(path: Path, rename: Rename) -> list[Prompt]:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        items = pq.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{path.name} is not a readable parquet file ({said}); write or copy it again.") from error
    return _rows(items, rename, f"{path.name}, row")


def _json_cell(name: str, value: Any, where: str) -> Any:
    """Chats and token ids in a CSV cell are written as JSON."""
    listed = name in ("messages", IDS) or (name == "contrast" and isinstance(value, str) and value.startswith("[{"))
    if not listed or not isinstance(value, str):
        return value
    try:
        return read_json(value)
    except BadJson as error:
        raise UserError(
            f"{where}: {name!r} is not JSON ({error}); expected {KINDS[name if name in KINDS else 'messages']}."
        ) from error


def _from_table(
    table: pd.DataFrame,
    rename: Rename,
    unit: str,
    read_cell: Callable[[str, Any, str], Any] = lambda _name, value, _where: value,
) -> list[Prompt]:
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        return _rows(list(table), rename, unit)
    if not table.columns.is_unique:
        twice = table.columns[table.columns.duplicated()][0]
        raise UserError(f"The table has the column {str(twice)!r} twice: every column needs a name of its own.")
    rows = []
    for number, cells in enumerate(table.to_dict(orient="records")):
        where = f"{unit} {number}"
        # A column of whole numbers with a gap arrives as floats; 42.0 was 42.
        item = {str(name): None if _is_missing(value) else value for name, value in cells.items()}
        renamed = {name: read_cell(name, value, where) for name, value in _renamed(item, rename).items()}
        rows.append(row_from({name: _whole(name, value) for name, value in renamed.items()}, where))
    return rows


def _whole(name: str, value: Any) -> Any:
    return int(value) if name in _TEXT_COLUMNS and isinstance(value, float) and value.is_integer() else value


def _is_missing(value: Any) -> bool:
    import pandas as pd

    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _dataset_rows(source: Any) -> Iterable[Any]:
    """The rows of a Hugging Face data set; who hands one over has the library already."""
    import datasets

    if isinstance(source, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise UserError(f"This data set has the splits {', '.join(map(str, source))}; give one, as in data['train'].")
    if isinstance(source, datasets.IterableDataset):
        raise UserError("A streamed data set has no end that is known; give a part of it, as in list(data.take(1000)).")
    return source


_READERS: dict[str, Callable[[Path, Rename], list[Prompt]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
