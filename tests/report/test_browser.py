"""The page in a real browser: quiet, closed to the outside, drawn, alive, readable everywhere."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from scaling.analysis.figures.export import find_browser
from scaling.analysis.figures.runs import run_points
from scaling.analysis.questions.frontier import StudyLaw
from scaling.analysis.questions.transfer import learning_rate_points
from scaling.analysis.report.running import running_text
from scaling.study.page import write_report
from tests.report.browser import Browser

pytestmark = pytest.mark.skipif(
    find_browser() is None, reason="no Chromium or Chrome found (set BROWSER_PATH)"
)
RUNS = ["run_id", "size", "role", "log2_lr", "state", "done", "val_loss"]
DRAWN = "document.documentElement.hasAttribute('data-drawn')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_browser()
    assert executable
    browser = Browser(executable, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def url(
    rows: pd.DataFrame,
    study_law: StudyLaw,
    data_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    folder = tmp_path_factory.mktemp("study")
    text = "study: simulated\nlong: " + "x" * 300
    return write_report(folder, rows, study_law, config_text=text, data_dir=data_dir).as_uri()


def load(browser: Browser, url: str, *, dark: bool = False, phone: bool = False) -> None:
    browser.viewport(*((390, 844) if phone else (1280, 900)), dark=dark, phone=phone)
    browser.open(url)
    browser.wait_for(DRAWN)


def problems(browser: Browser) -> list[str]:
    """Console messages, log entries (policy violations too) and uncaught exceptions."""
    kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    return [str(event["params"]) for event in browser.events if event["method"] in kinds]


def requests(browser: Browser) -> list[str]:
    sent = [e for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    return [event["params"]["request"]["url"] for event in sent]


def test_quiet_and_closed(browser: Browser, url: str) -> None:
    load(browser, url)
    assert problems(browser) == []
    assert [u for u in requests(browser) if not u.startswith(("data:", "blob:"))] == [url]


def test_the_page_s_policy_forbids_every_connection(browser: Browser, url: str) -> None:
    load(browser, url)
    outcome = "fetch('http://127.0.0.1:9/').then(() => 'sent', error => String(error))"
    assert "Failed to fetch" in browser.evaluate(outcome)
    assert any("Content Security Policy" in p for p in problems(browser)), "refused by the policy"


def test_figures_are_drawn(browser: Browser, url: str) -> None:
    load(browser, url)
    marks = browser.evaluate(
        "[...document.querySelectorAll('.plot')].map(p => "
        "[p.id, p.querySelectorAll('svg .scatterlayer .trace path').length])"
    )
    law = {
        "compute",
        "residuals",
        "holdout",
        "prediction",
        "specifications",
        "influence",
        "published",
    }
    assert {name for name, _ in marks} == {"rate", "isoflop"} | law
    assert all(count >= 1 for _, count in marks) and dict(marks)["compute"] > 40


def test_a_tab_follows_a_study_at_work(
    browser: Browser, url: str, rows: pd.DataFrame, tmp_path: Path
) -> None:
    """The page of a running study loads itself again, until the report stands in its place."""
    path = tmp_path / "report.html"
    runs = pd.DataFrame([("r1", "d16", "ladder", -6.0, "running", 0.5, 3.2)], columns=RUNS)
    text = running_text(
        "simulated", "ladder: 0/1 runs", "noon", runs, run_points(rows),
        learning_rate_points(rows), unit="nats per token", refresh=1,
    )  # fmt: skip
    path.write_text(text)
    load(browser, path.as_uri())
    assert browser.evaluate("document.querySelector('h1').textContent") == "simulated"
    path.write_text(text.replace("0/1 runs", "1/1 runs"))
    browser.wait_for("document.body?.textContent.includes('1/1 runs')")
    path.write_text(Path(url.removeprefix("file://")).read_text())
    browser.wait_for("document.querySelector('.law') !== null")
    browser.wait_for(DRAWN)
    assert problems(browser) == []


def test_hover_names_the_run(browser: Browser, url: str) -> None:
    load(browser, url)
    browser.evaluate("document.getElementById('compute').scrollIntoView({block: 'center'})")
    x, y, run = browser.evaluate(
        """(() => {
        const plot = document.getElementById('compute'), box = plot.getBoundingClientRect();
        const trace = plot._fullData.find(t => t.name === 'd16' && t.mode === 'markers');
        const {xaxis, yaxis} = plot._fullLayout;
        return [box.left + xaxis._offset + xaxis.d2p(trace.x[4]),
                box.top + yaxis._offset + yaxis.d2p(trace.y[4]), trace.customdata[4][0]];
        })()"""
    )
    browser.mouse(x - 3, y)
    browser.mouse(x, y)
    browser.wait_for("document.querySelector('#compute .hoverlayer .hovertext') !== null")
    label = browser.evaluate("document.querySelector('#compute .hoverlayer').textContent")
    assert run in label and "22.7" in label


def test_the_table_sorts_numbers_as_numbers(browser: Browser, url: str) -> None:
    load(browser, url)
    column = "[...document.querySelectorAll('table.sortable tbody tr')].map(r => r.cells[4]"
    losses = f"{column}.dataset.value)"
    head = "document.querySelectorAll('table.sortable th button')[4]"
    browser.evaluate(f"{head}.click()")
    up = browser.evaluate(losses)
    assert browser.evaluate(f"{head}.parentElement.getAttribute('aria-sort')") == "ascending"
    numbers = [float(v) for v in up if v]
    assert numbers == sorted(numbers) and len(numbers) > 40
    assert up[-3:] == ["", "", ""], "diverged runs, which have no loss, come last"
    browser.evaluate(f"{head}.click()")
    down = [float(v) for v in browser.evaluate(losses) if v]
    assert down == numbers[::-1]


def test_figures_follow_the_page_into_the_dark(browser: Browser, url: str) -> None:
    ink = "getComputedStyle(document.querySelector('#compute .xtick text')).fill"
    load(browser, url)
    assert browser.evaluate(ink) == "rgb(31, 31, 29)"
    browser.viewport(1280, 900, dark=True)
    browser.wait_for(f"{ink} === 'rgb(235, 231, 223)'")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert browser.evaluate(ground) == "rgb(21, 23, 26)"
    assert problems(browser) == []


def test_paper_is_light_and_holds_the_figures(browser: Browser, url: str, tmp_path: Path) -> None:
    load(browser, url, dark=True)
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    browser.wait_for("document.querySelector('#compute .main-svg').clientWidth === 660")
    ink = "getComputedStyle(document.querySelector('#compute .xtick text')).fill"
    assert browser.evaluate(ink) == "rgb(31, 31, 29)"
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    browser.wait_for(f"{ink} === 'rgb(235, 231, 223)'")
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").stat().st_size > 50_000


@pytest.mark.parametrize("phone", [False, True], ids=["desk", "phone"])
def test_nothing_is_wider_than_the_screen(browser: Browser, url: str, phone: bool) -> None:
    load(browser, url, phone=phone)
    wide, screen = browser.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= screen == (390 if phone else 1280)
    plots = "[...document.querySelectorAll('.plot .main-svg')].map(s => s.clientWidth)"
    assert all(200 < width <= screen for width in browser.evaluate(plots))
