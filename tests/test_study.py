"""The study end to end, through the command line, in the way a user meets it: run it, run it again,
kill it, corner it. Sizes are tiny; what is asserted is the same as for large ones."""

import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
from typer.testing import CliRunner

from scaling.cli import app
from scaling.results import NOT_REPEATABLE, POSITIONS
from scaling.study.running_page import RunningPage
from scaling.study.status import run_states
from scaling.study_folder import Study
from scaling.tracking.load import load
from tests import warm
from tests.shell import HANGS, answer, scaling
from tests.warm import Warm

TINY = """\
study: tiny
data:
  frames: 2
  size: 16
  stride: 1
  train_sequences: 512
  val_sequences: 16
  sources:
    - {name: leaves, kind: leaves}
tokenizer: {patch: 4, codes: 64, fit_frames: 200}
model: {base_width: 32}
train: {batch: 4, warmup_steps: 4, evals: 3, checkpoint_seconds: 0.2, precision: fp32}
lr: {widths: [16, 32], layers: 2, heads: 2, log2_min: -7, log2_max: -5, steps: 30}
ladder:
  sizes: [t16, {d: 24, layers: 2, heads: 4}, t32]
  batch: {t32: 2}
  budgets_macs: [1e8, 2e8, 4e8, 7e8, 1.1e9]
launch: {parallel: 2, threads: 1}
fit: {resamples: 200}
"""
# Too few for a law: what is asked of it is whether its rows survive.
QUICK = TINY.replace("{d: 24, layers: 2, heads: 4}, t32]\n  batch: {t32: 2}", "t24]")
QUICK = QUICK.replace(", 7e8, 1.1e9", "")


def command(out: Path, *more: str, study: str = QUICK) -> list[str]:
    yaml = out / "tiny.yaml"
    if not yaml.exists():
        out.mkdir(parents=True, exist_ok=True)
        yaml.write_text(study)
    return [sys.executable, "-m", "scaling.cli", "study", str(yaml), "--out", str(out), *more]


def run(out: Path, *more: str) -> str:
    """All that the command says (tests/jobs/test_search_path.py has it as a process)."""
    return scaling(*command(out, *more)[3:])


def table(out: Path) -> pd.DataFrame:
    rows = load(out / "tiny")
    return rows.drop(columns=[*NOT_REPEATABLE, "git_sha"])


def processes(out: Path) -> list[str]:
    """Command lines of live processes that work under a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if str(out) in line and state != "Z":
                found.append(f"{entry.name} {line}")
    return found


def no_process_left(out: Path, within: float = HANGS) -> None:
    until = time.monotonic() + within
    while (left := processes(out)) and time.monotonic() < until:
        time.sleep(0.1)
    assert left == []


@pytest.fixture(scope="session")
def undisturbed(once: Callable[..., Path]) -> pd.DataFrame:
    """The table of QUICK where nothing goes wrong."""
    return table(once("quick", run))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("finished")
    command(out, study=TINY)
    return out, run(out)


def test_goes_the_whole_way(finished: tuple[Path, str]) -> None:
    out, said = finished
    assert "MACs" in said and str(out / "tiny" / "report.html") in said
    for name in ("rows.csv", "law.json", "report.html", "mlflow.db", "study.yaml", "plan.json"):
        assert (out / "tiny" / name).stat().st_size > 0
    rows = table(out)
    best = json.loads((out / "tiny" / POSITIONS).read_text())["run_id"]
    ladder = rows[rows.decayed & (rows.role == "ladder")]
    assert best == ladder.sort_values("val_loss").run_id.iloc[0]
    assert "Loss by token position" in (out / "tiny" / "report.html").read_text()
    assert set(rows.role) == {"lr_sweep", "ladder"}
    assert rows[(rows.role == "ladder") & rows.decayed].groupby("size").size().min() >= 4


def test_second_call_changes_nothing(finished: tuple[Path, str]) -> None:
    out, _ = finished
    before = stamps(out)
    scaling(*command(out)[3:])
    assert stamps(out) == before


def test_a_folder_is_continued_where_it_lies(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moved, renamed and with a run missing; `plan` says what is left of it."""
    out, _ = finished
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(out / "tiny", moved)
    ladder = [e for e in Study(moved).plan().runs if e["role"] == "ladder"]
    gone = min(ladder, key=lambda entry: entry["macs"])
    shutil.rmtree(moved / "runs" / gone["run_id"])

    def say(*words: str) -> str:
        return answer(*words)[1]

    monkeypatch.chdir(tmp_path)
    said = say("plan", str(moved), "--no-measure")
    assert re.search(r"left: [\d.e+]+ of [\d.e+]+ training MACs .*1 waiting", said), said
    assert "left: not known" in say("plan", str(moved), "--no-measure", "--set", "seed=1")
    assert "leave --out" in say("study", str(moved), "--out", str(tmp_path))
    said = say("study", str(moved))
    assert str(moved / "report.html") in said, said
    assert "left: 0 of" in say("plan", str(moved), "--no-measure")
    assert not (tmp_path / "studies").exists()
    pd.testing.assert_frame_equal(
        load(moved).drop(columns=[*NOT_REPEATABLE, "git_sha"]), table(out)
    )
    with sqlite3.connect(moved / "mlflow.db") as database:
        names = {name for (name,) in database.execute("select name from experiments")}
    assert names - {"Default"} == {"renamed"}


def test_a_page_shows_a_study_at_work(finished: tuple[Path, str], tmp_path: Path) -> None:
    """The points of its finished runs and the curve of one that is not, as the table has them."""
    study = Study(tmp_path / "copy")
    shutil.copytree(finished[0] / "tiny", study.folder)
    page, before = RunningPage(study), study.report_html.read_bytes()
    page._due = 0
    page.write_if_due(run_states(study), "all done")
    assert study.report_html.read_bytes() == before
    gone = max((e for e in study.plan().runs if e["role"] == "ladder"), key=lambda e: e["macs"])
    for name in ("rows.json", "points.json"):
        (study.run(gone["run_id"]).path / name).unlink()
    page.write_if_due(run_states(study), "ladder: 2/3 runs")
    text = study.report_html.read_text()
    assert 'http-equiv="refresh"' in text and "ladder: 2/3 runs" in text and "stopped" in text
    study.claim(study.report_html)  # it is the study's own, which the report may replace
    ((csv,),) = [re.findall(r'download="compute.csv" href="data:[^,]+,([^"]+)"', text)]
    shown = pd.read_csv(io.StringIO(unquote(csv)))
    there = table(finished[0])
    there = there[there.role == "ladder"].sort_values(["params", "run_id", "macs_total", "decayed"])
    page._due = 0
    shutil.rmtree(study.runs_dir)  # before the first evaluation of all
    page.write_if_due(run_states(study), "0/9 runs")
    assert "waiting" in study.report_html.read_text()
    for column in ("macs_total", "val_loss", "tokens"):
        assert shown[column].tolist() == pytest.approx(there[column].tolist(), rel=1e-12)
    assert (shown.kind == "decayed").sum() == there.decayed.sum()


OF_ROWS = ("audit", "choices", "compare", "fit", "next")
ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DOCS = "".join(page.read_text() for page in sorted((ROOT / "docs").rglob("*.md")))
# What the README says of a study, and the site of studies/x; `ui` and `--watch` go on until they
# are stopped.
LINES = sorted(
    {
        *re.findall(r"scaling (?!ui)[a-z]+ (?:studies/\w+|sweeps/x\.yaml)[^`\n]*", README),
        *re.findall(r"scaling (?!ui)[a-z]+ (?:studies/x\b(?!/)|sweeps/x\.yaml)[^`\n]*", DOCS),
    }
)


@pytest.mark.parametrize("line", LINES)
def test_command_lines_of_the_readme(finished: tuple[Path, str], line: str) -> None:
    """On a real study, which may be too small for a law: then that is said."""
    out, _ = finished
    words = line.replace("sweeps/x.yaml", str(out / "tiny.yaml")).split()[1:]
    words = [str(out / "tiny") if word.startswith("studies/") else word for word in words]
    words = [word for word in words if word != "--watch"]
    if words[0] in ("study", "plan"):
        words += ["--out", str(out)]
    code, said = answer(*words)
    refused = code == 2 and "error: " in said and words[0] in (*OF_ROWS, "targets")
    assert code == 0 or refused, said


# Of rows alone: the law of the curves is of what the runs logged.
@pytest.mark.parametrize(
    "line", [one for one in LINES if one.split()[1] in OF_ROWS and "--form curve" not in one]
)
def test_command_lines_of_the_readme_on_its_study(
    shared_data: Path, tmp_path: Path, line: str
) -> None:
    """The quickstart's own rows have a law, and every line about it an answer."""
    rows = shared_data.parent / "cases" / "tables" / "own_rows.csv"
    if not rows.exists():
        pytest.skip(f"the quickstart's rows are not at {rows}")
    words = line.split()[1:]
    for place, word in enumerate(words):
        if word.startswith("studies/"):
            words[place] = str(shutil.copy(rows, tmp_path / f"{Path(word).name}.csv"))
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0 and done.output


def stamps(out: Path) -> dict[str, int]:
    files = (p for p in (out / "tiny").rglob("*") if p.is_file() and "lock" not in p.name)
    return {str(p): p.stat().st_mtime_ns for p in files}


def test_directories_mlflow_and_csv_are_the_same_frame(finished: tuple[Path, str]) -> None:
    out, _ = finished
    folder = out / "tiny"
    rows = load(folder)
    pd.testing.assert_frame_equal(rows, load(folder / "rows.csv"), check_exact=True)
    mlflow = load(f"sqlite:///{folder / 'mlflow.db'}#tiny")
    pd.testing.assert_frame_equal(rows, mlflow, check_exact=True)


def test_ctrl_c_and_again(undisturbed: pd.DataFrame, tmp_path: Path) -> None:
    driver = Warm(warm.command, *command(tmp_path)[3:], said=tmp_path / "said")
    while not list((tmp_path / "tiny" / "runs").glob("*/metrics.jsonl")):
        time.sleep(0.05)
        assert driver.poll() is None
    driver.send_signal(signal.SIGINT)
    assert driver.wait() == 130
    said = driver.said.read_text()
    assert "the same command continues" in said and "Traceback" not in said
    no_process_left(tmp_path)
    scaling(*command(tmp_path)[3:])
    pd.testing.assert_frame_equal(table(tmp_path), undisturbed, check_exact=True)


def test_a_source_that_may_not_repeat(tmp_path: Path) -> None:
    tmp_path.joinpath("tiny.yaml").write_text(
        QUICK.replace("kind: leaves}", "kind: leaves, exhausted: error}").replace("512", "64")
    )
    said = scaling(*command(tmp_path)[3:], code=2)
    assert "exhausted: error" in said and "leaves: " in said
    assert not (tmp_path / "tiny" / "runs").exists()


def test_second_driver_is_told(tmp_path: Path) -> None:
    first = subprocess.Popen(command(tmp_path), stdout=subprocess.DEVNULL)
    try:
        while not (tmp_path / "tiny" / "data").exists():
            time.sleep(0.02)
            assert first.poll() is None
        first.send_signal(signal.SIGSTOP)  # it cannot end meanwhile
        said = scaling(*command(tmp_path)[3:], code=2)
        assert "One driver works on a study at a time" in said
        said = scaling("sync", str(tmp_path / "tiny"), code=2)
        assert "sends what is missing when it ends" in said
    finally:
        first.send_signal(signal.SIGCONT)
        first.send_signal(signal.SIGINT)
        first.wait(HANGS)


def test_locked_mlflow_database(finished: tuple[Path, str]) -> None:
    """Another program holds the database: the message says so, and nothing is damaged."""
    out, _ = finished
    folder = out / "tiny"
    (folder / "mlflow.sent.json").unlink()
    database = sqlite3.connect(folder / "mlflow.db", isolation_level=None)
    database.execute("BEGIN EXCLUSIVE")
    try:
        said = scaling(*command(out)[3:], code=2)
        assert "mlflow.db" in said and "lock" in said
    finally:
        database.execute("ROLLBACK")
        database.close()
    scaling(*command(out)[3:])
    pd.testing.assert_frame_equal(
        load(folder), load(f"sqlite:///{folder / 'mlflow.db'}#tiny"), check_exact=True
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB; needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_no_space_left(undisturbed: pd.DataFrame, small_disk: Path, tmp_path: Path) -> None:
    yaml = tmp_path / "tiny.yaml"
    yaml.write_text(QUICK)
    call = ["study", str(yaml), "--out", str(small_disk)]
    assert "space left" in scaling(*call, code=2)
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    scaling(*call)
    pd.testing.assert_frame_equal(table(small_disk), undisturbed, check_exact=True)


def test_corrupt_shard(tmp_path: Path) -> None:
    scaling("encode", *command(tmp_path)[4:])
    (shard,) = (tmp_path / "tiny" / "data").glob("*/*train*.bin")
    content = bytearray(shard.read_bytes())
    content[1000] ^= 255
    shard.write_bytes(content)
    said = scaling(*command(tmp_path)[3:], code=2)
    assert shard.name in said
