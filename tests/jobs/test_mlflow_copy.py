"""MLflow holds what the run directories hold, whatever happened on the way there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scaling.analysis.questions import saved_law, simulate
from scaling.analysis.questions.frontier import fit_frontier
from scaling.errors import UserError
from scaling.results import COLUMNS, Row, dumps, frame
from scaling.study_folder import RunFolder, Study
from scaling.tracking import mlflow_copy
from scaling.tracking.load import load
from tests.shell import HANGS

EXAMPLE: dict[str, Any] = {
    "str": "word, 'quoted' \u00b5 2^-6",
    "int": 7,
    "float": 0.1,
    "bool": True,
}


def row(run_id: str, steps: int, **changes: Any) -> Row:
    macs = steps * 3_000_000_000_007  # beyond the integers that a float holds
    return {
        **{column: EXAMPLE[kind] for column, kind in COLUMNS.items()},
        "run_id": run_id,
        "study": "small",
        "role": "ladder",
        "steps": steps,
        "macs_total": macs,
        "tokens": steps * 1024,
        "epochs": None,
        "lr": 2.0**-6,
        "log2_lr": -6.0,
        "seconds": steps * 0.25,
        "mfu": None,
        "budget_macs": None,
        "val_loss": 2.0 + 1 / 3 + 1e-15 * steps,
        "val_loss/leaves": 1 / 7,
        "decayed": False,
        "status": "finished",
    } | changes


def write(folder: Path, run_id: str, rows: list[Row]) -> None:
    run_dir = folder / "runs" / run_id
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "rows.json").write_text(dumps(rows))
    with open(run_dir / "metrics.jsonl", "w") as file:
        for step in range(10, 40, 10):
            record = {
                "position": step,
                "step": step,
                "macs": step * 3,
                "train_loss": 4 - step / 100,
            }
            file.write(json.dumps({**record, "lr": 0.1, "seconds": step / 4}) + "\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of four finished runs (one diverged), in MLflow."""
    folder = tmp_path_factory.mktemp("track") / "small"
    for k in range(3):
        decayed = row(f"run{k}", 30, decayed=True, budget_macs=9e13)
        write(folder, f"run{k}", [row(f"run{k}", 10), row(f"run{k}", 20), decayed])
    lost = {"val_loss": None, "val_loss/leaves": None, "train_loss": float("inf")}
    write(folder, "wild", [row("wild", 10), row("wild", 20, status="diverged", **lost)])
    (folder / "runs" / "unfinished").mkdir()
    assert mlflow_copy.sync(Study(folder)) == 4
    return folder


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "small"))


def directory_rows(folder: Path) -> list[Row]:
    return [r for d in sorted((folder / "runs").iterdir()) for r in RunFolder(d).read() or []]


def contents(folder: Path) -> dict[str, int]:
    """Live rows of MLflow's tables."""
    live = "run_uuid IN (SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active')"
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return {
            table: database.execute(f"SELECT COUNT(*) FROM {table} WHERE {live}").fetchone()[0]
            for table in ("runs", "metrics", "params", "tags")
        }


def test_reads_back_to_the_last_digit(made: Path) -> None:
    rows = mlflow_copy.load_rows(mlflow_copy.default_uri(Study(made)), "small")
    key = lambda r: (r["run_id"], r["steps"])  # noqa: E731
    assert sorted(rows, key=key) == sorted(directory_rows(made), key=key)
    types = {k: {type(r[k]) for r in rows} for k in rows[0]}
    assert (
        types["decayed"] == {bool} and types["macs_total"] == {int} and type(None) in types["mfu"]
    )
    assert [r["train_loss"] for r in rows if r["status"] == "diverged"] == [float("inf")]
    from_mlflow = load(f"{mlflow_copy.default_uri(Study(made))}#small")
    assert from_mlflow.equals(load(made)) and from_mlflow.equals(frame(rows))
    assert load(mlflow_copy.default_uri(Study(made))).equals(from_mlflow), (
        "the only study needs no name"
    )


def test_metrics_lie_over_macs(made: Path) -> None:
    with contextlib.closing(sqlite3.connect(made / "mlflow.db")) as database:
        found = database.execute(
            "SELECT m.key, m.step, m.value FROM metrics m JOIN tags t ON m.run_uuid = t.run_uuid "
            "WHERE t.key = 'run_id' AND t.value = 'run0' ORDER BY m.key, m.step"
        ).fetchall()
    by_key: dict[str, list[tuple[int, float]]] = {}
    for key, step, value in found:
        by_key.setdefault(key, []).append((step, value))
    rows = [r for r in directory_rows(made) if r["run_id"] == "run0"]
    assert by_key["val_loss"] == [(r["macs_total"], r["val_loss"]) for r in rows]
    assert by_key["macs"] == [(r["macs_total"], float(r["macs_total"])) for r in rows]
    assert by_key["tokens"] == [(r["macs_total"], r["tokens"]) for r in rows]
    assert by_key["train_loss_window"] == [(30, 3.9), (60, 3.8), (90, 3.7)]
    assert set(by_key) >= {"val_loss/leaves", "train_loss"} and "mfu" not in by_key


def test_one_run_stands_for_the_study(study: Path, tmp_path: Path) -> None:
    """Its law as metrics, its files as artifacts; in the others no JSON is in sight."""
    from mlflow import MlflowClient

    law = fit_frontier(simulate.study(simulate.PURE, seed=1), form="power", resamples=100)
    (study / "law.json").write_text(saved_law.text(law))
    (study / "report.html").write_text("<p>the page</p>")
    shutil.rmtree(study / "mlartifacts", ignore_errors=True)
    (study / "mlflow.db").unlink()  # whose artifacts lie where it was made
    uri = mlflow_copy.default_uri(Study(study))

    def runs() -> tuple[Any, list[Any]]:
        found = MlflowClient(uri).search_runs(["1"])
        first = [run for run in found if "run_id" not in run.data.tags]
        assert len(first) == 1
        return first[0], [run for run in found if run is not first[0]]

    assert mlflow_copy.sync(Study(study)) == 4
    whole, runs_of_it = runs()
    low, high = law.law.ci["b"]
    numbers = {"E": 0.0, "a": law.law.a, "b": law.law.b, "b_low": low, "b_high": high}
    assert whole.data.metrics == {f"law.{name}": value for name, value in numbers.items()}
    assert whole.info.run_name == "study small" and "MACs" in whole.data.tags["mlflow.note.content"]
    artifacts = study / "mlartifacts" / whole.info.run_id / "artifacts"
    assert sorted(p.name for p in artifacts.iterdir()) == ["law.json", "report.html"]
    assert len(runs_of_it) == 4
    for run in runs_of_it:
        assert not any(v.startswith("{") for k, v in run.data.tags.items() if k[:7] != "mlflow.")
    one = next(run for run in runs_of_it if run.data.tags["run_id"] == "run0")
    history = MlflowClient(uri).get_metric_history(one.info.run_id, "decayed_loss")
    assert [(m.step, m.value) for m in history] == [(90000000000210, 2.0 + 1 / 3 + 3e-14)]

    (study / "report.html").write_text("<p>another</p>")
    assert mlflow_copy.sync(Study(study)) == 0, "no run changed"
    assert (artifacts / "report.html").read_text() == "<p>another</p>"
    assert runs()[0].info.run_id == whole.info.run_id
    (study / "law.json").unlink()
    mlflow_copy.sync(Study(study))
    assert runs()[0].data.metrics == {}, "the numbers of a law that is no more are nowhere"
    moved = tmp_path / "elsewhere"
    study.rename(moved)
    (moved / "report.html").write_text("<p>a third</p>")
    mlflow_copy.sync(Study(moved))
    assert not study.exists(), "nothing is written where the study was"
    assert load(mlflow_copy.default_uri(Study(moved))).equals(load(moved))


def test_a_second_call_adds_nothing_and_imports_nothing(study: Path) -> None:
    shutil.rmtree(study / "runs" / "unfinished")
    mlflow_copy.sync(Study(study), force=True)
    before = contents(study)
    assert before["runs"] == 1 + 4, "the study's, and those of its runs"
    script = (
        "import sys; from pathlib import Path\n"
        "from scaling.study_folder import Study; from scaling.tracking import mlflow_copy\n"
        f"assert mlflow_copy.sync(Study(Path({str(study)!r}))) == 0\n"
        "assert 'mlflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert mlflow_copy.sync(Study(study), force=True) == 0
    assert contents(study) == before


def test_only_changes_are_sent(study: Path) -> None:
    write(study, "run1", [row("run1", 10)])
    write(study, "new", [row("new", 10)])
    shutil.rmtree(study / "runs" / "run2")
    assert mlflow_copy.sync(Study(study)) == 2
    rows = mlflow_copy.load_rows(mlflow_copy.default_uri(Study(study)), "small")
    assert sorted((r["run_id"], r["steps"]) for r in rows) == [
        *[("new", 10), ("run0", 10), ("run0", 20), ("run0", 30), ("run1", 10)],
        *[("wild", 10), ("wild", 20)],
    ]


def test_cut_short_at_any_request_it_completes_without_duplicates(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    whole = contents(study)
    expected = mlflow_copy.load_rows(mlflow_copy.default_uri(Study(study)), "small")
    calls = ["create_run", "log_batch", "set_terminated", "set_tag"]
    for cut in range(1, 1 + len(calls)):
        last = row("run0", 30, seed=cut, decayed=True, budget_macs=9e13)
        write(study, "run0", [row("run0", 10), row("run0", 20), last])
        count = 0

        def counted(original: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count == cut:  # noqa: B023
                    raise KeyboardInterrupt
                return original(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in calls:
                patch.setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
            with pytest.raises(KeyboardInterrupt):
                mlflow_copy.sync(Study(study))
        assert mlflow_copy.sync(Study(study)) == 1
        after = contents(study)
        assert (after["runs"], after["metrics"]) == (whole["runs"], whole["metrics"])
        rows = mlflow_copy.load_rows(mlflow_copy.default_uri(Study(study)), "small")
        assert len(rows) == len(expected)
        assert sum(r["seed"] == cut for r in rows) == 1


def test_rebuilt_from_the_directories(made: Path, study: Path) -> None:
    (study / "mlflow.db").write_bytes(b"not a database, but long enough to be taken for one" * 99)
    with pytest.raises(UserError, match=r"mlflow.db: file is not a database. Move the file away"):
        mlflow_copy.sync(Study(study), force=True)
    (study / "mlflow.db").unlink()
    with pytest.raises(UserError, match="no such database"):
        mlflow_copy.load_rows(mlflow_copy.default_uri(Study(study)), "small")
    assert not (study / "mlflow.db").exists(), "looking makes no file"
    assert mlflow_copy.sync(Study(study)) == 4
    assert load(mlflow_copy.default_uri(Study(study))).equals(
        load(mlflow_copy.default_uri(Study(made)))
    )


def test_a_locked_database_is_waited_for_then_named(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(study, "new", [row("new", 10)])
    holder = (
        "import sqlite3, sys, time\n"
        f"d = sqlite3.connect({str(study / 'mlflow.db')!r}); d.execute('BEGIN EXCLUSIVE')\n"
        "print('held', flush=True); time.sleep(float(sys.argv[1]))"
    )
    command = [sys.executable, "-c", holder]
    with subprocess.Popen([*command, "60"], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        monkeypatch.setattr(mlflow_copy, "PATIENCE_SECONDS", 0.5)
        with pytest.raises(UserError, match=r"database is locked for 0.5 s.*scaling sync"):
            mlflow_copy.sync(Study(study))
        process.kill()
    with subprocess.Popen([*command, "1"], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        monkeypatch.setattr(mlflow_copy, "PATIENCE_SECONDS", 20.0)
        assert mlflow_copy.sync(Study(study)) == 1


def test_a_server_that_is_down_costs_seconds_and_loses_nothing(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests

    tried: list[float] = []
    send = requests.adapters.HTTPAdapter.send

    def watched(*given: Any, **how: Any) -> Any:
        tried.append(how["timeout"])
        return send(*given, **how)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", watched)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"http://127.0.0.1:9.*Nothing is lost.*scaling sync"):
        mlflow_copy.sync(Study(study), "http://127.0.0.1:9")
    assert len(tried) == 1 and tried[0] <= 10
    assert mlflow_copy.sync(Study(study)) == 0, "what the default database holds is still known"


def test_unknown_studies_are_named(made: Path) -> None:
    with pytest.raises(UserError, match=r"no study 'smal'; it holds small.*mlflow.db#small"):
        mlflow_copy.load_rows(mlflow_copy.default_uri(Study(made)), "smal")


def test_an_address_is_looked_at_before_a_study_starts() -> None:
    said: list[str] = []
    mlflow_copy.check(None, said.append)
    mlflow_copy.check("sqlite:////tmp/x.db", said.append)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        mlflow_copy.check(address, said.append)  # bound, not listening
        assert len(said) == 1 and f"{address} does not answer" in said[0]
        assert "`scaling sync` sends later" in said[0]
        server.listen()
        mlflow_copy.check(address, said.append)
        assert len(said) == 1
    for wrong in ("localhost:5000", "http://", "mlruns"):
        with pytest.raises(UserError, match=r"not an address of MLflow; write http"):
            mlflow_copy.check(wrong, said.append)


class Server:
    """A real tracking server on loopback, on a database of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
        command += ["--default-artifact-root", str(folder / "artifacts")]
        self._command = [*command, "--host", "127.0.0.1", "--port", str(self.port)]
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self._log, "a") as log:
            self._process = subprocess.Popen(
                self._command,
                env=os.environ | quiet,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + HANGS
        while True:
            assert time.monotonic() < end and self._process.poll() is None, self._log.read_text()
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                    assert answer.status == 200
                return
            except OSError:
                time.sleep(0.2)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.kill()


@pytest.mark.slow
def test_a_server_that_dies_in_the_middle_gets_the_rest_later(
    study: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"Nothing is lost.*scaling sync"):
        mlflow_copy.sync(Study(study), server.uri)  # down at the start
    server.start()
    original = MlflowClient.log_batch
    calls = 0

    def dies(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:  # inside the third of four runs
            server.kill()
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", dies)
        with pytest.raises(UserError, match=r"Nothing is lost.*scaling sync"):
            mlflow_copy.sync(Study(study), server.uri)
    write(study, "new", [row("new", 10)])  # the study goes on meanwhile
    with pytest.raises(UserError, match=r"Nothing is lost.*scaling sync"):
        mlflow_copy.sync(Study(study), server.uri)
    server.start()
    assert mlflow_copy.sync(Study(study), server.uri) == 3, (
        "the one cut short, the one unsent, the new one"
    )
    assert mlflow_copy.sync(Study(study), server.uri) == 0
    assert mlflow_copy.sync(Study(study), server.uri, force=True) == 0
    key = lambda r: (r["run_id"], r["steps"])  # noqa: E731
    rows = mlflow_copy.load_rows(server.uri, "small")
    assert sorted(rows, key=key) == sorted(directory_rows(study), key=key)
    assert load(f"{server.uri}#small").equals(load(study))


def test_killed_while_the_database_is_made(tmp_path: Path) -> None:
    """MLflow takes seconds of migrations to make one, and cannot go on with half of them."""
    folder = tmp_path / "small"
    write(folder, "run0", [row("run0", 30, decayed=True, budget_macs=9e13)])
    call = f"""
import os, signal
from pathlib import Path
from scaling.study_folder import Study
from scaling.tracking import mlflow_copy

def replace(made, to):
    if to.name == "mlflow.db":
        os.kill(os.getpid(), signal.SIGKILL)
    put(made, to)

put, os.replace = os.replace, replace
mlflow_copy.sync(Study(Path({str(folder)!r})))
"""
    sender = subprocess.run([sys.executable, "-c", call])
    assert sender.returncode == -signal.SIGKILL
    assert (folder / ".mlflow.db.tmp").exists()
    assert not (folder / "mlflow.db").exists()
    assert mlflow_copy.sync(Study(folder)) == 1
    assert len(load(f"sqlite:///{folder / 'mlflow.db'}#small")) == 1
    assert sorted(p.name for p in folder.glob("*mlflow.db*")) == ["mlflow.db"]
