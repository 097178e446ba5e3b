"""More than one device: the same model and optimizer, replicated (DDP) or sharded (FSDP2).

Each rank gives its own share of the batch; gradients are averaged over ranks, so equal shares give
the gradient of the whole batch. Order of calls: start, build, distribute, optimizer.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as sharded
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from scaling.errors import UserError
from scaling.models.decoder import Decoder

Loss = Callable[[Tensor, Tensor], Tensor]
MODES = ("ddp", "fsdp")


def start() -> torch.device:
    """Join the process group that torchrun or Slurm describes; returns this rank's device.

    Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; rank, size and local rank may
    also come from Slurm's SLURM_PROCID, SLURM_NTASKS and SLURM_LOCALID.
    """
    for name, slurm in (
        ("RANK", "SLURM_PROCID"),
        ("WORLD_SIZE", "SLURM_NTASKS"),
        ("LOCAL_RANK", "SLURM_LOCALID"),
    ):
        value = os.environ.get(name, os.environ.get(slurm))
        if value is None:
            raise UserError(
                f"neither {name} nor {slurm} is set; "
                "start the ranks with torchrun or as Slurm tasks"
            )
        os.environ[name] = value
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UserError(f"{name} is not set; it names the host and port where ranks meet")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
        return device
    dist.init_process_group("gloo")
    return torch.device("cpu")


def distribute(model: Decoder, mode: str) -> Loss:
    """Replicate or shard `model` in place; returns the loss that synchronises its gradients.

    Build the optimizer afterwards and before the first step: sharding replaces the parameters.
    `model` stays what is saved, evaluated and clipped.
    """
    if mode not in MODES:
        raise UserError(f"parallel mode is {mode!r}; it must be one of {', '.join(MODES)}")
    if mode == "ddp":
        return DistributedDataParallel(_LossOf(model))
    for block in model.layers:
        fully_shard(block)
    fully_shard(model)
    register_fsdp_forward_method(model, "loss")
    return model.loss


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Every rank writes its own part of weights and moments into the folder `path`."""
    weights, moments = get_state_dict(model, optimizer)
    sharded.save({"model": weights, "optimizer": moments}, checkpoint_id=str(path))


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Reads what `save` wrote on any number of ranks, into a model on any number of ranks."""
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments}
    with warnings.catch_warnings():
        # Reading in one process, without a process group, is meant; torch asks whether it is.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        sharded.load(state, checkpoint_id=str(path))
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)


class _LossOf(nn.Module):
    """DistributedDataParallel synchronises what goes through `forward`."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(inputs, targets)
