"""Fitting small tokenizers of the published families to a user's frames.

`train_vqgan` minimises the squared error and VQGAN's codebook objective (Esser et al. 2021, eq. 4,
without the perceptual and adversarial parts, which bring in labels and need a discriminator).
`train_dvae` minimises the negative evidence bound of DALL-E's dVAE (Ramesh et al. 2021, 2.1):
logit-Laplace likelihood, Gumbel-softmax relaxation, a KL term that rises from zero.

Both are deterministic: same frames, settings, seed and number of threads give the same weights.

Shapes: N frames, H = W pixels, h = w = H / patch, K codes, E values of a code vector.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.tokenizers.dvae import DVAE
from models.tokenizers.vqgan import VQGAN, Architecture

Progress = Callable[[int, int, float], None]  # step, steps, loss

_EPS = 0.1  # as in dvae.py


def silent(step: int, steps: int, loss: float) -> None:
    """Progress that shows nothing."""


def small_vqgan(codes: int, patch: int, width: int) -> VQGAN:
    """The untrained model of `train_vqgan`. Raises ValueError for a patch that is no power of 2."""
    levels = _levels(patch)
    multipliers = tuple(2**i for i in range(levels))
    return VQGAN(Architecture(codes, 8, 32, width, multipliers, 1, (levels - 1,)))


def small_dvae(codes: int, patch: int, width: int) -> DVAE:
    """The untrained model of `train_dvae`. Raises ValueError for a patch that is no power of 2."""
    return DVAE(codes, width, _levels(patch), 2, max(32, width))


def train_vqgan(
    frames_NHWC: np.ndarray,
    *,
    codes: int,
    patch: int,
    width: int,
    steps: int,
    seed: int,
    batch: int = 16,
    lr: float = 1e-3,
    progress: Progress = silent,
) -> VQGAN:
    """A VQGAN of `codes` codes of `patch` px, `width` channels at full resolution.

    The first tenth of the steps has no quantiser; then the table starts from k-means on what the
    encoder puts out, and codes that have not won anything for a while are put on recent outputs.
    """
    torch.manual_seed(seed)
    model = small_vqgan(codes, patch, width)
    arch = model.arch
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.99))
    table = model.quantize.embedding.weight
    free = max(1, steps // 10)
    recent: list[Tensor] = []
    idle_for = torch.zeros(codes)
    for step, images in enumerate(_batches(frames_NHWC, batch, steps, seed)):
        _set_rate(optimizer, lr, step, steps)
        z = model.vectors(images)
        if step < free:
            loss = F.mse_loss(model.images(z), images)
        else:
            if step == free:
                with torch.no_grad():
                    table.copy_(_k_means(torch.cat(recent), codes))
            with torch.no_grad():
                chosen = model.nearest(z)
            q = model.quantize.embedding(chosen).permute(0, 3, 1, 2)
            # Eq. 4: codes move to the encoder's outputs, outputs commit to codes (beta 0.25).
            commit = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
            through = z + (q - z).detach()
            loss = F.mse_loss(model.images(through), images) + commit
            idle_for += 1
            idle_for[chosen.unique()] = 0
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent = [*recent, z.detach().permute(0, 2, 3, 1).reshape(-1, arch.embed)][-32:]
        if step > free and step % 50 == 0 and step < 0.8 * steps:
            _revive(table, idle_for, torch.cat(recent[-4:]))
        progress(step + 1, steps, float(loss.detach()))
    return model.eval()


def train_dvae(
    frames_NHWC: np.ndarray,
    *,
    codes: int,
    patch: int,
    width: int,
    steps: int,
    seed: int,
    batch: int = 16,
    lr: float = 1e-3,
    kl_weight: float = 1e-3,
    progress: Progress = silent,
) -> DVAE:
    """A dVAE of `codes` codes of `patch` px and `width` channels at full resolution.

    The temperature falls from 1 to 1/16 and the weight of the KL term (nats a code; DALL-E's 6.6 is
    for its own units) rises from 0 over the first two thirds of the steps.
    """
    torch.manual_seed(seed)
    model = small_dvae(codes, patch, width)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.99))
    noise = torch.Generator().manual_seed(seed + 1)
    for step, images in enumerate(_batches(frames_NHWC, batch, steps, seed)):
        _set_rate(optimizer, lr, step, steps)
        ramp = min(1.0, 1.5 * step / steps)
        temperature = math.exp(ramp * math.log(1 / 16))
        logits = model.logits(images)
        uniform = torch.rand(logits.shape, generator=noise).clamp_(1e-9, 1 - 1e-7)
        soft = ((logits - torch.log(-torch.log(uniform))) / temperature).softmax(1)
        out = model.pixels(soft)
        log_q = logits.log_softmax(1)
        kl = (log_q.exp() * (log_q + math.log(codes))).sum(1).mean()
        loss = _logit_laplace(out, images) + ramp * kl_weight * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress(step + 1, steps, float(loss.detach()))
    return model.eval()


def _logit_laplace(out_N6HW: Tensor, images_NCHW: Tensor) -> Tensor:
    """Mean negative log-likelihood of a colour value (Ramesh et al. 2021, appendix A.3)."""
    x = (1 - 2 * _EPS) * images_NCHW + _EPS
    location, log_scale = out_N6HW[:, :3], out_N6HW[:, 3:].clamp(-7, 3)
    distance = (torch.logit(x) - location).abs() * torch.exp(-log_scale)
    return (distance + log_scale + math.log(2) + torch.log(x * (1 - x))).mean()


def _levels(patch: int) -> int:
    levels = patch.bit_length()
    if patch < 2 or 2 ** (levels - 1) != patch:
        raise ValueError(f"patch={patch}: a learned tokenizer halves the side; use 2, 4, 8, 16.")
    return levels


def _batches(frames_NHWC: np.ndarray, batch: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Random frames, each mirrored with probability 1/2, as images (B, 3, H, W) in [0, 1]."""
    rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, 0x70CE]))
    for _ in range(steps):
        chosen = rng.integers(len(frames_NHWC), size=batch)
        part = frames_NHWC[chosen]
        mirror = rng.random(batch) < 0.5
        part[mirror] = part[mirror, :, ::-1]
        yield torch.from_numpy(np.ascontiguousarray(part.transpose(0, 3, 1, 2))) / 255


def _set_rate(optimizer: torch.optim.Optimizer, lr: float, step: int, steps: int) -> None:
    """Warm-up over 2% of the steps, then a cosine to 2% of the rate."""
    warm = min(1.0, (step + 1) / max(1, steps // 50))
    decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = lr * warm * decay


def _k_means(points_ME: Tensor, codes: int) -> Tensor:
    """A few Lloyd steps from a random sample; with fewer points than codes, points repeat."""
    table = points_ME[torch.randint(len(points_ME), (codes,))].clone()
    for _ in range(10):
        nearest = torch.cdist(points_ME, table).argmin(1)
        count = torch.bincount(nearest, minlength=codes).clamp(min=1)
        sums = torch.zeros_like(table).index_add_(0, nearest, points_ME)
        used = torch.bincount(nearest, minlength=codes) > 0
        table[used] = (sums / count[:, None])[used]
        lost = torch.nonzero(~used).flatten()
        table[lost] = points_ME[torch.randint(len(points_ME), (len(lost),))]
    return table


@torch.no_grad()
def _revive(table_KE: Tensor, idle_for_K: Tensor, recent_ME: Tensor) -> None:
    lost = torch.nonzero(idle_for_K >= 50).flatten()
    table_KE[lost] = recent_ME[torch.randint(len(recent_ME), (len(lost),))]
    idle_for_K[lost] = 0
