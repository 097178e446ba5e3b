"""Tables as people keep and publish them: lines that are no runs, LaTeX, two lines of names, units
by the row, several measures of one run in rows below each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.tables import read
from scaling.errors import UserError
from tests.analysis.base_runs import BASE, counted, history, same_runs

N, D, L = (BASE[c].to_numpy(float) for c in ("N", "D", "loss"))
RUNS = [f"r{i}" for i in range(30)]
ROWS = [(f"{n / 1e6:.6f}", f"{d / 1e9:.6f}", f"{x:.4f}") for n, d, x in zip(N, D, L, strict=True)]
PLAIN = pd.DataFrame({"run_id": RUNS, "params": N, "tokens": D, "val_loss": L})


def lines(sign: str, end: str = "\n", before: str = "", after: str = "") -> str:
    body = (sign.join((run, *row)) + end for run, row in zip(RUNS, ROWS, strict=True))
    return before + "".join(body) + after


def summary(word: str) -> str:
    means = ",".join(str(v) for v in (N.mean() / 1e6, D.mean() / 1e9, L.mean()))
    return lines(",", before="run,params (M),tokens (B),val_loss\n", after=f"{word},{means}\n")


HEADER = "Model & Params (M) & Tokens (B) & Loss"
TEXTS: dict[str, tuple[str, str]] = {
    "names again": (
        lines(",", before="run,params (M),tokens (B),val_loss\n") + "run,params (M),tokens (B),"
        "val_loss\n", "1 rows repeat the names"),
    "mean": (summary("mean"), "of several runs together"),
    "average below an index": (summary("**Average**").replace("run,", ",", 1), "several runs"),
    "units": (
        lines(",", before="run,params,tokens,val_loss\n,M,[billions],nats/token\n"),
        "first row holds units"),
    "title": (
        lines(";", before="Ladder 3\n\nrun;params (M);tokens (B);loss\n", after="Note: all\n"),
        "1 lines above"),
    "two lines of names": (
        lines(",", before="Run,Model,,Loss\n,params (M),tokens (B),val\n"), "two lines of names"),
    "latex": (
        lines(" & ", r" \\" + "\n", "\\begin{table}\n\\begin{tabular}{l|rrr}\n\\toprule\n"
              f"{HEADER} \\\\ \\midrule\n", "\\bottomrule\n\\end{tabular}\n\\end{table}\n"), ""),
    "latex rows": (lines("&", r"\\" + "\n", f"{HEADER} \\\\\n\\hline\n"), ""),
    "console": (
        "+---+\n| run | params (M) | tokens (B) | loss |\n+===+\n"
        + lines(" | ", " |\n").replace("r", "| r") + "+---+\n", ""),
    "pandas": (pd.DataFrame(PLAIN).to_string(), "parted by blanks"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TEXTS)
def test_lines_that_are_no_runs(kind: str, tmp_path: Path) -> None:
    text, said = TEXTS[kind]
    (tmp_path / "t.txt").write_text(text)
    rows, notes = read(tmp_path / "t.txt")
    same_runs(rows)
    assert any(said in note for note in notes), notes


def by_budget(**heads: str) -> pd.DataFrame:
    """A block of columns for each budget, a row for each size; heads: column of BASE -> name."""
    groups = [rows.reset_index(drop=True) for _, rows in BASE.groupby("budget")]
    return pd.concat(
        [group[c].rename(head.format(group["budget"].iloc[0]))
         for group in groups for c, head in heads.items()], axis=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    "heads",
    [
        {"N": "N_{:.0e}", "loss": "L_{:.0e}"},
        {"N": "N_{:.0e}", "loss": "L_{:.0e}", "D": "D_{:.0e}"},
        {"N": "params (C={:g})", "loss": "loss (C={:g})"},
        {"loss": "val_loss_{:.0e}_flops", "N": "params_{:.0e}_flops"},
        {"N": "{:.0e} FLOPs/N", "loss": "{:.0e} FLOPs/loss"},
        {"N": "N @ {:.0f}", "loss": "loss @ {:.0f}"},
    ],
)
def test_a_block_of_columns_for_each_budget(heads: dict[str, str]) -> None:
    table = by_budget(**heads)
    if "FLOPs" not in str([*table]).replace("flops", "FLOPs") and "D" not in heads:
        with pytest.raises(UserError, match="--compute-unit"):
            read(table)
    same_runs(read(table, compute_unit="FLOPs")[0])
    with pytest.raises(
        UserError, match=r"losses by tokens side by side.*Write a row for each loss"
    ):
        read(by_budget(loss="loss @ {:.0e} tokens").assign(params=N[:6]))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"D/N": D / N}, "x parameters, column 'params'"),
        ({"tokens_per_param": D / N}, "x parameters"),
        ({"epochs": 1.0, "dataset_tokens": D}, "x column 'epochs'"),
        ({"steps": D / 2**19, "tokens_per_step": 2**19}, "x column 'steps'"),
        ({"train_steps": D / 2**19, "global_batch_size": 256, "seq_len": 2048, "n_gpus": 8},
         "x columns 'global_batch_size' (sequences) and 'seq_len'"),
        ({"max_steps": D / 2**19, "batch_size": 256, "block_size": 2048}, "x columns 'batch_size'"),
        ({"train_iters": D / 2**19, "gbs": 256, "seq_length": 2048}, "'seq_length'"),
        ({"steps": D / 2**19, "global_batch_size": 2**19}, "x column 'steps'"),
        ({"consumed_samples": D / 2048, "seq_length": 2048}, "x column 'consumed_samples'"),
        ({"clips_seen": D / 4096, "tokens_per_clip": 4096}, "x column 'clips_seen'"),
    ],
)  # fmt: skip
def test_tokens_that_columns_give(columns: dict[str, Any], said: str) -> None:
    rows, notes = read(PLAIN.drop(columns="tokens").assign(**columns))
    same_runs(rows)
    assert any(said in note for note in notes)


@pytest.mark.parametrize("columns", [
    {"batch_size": 256, "world_size": 8},  # of a device, or of all?
    {"batch_size": 256, "gradient_accumulation_steps": 4},
    {"batch_size": 2**19},  # tokens already
])  # fmt: skip
def test_a_batch_of_a_part_gives_no_tokens(columns: dict[str, Any]) -> None:
    table = PLAIN.drop(columns="tokens").assign(steps=D / 2**19, seq_len=2048, **columns)
    with pytest.raises(UserError, match="'global_batch_size'"):
        read(table)


@pytest.mark.parametrize("column", ["max_tokens (B)", "target_tokens", "token_budget"])
def test_rows_before_the_end_of_their_schedule_have_not_decayed(column: str) -> None:
    """Checkpoints of runs that nothing names, each with the length of its schedule beside it."""
    planned = np.tile(D, 2) / (1e9 if "(B)" in column else 1)
    rows = pd.concat([PLAIN, PLAIN.assign(tokens=D / 2, val_loss=L + 0.2)], ignore_index=True)
    found, notes = read(rows.drop(columns="run_id").assign(**{column: planned}))
    assert found.decayed.tolist() == [True] * 30 + [False] * 30
    same_runs(found[found.decayed].reset_index(drop=True))
    assert any("30 rows have seen fewer tokens" in note for note in notes)
    _, notes = read(PLAIN.assign(**{column: 10 * planned[:30]}))
    assert any(note.startswith("beware: no row has seen the tokens") for note in notes)


def test_an_error_is_no_accuracy() -> None:
    """`top1_err` has the word of an accuracy in it and is lower where models are better."""
    for name in ("top1_err", "top5_error", "error_rate"):
        rows, notes = read(PLAIN.drop(columns="val_loss").assign(**{name: L / 10}), metric=name)
        assert rows["val_loss"].to_numpy() == pytest.approx(L / 10)
        assert any("an error, as it is" in note for note in notes)
    with pytest.raises(UserError, match="better high or low"):
        read(PLAIN.assign(acc_err=0.01), metric="acc_err")


def test_a_ratio_that_is_named_is_one() -> None:
    rows, _ = read(PLAIN.rename(columns={"tokens": "t"}).assign(**{"D/N": D / N}), d="D/N")
    assert rows["tokens"].to_numpy() == pytest.approx(D)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.assign(tokens=np.where(np.arange(30) < 15, D, D / 1e9)), "row 16 .* one unit"),
        (lambda t: t.assign(params=np.where(np.arange(30) == 7, N / 1e6, N)), "row 8 of column"),
        (lambda t: t.assign(compute=6 * N * D / np.where(np.arange(30) < 9, 2, 1)), "mix units"),
        (lambda t: t.assign(val_loss=-L), "write its negative"),
        (lambda t: t.rename(columns={"val_loss": "loss (log2)"}), "no column for loss"),
        (lambda t: t.assign(val_loss=[f"{x:.3f}".replace(".", ",") for x in L]), "decimal points"),
        (lambda t: pd.concat([t.assign(split="train"), t.assign(split="val", val_loss=L + 0.1)]),
         "30 runs stand in 2 rows each.*'split'.*split == 'val'"),
        (lambda t: pd.concat([t.assign(domain="c4"), t.assign(domain="pile", val_loss=L - 1)])
         .drop(columns="run_id"), "differ in column 'domain'"),
    ],
)  # fmt: skip
def test_what_only_looks_like_a_table_of_runs(
    change: Callable[[pd.DataFrame], pd.DataFrame], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        read(change(PLAIN).reset_index(drop=True))
    with pytest.raises(UserError, match="logarithm of the loss"):
        read(PLAIN.rename(columns={"val_loss": "log10(loss)"}), loss="log10(loss)")


def test_a_loss_of_no_model_marks_a_run_that_failed() -> None:
    rows, notes = read(PLAIN.assign(val_loss=np.where(np.arange(30) == 3, 999.0, L)))
    same_runs(rows, BASE.drop(index=3))
    assert any("count as diverged" in note for note in notes)


def test_a_run_that_goes_on_without_a_loss_is_left_out() -> None:
    table = history()
    table.loc[(table["run_id"] == "r3") & (table["step"] > 600), "val_loss"] = np.nan
    rows, notes = read(table)
    same_runs(rows, BASE.drop(index=3))
    assert any("are left out: r3" in note for note in notes)


def test_other_counts_of_parameters_are_named() -> None:
    table = PLAIN.rename(columns={"params": "non-embedding params"})
    rows, notes = read(table.assign(**{"total params": 1.3 * N, "flops": 6 * N * D}))
    assert counted(rows)["params"].sum() == pytest.approx(1.3 * N.sum())
    assert any("with which training costs 6 N D (--n takes it)" in note for note in notes)


def megatron(folder: Path, *, tensor: int = 1, length: bool = True) -> Path:
    """Logs of the runs as Megatron prints them, with evaluations at every other tenth."""
    for i, (n, d, loss) in enumerate(zip(N, D, L, strict=True)):
        end = round(d / 2**18)
        text = "  seed ...................... 1\n  tensor_model_parallel_size .... 1\n"
        text += "  seq_length ..................... 1024\n" if length else ""
        for rank in range(tensor):
            text += (
                " > number of parameters on (tensor, pipeline) model parallel rank "
                f"({rank}, 0): {int(n) // tensor}\n"
            )
        for tenth in range(1, 11):
            at, higher = end * tenth // 10, 1 + 0.1 * (10 / tenth - 1)
            text += (
                f" [2026-01-01 10:00:00] iteration {at:8d}/{end:8d} | consumed samples: "
                f"{at * 256:12d} | learning rate: {1e-3 * (1.02 - tenth / 10):.3E} | lm loss: "
                f"{0.97 * loss * higher:.6E} | number of nan iterations:   0 |\n"
            )
            if tenth % 2 == 0:
                text += (
                    f"---\n validation loss at iteration {at} | lm loss value: "
                    f"{loss * higher:.6E} | lm loss PPL: 1.0E+02 |\n---\n"
                )
        text += f" validation loss at iteration {end} on test set | lm loss value: 1.0E+00 |\n"
        (folder / f"run{i}.log").write_text(text)
    return folder


def test_logs_of_megatron_are_histories(tmp_path: Path) -> None:
    rows, notes = read(megatron(tmp_path))
    same_runs(rows)
    assert "loss: column 'validation/lm_loss'; not 'train/lm_loss'" in notes
    with pytest.raises(UserError, match="give the folder that holds the runs' logs"):
        read(tmp_path / "run0.log")
    (tmp_path / "cut").mkdir()
    whole = (tmp_path / "run3.log").read_text().splitlines(keepends=True)
    (tmp_path / "run3.log").write_text("".join(whole[:14]))
    rows, notes = read(tmp_path)
    same_runs(rows, BASE.drop(index=3))
    assert any("are left out: run3" in note for note in notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"tensor": 2}, "not the sum of its ranks"), ({"length": False}, "tells seq_length")],
)
def test_logs_of_megatron_that_lack_something(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        read(megatron(tmp_path, **options))


@pytest.mark.parametrize("line", ["step:{}/900 val_loss:3.9 train_time:9ms", "{} val 3.9012"])
def test_logs_of_other_trainers_are_no_tables(line: str, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("".join(line.format(k) + "\n" for k in range(9)))
    with pytest.raises(UserError, match="a trainer's log"):
        read(tmp_path / "log.txt")
