"""Fitting small tokenizers of the published families to a user's frames.

`train_vqgan` minimises the squared error and VQGAN's codebook objective (Esser et al. 2021, eq. 4,
without the perceptual and adversarial parts, which bring in labels and need a discriminator).
`train_dvae` minimises the negative evidence bound of DALL-E's dVAE (Ramesh et al. 2021, 2.1):
logit-Laplace likelihood, Gumbel-softmax relaxation, a KL term that rises from zero.

Both are deterministic: same frames, settings, seed and number of threads give the same weights,
also when the training was stopped in between: all that is random is drawn from (seed, step).

Shapes: N frames, H = W pixels, h = w = H / patch, K codes, E values of a code vector, M vectors.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaling.errors import UserError
from scaling.models.tokenizers.dvae import DVAE
from scaling.models.tokenizers.vqgan import VQGAN, Architecture, Attention, ResBlock

State = dict[str, Any]  # of a training between two steps
Progress = Callable[[int, int, float], None]  # step, steps, loss
Keep = Callable[[Callable[[], State]], None]  # offered the state after each step
LossOf = Callable[[int, Tensor, np.random.Generator], Tensor]  # step, images (B, 3, H, W) -> loss

_EPS = 0.1  # as in dvae.py
_DECAY = 0.98  # a step's weight falls by that much at every further step
_RARE = 0.03  # a code that wins less than this share of the average is moved


def silent(step: int, steps: int, loss: float) -> None:
    """Progress that shows nothing."""


def forget(state: Callable[[], State]) -> None:
    """Keep nothing: a training that is stopped starts anew."""


def small_vqgan(codes: int, patch: int, width: int) -> VQGAN:
    """The untrained model of `train_vqgan`. Raises UserError for a patch that is no power of 2."""
    # Most arithmetic is at the finest resolutions: no wider than 2 there, 4 where it costs little.
    # Vectors of 4 values, as in LDM: few codes fill more dimensions badly.
    multipliers = tuple(min(2**i, 4 if i > 2 else 2) for i in range(_levels(patch)))
    model = VQGAN(Architecture(codes, 4, 32, width, multipliers, 1, ()))
    for module in model.modules():  # residual branches start at zero: the first steps teach more
        if isinstance(module, ResBlock | Attention):
            last = module.conv2 if isinstance(module, ResBlock) else module.proj_out
            nn.init.zeros_(last.weight)
            if last.bias is not None:
                nn.init.zeros_(last.bias)
    return model


def small_dvae(codes: int, patch: int, width: int) -> DVAE:
    """The untrained model of `train_dvae`. Raises UserError for a patch that is no power of 2."""
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
    lr: float = 2e-3,
    progress: Progress = silent,
    state: State | None = None,
    keep: Keep = forget,
) -> VQGAN:
    """A VQGAN of `codes` codes of `patch` px, `width` channels at full resolution.

    The first tenth of the steps, 200 at least, has no quantiser. Then the codes start from k-means
    on what the encoder puts out, follow the mean of what they win (van den Oord et al. 2017,
    appendix A.1), and those that win next to nothing are put on recent outputs.

    Continues from `state`, of a stopped training of the same frames and settings.
    """
    torch.manual_seed(seed)
    model = small_vqgan(codes, patch, width)
    table = model.quantize.embedding.weight.requires_grad_(False)
    won_K, sum_KE = torch.zeros(codes), torch.zeros_like(table)  # running means of a step's
    free = max(1, min(steps // 2, max(200, steps // 10)))  # before that it has nothing to quantise

    def loss_of(step: int, images: Tensor, rng: np.random.Generator) -> Tensor:
        z = model.vectors(images)
        if step < free:
            return F.mse_loss(model.images(z), images)
        if step == free:
            with torch.no_grad():
                points = [flat(model.vectors(part)) for part in start_frames().split(batch)]
                table.copy_(k_means(torch.cat(points), codes, rng))
            won_K.fill_(flat(z).shape[0] / codes)
            sum_KE.copy_(table * won_K[:, None])
        nearest = model.nearest(z.detach())
        q = model.quantize.embedding(nearest).permute(0, 3, 1, 2)
        error = F.mse_loss(model.images(z + (q - z).detach()), images)
        # Outputs commit to codes (Esser et al., eq. 4); in units in which neither the scale of the
        # outputs nor that of the error matters. With a weight of 0.25 codes were lost.
        commit = F.mse_loss(z, q) / flat(z.detach()).var(0).mean()
        follow(table, won_K, sum_KE, flat(z.detach()), nearest.flatten())
        if step < 0.9 * steps:
            revive(table, won_K, sum_KE, flat(z.detach()), rng)
        return error + error.detach() * commit

    def start_frames() -> Tensor:
        count = 16 * codes * patch**2 // frames_NHWC[0, :, :, 0].size + 1
        return _batch(frames_NHWC, count, _generator(seed, steps))

    memory = {"won": won_K, "sum": sum_KE}
    _descend(
        model, loss_of, memory, frames_NHWC,
        steps=steps, batch=batch, lr=lr, seed=seed, progress=progress, state=state, keep=keep,
    )  # fmt: skip
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
    state: State | None = None,
    keep: Keep = forget,
) -> DVAE:
    """A dVAE of `codes` codes of `patch` px and `width` channels at full resolution.

    The temperature falls from 1 to 1/16 and the weight of the KL term (nats a code; DALL-E's 6.6 is
    for its own units) rises from 0 over the first two thirds of the steps.

    Continues from `state`, of a stopped training of the same frames and settings.
    """
    torch.manual_seed(seed)
    model = small_dvae(codes, patch, width)

    def loss_of(step: int, images: Tensor, rng: np.random.Generator) -> Tensor:
        ramp = min(1.0, 1.5 * step / steps)
        temperature = math.exp(ramp * math.log(1 / 16))
        logits = model.logits(images)
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        uniform = torch.rand(logits.shape, generator=noise).clamp_(1e-9, 1 - 1e-7)
        soft = ((logits - torch.log(-torch.log(uniform))) / temperature).softmax(1)
        log_q = logits.log_softmax(1)
        kl = (log_q.exp() * (log_q + math.log(codes))).sum(1).mean()
        return _logit_laplace(model.pixels(soft), images) + ramp * kl_weight * kl

    _descend(
        model, loss_of, {}, frames_NHWC,
        steps=steps, batch=batch, lr=lr, seed=seed, progress=progress, state=state, keep=keep,
    )  # fmt: skip
    return model.eval()


def _descend(
    model: nn.Module,
    loss_of: LossOf,
    memory: dict[str, Tensor],
    frames_NHWC: np.ndarray,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    progress: Progress,
    state: State | None,
    keep: Keep,
) -> None:
    """Adam on `loss_of`; `memory` is what it remembers between steps besides the parameters."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=lr, betas=(0.9, 0.99))
    first = 0
    if state is not None:
        first = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for name, tensor in memory.items():
            tensor.copy_(state["memory"][name])

    def state_after(done: int) -> State:
        weights, moments = model.state_dict(), optimizer.state_dict()
        return {"step": done, "model": weights, "optimizer": moments, "memory": memory}

    for step in range(first, steps):
        rng = _generator(seed, step)
        _set_rate(optimizer, lr, step, steps)
        loss = loss_of(step, _batch(frames_NHWC, batch, rng), rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        progress(step + 1, steps, float(loss.detach()))
        keep(partial(state_after, step + 1))
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _logit_laplace(out_N6HW: Tensor, images_NCHW: Tensor) -> Tensor:
    """Mean negative log-likelihood of a colour value (Ramesh et al. 2021, appendix A.3)."""
    x = (1 - 2 * _EPS) * images_NCHW + _EPS
    location, log_scale = out_N6HW[:, :3], out_N6HW[:, 3:].clamp(-7, 3)
    distance = (torch.logit(x) - location).abs() * torch.exp(-log_scale)
    return (distance + log_scale + math.log(2) + torch.log(x * (1 - x))).mean()


def _levels(patch: int) -> int:
    levels = patch.bit_length()
    if patch < 2 or 2 ** (levels - 1) != patch:
        raise UserError(f"patch={patch}: a learned tokenizer halves the side; use 2, 4, 8, 16.")
    return levels


def _generator(seed: int, step: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, 0x70CE << 32 | step]))


def _batch(frames_NHWC: np.ndarray, count: int, rng: np.random.Generator) -> Tensor:
    """Random frames, each mirrored with probability 1/2, as images (B, 3, H, W) in [0, 1]."""
    part = frames_NHWC[rng.integers(len(frames_NHWC), size=count)]
    mirror = rng.random(count) < 0.5
    part[mirror] = part[mirror, :, ::-1]
    return (torch.from_numpy(part) / 255).permute(0, 3, 1, 2)  # channels last in memory


def _set_rate(optimizer: torch.optim.Optimizer, lr: float, step: int, steps: int) -> None:
    """Warm-up over 1% of the steps, then a cosine to 2% of the rate."""
    warm = min(1.0, (step + 1) / max(1, steps // 100))
    decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = lr * warm * decay


# -- the code vectors ------------------------------------------------------------------------------


def flat(z_NEhw: Tensor) -> Tensor:
    """Vectors (M, E) of a grid of them."""
    return z_NEhw.permute(0, 2, 3, 1).reshape(-1, z_NEhw.shape[1])


def k_means(points_ME: Tensor, codes: int, rng: np.random.Generator) -> Tensor:
    """Code vectors (K, E): a few Lloyd steps from random points, which repeat if there are few."""
    table = points_ME[_some(len(points_ME), codes, rng)].clone()
    for _ in range(10):
        nearest = torch.cdist(points_ME, table).argmin(1)
        count = torch.bincount(nearest, minlength=codes)
        sums = torch.zeros_like(table).index_add_(0, nearest, points_ME)
        table = sums / count.clamp(min=1)[:, None]
        lost = torch.nonzero(count == 0).flatten()
        table[lost] = points_ME[_some(len(points_ME), len(lost), rng)]
    return table


@torch.no_grad()
def follow(
    table_KE: Tensor, won_K: Tensor, sum_KE: Tensor, z_ME: Tensor, nearest_M: Tensor
) -> None:
    """Move codes to the running mean of what they win."""
    count = torch.bincount(nearest_M, minlength=len(won_K))
    sums = torch.zeros_like(sum_KE).index_add_(0, nearest_M, z_ME)
    won_K.mul_(_DECAY).add_(count, alpha=1 - _DECAY)
    sum_KE.mul_(_DECAY).add_(sums, alpha=1 - _DECAY)
    table_KE.copy_(sum_KE / won_K.clamp(min=1e-6)[:, None])


@torch.no_grad()
def revive(
    table_KE: Tensor, won_K: Tensor, sum_KE: Tensor, z_ME: Tensor, rng: np.random.Generator
) -> None:
    """Put codes that win next to nothing on random vectors of this step."""
    average = len(z_ME) / len(won_K)
    lost = torch.nonzero(won_K < _RARE * average).flatten()
    table_KE[lost] = z_ME[_some(len(z_ME), len(lost), rng)]
    won_K[lost] = 0.3 * average  # until they are lost again: about 110 steps
    sum_KE[lost] = table_KE[lost] * won_K[lost, None]


def _some(size: int, count: int, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.integers(size, size=count))
