"""A file of runs as a frame: CSV of any delimiter, JSON, JSON lines, Parquet, Markdown, Excel,
Optuna's storages, folders of trainers and of TensorBoard.

Every reader is its library's own; what is here finds out which one, and with which delimiter,
encoding and decimal sign. Nothing is ever unpickled.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import importlib.util
import io
import json
import lzma
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from scaling.analysis.tables import events, logs, trainers, trials
from scaling.analysis.tables.columns import listed
from scaling.analysis.tables.lines import tidy
from scaling.analysis.tables.markup import is_markup, read_markup
from scaling.errors import UserError

HEAD = 1 << 16  # bytes looked at to find the delimiter; the line of names is no longer
LARGEST = 1 << 30  # bytes of a file that is read whole (JSON, Markdown), or unpacked
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
DELIMITERS = ",\t;|"
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
    index = [c for c in table.columns if re.fullmatch(r"(Unnamed: \d+|index|)", c)]
    named = table.columns.drop(index)
    if named.duplicated().any():
        raise UserError(f"two columns are called {named[named.duplicated()][0]!r}: rename one")
    if table.columns.is_unique:
        table, told = tidy(table)
        notes = [*notes, *told]
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
        encoding = _encoding(head)
        text = head.decode(encoding, errors="replace").lstrip("\ufeff\n\r\t ")
        if "\0" in text:
            raise UserError("no text, and no format of tables that is read here")
        if trials.is_journal(text):
            return trials.read_journal(path, part), []
        if kind in (".json", ".jsonl", ".ndjson") or text[:1] in ("{", "["):
            return _json(_whole(path, packed, encoding)), []
        if kind in (".md", ".tex") or is_markup(text):
            return read_markup(_whole(path, packed, encoding)), []
        if re.match(r"(?i)<(!doctype|html|table)", text):
            raise UserError(INSTEAD[".html"])
        logs.refuse(text)
        return _delimited(path, packed, encoding, text)
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


def _encoding(head: bytes) -> str:
    """UTF-16 by its mark or its zeros, UTF-8, else Windows' Latin."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if len(head) > 8 and head[1:64:2].count(0) > 0.8 * len(head[1:64:2]):
        return "utf-16-le"
    if len(head) > 8 and head[0:64:2].count(0) > 0.8 * len(head[0:64:2]):
        return "utf-16-be"
    try:
        head[: len(head) - 4 if len(head) == HEAD else None].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.end < len(head) - 4 or len(head) < HEAD:
            return "cp1252"
    return "utf-8"  # pandas drops its mark


def _whole(path: Path, packed: str, encoding: str) -> str:
    return _unpacked(path, packed).decode(encoding, errors="replace").removeprefix("\ufeff")


def _unpacked(path: Path, packed: str) -> bytes:
    with OPENERS.get(packed, open)(path, "rb") as file:
        data: bytes = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise UserError(f"more than {LARGEST:,} bytes: save it as Parquet or CSV")
    return data


# --- delimited ----------------------------------------------------------------------------------


def _delimited(path: Path, packed: str, encoding: str, text: str) -> tuple[pd.DataFrame, list[str]]:
    lines = _first_lines(text)
    comments = [line for line in lines if line.startswith("#")]
    body = [line for line in lines if line.strip() and not line.startswith("#")]
    if not body:
        raise UserError("no lines")
    titles = _titles(body)
    body = body[len(titles) :]
    delimiter = _delimiter(body)
    header = next(csv.reader([body[0]], delimiter=delimiter if len(delimiter) == 1 else " "))
    names: list[str] | None = None
    joined = _two_headers(body, delimiter)
    if comments and all(_number(cell) for cell in header) and len(header) > 1:
        # NumPy's savetxt writes the names into a comment.
        last = comments[-1].lstrip("# ")
        found = re.split(r"\s+" if delimiter == r"\s+" else re.escape(delimiter), last.strip())
        names = [n.strip() for n in found] if len(found) == len(header) else None
        header = names or header
    if all(_number(cell) for cell in header if cell.strip()):
        raise UserError(
            f"its first line, {body[0][:60]!r}, has numbers only: it needs column names"
        )
    named = joined or [h.strip() for h in header if h.strip()]
    if len(set(named)) < len(named):
        twice = Counter(named).most_common(1)[0][0]
        raise UserError(f"two columns are called {twice!r}: rename one")
    options: dict[str, Any] = {"sep": delimiter, "encoding": encoding, "low_memory": False}
    if joined is not None:
        options |= {"names": joined, "header": 1, "index_col": False}
    elif names is not None:
        options |= {"names": names, "header": None}
    options["decimal"] = _decimal(body, delimiter)
    if any(f"{delimiter} " in line for line in body[:50]):
        options["skipinitialspace"] = True
    if _longer(body, delimiter, len(header)):
        options["index_col"] = False
    source: Any = io.BytesIO(_unpacked(path, packed)) if packed else path
    if comments or titles:  # lines, not cells: a colour such as #faebdd stays
        kept = [x for x in _whole(path, packed, encoding).splitlines() if not x.startswith("#")]
        kept = kept[kept.index(body[0]) :] if titles else kept
        source = io.StringIO("\n".join(kept))
        options.pop("encoding")
    with warnings.catch_warnings():  # of empty cells behind the last delimiter
        warnings.simplefilter("ignore", pd.errors.ParserWarning)
        table = pd.read_csv(source, **options)
    notes = []
    if comments:
        notes.append(f"{len(comments)} comment lines left out")
    if titles:
        notes.append(f"{len(titles)} lines above the names of the columns left out")
    if joined is not None:
        notes.append("two lines of names joined")
    if delimiter != ",":
        shown = {"\t": "tab", r"\s+": "blanks"}.get(delimiter, delimiter)
        notes.append(f"cells parted by {shown}" + ("" if options["decimal"] == "." else
                                                   ", decimal commas"))  # fmt: skip
    return table, notes


def _first_lines(text: str) -> list[str]:
    """The whole lines of the first HEAD bytes of a file."""
    lines = text.splitlines()
    if len(text.encode("utf-8", "replace")) < HEAD - 16:
        return lines
    if len(lines) == 1:
        raise UserError(f"its first line has more than {HEAD:,} bytes: no names of columns")
    return lines[:-1]  # the last one may be cut


def _titles(lines: list[str]) -> list[str]:
    """Lines above the names of the columns: one cell at most, by whatever sign."""
    for k, line in enumerate(lines[:20]):
        rows = [next(csv.reader([line], delimiter=sign), []) for sign in DELIMITERS]
        if any(sum(bool(cell.strip()) for cell in row) > 1 for row in rows):
            return lines[:k]
    return []  # cells parted by blanks, or a single column


def _two_headers(lines: list[str], delimiter: str) -> list[str] | None:
    """The names of columns that two lines give, "loss" above "val" and "train"; else None."""
    if len(delimiter) > 1 or len(lines) < 3:
        return None
    first, second, third = (
        [cell.strip() for cell in row] for row in csv.reader(lines[:3], delimiter=delimiter)
    )
    given = [cell for cell in first if cell]
    one_each = len(set(given)) == len(given) == len(first)
    words = all(second[1:]) and not any(_number(cell) for cell in second if cell)
    if one_each or not words or len(second) != len(first) != 1 or not any(map(_number, third)):
        return None
    above = pd.Series(first).replace("", None).ffill().fillna("")
    return ["/".join(p for p in pair if p) for pair in zip(above, second, strict=True)]


def _delimiter(lines: list[str]) -> str:
    """The sign that parts the first lines into equally many cells, at least two."""
    best, most = ",", 1
    for sign in DELIMITERS:
        counts = [len(row) for row in csv.reader(lines[:50], delimiter=sign) if row]
        if counts and counts[0] > 1 and counts[0] == max(set(counts), key=counts.count):
            even = counts.count(counts[0]) >= 0.9 * len(counts)
            if even and counts[0] > most:
                best, most = sign, counts[0]
    if most == 1 and not any(sign in lines[0] for sign in DELIMITERS):
        counts = [len(line.split()) for line in lines[:50]]
        if min(counts) > 1 and len(set(counts[1:])) == 1 and 0 <= counts[-1] - counts[0] <= 1:
            return r"\s+"
    return best


def _longer(lines: list[str], delimiter: str, width: int) -> bool:
    """Whether lines end in a delimiter that the header lacks. Raises UserError for more cells
    than names: which is which would be a guess."""
    if len(delimiter) > 1:
        return False
    rows = [row for row in csv.reader(lines[1:50], delimiter=delimiter) if len(row) > width]
    if any(cell.strip() for row in rows for cell in row[width:]):
        raise UserError(
            f"its lines have more cells than the {width} names of the first line: name every "
            "column in one line, and remove the lines above it"
        )
    return bool(rows)


def _decimal(lines: list[str], delimiter: str) -> str:
    """Whether numbers have decimal commas: only where no number in sight has a point."""
    if delimiter == ",":
        return "."
    cells = [c.strip() for row in csv.reader(lines[1:50], delimiter=delimiter[-1]) for c in row]
    commas = sum(bool(re.fullmatch(r"[+-]?\d+,\d+(e[+-]?\d+)?", c, re.I)) for c in cells)
    points = sum(bool(re.fullmatch(r"[+-]?\d+\.\d+(e[+-]?\d+)?", c, re.I)) for c in cells)
    return "," if commas and not points else "."


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# --- other formats ------------------------------------------------------------------------------


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


def _json(text: str) -> pd.DataFrame:
    """Records, columns, or a mapping that holds one of them; nested ones get names with dots."""
    text = text.lstrip("\ufeff")
    try:
        held = json.loads(text)
    except json.JSONDecodeError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2:
            raise UserError(f"JSON: {error}") from None
        try:
            held = [json.loads(line) for line in lines]
        except json.JSONDecodeError as of_line:
            raise UserError(f"neither JSON nor JSON lines: {of_line}") from None
    try:
        return _frame(held)
    except (TypeError, AttributeError, RuntimeError) as error:  # pandas', of odd values
        raise UserError(f"JSON that is no list of runs ({error})") from None


def _frame(held: Any) -> pd.DataFrame:
    if isinstance(held, dict):
        if isinstance(held.get("columns"), list) and isinstance(held.get("data"), list):
            return pd.DataFrame(held["data"], columns=list(map(str, held["columns"])))
        if isinstance(held.get("log_history"), list):  # Hugging Face's trainer_state.json
            rows = pd.json_normalize(held["log_history"])
            rows.attrs["log"] = "trainer_state"
            return rows
        lists = {k: v for k, v in held.items() if isinstance(v, list)}
        records = {k: v for k, v in lists.items() if v and all(isinstance(x, dict) for x in v)}
        if len(records) == 1:
            return _frame(next(iter(records.values())))
        if len(records) > 1:
            raise UserError(
                f"several lists of records, {listed(records)}: save the runs' one alone"
            )
        if lists and len({len(v) for v in lists.values()}) == 1:
            return pd.DataFrame(lists)
        mappings = {k: v for k, v in held.items() if isinstance(v, dict)}
        if mappings and len(mappings) == len(held):
            inner = [set(v) for v in mappings.values()]
            if all(str(k).isdigit() for keys in inner for k in keys):  # pandas' to_json: columns
                return pd.DataFrame(mappings).reset_index(drop=True)
            if all(isinstance(v, dict) for v in mappings.values()):  # run -> its numbers
                return pd.json_normalize([{"run": k, **v} for k, v in mappings.items()])
        raise UserError("JSON that is no list of runs: a list of objects, one a run, is read")
    if isinstance(held, list) and held and all(isinstance(row, dict) for row in held):
        return pd.json_normalize(held)
    raise UserError("JSON that is no list of runs: a list of objects, one a run, is read")
