"""One network, several quantisers: which code a vector becomes is said, never guessed."""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from scaling.cli import app
from scaling.errors import UserError
from scaling.models.tokenizers.vqgan import VQGAN, Architecture
from scaling.models.tokenizers.weights import convert, load
from tests.tokenizers.test_published import as_images, frames

SMALL = Architecture(64, 8, 16, 32, (1, 2, 2), 2, (2,))
IBQ = Architecture(64, 16, 16, 128, (1, 1), 4, (1,))


@pytest.fixture(scope="module")
def janus() -> ModuleType:
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]  # it may not match torch
    importlib.import_module("transformers")
    return importlib.import_module("transformers.models.janus.modeling_janus")


def spread(table: torch.Tensor, vectors_NEhw: torch.Tensor) -> None:
    """Code vectors along the network's own, of several lengths, so that the quantisers differ."""
    flat = vectors_NEhw.transpose(0, 1).flatten(1).T
    chosen = flat[torch.randint(len(flat), (len(table),))]
    lengths = 0.5 + 2 * torch.rand(len(table), 1)
    with torch.no_grad():
        table.copy_(chosen * lengths + 0.1 * flat.std() * torch.randn_like(chosen))


def llamagens(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The published names, written the other way round, and what it counts while it is trained."""
    levels, renamed = len(SMALL.multipliers), {"quantize.codebook_used": torch.zeros(65536)}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "encoder" and parts[1] == "down":
            parts[1] = "conv_blocks"
        elif parts[0] == "decoder" and parts[1] == "up":
            parts[1:3] = ["conv_blocks", str(levels - 1 - int(parts[2]))]
        elif parts[1] == "mid":
            parts[2] = str(("block_1", "attn_1", "block_2").index(parts[2]))
        renamed[".".join("res" if part == "block" else part for part in parts)] = tensor
    return renamed


@pytest.mark.parametrize("family", ["vqgan", "llamagen", "ibq"])
def test_codes_are_the_familys(tmp_path: Path, family: str) -> None:
    torch.manual_seed(0)
    model, image = VQGAN(SMALL, family), frames(32, 4)
    table = model.quantize.embedding.weight
    with torch.no_grad():
        vectors = model.vectors(as_images(image))
        spread(table, vectors)
        z = vectors.permute(0, 2, 3, 1).reshape(-1, 8)
        unit = torch.cdist(F.normalize(z, dim=1), F.normalize(table, dim=1))
        expected = {
            "vqgan": torch.cdist(z, table).argmin(1),
            "llamagen": unit.argmin(1),
            "ibq": (z @ table.T).softmax(1).argmax(1),
        }
    codes = model.encode(image)
    np.testing.assert_array_equal(codes.ravel(), expected[family])
    assert all((expected[other] != expected[family]).any() for other in expected if other != family)
    # A decoder is given what the quantiser compared.
    doubled = VQGAN(SMALL, family)
    doubled.load_state_dict(model.state_dict())
    with torch.no_grad():
        doubled.quantize.embedding.weight.mul_(2)
    same = np.array_equal(doubled.decode(codes), model.decode(codes))
    assert same == (family == "llamagen")
    # And a file of it says which it is.
    model.save(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(load(tmp_path / "a.safetensors").encode(image), codes)
    with safe_open(tmp_path / "a.safetensors", "pt") as held:
        assert (held.metadata() or {}) == ({} if family == "vqgan" else {"family": family})


def test_llamagen_is_known_by_its_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VQGAN(SMALL, "llamagen")
    torch.save({"model": llamagens(model.state_dict())}, tmp_path / "vq.pt")
    done = convert([tmp_path / "vq.pt"], tmp_path / "vq.safetensors")
    assert done.tensors == len(model.state_dict())
    assert done.told[-1].startswith("family llamagen, as the file says: a vector becomes the near")
    for name in ("vq.pt", "vq.safetensors"):
        found = load(tmp_path / name)
        assert (found.family, found.arch) == ("llamagen", SMALL)
        assert all(torch.equal(found.state_dict()[n], t) for n, t in model.state_dict().items())
    with pytest.raises(UserError, match=r"--family vqgan: .*vq.pt says that it is llamagen"):
        convert([tmp_path / "vq.pt"], tmp_path / "no.safetensors", "vqgan")


def test_janus_in_transformers_is_llamagens_network(tmp_path: Path, janus: ModuleType) -> None:
    """Vectors before the quantiser, and frames of codes. Its own `encode` leaves out the unit
    length that its decoder and the published code take (transformers 5.24)."""
    torch.manual_seed(0)
    config = janus.JanusVQVAEConfig(
        embed_dim=8, num_embeddings=64, latent_channels=16, base_channels=128,
        channel_multiplier=[1, 1], num_res_blocks=1, num_patches=16,
    )  # fmt: skip
    peer, image = janus.JanusVQVAE(config).eval(), frames(32, 2)
    signed = 2 * as_images(image) - 1
    with torch.no_grad():
        vectors = peer.quant_conv(peer.encoder(signed))
        spread(peer.quantize.embedding.weight, vectors)
    torch.save(peer.state_dict(), tmp_path / "janus.pt")
    made = load(tmp_path / "janus.pt")
    assert made.family == "llamagen"
    with torch.no_grad():
        torch.testing.assert_close(made.vectors(as_images(image)), vectors, rtol=1e-5, atol=1e-5)
        codes = made.encode(image)
        expected = peer.decode(torch.from_numpy(codes.astype(np.int64)))
    shown = ((expected + 1) / 2).clamp(0, 1).numpy().transpose(0, 2, 3, 1) * 255
    np.testing.assert_allclose(made.decode(codes), shown, atol=0.51)


@pytest.mark.parametrize(
    ("arch", "names", "family"),
    [
        (IBQ, "as those of IBQ", "ibq"),
        (Architecture(64, 8, 256, 32, (1, 1), 1, ()), "as those of Janus", "llamagen"),
    ],
)
def test_what_the_file_cannot_tell_is_asked_for(
    tmp_path: Path, arch: Architecture, names: str, family: str
) -> None:
    save_file(VQGAN(arch).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=f"{names}.*convert FILE OUT.safetensors --family {family}"):
        load(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=names):
        convert([tmp_path / "a.safetensors"], tmp_path / "b.safetensors")
    for said in (family, "vqgan"):
        convert([tmp_path / "a.safetensors"], tmp_path / f"{said}.safetensors", said)
    assert load(tmp_path / f"{family}.safetensors").family == family
    # That it is a plain VQGAN was said too, and is not asked again.
    assert load(tmp_path / "vqgan.safetensors").family == "vqgan"


def test_bad_families(tmp_path: Path) -> None:
    save_file(VQGAN(SMALL).state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="family 'lamagen': choose one of vqgan "):
        convert([tmp_path / "a.safetensors"], tmp_path / "b.safetensors", "lamagen")
    save_file(VQGAN(SMALL).state_dict(), tmp_path / "c.safetensors", {"family": "later"})
    with pytest.raises(UserError, match="of family 'later', which this version does not know"):
        load(tmp_path / "c.safetensors")
    save_file({"centroids": torch.rand(4, 12)}, tmp_path / "k.safetensors")
    with pytest.raises(UserError, match="--family ibq: a VQGAN's network has one, and this is no"):
        convert([tmp_path / "k.safetensors"], tmp_path / "b.safetensors", "ibq")
    with torch.device("meta"):
        many = VQGAN(Architecture(2**18, 8, 16, 32, (1, 2), 1, ())).state_dict()
    with pytest.raises(UserError, match=r"262,144 codes, more than the 65,000 that shards of 16 b"):
        VQGAN.from_weights(many)


def test_the_command_says_what_was_taken(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(VQGAN(IBQ).state_dict(), tmp_path / "ibq.safetensors")
    call = [
        "tokenizer",
        "convert",
        str(tmp_path / "ibq.safetensors"),
        str(tmp_path / "o.safetensors"),
    ]
    refused = CliRunner().invoke(app, call)
    assert refused.exit_code != 0 and not (tmp_path / "o.safetensors").exists()
    done = CliRunner().invoke(app, [*call, "--family", "ibq"], catch_exceptions=False)
    assert "family ibq, as you say: a vector becomes that of the largest dot product" in done.output
    assert "beware: pictures do not come back" in done.output  # of random weights
