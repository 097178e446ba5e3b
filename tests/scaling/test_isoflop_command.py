"""`scaling isoflop` on a table: text, files, budgets by column, and the user's mistakes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from scaling.analysis.questions.simulate import TRUTH, study
from scaling.cli import app, main


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = study(TRUTH, sizes=9, budgets=5, reach=20.0, trunks=False, run_noise=0.0)
    path = tmp_path / "runs.csv"
    pd.DataFrame(
        {
            "params": rows["params"],
            "tokens": rows["tokens"],
            "flops": 2 * rows["macs_total"],
            "loss": rows["val_loss"],
            "se": 0.002 * rows["val_loss"],
            "sweep": [f"iso {b:.2g}" for b in rows["budget_macs"]],
        }
    ).to_csv(path, index=False)
    return path


def test_it_prints_every_method_and_writes_both_tables(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "sizes"
    done = CliRunner().invoke(
        app,
        ["isoflop", str(table), "--budget-column", "sweep", "--errors", "se", "--out", str(out)],
        catch_exceptions=False,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    laws, minima = (pd.read_csv(out / name) for name in ("size_laws.csv", "minima.csv"))
    for row in laws.to_dict("records"):
        assert f"{row['approach']:31s}p {row['params_exponent']:.4f}" in done.output
        assert f"{row['approach']:31s}p {row['tokens_exponent']:.4f}" in done.output
        assert row["params_exponent_low"] < 0.5 < row["params_exponent_high"]
    assert len(minima) == 3 * 5 and minima["accepted"].all()
    assert "a parabola takes the sizes within 8x of the line" in done.output
    assert "nan" not in done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--budget-column", "swep"],
            "no column 'swep' for nominal budget; the table has 'params'",
        ),
        (["--budget-column", "sweep", "--within", "1.5"], "a column or a tolerance"),
        (["--budget", "sweep"], "No such option: --budget"),
        (["--within", "0.5"], "within is 0.5: give a factor above 1"),
        (["--errors", "sd"], "no column 'sd'"),
        (["--window", "0.5"], "window 0.5"),
        (["--at", "-1"], "give a positive number of MACs"),
    ],
)
def test_mistakes_are_one_message(
    table: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.argv", ["scaling", "isoflop", str(table), *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_what_is_there_is_not_written_over(table: Path) -> None:
    mine = table.parent / "minima.csv"
    mine.write_text("mine")
    done = CliRunner().invoke(app, ["isoflop", str(table), "--out", str(table.parent)])
    assert "is there and not as `scaling isoflop` made it" in str(done.exception)
    assert mine.read_text() == "mine" and not (table.parent / "size_laws.csv").exists()


def test_a_tolerance_tells_budgets(table: Path, tmp_path: Path) -> None:
    runs = pd.read_csv(table)
    rng = np.random.default_rng(0)
    factor = rng.uniform(1, 1.3, len(runs))
    runs = runs.assign(flops=runs["flops"] * factor, tokens=runs["tokens"] * factor)
    runs["loss"] = TRUTH(runs["params"], runs["tokens"])
    runs.to_csv(tmp_path / "apart.csv", index=False)
    said = CliRunner().invoke(app, ["isoflop", str(tmp_path / "apart.csv")]).output
    assert "no nominal budgets: name the column that tells them" in said
    done = CliRunner().invoke(app, ["isoflop", str(tmp_path / "apart.csv"), "--within", "1.4"])
    assert done.exit_code == 0 and done.output.count(" MACs, ") >= 5
