"""What is swept together with the learning rate: other numbers of `train`."""

from __future__ import annotations

import itertools
import math
import reprlib
from typing import Any

from pydantic import ValidationError, ValidationInfo, field_validator, model_validator

from scaling.analysis.schema import Setting
from scaling.config.section import Section
from scaling.config.train import TrainConfig
from scaling.errors import did_you_mean


class Range(Section):
    """Ends between which a sampler chooses; with `log` it is even in the logarithm."""

    min: float
    max: float
    log: bool = False

    @model_validator(mode="after")
    def _is_one(self) -> Range:
        if not self.min < self.max:
            raise ValueError(f"min {self.min:g} is not below max {self.max:g}")
        if self.log and self.min <= 0:
            raise ValueError(f"log with min {self.min:g}: it must be above 0")
        return self


Tried = tuple[int | float, ...] | Range | None


class Over(Section):
    """Numbers of `train`, each with the values to try, or the ends between which tpe or gp choose.

    Every combination is a setting, which has a learning rate of its own.
    """

    batch: Tried = None
    warmup_steps: Tried = None
    cooldown: Tried = None
    weight_decay: Tried = None
    beta1: Tried = None
    beta2: Tried = None
    grad_clip: Tried = None

    @field_validator("*", mode="before")
    @classmethod
    def _as_train_takes_them(cls, given: object, info: ValidationInfo) -> Tried:
        return _tried(str(info.field_name), given)

    @property
    def given(self) -> dict[str, tuple[int | float, ...] | Range]:
        """What is swept, in the order of the fields."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: tried for name, tried in found.items() if tried is not None}

    @property
    def ranges(self) -> list[str]:
        """The names of those that have ends in place of values."""
        return [name for name, tried in self.given.items() if isinstance(tried, Range)]

    def settings(self) -> list[Setting]:
        """Every combination of the values that are listed; `[()]` where none are."""
        listed = {k: v for k, v in self.given.items() if not isinstance(v, Range)}
        return [
            tuple(zip(listed, values, strict=True))
            for values in itertools.product(*listed.values())
        ]

    def corners(self) -> list[Setting]:
        """The same with the ends of ranges for values: what can be at these can be between them."""
        ends: dict[str, tuple[int | float, ...]] = {}
        for name, tried in self.given.items():
            if isinstance(tried, Range):
                kind = int if name == "warmup_steps" else float
                ends[name] = (kind(tried.min), kind(tried.max))
            else:
                ends[name] = tried
        return [
            tuple(zip(ends, values, strict=True)) for values in itertools.product(*ends.values())
        ]


def _tried(name: str, given: object) -> Tried:
    """Values or ends, each as `train` takes it. Raises ValueError: all that is wrong with them."""
    if given is None or isinstance(given, Range):
        return given
    if isinstance(given, dict):
        return _range(name, given)
    if not isinstance(given, list | tuple):
        raise ValueError(
            f"{reprlib.repr(given)} is no list: give the values to try, [0.01, 0.1], or, with "
            f"sampler tpe or gp, their ends, {{min: 0.01, max: 0.1, log: true}}"
        )
    if not given:
        raise ValueError("an empty list; give the values to try, or leave it out")
    values = _accepted(name, given)
    if len(set(values)) < len(values):
        raise ValueError(f"{list(given)} repeat; list each once")
    return values


def _accepted(name: str, given: list[Any] | tuple[Any, ...]) -> tuple[int | float, ...]:
    values, wrong = [], []
    for value in given:
        try:
            taken = getattr(TrainConfig.model_validate({name: value}), name)
            if not math.isfinite(taken):
                raise ValueError("not a finite number")
            values.append(taken)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            wrong.append(f"{reprlib.repr(value)}: {said[0].lower()}{said[1:]}")
        except ValueError as error:
            wrong.append(f"{value}: {error}")
    if wrong:
        raise ValueError("; ".join(wrong) + f" (as of train.{name})")
    return tuple(values)


def _range(name: str, given: dict[str, Any]) -> Range:
    if name == "batch":
        raise ValueError(
            "list the batches to try, [8, 16]: each must divide the sequences that a run sees"
        )
    known = list(Range.model_fields)
    for key in given:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"; known here: {', '.join(known)}"
            raise ValueError(f"{key}: unknown key{hint}")
    missing = [key for key in ("min", "max") if key not in given]
    if missing:
        raise ValueError(f"{' and '.join(missing)}: missing; add it")
    low, high = _accepted(name, [given["min"], given["max"]])
    try:
        return Range.model_validate({**given, "min": low, "max": high})
    except ValidationError as error:
        first = error.errors()[0]
        said = first.get("ctx", {}).get("error", first["msg"])
        raise ValueError(str(said)) from None
