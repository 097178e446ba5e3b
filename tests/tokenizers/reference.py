"""The published tokenizers written a second time, as plain functions of a dict of tensors.

From the papers and the published names and shapes; shares no code with models/tokenizers. `w` maps
published names (without the `encoder.` / `decoder.` prefix of a half) to tensors.
"""

import torch
import torch.nn.functional as F

Weights = dict[str, torch.Tensor]


def half(weights: Weights, prefix: str) -> Weights:
    return {name[len(prefix) :]: t for name, t in weights.items() if name.startswith(prefix)}


# -- DALL-E dVAE -----------------------------------------------------------------------------------


def dvae_conv(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    kernel = w[name + ".w"]
    return F.conv2d(x, kernel, w[name + ".b"], padding=(kernel.shape[-1] - 1) // 2)


def dvae_block(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    skip = dvae_conv(w, name + ".id_path", x) if name + ".id_path.w" in w else x
    h = x
    for i in (1, 2, 3, 4):
        h = dvae_conv(w, f"{name}.res_path.conv_{i}", torch.relu(h))
    return skip + h / 64  # 4 groups x 2 blocks, squared


def dvae_encoder(w: Weights, images: torch.Tensor) -> torch.Tensor:
    h = dvae_conv(w, "blocks.input", images * 0.8 + 0.1)
    for group in (1, 2, 3, 4):
        for block in (1, 2):
            h = dvae_block(w, f"blocks.group_{group}.block_{block}", h)
        if group < 4:
            h = F.max_pool2d(h, 2, 2)
    return dvae_conv(w, "blocks.output.conv", torch.relu(h))


def dvae_decoder(w: Weights, codes: torch.Tensor) -> torch.Tensor:
    vocabulary = w["blocks.input.w"].shape[1]
    h = dvae_conv(w, "blocks.input", F.one_hot(codes, vocabulary).movedim(-1, 1).float())
    for group in (1, 2, 3, 4):
        for block in (1, 2):
            h = dvae_block(w, f"blocks.group_{group}.block_{block}", h)
        if group < 4:
            h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
    h = dvae_conv(w, "blocks.output.conv", torch.relu(h))
    return ((torch.sigmoid(h[:, :3]) - 0.1) / 0.8).clamp(0, 1)


# -- VQGAN (taming-transformers, latent-diffusion) -------------------------------------------------


def conv(w: Weights, name: str, x: torch.Tensor, **options: int) -> torch.Tensor:
    return F.conv2d(x, w[name + ".weight"], w[name + ".bias"], **options)


def norm(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    n, c, h, v = x.shape
    g = x.reshape(n, 32, -1)
    g = (g - g.mean(2, keepdim=True)) / torch.sqrt(g.var(2, keepdim=True, unbiased=False) + 1e-6)
    scale, shift = w[name + ".weight"], w[name + ".bias"]
    return g.reshape(n, c, h, v) * scale[:, None, None] + shift[:, None, None]


def swish(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.exp(-x))


def res_block(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    h = conv(w, name + ".conv1", swish(norm(w, name + ".norm1", x)), padding=1)
    h = conv(w, name + ".conv2", swish(norm(w, name + ".norm2", h)), padding=1)
    if name + ".nin_shortcut.weight" in w:
        x = conv(w, name + ".nin_shortcut", x)
    return x + h


def attention(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    h = norm(w, name + ".norm", x)
    q, k, v = (conv(w, f"{name}.{part}", h).flatten(2) for part in "qkv")
    scores = torch.einsum("nci,ncj->nij", q, k) / x.shape[1] ** 0.5
    mixed = torch.einsum("nij,ncj->nci", scores.softmax(-1), v).reshape(x.shape)
    return x + conv(w, name + ".proj_out", mixed)


def level(w: Weights, name: str, h: torch.Tensor, blocks: int) -> torch.Tensor:
    for i in range(blocks):
        h = res_block(w, f"{name}.block.{i}", h)
        if f"{name}.attn.{i}.q.weight" in w:
            h = attention(w, f"{name}.attn.{i}", h)
    return h


def middle(w: Weights, h: torch.Tensor) -> torch.Tensor:
    h = attention(w, "mid.attn_1", res_block(w, "mid.block_1", h))
    return res_block(w, "mid.block_2", h)


def vqgan_encoder(w: Weights, images: torch.Tensor, levels: int) -> torch.Tensor:
    h = conv(w, "conv_in", images * 2 - 1, padding=1)
    for i in range(levels):
        h = level(w, f"down.{i}", h, 2)
        if i < levels - 1:
            h = conv(w, f"down.{i}.downsample.conv", F.pad(h, (0, 1, 0, 1)), stride=2)
    return conv(w, "conv_out", swish(norm(w, "norm_out", middle(w, h))), padding=1)


def vqgan_decoder(w: Weights, z: torch.Tensor, levels: int) -> torch.Tensor:
    h = middle(w, conv(w, "conv_in", z, padding=1))
    for i in reversed(range(levels)):
        h = level(w, f"up.{i}", h, 3)
        if i > 0:
            h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
            h = conv(w, f"up.{i}.upsample.conv", h, padding=1)
    return conv(w, "conv_out", swish(norm(w, "norm_out", h)), padding=1)


def vqgan_codes(w: Weights, images: torch.Tensor, levels: int) -> torch.Tensor:
    z = conv(w, "quant_conv", vqgan_encoder(half(w, "encoder."), images, levels))
    vectors = z.movedim(1, -1).double()
    table = w["quantize.embedding.weight"].double()
    return (vectors.unsqueeze(-2) - table).square().sum(-1).argmin(-1).flatten(1)


def vqgan_images(w: Weights, codes: torch.Tensor, levels: int) -> torch.Tensor:
    side = round(codes.shape[1] ** 0.5)
    vectors = w["quantize.embedding.weight"][codes].reshape(len(codes), side, side, -1)
    z = conv(w, "post_quant_conv", vectors.movedim(-1, 1))
    return (vqgan_decoder(half(w, "decoder."), z, levels) + 1) / 2
