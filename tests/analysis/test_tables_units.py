"""Units and columns of tables as people bring them: read right, or refused with what to do."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.tables import read
from tests.analysis.base_runs import BASE, PLAIN, counted, same_runs

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
