"""Commands as a user gives them: in this process, and how those of their own are started."""

import io
import os
import sys
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Protocol
from unittest.mock import patch

import pytest

HANGS = 1800  # seconds: far beyond any load, so that only what hangs is ended


def answer(*words: str) -> tuple[int, str]:
    """Exit code of `scaling WORDS` and all it says, run here: a process of its own would import
    torch and MLflow for seconds. Asserts that no traceback is shown."""
    from scaling.cli import main

    said = io.StringIO()
    with (
        patch.object(sys, "argv", ["scaling", *words]),
        redirect_stdout(said),
        redirect_stderr(said),
        pytest.raises(SystemExit) as end,
    ):
        main()
    assert "Traceback" not in said.getvalue(), said.getvalue()
    assert isinstance(end.value.code, int)
    return end.value.code, said.getvalue()


def scaling(*words: str, code: int = 0) -> str:
    """What `answer` says, with this exit code."""
    found, said = answer(*words)
    assert found == code, said
    return said


def plain(**more: str) -> dict[str, str]:
    """Without what `scaling.cli` sets where a test imports it. (In a notebook's kernel that is
    started in the folder that PYTHONPATH names, PYTHONSAFEPATH takes that folder away: ipykernel
    drops the first entry if it is the current folder.)"""
    ours = ("PYTHONSAFEPATH", "PYTHONPATH")
    return {k: v for k, v in os.environ.items() if k not in ours} | more


class Process(Protocol):
    """Of subprocess, or of tests.warm."""

    def poll(self) -> int | None: ...


def changed(process: Process, folder: Path, times: int) -> bool:
    """Wait until what is below the folder has changed so often: a moment of the program's own work,
    however fast the machine. False: it ended before."""
    seen = _written(folder)
    while times and process.poll() is None:
        time.sleep(0.005)
        if (now := _written(folder)) != seen:
            seen, times = now, times - 1
    return process.poll() is None


def _written(folder: Path) -> set[tuple[Path, int]]:
    found = set()
    for parent, folders, names in os.walk(folder):  # a glob fails on a folder that is gone by then
        for path in (Path(parent) / name for name in [*folders, *names]):
            with suppress(OSError):  # renamed meanwhile
                found.add((path, path.lstat().st_mtime_ns))
    return found
