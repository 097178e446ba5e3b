"""Training: bitwise resume, schedules, divergence as a row, one worker per directory."""

import dataclasses
import hashlib
import io
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling.checkpoint import Interrupted, StopFlag, previous
from scaling.config.run import RunConfig
from scaling.config.schedule import length, rate, segments
from scaling.errors import UserError
from scaling.models.family import size
from scaling.results import COLUMNS, NOT_REPEATABLE, Row, frame
from scaling.storage.files import RunBusy, RunLock
from scaling.study_folder import RunFolder
from scaling.training.train import train
from tests.warm import Warm, command


def repeatable(rows: list[Row]) -> list[Row]:
    return [{k: v for k, v in row.items() if k not in (*NOT_REPEATABLE, "git_sha")} for row in rows]


def quiet(text: str) -> None:
    """Training's log is not what these tests look at."""


class StopAfter(StopFlag):
    """Asks for a stop at the n-th look."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def __bool__(self) -> bool:
        self.looks -= 1
        return self.looks == 0


@pytest.fixture
def undisturbed(run: RunConfig, tmp_path: Path) -> list[Row]:
    return train(run, tmp_path / "undisturbed", log=quiet)


def test_rows_follow_the_schema(run: RunConfig, undisturbed: list[Row]) -> None:
    table = frame(undisturbed)
    assert set(COLUMNS) <= set(table.columns)
    decayed = table[table.decayed]
    assert list(decayed.steps) == list(run.budgets_steps)
    assert list(decayed.budget_macs) == list(run.budgets_macs)
    assert (table.status == "finished").all()
    terms = table[["macs_qkvo", "macs_attention", "macs_ffn", "macs_head"]].sum(axis=1)
    assert (terms == table.macs_total).all()
    # Sources are weighted as in training: 3 to 1.
    expected = 0.75 * table["val_loss/near"] + 0.25 * table["val_loss/far"]
    assert table.val_loss.to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-12)
    assert decayed.val_loss.is_monotonic_decreasing


def test_loss_by_position_is_that_of_the_last_point(
    run: RunConfig, undisturbed: list[Row], tmp_path: Path
) -> None:
    """Figure 10: its mean is the loss of the row; the end token is known to come."""
    folder = RunFolder(tmp_path / "undisturbed")
    record = json.loads(folder.positions_json(run.budgets_steps[-1]).read_text())
    assert (record["run_id"], record["size"]) == (run.run_id, run.model.name)
    loss = record["loss"]
    assert (len(loss), record["tokens_per_frame"]) == (run.model.context, 4)
    assert sum(loss) / len(loss) == pytest.approx(undisturbed[-1]["val_loss"], rel=1e-6)
    assert loss[-1] == min(loss)


@pytest.mark.parametrize("stops", [[1], [21], [26], [37, 5], [60, 1, 1]])
def test_interrupted_equals_undisturbed_bitwise(
    run: RunConfig, undisturbed: list[Row], tmp_path: Path, stops: list[int]
) -> None:
    for looks in stops:
        with pytest.raises(Interrupted):
            train(run, tmp_path / "run", stop=StopAfter(looks), log=quiet)
    rows = train(run, tmp_path / "run", log=quiet)
    assert repeatable(rows) == repeatable(undisturbed)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "undisturbed")


def test_muon_interrupted_equals_undisturbed_bitwise(run: RunConfig, tmp_path: Path) -> None:
    """Both optimizers' state is in the checkpoint; AdamW's runs keep the names they always had."""
    assert dataclasses.replace(run, optimizer="adamw").run_id == run.run_id
    muon = dataclasses.replace(run, optimizer="muon", beta2=0.99, grad_clip=0.5)
    assert muon.run_id != run.run_id
    known = {"model": size(16, 1, 2, vocab=20, context=9), "data_key": "k", "role": "ladder"}
    fixed = RunConfig(lr=2**-6, budgets_steps=(25,), budgets_macs=(1e6,), **known)  # type: ignore[arg-type]
    assert fixed.run_id == "fa6c0cfafbc5"
    whole = train(muon, tmp_path / "undisturbed", log=quiet)
    with pytest.raises(Interrupted):
        train(muon, tmp_path / "run", stop=StopAfter(37), log=quiet)
    assert repeatable(train(muon, tmp_path / "run", log=quiet)) == repeatable(whole)
    told = {(row["optimizer"], row["beta2"], row["grad_clip"]) for row in whole}
    assert told == {("muon", 0.99, 0.5)}
    assert "beta1" not in whole[0]  # as ever, which a table says
    assert metrics(tmp_path / "run") == metrics(tmp_path / "undisturbed")


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]


def test_kill_minus_nine_equals_undisturbed_bitwise(
    run: RunConfig, undisturbed: list[Row], tmp_path: Path
) -> None:
    """A child process is killed while it trains; state is saved as often as it can be."""
    eager = dataclasses.replace(run, checkpoint_seconds=1e-6)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(eager.to_yaml())
    kills = 0
    while RunFolder(run_dir).read() is None:
        child = Warm(command, "train", str(run_dir), said=tmp_path / "said")
        before = size_of(run_dir / "metrics.jsonl")
        while child.poll() is None and size_of(run_dir / "metrics.jsonl") < before + 400:
            time.sleep(0.001)
        if child.poll() is None:
            child.kill()
            kills += 1
        child.wait()
        if kills == 3:  # and now to the end
            train(eager, run_dir, log=quiet)
        elif not kills:  # it ended before this process could kill it: once more
            shutil.rmtree(run_dir)
            run_dir.mkdir()
            (run_dir / "config.yaml").write_text(eager.to_yaml())
    assert repeatable(RunFolder(run_dir).read() or []) == repeatable(undisturbed)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def sealed(payload: bytes) -> bytes:
    """As a checkpoint file: its checksum is right, whatever it holds."""
    return hashlib.sha256(payload).digest() + payload


def saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return sealed(buffer.getvalue())


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "checksum differs": lambda whole: whole[: len(whole) // 2],
    "checksum differs ": lambda whole: whole[:900] + bytes([whole[900] ^ 1]) + whole[901:],
    "checksum differs  ": lambda whole: b"",
    "it holds no state: ": lambda whole: sealed(b"of somebody else"),
    "it holds no state:": lambda whole: sealed(whole[32:5000]),
    "it holds a list, no state": lambda whole: saved([1, 2]),
    "it lacks ": lambda whole: saved({"step": 7}),
    "its shards are not beside it: ../": lambda whole: saved(
        torch.load(io.BytesIO(whole[32:])) | {"shards": {"folder": "../x", "sha256": {}}}
    ),
    "its list of shards is none": lambda whole: saved(
        torch.load(io.BytesIO(whole[32:])) | {"shards": [1]}
    ),
    "it is of run 0123456789ab": lambda whole: saved(
        torch.load(io.BytesIO(whole[32:])) | {"run_id": "0123456789ab"}
    ),
}


@pytest.mark.parametrize("what", [*DAMAGES, "cannot be read: Is a directory"])
def test_damaged_checkpoint_falls_back_to_the_previous(
    run: RunConfig, undisturbed: list[Row], tmp_path: Path, what: str
) -> None:
    eager = dataclasses.replace(run, checkpoint_seconds=1e-6)
    run_dir = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(eager, run_dir, stop=StopAfter(40), log=quiet)
    path = run_dir / "checkpoint.pt"
    assert previous(path).exists()
    if what in DAMAGES:
        path.write_bytes(DAMAGES[what](path.read_bytes()))
    else:
        path.unlink()
        path.mkdir()
    said: list[str] = []
    rows = train(eager, run_dir, log=said.append)
    assert "checkpoint.pt is damaged (" in said[0] and what.rstrip() in said[0]
    assert "continues at step" in said[1]
    assert (run_dir / "checkpoint.pt.damaged").exists()
    assert repeatable(rows) == repeatable(undisturbed)


def test_finished_run_is_not_trained_again(
    run: RunConfig, undisturbed: list[Row], tmp_path: Path
) -> None:
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "undisturbed").glob("*.*")}
    assert train(run, tmp_path / "undisturbed", log=quiet) == undisturbed
    assert {p: p.stat().st_mtime_ns for p in files} == files


def test_divergence_is_a_row(run: RunConfig, tmp_path: Path) -> None:
    rows = train(dataclasses.replace(run, lr=2.0**14), tmp_path, log=quiet)
    assert rows[-1]["status"] == "diverged"
    assert rows[-1]["val_loss"] is None
    assert not rows[-1]["decayed"]
    assert len(frame(rows)) == len(rows)


def test_two_processes_on_one_directory(run: RunConfig, tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(RunBusy, match=f"process {os.getpid()} on"):
        train(run, tmp_path, log=quiet)


def test_directory_of_another_run(run: RunConfig, undisturbed: list[Row], tmp_path: Path) -> None:
    (tmp_path / "undisturbed" / "rows.json").unlink()
    with pytest.raises(UserError, match="holds run"):
        train(dataclasses.replace(run, seed=1), tmp_path / "undisturbed", log=quiet)


def test_sigterm_saves_and_the_same_command_continues(run: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        dataclasses.replace(run, budgets_steps=(20_000,), budgets_macs=(1e9,)).to_yaml()
    )
    child = Warm(command, "train", str(tmp_path), said=tmp_path / "said")
    while size_of(tmp_path / "metrics.jsonl") < 400:
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    assert child.wait() == 130
    error = child.said.read_text()
    assert "the same command continues" in error
    assert "Traceback" not in error
    assert (tmp_path / "checkpoint.pt").exists()


def test_schedule_of_branches(run: RunConfig) -> None:
    plan = segments(run)
    assert [(s.start, s.end, s.budget) for s in plan] == [
        (0, 20, None), (20, 25, 0), (20, 36, None), (36, 45, 1), (36, 60, None), (60, 75, 2),
    ]  # fmt: skip
    assert rate(run, plan[0], 0) == pytest.approx(1 / 5)
    assert rate(run, plan[0], 4) == rate(run, plan[2], 30) == rate(run, plan[1], 20) == 1.0
    assert 0 < rate(run, plan[1], 24) < 0.2
    assert length(plan) == 60 + 5 + 9 + 15


def test_schedule_cosine(run: RunConfig) -> None:
    cosine = dataclasses.replace(
        run, schedule="cosine", budgets_steps=(100,), budgets_macs=(1e6,), warmup_steps=10
    )
    (segment,) = segments(cosine)
    rates = [rate(cosine, segment, s) for s in range(100)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-2)


def test_impossible_schedule(run: RunConfig) -> None:
    with pytest.raises(UserError, match="before the warm-up"):
        segments(dataclasses.replace(run, warmup_steps=50))
