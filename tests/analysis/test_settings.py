"""Settings swept with the rate: the best is seldom called worse, a clear difference is seen."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.questions.settings import compare
from scaling.analysis.questions.transfer import series_points
from scaling.analysis.schema import parsed, words

WIDTHS = (16, 32)


def swept(
    losses: dict[str, float],
    noise: float,
    *,
    seeds: int = 1,
    rates: tuple[float, ...] = (-8, -7, -6, -5, -4),
    rng: np.random.Generator | None = None,
    edge: float = 0.0,
) -> pd.DataFrame:
    """Rows of a sweep whose settings have these losses at their best rate, 2^-6.2; runs above
    2^`edge` diverge."""
    rng = rng or np.random.default_rng(0)
    rows = []
    for setting, best in losses.items():
        for width in WIDTHS:
            for seed in range(seeds):
                luck = rng.normal(0, noise)  # of the seed at this setting, whatever the rate
                for rate in rates:
                    loss = best + 10 / width + 0.05 * (rate + 6.2) ** 2 + rng.normal(0, noise)
                    loss += luck if seeds > 1 else 0.0
                    rows.append(
                        {"role": "lr_sweep", "run_id": f"{setting} {width} {seed} {rate}",
                         "steps": 100, "decayed": True, "parametrization": "mup", "layers": 2,
                         "size": f"{setting}-d{width}l2h2", "d": width, "log2_lr": rate,
                         "seed": seed, "val_loss": math.inf if rate > edge else loss,
                         "status": "diverged" if rate > edge else "finished"}
                    )  # fmt: skip
    return pd.DataFrame(rows)


def test_words_and_values() -> None:
    setting = (("batch", 8), ("weight_decay", 1e-05), ("beta2", 0.99))
    assert words(setting) == "batch=8,weight_decay=1e-05,beta2=0.99"
    assert parsed(words(setting)) == dict(setting)
    assert compare(swept({"gpt2": 3.0}, 0.0)) is None, "a shape is no setting"


def test_a_clear_difference_is_seen_and_the_rate_found() -> None:
    losses = {"beta2=0.9": 3.0, "beta2=0.99": 3.0002, "beta2=0.999": 3.2}
    found = compare(swept(losses, 0.002))
    assert found is not None and found.taken in ("beta2=0.9", "beta2=0.99")
    assert list(found.table.verdict) == ["taken", "not told apart", "worse"]
    assert found.table.above.iloc[2] == pytest.approx(0.2, abs=0.01)
    assert found.table.log2_lr.to_numpy() == pytest.approx([-6.2] * 3, abs=0.1)
    told = "\n".join(found.lines())
    assert "not told apart from 1 of the others" in told and "one seed" in told
    assert sorted(found.table["beta2"]) == [0.9, 0.99, 0.999]
    assert set(series_points(swept(losses, 0.002))["shape"]) == set(losses)


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.004)])
def test_the_best_setting_is_seldom_called_worse(seeds: int, spread: float) -> None:
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(80):
        losses = {f"beta2={k / 10}": 3.0 + spread * k for k in range(4)}
        found = compare(swept(losses, 0.01, seeds=seeds, rng=rng))
        assert found is not None
        best = found.table[found.table.setting == "beta2=0.0"].iloc[0]
        wrong += best.verdict == "worse"
    assert wrong <= 8, "5% of 80, and two standard errors"


def test_without_a_way_to_judge_nothing_is_judged() -> None:
    searched = pd.concat(
        [swept({f"beta2=0.9{k}": 3 + k / 10}, 0.0, rates=(-6 + k / 4,)) for k in range(4)]
    )
    found = compare(searched)
    assert found is not None and set(found.table.verdict) == {"taken", "not known"}
    assert "is not known; lr.seeds: 3 would tell" in "\n".join(found.lines())
    assert series_points(searched).empty, "one rate a setting is no series"
    one = compare(swept({"beta2=0.9": 3.0}, 0.0))
    assert one is not None and len(one.table) == 1


def test_divergence_is_the_worst() -> None:
    rows = pd.concat([swept({"beta2=0.9": 3.0}, 0.001), swept({"beta2=0.99": 2.0}, 0.001, edge=-9)])
    found = compare(rows)
    assert found is not None and found.taken == "beta2=0.9"
    assert found.table.val_loss.iloc[1] == math.inf and found.table.verdict.iloc[1] == "worse"
