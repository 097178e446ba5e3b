"""The house: who may import whom, and what may not be in the repository."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scaling.study_folder import ProbeFolder, RunFolder, Study, TokenFolder

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("scaling", "scaling/models", "scaling/analysis")  # the last two are links
MODULES = sorted({p for room in ROOMS for p in (ROOT / room).rglob("*.py")})
HOMES = {
    "mup": {"scaling/models/parametrization.py"},
    # our sweeps, others' studies
    "optuna": {"scaling/study/sweep.py", "scaling/analysis/tables/trials.py"},
    "submitit": {"scaling/jobs/submission.py"},
    "mlflow": {"scaling/tracking/mlflow_copy.py"},
}

# From top to bottom: a room imports what stands below it, inside functions too.
ORDER = (
    "cli",
    "commands",
    "runs",
    "representations",
    "study",
    "plan",
    "jobs",
    "tracking",
    "training",
    "data",
    "study_folder",
    "config",
    "results",
    "checkpoint",
    "storage",
    "analysis",
    "models",
    "errors",
)


def named(path: Path) -> str:
    """`scaling.data.media` of a module's file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def room_of(path: Path) -> str:
    return [*named(path).split("."), ""][1]


def imports(path: Path, *, typing_too: bool = True) -> set[str]:
    """Modules, of ours where a name is one, that a file imports anywhere."""
    tree = ast.parse(path.read_text())
    left_out: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            left_out |= {id(n) for n in ast.walk(node)} if not typing_too else set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in NAMES else node.module for name in whole}
    return names


NAMES = {named(path) for path in MODULES}


def within(names: set[str], places: set[str]) -> set[str]:
    return {n for n in names if any(n == p or n.startswith(f"{p}.") for p in places)}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_import_directions(path: Path) -> None:
    names = imports(path)
    roots = {n.split(".")[0] for n in names}
    assert not roots & {"models", "analysis", "sweeps"}, "one name is installed: scaling"
    room = room_of(path)
    ours = {n.removeprefix("scaling.") for n in names if n.startswith("scaling.")}
    if room == "analysis":
        assert "torch" not in roots
        assert ours == within(ours, {"analysis", "errors"}), "it gets frames and opens no folder"
    if room:  # what the name `scaling` itself imports is a matter of that file
        below = set(ORDER[ORDER.index(room) :])
        assert ours == within(ours, below), "arrows lead down"
    assert "torchvision" not in roots, "it does not import beside a CPU build of torch"
    for library, homes in HOMES.items():
        if library in roots:
            assert str(path.relative_to(ROOT)) in homes


# The rooms of analysis/, from top to bottom.
INSIDE = (
    "report", "findings", "figures", "questions", "tables", "plain", "laws", "schema",
)  # fmt: skip
# `law.figure()` of the front door
DRAWS_ITSELF = {
    f"scaling.analysis.questions.{name}" for name in ("frontier", "form_study", "rate_study")
}


def test_import_directions_inside_analysis() -> None:
    for path in MODULES:
        name = named(path).removeprefix("scaling.analysis.").split(".")[0]
        if room_of(path) != "analysis" or named(path) == "scaling.analysis":
            continue
        allowed = {f"scaling.analysis.{room}" for room in INSIDE[INSIDE.index(name) :]}
        allowed |= {"scaling.analysis.figures"} if named(path) in DRAWS_ITSELF else set()
        ours = within(imports(path) & NAMES, {"scaling.analysis"}) - {"scaling.analysis"}
        assert ours == within(ours, allowed), f"{named(path)}: arrows lead down"


READS = {
    *("open", "read_bytes", "read_text", "iterdir", "glob", "rglob", "walk", "scandir", "listdir"),
    *("load", "loadtxt", "genfromtxt", "fromfile", "memmap", "safe_load"),
}
# What is no study's: a law that somebody saved, the page's own style and script.
READ_THERE = {
    "scaling.analysis.findings": ["read_text"],
    "scaling.analysis.questions.saved_law": ["read_text"],
    "scaling.analysis.report.page": ["read_text", "read_text"],
}


def test_analysis_gets_frames() -> None:
    """It opens no folder and no file of a study, but for the tables that are a user's."""
    found: dict[str, list[str]] = {}
    for path in MODULES:
        if room_of(path) != "analysis" or named(path).startswith("scaling.analysis.tables"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = node.func
                name = getattr(called, "attr", getattr(called, "id", ""))
                if name in READS or re.fullmatch(
                    r"read_(csv|json|parquet|table|pickle|excel)", name
                ):
                    found.setdefault(named(path), []).append(name)
    assert found == READ_THERE


def test_no_circle() -> None:
    """Of modules that import each other, in functions or outside."""
    arrows = {named(p): (imports(p, typing_too=False) & NAMES) - {"scaling"} for p in MODULES}
    left = {k: v - AMONG_COMMANDS if k in AMONG_COMMANDS else v for k, v in arrows.items()}
    while free := {name for name, to in left.items() if not to & left.keys() - {name}}:
        left = {name: to for name, to in left.items() if name not in free}
    assert not left


# Helpers of one command that another one takes.
AMONG_COMMANDS = {f"scaling.commands.{name}" for name in ("comparing", "fitting", "table_options")}


def test_the_rooms_are_few_and_told_of() -> None:
    """CONTRIBUTING's table is in the order of the arrows."""
    rooms = {room_of(path) for path in MODULES} - {""}
    assert rooms == set(ORDER)
    assert len(rooms - {"models", "analysis"}) <= 16
    table = (ROOT / "CONTRIBUTING.md").read_text().split("## The house")[1].split("\n## ")[0]
    told = re.findall(r"^\| `(?:scaling/)?(\w+)(?:\.py|/)` \|", table, flags=re.M)
    assert [room for room in told if room in ORDER] == list(ORDER)


def test_a_name_of_the_studys_folder_is_written_once() -> None:
    """In scaling/study_folder.py, or where that takes it from, below it."""
    there = Path("there")
    folders: list[Any] = [kind(there) for kind in (Study, RunFolder, TokenFolder, ProbeFolder)]
    held = [getattr(f, name) for f in folders for name in dir(f) if not name.startswith("_")]
    names = {p.name for p in held if isinstance(p, Path) and p.parent == there}
    assert {"study.yaml", "rows.json", "index.json", "runs", "law.json"} < names
    twice = []
    for path in MODULES:
        if named(path) == "scaling.study_folder" or named(path).startswith("scaling.analysis."):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                found = names & set(_words(node.right))
            else:
                found = {word for word in _words(node) if "." in word} & names
            twice += [f"{named(path)}:{node.lineno}: {name}" for name in found]  # type: ignore[attr-defined]
    homes = ("scaling.results:", "scaling.storage.outputs:")
    assert not [where for where in twice if not where.startswith(homes)]


def _words(node: ast.AST) -> list[str]:
    """Names in a string: `runs` and `rows.json` of "runs/*/rows.json"."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 60:
        return [] if " " in node.value else node.value.split("/")
    return []


def test_the_top_level_is_known() -> None:
    """A table that somebody tried a command on does not slip in with `git add`."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert {Path(f).parts[0] for f in listed.stdout.splitlines()} <= {
        *(".ci", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile"),
        *(
            "README.md",
            "SECURITY.md",
            "analysis",
            "benchmarks",
            "docs",
            "findings",
            "models",
            "notebooks",
        ),
        *("pyproject.toml", "scaling", "sweeps", "tests"),
    }


def test_no_function_is_longer_than_a_reader_can_hold() -> None:
    """60 lines beside its docstring."""
    longer = set()
    for path in [*MODULES, *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                told = len((ast.get_docstring(node, clean=False) or "").splitlines())
                if (node.end_lineno or 0) - node.lineno - told >= 60:
                    longer.add(f"{path.relative_to(ROOT)}: {node.name}")
    assert not longer


def test_nothing_unfinished() -> None:
    words = ["TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error"]
    command = ["git", "grep", "-nIE", "|".join(words), "--", ".", ":!CHANGELOG.md"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout == ""


def test_the_readme_compares_like_with_like() -> None:
    """Its ratios of speed are those of the same precision on both sides in RESULTS.md."""
    readme, results = ((ROOT / f).read_text() for f in ("README.md", "benchmarks/RESULTS.md"))
    speed = " ".join(readme.split("- **Speed**")[1].split("\n- ")[0].split())
    table = results.split("## Training step")[1].split("\n\n| ")[1].split("\n\n")[0]
    head, _, *rows = table.splitlines()
    column = head.split(" | ").index("x Hugging Face, same precision")
    ratios = {r.split(" | ")[0].strip("| "): r.split(" | ")[column] for r in rows}
    assert f"{ratios['here, compiled']} times in float32" in speed
    assert f"{ratios['here, compiled, bf16']} in bfloat16" in speed


def test_imports_warn_of_nothing() -> None:
    """Of all modules, in an interpreter of their own: what Python or a library gives up is used
    nowhere."""
    names = [str(p.relative_to(ROOT).with_suffix("")).replace(os.sep, ".") for p in MODULES]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    command = [sys.executable, "-W", "error", "-c", code]
    command += [name.removesuffix(".__init__") for name in names]
    subprocess.run(command, cwd=ROOT, check=True)


def test_light_imports() -> None:
    """`scaling --help` and `status` start fast: no torch, no MLflow, no pandas. A study's plan has
    no torch either where there surely is no GPU."""
    code = (
        "import sys, scaling.cli, scaling.study.status, scaling.plan.runs\n"
        "from scaling.jobs import machine\n"
        "machine.computes_in_bf16()\n"
        "heavy = {'torch', 'mlflow', 'pandas', 'optuna', 'submitit', 'plotly'} & set(sys.modules)\n"
        "heavy -= set() if machine._surely_no_cuda() else {'torch'}\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)
