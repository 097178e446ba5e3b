"""Laws next to published laws and next to each other, with uncertainty and with what it means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtri

from scaling.analysis.laws.bootstrap import bca
from scaling.analysis.laws.power_law import PowerLaw
from scaling.analysis.laws.references import Reference
from scaling.analysis.schema import predicted
from scaling.errors import UserError

GRID, QUANTILES = 41, 400  # of log compute, of what a loss takes
BESIDE = 0.5  # decades around the data in which the compute of a loss is looked for


@dataclass(frozen=True)
class Comparison:
    """Exponent of `name` minus exponent of `other`, with the interval and the test of equality.

    Exponents have no unit and may be compared across units of compute and of loss; coefficients
    may not.
    """

    name: str
    other: str
    b: float
    b_other: float
    difference: float
    low: float
    high: float
    p_value: float
    p_least: float  # what so many resamples can tell from zero
    verdict: str  # what the test says
    conclusion: str  # the verdict, and what may and may not be concluded from it

    @property
    def brief(self) -> str:
        """One line: the numbers and the verdict."""
        sign = "<" if self.p_value <= self.p_least else "="
        return (
            f"{self.other}: exponent {self.b_other:+.4f}, difference {self.difference:+.4f} "
            f"[{self.low:+.4f}, {self.high:+.4f}], p {sign} {self.p_value:.2g}: {self.verdict}"
        )

    def __str__(self) -> str:
        rest = self.conclusion.removeprefix(self.verdict)
        return self.brief + rest


Slopes = tuple[float, float]  # d log L / d log C at the least and the most compute


def exponents(
    law: PowerLaw, other: PowerLaw | Reference, *, name: str = "this law",
    bends: Slopes | None = None, other_bends: Slopes | None = None,
) -> Comparison:  # fmt: skip
    """Test whether two exponents differ: their difference (dimensionless), its interval, its p.

    A published exponent without an interval is taken as exact, which the conclusion says. Two
    fitted laws are independent studies: their resamples are paired at random. bends, other_bends:
    slopes at the ends of a curve that is not straight, None for one that is. The one exponent of a
    pure law is then an average over its own data, and where the slopes of both overlap, none is
    called the steeper, however small p is.

    >>> from scaling import fit_points, published
    >>> compute, noise = np.geomspace(1e15, 1e18, 8), np.array([1, -1, 0, 1, -1, 0, 1, -1])
    >>> law = fit_points(compute, 9 * compute**-0.06 * np.exp(0.002 * noise), form="power")
    >>> found = exponents(law, published("gpt3"))
    >>> round(found.difference, 2), found.verdict
    (-0.01, 'here loss falls more steeply with compute')
    """
    samples = law.samples[:, 2]
    if isinstance(other, PowerLaw):
        label, b_other = f"{other.form} law over {other.decades:.1f} decades", other.b
        rng = np.random.default_rng(0)
        theirs = rng.choice(other.samples[:, 2], len(samples))
    else:
        label, b_other = other.name, other.b
        theirs = np.full(len(samples), other.b)
        if other.interval is not None:
            width = other.interval[1] - other.interval[0]
            quantiles = (np.random.default_rng(0).permutation(len(samples)) + 0.5) / len(samples)
            theirs = theirs + ndtri(quantiles) * width / (2 * ndtri(0.975))
    differences = samples - theirs
    difference = law.b - b_other
    low, high = bca(differences, difference, None, law.level)
    # Resamples spread around the estimate; shifted to zero they are the law of "no difference".
    null = differences - np.median(differences)
    tail = (np.abs(null) >= abs(difference)).sum() + 1
    p_value = float(tail / (len(null) + 1))
    return Comparison(
        name, label, law.b, b_other, float(difference), low, high, p_value, 1 / (len(null) + 1),
        *_verdict(law, other, low, high, bends, other_bends),
    )  # fmt: skip


CAVEAT = (
    "losses themselves are not comparable across data and tokenizers, and neither exponent says "
    "which model is better"
)
RANGES_DIFFER = 0.5  # decades between the ends of two laws' compute, above which it is said


def _variable(law: PowerLaw | Reference) -> str:
    """What the law is a law of: compute, parameters or tokens."""
    if isinstance(law, Reference):
        return law.x
    return law.unit if law.unit in ("parameters", "tokens") else "compute"


def _verdict(
    law: PowerLaw, other: PowerLaw | Reference, low: float, high: float,
    bends: Slopes | None, other_bends: Slopes | None,
) -> tuple[str, str]:  # fmt: skip
    """The verdict, and the conclusion that begins with it."""
    mine, theirs = _variable(law), _variable(other)
    if mine != theirs:
        verdict = f"not comparable, that is a law of {theirs}, this one of {mine}"
        return verdict, verdict
    if law.form != other.form:
        verdict = "not comparable, one exponent is above a floor E and the other is not"
        return verdict, (
            f"{verdict}; the local slope of a saturating law is its exponent times (1 - E/L), so "
            "it depends on the range"
        )
    if low <= 0 <= high:
        verdict = "not separated by these data"
    elif law.form == "power" and (overlap := _overlap(law, other, bends, other_bends)):
        verdict = overlap
    else:
        verdict = f"here loss falls {'more' if high < 0 else 'less'} steeply with {mine}"
    ranges = ""
    if isinstance(other, PowerLaw) and mine == "compute":
        ends = [(one.compute.min(), one.compute.max()) for one in (law, other)]
        if max(abs(np.log10(a / b)) for a, b in zip(*ends, strict=True)) > RANGES_DIFFER:
            ranges = (
                "; their ranges of compute differ ({:.2g} to {:.2g} here, {:.2g} to {:.2g} there), "
                "and where losses flatten the exponent does too"
            ).format(*ends[0], *ends[1])
    exact = isinstance(other, Reference) and other.interval is None
    taken = "; its own uncertainty is unpublished and taken as none" if exact else ""
    return verdict, f"{verdict}{ranges}{taken}; {CAVEAT}"


def _overlap(
    law: PowerLaw, other: PowerLaw | Reference, bends: Slopes | None, other_bends: Slopes | None
) -> str:
    """That neither of two curves, one of which bends, is steeper everywhere; empty where one is."""
    if bends is None and other_bends is None:
        return ""
    here, there = sorted(bends or (law.b, law.b)), sorted(other_bends or (other.b, other.b))
    if here[1] < there[0] or there[1] < here[0]:
        return ""
    said = [
        f"{turn[0]:.4f} to {turn[1]:.4f} {place}"
        for turn, place in ((bends, "here"), (other_bends, "there")) if turn is not None
    ]  # fmt: skip
    return (
        f"steeper or not depends on the {_variable(law)}: a curve that bends has a local exponent, "
        + " and ".join(said)
    )


def compute_multiplier(
    law: PowerLaw, other: PowerLaw, loss: float, *, level: float = 0.95
) -> tuple[float, float, float]:
    """Compute that `other` needs for `loss` over what `law` needs, with interval.

    Both laws must be of the same data, tokenizer and unit (checked for the unit only). Where a
    law's form was not asked for, its compute is that of all forms (laws/mixture.py): of two equal
    studies one may show its floor and the other not, and the pure law misses by more than its
    interval tells. Raises UserError when a law does not surely reach the loss.

    >>> from scaling import fit_points
    >>> compute, noise = np.geomspace(1e15, 1e18, 8), np.array([1, -1, 0, 1, -1, 0, 1, -1])
    >>> here = fit_points(compute, 9 * compute**-0.06 * np.exp(0.002 * noise), form="power")
    >>> there = fit_points(compute, 10 * compute**-0.06 * np.exp(0.002 * noise), form="power")
    >>> times, low, high = compute_multiplier(here, there, 0.8)
    >>> low < (10 / 9) ** (1 / 0.06) < high, round((10 / 9) ** (1 / 0.06), 2)
    (True, 5.79)
    """
    if law.unit != other.unit:
        raise UserError(f"units differ ({law.unit}, {other.unit}): convert one law first")
    ours, theirs = _log_compute(law, loss, level), _log_compute(other, loss, level)
    tails = (1 - level) / 2, 0.5, (1 + level) / 2
    if law.mixture is None and other.mixture is None:
        drawn = np.random.default_rng(0).permutation(theirs)[: len(ours)] - ours[: len(theirs)]
        estimate = _exact(other, loss) - _exact(law, loss)
        low, high = bca(drawn, estimate, None, level)
    else:  # quantiles of both, all pairs of them
        low, estimate, high = np.quantile((theirs[:, None] - ours).ravel(), tails)
    return float(np.exp(estimate)), float(np.exp(low)), float(np.exp(high))


def _exact(law: PowerLaw, loss: float) -> float:
    """Log compute at which the law itself is the loss."""
    if loss <= law.e or law.b >= 0:
        raise UserError(f"loss {loss:g} is not reached by {law}")
    return float(np.log((loss - law.e) / law.a) / law.b)


def _log_compute(law: PowerLaw, loss: float, level: float) -> np.ndarray:
    """What log compute the loss takes, as equally likely values: resamples, or QUANTILES of the
    mixture, whose loss at a compute is below `loss` as surely as no more than that is needed."""
    if law.mixture is None:
        _exact(law, loss)
        e, log_a, b = law.samples.T
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = np.where((loss > e) & (b < 0), (np.log(loss - e) - log_a) / b, np.nan)
        if np.isnan(draws).mean() > (1 - level) / 2:
            raise UserError(
                f"loss {loss:g} lies below the floor of {np.isnan(draws).mean():.0%} of the "
                "resamples: choose a loss that both laws surely reach"
            )
        return draws[~np.isnan(draws)] + law.centre
    low, high = np.log(law.compute.min()), np.log(law.compute.max())
    target = np.array([np.log(loss)])
    first, last = low - BESIDE * np.log(10), high + BESIDE * np.log(10)
    for _ in range(2):  # the second grid lies where the first leaves it open
        at = np.linspace(first, last, GRID)
        reached = [float(law.mixture.distribution(float(np.exp(x)))(target)[0]) for x in at]
        surely = np.maximum.accumulate(reached)
        below, above = np.searchsorted(surely, (1e-3, 1 - 1e-3))
        first, last = at[max(below - 1, 0)], at[min(above, GRID - 1)]
    if surely[0] > (1 - level) / 2 or surely[-1] < (1 + level) / 2:
        raise UserError(
            f"loss {loss:g} is not surely reached within {BESIDE:g} decades of the data, "
            f"{np.exp(low):.3g} to {np.exp(high):.3g} {law.unit}: choose a loss that both laws "
            "reach inside their data"
        )
    return np.interp((np.arange(QUANTILES) + 0.5) / QUANTILES, surely, at)


# What losses of one level share: column, and what differs where its values do.
LEVELS = {
    "tokenizer": "tokenizers", "vocab": "vocabularies", "data_key": "data", "data_mix": "data",
    "evaluated_on": "validation data", "context": "context lengths",
}  # fmt: skip
TOLD = ("tokenizer", "data_key")  # without these, nothing says that two tables share a level


def levels_differ(tables: Sequence[pd.DataFrame], *, parts_of_one: bool = False) -> str:
    """Why the levels of these tables' losses may not be compared; empty where they may.

    parts_of_one: they are groups of one table, and share what it has no column for.
    """
    if len(tables) < 2:
        return ""
    if not parts_of_one and any(c not in rows for rows in tables for c in TOLD):
        return "nothing tells whether the tables share tokenizer and data"
    differ = []
    for column, what in LEVELS.items():
        values = [set(rows[column].map(str)) for rows in tables if column in rows]
        if column == "tokenizer":
            values = [set(map(predicted, one)) for one in values]
        if any(one != values[0] for one in values[1:]):
            differ.append(what)
    return f"{' and '.join(dict.fromkeys(differ))} differ" if differ else ""
