"""dVAE and VQGAN against a second implementation, at the published names and shapes."""

import numpy as np
import pytest
import torch

from scaling.data import leaves
from scaling.models.tokenizers.dvae import DVAE
from scaling.models.tokenizers.vqgan import PUBLISHED, VQGAN
from tests.tokenizers import reference


def frames(size: int, count: int = 1) -> np.ndarray:
    return leaves.clips(0, 0, count, frames=1, size=size)[:, 0]


def as_images(frames_NHWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames_NHWC.transpose(0, 3, 1, 2).copy()).float() / 255


def randomise(weights: dict[str, torch.Tensor]) -> None:
    """Random weights as published shapes have them, with biases and gains that do something."""
    torch.manual_seed(0)
    for name, tensor in weights.items():
        if tensor.ndim == 1:
            tensor += 0.1 * torch.randn_like(tensor)
        elif name == "quantize.embedding.weight":
            tensor.normal_(std=0.4)


@pytest.fixture(scope="module")
def dvae() -> DVAE:
    torch.manual_seed(0)
    model = DVAE()
    randomise(model.state_dict())
    return model


def test_dvae_names_and_counts(dvae: DVAE) -> None:
    weights = dvae.state_dict()
    encoder, decoder = reference.half(weights, "encoder."), reference.half(weights, "decoder.")
    assert (len(encoder), len(decoder)) == (74, 76)
    assert sum(t.numel() for t in encoder.values()) == 53_786_240
    assert sum(t.numel() for t in decoder.values()) == 43_829_766
    assert encoder["blocks.input.w"].shape == (256, 3, 7, 7)
    assert encoder["blocks.group_1.block_1.res_path.conv_1.w"].shape == (64, 256, 3, 3)
    assert encoder["blocks.group_4.block_2.res_path.conv_4.w"].shape == (2048, 512, 1, 1)
    assert encoder["blocks.output.conv.w"].shape == (8192, 2048, 1, 1)
    assert decoder["blocks.group_1.block_1.res_path.conv_1.w"].shape == (512, 128, 1, 1)
    assert decoder["blocks.group_1.block_1.res_path.conv_4.w"].shape == (2048, 512, 3, 3)
    assert decoder["blocks.output.conv.w"].shape == (6, 256, 1, 1)
    shortcuts = {name.split(".id_path")[0] for name in encoder if "id_path" in name}
    assert shortcuts == {f"blocks.group_{g}.block_1" for g in (2, 3, 4)}


def test_dvae_equals_the_reference(dvae: DVAE) -> None:
    weights = dict(dvae.state_dict())
    image = frames(32)
    with torch.no_grad():
        expected = reference.dvae_encoder(reference.half(weights, "encoder."), as_images(image))
        actual = dvae.logits(as_images(image))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    codes = dvae.encode(image)
    np.testing.assert_array_equal(codes, expected.argmax(1).flatten(1).numpy())
    assert codes.shape == (1, 4 * 4) and codes.dtype == np.uint16 and len(np.unique(codes)) > 3
    grid = torch.from_numpy(codes.astype(np.int64)).reshape(1, 4, 4)
    with torch.no_grad():
        rebuilt = reference.dvae_decoder(reference.half(weights, "decoder."), grid)
    np.testing.assert_allclose(
        dvae.decode(codes), rebuilt.numpy().transpose(0, 2, 3, 1) * 255, atol=0.51
    )


@pytest.mark.parametrize("size", [128, 256])
def test_dvae_grid(size: int) -> None:
    small = DVAE(codes=16, width=4)  # the paper's 128 px -> 16 x 16 and 256 px -> 32 x 32
    assert small.encode(frames(size)).shape == (1, (size // 8) ** 2)


@pytest.mark.parametrize(
    ("name", "tensors", "millions"),
    [
        ("taming-f16-1024", 343, 72.141699),
        ("taming-f16-16384", 343, 76.073859),
        ("ldm-f8", 299, 67.717295),
        ("ldm-f16", 343, 69.593371),
    ],
)
def test_vqgan_names_and_counts(name: str, tensors: int, millions: float) -> None:
    with torch.device("meta"):
        weights = VQGAN(PUBLISHED[name]).state_dict()
    assert len(weights) == tensors
    assert sum(t.numel() for t in weights.values()) == round(millions * 1e6)
    levels = len(PUBLISHED[name].multipliers)
    last = levels - 1
    attention = {tuple(key.split(".")[:5]) for key in weights if ".attn." in key}
    assert attention == {("encoder", "down", str(last), "attn", str(i)) for i in (0, 1)} | {
        ("decoder", "up", str(last), "attn", str(i)) for i in (0, 1, 2)
    }
    shortcuts = {key.split(".nin_")[0] for key in weights if "nin_shortcut" in key}
    if levels == 5:
        assert shortcuts == {
            f"{part}.block.0"
            for part in ("encoder.down.2", "encoder.down.4", "decoder.up.3", "decoder.up.1")
        }


@pytest.mark.parametrize("name", ["taming-f16-1024", "ldm-f8"])
def test_vqgan_equals_the_reference(name: str) -> None:
    arch = PUBLISHED[name]
    torch.manual_seed(0)
    model = VQGAN(arch)
    weights = dict(model.state_dict())
    randomise(weights)
    levels = len(arch.multipliers)
    image = frames(4 * model.patch)
    with torch.no_grad():
        expected = reference.vqgan_encoder(
            reference.half(weights, "encoder."), as_images(image), levels
        )
        actual = model.encoder(2 * as_images(image) - 1)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
        # Code vectors among the encoder's outputs, so that many different codes are nearest.
        vectors = model.vectors(as_images(image)).flatten(2)[0].T
        chosen = torch.randint(len(vectors), (arch.codes,))
        model.quantize.embedding.weight.copy_(
            vectors[chosen] + 0.3 * vectors.std() * torch.randn(arch.codes, arch.embed)
        )
        codes = model.encode(image)
        truth = reference.vqgan_codes(weights, as_images(image), levels)
        np.testing.assert_array_equal(codes, truth.numpy())
        assert len(np.unique(codes)) > codes.size / 2
        rebuilt = reference.vqgan_images(weights, truth, levels)
    np.testing.assert_allclose(
        model.decode(codes), rebuilt.clamp(0, 1).numpy().transpose(0, 2, 3, 1) * 255, atol=0.51
    )


@pytest.mark.parametrize("name", ["taming-f16-16384", "ldm-f16"])
def test_architecture_is_read_from_the_shapes(name: str) -> None:
    with torch.device("meta"):
        weights = VQGAN(PUBLISHED[name]).state_dict()
        assert VQGAN.from_weights(weights).arch == PUBLISHED[name]
