"""`import scaling`: what a notebook needs, listed, typed, and loaded when it is asked for."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import scaling
from scaling.analysis.questions.frontier import fit_frontier
from scaling.analysis.questions.parametric_study import fit_surface
from tests.report.conftest import simulated_rows

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("door") / "runs.csv"
    simulated_rows().assign(known=4.0).to_csv(path, index=False)
    return path


def test_it_is_listed_in_one_place_and_loads_late() -> None:
    assert dir(scaling) == sorted(scaling.__all__)
    for name in scaling.__all__:
        assert getattr(scaling, name)
    assert (ROOT / "scaling" / "py.typed").exists()
    with pytest.raises(AttributeError, match="module 'scaling' has no attribute 'opne'; it has"):
        scaling.opne  # type: ignore[attr-defined]  # noqa: B018
    heavy = "{'pandas', 'torch', 'numpy'}"
    code = f"import scaling, sys; dir(scaling); assert not {heavy} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)


def test_a_notebook_asks_all_of_one_object(table: Path) -> None:
    runs = scaling.read(table)
    law = runs.law()
    assert law.summary() == fit_frontier(simulated_rows(), seed=0).summary()
    assert len(law.figure().data) and len(runs.figure(law).data) > len(law.figure().data)
    gpt3, other = runs.compare("gpt3", runs)
    assert gpt3.other.startswith("GPT-3") and other.difference == 0
    assert len(runs.choices()) and runs.sizes(resamples=100)["approach"].is_unique
    fitted = scaling.fit(runs, form="parametric")
    assert fitted.summary() == fit_surface(simulated_rows()).summary()


def test_a_floor_and_weights_hold_for_every_question(table: Path) -> None:
    runs = scaling.read(table, e=1.2, weights="known")
    law = runs.law()
    assert law.law.given == {"E": 1.2} and law.law.weights is not None
    tried = runs.choices()
    assert set(tried.loc[tried["form"] == "saturating", "e"]) == {1.2}
    floor = {one.key: one for one in runs.audit().findings}["floor"]
    assert "E = 1.2 is pinned" in floor.evidence


def test_what_does_not_go_together_is_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(scaling.UserError, match="a file, not a study's folder"):
        scaling.open(table)
    with pytest.raises(scaling.UserError, match="not a study's folder"):
        scaling.open(tmp_path)
    with pytest.raises(scaling.UserError, match="form is 'bent': choose one of"):
        scaling.fit(table, form="bent")
    with pytest.raises(scaling.UserError, match="of is 'tokens': the form parametric"):
        scaling.fit(table, form="parametric", of="tokens")
    with pytest.raises(scaling.UserError, match="runs that were read have their columns"):
        scaling.fit(scaling.read(table), e=1.0)
    with pytest.raises(scaling.UserError, match="say how well known the losses"):
        scaling.read(table, weights="known").next(1e13)
    frame = pd.DataFrame({"flops": [1e18, 1e19], "loss": [3.0, 2.8]})
    with pytest.raises(scaling.NotIdentified):
        scaling.fit(frame)


def test_what_a_study_has_not_is_told(tmp_path: Path) -> None:
    """Of tokens and of what its models learned."""
    with pytest.raises(scaling.UserError, match="no such study"):
        scaling.learned(tmp_path / "none")
    with pytest.raises(scaling.UserError, match="has no tokens; `scaling encode` makes"):
        scaling.tokens(tmp_path)
    learned = scaling.learned(tmp_path)
    assert learned.probes is None and learned.tracking() == {}
    with pytest.raises(scaling.UserError, match=r"has no probes\.csv; `scaling probe"):
        learned.best_layers()
    with pytest.raises(scaling.UserError, match=r"has no loss_by_position\.json"):
        learned.positions()
