"""Optuna's storages, a SQLite database or a journal, as the table of their trials.

A database is copied before Optuna opens it: `RDBStorage` writes its tables and its version into
whatever it is given. A journal is only read.
"""

from __future__ import annotations

import json
import re
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from scaling.analysis.tables.columns import listed
from scaling.errors import UserError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

SQLITE = b"SQLite format 3\0"
WRITE_AHEAD = b"\2\2"  # bytes 18 and 19 of a database in write-ahead mode
STUDY = "study"  # the column that names a trial's study
OPTUNA, MLFLOW = {"studies", "trials", "version_info"}, {"experiments", "runs"}


def is_journal(text: str) -> bool:
    """Whether a file that begins so is Optuna's journal: lines of JSON, each with an operation."""
    first = text.split("\n", 1)[0]
    try:
        held = json.loads(first)
    except json.JSONDecodeError:
        return False
    return isinstance(held, dict) and {"op_code", "worker_id"} <= set(held)


def read_journal(path: Path, study: str = "") -> pd.DataFrame:
    """The trials of a journal, one row each (all studies of it, where `study` names none)."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
    except (KeyError, TypeError, AttributeError, ValueError, AssertionError) as error:
        raise UserError(
            f"Optuna's journal, which the installed Optuna does not read ({type(error).__name__}: "
            f"{error}): {_remedy()}"
        ) from None
    return _trials(storage, study)


def read_database(path: Path, study: str = "") -> pd.DataFrame:
    """The trials of an SQLite database of Optuna's, as `read_journal`.

    Raises UserError for another program's, or of a version that the installed Optuna does not
    read.
    """
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import SQLAlchemyError

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.db"
        maker = _copied(path, copy)
        try:
            storage = RDBStorage(f"sqlite:///{copy}")
        except (RuntimeError, AssertionError, SQLAlchemyError):
            raise UserError(
                f"a storage of Optuna {maker}, whose tables the installed Optuna does not read: "
                f"{_remedy()}, or upgrade a copy of it (optuna storage upgrade --storage "
                "sqlite:///COPY)"
            ) from None
        try:
            return _trials(storage, study)
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _remedy() -> str:
    return (
        "with the Optuna that made it save study.trials_dataframe().to_csv('trials.csv'), and give "
        "that"
    )


def is_database(path: Path) -> bool:
    """Whether a file is an SQLite database with Optuna's tables."""
    try:
        with path.open("rb") as file:
            if file.read(len(SQLITE)) != SQLITE:
                return False
        with closing(sqlite3.connect(_address(path), uri=True)) as there:
            return _tables(there) >= OPTUNA
    except (OSError, sqlite3.Error):
        return False


def _address(path: Path) -> str:
    """Of a database that is only read: nothing is written beside it either."""
    with path.open("rb") as file:
        head = file.read(20)
    # One in write-ahead mode gets files beside it as it is opened, even to read it, unless it is
    # said not to change; where a writer has them there already, it may change.
    still = head[18:20] == WRITE_AHEAD and not path.with_name(f"{path.name}-wal").exists()
    return f"{path.resolve().as_uri()}?{'immutable=1' if still else 'mode=ro'}"


def _tables(database: sqlite3.Connection) -> set[str]:
    return {name for (name,) in database.execute("select name from sqlite_master")}


def _copied(path: Path, copy: Path) -> str:
    """Copy a database as it stands, also while it is written to; returns its Optuna's version."""
    try:
        with (
            closing(sqlite3.connect(_address(path), uri=True)) as there,
            closing(sqlite3.connect(copy)) as here,
        ):
            there.backup(here)
            if (tables := _tables(here)) >= OPTUNA:
                (maker,) = here.execute("select library_version from version_info").fetchone()
                return str(maker)
    except (sqlite3.Error, TypeError) as error:
        raise UserError(f"a database that SQLite does not read: {error}") from None
    if tables >= MLFLOW:
        raise UserError(f"MLflow's database: give its address, sqlite:///{path}#EXPERIMENT")
    raise UserError(
        f"a database with {listed(sorted(tables), 8)}, neither Optuna's nor MLflow's: save the "
        "table of runs as CSV"
    )


def _trials(storage: BaseStorage, study: str) -> pd.DataFrame:
    """The trials of one study, or of all with a column of their studies."""
    import optuna

    there = {one.study_name: one for one in storage.get_all_studies()}
    if study and study not in there:
        raise UserError(f"no study {study!r}; it holds {listed(there)}")
    parts = []
    for name in [study] if study else there:
        part = optuna.load_study(study_name=name, storage=storage).trials_dataframe()
        if part.empty:
            continue
        if [d.name for d in there[name].directions] == ["MAXIMIZE"]:
            part = part.rename(columns=lambda c: re.sub(r"^value(?=_|$)", "score", str(c)))
        own = {f"user_attrs_{key}": value for key, value in there[name].user_attrs.items()}
        own = {k: v for k, v in own.items() if k not in part and isinstance(v, (int, float, str))}
        parts.append(part.assign(**own, **{STUDY: name}))
    if not parts:
        raise UserError(f"Optuna's studies {listed(there)} have no trials")
    kept = [part.dropna(axis="columns", how="all") for part in parts]  # else of no type
    table = pd.concat(kept, ignore_index=True)
    table.attrs["studies"] = len(parts)
    return table


def refuse_several(frame: pd.DataFrame, where: str | None, by: str | None) -> None:
    """Raise UserError for trials of several studies of which nobody said that they belong
    together."""
    if frame.attrs.get("studies", 1) < 2 or by == STUDY or re.search(rf"\b{STUDY}\b", where or ""):
        return
    names = list(frame[STUDY].unique())
    raise UserError(
        f"a storage of {len(names)} studies, {listed(names, 8)}: name one after the file, as in "
        f"FILE#{names[0]}, or those that are one law's, as in --where \"{STUDY} in "
        f'{names[:2]}"; --by {STUDY} fits a law for each'
    )
