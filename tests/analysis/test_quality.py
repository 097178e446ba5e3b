"""Accuracies over seeds with honest intervals, and their laws against compute."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.questions.frontier import StudyLaw
from scaling.analysis.questions.quality import (
    best_layers,
    davis_difference,
    difference,
    head_difference,
    over_seeds,
    probe_points,
    quality_laws,
)
from scaling.errors import UserError
from scaling.representations.learned import learned
from tests.report.conftest import simulated_rows


def test_interval_covers_under_overlapping_splits() -> None:
    """Splits of one set of 200 files: the corrected interval covers the true accuracy, the plain
    one does not. (Of a fixed rule, whose accuracy on a file is a coin of 0.7.)"""
    rng = np.random.default_rng(0)
    covered = plain = 0
    for _ in range(300):
        right = rng.random(200) < 0.7
        seeds = np.array([right[rng.permutation(200)[:50]].mean() for _ in range(10)])
        _, low, high = over_seeds(seeds, 150, 50, "drawn")
        covered += low <= 0.7 <= high
        half = 2.262 * seeds.std(ddof=1) / 10**0.5
        plain += abs(seeds.mean() - 0.7) <= half
    assert covered / 300 > 0.9 > 0.85 > plain / 300


def test_interval_of_one_seed_and_of_a_given_split() -> None:
    mean, low, high = over_seeds(np.array([0.5]), 300, 100, "drawn")
    assert mean == 0.5 and high - low == pytest.approx(2 * 1.96 * 0.05, rel=1e-3)
    _, low, high = over_seeds(np.full(5, 0.5), 300, 100, "given")
    assert high - low == pytest.approx(2 * 1.96 * 0.05, rel=1e-3)  # no spread: the test set's own
    assert over_seeds(np.array([1.0, 0.9]), 300, 10, "drawn")[2] == 1.0
    for split, files in (("given", 10), ("drawn", 20)):  # all right is not certain: Wilson
        _, low, high = over_seeds(np.ones(2), 30, 10, split)
        p, z2 = 1.0, 1.959964**2
        half = z2**0.5 * ((p * (1 - p) + z2 / (4 * files)) / files) ** 0.5 / (1 + z2 / files)
        assert low == pytest.approx(1 - half, abs=1e-6) and high == 1


def test_interval_covers_under_a_given_split() -> None:
    """One test set of 100 files and three heads that differ: both kinds of chance are covered."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        hard = rng.random(100)  # a file is right more often than not, or less
        seeds = np.array([(rng.random(100) < 0.4 + 0.6 * hard).mean() for _ in range(3)])
        _, low, high = over_seeds(seeds, 300, 100, "given")
        covered += low <= 0.7 <= high
    assert covered / 400 >= 0.95


def table(rows: pd.DataFrame, b: float = -0.1, noise: float = 0.0) -> pd.DataFrame:
    """Probes of the points of a simulated study: error 5 C^b at layer 2, worse elsewhere."""
    rng = np.random.default_rng(1)
    out = []
    for run in rows[rows.decayed & (rows.role == "ladder")].to_dict("records"):
        for weights, seed, layer in product(("trained", "random"), range(4), range(4)):
            error = 5 * run["macs_total"] ** b * (1.0 if layer == 2 else 1.1)
            error = 0.9 if weights == "random" else error * (1 + rng.normal(0, noise))
            spent = 0 if weights == "random" else run["macs_total"]
            out.append(
                {"run_id": run["run_id"], "study": "s", "size": run["size"], "layers": 3}
                | {
                    "params": run["params"],
                    "macs_total": spent,
                    "data": "pictures",
                    "family": "toto",
                }
                | {"data_key": "k", "head": "attention", "weights": weights}
                | {"layer": layer, "depth": layer / 3, "seed": seed, "split": "drawn"}
                | {"n_train": 300, "n_test": 100, "classes": 10, "frames": 1}
                | {"top1": 1 - error, "top5": 1 - error / 2}
                | {"chance": 0.1}
            )
    keys = ["run_id", "weights", "macs_total", "seed", "layer"]
    return pd.DataFrame(out).drop_duplicates(keys)


def test_points_best_layers_and_difference() -> None:
    probes = table(simulated_rows(), noise=0.01)
    points = probe_points(probes)
    assert len(points) == len(probes) / 4 and (points.low <= points.accuracy).all()
    best = best_layers(probes)
    trained = best[best.weights == "trained"]
    assert (trained.layer == 2).all() and trained.depth.iloc[0] == pytest.approx(2 / 3)
    (row,) = difference(probes).to_dict("records")
    assert 0 < row["low"] < row["difference"] < row["high"]


def test_heads_are_compared_on_trained_weights_by_seed() -> None:
    """Attention 0.1 above the average in every run and seed, the grid 0.2 and noisy."""
    average = table(simulated_rows()).assign(head="average")
    rng = np.random.default_rng(2)
    seeds = average.groupby("seed").ngroup()
    noise = rng.normal(0, 0.02, seeds.max() + 1)[seeds]
    random = 0.3 * (average.weights == "random")  # must not count
    parts = [
        average.assign(top1=average.top1 - 0.3),
        average.assign(head="attention", top1=average.top1 - 0.2 + random),
        average.assign(head="grid", top1=average.top1 - 0.1 + noise),
    ]
    found = head_difference(pd.concat(parts)).set_index("head")
    assert list(found.index) == ["attention", "grid"]
    sure, unsure = found.loc["attention"], found.loc["grid"]
    assert sure.difference == pytest.approx(0.1) and sure.low == pytest.approx(sure.high)
    assert unsure.low < 0.2 < unsure.high and unsure.high - unsure.low > 0.02
    assert head_difference(average).empty  # one head is compared with nothing


def test_best_layer_is_not_chosen_on_what_it_is_scored_on() -> None:
    """Layers that are all alike: the maximum over layers is above their accuracy, ours is not."""
    rng = np.random.default_rng(0)
    rows = table(simulated_rows())
    rows = rows[rows.run_id == rows.run_id.iloc[0]]
    gain, naive = [], []
    for _ in range(200):
        noisy = rows.assign(top1=0.5 + rng.normal(0, 0.05, len(rows)))
        gain.append(best_layers(noisy).accuracy.mean() - 0.5)
        naive.append(noisy.groupby(["weights", "seed"]).top1.max().mean() - 0.5)
    assert abs(np.mean(gain)) < 0.01 and np.mean(naive) > 0.04


def test_law_of_errors() -> None:
    rows = simulated_rows()
    ((name, law),) = quality_laws(rows, table(rows, noise=0.01), "probe_top1")
    assert name == "1 - probe_top1 on pictures, attention head"
    assert isinstance(law, StudyLaw) and law.pure.ci["b"][0] < -0.1 < law.pure.ci["b"][1]
    assert "GPT-3" not in law.summary(published=False)
    one = table(rows)
    few = one[one.macs_total.isin(sorted(one.macs_total.unique())[:3])]
    ((_, refusal),) = quality_laws(rows, few, "probe_top1")
    assert isinstance(refusal, NotIdentified)


def test_tracking_is_compared_by_sequence() -> None:
    """Sequences that differ more than the features do; each side at its best layer."""
    ease = {"camel": 0.8, "kite": 0.3, "swan": 0.5}
    gain = {"camel": 0.1, "kite": 0.12, "swan": 0.14}
    rows = [
        {"run_id": run, "size": "t64", "params": 1e5, "layers": 1, "macs_total": macs}
        | {"weights": weights, "layer": layer, "depth": layer, "sequence": name, "object": 1}
        | {f"{m}_{s}": level + gain[name] * (weights == "trained") - 0.2 * (layer == worse)
           for m in "jf" for s in ("mean", "recall", "decay")}
        for run, weights, macs, worse in (("0a", "trained", 1e12, 0), ("0a", "random", 0.0, 1),
                                          (None, "pixels", None, 1))
        for layer in range(2 if run else 1)
        for name, level in ease.items()
    ]  # fmt: skip
    found = davis_difference(pd.DataFrame(rows)).set_index("against")
    assert set(found.index) == {"random", "pixels"} and set(found.sequences) == {3}
    assert found.difference.to_list() == pytest.approx([0.12, 0.12])
    half = 4.303 * 0.02 / 3**0.5
    assert found.high.iloc[0] - 0.12 == pytest.approx(half, rel=1e-3)


def test_mistakes(tmp_path: Path) -> None:
    rows = simulated_rows()
    with pytest.raises(UserError, match=r"metric 'top1': choose one of probe_top1"):
        learned(tmp_path).laws("top1", rows=rows)
    with pytest.raises(UserError, match=r"has no davis.csv; `scaling davis .*` makes it"):
        learned(tmp_path).laws("davis_jf", rows=rows)
    (tmp_path / "probes.csv").write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        learned(tmp_path).laws(rows=rows)
    (tmp_path / "probes.csv").write_text("run_id,top1\n0a1b,0.5\n")
    with pytest.raises(UserError, match=r"no column data_key: an older version wrote it; remove"):
        learned(tmp_path).laws(rows=rows)


def test_data_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Two folders called `pictures`: each has its own law, figure and row."""
    rows = simulated_rows()
    one, other = table(rows), table(rows, b=-0.2).assign(data_key="other")
    pd.concat([one, other]).to_csv(tmp_path / "probes.csv", index=False)
    found = learned(tmp_path).laws(rows=rows, resamples=100)
    assert list(found) == [
        f"1 - probe_top1 on pictures ({key}), attention head" for key in ("k", "other")
    ]
    slopes = [law.pure.b for law in found.values() if isinstance(law, StudyLaw)]
    assert slopes == pytest.approx([-0.1, -0.2], abs=0.01)
    assert len(learned(tmp_path).layer_figures()) == 2
