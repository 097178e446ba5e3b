"""Fixtures shared by all tests."""

import os
import signal
from pathlib import Path

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# A shell's background job ignores Ctrl-C, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


SLOW = (
    "test_kills.py",
    "test_study.py",
    "test_locks.py",
    "test_probe.py",
    "test_launch.py",
    "test_cli.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first, so that no core idles at the end."""
    items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real clips, images and published tables; it is not part of the repository."""
    path = Path(os.environ.get("SCALING_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real data not found at {path} (set SCALING_SHARED_DATA)")
    return path
