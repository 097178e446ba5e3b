"""Programs that tests start: a user's shell, and how long they may take."""

import os

HANGS = 1800  # seconds: far beyond any load, so that only what hangs is ended


def plain(**more: str) -> dict[str, str]:
    """Without what `scaling.cli` sets where a test imports it. (In a notebook's kernel that is
    started in the folder that PYTHONPATH names, PYTHONSAFEPATH takes that folder away: ipykernel
    drops the first entry if it is the current folder.)"""
    ours = ("PYTHONSAFEPATH", "PYTHONPATH")
    return {k: v for k, v in os.environ.items() if k not in ours} | more
