"""Tokenizer files: which tokenizer the tensors of a file are, and converting the published ones."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from scaling.errors import UserError
from scaling.models.tokenizers.codebook import Codebook
from scaling.models.tokenizers.dvae import DVAE
from scaling.models.tokenizers.tensors import header, read_tensors
from scaling.models.tokenizers.vqgan import FAMILIES, VQGAN

# By one of these a tokenizer is known, whatever wraps it (module., first_stage_model. ...).
_SIGNS = ("centroids", "blocks.input.w", "quantize.embedding.weight")
_DVAE = ("encoder.blocks.", "decoder.blocks.")


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


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote."""

    tensors: int
    told: list[str]  # what was taken of the files, and what left out


def load(path: Path) -> Any:
    """The tokenizer in a file: Codebook, DVAE or VQGAN, by the names of its tensors and, where
    they do not tell how a vector becomes a code, by the family in its header.

    Raises UserError for a file that is none, or of another architecture; where the family must be
    said and is not.
    """
    weights, _ = read_weights(path)
    family = _family(weights, path)
    if set(weights) == {"centroids"}:
        return Codebook.load(path)
    if any(name.startswith(_DVAE) for name in weights):
        return DVAE.from_weights(weights)
    if "quantize.embedding.weight" in weights:
        return VQGAN.from_weights(_of_llamagen(weights), family)
    some = ", ".join(list(weights)[:3]) or "nothing"
    raise UserError(
        f"{path} holds no known tokenizer (it has {some} ...). Known: a codebook, a dVAE with the "
        "prefixes encoder. and decoder., a VQGAN of taming-transformers, latent-diffusion, "
        "diffusers, LlamaGen, Janus or IBQ."
    )


def read_weights(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """A tokenizer's tensors under their published names, and what was taken; no code is run.

    Prefixes are taken off, diffusers' names are taming's again, and what belongs to training
    (`loss.*`, averages) or to another part of a model is left out. Raises UserError for a file that
    is no checkpoint, and for weights that are not finite.
    """
    weights, told = read_tensors(path)
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("loss.")}
    weights, chosen = _of_tokenizer(weights, path)
    told += chosen
    if "encoder.down_blocks.0.resnets.0.conv1.weight" in weights:
        weights = _of_diffusers(weights)
        told.append("diffusers' names were taken for taming-transformers'")
    broken = [n for n, t in weights.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise UserError(
            f"{path}: {len(broken)} of {len(weights)} tensors have NaN or infinite weights "
            f"({', '.join(broken[:3])}): the training of these weights failed, or the file is "
            "damaged."
        )
    return weights, told


def convert(sources: Sequence[Path], target: Path, family: str | None = None) -> Converted:
    """Write published weights as one safetensors file.

    `sources` is one file, or the dVAE's encoder and decoder. family: of FAMILIES, for a VQGAN's
    network. Raises UserError as `load` does, and for a family that the file does not have.
    """
    if family is not None and family not in FAMILIES:
        known = "; ".join(f"{name} ({what})" for name, what in FAMILIES.items())
        raise UserError(f"family '{family}': choose one of {known}.")
    merged: dict[str, Tensor] = {}
    told = []
    for source in sources:
        weights, chosen = read_weights(source)
        told += [f"{source.name}: {what}" for what in chosen]
        for name, tensor in weights.items():
            if name.startswith("blocks."):  # a half of the dVAE, published without a prefix
                half = "encoder." if weights["blocks.input.w"].shape[1] == 3 else "decoder."
                name = half + name
            if name in merged:
                raise UserError(f"{name} is in more than one of {[s.name for s in sources]}.")
            merged[name] = tensor.contiguous()
    if any(name.startswith(_DVAE) for name in merged) or "centroids" in merged:
        if family is not None:
            raise UserError(f"--family {family}: a VQGAN's network has one, and this is none.")
        if "centroids" not in merged:
            DVAE.from_weights(merged)
        save_file(merged, target)
        return Converted(len(merged), told)
    told_by_file = _family(merged, sources[0])
    if None not in (family, told_by_file) and family != told_by_file:
        raise UserError(f"--family {family}: {sources[0]} says that it is {told_by_file}.")
    made = VQGAN.from_weights(_of_llamagen(merged), family or told_by_file)
    made.save(target)
    said = "as you say" if family else "as its shapes let assume"
    if family is None and told_by_file is not None:
        said = "as the file says"
    told.append(f"family {made.family}, {said}: a vector becomes {FAMILIES[made.family]}")
    return Converted(len(made.state_dict()), told)


def _family(weights: Mapping[str, Tensor], path: Path) -> str | None:
    """What a file says of its family: by the names of LlamaGen or of transformers' Janus, or in the
    header that `convert` wrote; None: nothing. Raises UserError: a family that this version does
    not know."""
    if _LLAMAGEN in weights or _JANUS in weights:
        return "llamagen"
    said = header(path).get("family")
    if said is not None and said not in FAMILIES:
        raise UserError(
            f"{path} is of family {said!r}, which this version does not know: it knows "
            f"{', '.join(FAMILIES)}."
        )
    return said


_LLAMAGEN = "encoder.conv_blocks.0.res.0.conv1.weight"
_JANUS = "decoder.up.0.upsample.conv.weight"  # taming's finest resolution is not doubled again


def _of_llamagen(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """taming-transformers' names of LlamaGen's tokenizer, and of Janus in transformers, whose
    network is the same; others as they are. Their decoders count the resolutions from the
    coarsest, and what LlamaGen counted of the codes' use in training is left out."""
    if _LLAMAGEN not in weights and _JANUS not in weights:
        return dict(weights)
    blocks = re.compile(r"encoder\.(?:conv_blocks|down)\.(\d+)\.")
    levels = 1 + max(int(found[1]) for n in weights if (found := blocks.match(n)))

    def level(match: re.Match[str]) -> str:
        return f"decoder.up.{levels - 1 - int(match[1])}."

    renamed = {}
    for name, tensor in weights.items():
        if name == "quantize.codebook_used":
            continue
        new = name.replace("encoder.conv_blocks.", "encoder.down.").replace(".res.", ".block.")
        new = re.sub(r"decoder\.(?:conv_blocks|up)\.(\d+)\.", level, new)
        for i, part in enumerate(("block_1", "attn_1", "block_2")):
            new = new.replace(f"coder.mid.{i}.", f"coder.mid.{part}.")
        renamed[new] = tensor
    return renamed


def _of_tokenizer(weights: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors below the prefix that a tokenizer lies under, without it."""
    prefixes = sorted(
        {name[: -len(sign)] for name in weights for sign in _SIGNS if name.endswith(sign)}
        - {"encoder.", "decoder."},
        key=lambda prefix: ("ema" in prefix, len(prefix)),
    )
    if any(name.startswith(_DVAE) for name in weights):
        prefixes.insert(0, "")
    # Of a whole dVAE, each half has a sign.
    prefixes = list(
        dict.fromkeys(re.sub(r"(^|\.)(encoder|decoder)\.$", r"\1", prefix) for prefix in prefixes)
    )
    if not prefixes:
        return weights, []
    prefix, *others = prefixes
    inside = {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
    averages = [name for name in inside if name.startswith("model_ema.")]
    kept = {n: t for n, t in inside.items() if not n.startswith(("model_ema.", "loss."))}
    told = [f"the tensors below `{prefix}`"] if prefix else []
    if len(weights) > len(inside):
        told.append(f"{len(weights) - len(inside)} tensors of other parts are left out")
    if others:
        told.append(f"other copies are left out: {', '.join(f'`{other}`' for other in others)}")
    if averages:
        told.append(
            f"the weights of the last step; their moving average (`model_ema.`, {len(averages)} "
            "tensors) is left out"
        )
    return kept, told


def _of_diffusers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """taming-transformers' names of a VQModel of diffusers: of the same network."""
    levels = 1 + max(int(n.split(".")[2]) for n in weights if n.startswith("encoder.down_blocks."))

    def level(match: re.Match[str]) -> str:
        return f"up.{levels - 1 - int(match[1])}."

    renamed = {}
    for name, tensor in weights.items():
        new = re.sub(r"\bdown_blocks\.", "down.", name)
        new = re.sub(r"\bup_blocks\.(\d+)\.", level, new)
        for pattern, taming in _TAMING:
            new = re.sub(pattern, taming, new)
        if ".attn" in new and new.endswith("weight") and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]  # diffusers' linear layers
        renamed[new] = tensor
    return renamed


_TAMING = (
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.(downsample|upsample)rs\.0\.", r".\1."),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
    (r"\.group_norm\.", ".norm."),
    (r"\.(?:to_q|query)\.", ".q."),
    (r"\.(?:to_k|key)\.", ".k."),
    (r"\.(?:to_v|value)\.", ".v."),
    (r"\.(?:to_out\.0|proj_attn)\.", ".proj_out."),
)
