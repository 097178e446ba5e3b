"""What a training step holds in memory, known before it starts: traced without any arithmetic.

And what a process has held, for those who compare the two.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from scaling.errors import UserError
from scaling.models.family import ModelConfig
from scaling.models.loss import CHUNK_LOGITS
from scaling.models.macs import parameter_counts
from scaling.models.parametrization import CLASSES


def training_bytes(
    config: ModelConfig,
    batch: int,
    *,
    bf16: bool = False,
    recompute: bool = False,
    shards: int = 1,
) -> dict[str, int]:
    """Bytes of one training step on one device, by use; their sum is the peak, eagerly.

    batch: sequences of config.context positions in one forward pass. shards: devices that share
    weights, gradients and moments (FSDP). Weights, gradients and AdamW's two moments are float32.
    The activations are those that autograd keeps for the backward pass.
    """
    parameters = -(-parameter_counts(config)["all"] // shards)
    kept = _saved_bytes(config, batch, bf16, recompute)
    if recompute:  # plus the one block that is being made again
        kept += (_saved_bytes(config, batch, bf16, False) - kept) // config.layers
    logits = 0
    if not config.patch_targets:
        rows = max(1, CHUNK_LOGITS // config.vocab)
        logits = 4 * config.vocab * min(rows, batch * config.context)
    return {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "moments": 8 * parameters,
        "activations": kept,
        "logits": logits,
    }


def check_fits(
    config: ModelConfig,
    batch: int,
    device: torch.device,
    *,
    bf16: bool = False,
    recompute: bool = False,
    shards: int = 1,
) -> None:
    """Raises UserError where a training step needs more memory than the device has."""
    has = device_bytes(device)
    # Tracing takes a second: not for a model that is far from the limit, even counted generously.
    per_position = config.layers * (40 * config.d + 20 * config.d_ff) + 8 * config.vocab
    bound = 16 * parameter_counts(config)["all"] + 4 * batch * config.context * per_position
    if config.family == "toto" and config.attention == "causal" and bound < has / 10:
        return
    need = training_bytes(config, batch, bf16=bf16, recompute=recompute, shards=shards)
    total = sum(need.values())
    if total <= has:
        return
    parts = ", ".join(f"{use} {size / 1e9:.1f}" for use, size in need.items())
    remedies = [] if batch == 1 else ["fewer sequences at a time (accumulate gradients)"]
    remedies += [] if recompute else ["activation checkpointing"]
    remedies += ["more devices (FSDP)", "a smaller model or context"]
    raise UserError(
        f"{config.name} with {batch} sequences of {config.context} positions needs "
        f"{total / 1e9:.1f} GB ({parts}) and the device has {has / 1e9:.1f} GB; "
        f"use {', or '.join(remedies)}"
    )


def device_bytes(device: torch.device) -> int:
    """The memory of a GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _saved_bytes(config: ModelConfig, batch: int, bf16: bool, recompute: bool) -> int:
    """Bytes that autograd keeps of a forward pass: layers keep alike, and so do sequences."""

    def of(layers: int) -> int:
        few = replace(config, layers=layers)
        if batch <= 2:
            return _traced_bytes(few, batch, bf16, recompute)
        two, three = (_traced_bytes(few, n, bf16, recompute) for n in (2, 3))
        return two + (batch - 2) * (three - two)

    return of(1) + (config.layers - 1) * (of(2) - of(1))


@lru_cache(maxsize=1024)
def _traced_bytes(config: ModelConfig, batch: int, bf16: bool, recompute: bool) -> int:
    """The same by running it on tensors without data; each storage once, weights left out."""
    storages: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no identity is used twice

    def keep(x: Tensor) -> Tensor:
        alive.append(x)
        storages[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    def same(x: Tensor) -> Tensor:
        return x

    with FakeTensorMode():
        model = CLASSES[config.family](config)
        model.recompute = recompute
        inputs = torch.zeros(batch, config.context, dtype=torch.long)
        targets = inputs
        if config.patch_inputs:
            inputs = torch.zeros(batch, config.context, config.patch_inputs)
        if config.patch_targets:
            targets = torch.zeros(batch, config.context, config.patch_targets)
        with (
            saved_tensors_hooks(keep, same),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16),
        ):
            loss = model.loss(inputs, targets)
        weights = {p.untyped_storage()._cdata for p in model.parameters()}
        del loss
    return sum(size for storage, size in storages.items() if storage not in weights)


def peak_bytes() -> int:
    """The most memory that this process has held since it was started (Linux, resident bytes).

    Not `getrusage`'s ru_maxrss, which the program that starts another one hands on to it: a small
    child of a large parent shows the parent's peak. VmHWM begins anew with the program.
    """
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmHWM"].split()[0]) * 1024
