"""A law in a file predicts as the fit did, to the last digit; what is no law is one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.laws.parametric_law import ParametricLaw
from scaling.analysis.laws.power_law import PowerLaw
from scaling.analysis.questions import saved_law
from scaling.analysis.questions.frontier import fit_frontier
from scaling.analysis.questions.parametric_study import fit_surface
from scaling.analysis.questions.simulate import TRUTH, study
from scaling.analysis.questions.variable import fit_variable
from scaling.analysis.tables.ladder import Ladder
from scaling.analysis.tables.points import read_points

KINDS: dict[str, Callable[[pd.DataFrame], Any]] = {
    "select": lambda rows: fit_frontier(rows, resamples=200),
    "points alone": lambda rows: fit_frontier(rows, resamples=200, method="lowest"),
    "power": lambda rows: fit_frontier(rows, resamples=200, form="power"),
    "pinned": lambda rows: fit_frontier(Ladder.of(rows, e=1.2, weights="w"), resamples=200),
    "zero": lambda rows: fit_frontier(Ladder.of(rows, e=0.0), resamples=200),
    "weights": lambda rows: fit_frontier(
        Ladder.of(rows, weights="w"), resamples=200, method="lowest"
    ),
    "params": lambda rows: fit_variable(
        Ladder.of(rows, variable="params"), resamples=200, form="power"
    ),
    "tokens": lambda rows: fit_variable(
        Ladder.of(rows, variable="tokens", weights="w"), resamples=200
    ),
    "surface": lambda rows: fit_surface(rows, resamples=200),
    "tied": lambda rows: fit_surface(rows, resamples=200, tied=True),
    "surface, pinned": lambda rows: fit_surface(
        Ladder.of(rows, e=1.2, weights="w"), resamples=200, loss_kind="linear", delta=0.01
    ),
    "surface, zero": lambda rows: fit_surface(
        Ladder.of(rows, e=0.0), resamples=200, loss_kind="squared"
    ),
}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    found = study(TRUTH, sizes=7, budgets=5, seed=3)
    return found.assign(w=np.random.default_rng(0).integers(1, 5, len(found)))


@pytest.fixture(scope="module")
def law(rows: pd.DataFrame) -> dict[str, Any]:
    """A file's content, of the smallest kind."""
    content: dict[str, Any] = json.loads(saved_law.text(fit_frontier(rows, resamples=200)))
    return content


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_file_predicts_what_the_fit_predicts(
    rows: pd.DataFrame, tmp_path: Path, kind: str
) -> None:
    found = KINDS[kind](rows)
    path = tmp_path / "law.json"
    path.write_text(saved_law.text(found))
    saved = saved_law.load(path)
    assert isinstance(saved, saved_law.SavedLaw)
    for at in (1e11, 3e12, 1e14, 1e25):
        assert saved.prediction(at) == found.prediction(at)
        if isinstance(found.law, ParametricLaw):
            assert isinstance(saved.law, ParametricLaw)
            assert str(saved.law.optimum(at)) == str(found.law.optimum(at))
            n, d = float(at**0.4), float(at**0.6)
            assert repr(saved.law.predict(n, d)) == repr(found.law.predict(n, d))
        else:
            assert isinstance(saved.law, PowerLaw)
            one, other = (vars(law.predict(at)) for law in (saved.law, found.law))
            assert np.array_equal([*one.values()][:7], [*other.values()][:7], equal_nan=True)
            assert one["refused"] == other["refused"]
    assert str(saved.law) == str(found.law) and saved.warnings == found.warnings
    assert saved.law.given == found.law.given and saved.law.level == found.law.level
    again = tmp_path / "again.json"
    again.write_text(path.read_text())
    twice = saved_law.load(again)
    assert isinstance(twice, saved_law.SavedLaw)
    assert twice.prediction(1e13) == saved.prediction(1e13)


def test_the_file_is_plain_json_that_says_what_it_is(law: dict[str, Any]) -> None:
    assert law["format"] == "scaling law" and law["version"] == saved_law.VERSION
    assert law["law"]["unit"] == "MACs" and law["law"]["form"] in ("power", "saturating")
    assert {"warnings", "excluded", "choice", "points"} <= set(law)
    assert set(law["data"]) == {"compute", "loss", "weights", "covariance"}, "and no draw of chance"
    assert not np.isnan(np.array(law["data"]["covariance"])).any()


def test_points_are_refused_on_their_own_rows(rows: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "law.json"
    path.write_text(saved_law.text(fit_frontier(rows, resamples=200)))
    saved = saved_law.load(path)
    assert isinstance(saved, saved_law.SavedLaw)
    cells = ["1e12", "1e13", "", "0", "-3", "none of them", "1e30", "inf"]
    points, notes = read_points(pd.DataFrame({"train_flops": cells}), saved.of)
    table, texts = saved.predict(points)
    told = {str(name): table[name].tolist() for name in table}
    assert len(table) == len(texts) == len(cells)
    assert told["macs_total"][0] == 5e11 and "in FLOPs" in notes[0]
    assert isinstance(saved.law, PowerLaw)
    fine = saved.law.predict(5e11)
    names = ["loss", "low", "high", "run_low", "run_high", "decades"]
    assert [told[name][0] for name in names] == [getattr(fine, name) for name in names]
    assert [one == "" for one in told["refused"]] == [True, True] + [False] * 6
    assert table.loc[2:, ["loss", "low", "high", "run_low", "run_high"]].isna().all().all()
    for row, words in ((2, "compute is missing"), (3, "compute is 0"), (4, "compute is -1.5"),
                       (5, "'none of them', which is no number"), (6, "decades beyond the data"),
                       (7, "compute is inf")):  # fmt: skip
        assert words in told["refused"][row] and words in texts[row]


def test_a_surface_takes_points_or_budgets(rows: pd.DataFrame, tmp_path: Path) -> None:
    found = fit_surface(rows, resamples=200)
    path = tmp_path / "law.json"
    path.write_text(saved_law.text(found))
    saved = saved_law.load(path)
    assert isinstance(saved, saved_law.SavedLaw)
    points, _ = read_points(pd.DataFrame({"N": ["1M", "x"], "D": ["1B", "1B"]}), "both")
    told, texts = saved.predict(points)
    one = found.law.predict(1e6, 1e9)
    assert (told["loss"][0], told["low"][0]) == (one.loss, one.low) and str(one) == texts[0]
    assert one.low < found.law(1e6, 1e9) < one.high and one.run_low < one.low
    assert "extrapolated" in texts[0] and "parameters are" in texts[1]
    inside = found.law.predict(float(found.law.n[3]), float(found.law.d[3]))
    assert inside.decades == 0 and "inside the fitted range" in str(inside)
    points, _ = read_points(pd.DataFrame({"train_flops": [2e13]}), "both")
    told, _ = saved.predict(points)
    best = found.law.optimum(1e13)
    assert (told["params"][0], told["tokens"][0], told["high"][0]) == (
        best.n, best.d, best.loss_interval[1],
    )  # fmt: skip
    for bad in ({"D": [1e9]}, {"loss": [3.0]}):
        with pytest.raises(ValueError, match="no column for parameters"):
            read_points(pd.DataFrame(bad), "both")
    with pytest.raises(ValueError, match="parameters are -1"):
        found.law.predict(-1.0, 1e9)


def test_compute_of_points_follows_from_sizes_and_tokens() -> None:
    points, notes = read_points(pd.DataFrame({"params": [1e7], "tokens": [1e9]}), "compute")
    assert points["macs_total"][0] == 3e16 and "3 N D training MACs" in notes[-1]
    with pytest.raises(ValueError, match="FLOPs or MACs"):
        read_points(pd.DataFrame({"compute": [1e15]}), "compute")
    points, _ = read_points(pd.DataFrame({"compute": [1e15]}), "compute", compute_unit="MACs")
    assert points["macs_total"][0] == 1e15


def _put(content: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """The content with one value changed; without it where that is ...."""
    *places, last = path.split("/")
    changed: dict[str, Any] = json.loads(json.dumps(content))
    holder = changed
    for place in places:
        holder = holder[place]
    if value is ...:
        del holder[last]
    else:
        holder[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("format", "another", "not a law that was saved by"),
        ("format", ..., "not a law that was saved by"),
        ("version", 99, "a law of version 99, and this is a tool of version 1: read it with"),
        ("version", "1", "a law of version '1'"),
        ("law", ..., "it has no 'law'"),
        ("law/form", "cubic", "no form 'cubic'"),
        ("law/unit", "miles", "no form"),
        ("law/level", 2, "'level' is '2'"),
        ("law/parameters/b", "steep", "'b' is 'steep'"),
        ("law/parameters", [], "it has no 'parameters'"),
        ("law/interval/b", [1], "'b' is of shape"),
        ("law/noise_log", None, "'noise_log' is 'None'"),
        ("law/status/converged", ..., "'status' has no 'converged'"),
        ("law/status/starts", [], "'starts' is"),
        ("warnings", "none", '"warnings" is no list of texts'),
        ("data", None, "it has no 'data'"),
        ("data/compute", [1, 2], "'compute' is of shape"),
        ("data/compute", [1e12] * 5, "'compute' has fewer than three values"),
        ("law/parameters/a", 0, "'a' is '0'"),
        ("data/compute", "text", "something else than finite numbers"),
        ("data/loss", [[1], [2, 3]], "no table of numbers"),
        ("data/loss", [], "'loss' is of shape"),
        ("data/loss", [3, 2, -1, 1, 1], "'loss' holds numbers that are not positive"),
        ("data/loss", [10**400] * 5, "something else than finite numbers"),
        ("data/covariance", [[1.0] * 5] * 4, "'covariance' is of shape"),
        ("data/covariance", (-np.eye(5)).tolist(), "'covariance' is none"),
        ("data/weights", [0] * 5, "'weights' holds numbers that are not positive"),
    ],
)
def test_a_damaged_file_is_one_sentence(
    law: dict[str, Any], tmp_path: Path, path: str, value: object, words: str
) -> None:
    file = tmp_path / "law.json"
    file.write_text(json.dumps(_put(law, path, value)))
    with pytest.raises(ValueError) as refusal:
        saved_law.load(file)
    said = str(refusal.value)
    assert said.startswith(f"{file}: ") and words in said and "\n" not in said


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b"[" * 5000, b"loss,n\n"]
)
def test_what_is_no_json_of_a_law_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "law.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"law\.json: not (the JSON of )?a law"):
        saved_law.load(file)
    with pytest.raises(ValueError, match="cannot be read"):
        saved_law.load(tmp_path / "none.json")


def test_every_truncation_is_refused(law: dict[str, Any], tmp_path: Path) -> None:
    whole, file = json.dumps(law), tmp_path / "law.json"
    for end in np.linspace(1, len(whole) - 1, 40).astype(int):
        file.write_text(whole[:end])
        with pytest.raises(ValueError, match="not the JSON of a law"):
            saved_law.load(file)
