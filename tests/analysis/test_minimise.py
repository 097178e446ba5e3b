"""The batched solver: published minimum, bounds, rows of their own, models without a value."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares

from scaling.analysis.laws.expression import parse
from scaling.analysis.laws.minimise import CONVERGED, Model, minimise
from scaling.analysis.laws.solver import huber

BY = ("E", "A", "alpha", "B", "beta")
LOW, HIGH = np.zeros(5), np.array([10, 1e9, 3, 1e9, 3.0])


def surface(n: np.ndarray, d: np.ndarray) -> Model:
    law = parse("E + A / N^alpha + B / D^beta")

    def model(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        named = {name: theta[:, i : i + 1] for i, name in enumerate(BY)}
        values, slopes = law.derivatives({"N": n, "D": d, **named}, BY)
        return np.log(values), slopes / values[..., None]

    return model


def starts(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    log_a, log_b = rng.uniform(0, 15, (2, count))
    alpha, beta = rng.uniform(0.1, 1, (2, count))
    return np.stack([rng.uniform(0, 3, count), np.exp(log_a), alpha, np.exp(log_b), beta], 1)


def test_published_minimum_from_many_starts(shared_data: Path) -> None:
    """Epoch's refit of Hoffmann et al. (2404.10102) to its 240 points, coefficients as they are."""
    path = shared_data / "scaling_tables" / "chinchilla_epoch_svg_extracted.csv"
    table = pd.read_csv(path)
    n, loss = table["Model Size"].to_numpy(), table["loss"].to_numpy()
    d = table["Training FLOP"].to_numpy() / 6 / n
    kept = np.argsort(d / n, kind="stable")[5:]
    model, y = surface(n[kept], d[kept]), np.log(loss[kept])
    reached = minimise(model, y, np.ones(len(y)), 1e-3, starts(64), LOW, HIGH)
    best = int(reached.objective.argmin())
    assert reached.gradient[best] < CONVERGED
    assert reached.objective[best] == pytest.approx(1.018274018e-3, rel=1e-8)
    assert reached.theta[best] == pytest.approx([1.81722, 477.83, 0.34731, 2143.42, 0.36717], 1e-5)
    assert (reached.objective < reached.objective[best] * (1 + 1e-6)).sum() >= 16


def test_least_squares_as_scipy() -> None:
    rng = np.random.default_rng(1)
    n, d = 10 ** rng.uniform(7, 10, 40), 10 ** rng.uniform(9, 11, 40)
    model = surface(n, d)
    truth = np.array([[1.7, 400, 0.34, 1500, 0.36]])
    y = model(truth)[0][0] + 0.01 * rng.standard_normal(40)
    reached = minimise(model, y, np.ones(40), np.inf, truth, LOW, HIGH)
    other = least_squares(
        lambda t: model(t[None])[0][0] - y, truth[0], x_scale="jac", xtol=1e-14, ftol=1e-14,
        gtol=1e-14,
    )  # fmt: skip
    assert reached.theta[0] == pytest.approx(other.x, rel=1e-5)
    assert reached.objective[0] == pytest.approx(other.cost, rel=1e-10)


def test_a_parameter_rests_on_its_bound_and_leaves_it() -> None:
    x = np.linspace(1, 4, 12)

    def line(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slopes = np.stack([np.ones_like(x), x], 1)
        return theta @ slopes.T, np.broadcast_to(slopes, (len(theta), *slopes.shape))

    low, high = np.array([0.0, -np.inf]), np.array([np.inf, 0.8])
    first = np.array([[5.0, 0.0], [0.0, 0.8]])
    ones = np.ones(12)
    down = minimise(line, 0.5 * x - 1, ones, np.inf, first, low, high)
    assert (down.theta[:, 0] == 0).all() and down.at_bound.tolist() == [[True, False]] * 2
    assert down.theta[:, 1] == pytest.approx((x @ (0.5 * x - 1)) / (x @ x))
    assert (down.gradient < CONVERGED).all()
    # from the corner where both rest to a minimum inside
    inside = minimise(line, 0.5 * x + 1, ones, np.inf, first, low, high)
    assert inside.theta == pytest.approx(np.array([[1, 0.5], [1, 0.5]]))
    assert not inside.at_bound.any()


def test_each_row_has_its_own_losses_and_weights() -> None:
    rng = np.random.default_rng(2)
    n, d = 10 ** rng.uniform(7, 10, 30), 10 ** rng.uniform(9, 11, 30)
    model, truth = surface(n, d), np.array([1.7, 400, 0.34, 1500, 0.36])
    y = model(truth[None])[0] + 0.01 * rng.standard_normal((6, 30))
    weights = rng.integers(0, 3, (6, 30)).astype(float)
    together = minimise(model, y, weights, 0.01, np.tile(truth, (6, 1)), LOW, HIGH)
    for i in range(6):
        one = minimise(model, y[i], weights[i], 0.01, truth[None], LOW, HIGH)
        assert one.theta[0] == pytest.approx(together.theta[i], rel=1e-6)
        r = y[i] - model(together.theta[i : i + 1])[0][0]
        assert together.objective[i] == pytest.approx(weights[i] @ huber(r, 0.01))


def test_a_model_without_a_value_is_not_followed() -> None:
    x = np.linspace(0.1, 1, 9)

    def model(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inner = theta - x  # (R, n): the logarithm of what may be negative
        return np.log(inner), (1 / inner)[..., None]

    y = np.log(1.5 - x)
    reached = minimise(model, y, np.ones(9), 0.1, np.array([[1.01], [9.0], [0.5]]),
                       np.array([-np.inf]), np.array([np.inf]))  # fmt: skip
    assert reached.theta[:2, 0] == pytest.approx(1.5)
    assert np.isinf(reached.objective[2]) and reached.theta[2, 0] == 0.5
