"""Losses of the readout: next token without the memory of all logits, and next normalised patch.

Shapes: B sequences, T positions, N = B T, V vocabulary, P values of a patch, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scaling.errors import UserError

CHUNK_LOGITS = 2**26  # float32 logits held at once: 256 MiB
PATCH_EPS = 1e-6


def token_loss(
    x_BTd: Tensor, head_Vd: Tensor, targets_BT: Tensor, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy of logits x @ head.T in nats, float32, never holding all of a large model's.

    "mean": a scalar. "none": (B, T), for evaluation only (it carries no gradient).
    """
    _check(reduction)
    x_Nd, targets_N = x_BTd.flatten(0, 1), targets_BT.flatten()
    if reduction == "mean" and torch.is_grad_enabled():
        apply: Callable[[Tensor, Tensor, Tensor], Tensor] = _LinearCrossEntropy.apply
        return apply(x_Nd, head_Vd, targets_N)
    rows = _chunk_rows(head_Vd)
    with torch.no_grad():
        losses = [
            F.cross_entropy(F.linear(x, head_Vd).float(), targets, reduction="none")
            for x, targets in zip(x_Nd.split(rows), targets_N.split(rows), strict=True)
        ]
    losses_N = torch.cat(losses)
    return losses_N.mean() if reduction == "mean" else losses_N.view(targets_BT.shape)


def patch_loss(
    x_BTd: Tensor, head_Pd: Tensor, patches_BTP: Tensor, reduction: str = "mean"
) -> Tensor:
    """Squared error per value of the predicted normalised patch: a scalar or (B, T)."""
    _check(reduction)
    error = F.linear(x_BTd, head_Pd).float() - normalise_patches(patches_BTP)
    losses_BT = error.square().mean(-1)
    return losses_BT.mean() if reduction == "mean" else losses_BT


def normalise_patches(patches_BTP: Tensor) -> Tensor:
    """Each patch with its own mean and (unbiased) variance removed (MAE, arXiv 2111.06377)."""
    patches = patches_BTP.float()
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) * (variance + PATCH_EPS).rsqrt()


def _check(reduction: str) -> None:
    if reduction not in ("mean", "none"):
        raise UserError(f"reduction is {reduction!r}; it must be 'mean' or 'none'")


def _chunk_rows(head_Vd: Tensor) -> int:
    return max(1, CHUNK_LOGITS // head_Vd.shape[0])


class _LinearCrossEntropy(torch.autograd.Function):
    """mean(cross_entropy(x @ head.T, targets)) whose gradient is made in the forward pass.

    Softmax and gradient overwrite the chunk's logits in place, so one float32 buffer of
    CHUNK_LOGITS is all that a vocabulary costs, nothing is recomputed, and the backward pass only
    scales. (The idea of Liger Kernel, arXiv 2410.10989.)
    """

    @staticmethod
    def forward(ctx: Any, x_Nd: Tensor, head_Vd: Tensor, targets_N: Tensor) -> Tensor:
        N, rows = len(targets_N), _chunk_rows(head_Vd)
        device = x_Nd.device.type
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_Nd.dtype
        loss = torch.zeros((), device=x_Nd.device)
        dx_Nd = torch.empty_like(x_Nd, dtype=low)
        dhead_Vd = torch.zeros_like(head_Vd)
        with torch.autocast(device, enabled=False):
            weight = head_Vd.to(low)
            for i in range(0, N, rows):
                x, target = x_Nd[i : i + rows].to(low), targets_N[i : i + rows, None]
                logits = (x @ weight.T).float()
                torch.log_softmax(logits, -1, out=logits)
                loss -= logits.gather(1, target).sum()
                logits.exp_().scatter_add_(1, target, torch.full_like(logits[:, :1], -1))
                grad = logits.div_(N).to(low)
                torch.mm(grad, weight, out=dx_Nd[i : i + rows])
                dhead_Vd += grad.T @ x
        ctx.save_for_backward(dx_Nd, dhead_Vd)
        return loss / N

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        dx_Nd, dhead_Vd = ctx.saved_tensors
        return dx_Nd * grad, dhead_Vd * grad, None
