"""What killed processes leave: removed when its maker is surely dead, and nothing else."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from scaling.storage import files, scratch

MAKE = "import os, signal; from scaling.storage import scratch; print(scratch.make(), flush=True); "
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the system for this test and what it starts."""
    folder = tmp_path / "system"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_a_killed_process_leaves_nothing_for_long(temporary: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAKE + KILL], capture_output=True, text=True, check=False
    )
    left = Path(done.stdout.strip())
    (left / "driver").touch()
    assert left.parent == temporary and left.is_dir()
    mine = scratch.make()
    assert not left.exists() and mine.is_dir() and os.stat(mine).st_mode & 0o077 == 0
    scratch.make()
    assert mine.is_dir(), "its maker, this process, lives"


def record(**other: object) -> dict[str, Any]:
    """Of a process that is gone: no process has this number."""
    return files.process() | {"pid": 2**22 + 1, "started": "1"} | other


def test_what_might_be_alive_or_the_users_stays(temporary: Path, tmp_path: Path) -> None:
    def folder(name: str, content: object = None) -> Path:
        (temporary / name).mkdir()
        if content is not None:
            (temporary / name / scratch.OWNER).write_text(json.dumps(content))
        return temporary / name

    parent = os.getppid()
    stay = [
        folder("scaling-mine"), folder("scaling-torn", "{"), folder("scaling-list", [1]),
        folder("other", record()), folder("scaling-elsewhere", record(machine="another")),
        folder("scaling-odd", record(pid="x")), folder("scaling-none", record(started=None)),
        folder("scaling-alive", record(pid=parent, started=files._started(parent))),
    ]  # fmt: skip
    users = tmp_path / "data"
    users.mkdir()
    (users / scratch.OWNER).write_text(json.dumps(record()))
    (temporary / "scaling-link").symlink_to(users)
    dead = folder("scaling-dead", record())
    again = folder("scaling-number", record(pid=parent, started="1"))  # the number is another's
    scratch.tidy(tmp_path)
    assert all(one.is_dir() for one in stay) and (users / scratch.OWNER).exists()
    assert not dead.exists() and not again.exists()


def test_half_files_of_the_dead_are_dropped(tmp_path: Path) -> None:
    """Of another host, of a live thread, of somebody else: kept."""
    mine = files.unfinished(tmp_path / "a.csv")
    host = os.uname().nodename
    dead = tmp_path / f".checkpoint.pt.{host}-{2**22 + 1}.tmp"
    kept = [mine, tmp_path / ".a.csv.elsewhere-7.tmp", tmp_path / ".notes.tmp", tmp_path / "a.tmp"]
    for path in (dead, *kept):
        path.touch()
    scratch.drop_half_files(tmp_path)
    assert sorted(tmp_path.glob("*")) == sorted([*kept, tmp_path / "system"]) and not dead.exists()
