"""One worker per folder on any file system: shared locks, locks within a host, none at all."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling.errors import UserError
from scaling.storage import files
from scaling.storage.files import RunBusy, RunLock, held
from tests.shell import HANGS

# What `flock` may be: shared by the cluster, within each host ("local"), or missing.
SHIM = """
import errno, fcntl, sys
from scaling.storage import files
kind, host = sys.argv[1:3]
if kind != "shared":
    def flock(file, how):
        if kind != "local":
            raise OSError(getattr(errno, kind), "no locks")
    fcntl.flock = flock
files.machine = lambda: host
files.socket.gethostname = lambda: host
files.BEAT_SECONDS = 0.05
files.CLAIM_SECONDS = 0.5
"""
KINDS = ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "local"]


def lacking(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def flock(file: int, how: int) -> None:
        if kind != "local":  # of another host, where it always succeeds
            raise OSError(getattr(errno, kind), "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(files, "CLAIM_SECONDS", 0.01)


def record(lock: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(lock.read_text())
    return content


@pytest.mark.parametrize("kind", ["shared", *KINDS])
def test_one_at_a_time_on_a_host(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind != "shared":
        lacking(monkeypatch, kind)
    for _ in range(2):
        with RunLock(tmp_path):
            assert held(tmp_path / "lock")
            said = f"in use by process {os.getpid()} on {socket.gethostname()}$"
            with pytest.raises(RunBusy, match=said), RunLock(tmp_path):
                pass
            assert record(tmp_path / "lock")["pid"] == os.getpid(), "the attempt changed nothing"
        assert not held(tmp_path / "lock") and (tmp_path / "lock").read_text() == ""


@pytest.mark.parametrize("kind", ["shared", *KINDS])
def test_what_a_crash_left_on_this_host_is_free_at_once(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 1e9)
    if kind != "shared":
        lacking(monkeypatch, kind)
    with RunLock(tmp_path):
        left = record(tmp_path / "lock")
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    others = [
        left | {"pid": int(ended.stdout)},
        left | {"started": "1"},  # the number is another process's by now
    ]
    for crashed in others:
        (tmp_path / "lock").write_text(json.dumps(crashed))
        assert not held(tmp_path / "lock")
        with RunLock(tmp_path):
            assert record(tmp_path / "lock")["started"] == left["started"]
    if kind not in ("shared", "local"):  # then one that nobody can read is watched
        monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.3)
    (tmp_path / "lock").write_text('{"host": "torn')
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_another_host_is_watched(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While it beats it is let alone, whatever its clock says; when it is still it is gone."""
    lacking(monkeypatch, kind)
    script = f"{SHIM}\nwith files.RunLock(sys.argv[3]) as lock: print(flush=True); sys.stdin.read()"
    script = script.replace("sys.argv[3]", "__import__('pathlib').Path(sys.argv[3])")
    with subprocess.Popen(
        [sys.executable, "-c", script, kind, "n17", str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdout
        holder.stdout.readline()
        os.utime(tmp_path / "lock", (0, 0))
        with pytest.raises(RunBusy, match=f"in use by process {holder.pid} on n17$"):
            RunLock(tmp_path).__enter__()
        said = capsys.readouterr().err
        assert "waiting up to 45 s to see whether process" in said and said.count("\n") == 1
        holder.kill()
    lock = RunLock(tmp_path)
    with monkeypatch.context() as hasty:
        hasty.setattr(files, "PATIENCE_SECONDS", 0.3)
        with lock:
            left = lock.path.read_text()
    lock.path.write_text(left.replace(files.machine(), "another"))
    os.utime(lock.path, (0, 0))
    assert not held(lock.path)
    os.utime(lock.path)
    assert held(lock.path), "it may live: nothing is repaired under it"
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.3)
    with RunLock(tmp_path):
        assert record(lock.path)["machine"] == files.machine()


@pytest.mark.parametrize("kind", KINDS)
def test_hosts_that_begin_together_leave_one(tmp_path: Path, kind: str) -> None:
    """Four hosts start at once, and none is ever beside another for longer than a few beats."""
    script = SHIM + textwrap.dedent(
        """
        import os, time
        from pathlib import Path
        folder = Path(sys.argv[3])
        (folder / host).touch()
        while not (folder / "go").exists():
            time.sleep(0.001)
        try:
            with files.RunLock(folder):
                while not (folder / "leave").exists():
                    time.sleep(0.01)
                print("worked")
        except files.RunBusy as busy:
            print(busy)
        """
    )
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", script, kind, f"host{k}", str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for k in range(4)
    ]  # fmt: skip
    steps: list[tuple[str, Callable[[], bool]]] = [
        ("go", lambda: len(list(tmp_path.glob("host*"))) == 4),
        ("leave", lambda: sum(host.poll() is None for host in hosts) <= 1),
    ]
    for meet, enough in steps:
        end = time.monotonic() + HANGS
        while not enough() and time.monotonic() < end:
            time.sleep(0.01)
        (tmp_path / meet).touch()
    said = [(host.communicate(timeout=HANGS), host.returncode) for host in hosts]
    worked = [out for (out, _), _ in said if out == "worked\n"]
    assert len(worked) == 1, said
    for (out, err), code in said:
        assert "Traceback" not in err
        busy = "in use by process" in out and code == 0
        left = "leaving it to that one" in err and code == -signal.SIGTERM
        assert out == "worked\n" or busy or left, (out, err, code)


def test_a_process_that_lost_its_lock_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "BEAT_SECONDS", 0.01)
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        with RunLock(tmp_path) as lock:
            theirs = record(lock.path) | {"host": "n17", "pid": 5, "token": "theirs"}
            lock.path.write_text(json.dumps(theirs))
            while not told:
                time.sleep(0.01)
        assert record(lock.path) == theirs, "what is theirs stays"
    finally:
        signal.signal(signal.SIGTERM, before)
    assert f"{tmp_path} is in use by process 5 on n17 now" in capsys.readouterr().err


def test_waiting_for_the_holder(tmp_path: Path) -> None:
    script = SHIM + textwrap.dedent(
        """
        from pathlib import Path
        folder = Path(sys.argv[3])
        for _ in range(5):
            with files.RunLock(folder, wait=True):
                count = int((folder / "count").read_text())
                (folder / "count").write_text(str(count + 1))
        """
    )
    (tmp_path / "count").write_text("0")
    command = [sys.executable, "-c", script, "shared", "here", str(tmp_path)]
    for process in [subprocess.Popen(command) for _ in range(3)]:
        assert process.wait(120) == 0
    assert (tmp_path / "count").read_text() == "15"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EXDEV, "cannot put one file in the place of another"),
        (errno.ENOSYS, "cannot put one file in the place of another"),
        (errno.EPERM, "cannot be written .*choose another --out"),
        (errno.ENOSPC, "no space left on the device"),
        (errno.EDQUOT, "no space left on the device"),
    ],
)
def test_a_file_system_that_refuses_to_rename(
    tmp_path: Path, number: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_text("old")

    def refuse(source: Any, target: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=message):
        files.write(tmp_path / "x", "new")
    with pytest.raises(UserError, match=message), files.explained(tmp_path):
        refuse(None, None)
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and (tmp_path / "x").read_text() == "old"


def test_a_holder_that_is_interrupted_while_it_takes_the_lock_leaves_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process lives on, so that whoever waits for it would wait for ever."""

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt), files.RunLock(tmp_path):
        pass
    monkeypatch.undo()
    with files.RunLock(tmp_path):  # RunBusy if the record were there
        pass
