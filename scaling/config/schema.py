"""The configuration of a study: one strict schema.

A study is one YAML file (`sweeps/*.yaml`), which `scaling.config.study_file` reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from scaling.config.ladder import LadderConfig, LrConfig
from scaling.config.section import (
    Fraction,
    Parametrization,
    Positive,
    PositiveFloat,
    Section,
    Seed,
    Sequences,
    Slug,
)
from scaling.config.train import TrainConfig as TrainConfig


class SourceConfig(Section):
    """One source of clips. `weight` is its share of the training tokens, relative to the others."""

    name: Slug
    kind: Literal["leaves", "video", "images", "tokens"]
    path: Annotated[Path, Field(strict=False)] | None = None
    weight: PositiveFloat = 1.0
    exhausted: Literal["repeat", "error"] = "repeat"  # when a run needs more than it holds

    @model_validator(mode="after")
    def _path_fits_kind(self) -> SourceConfig:
        if self.kind == "leaves" and self.path is not None:
            raise ValueError("kind 'leaves' is generated and takes no path; remove `path`")
        if self.kind != "leaves" and self.path is None:
            raise ValueError(f"kind '{self.kind}' needs `path:` (a folder or a file)")
        return self


class DataConfig(Section):
    """What the models see. A sequence is `frames` frames of `size` x `size` pixels."""

    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1, strict=False)]
    frames: Positive = 16  # paper, Section 3.4
    size: Positive = 128  # pixels; paper, Section 3.4
    stride: Positive = 4  # every 4th frame of a video; paper, Section 3.4
    fps: PositiveFloat | None = None  # frames a second that `stride` counts; null: the video's own
    # Training crops are cut from the picture at up to this many times the size of the whole one.
    zoom: Annotated[float, Field(ge=1, le=16)] = 1.0
    pixels: bool = False  # store the frames beside the tokens: for models that see patches
    clips_per_video: Positive = 4  # random crops in space and time of one training video
    train_sequences: Sequences = 4096  # of the generated source and of image folders
    val_sequences: Sequences = 64  # per source, at most
    val_fraction: Fraction = 0.1  # of the files; a file is in training or validation, never both

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        names = [s.name for s in sources]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"two sources share the name {', '.join(twice)}; give each its own")
        return sources


class TokenizerConfig(Section):
    """How a frame becomes integers: with published weights, or with what is fitted on the study's
    own training frames (k-means, or a small dVAE or VQGAN). `given`: elsewhere, of all sources."""

    kind: Literal["codebook", "dvae", "vqgan", "given"] = "codebook"
    patch: Positive = 8  # side of a code's square, pixels
    codes: Annotated[int, Field(ge=2, le=65_000)] = 1024  # uint16 shards
    weights: Annotated[Path, Field(strict=False)] | None = None  # safetensors or a state_dict
    fit_frames: Positive = 4096  # training frames that it is fitted on, without weights
    width: Positive = 16  # of a dVAE or VQGAN without weights: channels at full resolution
    steps: Positive = 4000  # of its training

    @model_validator(mode="after")
    def _can_be_made(self) -> TokenizerConfig:
        if self.kind == "given" and self.weights is not None:
            raise ValueError("kind 'given' has no weights: its codes are ready; remove `weights`")
        if self.kind in ("codebook", "given") or self.weights is not None:
            return self
        if self.patch < 2 or self.patch & (self.patch - 1):
            raise ValueError(
                f"patch {self.patch}: a {self.kind} halves the side again and again; use 2, 4, 8 "
                f"or 16"
            )
        if self.width % 8:
            raise ValueError(
                f"width {self.width}: a {self.kind} takes multiples of 8; use "
                f"{-(-self.width // 8) * 8}"
            )
        return self


class ModelSection(Section):
    """What all models of the study share.

    Table 3 of the paper pairs what a model reads with what it predicts: tokens with tokens (of any
    tokenizer), patches with patches, patches with tokens. Patches are as large as a token's square.
    """

    inputs: Literal["tokens", "patches"] = "tokens"
    targets: Literal["tokens", "patches"] = "tokens"  # patches: normalised, squared error a value
    parametrization: Parametrization = "mup"
    base_width: Positive = 64  # width at which muP and standard parametrisation agree
    base_layers: Positive = 2  # depth at which CompleteP and plain muP agree
    rope_base: PositiveFloat = 10_000.0


class LaunchConfig(Section):
    """Where jobs run. `slurm` is the same call as `local`; `debug` runs in this process."""

    cluster: Literal["local", "slurm", "debug"] = "local"
    parallel: Positive | None = None  # jobs at once; default: the cores (local), 64 (slurm)
    threads: Positive | None = None  # CPU threads of a job; default: cores / parallel
    timeout_min: Positive = 24 * 60
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: Annotated[int, Field(ge=0, le=10_000)] = 0  # per node
    gpu_memory_gb: PositiveFloat | None = None  # given: a run takes as few of `gpus` as it fits on
    nodes: Positive = 1
    mem_gb: Positive | None = None
    extra: dict[str, Any] = Field(default_factory=dict)  # further sbatch parameters
    max_macs: PositiveFloat | None = None  # training MACs; a study beyond it takes --yes to start
    max_gpu_hours: PositiveFloat | None = None  # likewise
    gpu_macs_per_second: PositiveFloat | None = None  # of one GPU in training; default: timed here
    gpu_speed_from: str = "launch.gpu_macs_per_second"  # where that number is from; for the plan


class TrackingConfig(Section):
    """MLflow. Default: a SQLite file in the study's directory."""

    uri: str | None = None


class FitConfig(Section):
    """How the law is fitted."""

    form: Literal["select", "power", "saturating"] = "select"  # select: by held-out error
    resamples: Annotated[int, Field(ge=200, le=1_000_000)] = 4000


class ProbeConfig(Section):
    """The head that reads a variant's hidden states, a copy for each layer; the best layer counts.

    average: mean over tokens and a linear map. attention: Section 3.5. grid: a linear map of the
    means of the frame's cells. cross: A.7.
    """

    head: Literal["average", "attention", "grid", "cross"] = "attention"


class Tuning(Section):
    """How a model is fine-tuned on labelled images or clips (Sections 4.2, 4.7, A.2, A.3).

    By default on next tokens, while the heads learn beside it, their gradient stopped. End to end
    it is trained by the labels alone, through one head on the last layer.
    """

    px: Positive | None = None  # side; null: of images twice that of the study, of clips the same
    frames: Positive | None = None  # of a clip; null: as many as in a training sequence
    stride: Positive | None = None  # frame periods between them; null: as in training
    rope_base: PositiveFloat = 50_000.0
    attention: Literal["causal", "prefix", "full"] = "causal"  # prefix: half of the tokens
    end_to_end: bool = False
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.9  # of the rate, a layer down
    lr: PositiveFloat = 1e-3  # of the last layer, at the muP base width
    head_lr: PositiveFloat = 3e-3
    steps: Positive = 300
    epochs: PositiveFloat | None = None  # passes over the training files, in place of steps
    batch: Positive = 32
    # Views of a clip in time and in space: a step sees one of them, a test the mean of all (the
    # paper: 10 x 3).
    clips: Positive = 1
    crops: Positive = 1
    ADDED: ClassVar = {"epochs": None, "clips": 1, "crops": 1}  # as `RunConfig.ADDED`

    @model_validator(mode="after")
    def _has_a_loss(self) -> Tuning:
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise ValueError(f"steps {self.steps} and epochs {self.epochs:g}: give one of them")
        if self.attention == "full" and not self.end_to_end:
            raise ValueError(
                "attention full sees the tokens that it would predict, so the labels must train "
                "the model: set end_to_end, or use causal or prefix"
            )
        return self


class VariantConfig(Section):
    """One choice of a comparison: the study, with these values in place of its own."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    data: dict[str, Any] = Field(default_factory=dict)
    tokenizer: dict[str, Any] = Field(default_factory=dict)
    model: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    ladder: dict[str, Any] = Field(default_factory=dict)
    probe: dict[str, Any] = Field(default_factory=dict)
    finetune: dict[str, Any] = Field(default_factory=dict)


class StudyConfig(Section):
    """One study: raw clips in, a power law out.

    With `variants` it compares choices in place of fitting a law: each is trained at one size and
    budget and read by a head, or fine-tuned, on labelled data (`scaling represent`).
    """

    study: Slug
    seed: Seed = 0
    data: DataConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelSection = ModelSection()
    train: TrainConfig = TrainConfig()
    lr: LrConfig | None = None  # the sweep that gives the ladder its rate
    transfer: Annotated[tuple[LrConfig, ...], Field(strict=False)] = ()  # sweeps to be compared
    ladder: LadderConfig | None = None
    probe: ProbeConfig = ProbeConfig()  # of variants
    finetune: Tuning | None = None  # of variants; null: the probe reads the model as it is
    variants: Annotated[tuple[VariantConfig, ...], Field(strict=False)] = ()
    launch: LaunchConfig = LaunchConfig()
    tracking: TrackingConfig = TrackingConfig()
    fit: FitConfig = FitConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> StudyConfig:
        if self.data.size % self.tokenizer.patch:
            raise ValueError(
                f"data.size {self.data.size} is not a multiple of tokenizer.patch "
                f"{self.tokenizer.patch}; choose a patch that divides the frame"
            )
        ready = [source.kind == "tokens" for source in self.data.sources]
        if any(ready) != (self.tokenizer.kind == "given") or any(ready) != all(ready):
            raise ValueError(
                "sources of kind 'tokens' and tokenizer.kind 'given' go together, all or none: one "
                "vocabulary, made by one tokenizer"
            )
        if all(ready) and self.data.pixels:
            raise ValueError("data.pixels: ready tokens come without their frames; remove it")
        if "patches" in (self.model.inputs, self.model.targets) and not self.data.pixels:
            raise ValueError(
                "model.inputs or model.targets is patches, which are cut from stored frames; set "
                "data.pixels: true"
            )
        if self.ladder is None and not self.transfer:
            raise ValueError("nothing to train: add a `ladder:` section, or `transfer:` sweeps")
        if self.ladder and self.ladder.macs and self.train.schedule != "wsd":
            raise ValueError(
                f"ladder.macs with schedule {self.train.schedule}: each budget would be a run from "
                f"its first step, for its length is part of the schedule, so that a round could "
                f"not go on from the one before; use train.schedule: wsd, or list budgets_macs"
            )
        if self.ladder and self.lr is None and self.ladder.log2_lr is None:
            raise ValueError(
                "no learning rate: add an `lr:` section (a sweep) or set ladder.log2_lr"
            )
        for size, batch in (self.ladder.batch if self.ladder else {}).items():
            if batch % (self.train.micro_batch or 1):
                raise ValueError(
                    f"train.micro_batch {self.train.micro_batch} does not divide ladder.batch "
                    f"{batch} of {size}; choose a divisor of all batches"
                )
        if self.lr and self.lr.depths:
            raise ValueError(
                "lr.depths: the ladder's rate is found over widths; list a sweep over depth in "
                "`transfer:`"
            )
        if self.lr and self.ladder is None:
            raise ValueError(
                "`lr:` gives a ladder its rate and there is no `ladder:`; move it to `transfer:`"
            )
        return self

    @model_validator(mode="after")
    def _can_be_compared(self) -> StudyConfig:
        if not self.variants:
            return self
        if self.lr or self.transfer or self.ladder is None or self.ladder.log2_lr is None:
            raise ValueError(
                "`variants:` are trained at given rates: set ladder.log2_lr (of each, if need be) "
                "and leave `lr:` and `transfer:` out"
            )
        names = [v.name for v in self.variants]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"two variants share the name {', '.join(twice)}; give each its own")
        return self


def variant_studies(config: StudyConfig) -> dict[str, StudyConfig]:
    """Name -> the study of each variant, in order; {"": the study itself} where it has none."""
    if not config.variants:
        return {"": config}
    whole = json.loads(config.model_dump_json())
    return {v["name"]: StudyConfig.model_validate(varied(whole, v)) for v in whole.pop("variants")}


def varied(study: dict[str, Any], variant: dict[str, Any]) -> dict[str, Any]:
    """A study as it was written, with a variant's values; lists are replaced whole."""
    changes = {k: v for k, v in variant.items() if k != "name" and v}
    return _over({k: v for k, v in study.items() if k != "variants"}, changes)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = below.get(key)
        if isinstance(under, dict) and isinstance(value, dict):
            merged[key] = _over(under, value)
        else:
            merged[key] = value
    return merged
