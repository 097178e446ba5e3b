"""`scaling fit --save` and `scaling predict`: what the file says is what the fit said."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from scaling.analysis.questions.simulate import TRUTH, study
from scaling.cli import app, main

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = study(TRUTH, sizes=7, budgets=5, seed=3)
    pd.DataFrame(
        {
            "params": rows["params"],
            "tokens": rows["tokens"],
            "flops": 2 * rows["macs_total"],
            "loss": rows["val_loss"],
            "means": np.random.default_rng(0).integers(1, 4, len(rows)),
            "arm": np.arange(len(rows)) % 2,
        }
    ).to_csv("runs.csv", index=False)
    pd.DataFrame({"flops": [1e12, -3, 1e30]}).to_csv("points.csv", index=False)


@pytest.fixture
def run() -> Run:
    def command(line: str) -> str:
        done = CliRunner().invoke(app, line.split(), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return command


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--form saturating --e 1.2 --weights means",
        "--of tokens --delta 0.1",
        "--form parametric --e 1.2 --weights means --loss-kind linear",
        "--form overtraining",
    ],
)
def test_the_file_says_what_the_fit_said(run: Run, options: str) -> None:
    said = run(f"fit runs.csv {options} --at 1e13 --save law.json")
    again = run("predict law.json --at 1e13")
    for start in ("  predicts ", "  best run ", "  beware ", "  given ", "  weights "):
        mine, its = ([one for one in text.splitlines() if one.startswith(start)]
                     for text in (said, again))  # fmt: skip
        assert its == mine
    assert "  predicts " in said or "  best run " in said
    assert ("conditional on it" in again) == ("--e" in options)
    given = json.loads(Path("law.json").read_text())["law"]["given"]
    assert given == ({"E": 1.2} if "--e" in options else {})
    run(f"fit runs.csv {options} --save law.json")  # its own file is written again


def test_every_point_has_its_row(run: Run) -> None:
    run("fit runs.csv --save law.json")
    said = run("predict law.json points.csv --out told.csv")
    told = pd.read_csv("told.csv")
    assert len(told) == 3 and told["loss"].notna().tolist() == [True, False, False]
    assert told["refused"].isna().tolist() == [True, False, False]
    assert "row 2        no loss: compute is -1.5" in said
    assert "row 3        no loss at 5e+29 MACs" in said and "decades beyond the data" in said
    assert f"loss {told['loss'][0]:.4g} at 5e+11 MACs" in said
    assert told["low"][0] < told["loss"][0] < told["high"][0]
    assert told["run_low"][0] < told["low"][0] and told["high"][0] < told["run_high"][0]


def test_what_the_table_warned_of_is_in_the_file(run: Run) -> None:
    runs = pd.read_csv("runs.csv")
    runs.assign(tokenizer=["a", "b"] * 14 + ["a"]).to_csv("mixed.csv", index=False)
    said = run("fit mixed.csv --form power --save law.json")
    told = [one for one in said.splitlines() if one.startswith("  beware ")]
    assert any("2 values of 'tokenizer'" in one for one in told)
    again = run("predict law.json --at 1e13").splitlines()
    assert [one for one in again if one.startswith("  beware ")] == told


def test_groups_have_a_file_each(run: Run) -> None:
    run("fit runs.csv --form parametric --by arm --save law.json")
    laws = [run(f"predict law-{k}.json --at 1e13") for k in (1, 2)]
    assert laws[0] != laws[1] and not Path("law.json").exists()


def test_equal_weights_change_no_number(run: Run) -> None:
    runs = pd.read_csv("runs.csv")
    runs.assign(means=3).to_csv("same.csv", index=False)
    for options in ("--form power", "--form parametric --loss-kind huber", "--of params"):
        with_, without = (
            [one for one in run(f"fit same.csv {options} --at 1e13 {more}").splitlines()
             if not one.startswith(("  weights", "  read"))]
            for more in ("--weights means", "")
        )  # fmt: skip
        assert with_ == without


def test_loss_kinds_are_those_of_the_library(run: Run) -> None:
    fits = {
        kind: run(f"fit runs.csv --form overtraining --loss-kind {kind}").splitlines()
        for kind in ("huber", "squared", "linear")
    }
    heads = {next(one for one in said if one.startswith("L(N, D)")) for said in fits.values()}
    assert len(heads) == 3
    for kind, said in fits.items():
        assert any(f"{kind} loss" in line for line in said)
    assert "linear loss with its corner at 0.02" in run(
        "fit runs.csv --form overtraining --loss-kind linear --delta 0.02"
    )


def test_a_column_of_weights_has_no_other_meaning(run: Run) -> None:
    """By its name it would be how often a run saw its data."""
    pd.read_csv("runs.csv").rename(columns={"means": "repeats"}).to_csv("named.csv", index=False)
    said = run("fit named.csv --form power --weights repeats")
    assert "seen more than once" not in said
    mine, its = (
        [one for one in text.splitlines() if "read " not in one]
        for text in (said, run("fit runs.csv --form power --weights means"))
    )
    assert mine == its


def test_compare_takes_a_pinned_floor_and_weights(run: Run) -> None:
    runs = pd.read_csv("runs.csv").drop(columns="arm")
    both = pd.concat([runs.assign(arm="a"), runs.assign(arm="b", loss=1 + 0.9 * (runs.loss - 1))])
    both.to_csv("both.csv", index=False)
    for command in ("compare", "fit"):
        said = run(f"{command} both.csv --by arm --e 1 --weights means")
        floors = {one.split(": ")[-1] for one in said.splitlines() if "given E = 1" in one}
        exponents = {one.split("C^")[1].split(",")[0] for one in floors}
        assert len(floors) == 2 and len(exponents) == 1, "the arms differ by a factor above E"
        assert "saturating law over" in said and "difference +0.0000" in said.replace("-0.", "+0.")
    assert "given" not in run("compare both.csv --by arm")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fit runs.csv --save law.txt", "--save law.txt: end it in .json"),
        ("fit runs.csv --e 2.7", "E pinned at 2.7 is not in [0, 2.5519), the lowest loss"),
        ("fit runs.csv --e -1 --form parametric", "E pinned at -1 is not in [0, 2.5519)"),
        ("fit runs.csv --e 1 --form power", "a pure power law has no E, but E = 1"),
        ("fit runs.csv --loss-kind l1", "--loss-kind l1: --form select does not read it"),
        ("fit runs.csv --of tokens --loss-kind l1", "--loss-kind l1: --of tokens does not read it"),
        ("fit runs.csv --form parametric --loss-kind l3", "--loss-kind l3: choose one of huber"),
        ("fit runs.csv --form parametric --loss-kind l1 --delta 1", "--loss-kind l1 has no corner"),
        ("fit runs.csv --delta 0", "--delta 0: give a positive number"),
        ("fit runs.csv --weights mean", "no column 'mean'"),
        ("fit runs.csv --weights arm", "column 'arm' is 0 for run 'row 0' (15 such of 29 rows"),
        ("isoflop runs.csv --weights arm", "column 'arm' is 0 for run 'row 0' (15 such of 29"),
        ("isoflop runs.csv --weights means --errors arm", "--errors and --weights"),
        ("compare runs.csv --e 3", "E pinned at 3 is not in [0, 2.5519)"),
        ("compare runs.csv --weights arm", "column 'arm' is 0 for run 'row 0'"),
        ("predict none.json --at 1", "none.json: cannot be read (No such file or directory)"),
        ("predict runs.csv --at 1", "runs.csv: not the JSON of a law"),
        ("predict law.json", "nothing to predict: give a table of points, or --at"),
        ("predict law.json --at 1 --n params", "--n: of a table of points, and there is none"),
        ("predict law.json none.csv", "none.csv: no such file"),
        ("predict law.json points.csv --out o.txt", "--out o.txt: end it in .csv"),
        ("predict law.json points.csv --out points.csv", "points.csv is read by this command"),
        ("predict law.json --at -1", "give a positive number of MACs"),
        ("predict law.json points.csv --c flop", "no column 'flop' for compute (C)"),
    ],
)
def test_mistakes_are_one_message(
    run: Run, line: str, words: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if "law.json" in line:
        run("fit runs.csv --method lowest --save law.json")
    monkeypatch.setattr("sys.argv", ["scaling", *line.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and "Traceback" not in said
