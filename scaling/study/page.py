"""What a study found, written beside its rows: the law with all findings, and the page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from scaling.analysis.findings import Repeated, find
from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.questions import saved_law
from scaling.analysis.questions.form_study import StudyForm, repeated_law
from scaling.analysis.questions.frontier import StudyLaw, fit_frontier
from scaling.analysis.questions.paper_tables import paper_table
from scaling.analysis.questions.quality import quality_laws
from scaling.analysis.questions.rounds import PLACED
from scaling.analysis.report.page import ASSETS, head
from scaling.analysis.report.study import page_text
from scaling.analysis.tables.ladder import Ladder
from scaling.config.schema import StudyConfig
from scaling.config.study_file import describe
from scaling.errors import UserError
from scaling.results import read_learned
from scaling.study.page_sources import made_of, read_sources
from scaling.study_folder import Study, TokenFolder

Say = Callable[[str], None]


def law_and_page(
    config: StudyConfig,
    study: Study,
    data_dir: Path,
    rows: pd.DataFrame,
    say: Say = lambda _: None,
    *,
    e: float | None = None,
    weights: str | None = None,
) -> tuple[Path, pd.DataFrame | None]:
    """Fit the law of a study's rows and write law.json, report.html and, of variants, their table.

    say: told of the law, or why there is none. e, weights: of `Ladder.of`.
    Returns the page's path, and the variants beside the paper's, where there are some.
    Raises UserError: e or weights are given and there is no law of them; a damaged file.
    """
    if (config.ladder is None or config.variants) and (e is not None or weights is not None):
        raise UserError(
            "--e and --weights are of the law of a ladder, which this study has not: leave them out"
        )
    # Once: the rules are put to the rows of law and page together.
    ladder = Ladder.of(rows, e=e, weights=weights)
    law, refusal = _fit_law(config, study, ladder, say)
    repeated = None
    if config.ladder is not None and not config.variants:
        repeated = repeated_law(ladder, seed=config.seed, resamples=config.fit.resamples)
    if repeated is not None:
        say(str(Repeated.of(repeated)))
    variants, beside = read_learned(study.variants_csv), None
    if variants is not None:
        beside = paper_table(variants)
        study.write(study.paper_csv, beside.to_csv(index=False))
    page = write_report(
        study.folder, rows, law, ladder=ladder, config_text=describe(config), data_dir=data_dir,
        refusal=refusal, repeated=repeated,
    )  # fmt: skip
    return page, beside


def _fit_law(
    config: StudyConfig, study: Study, ladder: Ladder, say: Say
) -> tuple[StudyLaw | None, str]:
    """The law of the ladder's frontier; or none, and the reason where it is not plain."""
    if config.ladder is None or config.variants:
        study.remove(study.law_json)
        return None, "The study compares choices, each at one budget." if config.variants else ""
    try:
        law = fit_frontier(
            ladder, seed=config.seed, form=config.fit.form, resamples=config.fit.resamples
        )
    except NotIdentified as refusal:
        study.remove(study.law_json)
        say(f"no law: {refusal}")
        return None, str(refusal)
    if config.ladder.macs is not None:
        law = replace(law, warnings=(*law.warnings, PLACED))
    say(law.summary())
    return law, ""


def write_report(
    study_dir: Path,
    rows: pd.DataFrame,
    study_law: StudyLaw | None,
    *,
    ladder: Ladder | None = None,
    config_text: str,
    data_dir: Path | None = None,
    refusal: str = "",
    repeated: StudyForm | NotIdentified | None = None,
) -> Path:
    """Write the page, and the law with all findings; an unchanged page is left alone.

    Args:
        study_dir: the study's folder.
        rows: of the study.
        study_law: of `fit_frontier`; None when it was refused, with the reason in `refusal`.
        ladder: of the rows, where it is at hand.
        config_text: the study's configuration, shown as it is.
        data_dir: the token data; None: the page says so.
        refusal: why there is no law.
        repeated: of `form_study.repeated_law`, where that is at hand.
    Returns:
        The path of the page.
    Raises:
        UserError: `rows` is empty, or a file of the study is damaged.
    """
    if rows.empty:
        raise UserError("the study has no rows yet: nothing to report; see `scaling status`")
    study, tokens = Study(study_dir), None if data_dir is None else TokenFolder(data_dir)
    law = None if study_law is None else study_law.to_json()
    digest = _digest(rows, [law, config_text, refusal], made_of(study, tokens))
    begin = head(str(rows.study.iloc[0]), digest)
    if _begins(study.report_html, begin) and (study_law is None or study.law_json.exists()):
        return study.report_html
    shown = read_sources(study, tokens, rows, config_text)
    quality = [] if shown.probes is None else quality_laws(rows, shown.probes, "probe_top1")
    found = find(ladder or rows, study_law, refusal=refusal, quality=quality, repeated=repeated)
    if study_law is not None:
        study.write(study.law_json, saved_law.text(study_law, findings=found.to_json()))
    return study.write(study.report_html, page_text(begin, shown, found))


def _digest(rows: pd.DataFrame, told: Sequence[Any], files: Sequence[Path]) -> str:
    """sha256 of everything that the page shows, and of the code that shows it."""
    digest = hashlib.sha256()
    code = sorted(f for f in ASSETS.iterdir() if f.suffix in (".py", ".css", ".js"))
    for file in [*code, *files]:
        digest.update(f"\0{file.name}\0".encode())
        if file.exists():
            digest.update(file.read_bytes())
    digest.update(json.dumps([list(rows.columns), *told]).encode())
    digest.update(pd.util.hash_pandas_object(rows, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def _begins(path: Path, begin: str) -> bool:
    """Whether the page in this file begins like this."""
    if not path.exists():
        return False
    expected = begin.encode()
    with path.open("rb") as file:
        return file.read(len(expected)) == expected
