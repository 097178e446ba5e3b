"""Two ranks over gloo, replicated and sharded, against one process; and back to one rank."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from scaling.models import parallel
from scaling.models.family import FAMILY
from scaling.models.parametrization import build, optimizer
from tests.ports import meeting_port
from tests.warm import Warm

STEPS = 20
CONFIG = replace(FAMILY["t128"], layers=2, vocab=97, context=32)  # twice the base: muP counts


def batches() -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return (torch.randint(3, (STEPS, 4, 33), generator=random) - 1).cumsum(2).remainder(97)


def train(
    model: torch.nn.Module,
    adam: torch.optim.Optimizer,
    loss_of: parallel.Loss,
    first: int = 0,
    last: int = STEPS,
    rank: int = 0,
    ranks: int = 1,
) -> list[float]:
    losses = []
    for tokens in batches()[first:last]:
        mine = tokens[rank::ranks]
        loss = loss_of(mine[:, :-1], mine[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        losses.append(loss.item())
    return losses


def one_rank(rank: int, ranks: int, port: int, folder: Path) -> None:
    """Both modes: train half, save a sharded checkpoint, train the rest, save what came out."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    assert parallel.start() == torch.device("cpu")
    for mode in parallel.MODES:
        model = build(CONFIG, seed=0)
        loss_of = parallel.distribute(model, mode)
        adam = optimizer(model, lr=2**-7, weight_decay=0.1)
        losses = train(model, adam, loss_of, 0, STEPS // 2, rank, ranks)
        parallel.save(folder / f"{mode}-half", model, adam)
        losses += train(model, adam, loss_of, STEPS // 2, STEPS, rank, ranks)
        parallel.save(folder / f"{mode}-end", model, adam)
        torch.save((losses, [g["lr"] for g in adam.param_groups]), folder / f"{mode}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    port = meeting_port()
    ranks_2 = [
        Warm(one_rank, rank, 2, port, tmp_path, said=tmp_path / f"said.{rank}") for rank in range(2)
    ]
    for rank in ranks_2:
        assert rank.wait() == 0, rank.said.read_text()

    alone = build(CONFIG, seed=0)
    adam = optimizer(alone, lr=2**-7, weight_decay=0.1)
    losses = torch.tensor(train(alone, adam, alone.loss))
    for mode in parallel.MODES:
        ranks = [torch.load(tmp_path / f"{mode}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        mean = torch.tensor([r[0] for r in ranks]).mean(0)
        assert (mean - losses).abs().max() <= 1e-5, mode
        assert ranks[0][1] == [g["lr"] for g in adam.param_groups], "muP's groups"

        # The sharded checkpoint of two ranks, read by one process.
        end = build(CONFIG, seed=1)
        parallel.load(tmp_path / f"{mode}-end", end, optimizer(end, lr=2**-7, weight_decay=0.1))
        for (name, ours), theirs in zip(end.named_parameters(), alone.parameters(), strict=True):
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm(), (mode, name)

        half = build(CONFIG, seed=1)
        half_adam = optimizer(half, lr=2**-7, weight_decay=0.1)
        parallel.load(tmp_path / f"{mode}-half", half, half_adam)
        resumed = torch.tensor(train(half, half_adam, half.loss, STEPS // 2))
        assert (resumed - losses[STEPS // 2 :]).abs().max() <= 1e-5, mode


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="neither RANK nor SLURM_PROCID is set"):
        parallel.start()
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_LOCALID", "0")
    with pytest.raises(ValueError, match="MASTER_ADDR is not set"):
        parallel.start()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # set by start
        monkeypatch.delenv(name)
    with pytest.raises(ValueError, match="parallel mode is 'tp'; it must be one of ddp, fsdp"):
        parallel.distribute(build(CONFIG, seed=0), "tp")
