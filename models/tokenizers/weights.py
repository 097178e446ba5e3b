"""Tokenizer files: reading weights without running code, and converting the published ones."""

import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scaling.errors import UserError
from scaling.models.tokenizers.codebook import Codebook
from scaling.models.tokenizers.dvae import DVAE
from scaling.models.tokenizers.vqgan import VQGAN


class Tokenizer(Protocol):
    """What every tokenizer of this package can do."""

    @property
    def codes(self) -> int: ...

    @property
    def patch(self) -> int:
        """Side in px of the square that a code stands for."""
        ...

    def encode(self, frames_NHWC: np.ndarray) -> np.ndarray: ...

    def decode(self, codes_NL: np.ndarray) -> np.ndarray: ...

    def save(self, path: Path) -> None: ...


def load(path: Path) -> Any:
    """The tokenizer in a file: Codebook, DVAE or VQGAN, by the names of its tensors.

    Raises UserError for a file that is none, or of another architecture.
    """
    weights = read_weights(path)
    if set(weights) == {"centroids"}:
        return Codebook.load(path)
    if any(name.startswith(("encoder.blocks.", "decoder.blocks.")) for name in weights):
        return DVAE.from_weights(weights)
    if "quantize.embedding.weight" in weights:
        return VQGAN.from_weights(weights)
    some = ", ".join(list(weights)[:3]) or "nothing"
    raise UserError(
        f"{path} holds no known tokenizer (it has {some} ...). Known: a codebook, a dVAE with the "
        "prefixes encoder. and decoder., a VQGAN of taming-transformers or latent-diffusion."
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or a plain state_dict; no code in the file is run.

    A Lightning checkpoint's `state_dict` is unpacked, and its `loss.*` (discriminator, LPIPS) left
    out. Raises UserError with the remedy for anything else.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read as safetensors: {error}.") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is a pickle that would run code when it is opened (a whole module, as OpenAI "
            "publishes the dVAE), so it is not opened. If you trust its origin, convert it once: "
            f"scaling tokenizer convert {path.name} OUT.safetensors --run-code-in-pickle"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read as PyTorch weights: {error}.") from error
    return _tensors(content, path)


def convert(sources: Sequence[Path], target: Path, *, run_code_in_pickle: bool = False) -> int:
    """Write published weights as one safetensors file; returns the number of tensors.

    `sources` is one file, or the dVAE's encoder and decoder. A pickled module runs whatever code
    its author put in it, with the rights of the user: it is opened only with `run_code_in_pickle`.
    """
    merged: dict[str, Tensor] = {}
    for source in sources:
        if run_code_in_pickle and source.suffix != ".safetensors":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old files name classes that have moved
                content = torch.load(source, map_location="cpu", weights_only=False)
            weights = _tensors(
                content.state_dict() if isinstance(content, nn.Module) else content, source
            )
        else:
            weights = read_weights(source)
        for name, tensor in weights.items():
            if name.startswith("blocks."):  # a half of the dVAE, published without a prefix
                half = "encoder." if weights["blocks.input.w"].shape[1] == 3 else "decoder."
                name = half + name
            if name in merged:
                raise UserError(f"{name} is in more than one of {[s.name for s in sources]}.")
            merged[name] = tensor.contiguous()
    if not any(name.endswith("centroids") for name in merged):
        _check(merged, target)
    save_file(merged, target)
    return len(merged)


def _check(weights: dict[str, Tensor], target: Path) -> None:
    """Refuse to write what could not be loaded again."""
    if any(name.startswith(("encoder.blocks.", "decoder.blocks.")) for name in weights):
        DVAE.from_weights(weights)
    else:
        VQGAN.from_weights(weights)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds {type(content).__name__}, not a state_dict of tensors.")
    kept = {
        str(name): value for name, value in content.items() if not str(name).startswith("loss.")
    }
    wrong = [name for name, value in kept.items() if not isinstance(value, Tensor)]
    if wrong or not kept:
        raise UserError(f"{path}: {wrong[:3]} are no tensors; give a plain state_dict.")
    return kept
