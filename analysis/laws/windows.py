"""Each compute predicted from all smaller ones."""

from __future__ import annotations

import numpy as np

from scaling.analysis.laws.power_law import Holdout
from scaling.analysis.laws.resample import LARGE
from scaling.analysis.laws.solver import best, log_law

WINDOWS = 20  # at most so many held-out values of compute


def expanding_window(
    compute: np.ndarray, loss: np.ndarray, e: float | None = 0.0, *, delta: float,
    given: np.ndarray | None = None,
) -> tuple[Holdout, ...]:  # fmt: skip
    """Predict each distinct compute from all smaller ones: two or more for a law without a free E
    (which two points determine), four or more for one with it.

    compute, loss: (n,) sorted. e: 0 for the pure law, None for a free E, a number for a pin. given:
    (n,) weights of the points.
    """
    given = np.ones(len(loss)) if given is None else given
    free = 3 if e is None else 2
    tops = np.unique(compute)
    if len(tops) > WINDOWS:  # a cloud of runs: the windows end at evenly spaced quantiles
        tops = tops[np.linspace(0, len(tops) - 1, WINDOWS + 1).astype(int)[1:]]
    distinct = np.searchsorted(np.unique(compute), tops)  # values of compute below each top
    tops = tops[distinct > free - (free == 2)]
    x, y = np.log(compute) - np.log(compute).mean(), np.log(loss)
    below = [int(np.searchsorted(compute, top)) for top in tops]
    if not below:
        return ()
    if len(compute) <= LARGE:  # all windows at once, as weights of zero and one
        weights = (np.arange(len(x)) < np.array(below)[:, None]) * given
        thetas = best(x, np.tile(y, (len(below), 1)), weights, delta, e)[0]
    else:  # so many points that a window is worth its own, shorter arrays
        fits = [best(x[:k], y[None, :k], given[None, :k], delta, e)[0] for k in below]
        thetas = np.concatenate(fits)
    out = []
    for top, k, theta in zip(tops, below, thetas, strict=True):
        here = compute == top
        # A law of few windows may run away; e^100 is absurd enough, and finite.
        predicted = float(np.exp(np.clip(log_law(theta[None], x[here][:1])[0, 0], -100, 100)))
        actual = float(np.exp(np.average(y[here], weights=given[here])))
        out.append(Holdout(float(top), k, actual, predicted))
    return tuple(out)
