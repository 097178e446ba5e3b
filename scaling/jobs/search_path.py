"""Where Python looks for modules: never in the folder that a user happens to stand in.

`python -m` and `python -c` look there first. A `scaling/` or random.py of the user's would be run
in place of ours or Python's own, here and in every worker. Imports little: what is imported before
the path is set right may already be somebody else's.
"""

from __future__ import annotations

import os
import site
from collections.abc import Iterable

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))  # our package is found here
NAME = "scaling"


def ours(entries: Iterable[str]) -> list[str]:
    """`entries` of a search path without those that would give others' modules in place of ours.

    Left out are the current folder and, but for Python's own folders, those with modules of our
    name. Unless we are installed among Python's own, our place is the first.
    """
    own = {os.path.realpath(p) for p in (*site.getsitepackages(), site.getusersitepackages())}
    own.add(os.path.realpath(os.path.dirname(os.__file__)))
    root = os.path.realpath(ROOT)
    kept = [e for e in entries if os.path.realpath(e or ".") in own or not _others(e, root)]
    return kept if root in own else [ROOT, *(e for e in kept if os.path.realpath(e) != root)]


def _others(entry: str, root: str) -> bool:
    there = os.path.realpath(entry or ".")
    if there == root:
        return False
    relative = not os.path.isabs(entry) and os.path.isdir(there)  # else an import hook's mark
    held = [os.path.join(there, NAME + kind) for kind in ("", ".py")]
    return relative or there == _here() or any(map(os.path.exists, held))


def _here() -> str:
    try:
        return os.path.realpath(os.getcwd())
    except FileNotFoundError:  # it was removed
        return ""


def variables() -> dict[str, str]:
    """Of the environment, so that every Python that is started with them looks where we look."""
    given = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(ours(given.split(os.pathsep) if given else ()))
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": path}
