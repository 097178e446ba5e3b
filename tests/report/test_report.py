"""The page says what the study found, hides nothing, and escapes every word of the user's."""

import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.figures import runs as figures
from scaling.analysis.figures.style import number_text
from scaling.analysis.questions.frontier import StudyLaw, fit_frontier
from scaling.analysis.report.data import run_table
from scaling.analysis.report.study import _compute, _left_out
from scaling.analysis.tables.ladder import Ladder
from scaling.storage.outputs import RECORD
from scaling.study.page import write_report

CONFIG = "study: simulated\ndata:\n  note: '</script><script>alert(1)</script>'\n"


class _Page(HTMLParser):
    """Text outside scripts and styles, and every address that a tag names."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._inside: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.addresses += [v or "" for k, v in attrs if k in ("href", "src", "action")]
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words).replace("\u00a0", " "))


def page_of(path: Path) -> _Page:
    return _Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(
    rows: pd.DataFrame,
    study_law: StudyLaw,
    data_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> _Page:
    folder = tmp_path_factory.mktemp("study")
    path = write_report(folder, rows, study_law, config_text=CONFIG, data_dir=data_dir)
    assert path == folder / "report.html"
    return page_of(path)


def test_headline_holds_law_unit_interval_and_comparison(page: _Page, study_law: StudyLaw) -> None:
    law = study_law.law
    low, high = law.ci["b"]
    for number in (law.a, law.e):
        assert number_text(number, 4) in page.text
    for number in (law.b, low, high, study_law.pure.b):
        assert f"{number:.4f}".replace("-", "−") in page.text
    assert law.unit in page.text and "nats per token" in page.text
    assert "GPT-3’s −0.0480" in page.text and "Toto’s −0.0378" in page.text
    assert "losses may not be compared" in page.text


def test_a_law_of_patches_is_in_squared_error(
    rows: pd.DataFrame, study_law: StudyLaw, tmp_path: Path
) -> None:
    """Models that regress patches: no axis, column or sentence speaks of nats."""
    patches = rows.assign(tokenizer="patch-4px")
    text = write_report(tmp_path, patches, study_law, config_text=CONFIG).read_text("utf-8")
    assert not re.search(r"\bnats\b", text)
    for words in ("validation loss (squared error per value)", "loss (squared error per value)"):
        assert words in text


def test_every_rule_and_warning_is_on_the_page(page: _Page, study_law: StudyLaw) -> None:
    for rule, count in study_law.excluded:
        assert (f"{rule}: {count:,} rows" in page.text) == bool(count)
    for warning in study_law.warnings:
        assert warning in page.text
    assert study_law.warnings and any(count for _, count in study_law.excluded)


def test_compute_is_the_plan_s_with_every_cooldown(rows: pd.DataFrame) -> None:
    """A run's last point knows the way to itself alone, not its other budgets' cooldowns."""
    last = rows.sort_values("macs_total").groupby("run_id").tail(1)
    one = last.iloc[0]
    more = _compute(last, {one.run_id: 2 * one.macs_total}) - _compute(last, {})
    assert more == pytest.approx(one.macs_total)
    assert _compute(last, {}) == pytest.approx(last.macs_total.sum())


def test_diverged_runs_are_on_the_page(page: _Page, rows: pd.DataFrame) -> None:
    lost = rows.run_id[rows.status == "diverged"].unique()
    assert len(lost) == 3
    for run in lost:
        assert run in page.text
    assert "3 diverged" in page.text


def test_the_data_section(page: _Page) -> None:
    for words in ("355 of its 512 codes", "28.10", "80%", "1 error", "not a video", "258 tokens"):
        assert words in page.text
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 6
    for image in images:
        assert "frames of a validation clip" in (image["alt"] or "")
        assert (image["src"] or "").startswith("data:image/png;base64,")


def test_no_address_leaves_the_page(page: _Page) -> None:
    assert page.addresses
    for address in page.addresses:
        assert address.startswith(("data:", "#")), address[:80]
    targets = {attrs.get("id") for _, attrs in page.tags}
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= targets


def test_user_text_is_text(page: _Page) -> None:
    assert "</script><script>alert(1)</script>" in page.text, "the config is shown as it is"
    assert "<b>a</b>.mp4" in page.text and "cl<i>ps" in page.text
    assert not [attrs for tag, attrs in page.tags if tag == "i"]
    assert [tag for tag, _ in page.tags].count("script") == 9 + 3, "9 figures, colours, 2 scripts"


def test_each_figure_has_its_data(page: _Page, rows: pd.DataFrame, study_law: StudyLaw) -> None:
    files = {
        str(attrs["download"]): unquote(str(attrs["href"]).partition(",")[2])
        for tag, attrs in page.tags
        if tag == "a" and "download" in attrs
    }
    assert set(files) == {
        "rate.csv", "compute.csv", "isoflop.csv", "residuals.csv", "holdout.csv", "prediction.csv",
        "specifications.csv", "influence.csv", "published.csv",
    }  # fmt: skip
    drawn = figures.run_points(rows)
    table = pd.read_csv(io.StringIO(files["compute.csv"]))
    pd.testing.assert_frame_equal(table, drawn, check_dtype=False, rtol=1e-12)
    plots = [attrs for _, attrs in page.tags if attrs.get("class") == "plot"]
    assert {f"{p['id']}.csv" for p in plots} == set(files)
    assert all(p["role"] == "img" and p["aria-label"] for p in plots)


def test_tables_have_headers(page: _Page) -> None:
    heads = [attrs for tag, attrs in page.tags if tag == "th"]
    assert heads and all(h["scope"] in ("col", "row") for h in heads)


def test_an_unchanged_page_is_left_alone(
    rows: pd.DataFrame, study_law: StudyLaw, tmp_path: Path
) -> None:
    path = write_report(tmp_path, rows, study_law, config_text="a: 1")
    before = path.stat().st_mtime_ns
    assert write_report(tmp_path, rows, study_law, config_text="a: 1") == path
    assert path.stat().st_mtime_ns == before
    write_report(tmp_path, rows, study_law, config_text="a: 2")
    assert "a: 2" in page_of(path).text
    assert sorted(p.name for p in tmp_path.iterdir()) == [RECORD, "law.json", "report.html"]


def test_a_pinned_floor_is_on_the_page(rows: pd.DataFrame, tmp_path: Path) -> None:
    ladder = Ladder.of(rows, e=0.5)
    law = fit_frontier(ladder, resamples=100)
    page = page_of(write_report(tmp_path, rows, law, ladder=ladder, config_text="a: 1"))
    assert "L(C) = 0.5 + " in page.text and "E was pinned at 0.5" in page.text
    assert "E = 0.5 is pinned, the lowest loss is" in page.text
    assert json.loads((tmp_path / "law.json").read_text())["law"]["given"] == {"E": 0.5}


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("budget", "is the loss to expect of each budget’s best size"),
        ("lowest", "takes the lowest"),
    ],
)
def test_how_the_points_were_read_is_said(rows: pd.DataFrame, method: str, said: str) -> None:
    law = fit_frontier(rows, method=method, resamples=200)
    assert law.averages == (method == "budget") == ("loss to expect" in law.summary())
    assert f"the frontier {said}" in _left_out(law)


def test_what_is_missing_is_said(rows: pd.DataFrame, tmp_path: Path) -> None:
    ladder = rows[rows.role == "ladder"]
    path = write_report(tmp_path, ladder, None, config_text=" ", refusal="2 budgets < 3 & such")
    text = page_of(path).text
    assert "No law was fitted. 2 budgets < 3 & such" in text
    assert "No learning-rate sweep was run. The ladder used 2⁻⁶." in text
    assert "There is no law to judge" in text
    assert "The token data of this study is not at hand" in text
    assert "No configuration was given" in text


def test_a_study_with_only_a_sweep(rows: pd.DataFrame, tmp_path: Path) -> None:
    sweep = rows[rows.role == "lr_sweep"]
    text = page_of(write_report(tmp_path, sweep, None, config_text="a: 1")).text
    assert "muP over width (2 layers): the best rate moves by +0." in text
    assert "No law was fitted" not in text and "Loss against compute" not in text
    assert "Each width’s best rate" in text


def test_sweeps_that_are_compared(rows: pd.DataFrame, tmp_path: Path) -> None:
    sweep = rows[rows.role == "lr_sweep"]
    other = sweep.assign(parametrization="standard", run_id="s" + sweep.run_id)
    other["log2_lr"] += 1
    both = pd.concat([sweep, other], ignore_index=True)
    page = page_of(write_report(tmp_path, both, None, config_text="a: 1"))
    assert "standard over width (2 layers)" in page.text
    assert "best rate moves (octaves)" in page.text and "transfers" in page.text


def test_a_study_in_which_everything_diverged(rows: pd.DataFrame, tmp_path: Path) -> None:
    lost = rows.assign(val_loss=np.nan, status="diverged", decayed=False)
    text = page_of(write_report(tmp_path, lost, None, config_text="a: 1")).text
    assert "Every run of the learning-rate sweep diverged" in text
    assert "No run of the ladder has a finite loss yet" in text


def test_no_rows_are_refused(rows: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rows yet"):
        write_report(tmp_path, rows.head(0), None, config_text="")


def test_run_table_holds_each_run_and_each_decayed_point(rows: pd.DataFrame) -> None:
    shuffled = rows.sample(frac=1, random_state=1)
    table = run_table(shuffled)
    assert set(table.run_id) == set(rows.run_id)
    assert int(table.decayed.sum()) == int(rows.decayed.sum())
    others = table[~table.decayed]
    assert others.run_id.is_unique and (others.status == "diverged").all()
    last = rows.groupby("run_id").steps.max()
    assert (others.steps.to_numpy() == last[others.run_id].to_numpy()).all()


def test_specs_are_whole_json(page: _Page, rows: pd.DataFrame, tmp_path: Path) -> None:
    """A name cannot end the script element that holds a figure."""
    hostile = rows.assign(size="</script><img src=x onerror=alert(1)>")
    path = write_report(tmp_path, hostile, None, config_text="a: 1")
    source = path.read_text(encoding="utf-8")
    specs = re.findall(r'<script type="application/json">(.*?)</script>', source, re.DOTALL)
    assert len(specs) == 3
    for spec in specs:
        names = [trace.get("name", "") for trace in json.loads(spec)["data"]]
        assert not any("<img" in html.unescape(name) for name in names if "&" not in name)
    assert not [a for t, a in page_of(path).tags if t == "img"]
