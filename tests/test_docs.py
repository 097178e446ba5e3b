"""The site of docs/: it builds without a warning, its links lead somewhere, its examples run."""

import doctest
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")]
PAGES += [ROOT / "benchmarks" / "RESULTS.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted(
    path
    for room in ("scaling", "analysis", "models")
    for path in (ROOT / room).rglob("*.py")
    if ">>> " in path.read_text()
)


def prose(path: Path) -> str:
    """A page with what it includes, and without its blocks of code."""
    text = path.read_text()
    for name in re.findall(r"```\{include\} (\S+)\n```", text):
        text = text.replace(f"```{{include}} {name}\n```", (path.parent / name).read_text())
    return re.sub(r"(?ms)^(```+|:::+).*?^\1$", "", text)


def anchors(path: Path) -> set[str]:
    """What GitHub, and the site, call the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"(?m)^#+ (.*)$", prose(path)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        numbered = (f"{slug}-{n}" for n in range(1, 99))
        found.add(slug if slug not in found else next(n for n in numbered if n not in found))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    assert not dead


def test_anchors_are_those_of_github(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b`, c: 95%\n## N* and D*\n## A b c 95\n```\n# no heading\n```\n")
    assert anchors(page) == {"a-b-c-95", "n-and-d", "a-b-c-95-1"}


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """From a copy, so that the pages made on the way do not land in the repository; notebooks are
    not executed (tests/test_notebooks.py does)."""
    for name in ("sphinx", "myst_nb", "furo"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (`make` installs the group docs)")
    made = shutil.ignore_patterns("_build", "modules", "*.ipynb")
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=made)
    for path in ROOT.iterdir():
        if path.name not in ("docs", "studies") and not path.name.startswith("."):
            (tmp_path / path.name).symlink_to(path)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "docs", "built"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "built").rglob("*.html"))
    assert {"index.html", "02_scaling_law.html"} <= {page.name for page in pages}
    fetched = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*")
    assert not [(page.name, fetched.findall(page.read_text())) for page in pages
                if fetched.search(page.read_text())]  # fmt: skip
    styles = "".join(path.read_text() for path in (tmp_path / "built").rglob("*.css"))
    assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']*", styles)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: str(p.relative_to(ROOT)))
def test_examples_of_docstrings(path: Path) -> None:
    inside = path.relative_to(ROOT).with_suffix("")
    name = ".".join(part for part in inside.parts if part != "__init__")
    module = importlib.import_module(name if name.startswith("scaling") else f"scaling.{name}")
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert found.attempted and not found.failed
