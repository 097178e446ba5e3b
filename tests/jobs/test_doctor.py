"""The doctor finds what crashes leave behind and mends only what loses nothing."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from scaling.config.run import RunConfig
from scaling.errors import UserError
from scaling.jobs import squeue
from scaling.models.family import FAMILY
from scaling.storage.files import RunLock
from scaling.study.doctor import examine
from scaling.study_folder import Study
from scaling.tracking import mlflow_copy

RUN = RunConfig(
    model=FAMILY["t16"],
    data_key="tokens",
    role="ladder",
    lr=2.0**-6,
    budgets_steps=(100,),
    budgets_macs=(1e9,),
    warmup_steps=10,
)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A sound study of one finished run."""
    (tmp_path / "study.yaml").write_text(
        "study: sound\ndata: {sources: [{name: leaves, kind: leaves}]}\n"
        "ladder: {sizes: [t16], budgets_macs: [1e9], log2_lr: -6}\n"
    )
    Study(tmp_path).write_plan([RUN], [10**9])
    run_dir = tmp_path / "runs" / RUN.run_id
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(RUN.to_yaml())
    (run_dir / "rows.json").write_text(json.dumps([{"run_id": RUN.run_id}]))
    (run_dir / "checkpoint.pt").write_bytes(b"state")
    (run_dir / "trunk-80.pt").write_bytes(b"state")
    (run_dir / "lock").touch()
    (tmp_path / "sweep.journal").write_bytes(b'{"op_code":0}\n')
    sent = {
        run: mlflow_copy._digests(Study(tmp_path))[run]
        for run in mlflow_copy.unsent(Study(tmp_path))
    }
    record = {"uri": mlflow_copy.default_uri(Study(tmp_path)), "runs": sent}
    (tmp_path / "mlflow.sent.json").write_text(json.dumps(record))
    return tmp_path


def said(study: Path, *, repair: bool = False) -> str:
    return "\n".join(map(str, examine(Study(study), repair=repair)))


def test_a_sound_study_has_no_findings(study: Path) -> None:
    assert examine(Study(study)) == []
    assert examine(Study(study), repair=True) == []


def test_finds_everything_and_mends_what_is_safe(study: Path) -> None:
    run_dir = study / "runs" / RUN.run_id
    (run_dir / "lock").write_text('{"host": "gone", "pid": 1, "job": null}')
    (run_dir / ".rows.json.123.tmp").write_text("[{")
    (run_dir / "trunk-60.pt.damaged").touch()
    (run_dir / "rows.json").write_text('[{"run_id": "')
    (study / "sweep.journal").write_bytes(b'{"op_code":0}\n{"op_co')
    (study / "sweep.journal.lock").touch()
    (study / ".plan.json.123.tmp").touch()
    (study / "driver.lock").write_text('{"host": "gone", "pid": 1, "job": null}')
    before = {p: p.read_bytes() for p in study.rglob("*") if p.is_file()}
    first = said(study)
    assert before == {p: p.read_bytes() for p in study.rglob("*") if p.is_file()}, "only looks"
    for words in (
        f"runs/{RUN.run_id}/lock: its holder is gone",
        "driver.lock: its holder is gone",
        "sweep.journal.lock: of a driver that is gone",
        "^.plan.json.123.tmp: a write that a crash cut short",
        ".rows.json.123.tmp: a write that a crash cut short",
        "trunk-60.pt.damaged: a damaged file that was set aside",
        "rows.json: .* Use --repair",
        r"sweep.journal: its last line \(7 bytes\) is torn",
    ):
        assert re.search(words, first, re.M), words
    repaired = [f.where for f in examine(Study(study), repair=True) if f.repaired]
    assert len(repaired) == 7
    assert (study / "sweep.journal").read_bytes() == b'{"op_code":0}\n'
    assert (run_dir / "checkpoint.pt").exists() and (run_dir / "rows.json.damaged").exists()
    left = said(study)
    assert left.count("set aside") == 2 and left.count("\n") == 1


def test_rows_without_a_state_are_kept(study: Path) -> None:
    run_dir = study / "runs" / RUN.run_id
    (run_dir / "trunk-80.pt").unlink()
    (run_dir / "checkpoint.pt").unlink()
    assert "has rows but no state of its trunk. The rows count" in said(study, repair=True)
    (run_dir / "rows.json").write_text("[")
    assert "Remove the directory to train the run again" in said(study, repair=True)
    assert (run_dir / "rows.json").read_text() == "["


def test_drift_schema_and_strangers(study: Path) -> None:
    run_dir = study / "runs" / RUN.run_id
    edited = dataclasses.replace(RUN, lr=0.5)
    (run_dir / "config.yaml").write_text(edited.to_yaml())
    assert f"describes run {edited.run_id}: it was edited" in said(study)
    older = dataclasses.replace(RUN, schema=0)
    (run_dir / "config.yaml").write_text(older.to_yaml())
    assert "written with schema 0, this version writes 1. Its rows are not mixed" in said(study)
    plan = json.loads((study / "plan.json").read_text())
    (study / "plan.json").write_text(json.dumps(plan | {"schema": 0}))
    assert "plan.json: " in said(study) and "written with schema 0 of the run dir" in said(study)
    (study / "plan.json").write_text(json.dumps(plan))
    (run_dir / "config.yaml").write_text("lr: [")
    assert "not a run configuration" in said(study)
    (run_dir / "config.yaml").write_text(RUN.to_yaml())
    stranger = study / "runs" / edited.run_id
    stranger.mkdir()
    (stranger / "config.yaml").write_text(edited.to_yaml())
    assert f"1 runs are not of the study as it is configured now ({edited.run_id})" in said(study)
    (stranger / "rows.json").write_text(json.dumps([{"run_id": RUN.run_id}]))
    assert "holds rows of another run" in said(study)
    assert "mlflow" not in said(study), "`scaling sync` would send none of a stranger's"


def test_what_is_to_be_sent_is_what_sync_would_send(study: Path) -> None:
    unsent = "mlflow: 1 finished runs have not been sent. Run `scaling sync`"
    whole = (study / "mlflow.sent.json").read_text()
    for record in (whole.replace("sqlite", "http"), "3", "{}", '{"uri": 3, "runs": [1]}', ""):
        (study / "mlflow.sent.json").write_text(record)
        assert unsent in said(study)
    (study / "mlflow.sent.json").write_text(whole)
    assert examine(Study(study)) == []
    rows = study / "runs" / RUN.run_id / "rows.json"
    rows.write_text(json.dumps([{"run_id": RUN.run_id, "val_loss": 3.0}]))
    assert unsent in said(study)
    with (study / "study.yaml").open("a") as file:
        file.write("tracking: {uri: [}\n")
    assert f"study.yaml: {study}/study.yaml:4: not valid YAML" in said(study)


def test_a_local_study_asks_no_slurm(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (study / "jobs" / "1").mkdir(parents=True)
    asked: list[int] = []

    def queue() -> list[squeue.Entry]:
        asked.append(1)
        return []

    monkeypatch.setattr(squeue, "queue", queue)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert examine(Study(study)) == [] and asked == []
    (study / "jobs" / "1" / squeue.RUNS).write_text("[]")
    assert examine(Study(study)) == [] and asked == [1]


def test_runs_and_studies_at_work_are_left_alone(study: Path) -> None:
    run_dir = study / "runs" / RUN.run_id
    (run_dir / ".rows.json.123.tmp").touch()
    with RunLock(run_dir):
        assert examine(Study(study), repair=True) == []
        assert (run_dir / "lock").read_text() != ""
    (study / ".plan.json.123.tmp").touch()
    with RunLock(study, "driver.lock"):
        assert len(examine(Study(study))) == 1, (
            "the run's leftover; the study's may be in the making"
        )
    with (
        RunLock(study, "driver.lock"),
        pytest.raises(UserError, match=r"in use by .*look without --repair"),
    ):
        examine(Study(study), repair=True)
    with pytest.raises(UserError, match=r"not a study's folder"):
        examine(Study(study / "runs"))
