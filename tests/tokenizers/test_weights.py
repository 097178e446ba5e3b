"""Tokenizer files: strict, and never running code that was not asked for."""

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from scaling.errors import UserError
from scaling.models.tokenizers.codebook import Codebook
from scaling.models.tokenizers.dvae import DVAE
from scaling.models.tokenizers.tensors import read_tensors
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
    assert set(read_weights(tmp_path / "last.ckpt")[0]) == set(model.state_dict())
    assert load(tmp_path / "last.ckpt").arch == SMALL
    done = convert([tmp_path / "last.ckpt"], tmp_path / "out.safetensors")
    assert done.tensors == len(model.state_dict())
    assert done.told[0] == "last.ckpt: `state_dict` of the file was taken"
    assert done.told[1].startswith("family vqgan, as its shapes let assume: a vector becomes the n")
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
    """What a pickle names is never called: not where it stands alone, nor beside weights."""
    trace, model = tmp_path / "trace", VQGAN(SMALL)
    torch.save({"state_dict": Bomb(trace)}, tmp_path / "a.ckpt")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(Bomb(trace)))
    for name in ("a.ckpt", "b.pkl"):
        with pytest.raises(ValueError, match=r"holds .* no tensors"):
            load(tmp_path / name)
        with pytest.raises(ValueError, match=r"holds .* no tensors"):
            convert([tmp_path / name], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    beside = {"state_dict": model.state_dict(), "callbacks": {Bomb: Bomb(trace)}, "x": Bomb(trace)}
    for zipped in (True, False):
        torch.save(beside, tmp_path / "c.ckpt", _use_new_zipfile_serialization=zipped)
        assert load(tmp_path / "c.ckpt").arch == SMALL
    assert not trace.exists()
    pickle.loads((tmp_path / "b.pkl").read_bytes())  # it does leave its mark where it is run
    assert trace.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [False, True])
def test_whole_modules_are_read_by_their_tensors(
    tmp_path: Path, frames: np.ndarray, zipped: bool, wrapped: bool
) -> None:
    """As OpenAI publishes the dVAE: two pickled modules, without prefixes."""
    model = DVAE(codes=24, width=8)
    halves = [tmp_path / "encoder.pkl", tmp_path / "decoder.pkl"]
    for path in halves:
        half: nn.Module = getattr(model, path.stem)
        half = nn.DataParallel(half) if wrapped else half
        torch.save(half, path, _use_new_zipfile_serialization=zipped)
    done = convert(halves, tmp_path / "dvae.safetensors")
    assert done.tensors == len(model.state_dict()) == 74 + 76
    again = load(tmp_path / "dvae.safetensors")
    np.testing.assert_array_equal(again.encode(frames), model.encode(frames))


WRAPPINGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "plain": lambda state: state,
    "module": lambda state: {f"module.{k}": v for k, v in state.items()},
    "compiled": lambda state: {"model": {f"_orig_mod.{k}": v for k, v in state.items()}},
    "params": lambda state: {"params": state, "params_ema": {}},
    "latent diffusion": lambda state: {
        "state_dict": {f"first_stage_model.{k}": v for k, v in state.items()}
        | {"model.diffusion_model.weight": torch.zeros(2)}
    },
    "averages": lambda state: {
        "state_dict": state
        | {"model_ema." + k.replace(".", ""): v + 1 for k, v in state.items()}
        | {"model_ema.decay": torch.tensor(0.9)}
    },
    "lightning": lambda state: {
        "state_dict": state,
        "hyper_parameters": argparse.Namespace(lr=1e-4, path=Path("x")),
        "callbacks": {nn.Linear: {"best": np.float64(1.5)}},
        "optimizer_states": [{"state": {0: torch.zeros(3)}}],
    },
    "two copies": lambda state: {"model": state, "ema": {k: v + 1 for k, v in state.items()}},
    "shared": lambda state: {k: v.expand_as(v) for k, v in state.items()},
}
TOLD = {
    "module": "the tensors below `module.`",
    "latent diffusion": "the tensors below `first_stage_model.`",
    "averages": "the weights of the last step; their moving average (`model_ema.`",
    "two copies": "`model` of the file was taken (ema left out)",
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_state_dicts_are_found_however_they_are_wrapped(tmp_path: Path, wrapping: str) -> None:
    torch.manual_seed(0)
    state = VQGAN(SMALL).state_dict()
    torch.save(WRAPPINGS[wrapping](dict(state)), tmp_path / "a.ckpt")
    done = convert([tmp_path / "a.ckpt"], tmp_path / "a.safetensors")
    found = load(tmp_path / "a.safetensors").state_dict()
    assert set(found) == set(state)
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor)
    assert TOLD.get(wrapping, "") in "; ".join(done.told)


def test_torchscript_is_read_by_its_tensors(tmp_path: Path) -> None:
    model = DVAE(codes=24, width=8, groups=2, blocks=1, decoder_in=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(model.encoder.blocks, torch.zeros(1, 3, 16, 16))
        torch.jit.save(traced, tmp_path / "a.jit")
    found, _ = read_tensors(tmp_path / "a.jit")
    own = model.encoder.blocks.state_dict()
    assert set(found) == set(own)
    assert all(torch.equal(found[name], own[name]) for name in own)


def test_diffusers_names_are_tamings(tmp_path: Path) -> None:
    """By the published correspondence, written the other way round."""
    torch.manual_seed(0)
    state, renamed = VQGAN(SMALL).state_dict(), {}
    levels = len(SMALL.multipliers)
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] in ("encoder", "decoder") and parts[1] in ("down", "up"):
            at = int(parts[2]) if parts[1] == "down" else levels - 1 - int(parts[2])
            kind = {"block": "resnets", "attn": "attentions", "downsample": "downsamplers.0",
                    "upsample": "upsamplers.0"}[parts[3]]  # fmt: skip
            parts[1:4] = [f"{parts[1]}_blocks", str(at), kind]
        elif parts[1] == "mid":
            kind, number = parts[2].split("_")
            parts[1:3] = ["mid_block", "attentions" if kind == "attn" else "resnets"]
            parts.insert(3, str(int(number) - 1))
        new = ".".join(parts)
        if "attentions" in new:
            if parts[-2] == "norm":
                new = new.replace(".norm.", ".group_norm.")
            elif tensor.ndim == 4:
                tensor = tensor[:, :, 0, 0]
            for q in "qkv":
                new = new.replace(f".{q}.", f".to_{q}.")
            new = new.replace("proj_out", "to_out.0")
        renamed[
            new.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
        ] = tensor.contiguous()
    assert "decoder.up_blocks.0.upsamplers.0.conv.weight" in renamed
    save_file(renamed, tmp_path / "a.safetensors")
    found = load(tmp_path / "a.safetensors")
    assert found.arch == SMALL
    assert all(torch.equal(found.state_dict()[name], state[name]) for name in state)


def test_files_are_named_as_what_they_are(tmp_path: Path) -> None:
    model = VQGAN(SMALL)
    torch.save(model.state_dict(), tmp_path / "zip.pt")
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    model.save(tmp_path / "whole.safetensors")
    wholes = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for name, content in wholes.items():
        (tmp_path / f"cut-{name}").write_bytes(content[: len(content) // 2])
    (tmp_path / "named.bin").write_bytes(wholes["whole.safetensors"])
    (tmp_path / "named.safetensors").write_bytes(wholes["zip.pt"])
    for name in (*wholes, "named.bin", "named.safetensors"):
        assert load(tmp_path / name).arch == SMALL
    bad = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bad["quant_conv.weight"][0] = float("nan")
    torch.save(bad, tmp_path / "nan.pt")
    texts = {
        "lfs.ckpt": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        "web.pt": (b"\n<!DOCTYPE html><html>", "a web page"),
        "empty.pt": (b"", "is empty"),
        "config.safetensors": (b'{"a": 1}', "JSON"),
        "text.pt": (
            b"not a checkpoint at all",
            "no checkpoint .PyTorch, safetensors., or is damaged",
        ),
    }
    for name, (content, _) in texts.items():
        (tmp_path / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("vqgan/last.ckpt", "x")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "scalar.pt")
    expected = {name: match for name, (_, match) in texts.items()} | {
        "cut-zip.pt": "is cut off",
        "cut-old.pt": "is cut off",
        "cut-whole.safetensors": "is it cut off",
        "nan.pt": r"1 of \d+ tensors have NaN or infinite weights \(quant_conv.weight\)",
        "a.zip": "an archive of vqgan/last.ckpt",
        "list.pt": "holds list and no tensors",
        "scalar.pt": "holds dict and no tensors",
        "none.pt": "No such file",
    }
    for name, match in expected.items():
        with pytest.raises(UserError, match=match) as caught:
            load(tmp_path / name)
        assert name in str(caught.value)


def test_a_damaged_file_reads_nothing_outside_of_its_numbers(tmp_path: Path) -> None:
    tensor = torch.arange(12.0)
    torch.save({"centroids": tensor}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for entry in old.namelist():
            held = old.read(entry)
            if entry.endswith("data.pkl"):
                assert held.count(b"K\x0c\x85") == 1  # the shape, (12,)
                held = held.replace(b"K\x0c\x85", b"K\xff\x85")
            new.writestr(entry, held)
    with pytest.raises(UserError, match=r"shape \(255,\) has 12 numbers"):
        load(tmp_path / "b.pt")


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
