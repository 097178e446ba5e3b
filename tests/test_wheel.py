"""The wheel, built by the project's own backend: what a user without a checkout gets."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.shell import plain

THEIRS = "def __getattr__(name): raise SystemExit('another project imported in place of scaling')"


def build(*arguments: str, cwd: Path, to: Path) -> Path:
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
    command = [sys.executable, "-m", "hatchling", "build", *arguments, "-d", str(to)]
    subprocess.run(command, cwd=cwd, check=True, capture_output=True)
    (built,) = to.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("-t", "wheel", cwd=ROOT, to=tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ of an environment with this wheel and, from here, what it depends on."""
    folder = tmp_path_factory.mktemp("bare") / "env"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # Paths in a .pth are searched; the .pth files there, and so the checkout's, are not read.
    packages = {sysconfig.get_path("purelib"), *(p for p in sys.path if p.endswith("-packages"))}
    (site / "dependencies.pth").write_text("\n".join(sorted(packages)) + "\n")
    return folder / "bin"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Somebody's project, with folders of the commonest names."""
    for name in ("models", "analysis", "sweeps", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(THEIRS)
    return tmp_path


def test_one_name_is_installed(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"scaling"}


def test_a_source_distribution_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    archive = build("-t", "sdist", cwd=ROOT, to=tmp_path / "sdist")
    subprocess.run(["tar", "xzf", str(archive), "-C", str(tmp_path)], check=True)
    again = build(
        "-t", "wheel", cwd=tmp_path / archive.name.removesuffix(".tar.gz"), to=tmp_path / "again"
    )
    assert again.name == wheel.name
    ours, theirs = (
        {i.filename: i.CRC for i in zipfile.ZipFile(w).infolist()} for w in (wheel, again)
    )
    assert ours == theirs


def test_beside_folders_of_the_same_names(installed: Path, project: Path) -> None:
    code = (
        "import models, analysis, tests, scaling\n"
        "import scaling.analysis.questions.frontier, scaling.models.decoder, scaling.cli\n"
        "print(scaling.__file__, models.__file__)"
    )
    (project / "script.py").write_text(code)
    for call in ([str(project / "script.py")], ["-c", code]):
        done = subprocess.run(
            [str(installed / "python"), *call],
            cwd=project,
            env=plain(),
            capture_output=True,
            text=True,
        )
        ours, theirs = done.stdout.split() or (done.stderr, "")
        assert ours.startswith(str(installed.parent)), "the wheel's code ran, not the checkout's"
        assert theirs == str(project / "models" / "__init__.py")


def test_a_study_by_its_name_without_a_checkout(installed: Path, project: Path) -> None:
    def scaling(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(installed / "scaling"), *arguments]
        return subprocess.run(command, cwd=project, env=plain(), capture_output=True, text=True)

    done = scaling("plan", "quickstart", "--no-measure")
    assert done.returncode == 0 and "study quickstart: " in done.stdout, done.stderr
    done = scaling("plan", "quikstart", "--no-measure")
    assert done.returncode == 2 and "did you mean 'quickstart'?" in done.stderr
    done = scaling("plan", "zzz", "--no-measure")
    assert "those that ship: architecture, attention, clips" in done.stderr
    assert scaling("--version").stdout == f"scaling {wheel_version(installed)}\n"


def wheel_version(installed: Path) -> str:
    (info,) = installed.parent.glob("lib/python*/site-packages/scaling-*.dist-info")
    return info.name.removeprefix("scaling-").removesuffix(".dist-info")
