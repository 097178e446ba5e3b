"""Tables in the names of tools: what their columns are called, and what stands in them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.questions.transfer import verdict_lines
from scaling.analysis.tables import read
from scaling.analysis.tables.sweeps import read_sweep
from tests.analysis.base_runs import BASE, history, same_runs

N, D, C, L = (BASE[c] for c in ("N", "D", "C", "loss"))
NAMES = [f"vivid-sun-{i}" for i in range(30)]
TABLES: dict[str, dict[str, Any]] = {
    "wandb, hugging face": {
        "Name": NAMES, "State": "finished", "Created": "2026-11-01", "model/num_parameters": N,
        "learning_rate": 3e-4, "eval/loss": L, "train/loss": L * 0.98, "train_loss": L * 1.05,
        "train/learning_rate": 1e-5, "train/num_input_tokens_seen": D, "total_flos": C,
        "train/global_step": (D / 5e5).astype(int), "train_runtime": 3500.2},
    "mlflow": {
        "run_id": NAMES, "experiment_id": 3, "status": "FINISHED", "start_time": "2026-11-01",
        "metrics.val_loss": L, "metrics.train_loss": L * 0.98, "metrics.tokens_seen": D,
        "metrics.val_perplexity": np.exp(L), "params.n_params": N.astype(str),
        "params.lr": "0.0003", "params.max_steps": "2000", "tags.mlflow.runName": NAMES},
    "olmo": {
        "Name": NAMES, "State": "finished", "throughput/total_tokens": D,
        "throughput/total_training_Gflops": C / 1e9, "train/CrossEntropyLoss": L * 0.98,
        "throughput/total_training_log_Gflops": np.log(C / 1e9),
        "throughput/device/tokens_per_second": 12345.0, "train/Perplexity": np.exp(L * 0.98),
        "eval/c4_en-validation/CrossEntropyLoss": L, "optim/learning_rate_group0": 3e-5},
    "olmo core": {
        "Name": NAMES, "throughput/total tokens": D, "throughput/total petaflops": C / 1e15,
        "throughput/device/TPS": 9000.0, "optim/LR (group 0)": 3e-5, "train/CE loss": L * 0.98,
        "eval/lm/c4_en-validation/CE loss": L, "eval/lm/c4_en-validation/PPL": np.exp(L),
        "num_params": N, "num_non_embedding_params": N * 0.9},
    "levanter": {
        "Name": NAMES, "State": "finished", "parameter_count": N, "throughput/total_tokens": D,
        "throughput/total_gflops": C / 1e9, "throughput/gflops_per_second": 5e5, "eval/loss": L,
        "train/loss": L * 0.98, "eval/paloma/macro_loss": L * 1.1, "eval/bpb": L / 3,
        "global_step": 2000, "num_train_steps": 2001},
    "ray": {
        "trial_id": NAMES, "val_loss": L, "done": True, "training_iteration": 100,
        "time_total_s": 300.0, "config/lr": 3e-4, "config/n_params": N, "config/tokens": D},
    "neptune": {
        "sys/id": NAMES, "sys/state": "inactive", "sys/failed": False, "parameters/n_params": N,
        "training/tokens": D, "metrics/val/loss": L, "metrics/train/loss": L * 0.98},
    "aim": {
        "run.hash": NAMES, "run.hparams.n_params": N, "metrics.val_loss.last": L,
        "metrics.val_loss.min": L * 0.98, "run.hparams.tokens": D},
    "t5x": {
        "num_params": N, "tokens": D, "train/loss": L * 0.97,
        "training_eval/c4/cross_ent_loss_per_all_target_words": L},
    "mixture of experts": {
        "total_params": N * 8, "active_params": N, "tokens": D, "flops": C, "val_loss": L},
    "letters": {"C": C, "N": N, "D": D, "L": L},
    "letters with units": {
        "N": [f"{n / 1e6:.2f}M" for n in N], "D": [f"{d / 1e9:.4f}B" for d in D], "L": L},
}  # fmt: skip


@pytest.mark.parametrize("tool", TABLES)
def test_tables_of_tools(tool: str, tmp_path: Path) -> None:
    pd.DataFrame(TABLES[tool]).to_csv(tmp_path / "t.csv", index=False)
    same_runs(read(tmp_path / "t.csv")[0])


def test_of_a_mixture_of_experts_it_is_asked_which_parameters_cost() -> None:
    table = pd.DataFrame(TABLES["mixture of experts"]).drop(columns="flops")
    with pytest.raises(ValueError, match="'total_params', 'active_params' could all be meant"):
        read(table)
    same_runs(read(table, n="active_params")[0])
    same_runs(read(table.assign(total_params=N))[0])


@pytest.mark.parametrize("name", ["val loss per token", "val_loss_per_token", "val/loss per token"])
def test_a_loss_per_token_is_one(name: str) -> None:
    table = pd.DataFrame({"params": N, "tokens": D, name: L, "train_loss": L * 0.97})
    same_runs(read(table)[0])
    with pytest.raises(ValueError, match="no column for loss"):
        read(table.drop(columns="train_loss").rename(columns={name: "loss per second"}))


def test_a_column_l_of_layers_is_no_loss() -> None:
    table = pd.DataFrame({"N": N, "D": D, "L": np.tile([4, 6, 8, 10, 12, 16], 5)})
    with pytest.raises(ValueError, match="no column for loss"):
        read(table)


@pytest.mark.parametrize("name", ["isoflop", "IsoFLOPs", "iso_flop", "isoFLOP budget", "iso-flops"])
def test_budgets_of_isoflop_curves(name: str) -> None:
    table = pd.DataFrame({name: BASE["budget"], "n_params": N, "val_loss": L})
    rows, _ = read(table)
    same_runs(rows)
    assert rows["budget_macs"].nunique() == 5
    words = table.assign(**{name: [f"{c:.0e} FLOPs" for c in BASE["budget"]]})
    assert read(words)[0]["budget_macs"].nunique() == 5


def test_a_neptune_run_that_failed_is_left_out() -> None:
    table = pd.DataFrame(TABLES["neptune"])
    table["sys/failed"] = table.index == 4
    same_runs(read(table)[0], BASE.drop(index=4))
    with pytest.raises(ValueError, match="'inactive' \\(30 rows\\): is a run with it finished"):
        read(table.drop(columns="sys/failed"))


def test_cells_that_hold_whole_summaries(tmp_path: Path) -> None:
    """As Weights & Biases' documentation exports a project's runs."""
    summary = [
        {
            "_step": 2000,
            "val/loss": loss,
            "spread": float("nan"),
            "worst": float("inf"),
            "tokens": d,
        }
        for loss, d in zip(L, D, strict=True)
    ]
    config = [{"lr": 3e-4, "model": {"n_params": int(n)}, "tags": ["a", 1]} for n in N]
    table = pd.DataFrame({"summary": summary, "config": config, "name": NAMES})
    same_runs(read(table)[0])
    table.to_csv(tmp_path / "project.csv")
    rows, _ = read(tmp_path / "project.csv")
    same_runs(rows)
    assert rows["run_id"].tolist() == NAMES
    with pytest.raises(ValueError, match="the table has 'summary', 'config'"):
        read(pd.DataFrame({"summary": ["{open("], "config": ["{}"]}))


@pytest.mark.parametrize("name", ["lr-AdamW", "lr-SGD/pg1", "optim/learning_rate_group0"])
def test_names_of_the_rate_along_a_run(name: str) -> None:
    table = history(rate=True).rename(columns={"lr": name})
    table.loc[table["run_id"] == "r3", name] = 1e-3
    rows, notes = read(table)
    same_runs(rows, BASE.drop(index=3))
    assert any("1 runs end before their learning rate has decayed" in n for n in notes)


def test_a_history_named_as_nanogpt_names_it() -> None:
    table = history().rename(columns={"run_id": "wandb_run_name", "step": "iter"})
    rows, _ = read(table.assign(max_iters=1000))
    same_runs(rows)


# --- learning-rate sweeps -----------------------------------------------------------------------


def sweep(moving: bool = True) -> pd.DataFrame:
    """Evaluations along runs of four widths and eight rates; the best rate falls by an octave a
    width, but early on the highest rate is the best one."""
    parts = []
    for k, width in enumerate((128, 256, 512, 1024)):
        for log2_lr in range(-12, -4):
            end = 3 - 0.2 * k + 0.01 * (log2_lr + 8 + k) ** 2
            for step in (0, 100, 200, 300):
                rate = 2.0**log2_lr * ((1 - step / 400) if step and moving else not moving)
                told = {"run_id": f"w{width} lr{log2_lr}", "step": step, "width": width}
                loss = end + (300 - step) * (0.01 - 0.001 * log2_lr)
                parts.append(told | {"lr": rate, "val_loss": loss})
    return pd.DataFrame(parts)


@pytest.mark.parametrize(
    "table",
    [
        sweep(False),
        sweep(False).drop(columns="run_id"),
        sweep(False).sample(frac=1, random_state=0),
    ],
    ids=["named", "without names", "shuffled"],
)
def test_of_a_sweeps_history_the_last_steps_count(table: pd.DataFrame) -> None:
    points, notes = read_sweep(table)
    assert any("history: 128 rows; of each of 32 runs" in n for n in notes)
    assert len(points) == 32 and points["val_loss"].min() == pytest.approx(2.4)
    assert "moves by -3.00" in next(verdict_lines(points))


def test_the_rate_of_a_run_is_its_highest() -> None:
    points, _ = read_sweep(sweep())
    assert points["log2_lr"].max() == pytest.approx(-5 + np.log2(0.75))
    assert "moves by -3.00" in next(verdict_lines(points))
    with pytest.raises(ValueError, match="--run COLUMN"):
        read_sweep(sweep().drop(columns="run_id"))
    points, _ = read_sweep(sweep().rename(columns={"run_id": "arm"}), run="arm")
    assert len(points) == 32
    assert len(read_sweep(sweep(False), history=False)[0]) == 128


def test_runs_of_a_sweep_that_diverged_or_were_cut_short() -> None:
    table = sweep(False)
    table.loc[table["run_id"] == "w256 lr-5", "val_loss"] = np.nan
    table = table[(table["run_id"] != "w512 lr-9") | (table["step"] < 200)]
    points, notes = read_sweep(table)
    assert any("1 runs end long before the others" in n for n in notes)
    assert len(points) == 31 and points["val_loss"].isna().sum() == 1
    assert "moves by -3.00" in next(verdict_lines(points))


@pytest.mark.parametrize("name", ["log2lr", "log2_lr", "log2 lr"])
def test_logarithms_of_rates(name: str) -> None:
    table = sweep(False).query("step == 300").drop(columns=["run_id", "step"])
    table = table.assign(lr=np.log2(table["lr"])).rename(columns={"lr": name})
    points, _ = read_sweep(table)
    assert sorted(points["log2_lr"].unique()) == list(range(-12, -4))
