"""Which models a study trains, at which rates and budgets: its sweeps and its ladder."""

from __future__ import annotations

import reprlib
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from scaling.config.over import Over
from scaling.config.section import Octave, Parametrization, Positive, PositiveFloat, Section
from scaling.errors import did_you_mean
from scaling.models.family import FAMILY, named, shape, sized

OWN_SIZES = tuple(name for name, size in FAMILY.items() if name[0] in "at" and not shape(size))


class LrConfig(Section):
    """A learning-rate sweep: powers of two over several widths at fixed depth (Figure 11).

    With `depths` it goes over depth instead, at the one width. What is swept over is the axis.
    `over` lists other numbers of `train`, of which every combination has such a sweep, at equal
    sequences; tpe and gp choose among them and the rate together, the same for all members.
    """

    widths: Annotated[tuple[Positive, ...], Field(min_length=1, strict=False)]
    layers: Positive = 2
    depths: Annotated[tuple[Positive, ...], Field(strict=False)] = ()  # instead of `layers`
    parametrization: Parametrization | None = None  # null: that of `model`
    heads: Positive = 4
    log2_min: Annotated[int, Field(ge=-64, le=64)] = -9
    log2_max: Annotated[int, Field(ge=-64, le=64)] = -4
    steps: Positive = 500  # of each run: muP carries a rate over width at equal steps
    sampler: Literal["grid", "tpe", "gp"] = "grid"
    over: Over = Over()
    seeds: Annotated[int, Field(gt=0, le=100)] = 1  # of every point of the sweep
    # Of tpe or gp; null: as many as the grid has rates; with `over` 10 a number, the rate included.
    trials: Positive | None = None

    @model_validator(mode="after")
    def _range(self) -> LrConfig:
        if self.log2_min > self.log2_max:
            raise ValueError(f"log2_min {self.log2_min} is above log2_max {self.log2_max}")
        wrong = [w for w in self.widths if w % (2 * self.heads)]
        if wrong:
            raise ValueError(
                f"widths {wrong} do not divide into {self.heads} heads of even width (RoPE turns "
                f"pairs); use multiples of {2 * self.heads}"
            )
        for name, values in (("widths", self.widths), ("depths", self.depths)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} {list(values)} repeat; list each once")
        if self.depths and len(self.widths) > 1:
            raise ValueError(
                f"widths {list(self.widths)} with depths {list(self.depths)}: a sweep goes over "
                f"one of them; give one width, or no depths"
            )
        return self

    @model_validator(mode="after")
    def _sampler_can(self) -> LrConfig:
        if self.sampler == "grid" and self.over.ranges:
            raise ValueError(
                f"over: {', '.join(self.over.ranges)}: between ends only sampler tpe or gp choose; "
                f"list values for the grid"
            )
        if self.sampler == "grid" and self.trials is not None:
            raise ValueError(f"trials {self.trials} with sampler grid, which tries all; leave it")
        return self

    @property
    def searches(self) -> bool:
        """Whether a sampler chooses settings and rate together."""
        return self.sampler != "grid" and bool(self.over.given)

    @property
    def count(self) -> int:
        """Trials of a sampler."""
        default = self.log2_max - self.log2_min + 1
        return self.trials or (10 * (1 + len(self.over.given)) if self.searches else default)

    @property
    def axis(self) -> Literal["width", "depth"]:
        """What the sweep goes over."""
        return "depth" if self.depths else "width"

    @property
    def members(self) -> tuple[int, ...]:
        """The widths, or the depths, that every rate is tried at."""
        return self.depths or self.widths


class OwnSize(Section):
    """A size outside the table, by its shape: the feed-forward follows its family's rule.

    table15: Toto with one key-value head and a feed-forward of 16 d / 3, the rule of the paper's
    Table 15.
    """

    d: Positive
    layers: Positive
    heads: Positive = 1  # of mamba, which has none
    family: Literal["toto", "gpt2", "mamba", "table15"] = "toto"

    @model_validator(mode="after")
    def _heads_are_known(self) -> OwnSize:
        if (self.family == "mamba") is ("heads" in self.model_fields_set):
            wrong = "mamba has none; leave it out" if self.family == "mamba" else "missing; add it"
            raise ValueError(f"heads: {wrong}")
        return self


def _size_name(given: object) -> object:
    """The name of a size, which says all of it, also of one given by its shape."""
    if isinstance(given, str):
        return named(given).name
    if not isinstance(given, dict):
        raise ValueError(
            f"{reprlib.repr(given)} is no size: give a name (t16) or {{d: 40, layers: 3, heads: 4}}"
        )
    try:
        own = OwnSize.model_validate(given)
    except ValidationError as error:
        raise ValueError("; ".join(_wrong(one) for one in error.errors())) from None
    return sized(own.d, own.layers, own.heads, own.family).name


def _wrong(error: Any) -> str:
    """One mistake of an own size."""
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        known = list(OwnSize.model_fields)
        hint = did_you_mean(key, known) or f"; known here: {', '.join(known)}"
        return f"{key}: unknown key{hint}"
    if error["type"] == "missing":
        return f"{key}: missing; add it"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"{key}: {reprlib.repr(error['input'])}: {error['msg'][0].lower()}{error['msg'][1:]}"


Size = Annotated[str, BeforeValidator(_size_name)]


class LadderConfig(Section):
    """The runs that the law is fitted to: sizes times compute budgets.

    A size is a name of the table, or its shape, {d: 40, layers: 3, heads: 4}, which goes by the
    name d40l3h4.

    With `macs` in place of `budgets_macs` it places its own runs, in rounds, each by the losses of
    those before it: which of the sizes, which budgets, how many seeds.
    """

    sizes: Annotated[tuple[Size, ...], Field(min_length=1, strict=False)] = OWN_SIZES  # with `macs`
    budgets_macs: Annotated[tuple[PositiveFloat, ...], Field(strict=False)] = ()
    macs: PositiveFloat | None = None  # training MACs of the whole ladder, to be spent by itself
    first_macs: PositiveFloat | None = None  # its smallest budget; null: a 224th of `macs`
    tokens_per_param: tuple[PositiveFloat, PositiveFloat] | None = Field(default=None, strict=False)
    max_tokens: PositiveFloat | None = None  # that a run may see
    seeds: Annotated[int, Field(gt=0, le=10_000)] = 1  # runs that differ in their seed alone
    log2_lr: Octave | None = None  # skip the sweep and use this rate
    batch: dict[Size, Positive] = Field(default_factory=dict)  # of a size, where not train.batch

    @field_validator("sizes")
    @classmethod
    def _differ(cls, sizes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(sizes)) < len(sizes):
            raise ValueError(f"sizes {list(sizes)} repeat; list each once")
        return sizes

    @field_validator("budgets_macs")
    @classmethod
    def _increasing(cls, budgets: tuple[float, ...]) -> tuple[float, ...]:
        if list(budgets) != sorted(set(budgets)):
            raise ValueError(f"budgets {list(budgets)} must increase, none twice")
        return budgets

    @model_validator(mode="after")
    def _batches_are_of_sizes(self) -> LadderConfig:
        for name in self.batch:
            if name not in self.sizes:
                hint = did_you_mean(name, self.sizes) or f"; there are: {', '.join(self.sizes)}"
                raise ValueError(f"batch: '{name}' is none of the ladder's sizes{hint}")
        return self

    @model_validator(mode="after")
    def _placed_by_one(self) -> LadderConfig:
        if self.macs is None:
            lacking = [n for n in ("sizes", "budgets_macs") if n not in self.model_fields_set]
            if lacking or not self.budgets_macs:
                raise ValueError(
                    f"{' and '.join(lacking or ['budgets_macs'])}: missing; list the sizes and "
                    f"budgets to train, or give `macs`, and the ladder places its own runs"
                )
            if self.first_macs is not None:
                raise ValueError("first_macs is of a ladder with `macs`; budgets_macs has its own")
            return self
        if self.budgets_macs:
            raise ValueError(
                "both budgets_macs and macs: list the budgets, or leave them to the ladder (`macs` "
                "and, if need be, `first_macs`)"
            )
        if self.seeds > 1:
            raise ValueError(f"seeds {self.seeds} with macs: the ladder decides how many; leave it")
        kinds = {shape(named(name)) or "toto" for name in self.sizes}
        if len(kinds) > 1:
            raise ValueError(
                f"macs with sizes of several shapes ({', '.join(sorted(kinds))}): the best size is "
                f"sought among sizes of one; make a study of each, and `scaling compare` them"
            )
        return self
