"""What a study's models are good for, against compute: probe accuracies, tracking.

Of the tables that `scaling probe` and `scaling davis` write into the study's folder.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from scaling.analysis.laws.fit import RESAMPLES, NotIdentified
from scaling.analysis.questions.frontier import StudyLaw, fit_frontier
from scaling.errors import UserError

LEVEL = 0.95
Z = float(ndtri(0.5 + LEVEL / 2))
METRICS = {"probe_top1": "probes", "probe_top5": "probes", "davis_jf": "davis"}  # tables they need
DAVIS_KINDS = ("data", "protocol", "rows")  # of one of each a mean may be taken
RUN = ["run_id", "size", "params", "layers", "macs_total", "weights"]


def over_seeds(
    values: np.ndarray, n_train: float, n_test: float, split: str
) -> tuple[float, float, float]:
    """Mean accuracy over seeds, and the ends of its 95% interval.

    Where seeds draw the split, training sets overlap and the variance over seeds is too small:
    s^2 (1/J + n_test / n_train), Nadeau and Bengio 2003. A given split has one test set, whose
    own sampling is added to that of the heads, s^2 / J. One seed alone has the sampling of its
    test set. Seeds that agree (all right, all wrong) leave the sampling of all files tested.
    """
    values = np.asarray(values, float)
    mean = float(values.mean())
    half = half_width(values, n_train, n_test, split, variance_over_files(mean, n_test))
    tested = min(len(values) * n_test, n_train + n_test) if split == "drawn" else n_test
    half = max(half, Z * variance_over_files(mean, tested) ** 0.5)
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def variance_over_files(accuracy: float, n: float) -> float:
    """Variance of an accuracy by the choice of its n test files: p (1 - p) / n, or that of
    Wilson's interval (1927) where it is larger: near 0 and 1, where p (1 - p) is too small."""
    plain = accuracy * (1 - accuracy)
    return max(plain, (plain + Z**2 / (4 * n)) / (1 + Z**2 / n) ** 2) / n


def half_width(
    values: np.ndarray, n_train: float, n_test: float, split: str, sampling: float
) -> float:
    """Half of the 95% interval of a mean over seeds, as `over_seeds` says.

    sampling: the mean's variance by the choice of the test files.
    """
    seeds = len(values)
    shared = float(Z * sampling**0.5)
    if seeds == 1:
        return shared
    s2, quantile = float(values.var(ddof=1)), float(stdtrit(seeds - 1, 0.5 + LEVEL / 2))
    if split == "drawn":
        return float(quantile * (s2 * (1 / seeds + n_test / n_train)) ** 0.5)
    return float(np.hypot(quantile * (s2 / seeds) ** 0.5, shared))


def scored_by_others(values_SL: np.ndarray) -> np.ndarray:
    """Of seeds by layers: each seed's value at the layer that the other seeds like best.

    So the maximum over layers is not taken on the files that it is reported on; of one seed it is.
    """
    if len(values_SL) == 1:
        return values_SL[:, values_SL[0].argmax()]
    others = np.round(values_SL.sum(0) - values_SL, 9)  # so that equal layers stay equal
    scored: np.ndarray = values_SL[np.arange(len(values_SL)), others.argmax(1)]
    return scored


def probe_points(table: pd.DataFrame, metric: str = "top1") -> pd.DataFrame:
    """One row per (data, head, run, weights, layer): the mean over seeds and its interval.

    Returns the columns data, head, RUN, layer, depth, accuracy, low, high, chance, seeds.
    """
    rows = []
    keys = ["data", "data_key", "head", *RUN, "layer", "depth"]
    for key, g in table.groupby(keys, sort=False):
        mean, low, high = over_seeds(
            g[metric].to_numpy(), g.n_train.mean(), g.n_test.mean(), g.split.iloc[0]
        )
        found = {"accuracy": mean, "low": low, "high": high}
        more = {"chance": g.chance.mean(), "seeds": g.seed.nunique()}
        rows.append(dict(zip(keys, key, strict=True)) | found | more)
    points = pd.DataFrame(rows)
    return points.sort_values(["data", "data_key", "head", "params", "run_id", "weights", "layer"])


def best_layers(table: pd.DataFrame, metric: str = "top1") -> pd.DataFrame:
    """One row per (data, head, run, weights): the best layer's accuracy, free of its choice.

    Each seed is scored at the layer that the other seeds like best, so that the maximum over
    layers is not taken on the files that it is reported on. `layer` is the best of all seeds.
    """
    rows = []
    keys = ["data", "data_key", "head", *RUN]
    for key, g in table.groupby(keys, sort=False):
        scored, layer = _by_seed(g, metric)
        mean, low, high = over_seeds(
            scored.to_numpy(), g.n_train.mean(), g.n_test.mean(), g.split.iloc[0]
        )
        rows.append(
            dict(zip(keys, key, strict=True))
            | {"layer": layer, "depth": layer / g.layers.iloc[0], "accuracy": mean}
            | {"low": low, "high": high, "chance": g.chance.mean(), "seeds": len(scored)}
        )
    points = pd.DataFrame(rows)
    return points.sort_values(["data", "data_key", "head", "weights", "macs_total", "params"])


def _by_seed(g: pd.DataFrame, metric: str) -> tuple[pd.Series, int]:
    """Each seed's score at the layer that the other seeds like best; the best layer of all."""
    wide = g.pivot(index="seed", columns="layer", values=metric)
    values = wide.to_numpy(float)
    scored = pd.Series(scored_by_others(values), wide.index)
    return scored, int(wide.columns[values.mean(0).argmax()])


def difference(table: pd.DataFrame, metric: str = "top1") -> pd.DataFrame:
    """Trained minus random weights, per (data, head): the run's last point, at its best layer.

    Returns the columns data, data_key, head, difference, low, high, runs.
    """
    keys = ["data", "data_key", "head"]
    return _differences(_last(table), keys, "weights", [("trained", "random")], metric)


def head_difference(table: pd.DataFrame, metric: str = "top1") -> pd.DataFrame:
    """Attention and grid heads minus average pooling (Table 5), of trained weights' last points.

    Returns the columns data, data_key, head, difference, low, high, runs.
    """
    last = _last(table[table.weights == "trained"])
    pairs = [("attention", "average"), ("grid", "average")]
    return _differences(last, ["data", "data_key"], "head", pairs, metric)


def _last(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of each run's last point, and of its random weights."""
    keys = ["data_key", "head", "run_id", "weights"]
    return table[table.macs_total == table.groupby(keys).macs_total.transform("max")]


def _differences(
    table: pd.DataFrame, keys: list[str], by: str, pairs: list[tuple[str, str]], metric: str
) -> pd.DataFrame:
    """Of each group of `keys`: the score where `by` is the first of a pair less that at the second.

    Pairs are of one run, seed and split; layers are chosen as in `best_layers`. Averaged over runs
    within a seed, the interval is over seeds, with `over_seeds`' correction; of a given split both
    sides' sampling of the test set is added as if independent, too wide rather than too narrow.
    """
    rows = []
    for key, g in table.groupby(keys, sort=False):
        scored = {run: _by_seed(one, metric)[0] for run, one in g.groupby([by, "run_id"])}
        for first, second in pairs:
            runs = [
                run for run in g.run_id.unique() if {(first, run), (second, run)} <= set(scored)
            ]
            if not runs:
                continue
            apart = [scored[first, run] - scored[second, run] for run in runs]
            values = pd.concat(apart, axis=1).dropna().mean(axis=1).to_numpy()
            mean = float(values.mean())
            share = np.array([scored[side, run].mean() for side in (first, second) for run in runs])
            sampling = 2 * (share * (1 - share)).mean() / g.n_test.mean()
            half = half_width(values, g.n_train.mean(), g.n_test.mean(), g.split.iloc[0], sampling)
            found = {"difference": mean, "low": mean - half, "high": mean + half, "runs": len(runs)}
            rows.append(dict(zip([*keys, by], [*key, first], strict=True)) | found)
    columns = [*dict.fromkeys([*keys, by]), "difference", "low", "high", "runs"]
    return pd.DataFrame(rows, columns=columns)


def table_of(metric: str) -> str:
    """The table that the laws of a metric are fitted to. Raises UserError: no such metric."""
    if metric not in METRICS:
        raise UserError(f"metric '{metric}': choose one of {', '.join(METRICS)}")
    return METRICS[metric]


def quality_laws(
    rows: pd.DataFrame,
    table: pd.DataFrame,
    metric: str,
    *,
    seed: int = 0,
    form: str = "select",
    resamples: int = RESAMPLES,
) -> list[tuple[str, StudyLaw | NotIdentified]]:
    """Laws error = a C^b (+ floor) of what a study's models are good for; or why there is none.

    Args:
        rows: of the study.
        table: the rows of its probes or of its tracking, as `table_of` says.
        metric: "probe_top1", "probe_top5" (error = 1 - accuracy of the best layer) or "davis_jf"
            (1 - J&F of the best layer).
        seed, form, resamples: as of `fit_frontier`.
    Returns:
        (name, law) of each data set and head, each fitted as the loss is (`fit_frontier`), to the
        decayed points that were probed.
    Raises:
        UserError: another metric.
    """
    return [
        (name, _law(one, seed, form, resamples)) for name, one in errors_of(rows, table, metric)
    ]


def errors_of(
    rows: pd.DataFrame, table: pd.DataFrame, metric: str
) -> list[tuple[str, pd.DataFrame]]:
    """A study's decayed points with an error in place of their loss, of each data set and head.

    rows, table, metric: as of `quality_laws`. Returns (name, frame), a frame of the rows' columns,
    with `loss` (the run's own, nats) and `chance` (the error of the most frequent class; NaN where
    there is none).
    """
    table_of(metric)
    if metric == "davis_jf":
        parts = [
            davis_best(one).assign(
                data=f"DAVIS {data}, {protocol}, {rows_of} rows", data_key="", head="",
                chance=np.nan,
            )
            for (data, protocol, rows_of), one in table.groupby(list(DAVIS_KINDS))
        ]  # fmt: skip
        best = pd.concat(parts).rename(columns={"jf": "accuracy"})
    else:
        best = best_layers(table, metric.removeprefix("probe_"))
    decayed = rows[rows.decayed]
    out = []
    trained = best[best.weights == "trained"]
    for (data, _, head), g in trained.groupby(["data", "data_key", "head"], sort=False):
        name = f"1 - {metric} on {data}" + f", {head} head" * bool(head)
        error = g[["run_id", "macs_total"]].assign(
            val_loss=1 - g.accuracy,
            chance=1 - g.chance if metric == "probe_top1" else np.nan,
        )  # fmt: skip
        joined = decayed.rename(columns={"val_loss": "loss"})
        joined = joined.merge(error, on=["run_id", "macs_total"])
        joined["train_loss"] = np.nan  # nats, which an error is not compared with
        out.append((name, joined))
    return out


def _law(rows: pd.DataFrame, seed: int, form: str, resamples: int) -> StudyLaw | NotIdentified:
    try:
        return fit_frontier(rows, seed=seed, form=form, resamples=resamples)
    except NotIdentified as refusal:
        return refusal


def davis_points(table: pd.DataFrame) -> pd.DataFrame:
    """One row per (run, weights, layer): means over objects, with an interval over sequences.

    table: rows of one of `DAVIS_KINDS`.
    """
    rows = []
    keys = [*RUN, "layer", "depth"]
    for key, g in table.groupby(keys, sort=False, dropna=False):
        by_sequence = ((g.j_mean + g.f_mean) / 2).groupby(g.sequence).mean().to_numpy()
        half = np.nan
        if len(by_sequence) > 1:
            spread = by_sequence.std(ddof=1) / len(by_sequence) ** 0.5
            half = float(stdtrit(len(by_sequence) - 1, 0.5 + LEVEL / 2) * spread)
        means = (
            g[["j_mean", "j_recall", "j_decay", "f_mean", "f_recall", "f_decay"]].mean().to_dict()
        )
        jf = (means["j_mean"] + means["f_mean"]) / 2
        rows.append(
            dict(zip(keys, key, strict=True)) | means
            | {"jf": jf, "low": np.clip(jf - half, 0, 1), "high": np.clip(jf + half, 0, 1)}
            | {"sequences": len(by_sequence)}
        )  # fmt: skip
    return pd.DataFrame(rows).sort_values(["params", "run_id", "weights", "layer"])


def davis_best(table: pd.DataFrame) -> pd.DataFrame:
    """The best layer of each run and weights, by J&F."""
    points = davis_points(table)
    best = points.loc[points.groupby(["run_id", "weights", "macs_total"], dropna=False).jf.idxmax()]
    return best.sort_values(["weights", "macs_total", "params"])


def davis_difference(table: pd.DataFrame) -> pd.DataFrame:
    """J&F of trained weights less that of random weights and of pixels, each at its best layer.

    Trained: the last point of the run of most compute. Pairs of one sequence; the interval is over
    sequences. table: rows of one of `DAVIS_KINDS`.
    Returns the columns against, difference, low, high, sequences.
    """
    best = davis_best(table)
    trained = best[best.weights == "trained"].iloc[-1]
    keys = ["run_id", "weights", "macs_total", "layer"]
    jf = table.assign(jf=(table.j_mean + table.f_mean) / 2)

    def by_sequence(row: pd.Series) -> pd.Series:
        same = ((jf[keys] == row[keys]) | (jf[keys].isna() & row[keys].isna())).all(axis=1)
        return jf[same].groupby("sequence").jf.mean()

    rows = []
    for against in ("random", "pixels"):
        others = best[best.weights == against]
        others = others[others.run_id.isna() | (others.run_id == trained.run_id)]
        if others.empty:
            continue
        values = (by_sequence(trained) - by_sequence(others.iloc[-1])).dropna().to_numpy()
        half = np.nan
        if len(values) > 1:
            spread = values.std(ddof=1) / len(values) ** 0.5
            half = float(stdtrit(len(values) - 1, 0.5 + LEVEL / 2) * spread)
        mean = float(values.mean())
        rows.append(
            {"against": against, "difference": mean, "low": mean - half, "high": mean + half}
            | {"sequences": len(values)}
        )
    return pd.DataFrame(rows)
