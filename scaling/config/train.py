"""How the runs of a study are trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from scaling.config.section import Fraction, Positive, PositiveFloat, Section, Share, Switch


class TrainConfig(Section):
    """How every run is trained."""

    batch: Positive = 8  # sequences per step
    micro_batch: Positive | None = None  # sequences of one forward pass, over all ranks; null: all
    recompute: bool = False  # activation checkpointing: less memory, a third more compute
    compile: Switch = "auto"  # auto: on CUDA, and on a CPU where it pays
    parallel: Literal["ddp", "fsdp"] = "ddp"  # of a run on several ranks: replicate, or shard
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: of hidden matrices; the rest by AdamW
    schedule: Literal["wsd", "cosine"] = "wsd"
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    cooldown: Fraction = 0.2  # share of a budget's steps over which the rate falls to zero (wsd)
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    beta1: Share = 0.9  # of AdamW; muon's matrices have their own momentum
    beta2: Share = 0.95
    grad_clip: PositiveFloat = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on CUDA, else fp32
    # Mid-schedule evaluations, log-spaced: in a factor of ten of steps (wsd), in all (cosine).
    evals: Annotated[int, Field(ge=0, le=10_000)] = 8
    checkpoint_seconds: PositiveFloat = 30.0

    @model_validator(mode="after")
    def _divides(self) -> TrainConfig:
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(
                f"micro_batch {self.micro_batch} does not divide batch {self.batch}; choose a "
                f"divisor of it"
            )
        if self.optimizer == "muon" and self.parallel == "fsdp":
            raise ValueError(
                "optimizer muon with parallel fsdp: it orthogonalises whole matrices, which are "
                "not whole on any rank; use train.parallel: ddp, or adamw"
            )
        return self
