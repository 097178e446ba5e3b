"""What every section of a study's configuration is made of: its strictness and its types."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Positive = Annotated[int, Field(gt=0, le=10**15)]  # beyond it nothing here is counted exactly
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Sequences = Annotated[int, Field(gt=0, le=10**10)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Parametrization = Literal["mup", "standard", "completep"]  # completep: muP, over depth as well
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy's and Optuna's generators take
Octave = Annotated[float, Field(ge=-64, le=64)]  # log2 of a learning rate
Switch = Annotated[  # YAML reads a bare `on` or `off` as a truth value
    Literal["auto", "on", "off"],
    BeforeValidator(lambda v: {True: "on", False: "off"}[v] if isinstance(v, bool) else v),
]
Slug = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Section(BaseModel):
    """A block of the configuration: no unknown keys, no silent conversion, no later change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)
