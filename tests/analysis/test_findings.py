"""What a study's runs say is found once, is plain data, and is all that the page draws."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling.analysis import plain
from scaling.analysis.findings import Findings, Repeated, find
from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.laws.power_law import PowerLaw
from scaling.analysis.questions.form_study import repeated_law
from scaling.analysis.questions.frontier import StudyLaw, fit_frontier
from scaling.analysis.report.study import page_text
from scaling.analysis.tables import ladder
from scaling.analysis.tables.ladder import Ladder
from scaling.errors import UserError
from scaling.study.page import write_report
from scaling.study.page_sources import read_sources
from scaling.study_folder import Study
from tests.report.conftest import simulated_rows


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return simulated_rows()


@pytest.fixture(scope="module")
def law(rows: pd.DataFrame) -> StudyLaw:
    return fit_frontier(rows)


@pytest.fixture(scope="module")
def told(
    rows: pd.DataFrame, law: StudyLaw, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Findings]:
    """A study's page, and the findings that it was made of."""
    asked: list[bytes] = []
    kept: list[Findings] = []
    rules = ladder.exclude

    def counted(given: pd.DataFrame, variable: str = "compute") -> Any:
        asked.append(pd.util.hash_pandas_object(given).to_numpy().tobytes())
        return rules(given, variable)

    def keeping(*given: Any, **more: Any) -> Findings:
        kept.append(find(*given, **more))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder, "exclude", counted)
        patch.setattr("scaling.study.page.find", keeping)
        whole, folder = Ladder.of(rows), tmp_path_factory.mktemp("study")
        path = write_report(folder, rows, law, ladder=whole, config_text="a: 1")
    assert len(asked) == 1, "the rules are put to a study's rows once"
    (found,) = kept
    return path, found


def test_a_page_from_stored_findings_is_the_page_from_rows(
    rows: pd.DataFrame, told: tuple[Path, Findings], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = told
    stored = Findings.read(path.with_name("law.json"))
    monkeypatch.setattr(ladder, "exclude", None)  # nothing is asked of the rows again
    text = path.read_text(encoding="utf-8")
    begin = text[: text.index("<style>")]
    shown = read_sources(Study(path.parent), None, rows, "a: 1")
    assert page_text(begin, shown, stored) == text


def test_findings_come_back_as_they_were(law: StudyLaw, told: tuple[Path, Findings]) -> None:
    _, found = told
    text = json.dumps(found.to_json(), allow_nan=False)
    same = Findings.from_json(json.loads(text))
    assert json.dumps(same.to_json(), allow_nan=False) == text
    assert same.law is not None and same.law.summary() == law.summary()
    assert str(same.law.law.predict(5e11)) == str(law.law.predict(5e11))
    assert same.audit == found.audit and found.sizes is not None and same.sizes is not None
    for one, other in ((found.sizes.minima, same.sizes.minima), (law.points, same.law.points)):
        assert one is not None and other is not None
        pd.testing.assert_frame_equal(one, other)


def test_runs_that_repeat_their_data_have_the_law_that_counts_it(
    rows: pd.DataFrame, tmp_path: Path
) -> None:
    """Of a study by itself: in its findings, on its page, and kept beside its law."""
    once, fades = 1e6, 6.0  # unique tokens; R_D of arXiv 2305.16264
    of_ladder = rows.role == "ladder"
    again = np.maximum(rows.tokens / once - 1, 0)
    fresh = np.where(again > 0, once * (1 + fades * (1 - np.exp(-again / fades))), rows.tokens)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.001, len(rows)))
    loss = 2.0 + 6.0 / rows.params**0.25 + 60.0 / fresh**0.35
    rows = rows.assign(
        epochs=np.where(again > 0, again + 1, np.nan),
        val_loss=np.where(of_ladder, loss * noise, rows.val_loss),
    )
    assert rows[of_ladder & rows.decayed].epochs.max() > 4
    law = fit_frontier(rows)
    text = write_report(tmp_path, rows, law, config_text="a: 1").read_text("utf-8")
    assert "The law that counts repetition" in text and "counts as" in text
    kept = Findings.read(tmp_path / "law.json").repeated
    assert kept is not None and kept.law is not None, kept
    low, high = kept.law["law"]["interval"]["R_D"]
    assert low < fades < high < 2 * fades
    assert "counts as" in str(kept)
    few = rows[of_ladder & (rows["size"].isin(rows["size"][of_ladder].unique()[:1]))]
    refused = repeated_law(few)
    assert isinstance(refused, NotIdentified)
    assert str(Repeated.of(refused)).startswith("no law of repeated data: ")
    assert repeated_law(rows.assign(epochs=np.nan)) is None


def test_numbers_that_json_has_not_come_back() -> None:
    frame = pd.DataFrame(
        {"x": [1.5, np.nan, np.inf], "n": [1, 2, 3], "runs": [("a", "b"), (), ("c",)],
         "name": ["a", "nan and more", ""], "ok": [True, False, True]}
    )  # fmt: skip
    same = plain.back(pd.DataFrame, json.loads(json.dumps(plain.plain(frame), allow_nan=False)))
    pd.testing.assert_frame_equal(frame, same)
    assert plain.back(tuple[float, float], plain.plain((-np.inf, 0.1))) == (-np.inf, 0.1)


def test_a_law_without_findings_says_how_to_get_them(tmp_path: Path, law: StudyLaw) -> None:
    (tmp_path / "law.json").write_text(json.dumps({"law": law.law.to_json()}))
    with pytest.raises(UserError, match=r"holds no findings of this version .* `scaling report`"):
        Findings.read(tmp_path / "law.json")


def test_a_ladder_is_made_once_and_parts_of_it_are_exact(rows: pd.DataFrame) -> None:
    whole = Ladder.of(rows)
    assert Ladder.of(whole) is whole and whole.cells() is whole.cells()
    part = rows["macs_total"] < rows["macs_total"].median()
    fewer, again = whole.where(part), Ladder.of(rows[part])
    assert fewer.left_out(budgets=True) == again.left_out(budgets=True)
    pd.testing.assert_frame_equal(fewer.cells(budgets=True), again.cells(budgets=True))
    assert isinstance(fit_frontier(whole, resamples=100).law, PowerLaw)


def test_rows_of_which_none_counts_are_refused_in_words(rows: pd.DataFrame) -> None:
    none = rows.assign(status="diverged", budget_macs=np.nan)
    with pytest.raises(UserError, match=r"no row is left to fit: .* rows: diverged"):
        fit_frontier(none)
