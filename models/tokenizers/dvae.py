"""The discrete VAE of DALL-E (Ramesh et al. 2021), the paper's tokenizer.

Parameter names and shapes are those of the published encoder and decoder (openai/DALL-E), with the
prefixes `encoder.` and `decoder.`. With the defaults, 128 px become 16 x 16 codes of 8192. Smaller
widths and fewer groups give small tokenizers of the same family; models/tokenizers/train.py fits
them. All arithmetic is float32 (the published code runs float16 on GPUs).

Shapes: N frames, H = W pixels, h = w = H / patch, K codes.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from scaling.errors import UserError

_EPS = 0.1  # pixels are squeezed into [eps, 1 - eps] (logit-Laplace, appendix A.3 of the paper)
_BATCH = 8  # frames at once in encode and decode


class Conv(nn.Module):
    """Same-size convolution with the published names `w` and `b`."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        std = (inputs * kernel**2) ** -0.5
        self.w = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel) * std)
        self.b = nn.Parameter(torch.zeros(outputs))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return F.conv2d(x_NCHW, self.w, self.b, padding=self.w.shape[-1] // 2)


class Block(nn.Module):
    """Bottleneck residual block; `kernels` of its four convolutions, `gain` of its branch."""

    def __init__(self, inputs: int, outputs: int, kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        self.gain = gain
        hidden = outputs // 4
        widths = [inputs, hidden, hidden, hidden, outputs]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, kernel in enumerate(kernels):
            layers[f"relu_{i + 1}"] = nn.ReLU()
            layers[f"conv_{i + 1}"] = Conv(widths[i], widths[i + 1], kernel)
        self.res_path = nn.Sequential(layers)
        self.id_path = nn.Identity() if inputs == outputs else Conv(inputs, outputs, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        out: Tensor = self.id_path(x_NCHW) + self.gain * self.res_path(x_NCHW)
        return out


class Half(nn.Module):
    """The encoder or the decoder: a chain of layers under the published name `blocks`."""

    def __init__(self, layers: OrderedDict[str, nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(layers)


class DVAE(nn.Module):
    """Encoder to a categorical over `codes` at each place, decoder to logit-Laplace pixels."""

    def __init__(
        self,
        codes: int = 8192,
        width: int = 256,
        groups: int = 4,
        blocks: int = 2,
        decoder_in: int = 128,
    ) -> None:
        super().__init__()
        if width % 4:
            raise UserError(f"width={width}: a dVAE needs a width divisible by 4.")
        self.codes, self.patch = codes, 2 ** (groups - 1)
        gain = 1 / (groups * blocks) ** 2
        widths = [width * 2**g for g in range(groups)]

        down: OrderedDict[str, nn.Module] = OrderedDict(input=Conv(3, width, 7))
        for g, outputs in enumerate(widths):
            group: OrderedDict[str, nn.Module] = OrderedDict()
            for b in range(blocks):
                inputs = widths[max(g - 1, 0)] if b == 0 else outputs
                group[f"block_{b + 1}"] = Block(inputs, outputs, (3, 3, 3, 1), gain)
            if g < groups - 1:
                group["pool"] = nn.MaxPool2d(2)
            down[f"group_{g + 1}"] = nn.Sequential(group)
        down["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv(widths[-1], codes, 1)))
        self.encoder = Half(down)

        up: OrderedDict[str, nn.Module] = OrderedDict(input=Conv(codes, decoder_in, 1))
        inputs = decoder_in
        for g, outputs in enumerate(reversed(widths)):
            group = OrderedDict()
            for b in range(blocks):
                group[f"block_{b + 1}"] = Block(inputs, outputs, (1, 3, 3, 3), gain)
                inputs = outputs
            if g < groups - 1:
                group["upsample"] = nn.Upsample(scale_factor=2, mode="nearest")
            up[f"group_{g + 1}"] = nn.Sequential(group)
        # Location and log scale of each colour.
        up["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv(width, 6, 1)))
        self.decoder = Half(up)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> "DVAE":
        """The model whose names and shapes are those of `weights`, strictly; else UserError."""
        try:
            out, width = weights["encoder.blocks.output.conv.w"], weights["encoder.blocks.input.w"]
            decoder_in = weights["decoder.blocks.input.w"]
        except KeyError as error:
            raise UserError(
                f"these weights are no dVAE with encoder and decoder: {error} is missing. Convert "
                "both published files together: scaling tokenizer convert encoder.pkl decoder.pkl."
            ) from None
        names = [name.split(".") for name in weights if name.startswith("encoder.blocks.group_")]
        groups = len({name[2] for name in names})
        blocks = len({name[3] for name in names})
        if not groups or not blocks:
            raise UserError("these weights are no dVAE: encoder.blocks.group_* is missing.")
        model = cls(out.shape[0], width.shape[0], groups, blocks, decoder_in.shape[0])
        load_strictly(model, weights, "dVAE")
        return model

    def logits(self, images_NCHW: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the codes, (N, K, h, w), of images in [0, 1]."""
        logits: Tensor = self.encoder.blocks((1 - 2 * _EPS) * images_NCHW + _EPS)
        return logits

    def pixels(self, codes_NKhw: Tensor) -> Tensor:
        """Logit-Laplace parameters (N, 6, H, W) of one-hot, or relaxed, codes."""
        pixels: Tensor = self.decoder.blocks(codes_NKhw)
        return pixels

    @torch.no_grad()
    def encode(self, frames_NHWC: np.ndarray) -> np.ndarray:
        """Codes uint16 (N, h * w), raster order, of uint8 frames (N, H, W, 3)."""
        images = images_of(frames_NHWC, self.patch)
        device = next(self.parameters()).device
        found = [
            self.logits(part.to(device)).argmax(1).flatten(1).cpu() for part in images.split(_BATCH)
        ]
        return torch.cat(found).numpy().astype(np.uint16)

    @torch.no_grad()
    def decode(self, codes_NL: np.ndarray) -> np.ndarray:
        """Frames uint8 (N, H, W, 3) of codes (N, h * w) on a square grid."""
        grid = square_grid(codes_NL, self.codes)
        first, *rest = self.decoder.blocks
        assert isinstance(first, Conv)
        found = []
        for part in torch.from_numpy(grid.astype(np.int64)).split(_BATCH):
            # The first layer on one-hot input, without making the one-hot input.
            h = F.embedding(part.to(first.w.device), first.w[:, :, 0, 0].T)
            h = h.permute(0, 3, 1, 2).contiguous()
            h = h + first.b[:, None, None]
            for layer in rest:
                h = layer(h)
            found.append(((h[:, :3].sigmoid() - _EPS) / (1 - 2 * _EPS)).clamp(0, 1).cpu())
        return frames_of(torch.cat(found))

    def save(self, path: Path) -> None:
        """Write the weights (.safetensors)."""
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, path)


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Copy `weights` into `model`; UserError that names what is missing, too much or misshapen."""
    own = model.state_dict()
    wrong = [f"missing {name}" for name in own if name not in weights]
    wrong += [f"unexpected {name}" for name in weights if name not in own]
    wrong += [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise UserError(
            f"the checkpoint is of another architecture than this {what}: "
            f"{'; '.join(wrong[:4])}{more}. Give a checkpoint with the published names and shapes."
        )
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    model.eval()


def images_of(frames_NHWC: np.ndarray, patch: int) -> Tensor:
    """Float images (N, 3, H, W) in [0, 1] of uint8 frames; checks that patches divide them."""
    height, width, channels = frames_NHWC.shape[1:]
    if frames_NHWC.dtype != np.uint8 or channels != 3:
        raise UserError(f"frames must be uint8 (N, H, W, 3), not {frames_NHWC.dtype}, {channels}.")
    if height % patch or width % patch:
        raise UserError(
            f"a frame of {height} x {width} px is no whole number of {patch} px codes; use a size "
            f"that {patch} divides."
        )
    # In this order in memory: with channels last, convolutions round otherwise than as published.
    return torch.from_numpy(np.ascontiguousarray(frames_NHWC.transpose(0, 3, 1, 2))) / 255


def frames_of(images_NCHW: Tensor) -> np.ndarray:
    """uint8 frames (N, H, W, 3) of images in [0, 1]."""
    return (images_NCHW * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def square_grid(codes_NL: np.ndarray, codes: int) -> np.ndarray:
    """(N, h, w) of (N, h * w); UserError when it is no square or a code is out of range."""
    side = round(codes_NL.shape[1] ** 0.5)
    if side * side != codes_NL.shape[1]:
        raise UserError(f"{codes_NL.shape[1]} codes a frame are not a square grid.")
    if codes_NL.size and int(codes_NL.max()) >= codes:
        raise UserError(f"code {int(codes_NL.max())} is not below {codes}.")
    return codes_NL.reshape(-1, side, side)
