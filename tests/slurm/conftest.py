"""A cluster that `sbatch` reaches; without one these tests are skipped."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def cluster() -> None:
    if shutil.which("sbatch") is None:
        pytest.skip("no `sbatch` on this machine")
    answer = subprocess.run(["sinfo", "-h"], capture_output=True, text=True, timeout=60)
    if answer.returncode:
        pytest.skip(f"`sbatch` reaches no cluster: {answer.stderr.splitlines()[0]}")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions travel to jobs by name, so the nodes must find tests.slurm.cluster_work."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    from scaling.jobs.squeue import cancel

    yield
    cancel(tmp_path / "jobs")
