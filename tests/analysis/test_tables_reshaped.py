"""Tables whose rows are no runs: curves in cells, a row for each number, runs side by side, records
deep inside of JSON."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from scaling.analysis.tables import read
from scaling.errors import UserError
from tests.analysis.base_runs import same_runs
from tests.analysis.test_tables_lines import PLAIN, D, L, N

WIDE = PLAIN.assign(train_loss=0.97 * L)
RECORDS = PLAIN.to_dict("records")
CURVES = PLAIN.assign(
    tokens=pd.Series([[d / 4, d / 2, d] for d in D], dtype=object),
    val_loss=pd.Series([[1.2 * x, 1.1 * x, x] for x in L], dtype=object),
)


def long(key: str, value: str, run: str, once: bool = True) -> pd.DataFrame:
    """Metrics as trackers keep them; once: counts are written at the first step alone."""
    rows = []
    for name, n, d, loss in zip(PLAIN["run_id"], N, D, L, strict=True):
        for step, share in ((100, 2), (200, 1)):
            rows += [(name, "val_loss", loss * share, step), (name, "tokens", d / share, step)]
            rows += [(name, "n_params", n, step)] if step == 100 or not once else []
    return pd.DataFrame(rows, columns=[run, key, value, "step"])


TABLES: dict[str, Any] = {
    "melted": WIDE.melt(id_vars=["run_id", "params", "tokens"]),
    "mlflow": long("key", "value", "run_uuid").assign(is_nan=False),
    "comet": long("metricName", "metricValue", "experimentKey", once=False),
    "aim": long("metric.name", "value", "run.hash"),
    "side by side": WIDE.set_index("run_id").T.reset_index(names="metric"),
    "side by side, the index unnamed": WIDE.set_index("run_id").T.reset_index(names=""),
    "curves": CURVES,
    "two lines of names": "params,tokens,val_loss,val_loss\n,,mean,std\n"
    + "".join(f"{n},{d},{x},0.01\n" for n, d, x in zip(N, D, L, strict=True)),
    "vega-lite": {"$schema": "v5", "data": {"values": RECORDS}, "mark": "point", "encoding": {}},
    "altair": {"data": {"name": "d1"}, "datasets": {"d1": RECORDS}, "config": {"view": {}}},
    "histories": [
        {"run_id": name, "n_params": n, "history": [
            {"tokens": d / 2, "val": {"loss": 1.1 * x}}, {"tokens": d, "val": {"loss": x}}]}
        for name, n, d, x in zip(PLAIN["run_id"], N, D, L, strict=True)
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
def test_tables_whose_rows_are_no_runs(kind: str, tmp_path: Path) -> None:
    table = TABLES[kind]
    path = tmp_path / ("t.csv" if isinstance(table, pd.DataFrame | str) else "t.json")
    if isinstance(table, pd.DataFrame):
        table.to_csv(path, index=False)
    else:
        path.write_text(table if isinstance(table, str) else json.dumps(table))
    same_runs(read(path)[0])
    if isinstance(table, pd.DataFrame):
        same_runs(read(table)[0])


def test_curves_without_a_name_are_each_a_run() -> None:
    rows, notes = read(CURVES.drop(columns="run_id"))
    same_runs(rows)
    assert any("curves in cells of 'tokens', 'val_loss'" in note for note in notes)


def test_other_lists_in_cells_mean_nothing() -> None:
    betas = pd.Series([[0.9, 0.95]] * 30, dtype=object)
    same_runs(read(PLAIN.assign(betas=betas, tags=pd.Series([["a"]] * 29 + [None])))[0])


def test_a_name_that_stands_twice_is_asked_about() -> None:
    table = TABLES["melted"]
    with pytest.raises(UserError, match="twice in rows that are otherwise alike"):
        read(pd.concat([table, table.assign(value=table["value"] + 1)]))
    same_runs(read(table[table["variable"] == "val_loss"], loss="value")[0])
