"""MLflow shows the same numbers: a study is an experiment, a run is a run. The one home of MLflow.

Runs write only to their own directories; one process copies finished ones here, in batches. The
copy can be rebuilt from the directories at any time, and read back to the last digit: each row is
also a tag (JSON), since MLflow's metrics know no missing values and no integers. MLflow's pages
show no tag whose name begins with `mlflow.`, and draw metrics over `step`, which is MACs here.

One run more stands for the study: its law as metrics; law.json, rows.csv and the report as
artifacts. The others are not nested in it: MLflow 3 folds nested runs away, in its charts too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import socket
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

from scaling.errors import UserError, note
from scaling.results import SOURCE_PREFIX, Row, loads
from scaling.storage import files
from scaling.study_folder import RunFolder, Study
from scaling.tracking.gate import Gate

if TYPE_CHECKING:
    from mlflow import MlflowClient

ROW = "mlflow.scaling.row."  # tag of a row, and its number
OLD_ROW = "row."  # before, in sight
ABOUT = """The step of every metric is the run's training compute in MACs, cooldowns included; \
`macs` is the same as a metric, for the x-axis of a chart. `val_loss` is every evaluation, \
`decayed_loss` those at the end of a budget, whose learning rate has decayed: the points of the law.
"""
STANDS_FOR = "scaling_study"
METRICS = ("val_loss", "train_loss", "tokens", "macs_total", "epochs")  # and val_loss/<source>
OURS = "tags.run_id != ''"  # MLflow's filter for the runs that this module has begun
BATCH = {"metrics": 800, "tags": 50}  # of one request, with params: MLflow takes 1000 in all
PATIENCE_SECONDS = 20.0  # for a database that is locked or a server that does not answer
P = ParamSpec("P")
T = TypeVar("T")


def sync(study: Study, uri: str | None = None, *, force: bool = False) -> int:
    """Bring MLflow up to date with a study's finished runs; returns how many were sent.

    Idempotent: a run is sent again only when its rows changed, and one whose sending was cut short
    is replaced; likewise the study's law and report. When nothing changed since the last
    call MLflow is not even imported; `force` asks it nevertheless (after its database was emptied,
    say).

    Args:
        study: its folder's name is the experiment's.
        uri: a tracking server or database; default: the study's own, in its folder.
        force: ask MLflow also where nothing changed.
    Raises:
        UserError: locked or unreachable for longer than PATIENCE_SECONDS. Nothing is lost: the next
            call sends what is missing.
    """
    address = uri or default_uri(study)
    digests = _digests(study)
    record = study.mlflow_sent_json
    law = "".join(_hash(path.read_bytes()) for path in _shown(study))
    now = json.dumps({"uri": address, "law": law, "runs": digests}, indent=1)
    with contextlib.suppress(FileNotFoundError):
        if record.read_text() == now and not force and _exists(address):
            return 0
    client = _client(address)
    with _explained(address):
        experiment = _experiment(client, study, own=uri is None)
        _send_study(client, experiment, study, law)
        there: dict[str, str] = {}
        for run in _search(client, experiment):
            name, digest = run.data.tags["run_id"], run.data.tags.get("sent", "")
            if digests.get(name) == digest and name not in there:
                there[name] = digest
            else:  # of an older state, or cut short
                _patiently(client.delete_run, run.info.run_id)
        missing = {name: digest for name, digest in digests.items() if name not in there}
        for name, digest in missing.items():
            _send(client, experiment, study.run(name), digest)
    files.write(record, now)
    return len(missing)


def unsent(study: Study, uri: str | None = None) -> list[str]:
    """The runs that `sync` would send, by the record of the last one; MLflow is not asked."""
    digests = _digests(study)
    sent: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError, KeyError):
        last = files.read_json(study.mlflow_sent_json, dict)
        if last["uri"] == (uri or default_uri(study)):
            sent = dict(last["runs"])
    return [name for name, digest in digests.items() if sent.get(name) != digest]


def _digests(study: Study) -> dict[str, str]:
    """Run -> what its rows are now, for those that count."""
    return {run.path.name: _hash(run.rows_json.read_bytes()) for run in study.runs()}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def check(uri: str | None, say: Callable[[str], None]) -> None:
    """Look at a tracking address before a study starts; one that is silent now costs no run.

    Raises UserError for an address that cannot be one.
    """
    if uri is None:
        return
    address = urlsplit(uri)
    if address.scheme.partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql"):
        return
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UserError(
            f"tracking.uri {uri}: not an address of MLflow; write http://HOST:PORT of a tracking "
            f"server or sqlite:///FILE, or leave it out"
        )
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=5).close()
    except (OSError, ValueError) as error:
        say(
            f"tracking.uri {uri} does not answer ({error}); the study goes on, and what could not "
            f"be sent at its end `scaling sync` sends later"
        )


def load_rows(uri: str, study: str = "") -> list[Row]:
    """The rows of a study as MLflow holds them: equal to those of its run directories.

    Args:
        uri: e.g. `sqlite:///studies/quickstart/mlflow.db` or `http://127.0.0.1:5000`.
        study: the experiment; may be left out where there is just one.
    Raises:
        UserError: no such database, server or study.
    """
    rows = []
    for run in _runs_of(uri, study, OURS):
        tags = run.data.tags
        if "sent" in tags:  # whole
            rows += [json.loads(tags[k]) for k in sorted(tags) if k.startswith((ROW, OLD_ROW))]
    return loads(rows)


def load_runs(uri: str, study: str = "") -> list[dict[str, Any]]:
    """Anyone's runs of an experiment, one mapping each: its run id, its state, its parameters and
    the last value of every metric. For analysis/tables.py, which finds the columns.

    Raises:
        UserError: no such database, server or experiment.
    """
    return [
        {"run_id": run.info.run_id, "status": run.info.status.lower()}
        | run.data.params
        | run.data.metrics
        for run in _runs_of(uri, study, "")
    ]


def _runs_of(uri: str, study: str, chosen: str) -> list[Any]:
    """The runs of the experiment `study` that MLflow's filter string chooses."""
    if not _exists(uri):
        raise UserError(f"{uri}: no such database; give the one of a study that has been run")
    client = _client(uri)
    with _explained(uri):
        found = _patiently(client.search_experiments)
        names = [e.name for e in found if e.name != "Default"]
        if study == "Default":  # MLflow's own, where runs without an experiment go
            names = [e.name for e in found]
        if study not in names and (study or len(names) != 1):
            raise UserError(
                f"{uri}: no study '{study}'; it holds {', '.join(sorted(names)) or 'none'}. Name "
                f"one after a '#', as in {uri}#{names[0] if names else 'quickstart'}"
            )
        name = study or names[0]
        experiment = next(e.experiment_id for e in found if e.name == name)
        return list(_search(client, experiment, chosen))


def ui(study: Study, port: int = 5000, say: Callable[[str], None] = print) -> None:
    """Serve MLflow's pages of a study until interrupted, to its user alone.

    MLflow's server does whatever it is asked with the rights of its process, and every account of a
    machine reaches its loopback: a gate (`tracking.gate`) before it asks for a secret in each
    request. The server is this very process, so nothing of it outlives the command, and the secret
    stands in no command line.

    Args:
        port: on 127.0.0.1.
        say: is told the address, with its secret.
    Raises:
        UserError: there is nothing to show, or the port is taken.
    """
    address = default_uri(study)
    if not _exists(address):
        raise UserError(f"{study}: no {study.mlflow_db.name} here; run the study first")
    with socket.socket() as listening, contextlib.suppress(KeyboardInterrupt):
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
            listening.listen()
        except OSError as error:
            raise UserError(f"port {port}: {error.strerror}; choose another with --port") from None
        client = _client(address)  # says what is wrong with the database
        with _explained(address):
            found = _patiently(client.get_experiment_by_name, study.folder.resolve().name)
        os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        import uvicorn

        with warnings.catch_warnings():  # of MLflow's own import of Starlette
            warnings.simplefilter("ignore")
            from mlflow.server import BACKEND_STORE_URI_ENV_VAR
            from mlflow.server.fastapi_app import app

        os.environ[BACKEND_STORE_URI_ENV_VAR] = address
        runs = f"#/experiments/{found.experiment_id}/runs?compareRunsMode=CHART" if found else ""
        gate = Gate(app, port, start=runs)
        # A log of requests would hold the secret, and a proxy's headers are anybody's to write.
        # Without a lifespan MLflow leaves this machine's containers alone.
        settings = uvicorn.Config(
            gate,
            access_log=False,
            log_level="error",
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        say(f"{gate.address}\nfor you alone; end it with Ctrl-C")
        uvicorn.Server(settings).run(sockets=[listening])


def default_uri(study: Study) -> str:
    """The address of the SQLite file in the study's folder."""
    return f"sqlite:///{study.mlflow_db.resolve()}"


def _exists(uri: str) -> bool:
    """False only for a SQLite file that is not there (MLflow would make an empty one)."""
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).is_file()


def _client(uri: str) -> MlflowClient:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # read when mlflow is imported
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    if uri.startswith("sqlite:///"):
        _wait_for_lock(Path(uri.removeprefix("sqlite:///")))
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # failures are raised; see _explained
    with _explained(uri):
        if not _exists(uri):
            _make(Path(uri.removeprefix("sqlite:///")))
        return _patiently(MlflowClient, tracking_uri=uri)


def _make(path: Path) -> None:
    """An empty database, there whole or not at all: MLflow takes seconds of migrations to make one,
    and cannot go on with one that a kill or a full disk left halfway."""
    from mlflow import MlflowClient

    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.unlink(missing_ok=True)
    MlflowClient(tracking_uri=f"sqlite:///{unfinished}").search_experiments()
    os.replace(unfinished, path)


def _wait_for_lock(path: Path) -> None:
    """MLflow opens a locked database for minutes; ask SQLite itself first."""
    if not path.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=PATIENCE_SECONDS)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except sqlite3.OperationalError as error:
        raise UserError(
            f"{path}: {error} for {PATIENCE_SECONDS:g} s. Another program holds it; end that one "
            f"and run `scaling sync`. The runs' own directories are complete"
        ) from None
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{path}: {error}. Move the file away and run `scaling sync`: it is rebuilt from the "
            f"runs' directories"
        ) from None


def _patiently(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The call's result; tried again while a database is locked, up to PATIENCE_SECONDS."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.2)


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """MLflow's failures in a sentence: what it says, and that nothing is lost."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with warnings.catch_warnings():  # of MLflow's own calls to SQLAlchemy
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    except (MlflowException, RequestException, SQLAlchemyError) as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"MLflow at {uri}: {said[:300]}. Nothing is lost: the rows are in the runs' own "
            f"directories; run `scaling sync` when it answers again"
        ) from error


def _experiment(client: MlflowClient, study: Study, *, own: bool) -> str:
    """The experiment that has the name of the study's folder, made if need be.

    own: the database is the study's, so one of another name there is its own from before the
    folder was renamed.
    """
    name = study.folder.resolve().name
    found = _patiently(client.get_experiment_by_name, name)
    if found is None and own:
        before = [e for e in _patiently(client.search_experiments) if e.name != "Default"]
        if len(before) == 1:
            _patiently(client.rename_experiment, before[0].experiment_id, name)
            return before[0].experiment_id
    if found is not None:
        if found.lifecycle_stage == "deleted":
            _patiently(client.restore_experiment, found.experiment_id)
        return found.experiment_id
    location = study.mlartifacts_dir.resolve().as_uri() if own else None
    return _patiently(client.create_experiment, name, artifact_location=location)


def _search(client: MlflowClient, experiment: str, chosen: str = OURS) -> Iterator[Any]:
    """The runs of an experiment that a filter string chooses; this module's own by default."""
    token = None
    while True:
        page = _patiently(
            client.search_runs,
            [experiment],
            filter_string=chosen,
            max_results=1000,
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def _shown(study: Study) -> tuple[Path, ...]:
    """What is there of the files that the run which stands for a study has as artifacts."""
    every = (study.law_json, study.rows_csv, study.report_html)
    return tuple(path for path in every if path.is_file())


def _send_study(client: MlflowClient, experiment: str, study: Study, digest: str) -> None:
    """The run that stands for the study, brought up to date with its law and report."""
    found = list(_search(client, experiment, f"tags.{STANDS_FOR} != ''"))
    if not found:
        found = [_begin_study(client, experiment, study)]
        _patiently(client.set_experiment_tag, experiment, "mlflow.note.content", ABOUT)
    run = found[0]
    if run.data.tags.get("sent", "") == digest:
        return
    law = _law(study)
    if not set(run.data.metrics) <= set(
        law
    ):  # numbers of a law that is no more cannot be taken off
        _patiently(client.delete_run, run.info.run_id)
        run = _begin_study(client, experiment, study)
    run_id = run.info.run_id
    for name, value in law.items():
        _patiently(client.log_metric, run_id, name, value)
    if _takes_artifacts(run.info.artifact_uri, study):
        for path in _shown(study):
            _patiently(client.log_artifact, run_id, str(path))
    _patiently(client.set_terminated, run_id)
    _patiently(client.set_tag, run_id, "sent", digest)


def _begin_study(client: MlflowClient, experiment: str, study: Study) -> Any:
    name = study.folder.resolve().name
    tags = {STANDS_FOR: name, "mlflow.runName": f"study {name}", "mlflow.note.content": ABOUT}
    return _patiently(client.create_run, experiment, tags=tags)


def _law(study: Study) -> dict[str, float]:
    """The numbers of law.json as metrics; none, which is said, where it cannot be read."""
    if not study.law_json.is_file():
        return {}
    from scaling.analysis.laws.power_law import PowerLaw
    from scaling.analysis.questions import saved_law

    try:
        law = saved_law.load(study.law_json).law
    except UserError as error:
        note(f"not sent to MLflow: {error}")
        return {}
    if not isinstance(law, PowerLaw):  # a study's own is of compute
        return {}
    low, high = law.ci["b"]
    numbers = {"E": law.e, "a": law.a, "b": law.b, "b_low": low, "b_high": high}
    return {f"law.{name}": float(v) for name, v in numbers.items() if math.isfinite(v)}


def _takes_artifacts(uri: str, study: Study) -> bool:
    """A server that stores them itself, or the study's own folder. MLflow takes any other path for
    one of this machine: a server's own, or that of a study before it was moved."""
    address = urlsplit(uri)
    if address.scheme == "mlflow-artifacts":
        return True
    inside = study.mlartifacts_dir.resolve()
    return address.scheme == "file" and Path(unquote(address.path)).is_relative_to(inside)


def _send(client: MlflowClient, experiment: str, there: RunFolder, digest: str) -> None:
    """One finished run. The tag `sent` comes last: without it the run does not count."""
    from mlflow.entities import Metric, Param, RunTag

    rows = there.read()
    assert rows, there.path
    first, last = rows[0], rows[-1]
    end_ms = int(there.rows_json.stat().st_mtime * 1000)
    start_ms = end_ms - int(1000 * (last["seconds"] or 0))
    metrics = []
    for row in rows:
        at_ms = start_ms + int(1000 * (row["seconds"] or 0))
        macs = row["macs_total"]
        metrics += [
            Metric("macs" if name == "macs_total" else name, float(value), at_ms, macs)
            for name, value in row.items()
            if (name in METRICS or name.startswith(SOURCE_PREFIX))
            and value is not None
            and math.isfinite(value)
        ]
        if row["decayed"] and row["val_loss"] is not None and math.isfinite(row["val_loss"]):
            metrics.append(Metric("decayed_loss", float(row["val_loss"]), at_ms, macs))
    for record in _curve(there.metrics):
        at_ms = start_ms + int(1000 * record["seconds"])
        metrics.append(Metric("train_loss_window", record["train_loss"], at_ms, record["macs"]))
    measured = {*METRICS, "seconds", "mfu", "budget_macs", "decayed", "data_mix", "status"}
    params = [
        Param(name, str(value))
        for name, value in first.items()
        if name not in measured
        and value is not None
        and all(row.get(name) == value for row in rows)
    ]
    tags = [(f"{ROW}{k:04d}", json.dumps(row)) for k, row in enumerate(_stored(there))]
    name = f"{first['size']} 2^{first['log2_lr']:g} {first['role']}"
    labels = {
        "run_id": str(first["run_id"]),
        "study": str(first["study"]),
        "role": str(first["role"]),
        "git_sha": str(first["git_sha"]),
        "status": "diverged" if any(r["status"] == "diverged" for r in rows) else "finished",
    }
    labels |= dict(tags[: BATCH["tags"]])
    run = _patiently(client.create_run, experiment, start_time=start_ms, tags=labels, run_name=name)
    run_id = run.info.run_id
    left: dict[str, list[Any]] = {
        "metrics": metrics,
        "tags": [RunTag(*tag) for tag in tags[BATCH["tags"] :]],
    }
    while params or any(left.values()):
        some = {kind: several[: BATCH[kind]] for kind, several in left.items()}
        _patiently(
            client.log_batch, run_id, params=params, metrics=some["metrics"], tags=some["tags"]
        )
        params, left = [], {kind: several[BATCH[kind] :] for kind, several in left.items()}
    _patiently(client.set_terminated, run_id, end_time=end_ms)
    _patiently(client.set_tag, run_id, "sent", digest)


def _stored(there: RunFolder) -> list[dict[str, Any]]:
    """Rows as their file holds them: strict JSON (NaN is null, infinities are words)."""
    rows: list[dict[str, Any]] = json.loads(there.rows_json.read_text())
    return rows


def _curve(path: Path) -> Iterator[dict[str, Any]]:
    """The training-loss windows of a run; a diverged one's last may not be a number."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if "train_loss" in record and math.isfinite(record["train_loss"]):
            yield record
