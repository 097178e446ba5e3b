"""How often the path of `scaling fit` or `scaling report` comes back to a room left before.

    python benchmarks/returns.py fit runs.csv
    python benchmarks/returns.py report studies/quickstart       # writes its page again
    python benchmarks/returns.py --of /tmp/base fit runs.csv     # of another version's work tree

The command runs under `sys.setprofile`, which sees every call from a file of ours to another one;
what imports call is left out, and a call by way of a library is that of the file before it. Each
pair of files counts once, in the order of first calls. Follow the pairs: go to the caller, then to
what it calls. Whoever enters a place that was left before has come back. A place is a file, or a
room: a folder of scaling/, models/ or analysis/, or a file that lies in one of these itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

Edge = tuple[str, str]  # files that call and are called, from the root: analysis/laws/fit.py


class Trace:
    """Pairs of files of one work tree, of which the first calls the second."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.edges: dict[Edge, None] = {}
        self._names: dict[str, str | None] = {}

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        callee = self._name(frame) if event == "call" else None
        if callee is None:
            return
        caller, before = None, frame.f_back
        while before is not None:
            if before.f_code.co_filename.startswith("<frozen importlib"):
                return
            caller = caller or self._name(before)
            before = before.f_back
        if caller is not None and caller != callee:
            self.edges.setdefault((caller, callee))

    def _name(self, frame: FrameType) -> str | None:
        given = frame.f_code.co_filename
        if given not in self._names:
            path = Path(given).resolve()
            ours = path.suffix == ".py" and path.is_relative_to(self.root)
            name = str(path.relative_to(self.root)) if ours else ""
            self._names[given] = (
                name if name.split("/")[0] in ("scaling", "models", "analysis") else None
            )
        return self._names[given]


def room(file: str) -> str:
    return "/".join(file.removesuffix(".py").split("/")[:2])


def returns(edges: list[Edge], place: Callable[[str], str]) -> int:
    """How often a place that was left is entered again on the way along the edges."""
    pairs = dict.fromkeys((place(a), place(b)) for a, b in edges)
    left: set[str] = set()
    here, count = "", 0
    for there in (end for a, b in pairs if a != b for end in (a, b)):
        if there != here:
            count += there in left
            left.add(here)
            here = there
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--of", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="as of `scaling`")
    asked = parser.parse_args()
    sys.path.insert(0, str(asked.of.resolve()))
    cli = import_module("scaling.cli")
    trace = Trace(asked.of)
    sys.argv = ["scaling", *asked.command]
    sys.setprofile(trace)
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.setprofile(None)
    edges = list(trace.edges)
    for what, place in (("files", str), ("rooms", room)):
        places = {place(end) for edge in edges for end in edge}
        print(f"{what}: {len(places)} on the way, {returns(edges, place)} times back")


if __name__ == "__main__":
    main()
