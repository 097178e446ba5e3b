"""`scaling fit --form curve`, on a table and on a study, and `scaling predict` of what it saved."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import scaling
from scaling.analysis.laws.schedule import cosine, wsd
from scaling.cli import app, main
from tests.analysis.test_curve import simulated

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frames = []
    for size in (1, 2):
        for curve in simulated(size)[:2]:
            columns = {"run": f"{curve.name}-{size}", "params": size * 1e7, "step": curve.step}
            rate = curve.schedule.at(curve.step)
            frames.append(pd.DataFrame({**columns, "lr": rate, "loss": curve.loss}))
    pd.concat(frames).to_csv("history.csv", index=False)
    at = np.arange(2000.0, 24_001, 250)
    asked = {"wsd": wsd(24_000, 3e-4, 2000, 0.2, 0.1), "other peak": cosine(24_000, 3e-3, 2000)}
    pd.concat(
        [pd.DataFrame({"run": k, "step": at, "lr": s.at(at)}) for k, s in asked.items()]
    ).to_csv("schedules.csv", index=False)


@pytest.fixture
def run() -> Run:
    def command(line: str) -> str:
        done = CliRunner().invoke(app, line.split(), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return command


def test_a_law_of_each_size_is_saved_and_predicts_a_schedule(run: Run) -> None:
    said = run("fit history.csv --form curve --by params --save curve.json --figure curve.html")
    assert said.count("at the end   cosine to 10%, 23950 steps: loss") == 2
    drawn = pd.read_csv("curve-2.points.csv")
    assert drawn["observed"].notna().all() and Path("curve-2.html").stat().st_size > 10_000
    assert "beware       log C" not in said and "not told by these curves" in said
    said = run("predict curve-1.json schedules.csv --out predicted.csv")
    assert "run          wsd, step 24000: loss " in said
    assert "other peak, step 24000: no loss: its peak rate 0.003 lies outside" in said
    predicted = pd.read_csv("predicted.csv")
    there = predicted[predicted["run"] == "wsd"]
    assert (there["low"] < there["loss"]).all() and there["loss"].is_monotonic_decreasing
    law = scaling.fit_curves("history.csv", where="params == 1e7").law
    assert law.predict(wsd(24_000, 3e-4, 2000, 0.2, 0.1)).loss[0] == pytest.approx(
        there["loss"].iloc[-1], rel=1e-3
    )


MISTAKES = {
    "fit history.csv --form curve": "curves of several sizes (column 'params': 1e+07, 2e+07)",
    "fit history.csv --form curve --at 3": "--at 3.0: --form curve does not read it",
    "fit history.csv --form curve --n params": "--n params: --form curve does not read it",
    "fit history.csv --form curves": "saturating, parametric, overtraining, curve",
    "fit schedules.csv --form curve": "loss",
    "predict missing.json schedules.csv": "cannot be read",
    "predict curve.json --at 3": "give a table of schedules",
    "predict curve.json schedules.csv --n x": "reads the columns step and lr alone",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    from scaling.analysis.questions import saved_law
    from scaling.analysis.questions.curve_study import study_curves

    return saved_law.text(study_curves(simulated(0), hold=False))


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_sentence(
    line: str, saved: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("curve.json").write_text(saved)
    monkeypatch.setattr("sys.argv", ["scaling", *line.split()])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert MISTAKES[line] in " ".join(capsys.readouterr().err.split())
