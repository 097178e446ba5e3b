"""What the three families share: embedding, a stack of blocks, readout, loss, hidden states.

Shapes in names: B sequences, T positions, V vocabulary, P values of a patch, d width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scaling.errors import UserError
from scaling.models.family import ModelConfig
from scaling.models.loss import patch_loss, token_loss


@dataclass
class Cache:
    """What the blocks remember of the first `length` positions of a sequence."""

    layers: list[dict[str, Tensor]]
    length: int = 0


class Decoder(nn.Module, ABC):
    """Predicts the next token, or the next patch, of a sequence.

    Inputs are token ids (B, T), or patches (B, T, P) where config.patch_inputs is P; there the
    start of a sequence is a patch of zeros. Outputs are logits, or normalised patches where
    config.patch_targets is set. Weights are empty until `models.parametrization.build` fills them.
    """

    config: ModelConfig
    recompute: bool = False  # activation checkpointing: a block's activations are made twice

    def __init__(self, config: ModelConfig, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.config = config
        if config.patch_inputs:
            self.embed = nn.Parameter(torch.empty(config.d, config.patch_inputs))
            self.embed_bias = nn.Parameter(torch.empty(config.d))
        else:
            self.embed = nn.Parameter(torch.empty(config.vocab, config.d))
        self.layers = nn.ModuleList(blocks)
        outputs = config.patch_targets or config.vocab
        self.head = self.embed if config.tied else nn.Parameter(torch.empty(outputs, config.d))

    @abstractmethod
    def features(
        self,
        inputs: Tensor,
        states: dict[str, Tensor] | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """The normalised input of the readout, (B, T, d); fills `states`, continues `cache`."""

    @abstractmethod
    def new_cache(self, batch: int) -> Cache:
        """An empty cache for `batch` sequences, with room for config.context positions."""

    def forward(
        self, inputs: Tensor, *, hidden: bool = False, cache: Cache | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, T, V); with hidden=True also {"embed", "layer_1", ..., "final"}: (B, T, d).

        layer_i is the residual stream after block i, final the normalised input of the readout.
        With a cache, `inputs` continue the sequence that it holds, and are added to it.
        """
        states: dict[str, Tensor] | None = {} if hidden else None
        x_BTd = self.features(inputs, states, cache)
        logits_BTV = F.linear(x_BTd * self.config.readout_scale, self.head)
        return logits_BTV if states is None else (logits_BTV, states)

    def loss(self, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """Loss in float32: a scalar ("mean") or (B, T) ("none", for evaluation).

        Nats a token for targets (B, T); squared error a value for patches (B, T, P).
        """
        x_BTd = self.features(inputs) * self.config.readout_scale
        of = patch_loss if self.config.patch_targets else token_loss
        return of(x_BTd, self.head, targets, reduction)

    def compile(self, *args: Any, **options: Any) -> None:
        """torch.compile on each block: one compilation serves all layers, in seconds."""
        for block in self.layers:
            block.compile(*args, **options)

    def _embedded(self, inputs: Tensor, cache: Cache | None) -> tuple[Tensor, int]:
        """Embedded inputs (B, T, d) and the position of the first of them."""
        start, T = (cache.length if cache else 0), inputs.shape[1]
        if start + T > self.config.context:
            raise UserError(
                f"{start + T} positions are more than the context of {self.config.name!r} "
                f"({self.config.context}); shorten the sequence or build with a larger context"
            )
        if self.config.patch_inputs:
            x_BTd = F.linear(inputs, self.embed, self.embed_bias)
        else:
            x_BTd = F.embedding(inputs, self.embed)
        if self.config.embedding_multiplier != 1:
            x_BTd = x_BTd * self.config.embedding_multiplier
        return x_BTd, start

    def _through(
        self,
        x_BTd: Tensor,
        states: dict[str, Tensor] | None,
        cache: Cache | None,
        *shared: Any,
    ) -> Tensor:
        """The residual stream after all blocks; `shared` is given to each."""
        if states is not None:
            states["embed"] = x_BTd
        for i, block in enumerate(self.layers):
            layer_cache = None if cache is None else cache.layers[i]
            if self.recompute and torch.is_grad_enabled():
                x_BTd = checkpoint(block, x_BTd, layer_cache, *shared, use_reentrant=False)
            else:
                x_BTd = block(x_BTd, layer_cache, *shared)
            if states is not None:
                states[f"layer_{i + 1}"] = x_BTd
        if cache is not None:
            cache.length += x_BTd.shape[1]
        return x_BTd
