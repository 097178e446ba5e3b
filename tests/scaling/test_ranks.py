"""Gradient accumulation and several ranks: the numbers of one process, and a common end."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

import scaling.models.memory
from scaling import checkpoint
from scaling.config.run import RunConfig
from scaling.config.schema import TrainConfig
from scaling.errors import UserError
from scaling.models.parametrization import build, optimizer
from scaling.results import Row
from scaling.storage.files import RunLock
from scaling.study_folder import RunFolder
from scaling.training.device import COMPILE_MACS, compiles, gemm_peak_macs
from scaling.training.ranks import restore
from scaling.training.train import train
from tests.ports import meeting_port
from tests.scaling import rank_work
from tests.scaling.rank_work import Fault
from tests.warm import Warm

TOLERANCE = 1e-5
BUSY, INDIVISIBLE = "busy", "indivisible"


def quiet(text: str) -> None:
    """Training's log is not what these tests look at."""


@pytest.fixture(scope="module")
def short(data_dir: Path) -> RunConfig:
    """Two budgets on one trunk, 20 steps along the plan's longest path."""
    from scaling.data.shards import TokenData
    from scaling.models.family import size

    data = TokenData.open(data_dir)
    return RunConfig(
        model=size(16, 2, 2, vocab=data.vocab, context=data.context, base_width=16),
        data_key=data.key,
        data_dir=str(data_dir),
        role="ladder",
        lr=2.0**-6,
        budgets_steps=(12, 20),
        budgets_macs=(1e6, 2e6),
        batch=4,
        warmup_steps=3,
        evals=1,
        study="test",
    )


def weights(run: RunConfig, run_dir: Path) -> dict[str, Tensor]:
    """The last weights, whole or sharded, read by one process."""
    path = RunFolder(run_dir).weights(run.budgets_steps[-1])
    saved, notes = checkpoint.load(path if path.exists() else run_dir / "checkpoint.pt")
    assert saved is not None and not notes
    model = build(run.model, seed=1)
    if "shards" not in saved:
        model.load_state_dict(saved["model"])
        return model.state_dict()
    optim = optimizer(model, lr=run.lr, weight_decay=run.weight_decay)
    restore(run_dir, saved, model, optim)
    return model.state_dict()


def assert_alike(rows: list[Row], expected: list[Row]) -> None:
    """Losses within the tolerance; design, cost and status the same."""
    assert len(rows) == len(expected) >= 2
    for row, other in zip(rows, expected, strict=True):
        for column, value in other.items():
            if "loss" in column:
                assert row[column] == pytest.approx(value, abs=TOLERANCE), column
            elif column not in ("seconds", "mfu", "device", "git_sha"):
                assert row[column] == value, column


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, weight in other.items():
        torch.testing.assert_close(one[name], weight, atol=TOLERANCE, rtol=0, msg=name)


def start(scenarios: list[dict[str, Any]], said: Path, fault: Fault | None = None) -> list[Warm]:
    """Two ranks, with the environment that torchrun gives them; they speak to files in `said`."""
    port = str(meeting_port())
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        Warm(
            rank_work.main,
            scenarios,
            fault,
            said=said / f"said.{rank}",
            environment=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]


def wait(ranks: list[Warm]) -> list[tuple[int, str]]:
    """(exit code, what it said) of each rank."""
    codes = [rank.wait() for rank in ranks]
    return [(code, rank.said.read_text()) for code, rank in zip(codes, ranks, strict=True)]


def scenario(run: RunConfig, run_dir: Path, looks: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.yaml").write_text(run.to_yaml())
    return {"run_dir": str(run_dir), "looks": looks}


def came(run_dir: Path, rank: int) -> dict[str, Any]:
    came: dict[str, Any] = json.loads((run_dir / f"came.{rank}.json").read_text())
    return came


@pytest.fixture(scope="module")
def alone(short: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], Path]:
    run_dir = tmp_path_factory.mktemp("alone")
    return train(short, run_dir, log=quiet), run_dir


@pytest.fixture(scope="module")
def folder(short: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks made of every scenario, in one pair of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    made = []
    for mode in ("ddp", "fsdp"):
        run = replace(short, parallel=mode)
        eager = replace(run, checkpoint_seconds=1e-6)
        made.append(scenario(run, folder / mode))
        made.append(scenario(replace(run, micro_batch=2), folder / f"{mode}-micro"))
        # Only the second rank is asked to stop: in the first branch.
        made.append(scenario(eager, folder / f"{mode}-stopped", looks=(0, 11)))
        # One process began, two go on.
        begun = folder / f"{mode}-begun"
        begun.mkdir()
        with pytest.raises(checkpoint.Interrupted):
            train(run, begun, stop=rank_work.StopAfter(5), log=quiet)
        made.append(scenario(run, begun))
    made.append(scenario(short, folder / "ddp"))  # finished before
    made.append(scenario(replace(short, batch=3), folder / INDIVISIBLE))
    made.append(scenario(short, folder / BUSY))
    with RunLock(folder / BUSY):
        for code, said in wait(start(made, folder)):
            assert code == 0, said
            assert "Warning" not in said
    return folder


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
@pytest.mark.parametrize("suffix", ["", "-micro", "-begun"])
def test_two_ranks_equal_one_process(
    short: RunConfig, alone: tuple[list[Row], Path], folder: Path, mode: str, suffix: str
) -> None:
    run_dir = folder / f"{mode}{suffix}"
    assert_alike(came(run_dir, 0)["rows"], alone[0])
    assert_same_weights(weights(short, run_dir), weights(short, alone[1]))
    assert came(run_dir, 0)["rows"] == came(run_dir, 1)["rows"]
    assert came(run_dir, 0)["rows"][-1]["device"].endswith(f"2 ranks {mode}")
    assert json.loads((run_dir / "rows.json").read_text()) == came(run_dir, 0)["rows"]
    assert came(run_dir, 1)["logged"] == [], "the first rank speaks for all"
    lines = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len({(x["position"], "val_loss" in x) for x in lines}) == len(lines), "one writer"


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_stopped_on_two_ranks_continues_on_one(
    short: RunConfig, alone: tuple[list[Row], Path], folder: Path, mode: str
) -> None:
    run_dir = folder / f"{mode}-stopped"
    for rank in range(2):
        assert came(run_dir, rank)["error"] == f"Interrupted: {run_dir.name}: saved at step 11"
        assert came(run_dir, rank)["signal"], "who started the rank learns of it"
    folders = checkpoint.shard_folders(run_dir / "checkpoint.pt")
    assert len(folders) == (2 if mode == "fsdp" else 0), "the newest and the one before"
    said: list[str] = []
    rows = train(short, run_dir, log=said.append)
    assert said[0] == f"{run_dir.name}: continues at step 11"
    assert_alike(rows, alone[0])
    assert_same_weights(weights(short, run_dir), weights(short, alone[1]))
    left = {p.name for p in run_dir.iterdir() if not p.name.startswith("came")}
    kept = {"config.yaml", "lock", "metrics.jsonl", "points.json", "rows.json"}
    kept |= {"trunk-10.pt", "weights-12.pt", "trunk-16.pt", "weights-20.pt"}
    assert left == kept | {"loss_by_position-12.json", "loss_by_position-20.json"}


def test_damaged_shards_fall_back_to_the_previous(
    short: RunConfig, folder: Path, tmp_path: Path
) -> None:
    import shutil

    run_dir = tmp_path / "copy"
    shutil.copytree(folder / "fsdp", run_dir)
    path = run_dir / "checkpoint.pt"
    state, _ = checkpoint.load(path)
    assert state is not None
    (older,) = checkpoint.shard_folders(path)
    newer = checkpoint.new_shards(path)
    shutil.copytree(older, newer, dirs_exist_ok=True)
    checkpoint.save(path, state | {"shards": checkpoint.seal_shards(newer), "step": 99})
    shard = sorted(newer.with_suffix("").glob("*.distcp"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    found, notes = checkpoint.load(path)
    assert found is not None and found["step"] == state["step"]
    assert notes == [
        f"checkpoint.pt is damaged ({shard.parent.name}/{shard.name}: checksum differs); set aside"
    ]
    assert checkpoint.shard_folders(path) == [older], "the damaged folder is gone"


def test_finished_busy_and_indivisible_are_the_same_on_every_rank(
    short: RunConfig, folder: Path
) -> None:
    for rank in range(2):
        assert "RunBusy" in came(folder / BUSY, rank)["error"]
        assert came(folder / INDIVISIBLE, rank)["error"] == (
            "UserError: train.batch 3 does not divide among 2 ranks; make it a multiple of 2, or "
            "start another number of ranks"
        )
    assert not (folder / BUSY / "metrics.jsonl").exists()


@pytest.mark.parametrize("fault", [Fault(rank=0), Fault(rank=1, stuck=True)])
def test_an_exception_on_one_rank_ends_all(short: RunConfig, tmp_path: Path, fault: Fault) -> None:
    run_dir = tmp_path / "run"
    ended = wait(start([scenario(short, run_dir)], tmp_path, fault))
    assert came(run_dir, fault.rank)["error"] == "RuntimeError: a worm in the apple"
    code, said = ended[1 - fault.rank]
    if fault.stuck:  # only its watch can end it
        assert code == 1
        assert "rank 0 ends with another" in said and "a worm in the apple" in said
    else:
        error = "RuntimeError: rank 0 failed: a worm in the apple"
        assert came(run_dir, 1 - fault.rank)["error"] == error
    assert train(short, run_dir, log=quiet), "the directory is free again"


# ---------------------------------------------------------------- one process


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_checkpoint_of_another_model(
    short: RunConfig, folder: Path, tmp_path: Path, kind: str
) -> None:
    """Whole and sharded: set aside, and trained from the start; never torch's traceback."""
    import shutil

    shutil.copytree(folder / kind, tmp_path / "run")
    (tmp_path / "run" / "rows.json").unlink()
    other = replace(short, model=replace(short.model, d_ff=48))
    (tmp_path / "run" / "config.yaml").write_text(other.to_yaml())
    anew = train(other, tmp_path / "fresh", log=quiet)
    assert_alike(train(other, tmp_path / "run", log=quiet), anew)


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_micro_batches_equal_the_whole_batch(
    short: RunConfig, alone: tuple[list[Row], Path], tmp_path: Path, micro_batch: int
) -> None:
    run = replace(short, micro_batch=micro_batch, recompute=micro_batch == 1)
    assert run.run_id == short.run_id, "no more than the last digits differ"
    assert_alike(train(run, tmp_path, log=quiet), alone[0])
    assert_same_weights(weights(short, tmp_path), weights(short, alone[1]))


def test_micro_batch_must_divide(short: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"micro_batch 3 does not divide train\.batch 4; choose"):
        train(replace(short, micro_batch=3), tmp_path, log=quiet)
    with pytest.raises(ValidationError, match="micro_batch 3 does not divide batch 4"):
        TrainConfig(batch=4, micro_batch=3)


def test_memory_is_counted_per_forward_pass(
    short: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(short, batch=64, budgets_steps=(1,), budgets_macs=(1.0,), schedule="cosine")
    need = scaling.models.memory.training_bytes(run.model, 16)
    monkeypatch.setattr(scaling.models.memory, "device_bytes", lambda device: sum(need.values()))
    with pytest.raises(ValueError, match=r"64 sequences .*accumulate gradients"):
        train(run, tmp_path / "whole", log=quiet)
    assert train(replace(run, micro_batch=16), tmp_path / "parts", log=quiet)


def test_compiled_where_it_pays(short: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    assert not compiles(short, cpu, int(COMPILE_MACS) - 1)
    assert compiles(short, cpu, int(COMPILE_MACS)) and compiles(short, cuda, 1)
    assert compiles(replace(short, compile="on"), cpu, 1)
    assert not compiles(replace(short, compile="off"), cuda, int(COMPILE_MACS))
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not compiles(short, cpu, int(COMPILE_MACS)), "no C++ compiler"
    assert gemm_peak_macs(cpu) is None
