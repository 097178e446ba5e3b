"""The validation loss of a model, by source and by position, shared out to the ranks."""

from __future__ import annotations

from typing import Any

import torch

from scaling.data import feed
from scaling.training.device import autocast
from scaling.training.ranks import Ranks


@torch.no_grad()
def validation_loss(
    model: Any, validation: dict[str, feed.Pair], batch: int, ranks: Ranks, bf16: bool
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Mean loss of each source's validation sequences, all together and by position (T,).

    The sequences are shared out to the ranks.
    """
    model.eval()
    positions = next(iter(validation.values()))[1].shape[1]
    sums = torch.zeros(len(validation), 1 + positions, dtype=torch.float64, device=ranks.device)
    for k, pair in enumerate(validation.values()):
        for inputs_B, targets_B in zip(*(x.split(batch) for x in pair), strict=True):
            own = slice(ranks.rank, None, ranks.size)
            count = len(inputs_B[own])
            if count == 0:  # a sharded model takes all ranks for every forward pass
                own = slice(1)
            with autocast(ranks.device, bf16):
                loss_BT = model.loss(
                    feed.values(inputs_B[own]), feed.values(targets_B[own]), reduction="none"
                )
            if count:
                sums[k, 0] += loss_BT.mean().double() * count
                sums[k, 1:] += loss_BT.double().sum(0)
    model.train()
    counts = torch.tensor([[len(inputs)] for inputs, _ in validation.values()])
    means = ranks.total(sums).cpu() / counts
    return (
        {source: float(mean) for source, mean in zip(validation, means[:, 0], strict=True)},
        dict(zip(validation, means[:, 1:], strict=True)),
    )
