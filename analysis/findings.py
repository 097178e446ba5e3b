"""All that a study's runs say, as data: its page draws this and fits nothing.

found = find(rows)                       # or find(ladder, law): the law at hand
text = json.dumps(found.to_json())       # `Findings.from_json` gives the same back
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from scaling.analysis import plain
from scaling.analysis.figures.law import isoflop_points
from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.laws.power_law import PowerLaw
from scaling.analysis.questions import choices, isoflop, transfer
from scaling.analysis.questions.audit import Audit, audit
from scaling.analysis.questions.form_study import StudyForm, repeated_law
from scaling.analysis.questions.frontier import StudyLaw, fit_frontier
from scaling.analysis.questions.settings import Settings, compare
from scaling.analysis.tables.ladder import Ladder
from scaling.errors import UserError

RESAMPLES = 1000  # of the intervals of these questions; the law has its own
CELLS = 2000  # decayed points that the laws of best sizes are taken from, at most


@dataclass(frozen=True, eq=False)
class Sizes:
    """The best size of each budget, and how it grows, or why nothing is known of them."""

    points: pd.DataFrame = field(default_factory=pd.DataFrame)  # of the budgets, as drawn
    minima: pd.DataFrame | None = None  # of `isoflop.minima`
    laws: pd.DataFrame | None = None  # of `isoflop.approaches`
    thinned: str = ""  # of how many runs the two are, where not of all
    refusal: str = ""


@dataclass(frozen=True, eq=False)
class Forecast:
    """The law of the smaller budgets alone, which promises the largest."""

    law: PowerLaw | None
    refusal: str = ""


@dataclass(frozen=True, eq=False)
class Analysts:
    """The exponent under other choices, and without single runs."""

    specifications: pd.DataFrame  # of `choices.specifications`
    influence: pd.DataFrame | None  # of `choices.influence`
    refusal: str = ""


@dataclass(frozen=True)
class QualityLaw:
    """How an error of what the models learned falls with compute, or why no law does."""

    name: str
    law: StudyLaw | None
    refusal: str = ""


@dataclass(frozen=True)
class Repeated:
    """The law that counts repetition of the data, or why there is none."""

    law: dict[str, Any] | None  # of `StudyForm.to_json`
    summary: str
    refusal: str = ""

    @classmethod
    def of(cls, found: StudyForm | NotIdentified) -> Repeated:
        if isinstance(found, NotIdentified):
            return cls(None, "", str(found))
        return cls(found.to_json(), found.summary())

    def __str__(self) -> str:
        return self.summary or f"no law of repeated data: {self.refusal}"


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found of a study; a part that its runs do not tell is None."""

    law: StudyLaw | None
    refusal: str  # why there is no law, where that is not plain from the study
    sizes: Sizes | None
    forecast: Forecast | None
    analysts: Analysts | None
    audit: Audit | None
    rates: transfer.Rates | None  # best learning rates side by side
    quality: tuple[QualityLaw, ...] = ()
    settings: Settings | None = None  # that were swept with the rate
    repeated: Repeated | None = None  # where the law's runs went over their data again and again

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        content: dict[str, Any] = plain.plain(self)
        return content

    @classmethod
    def read(cls, path: Path) -> Findings:
        """Those of a study's law.json. Raises UserError where they are not in the file."""
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8"))["findings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: holds no findings of this version ({type(error).__name__}: {error}); "
                "`scaling report` of its study writes them"
            ) from None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Findings:
        """The findings that `to_json` made plain, to the last digit."""
        found: Findings = plain.back(cls, content)
        return found


def find(
    rows: pd.DataFrame | Ladder, law: StudyLaw | None = None, *, refusal: str = "",
    quality: Sequence[tuple[str, StudyLaw | NotIdentified]] = (),
    repeated: StudyForm | NotIdentified | None = None,
) -> Findings:  # fmt: skip
    """Ask all questions of a study's rows.

    law: of `fit_frontier`; None where it was refused, with the reason in `refusal`. quality: of
    `quality.quality_laws`. repeated: of `form_study.repeated_law`, where that is at hand.
    """
    ladder = Ladder.of(rows)
    rates = _rates(ladder)
    told = tuple(
        QualityLaw(name, None, str(one))
        if isinstance(one, NotIdentified)
        else QualityLaw(name, one)
        for name, one in quality
    )
    if not (ladder.rows["role"] != "lr_sweep").any():  # a study of learning rates alone
        return Findings(law, refusal, None, None, None, None, rates, told, compare(ladder.rows))
    analysts = None if law is None else _analysts(ladder, law)
    repeated = repeated or repeated_law(ladder)
    specified = None if analysts is None else analysts.specifications
    return Findings(
        law, refusal, _sizes(ladder), None if law is None else _forecast(ladder, law), analysts,
        audit(ladder, study=law, specifications=specified), rates, told,
        compare(ladder.rows), None if repeated is None else Repeated.of(repeated),
    )  # fmt: skip


def _rates(ladder: Ladder) -> transfer.Rates | None:
    series = transfer.series_points(ladder.rows)
    if series.empty:
        return None
    try:
        return transfer.Rates.of(series)
    except UserError:  # every rate of a member diverged: it has no best one to compare
        return None


def _sizes(ladder: Ladder) -> Sizes:
    cells = ladder.cells(budgets=True)
    if cells.empty:
        return Sizes()
    points = isoflop_points(cells)
    few, thinned = _every_kth_run(ladder)
    try:
        minima = isoflop.minima(few, resamples=RESAMPLES)
    except NotIdentified as refusal:
        return Sizes(points, refusal=str(refusal))
    at = float(points["macs_total"].max())
    return Sizes(points, minima, isoflop.approaches(few, at=at, resamples=RESAMPLES), thinned)


def _every_kth_run(ladder: Ladder) -> tuple[Ladder, str]:
    """A ladder of so many runs that they have about CELLS cells, and a note that says so."""
    cells = ladder.cells(budgets=True)
    if len(cells) <= CELLS:
        return ladder, ""
    runs = cells.sort_values(["params", "macs_total", "run_id"])["run_id"].drop_duplicates()
    chosen = runs.iloc[:: -(-len(cells) // CELLS)]
    few = ladder.where(ladder.rows["run_id"].isin(chosen))
    return few, f" ({len(chosen):,} of {len(runs):,} runs)"


def _forecast(ladder: Ladder, law: StudyLaw) -> Forecast:
    try:
        smaller = fit_frontier(
            law.smaller(ladder), method=law.method, form=law.law.form, resamples=RESAMPLES
        )
    except NotIdentified as refusal:
        return Forecast(None, str(refusal))
    return Forecast(smaller.law)


def _analysts(ladder: Ladder, law: StudyLaw) -> Analysts | None:
    try:
        specifications = choices.specifications(ladder)
    except NotIdentified:
        return None
    try:
        form = "saturating" if law.law.e else "pure"
        return Analysts(specifications, choices.influence(ladder, form=form))
    except NotIdentified as refusal:
        return Analysts(specifications, None, str(refusal))
