"""Values of a saved law's JSON, each checked where it is taken out."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

import numpy as np

from scaling.analysis.laws.parametric_law import SurfaceStatus
from scaling.analysis.laws.power_law import Status

S = TypeVar("S", Status, SurfaceStatus)


class Wrong(Exception):
    """What is wrong with a value."""


def part(holder: dict[str, Any], key: str) -> dict[str, Any]:
    value = holder.get(key)
    if not isinstance(value, dict):
        raise Wrong(f"it has no {key!r}")
    return value


def number(holder: dict[str, Any], key: str, low: float = -np.inf, high: float = np.inf) -> float:
    value = holder.get(key)
    fine = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not fine or not -1e308 < value < 1e308 or not low <= value <= high:  # type: ignore[operator]
        raise Wrong(f"{key!r} is {str(value)[:40]!r}")
    return float(value)  # type: ignore[arg-type]


def array(
    holder: dict[str, Any], key: str, shape: tuple[int | None, ...], *, positive: bool = False
) -> np.ndarray:
    """Finite numbers of a shape, None of any length from 1 on."""
    try:
        value = np.array(holder.get(key))
    except ValueError:  # lists of several lengths
        raise Wrong(f"{key!r} is no table of numbers") from None
    if value.dtype.kind not in "fi" or not np.isfinite(value).all():
        raise Wrong(f"{key!r} holds something else than finite numbers")
    fits = value.ndim == len(shape) and value.size > 0
    if not fits or any(s is not None and s != v for s, v in zip(shape, value.shape, strict=True)):
        want = " x ".join("some" if s is None else str(s) for s in shape)
        raise Wrong(f"{key!r} is of shape {value.shape}, not {want}")
    if positive and not (value > 0).all():
        raise Wrong(f"{key!r} holds numbers that are not positive")
    return value.astype(float)


def optional(
    holder: dict[str, Any], key: str, shape: tuple[int | None, ...], *, positive: bool = False
) -> np.ndarray | None:
    return None if holder.get(key) is None else array(holder, key, shape, positive=positive)


def intervals(given: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Of each quantity; NaN where the fit had none."""
    none = (float("nan"), float("nan"))
    found = {k: none if v is None else array(given, k, (2,)) for k, v in given.items()}
    return {k: (float(v[0]), float(v[1])) for k, v in found.items()}


def require_covariance(value: np.ndarray) -> None:
    if not np.allclose(value, value.T, rtol=1e-9) or np.linalg.eigvalsh(value)[0] < -1e-9 * np.abs(
        value
    ).max(initial=0):
        raise Wrong("'covariance' is none")


def status_of(kind: type[S], about: dict[str, Any]) -> S:
    """What the optimiser had reached; a number that is missing was not finite."""
    given = part(about, "status")
    values: dict[str, Any] = {}
    for one in fields(kind):
        if one.name not in given:
            raise Wrong(f"'status' has no {one.name!r}")
        value = given[one.name]
        values[one.name] = float("nan") if value is None else value
        if not isinstance(values[one.name], (bool, int, float, str)):
            raise Wrong(f"{one.name!r} is {str(value)[:40]!r}")
    return kind(**values)
