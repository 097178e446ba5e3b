"""A file of runs as a frame: CSV of any delimiter, JSON, JSON lines, Parquet, Markdown, Excel,
Optuna's storages, folders of trainers and of TensorBoard.

Every reader is its library's own; what is here finds out which one. Nothing is ever unpickled.
"""

from __future__ import annotations

import csv
import importlib.util
import lzma
import re
import zipfile
import zlib
from pathlib import Path

import pandas as pd

from scaling.analysis.tables import events, logs, trainers, trials
from scaling.analysis.tables.columns import listed
from scaling.analysis.tables.content import HEAD, LARGEST, OPENERS, encoding_of, whole
from scaling.analysis.tables.delimited import read_delimited
from scaling.analysis.tables.lines import tidy
from scaling.analysis.tables.markup import is_markup, read_markup
from scaling.analysis.tables.records import read_json
from scaling.analysis.tables.reshaped import names_quantities, without_lists
from scaling.errors import UserError

INSTEAD = {
    ".pkl": "a pickle may run any program as it is opened: save the frame with to_csv or "
    "to_parquet",
    ".pickle": "a pickle may run any program as it is opened: save the frame with to_csv",
    ".pt": "a checkpoint is no table: save the runs' numbers as CSV",
    ".npz": "arrays have no column names: save a CSV with a header",
    ".npy": "arrays have no column names: save a CSV with a header",
    ".html": "a page: copy its table as CSV or Markdown",
    ".yaml": "YAML: save the runs as JSON (a list of objects, one a run) or CSV",
    ".yml": "YAML: save the runs as JSON (a list of objects, one a run) or CSV",
    ".pdf": "a page: copy its table as CSV or Markdown",
    ".wandb": "Weights & Biases' own log: export the runs' table as CSV from its page, or with "
    "wandb.Api().runs(...)",
}


def load(source: str | Path | pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The table as it is in the file, and notes. Raises UserError for what is no table.

    source: a frame, or a path; behind a # the sheet of a spreadsheet or the study of a storage.
    """
    notes: list[str] = []
    if isinstance(source, pd.DataFrame):
        table = source.reset_index(drop=True)
    else:
        table, notes = _file(*parted(source))
    if isinstance(table.columns, pd.MultiIndex):
        table.columns = ["/".join(str(p) for p in c if str(p)) for c in table.columns]
    table = table.rename(columns={c: str(c).strip() for c in table.columns})
    index = [
        c for c in table.columns
        if re.fullmatch(r"(Unnamed: \d+|index|)", c)
        and not (table.columns.is_unique and names_quantities(table[c]))
    ]  # fmt: skip
    named = table.columns.drop(index)
    if named.duplicated().any():
        raise UserError(f"two columns are called {named[named.duplicated()][0]!r}: rename one")
    if table.columns.is_unique:
        table, cells = without_lists(table)
        curves = table.attrs.get("curves", False)
        table, told = tidy(table)
        table.attrs["curves"] = curves
        notes = [*notes, *cells, *told]
    table = table.drop(columns=index)
    if table.empty:
        raise UserError("the table has no rows")
    return table, notes


def parted(source: str | Path) -> tuple[Path, str]:
    """The path, and what of it is meant: ("runs.xlsx", "sheet 2") of "runs.xlsx#sheet 2"."""
    text = str(source)
    if text.startswith("sqlite:///"):
        text = text.removeprefix("sqlite:///")
    whole, _, part = text.rpartition("#")
    if whole and not Path(text).exists() and Path(whole).exists():
        return Path(whole), part
    return Path(text), ""


def _file(path: Path, part: str) -> tuple[pd.DataFrame, list[str]]:
    suffixes = [s.lower() for s in path.suffixes]
    packed = next((s for s in suffixes[-1:] if s in OPENERS), "")
    kind = next((s for s in reversed(suffixes) if s not in OPENERS), "")
    if kind in INSTEAD:
        raise UserError(f"{path}: {INSTEAD[kind]}")
    if path.is_file() and "tfevents" in path.name:
        raise UserError(
            f"{path}: TensorBoard's log of one run: give the folder that holds the runs' folders"
        )
    try:
        if path.is_dir():
            return _folder(path)
        if path.exists() and not path.is_file():  # a pipe or a device may have no end
            raise UserError("no file but a pipe or a device: save the table as a file")
        if kind in (".parquet", ".pq"):
            return _parquet(path), []
        if kind in (".xlsx", ".xls", ".ods"):
            return _excel(path, part), []
        with OPENERS.get(packed, open)(path, "rb") as file:
            head = file.read(HEAD)
        if head.startswith(trials.SQLITE):
            return trials.read_database(path, part), []
        if kind in (".db", ".sqlite", ".sqlite3"):
            raise UserError("no SQLite database inside, whatever its name says")
        if head[:4] == b"PAR1":
            return _parquet(path), []
        if head[:2] == b"PK" and zipfile.is_zipfile(path):
            raise UserError("a zip archive: give the table in it")
        encoding = encoding_of(head)
        text = head.decode(encoding, errors="replace").lstrip("\ufeff\n\r\t ")
        if "\0" in text:
            raise UserError("no text, and no format of tables that is read here")
        if trials.is_journal(text):
            return trials.read_journal(path, part), []
        if kind in (".json", ".jsonl", ".ndjson") or text[:1] in ("{", "["):
            return read_json(whole(path, packed, encoding)), []
        if kind in (".md", ".tex") or is_markup(text):
            return read_markup(whole(path, packed, encoding)), []
        if re.match(r"(?i)<(!doctype|html|table)", text):
            raise UserError(INSTEAD[".html"])
        logs.refuse(text)
        return read_delimited(path, packed, encoding, text)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except RecursionError:
        raise UserError(f"{path}: not a table of runs (it is nested without end)") from None
    except (ValueError, OSError, EOFError, csv.Error, lzma.LZMAError, zlib.error) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: not a table of runs ({said})") from None


def is_folder(path: Path) -> bool:
    """Whether a folder holds runs that another tool logged there."""
    return any(of.is_folder(path) for of in (trainers, events, logs))


def _folder(path: Path) -> tuple[pd.DataFrame, list[str]]:
    if trainers.is_folder(path):  # which may have TensorBoard's logs beside it
        return trainers.read_runs(path)
    if events.is_folder(path):
        return events.read_events(path)
    if logs.is_folder(path):
        return logs.read_folder(path)
    raise UserError("a folder without logs of runs: give a table, or a study's folder")


def _parquet(path: Path) -> pd.DataFrame:
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError("Parquet needs pyarrow: pip install pyarrow, or save it as CSV")
    try:
        return pd.read_parquet(path)
    except Exception as error:  # of whatever a damaged file makes of its reader
        raise _damaged(error) from None


def _damaged(error: Exception) -> UserError:
    return UserError(f"damaged: its reader says {type(error).__name__}: {str(error)[:200]}")


def _excel(path: Path, part: str) -> pd.DataFrame:
    """The sheet of that name, else the one that has cells."""
    if path.suffix.lower() != ".xlsx":
        raise UserError("a spreadsheet of an old or another kind: save it as .xlsx or CSV")
    if importlib.util.find_spec("openpyxl") is None:
        raise UserError("a spreadsheet needs openpyxl: pip install openpyxl, or save it as CSV")
    if not zipfile.is_zipfile(path):
        raise UserError("no .xlsx inside, whatever its name says: save it as CSV")
    sheets = _sheets(path, header=0)
    full = {name: sheet for name, sheet in sheets.items() if not sheet.empty}
    if part and part not in full:
        raise UserError(f"no sheet {part!r} with rows; it has {listed(full)}")
    if not part and len(full) != 1:
        raise UserError(
            f"sheets {listed(full)}: name one after the file, as in {path}#{next(iter(full), '')}"
        )
    name = part or next(iter(full))
    unnamed = [c for c in full[name] if str(c).startswith("Unnamed: ")]
    if len(unnamed) < len(full[name].columns) / 2:
        return full[name]
    # A title above the names of the columns.
    cells = _sheets(path, header=None)[name].dropna(axis="columns", how="all")
    rows = cells.index[cells.notna().all(axis="columns")]
    if not len(rows) or not all(isinstance(cell, str) for cell in cells.loc[rows[0]]):
        raise UserError(f"sheet {name!r}: no row that names all columns; save the table as CSV")
    body = cells.loc[rows[0] + 1 :].dropna(how="all").set_axis(list(cells.loc[rows[0]]), axis=1)
    return body.reset_index(drop=True).infer_objects()


def _sheets(path: Path, header: int | None) -> dict[str, pd.DataFrame]:
    try:
        with zipfile.ZipFile(path) as packed:
            if sum(part.file_size for part in packed.infolist()) > LARGEST:
                raise UserError(f"more than {LARGEST:,} bytes when unpacked: save it as CSV")
        return pd.read_excel(path, sheet_name=None, header=header)
    except UserError:
        raise
    except Exception as error:  # of whatever a damaged file makes of its reader
        raise _damaged(error) from None
