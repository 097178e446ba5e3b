"""The wheel, built by the project's own backend: what a user without a checkout gets."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT


def test_a_study_by_its_name_without_a_checkout(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(installed)
    elsewhere.mkdir()
    call = "import sys, scaling.cli as c; sys.stderr.write(c.__file__); c.main()"

    def scaling(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", call, *arguments],
            cwd=elsewhere,
            env=os.environ | {"PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
        )

    done = scaling("plan", "quickstart", "--no-measure")
    assert done.stderr.startswith(str(installed)), "the wheel's code ran, not the checkout's"
    assert done.returncode == 0 and "study quickstart: " in done.stdout
    done = scaling("plan", "quikstart", "--no-measure")
    assert done.returncode == 2 and "did you mean 'quickstart'?" in done.stderr
    done = scaling("plan", "zzz", "--no-measure")
    assert "those that ship: architecture, attention, clips" in done.stderr
