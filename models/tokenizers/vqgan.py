"""VQGAN (Esser et al. 2021), and the tokenizers that have its network and another quantiser.

Parameter names and shapes are those of the published checkpoints (CompVis/taming-transformers,
CompVis/latent-diffusion); the architecture is read from the shapes. Which code a vector becomes
cannot be read from them, so that is said by the family (`FAMILIES`). Only what turns frames into
codes and back is here: no discriminator, no perceptual loss.

Shapes: N frames, H = W pixels, h = w = H / patch, K codes, E values of a code vector, C channels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from scaling.errors import UserError
from scaling.models.tokenizers.dvae import frames_of, images_of, load_strictly, square_grid

_BATCH = 4  # frames at once in encode and decode
MOST_CODES = 65_000  # a shard holds codes as uint16, and special tokens

# Which of the code vectors e a vector z becomes.
FAMILIES = {
    "vqgan": "the nearest: taming-transformers, latent-diffusion, diffusers' VQModel",
    "llamagen": "the nearest of vectors of unit length: LlamaGen (Sun et al. 2024), Janus",
    "ibq": "that of the largest dot product: IBQ of Open-MAGVIT2 (Shi et al. 2024)",
}


@dataclass(frozen=True)
class Architecture:
    """What the shapes of a checkpoint say of its network."""

    codes: int
    embed: int  # values of a code vector
    latent: int  # channels that the encoder puts out
    width: int  # channels at full resolution
    multipliers: tuple[int, ...]  # of the width, at each halving of the resolution
    blocks: int  # residual blocks at each resolution of the encoder; the decoder has one more
    attention: tuple[int, ...]  # places in `multipliers` whose blocks are followed by attention


# Attention sits where the *training* resolution, 256 px, was halved to 16 (or 32) px.
PUBLISHED = {
    "taming-f16-1024": Architecture(1024, 256, 256, 128, (1, 1, 2, 2, 4), 2, (4,)),
    "taming-f16-16384": Architecture(16384, 256, 256, 128, (1, 1, 2, 2, 4), 2, (4,)),
    "ldm-f8": Architecture(16384, 4, 4, 128, (1, 2, 2, 4), 2, (3,)),
    "ldm-f16": Architecture(16384, 8, 8, 128, (1, 1, 2, 2, 4), 2, (4,)),
}


def _norm(channels: int) -> nn.GroupNorm:
    # 32 groups as published, where a group is 4 channels at least. Small tokenizers keep to that: a
    # channel alone in its group would lose its mean, which is the brightness of the frame.
    return nn.GroupNorm(math.gcd(32, channels // 4), channels, eps=1e-6)


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)  # as published; F.silu rounds differently


class ResBlock(nn.Module):
    """Two normalised convolutions beside a skip, (N, C, H, W) to (N, C', H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x_NCHW: Tensor) -> Tensor:
        h: Tensor = self.conv1(_swish(self.norm1(x_NCHW)))
        h = self.conv2(_swish(self.norm2(h)))
        if self.nin_shortcut is not None:
            x_NCHW = self.nin_shortcut(x_NCHW)
        return x_NCHW + h


class Attention(nn.Module):
    """One head over all places."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        h = self.norm(x_NCHW)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))  # (N, C, places)
        # Not F.scaled_dot_product_attention: codes must be the published code's to the last bit.
        share = (torch.bmm(q.transpose(1, 2), k) * q.shape[1] ** -0.5).softmax(2)
        out = torch.bmm(v, share.transpose(1, 2))
        change: Tensor = self.proj_out(out.reshape(x_NCHW.shape))
        return x_NCHW + change


class Resample(nn.Module):
    """Half the resolution by a strided convolution, or double it (nearest) and convolve."""

    def __init__(self, channels: int, *, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(
            channels, channels, 3, stride=2 if down else 1, padding=0 if down else 1
        )

    def forward(self, h_NCHW: Tensor) -> Tensor:
        if self.down:
            h_NCHW = F.pad(h_NCHW, (0, 1, 0, 1))
        else:
            h_NCHW = F.interpolate(h_NCHW, scale_factor=2.0, mode="nearest")
        out: Tensor = self.conv(h_NCHW)
        return out


class Level(nn.Module):
    """The blocks at one resolution, then perhaps a change of resolution."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attention: bool) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.block = nn.ModuleList(ResBlock(widths[i], widths[i + 1]) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(outputs) for _ in range(blocks if attention else 0))
        self.downsample: Resample | None = None
        self.upsample: Resample | None = None

    def forward(self, h_NCHW: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            h_NCHW = block(h_NCHW)
            if len(self.attn):
                h_NCHW = self.attn[i](h_NCHW)
        return h_NCHW


def _middle(channels: int) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "block_1": ResBlock(channels, channels),
            "attn_1": Attention(channels),
            "block_2": ResBlock(channels, channels),
        }
    )


class Encoder(nn.Module):
    """Images (N, 3, H, W) in [-1, 1] to (N, latent, h, w)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        widths = [arch.width * m for m in arch.multipliers]
        self.conv_in = nn.Conv2d(3, arch.width, 3, padding=1)
        levels = []
        for i, outputs in enumerate(widths):
            inputs = arch.width if i == 0 else widths[i - 1]
            level = Level(inputs, outputs, arch.blocks, i in arch.attention)
            if i < len(widths) - 1:
                level.downsample = Resample(outputs, down=True)
            levels.append(level)
        self.down = nn.ModuleList(levels)
        self.mid = _middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], arch.latent, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        h = self.conv_in(x_NCHW)
        for level in self.down:
            assert isinstance(level, Level)
            h = level(h)
            if level.downsample is not None:
                h = level.downsample(h)
        for layer in self.mid.values():
            h = layer(h)
        out: Tensor = self.conv_out(_swish(self.norm_out(h)))
        return out


class Decoder(nn.Module):
    """(N, latent, h, w) to images (N, 3, H, W), about [-1, 1]."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        widths = [arch.width * m for m in arch.multipliers]
        self.conv_in = nn.Conv2d(arch.latent, widths[-1], 3, padding=1)
        self.mid = _middle(widths[-1])
        levels = []
        for i, outputs in enumerate(widths):  # level 0 is full resolution, and runs last
            inputs = widths[-1] if i == len(widths) - 1 else widths[i + 1]
            level = Level(inputs, outputs, arch.blocks + 1, i in arch.attention)
            if i > 0:
                level.upsample = Resample(outputs, down=False)
            levels.append(level)
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z_NChw: Tensor) -> Tensor:
        h = self.conv_in(z_NChw)
        for layer in self.mid.values():
            h = layer(h)
        for level in reversed(self.up):
            assert isinstance(level, Level)
            h = level(h)
            if level.upsample is not None:
                h = level.upsample(h)
        out: Tensor = self.conv_out(_swish(self.norm_out(h)))
        return out


class CodeTable(nn.Module):
    """The code vectors, under their published name."""

    def __init__(self, codes: int, embed: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, embed)


class VQGAN(nn.Module):
    """Encoder, a code vector at each place (by the family), decoder; images in [-1, 1]."""

    def __init__(self, arch: Architecture, family: str = "vqgan") -> None:
        super().__init__()
        self.arch, self.family = arch, family
        self.codes, self.patch = arch.codes, 2 ** (len(arch.multipliers) - 1)
        self.encoder, self.decoder = Encoder(arch), Decoder(arch)
        self.quantize = CodeTable(arch.codes, arch.embed)
        self.quant_conv = nn.Conv2d(arch.latent, arch.embed, 1)
        self.post_quant_conv = nn.Conv2d(arch.embed, arch.latent, 1)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor], family: str | None = None) -> "VQGAN":
        """The model whose names and shapes are those of `weights`, strictly.

        family: of FAMILIES; None: "vqgan", where the shapes are not those of another family.
        Raises UserError: other names or shapes; a family that must be said; too many codes.
        """
        try:
            codes, embed = weights["quantize.embedding.weight"].shape
            latent = weights["encoder.conv_out.weight"].shape[0]
            width = weights["encoder.conv_in.weight"].shape[0]
        except (KeyError, ValueError) as error:
            raise UserError(
                f"these weights are no VQGAN ({error}). Give a taming-transformers VQGAN or a "
                "latent-diffusion VQ checkpoint (its KL models have no codes)."
            ) from None
        parts = [name.split(".") for name in weights if name.startswith("encoder.down.")]
        levels = 1 + max((int(p[2]) for p in parts), default=-1)
        outputs = [
            weights[name].shape[0] if name in weights else 0
            for name in (f"encoder.down.{i}.block.0.conv1.weight" for i in range(levels))
        ]
        blocks = 1 + max((int(p[4]) for p in parts if p[3] == "block"), default=-1)
        if not outputs or 0 in outputs or blocks < 1 or any(o % width for o in outputs):
            raise UserError("these weights are no VQGAN: encoder.down.* is not as published.")
        attention = sorted({int(p[2]) for p in parts if p[3] == "attn"})
        multipliers = tuple(o // width for o in outputs)
        arch = Architecture(codes, embed, latent, width, multipliers, blocks, tuple(attention))
        if codes > MOST_CODES:
            raise UserError(
                f"these weights have {codes:,} codes, more than the {MOST_CODES:,} that shards of "
                "16 bits hold: its codes would be cut. Give one of at most 16,384."
            )
        if family is None:
            family = _assumed(arch)
        model = cls(arch, family)
        load_strictly(model, weights, "VQGAN")
        return model

    def vectors(self, images_NCHW: Tensor) -> Tensor:
        """What is quantised, (N, E, h, w), of images in [0, 1]."""
        z_NEhw: Tensor = self.quant_conv(self.encoder(2 * images_NCHW - 1))
        return z_NEhw

    def nearest(self, vectors_NEhw: Tensor) -> Tensor:
        """Codes (N, h, w) of vectors, as the family has it."""
        z, table = vectors_NEhw.permute(0, 2, 3, 1), self.table
        if self.family == "ibq":
            return (z @ table.T).argmax(-1)
        if self.family == "llamagen":
            z = F.normalize(z, dim=-1)
        # In the order of the published code, so that ties in the last bit fall alike.
        distance = (z**2).sum(-1, keepdim=True) + (table**2).sum(1) - 2 * (z @ table.T)
        return distance.argmin(-1)

    @property
    def table(self) -> Tensor:
        """The code vectors (K, E), as the family compares and decodes them."""
        table: Tensor = self.quantize.embedding.weight
        return F.normalize(table, dim=-1) if self.family == "llamagen" else table

    def images(self, vectors_NEhw: Tensor) -> Tensor:
        """Images (N, 3, H, W), about [0, 1] but not clamped, of code vectors."""
        signed: Tensor = self.decoder(self.post_quant_conv(vectors_NEhw))
        return (signed + 1) / 2

    @torch.no_grad()
    def encode(self, frames_NHWC: np.ndarray) -> np.ndarray:
        """Codes uint16 (N, h * w), raster order, of uint8 frames (N, H, W, 3)."""
        images = images_of(frames_NHWC, self.patch)
        device = self.quant_conv.weight.device
        found = [
            self.nearest(self.vectors(part.to(device))).flatten(1).cpu()
            for part in images.split(_BATCH)
        ]
        return torch.cat(found).numpy().astype(np.uint16)

    @torch.no_grad()
    def decode(self, codes_NL: np.ndarray) -> np.ndarray:
        """Frames uint8 (N, H, W, 3) of codes (N, h * w) on a square grid."""
        grid = torch.from_numpy(square_grid(codes_NL, self.codes).astype(np.int64))
        device = self.quant_conv.weight.device
        found = []
        for part in grid.split(_BATCH):
            vectors = self.table[part.to(device)].permute(0, 3, 1, 2).contiguous()
            found.append(self.images(vectors).clamp(0, 1).cpu())
        return frames_of(torch.cat(found))

    def save(self, path: Path) -> None:
        """Write the weights (.safetensors), with the family in their header where they alone would
        not be taken for it."""
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        alone = self.family == "vqgan" and not _looks_like(self.arch)
        save_file(weights, path, None if alone else {"family": self.family})


def _looks_like(arch: Architecture) -> str | None:
    """The family of other quantiser that is published in these shapes."""
    if arch.blocks == 4 and arch.width == 128:
        return "ibq"
    return "llamagen" if (arch.embed, arch.latent) == (8, 256) else None


def _assumed(arch: Architecture) -> str:
    """Of weights under taming's names that nobody said the family of: a VQGAN's, where no other
    family has these shapes. Raises UserError where one has."""
    how = "Its file cannot tell. Say it: scaling tokenizer convert FILE OUT.safetensors --family "
    like = _looks_like(arch)
    if like == "ibq":
        raise UserError(
            f"these weights have {arch.blocks} blocks at each resolution, as those of IBQ "
            "(Open-MAGVIT2), whose names are a VQGAN's. IBQ takes the code of the largest dot "
            "product and not the nearest one: of the wrong family nearly all codes are wrong. "
            f"{how}ibq (or vqgan)."
        )
    if like == "llamagen":
        raise UserError(
            "these weights have code vectors of 8 values behind 256 channels, as those of Janus, "
            "whose names are a VQGAN's. Janus and LlamaGen compare vectors of unit length: of the "
            f"wrong family most codes are wrong. {how}llamagen (or vqgan)."
        )
    return "vqgan"
