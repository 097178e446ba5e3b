"""From a config to a trainable model: initialisation and optimizer, muP or standard.

The one place that uses the `mup` package. muP (arXiv 2203.03466, Table 8) makes the best learning
rate independent of width: matrices learn at lr / width multiplier, the readout divides its input
by it, attention logits are divided by d_head instead of sqrt(d_head). Both parametrisations share
one initialisation rule (hidden matrices 1/sqrt(fan-in), queries and readout zero), so at the base
width they are the same model, step for step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from threading import Lock
from typing import Any

import mup
import torch
from torch import nn

from scaling.errors import UserError
from scaling.models.decoder import Decoder
from scaling.models.family import ModelConfig
from scaling.models.gpt2 import GPT2
from scaling.models.mamba import Mamba
from scaling.models.toto import Toto

CLASSES: dict[str, Callable[[ModelConfig], Decoder]] = {"toto": Toto, "gpt2": GPT2, "mamba": Mamba}
EMBEDDING_STD = 1.0
BUILDING = Lock()


def build(config: ModelConfig, *, seed: int, device: str | torch.device = "cpu") -> Decoder:
    """The initialised model on `device`; the same seed gives the same weights on every device.

    The global random state is left as it was; threads, which share it, take turns.
    """
    with BUILDING:
        model = CLASSES[config.family](config)
        attach_infshapes(model, config)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            _initialise(model, config)
    return model.to(device)


def optimizer(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    kind: str = "adamw",
) -> torch.optim.Optimizer:
    """Fused AdamW in muP's groups (mup.MuAdamW); with kind "muon" the hidden matrices are
    `MuonAndAdamW`'s. `lr` is the rate at the base width.

    Each group's own rate and decay are already scaled; the product lr x weight_decay is the same
    for every group and width. Gains and biases are not decayed. With CompleteP (arXiv 2505.01618,
    Table 1, alpha = 1) `eps` shrinks with width, and inside the blocks with depth. Change rates by
    a factor only (LambdaLR): an absolute rate (CosineAnnealingLR's eta_min) erases the scaling.
    """
    if isinstance(lr, torch.Tensor):
        raise UserError(f"the learning rate is a tensor ({lr!r}); muP's groups need a float")
    config = config_of(model)
    attach_infshapes(model, config)
    by_setting: dict[tuple[float, float], list[nn.Parameter]] = {}
    hidden = hidden_matrices(config) if kind == "muon" else set()
    matrices: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        if name in hidden:
            matrices.append(p)
            continue
        decay = weight_decay if p.ndim > 1 and not name.endswith("log_decay") else 0.0
        inside = config.residual_scale if "layers." in name else 1.0
        epsilon = eps * inside / config.width_mult if config.base_layers else eps
        by_setting.setdefault((decay, epsilon), []).append(p)
    groups = [
        {"params": params, "weight_decay": decay, "eps": epsilon}
        for (decay, epsilon), params in by_setting.items()
    ]
    adamw: torch.optim.Optimizer = mup.MuAdamW(groups, lr=float(lr), betas=betas, fused=True)
    if not matrices:
        return adamw
    shrink = math.sqrt(config.width_mult)
    muon = torch.optim.Muon(
        matrices,
        lr=float(lr) / shrink,
        weight_decay=weight_decay * shrink,
        adjust_lr_fn="match_rms_adamw",
    )
    return MuonAndAdamW(muon, adamw)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon for the hidden matrices, AdamW for all else (embedding, readout, gains), as one.

    An orthogonalised update U of a matrix (A, B) has singular values near 1, and what keeps
    activations in place over width is a spectral norm of the update that does not grow with it
    (Yang et al., 2310.17813). `lr` x 0.2 sqrt(max(A, B)) x U, scaled to the size of AdamW's updates
    (Moonlight, 2502.16982), grows like sqrt(width): hence lr / sqrt(width multiplier) under muP,
    where AdamW's, of low rank, takes lr / width multiplier. At the base width both
    parametrisations agree. lr x weight_decay is the same for every group and width.
    """

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer) -> None:
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self.parts = (muon, adamw)
        self._share()

    def _share(self) -> None:
        """The two work on these groups and this state: rates are set, and states saved, in one."""
        muon, adamw = self.parts
        count = len(muon.param_groups)
        muon.param_groups, adamw.param_groups = self.param_groups[:count], self.param_groups[count:]
        muon.state = adamw.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss


def hidden_matrices(config: ModelConfig) -> set[str]:
    """Names of the parameters whose two dimensions grow with width, under either parametrisation:
    embeddings, readout, convolutions and gains are none of them."""
    shapes = infshapes(replace(config, parametrization="mup"))
    return {name for name, shape in shapes.items() if shape.ninf() == 2}


def config_of(model: nn.Module) -> ModelConfig:
    """The config that `model` was built from."""
    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        raise UserError(f"{type(model).__name__} has no config; give the model that build() made")
    return config


def infshapes(config: ModelConfig) -> dict[str, mup.InfShape]:
    """Which dimensions of each parameter are width, and their base: by building base and delta.

    Base, delta and target come from the one constructor, on the meta device. Under the standard
    parametrisation no dimension counts as width and every rule of mup becomes the usual one.
    """

    def shapes(at: ModelConfig) -> dict[str, torch.Size]:
        with torch.device("meta"):
            found: dict[str, torch.Size] = mup.get_shapes(CLASSES[at.family](at))
            return found

    target: dict[str, Any] = shapes(config)
    base = target
    if config.parametrization != "standard":
        base = mup.make_base_shapes(
            *(shapes(config.at_width(n * config.base_width)) for n in (1, 2))
        )
    found: dict[str, mup.InfShape] = mup.zip_infshapes(base, target)
    return found


def attach_infshapes(model: nn.Module, config: ModelConfig) -> None:
    """Sets `p.infshape` by name. deepcopy, sharding and moves between devices may lose it."""
    mup.apply_infshapes(model, infshapes(config))


def _initialise(model: nn.Module, config: ModelConfig) -> None:
    # CompleteP scales the branches themselves, so its initialisation stays that of the base depth.
    branches = (1 if config.family == "mamba" else 2) * (config.base_layers or config.layers)
    for name, p in model.named_parameters():
        kind = name.rsplit(".", 1)[-1]
        if kind == "step_bias":  # softplus of it is log-uniform between 0.001 and 0.1 (Mamba, 3.6)
            step = torch.exp(torch.empty_like(p).uniform_(math.log(1e-3), math.log(1e-1)))
            p.copy_(step + torch.log(-torch.expm1(-step)))
        elif kind == "log_decay":
            p.copy_(torch.arange(1, config.state + 1).log().expand_as(p))
        elif kind == "head" or kind.endswith("_bias"):
            p.zero_()
        elif kind.startswith("norm") or kind == "skip":
            p.fill_(1.0)
        elif kind == "embed":
            mup.init.normal_(p, std=_embedding_std(config))
        elif kind == "positions_Td":
            mup.init.normal_(p, std=EMBEDDING_STD)
        elif kind in ("conv", "step"):
            mup.init.kaiming_uniform_(p, a=math.sqrt(5))  # +-1/sqrt(fan-in)
        else:
            mup.init.kaiming_normal_(p, nonlinearity="linear")  # 1/sqrt(fan-in)
            if kind == "qkv":
                p[: config.d].zero_()
            if kind in ("out", "down"):
                p.mul_(branches**-0.5)


def _embedding_std(config: ModelConfig) -> float:
    if config.patch_inputs:
        return EMBEDDING_STD * float(config.patch_inputs**-0.5)
    if config.tied:  # it is the readout too, and its logits start near 1
        return float((config.d / config.width_mult) ** -0.5)
    return EMBEDDING_STD
