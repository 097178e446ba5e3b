"""A user's own models/, analysis/ or random.py, in the folder where a command is given."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from scaling.jobs import search_path
from scaling.jobs.submission import executor
from tests.ports import meeting_port
from tests.shell import HANGS, plain
from tests.slurm.cluster_work import until

STUDY = """\
study: tiny
data:
  frames: 2
  size: 16
  stride: 1
  train_sequences: 256
  val_sequences: 16
  sources:
    - {name: leaves, kind: leaves}
tokenizer: {patch: 4, codes: 64, fit_frames: 200}
model: {base_width: 32}
train: {batch: 4, warmup_steps: 4, evals: 3}
ladder: {sizes: [t16, t24], log2_lr: -6, budgets_macs: [1e8, 4e8, 1.2e9]}
launch: {parallel: 2, threads: 1}
"""
THEIRS = ("models/__init__.py", "analysis/__init__.py", "numbers.py", "random.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Modules that leave a mark when they are imported, and have nothing that anyone wants."""
    marks = tmp_path / "marks"
    marks.mkdir()
    there = tmp_path / "there"
    for name in THEIRS:
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        mark = marks / name.replace("/", "-")
        (there / name).write_text(f"open({str(mark)!r}, 'a').write('imported\\n')\n")
    return there


def marks(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder.parent / "marks").iterdir())


def test_the_marks_are_left_where_nobody_sees_to_it(folder: Path) -> None:
    call = [sys.executable, "-m", "submitit.core._submit", "--help"]
    subprocess.run(call, cwd=folder, env=plain(), capture_output=True)
    assert marks(folder)


def test_a_whole_study_from_there(folder: Path) -> None:
    """Tokens by spawned processes, runs of a worker, the law, MLflow's database, the report."""
    (folder / "tiny.yaml").write_text(STUDY)
    command = [sys.executable, "-m", "scaling.cli", "study", "tiny.yaml"]
    done = subprocess.run(command, cwd=folder, env=plain(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "studies" / "tiny" / "law.json").is_file()
    assert (folder / "studies" / "tiny" / "report.html").is_file()
    assert (folder / "studies" / "tiny" / "mlflow.db").is_file()
    assert marks(folder) == []

    port = meeting_port()
    command = [sys.executable, "-m", "scaling.cli", "ui", "studies/tiny", "--port", str(port)]
    with subprocess.Popen(
        command, cwd=folder, env=plain(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as server:  # fmt: skip
        try:
            until(lambda: answers(f"http://127.0.0.1:{port}/health"), seconds=HANGS)
        finally:
            os.killpg(server.pid, signal.SIGINT)
    assert marks(folder) == []


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except urllib.error.HTTPError as error:  # a server that wants its key
        return error.code == 403
    except OSError:
        return False


@pytest.mark.parametrize("path", [".", "{folder}", "{parent}:", "{parent}:{folder}"])
@pytest.mark.parametrize("module", [True, False], ids=["python -m", "scaling"])
def test_pythonpath(folder: Path, path: str, module: bool) -> None:
    """Also where it names such a folder; without one that has modules of Python's own names, which
    a user's every program would import."""
    for name in ("numbers.py", "random.py"):
        (folder / name).unlink()
    start = [sys.executable, "-m", "scaling.cli"] if module else [_script()]
    given = path.format(folder=folder, parent=folder.parent)
    call = [*start, "models", "t16"]
    done = subprocess.run(
        call, cwd=folder, env=plain(PYTHONPATH=given), capture_output=True, text=True
    )
    assert done.returncode == 0 and "t16" in done.stdout, done.stderr
    assert marks(folder) == []


def _script() -> str:
    return str(Path(sys.executable).with_name("scaling"))


def test_what_jobs_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = folder.parent / "other"
    other.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", f"{other}::.:{folder}:{folder.parent}")
    told = search_path.variables()
    assert told["PYTHONSAFEPATH"] == "1"
    kept = [p for p in told["PYTHONPATH"].split(":") if p != search_path.ROOT]
    assert kept == [str(other), str(folder.parent)], "a user's own library is still found"
    mark = "__editable__.theirs.finder.__path_hook__"
    assert mark in search_path.ours(["", *sys.path, mark])
    for name in sys.path:
        if name and Path(name) != folder:
            assert name in search_path.ours(sys.path)


def test_the_command_line_of_a_slurm_job(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is built, and run as on a node that the environment did not travel to."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\n")  # submitit looks whether it is there
    (tmp_path / "bin" / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    made = executor(tmp_path / "jobs", "slurm")
    line = made._executor._submitit_command_str
    call = [*shlex.split(line), "--help"]
    done = subprocess.run(call, cwd=folder, env=plain(), capture_output=True, text=True)
    assert done.returncode == 0 and "Run a job" in done.stdout, done.stderr
    assert marks(folder) == []
