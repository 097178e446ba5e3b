"""Tables as people bring them: each is read right, or refused with what to do.

`base_runs.csv` is a simulated study (five budgets, six sizes); every other table here holds the
same runs in another form, so that what is read must be the same parameters, MACs and losses.
"""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.questions.frontier import fit_frontier
from scaling.analysis.questions.parametric_study import fit_rows
from scaling.analysis.tables import read
from scaling.analysis.tables.ladder import Ladder

BASE = pd.read_csv(Path(__file__).parent / "base_runs.csv")
PLAIN = BASE.rename(columns={"N": "params", "D": "tokens"})[["params", "tokens", "loss"]]
MACS = BASE["C"].to_numpy() / 2
Build = Callable[[pd.DataFrame], pd.DataFrame]


def counted(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that enter a law, sorted by compute and loss."""
    kept = Ladder.of(rows).kept()
    return kept.sort_values(["macs_total", "val_loss"]).reset_index(drop=True)


def same_runs(rows: pd.DataFrame, table: pd.DataFrame = BASE, rtol: float = 2e-3) -> None:
    """Whether the rows that count are those of `table` (columns N, D, C in FLOPs, loss)."""
    found = counted(rows)
    assert len(found) == len(table)
    order = np.lexsort([found["val_loss"], np.round(np.log(found["macs_total"]), 1)])
    true = np.lexsort([table["loss"], np.round(np.log(table["C"] / 2), 1)])
    for column, truth in (("macs_total", table["C"] / 2), ("val_loss", table["loss"])):
        assert found[column].to_numpy()[order] == pytest.approx(truth.to_numpy()[true], rel=rtol)


def history(points: int = 10, *, rate: bool = False) -> pd.DataFrame:
    """Evaluations along each run; the last one is the run's loss."""
    parts = []
    run: Any
    for i, run in enumerate(PLAIN.itertuples()):
        share = np.arange(1, points + 1) / points
        part = pd.DataFrame(
            {
                "run_id": f"r{i}", "step": (1000 * share).astype(int), "params": run.params,
                "tokens": run.tokens * share, "val_loss": run.loss * (1 + 0.1 * (1 / share - 1)),
            }
        )  # fmt: skip
        if rate:
            part["lr"] = 1e-3 * (0.1 + 0.9 * (1 + np.cos(np.pi * share)) / 2)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


# --- units ------------------------------------------------------------------------------------

COMPUTE = {
    "total_gflops": 1e9, "GFLOPs": 1e9, "train_tflops": 1e12, "PFLOPs": 1e15, "EFLOPs": 1e18,
    "compute (1e18 FLOPs)": 1e18, "compute [10^18 FLOPs]": 1e18, "flops (G)": 1e9,
    "FLOPs / 1e15": 1e15,
    "train_flops_B": 1e9, "compute_gflops": 1e9, "flops (billions)": 1e9, "exaFLOPs": 1e18,
    "petaflops": 1e15, "throughput/total_gflops": 1e9, "training compute (ZFLOPs)": 1e21,
    "gmacs_total": 2e9, "train MACs (T)": 2e12, "PF-days": 8.64e19,
    "compute (PFLOP/s-days)": 8.64e19,
    "pf_days": 8.64e19, "total_flos": 1.0, "flops_6nd": 1.0, "TFLOP": 1e12, "kFLOPs": 1e3,
    "Compute (10¹⁸ FLOPs)": 1e18, "throughput/total_training_Gflops": 1e9,
    "FLOPs ×1e18": 1e18, "Compute, EFLOPs": 1e18, "config.total_gflops.value": 1e9,
    "log10_flops": 0.0, "log10(C FLOPs)": 0.0, "metrics.total_tflops": 1e12,
}  # fmt: skip


@pytest.mark.parametrize("sizes", [True, False], ids=["with N", "alone"])
@pytest.mark.parametrize("name", COMPUTE)
def test_units_of_compute_in_a_columns_name(name: str, sizes: bool) -> None:
    unit = COMPUTE[name]
    values = BASE["C"] / unit if unit else np.log10(BASE["C"])
    table = pd.DataFrame({"loss": BASE["loss"], name: values})
    if sizes:
        table["params"] = BASE["N"]
    rows, notes = read(table)
    same_runs(rows)
    assert any(repr(name) in note for note in notes)
    if unit > 1:
        assert any("x " in note for note in notes if repr(name) in note), notes


@pytest.mark.parametrize(
    ("name", "unit"),
    [("compute", 1e9), ("C", 1.0), ("compute", 1.0), ("flops", 1e9), ("flops", 1e18),
    ("macs", 1e12),
     ("flops_per_token", 1e6), ("TFLOP/s", 1e12)],
)  # fmt: skip
def test_a_unit_that_cannot_be_is_asked_for(name: str, unit: float) -> None:
    table = PLAIN[["params", "loss"]].assign(**{name: BASE["C"] / unit})
    with pytest.raises(ValueError, match=r"compute_unit|no column for tokens"):
        read(table)


@pytest.mark.parametrize("compute", ["flops", "macs", "compute"])
@pytest.mark.parametrize(("n", "d"), [(1e6, 1e9), (1e6, 1.0), (1.0, 1e9), (1.0, 1e6)])
def test_counts_without_a_unit_are_those_that_cost_6nd(compute: str, n: float, d: float) -> None:
    cost = BASE["C"] / (2 if compute == "macs" else 1)
    table = pd.DataFrame({"params": BASE["N"] / n, "tokens": BASE["D"] / d, "loss": BASE["loss"]})
    rows, notes = read(table.assign(**{compute: cost}))
    same_runs(rows)
    assert sum("training costs 6 N D so" in note for note in notes) == (n > 1) + (d > 1)
    assert rows["params"].to_numpy() == pytest.approx(BASE["N"].to_numpy())
    with pytest.raises(ValueError, match="in millions or billions"):
        read(table)  # which of them, nothing tells
    with pytest.raises(ValueError, match="in millions or billions"):
        read(table.assign(**{compute: cost * 10}))


def test_compute_in_gigaflops_against_6nd_is_asked_about() -> None:
    table = PLAIN.assign(flops=BASE["C"] / 1e9)
    with pytest.raises(ValueError, match="MACs per parameter and token, where training costs"):
        read(table)
    rows, _ = read(table, compute_unit="GFLOPs")
    same_runs(rows)


@pytest.mark.parametrize(
    ("column", "name", "unit"),
    [("tokens", "tokens (B)", 1e9), ("tokens", "tokens_B", 1e9), ("tokens", "Btokens", 1e9),
     ("tokens", "tokens in billions", 1e9), ("tokens", "Tokens (10^9)", 1e9),
     ("tokens", "training tokens [M]", 1e6), ("tokens", "tokens_seen_M", 1e6),
     ("params", "params (M)", 1e6), ("params", "Parameters [millions]", 1e6),
     ("params", "mparams", 1e6), ("params", "N (M)", 1e6), ("params", "Model Size (B)", 1e9),
     ("params", "n_params_M", 1e6), ("params", "#params (M)", 1e6), ("tokens", "D (B)", 1e9),
     ("tokens", "nTokens", 1.0), ("params", "non-embedding params", 1.0),
     ("params", "trainable_parameters", 1.0), ("tokens", "num_input_tokens_seen", 1.0)],
)  # fmt: skip
def test_units_of_counts_in_a_columns_name(column: str, name: str, unit: float) -> None:
    table = PLAIN.assign(**{column: PLAIN[column] / unit}).rename(columns={column: name})
    rows, _ = read(table)
    same_runs(rows)


@pytest.mark.parametrize("header", ["tokens", "tokens (B)", "tokens_B"])
@pytest.mark.parametrize(
    "cell", ["{:.6f}B", "{:.6f}BT", "{:.6f} billion", "{:.6f}B tokens", "~{:.6f}B"]
)
def test_a_header_and_its_cells_scale_once(header: str, cell: str) -> None:
    table = PLAIN.assign(tokens=[cell.format(t / 1e9) for t in PLAIN["tokens"]])
    rows, _ = read(table.rename(columns={"tokens": header}))
    same_runs(rows)


@pytest.mark.parametrize(
    "cell", ["**{:.4f}**", "{:.4f} ± 0.004", "{:.4f}(4)", "{:.4f} (0.004)", "__{:.4f}__",
    "`{:.4f}`",
             "<b>{:.4f}</b>", r"\textbf{{{:.4f}}}", "{:.4f}*", "{:.4f}†", "{:.4f} +/- 0.01",
             "${:.4f}$",
             "{:.4f} nats", "**{:.4f}** ± 0.004", "{:.4f} (best)"],
)  # fmt: skip
@pytest.mark.parametrize("which", ["best", "all"])
def test_decorated_cells(cell: str, which: str) -> None:
    best = BASE.groupby("budget")["loss"].transform("min") == BASE["loss"]
    shown = [cell if which == "all" or b else "{:.4f}" for b in best]
    rows, _ = read(
        PLAIN.assign(loss=[c.format(v) for c, v in zip(shown, PLAIN["loss"], strict=True)])
    )
    same_runs(rows)


@pytest.mark.parametrize(
    "text", ["4.4 or so", "4,435", "see text", "4.435%", "<4.5", "4.4-4.5", "4.4 4.5"]
)
def test_a_cell_that_is_no_number_is_named_never_dropped(text: str) -> None:
    table = PLAIN.assign(loss=PLAIN["loss"].astype(object))
    table.loc[3, "loss"] = text
    with pytest.raises(ValueError, match=r"no numbers: .*row 4|in percent"):
        read(table)


@pytest.mark.parametrize("text", ["", "-", "n/a", "nan", "OOM", "diverged"])
def test_a_missing_loss_is_missing(text: str) -> None:
    table = PLAIN.assign(loss=PLAIN["loss"].astype(object))
    table.loc[29, "loss"] = text
    same_runs(read(table)[0], BASE.drop(index=29))


# --- which column -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [{"d": 512}, {"d": np.tile([256, 384, 512, 640, 768, 1024], 5)},
    {"n": np.tile([4, 6, 8, 10, 12, 16], 5)},
     {"train/loss": BASE["loss"] * 0.98}, {"train_loss": BASE["loss"] * 0.98},
     {"D/N": BASE["D"] / BASE["N"]},
     {"tokens_per_second": 1e5}, {"batch_tokens": 524288}, {"params_planned": BASE["N"] * 1.1},
     {"tokens_target": BASE["D"] * 2}, {"perplexity": np.exp(BASE["loss"])},
     {"bpb": BASE["loss"] / 3},
     {"params_non_embedding": BASE["N"] * 0.8}, {"aux_loss": 0.01}, {"acc": 0.3},
     {"vocab_size": 50257},
     {"TFLOP/s": 100.0}, {"result": BASE["loss"] + 1}, {"mfu": 0.4}, {"loss_spikes": 0},
     {"tokens per parameter": BASE["D"] / BASE["N"]}],
    ids=str,
)  # fmt: skip
def test_columns_that_are_something_else(more: dict[str, Any]) -> None:
    same_runs(read(PLAIN.assign(**more))[0])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("eval_loss", "loss"), ("val/loss", "train/loss"), ("val_loss", "loss"),
    ("eval/loss", "train/loss"),
     ("validation loss", "training loss"), ("metrics.val_loss", "metrics.train_loss"),
     ("val/dclm_loss", "train/loss_mean"), ("cd_val_loss", "train_loss"), ("valLoss", "loss"),
     ("test_loss", "train_loss"), ("final_val_loss", "loss"), ("eval_loss", "eval_c4_loss")],
)  # fmt: skip
def test_the_validation_loss_is_meant(name: str, wrong: str) -> None:
    table = PLAIN.rename(columns={"loss": name}).assign(**{wrong: PLAIN["loss"] * 0.97})
    rows, notes = read(table)
    same_runs(rows)
    assert any(repr(name) in note and repr(wrong) in note for note in notes)


def test_losses_that_cannot_be_told_apart_are_named() -> None:
    with pytest.raises(ValueError, match="'val_loss', 'eval_loss' could all be meant"):
        read(PLAIN.rename(columns={"loss": "val_loss"}).assign(eval_loss=PLAIN["loss"] * 1.02))
    several = PLAIN.rename(columns={"loss": "val_c4_loss"}).assign(val_pile_loss=PLAIN["loss"])
    several["val_pile_loss"] *= 1.02
    with pytest.raises(ValueError, match="could all be meant"):
        read(several)


def test_a_training_loss_alone_is_used_with_a_word() -> None:
    rows, notes = read(PLAIN.rename(columns={"loss": "train_loss"}))
    same_runs(rows)
    assert any(note.startswith("beware: no column of a validation loss") for note in notes)


def test_a_letter_that_is_no_count_is_no_column() -> None:
    widths = PLAIN.drop(columns="tokens").assign(d=np.tile([256, 512, 768, 1024, 1536, 2048], 5))
    with pytest.raises(ValueError, match=r"no column for tokens \(D\)"):
        read(widths)


def test_other_measures_are_converted_or_refused() -> None:
    bare = PLAIN.drop(columns="loss")
    same_runs(read(bare.assign(val_ppl=np.exp(PLAIN["loss"])))[0])
    rows, notes = read(bare.assign(bpb=PLAIN["loss"] / np.log(2)))
    same_runs(rows)
    assert any("nats per byte" in note for note in notes)
    accuracy = bare.assign(acc1=1 - PLAIN["loss"] / 10)
    with pytest.raises(ValueError, match="--metric 'acc1' fits a law of 1 - it"):
        read(accuracy)
    with pytest.raises(ValueError, match="grows as models get better"):
        read(accuracy, loss="acc1")
    for table in (accuracy, bare.assign(acc1=100 - 10 * PLAIN["loss"])):
        rows, _ = read(table, metric="acc1")
        same_runs(rows.assign(val_loss=rows["val_loss"] * 10))
    with pytest.raises(ValueError, match="more than a loss in nats"):
        read(bare.assign(loss=np.exp(PLAIN["loss"])))
    with pytest.raises(ValueError, match="is it better high or low"):
        read(bare.assign(quux=0.5), metric="quux")


def test_a_speed_is_no_compute() -> None:
    rows, notes = read(PLAIN.assign(tflops=np.linspace(120, 160, 30)))
    same_runs(rows)
    assert any("'tflops' is not the compute of training" in note for note in notes)


def test_one_forward_pass_is_asked_about() -> None:
    table = pd.DataFrame({"gmacs": BASE["N"] / 1e9 * 256, "val_loss": BASE["loss"]})
    with pytest.raises(ValueError, match=r"of all training, or of one forward pass"):
        read(table)
    with pytest.raises(ValueError, match=r"tokens per parameter .* or of one forward pass"):
        read(table.assign(params=BASE["N"]))


def test_an_objective_below_one_may_be_an_accuracy() -> None:
    trials = pd.DataFrame({"number": range(30), "value": BASE["loss"] / 10, "state": "COMPLETE",
                           "params_n_params": BASE["N"],
                           "user_attrs_tokens": BASE["D"]})  # fmt: skip
    with pytest.raises(ValueError, match="lies below 1: a loss, or an accuracy"):
        read(trials)
    assert len(counted(read(trials, loss="value")[0])) == 30


def test_columns_of_compute_that_agree_are_one() -> None:
    rows, notes = read(PLAIN.assign(total_gflops=BASE["C"] / 1e9, achieved_flops=BASE["C"]))
    same_runs(rows)
    assert any("the same as" in note for note in notes)


# --- states -----------------------------------------------------------------------------------

LOST = [2, 9, 17]
KEPT = BASE.drop(index=LOST)


def with_states(good: object, bad: object, column: str = "state") -> pd.DataFrame:
    spoiled = PLAIN["loss"].where(~PLAIN.index.isin(LOST), 1.0)
    values: Any = [bad if i in LOST else good for i in PLAIN.index]
    return PLAIN.assign(loss=spoiled, **{column: values})


@pytest.mark.parametrize(
    ("column", "good", "bad"),
    [("State", "finished", "crashed"), ("status", "FINISHED", "KILLED"),
    ("run_state", "finished", "failed"),
     ("job_state", "COMPLETED", "TIMEOUT"), ("slurm_state", "COMPLETED", "CANCELLED by 1000"),
     ("outcome", "succeeded", "failed"), ("state", "COMPLETE", "PRUNED"),
     ("status", "TERMINATED", "ERROR"),
     ("TrainingJobStatus", "Completed", "InProgress"), ("state", "OK", "FAILED"),
     ("state", "success", "upstream_failed"),
     ("status", "done", "diverged"), ("State", "CD", "OUT_OF_MEMORY"),
     ("job status", "Succeeded", "Evicted"),
     ("trial_state", "TrialState.COMPLETE", "TrialState.FAIL"), ("finished", True, False),
     ("completed", "yes", "no"),
     ("success", 1, 0), ("failed", False, True), ("diverged", 0, 1), ("exit_code", 0, 137),
     ("ExitCode", "0:0", "1:0"),
     ("crashed", "false", "true"), ("final_status", "Complete", "preempted"),
     ("sys/state", "succeeded", "running")],
)  # fmt: skip
def test_runs_that_did_not_finish_are_left_out(column: str, good: object, bad: object) -> None:
    rows, _ = read(with_states(good, bad, column))
    same_runs(rows, KEPT)


@pytest.mark.parametrize(
    ("good", "bad"),
    [("finito", "kaputt"), ("finished", "kaputt"), (1, 0), ("stopped", "killed"), ("A", "B")],
)
def test_an_unknown_state_is_named_and_a_flag_decides(good: object, bad: object) -> None:
    table = with_states(good, bad)
    with pytest.raises(ValueError, match="--finished-if"):
        read(table)
    same_runs(read(table, finished_if=str(good))[0], KEPT)
    same_runs(read(table, finished_if=f"state == {good!r}")[0], KEPT)


def test_flags_of_states_that_say_nothing() -> None:
    with pytest.raises(ValueError, match="no row has it; column 'state' holds 'ok', 'bad'"):
        read(with_states("ok", "bad"), finished_if="fine")
    with pytest.raises(ValueError, match="has no column of states"):
        read(PLAIN, finished_if="done")
    with pytest.raises(ValueError, match="--finished-if 'quux == 1'"):
        read(PLAIN, finished_if="quux == 1")


# --- histories --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [lambda t: t, lambda t: t.rename(columns={"run_id": "run_name", "step": "_step",
    "val_loss": "val/loss"}),
     lambda t: t.drop(columns="step"), lambda t: t.sample(frac=1, random_state=0),
     lambda t: t.assign(train_loss=t["val_loss"] * 0.98), lambda t: t.assign(lr=1e-3)],
    ids=["plain", "wandb", "without steps", "shuffled", "train", "constant setting"],
)  # fmt: skip
def test_the_last_point_of_each_run_counts(change: Build) -> None:
    rows, notes = read(change(history()))
    same_runs(rows)
    assert any(note.startswith("history: 300 rows of 30 runs") for note in notes)


def test_a_history_without_names_of_runs_is_refused() -> None:
    table = history().drop(columns="run_id")
    with pytest.raises(ValueError, match=r"--run COLUMN .*--no-history"):
        read(table)
    rows, _ = read(table, history=False)
    assert len(counted(rows)) == 300


def test_rows_close_in_training_may_be_evaluations() -> None:
    table = history(20).drop(columns=["run_id", "step"])
    assert any(note.startswith("beware: of one size there are rows") for note in read(table)[1])
    assert not any(note.startswith("beware") for note in read(PLAIN)[1])


def test_runs_at_a_constant_rate_are_named() -> None:
    table = history(rate=True)
    constant = table["run_id"].isin(["r3", "r11"])
    table.loc[constant, "lr"] = 1e-3
    cut = (table["run_id"] == "r20") & (table["step"] > 500)
    rows, notes = read(table[~cut])
    same_runs(rows, BASE.drop(index=[3, 11, 20]))
    assert any("3 runs end before" in n and "r3, r11, r20" in n for n in notes)


def test_a_schedule_of_each_run() -> None:
    schedule = ["constant" if i in LOST else "cosine" for i in range(30)]
    rows, notes = read(PLAIN.assign(lr_schedule=schedule))
    same_runs(rows, KEPT)
    assert any("row 2, row 9, row 17" in note for note in notes)
    rows, notes = read(PLAIN.assign(lr_schedule="constant"))
    same_runs(rows)
    assert any("the rate of every run is constant" in note for note in notes)


def test_a_shared_display_name_is_several_runs() -> None:
    table = PLAIN.assign(Name=[f"sweep-{i % 6}" for i in range(30)])
    rows, notes = read(table)
    same_runs(rows)
    assert rows["run_id"].is_unique and any("share the name" in n for n in notes)
    alone = BASE[["C", "loss"]].rename(columns={"C": "flops"}).assign(Name="exp")
    same_runs(read(alone, history=False)[0])


def test_a_name_at_one_size_and_several_lengths_is_asked_about() -> None:
    table = history(3).drop(columns="step").rename(columns={"run_id": "Name"})
    with pytest.raises(ValueError, match=r"--history.*--no-history"):
        read(table)
    same_runs(read(table, history=True)[0])


def test_a_resumed_run_is_one() -> None:
    table = PLAIN.assign(run_id=[f"r{i}" for i in range(30)])
    early = table.iloc[[4, 9, 14]].assign(
        tokens=lambda t: t["tokens"] / 2, loss=lambda t: t["loss"] + 0.5
    )
    rows, notes = read(pd.concat([early, table]))
    same_runs(rows)
    assert any(note.startswith("history: 33 rows of 30 runs") for note in notes)


def test_runs_without_a_name_are_single_runs() -> None:
    some: Any = [None if i % 2 else f"r{i}" for i in range(30)]
    rows, _ = read(PLAIN.assign(run_id=some))
    same_runs(rows)
    assert rows["run_id"].is_unique


def test_sparse_rows_of_one_step_are_joined() -> None:
    table = history(5).rename(columns={"run_id": "version"})
    table["version"] = "version_" + table["version"].str[1:]
    train = table.drop(columns="val_loss").assign(train_loss=table["val_loss"] * 0.98)
    evaluated = table.drop(columns="tokens")
    sparse = pd.concat([train, evaluated]).sort_values(["version", "step"], kind="stable")
    rows, notes = read(sparse)
    same_runs(rows)
    assert any("joined: 300 rows to 150" in n for n in notes)


def test_rows_at_the_end_of_their_planned_steps_are_runs() -> None:
    steps = np.tile([100, 200, 300, 400, 500], 6)
    table = PLAIN.assign(params=np.repeat(PLAIN["params"][:6].to_numpy(), 5), step=steps)
    with pytest.raises(ValueError, match="--run COLUMN"):
        read(table)
    rows, _ = read(table.assign(total_steps=steps))
    assert len(counted(rows)) == 30


# --- mixtures, grids, repetition ----------------------------------------------------------------


@pytest.mark.parametrize(
    "column", ["tokenizer", "vocab_size", "train_dataset", "optimizer", "seq_len"]
)
def test_a_mixture_is_told_and_parted(column: str) -> None:
    other = PLAIN.assign(loss=PLAIN["loss"] * 1.3, **{column: 2})
    both = pd.concat([PLAIN.assign(**{column: 1}), other], ignore_index=True)
    _, notes = read(both)
    assert any(n.startswith("beware: 2 values") and f"--by {column}" in n for n in notes)
    rows, notes = read(both, by=column)
    assert not any(n.startswith("beware") for n in notes)
    same_runs(rows[rows["by"] == "1"])
    same_runs(read(both, where=f"{column} == 1")[0])


def test_groups_may_share_the_names_of_their_runs() -> None:
    arm = PLAIN.assign(run_id=[f"r{i}" for i in range(30)])
    both = pd.concat([arm.assign(arm="a"), arm.assign(arm="b", loss=arm["loss"] * 1.1)])
    rows, _ = read(both, by="arm")
    same_runs(rows[rows["by"] == "a"])
    assert len(counted(rows)) == 60


@pytest.mark.parametrize("where", ["quux == 1", "loss >", "loss", "loss == 0", "@x", "a.b()"])
def test_conditions_that_cannot_be_read(where: str) -> None:
    with pytest.raises(ValueError, match="--where"):
        read(PLAIN, where=where)


def test_the_best_of_a_grid_counts() -> None:
    rng = np.random.default_rng(0)
    grid = pd.concat(
        [PLAIN.assign(lr=lr, bs=bs, loss=PLAIN["loss"] * (1 + (0 if (lr, bs) == (2e-3, 64) else
                      rng.uniform(0.001, 0.05, 30)))) for lr in (1e-3, 2e-3, 4e-3) for bs in (32,
                      64)],
        ignore_index=True,
    )  # fmt: skip
    rows, notes = read(grid)
    same_runs(rows)
    assert any(n.startswith("grid: 'lr', 'bs' vary within 30 cells") for n in notes)
    left_out = Ladder.of(rows).left_out(budgets=True)
    assert ("not the best setting of its size and tokens", 150) in left_out
    seeds = pd.concat([grid.assign(seed=s, loss=grid["loss"] + 1e-4 * s) for s in (0, 1)])
    rows, _ = read(seeds)
    assert len(counted(rows)) == 60


def test_repeated_data_are_left_out_with_a_word() -> None:
    again = PLAIN.assign(loss=PLAIN["loss"] * 0.9, unique_tokens=PLAIN["tokens"] / 4)
    table = pd.concat([PLAIN.assign(unique_tokens=PLAIN["tokens"]), again], ignore_index=True)
    rows, notes = read(table)
    same_runs(rows)
    assert any(n.startswith("repeated data: 30 rows") for n in notes)
    epochs = table.assign(epochs=table["tokens"] / table["unique_tokens"])
    same_runs(read(epochs.drop(columns="unique_tokens"))[0])
    _, notes = read(again)
    assert any(n.startswith("beware: every row went over its data more than once") for n in notes)


def test_published_tables_of_repetition_and_grids(shared_data: Path) -> None:
    tables = shared_data / "scaling_tables"
    rows, _ = read(tables / "datablations_296_runs.csv")
    law = fit_rows(rows, resamples=500)
    assert law.size_exponent == pytest.approx(0.535, abs=0.002) and len(law.n) == 33
    for loss in ("loss", "smooth loss"):
        rows, _ = read(tables / "steplaw_dense_lr_bs_loss.csv", loss=loss)
        assert len(counted(rows)) == 17
        best = rows.groupby(["params", "tokens"])["val_loss"].min()
        assert sorted(counted(rows)["val_loss"]) == sorted(best)


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
