"""What a study found, written beside its rows: law.json and report.html."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scaling.analysis.findings import find
from scaling.analysis.laws import saved_law
from scaling.analysis.questions.quality import quality_laws, read_quality
from scaling.analysis.report.study import is_made_of, opening, page_text
from scaling.storage import outputs

if TYPE_CHECKING:
    import pandas as pd

    from scaling.analysis.questions.frontier import StudyLaw


def write_report(
    study_dir: Path,
    rows: pd.DataFrame,
    study_law: StudyLaw | None,
    *,
    config_text: str,
    data_dir: Path | None = None,
    refusal: str = "",
) -> Path:
    """Write report.html, and law.json with all findings; an unchanged page is left alone.

    Args:
        study_dir: the study's folder.
        rows: of the study.
        study_law: of `fit_frontier`; None when it was refused, with the reason in `refusal`.
        config_text: the study's configuration, shown as it is.
        data_dir: the token data; None: the page says so.
    Returns:
        The path of report.html.
    Raises:
        UserError: `rows` is empty.
    """
    path, law_json = study_dir / "report.html", study_dir / "law.json"
    begin = opening(
        study_dir, rows, study_law, config_text=config_text, data_dir=data_dir, refusal=refusal
    )
    if is_made_of(path, begin) and (study_law is None or law_json.exists()):
        return path
    probed = read_quality(study_dir, "probes") is not None
    quality = quality_laws(rows, study_dir, "probe_top1") if probed else ()
    found = find(rows, study_law, refusal=refusal, quality=quality)
    if study_law is not None:
        outputs.write(outputs.STUDY, law_json, saved_law.text(study_law, findings=found.to_json()))
    text = page_text(begin, study_dir, rows, found, config_text=config_text, data_dir=data_dir)
    outputs.write(outputs.STUDY, path, text)
    return path
