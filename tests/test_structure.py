"""The house: who may import whom, and what may not be in the repository."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("scaling", "scaling/models", "scaling/analysis")  # the last two are links
MODULES = sorted({p for room in ROOMS for p in (ROOT / room).rglob("*.py")})
HOMES = {
    "mup": {"scaling/models/parametrization.py"},
    # our sweeps, others' studies
    "optuna": {"scaling/study/sweep.py", "scaling/analysis/tables/trials.py"},
    "submitit": {"scaling/jobs/launch.py"},
    "mlflow": {"scaling/tracking/track.py"},
}

READ_BY_ANALYSIS = {
    *("errors", "results", "study.optimum", "storage.outputs", "storage.scratch", "data.tokens")
}
# What the modules of scaling/ and its rooms may not know of.
CLOSED = {
    "scaling": {"commands", "cli"},
    "commands": {"cli"},
    "data": {"jobs", "representations", "commands", "study", "training", "plan"},
    "jobs": {"representations", "commands", "study"},
    "representations": {"jobs", "commands", "study"},
}


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(names: set[str], places: set[str]) -> set[str]:
    return {n for n in names if any(n == p or n.startswith(f"{p}.") for p in places)}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_import_directions(path: Path) -> None:
    names = imports(path)
    roots = {n.split(".")[0] for n in names}
    assert not roots & {"models", "analysis", "sweeps"}, "one name is installed: scaling"
    ours = {n.removeprefix("scaling.") for n in names if n.startswith("scaling.")}
    if path.is_relative_to(ROOT / "scaling" / "models"):
        assert ours == within(ours, {"models", "errors"})
    elif path.is_relative_to(ROOT / "scaling" / "analysis"):
        assert "torch" not in roots
        assert ours == within(ours, {"analysis", *READ_BY_ANALYSIS})
    else:
        if path.name != "pipeline.py" and path.parent.name != "commands":
            assert not within(ours, {"analysis"}), "a study's end and commands read it"
        if path.name != "cli.py":
            assert not within(ours, CLOSED.get(path.parent.name, CLOSED["scaling"]))
    assert "torchvision" not in roots, "it does not import beside a CPU build of torch"
    for library, homes in HOMES.items():
        if library in roots:
            assert str(path.relative_to(ROOT)) in homes


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
    """`scaling --help` and `status` start fast: no torch, no MLflow, no pandas."""
    code = (
        "import sys, scaling.cli, scaling.study.status\n"
        "heavy = {'torch', 'mlflow', 'pandas', 'optuna', 'submitit', 'plotly'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)
