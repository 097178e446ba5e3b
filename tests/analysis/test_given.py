"""A floor that is pinned and weights of the points: what is given, and what follows from it."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.laws.fit import NotIdentified, fit
from scaling.analysis.laws.mixture import mix
from scaling.analysis.laws.parametric import fit_parametric
from scaling.analysis.questions.frontier import fit_frontier
from scaling.analysis.questions.isoflop import size_laws
from scaling.analysis.questions.parametric_study import fit_surface
from scaling.analysis.questions.simulate import TRUTH, study
from scaling.analysis.questions.variable import fit_variable
from scaling.analysis.tables.ladder import Ladder

FLOOR = 1.7


def points(
    count: int = 10, noise: float = 0.004, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute, loss and weights: the noise of a loss is that of a run over the weight's root."""
    rng = np.random.default_rng(seed)
    compute, weights = 1e14 * np.geomspace(1, 1e3, count), rng.choice([1.0, 4.0, 25.0], count)
    loss = FLOOR + 2 * (compute / 1e14) ** -0.15
    return compute, loss * np.exp(noise * rng.standard_normal(count) / np.sqrt(weights)), weights


def surface(
    count: int = 40, noise: float = 0.004, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n, d = 10 ** rng.uniform(7.5, 10, count), 10 ** rng.uniform(9, 11.5, count)
    weights = rng.choice([1.0, 4.0, 25.0], count)
    loss = FLOOR + 400 / n**0.34 + 1500 / d**0.36
    return n, d, loss * np.exp(noise * rng.standard_normal(count) / np.sqrt(weights)), weights


def ends(law: Any) -> list[float]:
    return [end for name in sorted(law.ci) for end in law.ci[name]]


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return study(TRUTH, sizes=7, budgets=5, seed=3).assign(same=7.0)


# --- weights


@pytest.mark.parametrize(("count", "runs"), [(8, 8), (12, 4), (40, 40), (600, 600), (600, 10)])
def test_weights_that_are_all_the_same_change_nothing(count: int, runs: int) -> None:
    compute, loss, _ = points(count)
    options: dict[str, Any] = dict(groups=[k % runs for k in range(count)], resamples=200)
    for form in ("select", "power") if count < 40 else ("power",):
        one, other = (
            fit(compute, loss, form=form, weights=w, **options) for w in (None, np.full(count, 7.0))
        )
        assert ends(one) == pytest.approx(ends(other))
        assert one.held_out == pytest.approx(other.held_out)
        assert one.predict(1e18).high == pytest.approx(
            other.predict(1e18).high,
            rel=1e-4,
            nan_ok=True,  # of the bisection
        )


@pytest.mark.parametrize("find", [
    lambda rows, w: fit_frontier(Ladder.of(rows, weights=w), resamples=200),
    lambda rows, w: fit_frontier(Ladder.of(rows, weights=w), resamples=200, method="lowest"),
    lambda rows, w: fit_frontier(Ladder.of(rows, weights=w), resamples=200, method="binned"),
    lambda rows, w: fit_variable(Ladder.of(rows, variable="tokens", weights=w), resamples=200),
    lambda rows, w: fit_surface(Ladder.of(rows, weights=w), resamples=200),
    lambda rows, w: fit_surface(Ladder.of(rows, weights=w), resamples=200, tied=True),
])  # fmt: skip
def test_nor_do_they_in_a_table(rows: pd.DataFrame, find: Callable[..., Any]) -> None:
    one, other = (find(rows, column).law for column in (None, "same"))
    assert ends(one) == pytest.approx(ends(other))
    assert other.weights == pytest.approx(1) and one.weights is None


def test_nor_in_the_laws_of_best_sizes(rows: pd.DataFrame) -> None:
    one, other = (size_laws(Ladder.of(rows, weights=w), resamples=100) for w in (None, "same"))
    for a, b in zip(one, other, strict=True):
        assert (a.exponent, *a.exponent_interval) == pytest.approx(
            (b.exponent, *b.exponent_interval), nan_ok=True
        )


def test_a_weight_is_a_number_of_repeats() -> None:
    compute, loss, weights = points()
    times = weights.astype(int)
    one = fit(compute, loss, e=1.5, weights=weights)
    many = fit(np.repeat(compute, times), np.repeat(loss, times), e=1.5)
    assert (one.a, one.b) == pytest.approx((many.a, many.b), rel=1e-9)
    n, d, loss, weights = surface(20)
    times = weights.astype(int)
    for kind in ("huber", "linear"):
        law = fit_parametric(n, d, loss, weights=weights, loss_kind=kind, resamples=100)
        same = fit_parametric(
            *(np.repeat(v, times) for v in (n, d, loss)), loss_kind=kind, resamples=100
        )
        assert (law.alpha, law.beta) == pytest.approx((same.alpha, same.beta), rel=1e-3), kind
    seeds = pd.concat([study(TRUTH, seed=1).assign(seed=k, w=k + 1.0) for k in range(2)])
    seeds["val_loss"] *= np.where(seeds["seed"] == 1, 1.03, 1.0)
    seeds["run_id"] += seeds["seed"].astype(str)
    found = fit_frontier(Ladder.of(seeds, weights="w"), method="lowest", resamples=100).points
    plain = fit_frontier(study(TRUTH, seed=1), method="lowest", resamples=100).points
    assert found["val_loss"].to_numpy() == pytest.approx(plain["val_loss"].to_numpy() * 1.02)


def test_weights_narrow_what_is_known_worse_without_them() -> None:
    widths = {"weighted": 0.0, "not": 0.0}
    held = dict.fromkeys(widths, 0)
    for seed in range(12):
        compute, loss, weights = points(seed=seed)
        for name, given in (("weighted", weights), ("not", None)):
            low, high = fit(compute, loss, e=FLOOR, weights=given, resamples=200).ci["b"]
            widths[name] += high - low
            held[name] += low <= -0.15 <= high
    assert widths["weighted"] < 0.75 * widths["not"] and held["weighted"] >= 9


def test_the_mixture_trusts_heavy_points() -> None:
    """A bend that only light points show is none."""
    compute = 1e14 * np.geomspace(1, 1e3, 12)
    straight = 4 * (compute / 1e14) ** -0.05
    loss = straight * np.exp(0.002 * np.random.default_rng(0).standard_normal(12))
    loss[-3:] *= np.array([1.01, 1.02, 1.03])
    weights = np.where(np.arange(12) < 9, 100.0, 1.0)
    bent, doubted = mix(compute, loss), mix(compute, loss, weights=weights)
    assert bent.shares["pure"] < 0.2 < doubted.shares["pure"]


@pytest.mark.parametrize("value", [np.nan, 0.0, -1.0, np.inf, "three", True])
@pytest.mark.parametrize("variable", ["compute", "both", "tokens"])
def test_weights_that_are_none_name_their_row(
    rows: pd.DataFrame, variable: str, value: object
) -> None:
    of: dict[str, Any] = {"variable": "tokens" if variable == "tokens" else "compute"}
    finds: dict[str, Callable[..., Any]] = {"compute": fit_frontier, "both": fit_surface}
    find = finds.get(variable, fit_variable)
    column = np.array([2.0] * len(rows), dtype=object)
    column[4] = value
    bad = rows.assign(w=column if value is not True else True)
    name = rows["run_id"][0 if value is True else 4]
    with pytest.raises(ValueError, match=rf"column 'w' is .* for run '{name}' \(\d+ such of"):
        find(Ladder.of(bad, **of, weights="w"))
    diverged = bad.assign(status=np.where(np.arange(len(rows)) == 4, "diverged", "finished"))
    if value is not True:
        found = Ladder.of(diverged, **of, weights="w")
        find(found, resamples=100)  # a row that does not count needs no weight
    with pytest.raises(ValueError, match="no column 'weight' for a weight"):
        find(Ladder.of(rows, **of, weights="weight"))


def test_weights_of_points_are_numbers() -> None:
    compute, loss, weights = points()
    for bad in (weights[:3], -weights, weights * np.nan):
        with pytest.raises(ValueError, match="weights of 10 points: give as many positive"):
            fit(compute, loss, weights=bad)


# --- a pinned floor


def test_a_pinned_floor_is_kept_and_said(rows: pd.DataFrame) -> None:
    for e in (0.0, 1.2):
        for found in (
            fit_frontier(Ladder.of(rows, e=e), resamples=200),
            fit_variable(Ladder.of(rows, variable="tokens", e=e), resamples=200),
            fit_surface(Ladder.of(rows, e=e), resamples=200),
            fit_surface(Ladder.of(rows, e=e), resamples=200, tied=True),
        ):
            assert found.law.e == e and "E" not in found.law.ci
            assert f"E = {e:g}, pinned: every interval is conditional on it" in found.summary()
            assert f"given E = {e:g}" in str(found.law)
            assert json.loads(json.dumps(found.to_json()))["law"]["given"] == {"E": e}
    free = fit_frontier(rows, resamples=200)
    assert "given" not in free.summary() and free.to_json()["law"]["given"] == {}


def test_a_floor_of_zero_is_the_pure_law(rows: pd.DataFrame) -> None:
    pinned = fit_frontier(Ladder.of(rows, e=0.0), resamples=200)
    pure = fit_frontier(rows, form="power", resamples=200)
    assert pinned.law.ci == pure.law.ci and pinned.law.form == "power"
    assert pinned.law.mixture is None


def test_at_its_own_best_floor_the_law_is_the_free_one() -> None:
    n, d, loss, weights = surface()
    given: list[dict[str, Any]] = [{}, {"weights": weights}, {"tied": True}]
    for options in [*given, {"loss_kind": "linear"}]:
        free = fit_parametric(n, d, loss, resamples=100, **options)
        kept = fit_parametric(n, d, loss, resamples=100, e=free.e, **options)
        assert (kept.alpha, kept.beta, kept.a, kept.b) == pytest.approx(
            (free.alpha, free.beta, free.a, free.b), rel=1e-4
        )
        assert np.ptp(kept.ci["alpha"]) < np.ptp(free.ci["alpha"])
    n, d, loss, _ = surface(noise=0.0)
    exact = fit_parametric(n, d, loss, e=FLOOR, resamples=100)
    assert (exact.alpha, exact.beta) == pytest.approx((0.34, 0.36), rel=1e-6)
    assert np.isnan(exact.ci["alpha"]).all() and exact.noise < 1e-5


def test_the_large_table_keeps_its_floor_too() -> None:
    n, d, loss, weights = surface(700)
    law = fit_parametric(n, d, loss, weights=weights, e=FLOOR, resamples=300)
    assert law.ci["alpha"][0] < 0.34 < law.ci["alpha"][1] and law.e == FLOOR
    assert law.samples[:, 0] == pytest.approx(np.log(FLOOR))
    bare = fit_parametric(n, d, loss, e=FLOOR, resamples=300)
    assert np.ptp(law.ci["alpha"]) < 0.8 * np.ptp(bare.ci["alpha"])


@pytest.mark.parametrize("e", [3.0, 99.0, -0.1, np.nan, np.inf])
def test_a_floor_that_is_none_is_refused(rows: pd.DataFrame, e: float) -> None:
    finds: list[Callable[..., Any]] = [fit_frontier, fit_surface, fit_variable]
    for find, variable in zip(finds, ("compute", "compute", "params"), strict=True):
        with pytest.raises(ValueError, match=r"E pinned at .* is not in \[0, .* pin it lower"):
            find(Ladder.of(rows, variable=variable, e=e))
    with pytest.raises(ValueError, match="pinned"):
        fit_parametric(*surface()[:3], e=e)
    with pytest.raises(ValueError, match="pinned"):
        fit(*points()[:2], e=e)


def test_a_pure_law_has_no_floor_to_pin(rows: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="a pure power law has no E, but E = 1"):
        fit_frontier(Ladder.of(rows, e=1.0), form="power")


def test_a_pinned_floor_takes_one_run_less() -> None:
    n, d, loss, _ = surface(6, noise=0.001)
    with pytest.raises(NotIdentified, match="5 distinct runs for 5 parameters"):
        fit_parametric(n[:5], d[:5], loss[:5], resamples=100)
    with pytest.raises(NotIdentified, match="4 distinct runs for 4 parameters"):
        fit_parametric(n[:4], d[:4], loss[:4], e=1.0, resamples=100)
