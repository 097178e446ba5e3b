"""Layouts and files of tables as people bring them, published ones and the tool's own rows."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.questions.frontier import fit_frontier
from scaling.analysis.tables import read
from tests.analysis.base_runs import BASE, KEPT, LOST, PLAIN, same_runs

# --- layouts ----------------------------------------------------------------------------------


def test_losses_by_size_and_budget() -> None:
    wide = BASE.assign(dim=np.tile([f"d{w}" for w in (512, 640, 768, 896, 1024, 1152)], 5))
    wide = wide.pivot(index="dim", columns="budget", values="loss").reset_index()
    with pytest.raises(ValueError, match="compute_unit"):
        read(wide)
    rows, notes = read(wide, compute_unit="FLOPs")
    same_runs(rows)
    assert any(n.startswith("layout: 'loss' by 'dim'") for n in notes)


def test_a_trial_table_of_optuna() -> None:
    table = pd.DataFrame(
        {
            "number": range(30), "value": BASE["loss"], "datetime_start": "2026-11-27",
            "params_lr": 1e-3, "params_n_params": BASE["N"].sample(frac=1,
            random_state=1).to_numpy(),
            "user_attrs_flops": BASE["C"], "user_attrs_n_params": BASE["N"],
            "user_attrs_tokens": BASE["D"], "state": ["FAIL"
            if i in LOST else "COMPLETE" for i in range(30)],
        }
    )  # fmt: skip
    rows, notes = read(table)
    same_runs(rows, KEPT)
    assert any("'user_attrs_n_params'; training costs 6 N D with it" in n for n in notes)


def test_results_of_nanochat() -> None:
    table = pd.DataFrame(
        {
            "flops_budget": BASE["budget"], "depth": 10, "params_wte": 25165824,
            "params_lm_head": (BASE["N"] * 0.3).astype(int), "params_scalars": 24,
            "params_transformer": BASE["N"] - (BASE["N"] * 0.3).astype(int),
            "params_total": BASE["N"] + 75497496, "tokens_trained": BASE["D"],
            "val_bpb": BASE["loss"] / 3,
        }
    )  # fmt: skip
    rows, _ = read(table)
    same_runs(rows.assign(val_loss=rows["val_loss"] * 3 / np.log(2)))
    assert rows["params"].tolist() == BASE["N"].tolist()


def test_layouts_that_hold_no_law_say_what_to_export() -> None:
    panel = pd.DataFrame({"Step": [1, 2], **{f"r{i} - val/loss{e}": 3.0 for i in range(3)
                                             for e in ("", "__MIN", "__MAX")}})  # fmt: skip
    with pytest.raises(ValueError, match=r"Weights & Biases panel.*Export the table of runs"):
        read(panel)
    log = pd.DataFrame({"epoch": [0.1], "step": [50], "learning_rate": [1e-3], "loss": [3.0],
                        "eval_loss": [3.1], "eval_runtime": [1.0]})  # fmt: skip
    with pytest.raises(ValueError, match="log of one run of Hugging Face"):
        read(log)


def test_a_column_of_budgets() -> None:
    spread = PLAIN.assign(flops=BASE["C"] * np.tile([0.9, 1.1, 1.0, 1.2, 0.95, 1.05], 5))
    spread = spread.assign(tokens=PLAIN["tokens"] * np.tile([0.9, 1.1, 1.0, 1.2, 0.95, 1.05], 5))
    assert read(spread)[0]["budget_macs"].isna().all()
    assert read(spread.assign(budget=BASE["budget"]))[0]["budget_macs"].nunique() == 5
    named, _ = read(spread.assign(rung=BASE["budget"]), budget_column="rung")
    assert named["budget_macs"].nunique() == 5


# --- files ------------------------------------------------------------------------------------


def _markdown(table: pd.DataFrame) -> str:
    head = "| " + " | ".join(table.columns) + " |\n|" + "---|" * len(table.columns) + "\n"
    rows = ("| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False))
    return "# Runs\n\n" + head + "\n".join(rows) + "\n\nThe end.\n"


WRITERS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    "tab.csv": lambda t, p: t.to_csv(p, sep="\t", index=False),
    "semicolon.csv": lambda t, p: t.to_csv(p, sep=";", decimal=",", index=False),
    "points.csv": lambda t, p: t.to_csv(p, sep=";", index=False),
    "pipe.txt": lambda t, p: t.to_csv(p, sep="|", index=False),
    "blanks.txt": lambda t, p: t.to_csv(p, sep=" ", index=False),
    "utf16.csv": lambda t, p: p.write_bytes(t.to_csv(index=False).encode("utf-16")),
    "utf16be.csv": lambda t, p: p.write_bytes(t.to_csv(index=False).encode("utf-16-be")),
    "bom.csv": lambda t, p: p.write_bytes(t.to_csv(index=False).encode("utf-8-sig")),
    "latin.csv": lambda t,
    p: p.write_bytes(t.assign(note="é").to_csv(index=False).encode("cp1252")),
    "packed.csv.gz": lambda t, p: p.write_bytes(gzip.compress(t.to_csv(index=False).encode())),
    "packed.jsonl.gz": lambda t, p: p.write_bytes(
        gzip.compress(t.to_json(orient="records", lines=True).encode())
    ),
    "comments.csv": lambda t,
    p: p.write_text("# made by hand\n" + t.to_csv(index=False) + "# end\n"),
    "savetxt.txt": lambda t, p: np.savetxt(
        p, t.to_numpy(float), delimiter=",", header=",".join(map(str, t))
    ),
    "index.csv": lambda t, p: t.to_csv(p),
    "crlf.csv": lambda t, p: p.write_bytes(t.to_csv(index=False, lineterminator="\r\n").encode()),
    "t.parquet": lambda t, p: t.to_parquet(p),
    "t.md": lambda t, p: p.write_text(_markdown(t)),
    "t.txt": lambda t, p: p.write_text(_markdown(t).split("\n\n")[1]),
    "t.json": lambda t, p: t.to_json(p, orient="records"),
    "columns.json": lambda t, p: t.to_json(p),
    "split.json": lambda t, p: t.to_json(p, orient="split"),
    "lists.json": lambda t, p: p.write_text(json.dumps(t.to_dict("list"))),
    "t.jsonl": lambda t, p: t.to_json(p, orient="records", lines=True),
    "nested.json": lambda t, p: p.write_text(json.dumps(
        [{"config": {"params": r.params}, "summary": {"tokens": r.tokens, "loss": r.loss}}
         for r in t.itertuples()])),
    "inside.json": lambda t, p: p.write_text(json.dumps({"version": 1,
    "runs": t.to_dict("records")})),
    "by_run.json": lambda t, p: p.write_text(json.dumps(
        {f"run-{i}": row for i, row in enumerate(t.to_dict("records"))})),
    "large.json": lambda t, p: p.write_text(json.dumps(
        [{**row, "flops": 6 * int(row["params"]) * int(row["tokens"]) * 10**6 // 10**6 + 0,
        "hash": 2**70 + i}
         for i, row in enumerate(t.to_dict("records"))])),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file(name: str, tmp_path: Path) -> None:
    WRITERS[name](PLAIN, tmp_path / name)
    rows, _ = read(tmp_path / name)
    same_runs(rows)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("t.pkl", b"x", "a pickle may run any program"), ("t.db", b"x", "no SQLite database inside"),
     ("events.out.tfevents.1", b"x", "TensorBoard"), ("empty.csv", b"", "no lines"),
     ("numbers.csv", b"1,2,3\n4,5,6\n", "needs column names"),
     ("twice.csv", b"loss,loss,params\n1,2,3\n", "two columns"),
     ("bad.json", b"{", "JSON"), ("bare.json", b"[1, 2]", "no list of runs"),
     ("t.csv.gz", b"plain", "not a table"),
     ("two.json", b'{"a": [{"x": 1}], "b": [{"y": 2}]}', "several lists"),
     ("t.md", b"| a | b |\n", "0 Markdown tables"),
     ("long.csv", b"a,loss\n1,2,3\n4,5,6\n", "more cells"),
     ("noise.csv", bytes(range(256)) * 4, "not a table|no column|no rows|no numbers"),
     ("t.parquet", b"PAR1 not really", "not a table"), ("t.xlsx", b"x", "openpyxl|not a table")],
)  # fmt: skip
def test_files_that_are_no_tables_are_said(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read(tmp_path / name)


# --- the tool's own rows ------------------------------------------------------------------------


def test_own_rows_give_one_law_with_and_without_flags(tmp_path: Path) -> None:
    from tests.report.conftest import simulated_rows

    own = simulated_rows()
    own.to_csv(tmp_path / "rows.csv", index=False)
    own.to_parquet(tmp_path / "rows.parquet")
    law = fit_frontier(own, resamples=100).pure
    flags: dict[str, Any] = {"loss": "val_loss", "n": "params", "d": "tokens", "c": "macs_total"}
    for path in (tmp_path / "rows.csv", tmp_path / "rows.parquet"):
        for given in ({}, flags):
            rows, _ = read(path, **given)
            assert fit_frontier(rows, resamples=100).pure.b == law.b
    rows, _ = read(tmp_path / "rows.csv", n="params_non_embedding")
    assert rows["params"].tolist() == own["params_non_embedding"].tolist()
    assert rows["decayed"].tolist() == own["decayed"].tolist()


def test_rows_of_one_name_and_several_losses_are_repeats(shared_data: Path) -> None:
    """datablations: seventeen designs were trained up to five times. Twice is a resumed run."""
    table = pd.read_csv(shared_data / "scaling_tables" / "datablations_296_runs.csv")
    rows, notes = read(table)
    assert any("82 rows share name, size and training in 17 designs" in note for note in notes)
    assert not (rows["role"] == "repeat").any()
    five = rows[rows["run_id"].str.startswith("2b855b11b")]
    assert len(five) == 5 and five["seed"].nunique() == 5
    # A copy of a row is none, and of two rows a name the later one counts, as ever.
    again, _ = read(pd.concat([table, table.iloc[[7]]], ignore_index=True))
    assert (again["role"] == "repeat").sum() == 1
    key = ["name", "params", "tokens"]
    resumed, notes = read(table[table.groupby(key).cumcount() < 2].reset_index(drop=True))
    assert (resumed["role"] == "repeat").sum() == 17
    assert any("repeat the name, size and training of a later row" in note for note in notes)
