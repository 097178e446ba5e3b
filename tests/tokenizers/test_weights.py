"""Tokenizer files: strict, and never running code that was not asked for."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from scaling.models.tokenizers.codebook import Codebook
from scaling.models.tokenizers.dvae import DVAE
from scaling.models.tokenizers.vqgan import VQGAN, Architecture
from scaling.models.tokenizers.weights import Tokenizer, convert, load, read_weights

SMALL = Architecture(32, 8, 4, 8, (1, 2), 1, (1,))


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["dvae", "vqgan", "codebook"])
def test_save_and_load(tmp_path: Path, frames: np.ndarray, kind: str) -> None:
    torch.manual_seed(0)
    made: Tokenizer
    if kind == "dvae":
        made = DVAE(codes=24, width=8, groups=3, blocks=1, decoder_in=16)
    elif kind == "vqgan":
        made = VQGAN(SMALL)
    else:
        made = Codebook(frames.reshape(-1, 48)[:20], 4)
    made.save(tmp_path / "t.safetensors")
    again = load(tmp_path / "t.safetensors")
    assert type(again) is type(made) and (again.codes, again.patch) == (made.codes, made.patch)
    codes = made.encode(frames)
    np.testing.assert_array_equal(again.encode(frames), codes)
    assert made.decode(codes).shape == frames.shape
    np.testing.assert_array_equal(again.decode(codes), made.decode(codes))


def test_lightning_checkpoints_are_unpacked(tmp_path: Path) -> None:
    model = VQGAN(SMALL)
    state = dict(model.state_dict()) | {"loss.discriminator.weight": torch.zeros(3)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    assert set(read_weights(tmp_path / "last.ckpt")) == set(model.state_dict())
    assert load(tmp_path / "last.ckpt").arch == SMALL
    assert convert([tmp_path / "last.ckpt"], tmp_path / "out.safetensors") == len(
        model.state_dict()
    )
    assert load(tmp_path / "out.safetensors").arch == SMALL


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    model = VQGAN(SMALL)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del state["decoder.mid.attn_1.q.bias"]
    state["decoder.extra"] = torch.zeros(1)
    state["encoder.mid.block_1.conv1.weight"] = torch.zeros(2, 2)
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="another architecture") as caught:
        load(tmp_path / "a.safetensors")
    for part in ("missing decoder.mid.attn_1.q.bias", "unexpected decoder.extra", "is (2, 2), not"):
        assert part in str(caught.value)
    save_file({"weight": torch.zeros(2)}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="no known tokenizer"):
        load(tmp_path / "b.safetensors")
    save_file({"encoder.blocks.input.w": torch.zeros(4, 3, 7, 7)}, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=r"no dVAE.*Convert both"):
        load(tmp_path / "c.safetensors")
    save_file({"quantize.embedding.weight": torch.zeros(4, 3)}, tmp_path / "d.safetensors")
    with pytest.raises(ValueError, match="no VQGAN"):
        load(tmp_path / "d.safetensors")


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_with_code_is_never_executed(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"state_dict": Bomb(trace)}, tmp_path / "a.ckpt")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(Bomb(trace)))
    for name in ("a.ckpt", "b.pkl"):
        with pytest.raises(ValueError, match="run-code-in-pickle"):
            load(tmp_path / name)
        with pytest.raises(ValueError, match="run-code-in-pickle"):
            convert([tmp_path / name], tmp_path / "out.safetensors")
    assert not trace.exists() and not (tmp_path / "out.safetensors").exists()


def test_whole_modules_are_converted_only_when_asked(tmp_path: Path, frames: np.ndarray) -> None:
    """As OpenAI publishes the dVAE: two pickled modules, without prefixes."""
    model = DVAE(codes=24, width=8)
    torch.save(model.encoder, tmp_path / "encoder.pkl")
    torch.save(model.decoder, tmp_path / "decoder.pkl")
    halves = [tmp_path / "encoder.pkl", tmp_path / "decoder.pkl"]
    with pytest.raises(ValueError, match="would run code"):
        convert(halves, tmp_path / "dvae.safetensors")
    count = convert(halves, tmp_path / "dvae.safetensors", run_code_in_pickle=True)
    assert count == len(model.state_dict()) == 74 + 76
    again = load(tmp_path / "dvae.safetensors")
    np.testing.assert_array_equal(again.encode(frames), model.encode(frames))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_garbage_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not a checkpoint at all")
    with pytest.raises(ValueError, match=f"{name}"):
        load(tmp_path / name)
    with pytest.raises(ValueError, match="none"):
        load(tmp_path / f"none-{name}")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds list, not a state_dict"):
        load(tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "scalar.pt")
    with pytest.raises(ValueError, match="are no tensors"):
        load(tmp_path / "scalar.pt")


def test_wrong_frames(frames: np.ndarray) -> None:
    model = DVAE(codes=24, width=8)
    with pytest.raises(ValueError, match="no whole number of 8 px codes"):
        model.encode(frames[:, :20])
    with pytest.raises(ValueError, match="must be uint8"):
        model.encode(frames / 255)
    with pytest.raises(ValueError, match="not below 24"):
        model.decode(np.full((1, 16), 24))
    with pytest.raises(ValueError, match="not a square grid"):
        model.decode(np.zeros((1, 15), np.int64))
    with pytest.raises(ValueError, match="divisible by 4"):
        DVAE(width=10)
    assert isinstance(model, nn.Module)
