"""200 tables of the same runs, and tables of anything: right or refused, never silently wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.analysis.tables import read
from scaling.analysis.tables.ladder import Ladder
from scaling.errors import UserError
from tests.analysis.base_runs import BASE, counted

VARIANTS = 200
# How people write the columns: name, factor of a single one ("" marks cells with a unit).
PARAMETERS = [
    ("params", 1), ("N", 1), ("n_params", 1), ("Parameters (M)", 1e6), ("params_M", 1e6),
    ("Model Size", 1), ("model_size_B", 1e9), ("parameter_count", 1), ("config.n_params", 1),
    ("params (millions)", 1e6), ("n", 1), ("total_params", 1), ("Trainable Params", 1),
    ("mparams", 1e6), ("size (M)", 1e6),
    ("num_parameters", 1), ("params", 1e6), ("model/num_params", 1), ("params", "{:.2f}M"),
    ("N", "{:.3f} M"), ("non_embedding_params", 1), ("Params, M", 1e6),
]  # fmt: skip
TOKENS = [
    ("tokens", 1), ("D", 1), ("tokens (B)", 1e9), ("tokens_B", 1e9), ("train_tokens", 1),
    ("Training tokens [billions]", 1e9), ("tokens_seen", 1), ("Btokens", 1e9), ("tokens", 1e9),
    ("tokens", "{:.3f}B"), ("tokens", "{:.3f}BT"), ("Tokens (M)", 1e6), ("d", 1),
    ("tokens processed", 1),
    ("throughput/total_tokens", 1), ("summary.tokens", 1), ("total tokens (T)", 1e12),
    ("tokens (1e9)", 1e9), ("num_input_tokens_seen", 1), ("nTokens (B)", 1e9), None,
]  # fmt: skip
COMPUTE = [
    None, None, ("flops", 1), ("C", 1), ("Training FLOP", 1), ("total_gflops", 1e9), ("PFLOPs",
    1e15),
    ("compute (1e18 FLOPs)", 1e18), ("flops (G)", 1e9), ("EFLOPs", 1e18), ("compute", 1),
    ("train_tflops", 1e12), ("macs", 2), ("gmacs_total", 2e9), ("PF-days", 8.64e19), ("flops",
    1e15),
    ("C", 1e18), ("compute_budget", 1), ("train_flops_B", 1e9), ("exaflops", 1e18), ("macs", 1),
    ("achieved_flops", 1), ("compute", 2), ("TFLOPs", 1e12), ("flops", "{:.3e} FLOPs"),
    ("compute", "{:.4f} EFLOPs"),
]  # fmt: skip
LOSSES = ["loss", "val_loss", "eval/loss", "Validation Loss", "valid_loss", "final_loss",
          "test_loss",
          "val/loss", "metrics.val_loss", "nll", "cross_entropy", "eval_ppl", "val_bpb",
          "c4_val_loss",
          "lm loss (val)", "heldout_loss", "paloma macro"]  # fmt: skip
CELLS = [
    "{:.4f}",
    "{:.4f}",
    "{:.4f}",
    "**{:.4f}**",
    "{:.4f} ± 0.003",
    "{:.4f}(3)",
    "{:.4f}*",
    "{:.6e}",
]
STATES = [
    None, None, None, None, ("state", "finished", "crashed"), ("trial state", "COMPLETE", "PRUNED"),
    ("ok", True, False), ("slurm_state", "COMPLETED", "CANCELLED by 7"), ("Status", "COMPLETED",
    "FAILED"), ("state", 1, 0),
    ("outcome", "ok", "oom"), ("run_state", "finished", "running"), ("status", "fine", "not fine"),
    ("finished", True, False), ("exit_code", 0, 1), ("state", "done", "hmm"), ("failed", 0, 1),
    ("job_state", "CD", "TO"), ("status", "SUCCESS", "Diverged"),
]  # fmt: skip
EXTRAS = [
    None, None, {"train_loss": 0.9}, {"d_model": 512, "n_layers": 8}, {"D/N": 20}, {"lr": 1e-3},
    {"tokens_per_sec": 1e5}, {"loss_train": 1}, {"mfu": 0.4}, {"unnamed": "x"}, {"TFLOP/s": 90},
    {"batch_size_tokens": 5e5}, {"vocab_size": 50257}, {"train/loss": 2}, {"params_embedding": 1e6},
    {"target_tokens": 1e9}, {"gpu_hours": 12}, {"heads": 8}, {"unique_tokens": 1e13},
]  # fmt: skip
LAYOUTS = ["table", "table", "history", "history", "resumed", "grid", "copies",
          "history without names",
           "shared names", "repeated", "constant rate"]  # fmt: skip
LOST = (5, 12)  # runs that did not finish, with a loss that would win its budget


def written(values: np.ndarray, unit: float | str) -> list[str] | np.ndarray:
    """A column in a unit, or as text such as "1.95B"."""
    if isinstance(unit, str):
        scale = next((s for k, s in {"E": 1e18, "B": 1e9, "M": 1e6}.items()
        if f"}}{k}" in unit.replace(" ", "")),
                     1.0)  # fmt: skip
        return [unit.format(v / scale) for v in values]
    return values / unit


def variant(seed: int) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """A table, the runs that must count (N, D, C, loss), and a description."""
    rng = np.random.default_rng(seed)
    pick = lambda options: options[rng.integers(len(options))]  # noqa: E731
    n, d, c, loss, cell, state, extra, layout = map(
        pick, (PARAMETERS, TOKENS, COMPUTE, LOSSES, CELLS, STATES, EXTRAS, LAYOUTS)
    )
    if d is None and c is None:
        c = ("flops", 1)
    runs = BASE.assign(run=[f"r{i}" for i in range(30)])
    truth = runs
    if state is not None:
        lost = runs.index.isin(LOST)
        runs = runs.assign(
            loss=runs["loss"].where(~lost, 2.0), word=np.where(lost, state[2], state[1])
        )
        truth = truth[~lost]
    rows, truth = laid_out(runs, truth, layout, rng)
    measure: Any = {"eval_ppl": np.exp, "val_bpb": lambda v: v / np.log(2)}.get(loss, lambda v: v)
    table = pd.DataFrame({n[0]: written(rows["N"].to_numpy(float), n[1])})
    if d is not None:
        table[d[0]] = written(rows["D"].to_numpy(float), d[1])
    if c is not None:
        table[c[0]] = written(rows["C"].to_numpy(float), c[1])
    table[loss] = [cell.format(v) for v in measure(rows["loss"].to_numpy(float))]
    if cell in ("{:.4f}", "{:.6e}"):
        table[loss] = table[loss].astype(float)
    if state is not None:
        words = [type(state[1])(w) if not isinstance(state[1], bool) else w in (True, "True")
                 for w in rows["word"]]  # fmt: skip
        table[state[0]] = words
    for name, value in (extra or {}).items():
        train = "train" in name
        table[name] = rows["loss"].to_numpy() * 0.95 if train else value
    for name in ("run_id", "step", "lr_now", "lr", "unique_tokens", "Name"):
        if name in rows:
            table[{"lr_now": "learning_rate"}.get(name, name)] = rows[name].to_numpy()
    order = rng.permutation(table.columns)
    shown = f"seed {seed}: {layout}, {list(table.columns)}, {n}, {d}, {c}, {cell}, {state}"
    return table[list(order)], truth, shown


def laid_out(
    runs: pd.DataFrame, truth: pd.DataFrame, layout: str, rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs as finished rows, as histories, as grids."""
    if layout == "table":
        return runs, truth
    if layout == "shared names":
        return runs.assign(Name=[f"s{i % 6}" for i in range(30)]), truth
    if layout == "copies":
        return pd.concat([runs, runs.iloc[:4]], ignore_index=True), truth
    if layout == "resumed":
        early = runs.iloc[[3, 8, 20]].assign(
            D=lambda t: t["D"] / 2, C=lambda t: t["C"] / 2, loss=1.9
        )
        both = pd.concat([early, runs], ignore_index=True)
        return both.assign(run_id=both["run"]), truth
    if layout == "grid":
        better = runs.assign(lr=2e-3)
        worse = [
            runs.assign(lr=lr, loss=runs["loss"] * (1 + 0.03 * rng.random(30)))
            for lr in (1e-3, 4e-3)
        ]
        return pd.concat([better, *worse], ignore_index=True), truth
    if layout == "repeated":
        again = runs.assign(loss=runs["loss"] * 0.8, unique_tokens=runs["D"] / 5)
        return pd.concat([runs.assign(unique_tokens=runs["D"]), again], ignore_index=True), truth
    parts = []
    for run in runs.to_dict("records"):
        for share in (np.arange(1, 9) / 8).tolist():
            rate = 1e-3 * (0.1 + 0.9 * (1 + np.cos(np.pi * share)) / 2)
            constant = layout == "constant rate" and run["run"] in ("r7", "r19")
            at = {"D": run["D"] * share, "C": run["C"] * share, "step": int(800 * share)}
            at |= {"loss": run["loss"] * (1 + 0.1 * (1 / share - 1)) * (0.7 if constant else 1)}
            if layout == "constant rate":
                at["lr_now"] = 1e-3 if constant else rate
            parts.append(run | at)
    rows = pd.DataFrame(parts)
    if layout != "history without names":
        rows = rows.assign(run_id=rows["run"])
    if layout == "constant rate":
        truth = truth[~truth["run"].isin(["r7", "r19"])]
    return rows, truth


def wrong(rows: pd.DataFrame, truth: pd.DataFrame) -> str:
    """How the rows that count differ from the runs that must; "" where they do not."""
    found = counted(rows)
    if len(found) != len(truth):
        return f"{len(found)} rows, not {len(truth)}"
    for column, true in (("val_loss", truth["loss"]), ("macs_total", truth["C"] / 2),
                         ("params", truth["N"]), ("tokens", truth["D"])):  # fmt: skip
        ours, theirs = np.sort(found[column].to_numpy(float)), np.sort(true.to_numpy(float))
        off = float(np.abs(np.log(ours / theirs)).max())
        if not off < 0.02:
            return f"{column} is off by {np.exp(off):.4g}"
    return ""


def test_200_variants_are_right_or_refused() -> None:
    refused, faults = [], []
    for seed in range(VARIANTS):
        table, truth, shown = variant(seed)
        try:
            rows, _ = read(table)
        except ValueError as refusal:
            assert isinstance(refusal, UserError) and len(str(refusal)) > 30, shown
            refused.append(f"{shown}: {refusal}")
            continue
        if said := wrong(rows, truth):
            faults.append(f"{shown}: {said}")
    assert not faults, "\n".join(faults)
    # A reader that refuses everything is never wrong.
    assert len(refused) < VARIANTS / 2, "\n".join(refused)


@pytest.mark.parametrize("seed", range(0, VARIANTS, 25))
def test_a_variant_survives_its_file(seed: int, tmp_path: Path) -> None:
    """The same table through a CSV is read alike."""
    table, _, shown = variant(seed)
    table.to_csv(tmp_path / "t.csv", index=False)
    outcomes = []
    for source in (table, tmp_path / "t.csv"):
        try:
            outcomes.append(counted(read(source)[0])["macs_total"].tolist())
        except ValueError as refusal:
            outcomes.append([str(refusal)])
    if isinstance(outcomes[0][0], float):
        assert outcomes[1] == pytest.approx(outcomes[0]), shown
    else:
        assert outcomes[1] == outcomes[0], shown


names = st.one_of(
    st.sampled_from([x[0] for x in (*PARAMETERS, *TOKENS, *COMPUTE) if x]),
    st.sampled_from([*LOSSES, "state", "exit_code", "run_id", "Name", "step", "lr", "epochs",
    "seed",
                     "unique_tokens", "budget", "log10(C)", "C [10^18]", "1e18", "decayed",
                     "role"]),
    st.text(max_size=8),
)  # fmt: skip
cells = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.integers(-(10**25), 10**25),
    st.text(max_size=8),
    st.none(), st.booleans(),
    st.sampled_from(["1.3B", "7BT", "1,024", "**4.4**", "3 ± .1", "2.1(3)", "1e19 FLOPs", "10^18",
    "4.4%",
                     "finished", "crashed", "0:0", "r1", "r2", "nan", "", "-", "1.2×10^18"]),
)  # fmt: skip


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.data())
def test_any_table_is_read_or_refused(data: st.DataObject) -> None:
    columns = data.draw(st.lists(names, max_size=7, unique_by=str.strip))
    height = data.draw(st.integers(0, 8))
    content = {c: data.draw(st.lists(cells, min_size=height, max_size=height)) for c in columns}
    flags: dict[str, Any] = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "compute_unit": st.sampled_from(["FLOPs", "GMACs", "joules"]),
                "tokens_in": st.sampled_from(["", "B", "q"]),
                "finished_if": st.text(max_size=6), "where": st.text(max_size=8),
                "history": st.booleans(), "by": st.sampled_from([*columns, "x"]),
            },
        )
    )  # fmt: skip
    try:
        rows, notes = read(pd.DataFrame(content), **flags)
    except ValueError as refusal:
        assert isinstance(refusal, UserError) and len(str(refusal)) > 15
        return
    assert len(rows) and notes
    kept = Ladder.of(rows).kept()
    assert np.isfinite(kept["macs_total"]).all() and (kept["val_loss"] > 0).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.one_of(st.binary(max_size=300), st.text(max_size=200).map(str.encode)),
       st.sampled_from(["csv", "tsv", "txt", "json", "jsonl", "md", "csv.gz", "parquet",
       "dat"]))  # fmt: skip
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, ending: str
) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"t.{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError) as refusal:
        read(path)
    assert issubclass(refusal.type, UserError) and len(str(refusal.value)) > 15
