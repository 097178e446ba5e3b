"""States, histories, mixtures, grids of tables as people bring them: which rows count."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.questions.parametric_study import fit_rows
from scaling.analysis.tables import read
from scaling.analysis.tables.ladder import Ladder
from tests.analysis.base_runs import BASE, KEPT, LOST, PLAIN, Build, counted, history, same_runs

# --- states -----------------------------------------------------------------------------------


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
