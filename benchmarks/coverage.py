"""Do 95% intervals cover 95% of the time? Simulated studies with known truth, by kind.

    python benchmarks/coverage.py [--studies 1000] [--kinds NAME ...]

Per kind and quantity: the share of intervals that hold the truth, the bias of the estimate in its
own standard deviations, the median width of the interval over that of an oracle (3.92 standard
deviations of the estimates), and the share of studies that were refused. The truth of a pure law
fitted to a curve that saturates is the line through the noise-free frontier of its budgets.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from scaling.analysis.laws.compare import compute_multiplier
from scaling.analysis.laws.fit import NotIdentified, fit
from scaling.analysis.laws.form_fit import fit_form
from scaling.analysis.laws.formulas import FORMS
from scaling.analysis.laws.power_law import PowerLaw
from scaling.analysis.questions.frontier import fit_frontier
from scaling.analysis.questions.isoflop import size_laws
from scaling.analysis.questions.parametric_study import fit_rows
from scaling.analysis.questions.simulate import (
    MACS_PER_PARAMETER_TOKEN,
    PURE,
    TRUTH,
    Truth,
    frontier_exponent,
    study,
)
from scaling.analysis.questions.size_law import METHODS, OF

Quantity = tuple[float, float, float, float]  # truth, estimate, low, high
Study = Callable[[int], dict[str, Quantity]]  # of a seed
Curve = Callable[[Any], Any]  # loss of compute, of a number or an array
RESAMPLES = 1000


def ladder(truth: Truth, **design: Any) -> Study:
    """A study of a ladder of sizes; the pure exponent of its frontier."""
    budgets = study(truth, **design)["budget_macs"].to_numpy()
    expected = frontier_exponent(truth, budgets)

    def one(seed: int) -> dict[str, Quantity]:
        rows = study(truth, seed=seed, **design)
        law = fit_frontier(rows, seed=seed, form="power", resamples=RESAMPLES).law
        return {"exponent": (expected, law.b, *law.ci["b"])}

    return one


def table(n: int, e: float, noise: float, decades: float, groups: int = 0) -> Study:
    """Points of a law of compute, independent or in runs that share half of the variance."""

    def one(seed: int) -> dict[str, Quantity]:
        rng = np.random.default_rng(seed)
        compute = 1e12 * np.geomspace(1, 10**decades, n)
        share = noise * np.sqrt(0.5) if groups else 0.0
        index = np.arange(n) * groups // n if groups else np.arange(n)
        shock = np.sqrt(noise**2 - share**2) * rng.standard_normal(n)
        shock += share * rng.standard_normal(n)[index]
        b = -0.17 if e else -0.045
        loss = (e + (1.0 if e else 2.6) * (compute / 1e12) ** b) * np.exp(shock)
        form = "saturating" if e else "power"
        law = fit(compute, loss, form=form, groups=index.tolist(), seed=seed, resamples=RESAMPLES)
        out = {"exponent": (b, law.b, *law.ci["b"])}
        if e:
            out["floor"] = (e, law.e, *law.ci["E"])
        ahead = law.predict(compute[-1] * 10)
        truth = e + (1.0 if e else 2.6) * (10 ** (decades + 1)) ** b
        out["a decade on"] = (truth, ahead.loss, ahead.low, ahead.high)
        return out

    return one


def ahead(curve: Curve) -> Study:
    """A curve of c = C / 1e15 at ten budgets from 1e16 to 1e19, noise .2%, whose form is not told;
    its loss at 1e20."""

    def one(seed: int) -> dict[str, Quantity]:
        budgets = np.geomspace(1e16, 1e19, 10)
        noise = 0.002 * np.random.default_rng(seed).standard_normal(10)
        law = fit(budgets, curve(budgets / 1e15) * np.exp(noise), seed=seed, resamples=100)
        there = law.predict(1e20)
        if there.refused:
            raise NotIdentified(there.refused)
        return {"a decade on": (float(curve(1e5)), there.loss, there.low, there.high)}

    return one


def broken(a: float, b: float, at: float, turn: float, e: float = 0.0) -> Curve:
    """E + a c^-b (1 + (C / at)^(1 / .3))^turn: steeper beyond `at` where turn < 0."""
    return lambda c: e + a * c**-b * (1 + (c * 1e15 / at) ** (1 / 0.3)) ** turn


def surface(truth: Truth, **design: Any) -> Study:
    """L(N, D) of a study's cells."""

    def one(seed: int) -> dict[str, Quantity]:
        rows = study(truth, seed=seed, **design)
        law = fit_rows(rows, seed=seed, loss_kind="huber", delta=0.01, resamples=RESAMPLES)
        size = truth.beta / (truth.alpha + truth.beta)
        best = law.optimum(1e15)
        return {
            "alpha": (truth.alpha, law.alpha, *law.ci["alpha"]),
            "beta": (truth.beta, law.beta, *law.ci["beta"]),
            "size exponent": (size, law.size_exponent, *law.ci["size_exponent"]),
            "loss at 1e15": (float(truth.frontier(np.array(1e15))), best.loss, *best.loss_interval),
        }

    return one


def repeating(noise: float) -> Study:
    """L(N, D, U) of six sizes at three amounts of data, passed over up to 40 times: its parameters,
    and the loss of ten times the largest size on four times the data."""
    form = FORMS["effective_data"]
    truth = {"E": 1.87, "A": 521.0, "alpha": 0.35, "B": 1488.0, "beta": 0.35, "R_D": 15.4}
    values = np.array([[truth[name] for name in form.names]])
    grid = np.meshgrid(np.geomspace(1e7, 3e8, 6), [1e8, 4e8, 1.6e9], [1, 2, 4, 8, 16, 40])
    n, unique, passes = (axis.ravel() for axis in grid)
    columns = {"N": n, "D": unique * passes, "U": unique}
    expected = form.value(columns, values)[0]
    there = {"N": 3e9, "D": 2.56e10, "U": 6.4e9}

    def one(seed: int) -> dict[str, Quantity]:
        loss = expected * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))
        law = fit_form(form, columns, loss, seed=seed, resamples=RESAMPLES)
        found = {k: (truth[k], law.values[k], *law.ci[k]) for k in form.names}
        ahead = law.predict(**there)
        beyond = float(form.value(there, values)[0, 0])
        return found | {"loss beyond": (beyond, ahead.loss, ahead.low, ahead.high)}

    return one


def best_sizes(truth: Truth, methods: Sequence[str] = tuple(METHODS), **design: Any) -> Study:
    """N* by the methods of questions/isoflop.py: the exponent, and in logs the value inside the
    budgets and a decade beyond them; and D* there. A method's refusals are missing quantities."""
    macs = np.unique(study(truth, **design)["budget_macs"])
    inside, beyond = float(np.sqrt(macs[0] * macs[-1])), 10 * float(macs[-1])

    def best(of: str, at: float) -> float:
        n = float(truth.n_opt(at))
        return n if of == "params" else at / (MACS_PER_PARAMETER_TOKEN * n)

    def one(seed: int) -> dict[str, Quantity]:
        rows = study(truth, seed=seed, **design)
        out = {}
        for law in size_laws(rows, seed=seed, resamples=RESAMPLES, methods=methods):
            if law.refused:
                continue
            places = [("beyond", beyond)]
            if law.of == "params":
                p = truth.beta / (truth.alpha + truth.beta)
                out[f"{law.method}: exponent"] = (p, law.exponent, *law.exponent_interval)
                places = [("inside", inside), *places]
            for where, at in places:
                values = np.log([best(law.of, at), float(law(at)), *law.interval(at)])
                out[f"{law.method}: {OF[law.of]} {where}"] = tuple(values)
        return out

    return one


def predictions(truth: Truth, *, named: bool = True, **design: Any) -> Study:
    """What a ladder's frontier predicts, the form not known: in logs, the loss of the best size
    between the two largest budgets and a decade beyond; and the compute that an equal study (of the
    next seed) needs for the loss in the middle, over what this one needs (1). named: the budgets
    are told; else the rows are a cloud of runs, and are read in bins of compute."""
    macs = np.unique(study(truth, **design)["budget_macs"])
    places = {"inside": float(np.sqrt(macs[-1] * macs[-2])), "beyond": 10 * float(macs[-1])}

    @lru_cache(maxsize=2)
    def law_of(seed: int) -> PowerLaw:
        rows = study(truth, seed=seed, **design)
        rows = rows if named else rows.assign(budget_macs=np.nan)
        return fit_frontier(rows, seed=seed, resamples=RESAMPLES).law

    def one(seed: int) -> dict[str, Quantity]:
        law, other = law_of(seed), law_of(seed + 1)
        out = {}
        for where, at in places.items():
            said = law.predict(at)
            if not said.refused:
                values = np.log([float(truth.frontier(at)), said.loss, said.low, said.high])
                out[f"loss {where}"] = tuple(values)
        try:
            middle = float(np.median(law.loss))
            out["multiplier"] = (0.0, *np.log(compute_multiplier(law, other, middle)))
        except ValueError:
            pass  # refused
        return out

    return one


def frontiers() -> dict[str, Study]:
    """Frontiers of many sizes a budget, of fixed ladders, of two sizes, of trunks, of clouds."""
    kinds = {}
    budgets = (np.geomspace(1e17, 1e20, 8) / 2).tolist()
    for noise in (0.002, 0.005, 0.01):
        single: dict[str, Any] = dict(budgets=budgets, run_noise=0.0, point_noise=noise)
        for sizes, factor in (
            (2, 2.0),
            (7, 3.0),
            (7, 10.0),
            (9, 3.0),
            (9, 10.0),
            (12, 3.0),
            (12, 10.0),
        ):
            kinds[f"frontier, {sizes} in {factor:g}x, {noise:.1%}"] = predictions(
                EPOCH, sizes=sizes, around=factor, **single
            )
        kinds[f"frontier, fixed 12, {noise:.1%}"] = predictions(
            EPOCH, sizes=np.geomspace(1e6, 3e9, 12).tolist(), reach=1e9, trunks=False, **single
        )
        kinds[f"frontier, cloud of 160, {noise:.1%}"] = predictions(
            EPOCH, named=False, sizes=4, around=10.0, run_noise=0.0, point_noise=noise,
            budgets=(np.geomspace(1e17, 1e20, 40) / 2).tolist(),
        )  # fmt: skip
        half: dict[str, Any] = dict(run_noise=noise / 2**0.5, point_noise=noise / 2**0.5)
        kinds[f"frontier, trunks 8 x 6, {noise:.1%}"] = predictions(
            TRUTH, sizes=8, budgets=6, **half
        )
    return kinds


def isoflops() -> dict[str, Study]:
    """Fixed ladders, budgets with sizes of their own around the optimum, and trunks."""
    kinds = {}
    some = tuple(method for method in METHODS if method != "L(N, D)")  # it has kinds of its own
    fixed = dict(sizes=np.geomspace(1e6, 3e9, 12).tolist(), reach=1e9, trunks=False, run_noise=0.0,
                 budgets=(np.geomspace(1e17, 1e20, 8) / 2).tolist())  # fmt: skip
    around = dict(budgets=(np.geomspace(1e18, 1e21, 6) / 2).tolist(), run_noise=0.0)
    for noise in (0.002, 0.005, 0.01):
        for name, truth in (("Epoch", EPOCH), ("Hoffmann", HOFFMANN)):
            kinds[f"sizes, fixed, {name}, {noise:.1%}"] = best_sizes(
                truth, point_noise=noise, **fixed
            )
            for sizes in (7, 9, 12):
                for factor in (3.0, 10.0):
                    kinds[f"sizes, {sizes} in {factor:g}x, {name}, {noise:.1%}"] = best_sizes(
                        truth, some, point_noise=noise, sizes=sizes, around=factor, **around
                    )
        half = dict(run_noise=noise / 2**0.5, point_noise=noise / 2**0.5)
        for sizes, budgets, decades in ((6, 5, 1.7), (8, 6, 1.7), (12, 8, 2.5)):
            kinds[f"sizes, trunks, {sizes} x {budgets}, {noise:.1%}"] = best_sizes(
                TRUTH, some, sizes=sizes, budgets=budgets, decades=decades, **half
            )
    return kinds


EPOCH = Truth(e=1.8172, a=477.83, alpha=0.34731, b=2143.42, beta=0.36717)
HOFFMANN = Truth(e=1.69, a=406.4, alpha=0.34, b=410.7, beta=0.28)
NOISE = dict(run_noise=0.002, point_noise=0.002)
KINDS: dict[str, Study] = {
    "ladder, independent noise": ladder(PURE, run_noise=0.0, point_noise=0.003),
    "ladder, trunks share noise": ladder(PURE, **NOISE),
    "ladder, mostly shared noise": ladder(
        PURE, sizes=8, budgets=6, run_noise=0.003, point_noise=0.001
    ),
    "ladder, one run per budget": ladder(
        PURE, sizes=7, budgets=6, trunks=False, run_noise=0.0, point_noise=0.003
    ),
    "ladder, saturating truth": ladder(TRUTH, **NOISE),
    "ladder, saturating, 5 x 4": ladder(TRUTH, sizes=5, budgets=4, **NOISE),
    "ladder, saturating, 8 x 6": ladder(TRUTH, sizes=8, budgets=6, **NOISE),
    "ladder, two seeds": ladder(TRUTH, seeds=2, **NOISE),
    "ladder, 5% outliers": ladder(PURE, outliers=0.05, **NOISE),
    "ladder, mistuned rates": ladder(PURE, mistuned=0.5, run_noise=0.001, point_noise=0.002),
    "table, 5 points": table(5, 0.0, 0.003, 1.7),
    "table, 8 points": table(8, 0.0, 0.003, 1.7),
    "table, 30 points": table(30, 0.0, 0.005, 2.0),
    "table, 24 points of 8 runs": table(24, 0.0, 0.005, 2.0, groups=8),
    "table, saturating, 12 points": table(12, 1.6, 0.001, 3.0),
    "table, saturating, 40 points": table(40, 1.6, 0.002, 3.0),
    # The form is not told; 2e19 lies beyond the data, where no break can be seen.
    "ahead, pure": ahead(lambda c: 8 * c**-0.06),
    "ahead, floor": ahead(lambda c: 2 + 6 * c**-0.12),
    "ahead, two powers": ahead(lambda c: 1.5 + 2 * c**-0.04 + 3 * c**-0.25),
    "ahead, steeper from 3e18": ahead(broken(8, 0.05, 3e18, -0.024, e=2)),
    "ahead, flatter from 1e18": ahead(broken(6, 0.08, 1e18, 0.015)),
    "ahead, pure, .03": ahead(lambda c: 3 * c**-0.03),
    "ahead, floor, .2": ahead(lambda c: 1.8 + 3 * c**-0.2),
    "ahead, two powers, .05 and .4": ahead(lambda c: 1 + 3 * c**-0.05 + 2 * c**-0.4),
    **{
        f"ahead, {word} from {at:.0e}": ahead(broken(a, b, at, turn, e))
        for word, a, b, turn, e in (("steeper", 8, 0.05, -0.024, 2), ("flatter", 6, 0.08, 0.015, 0))
        for at in (1e15, 3e16, 1e17, 3e17, 6e18, 1e19, 2e19)
    },
    "surface, 24 runs": surface(TRUTH, trunks=False, run_noise=0.0, point_noise=0.002),
    "surface, 60 runs": surface(
        TRUTH, sizes=10, budgets=8, decades=2.5, trunks=False, run_noise=0.0, point_noise=0.003
    ),
    **isoflops(),
    **frontiers(),
    "repeated data, 108 runs": repeating(0.002),
}  # fmt: skip


def run(one: Study, first_seed: int, studies: int) -> list[str]:
    """Lines of the table for one kind."""
    found: dict[str, list[Quantity]] = {}
    for seed in range(first_seed, first_seed + studies):
        try:
            for name, quantity in one(seed).items():
                found.setdefault(name, []).append(quantity)
        except NotIdentified:
            continue
    lines = []
    for name, quantities in found.items():
        truth, estimate, low, high = np.array(quantities).T
        covered = ((low <= truth) & (truth <= high)).mean()
        deviation = estimate.std()
        bias = (estimate - truth).mean() / deviation
        width = np.median(high - low) / (3.92 * deviation)
        lines.append(
            f"{name:28s} {covered:7.1%} {bias:+8.2f} {width:8.2f} "
            f"{1 - len(quantities) / studies:9.1%}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    options = parser.parse_args()
    print(f"{options.studies} studies of each kind, {RESAMPLES} resamples, 95% intervals")
    print(f"{'kind':32s}{'quantity':28s} covered  bias/sd    width   refused")
    for name in options.kinds:
        start = time.perf_counter()
        # Seeds of its own: kinds that shared theirs would be lucky or unlucky together.
        first_seed = 1_000_000 * (1 + list(KINDS).index(name))
        for line in run(KINDS[name], first_seed, options.studies):
            print(f"{name:32s}{line}", flush=True)
        print(f"{'':32s}({time.perf_counter() - start:.0f} s)", flush=True)
    exact = refused_exact(options.studies)
    print(f"three points, three parameters: refused {exact} of {options.studies}")


def refused_exact(studies: int) -> int:
    """A three-parameter fit to three points must be refused, every time."""
    count = 0
    for seed in range(studies):
        rng = np.random.default_rng(seed)
        compute = 1e12 * np.sort(10 ** rng.uniform(0, 3, 3))
        loss = np.sort(rng.uniform(1.5, 4, 3))[::-1]
        try:
            fit(compute, loss, form="saturating", resamples=100)
        except NotIdentified:
            count += 1
    return count


if __name__ == "__main__":
    main()
