"""What a study found, written beside its rows: the law with all findings, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scaling.analysis.findings import find
from scaling.analysis.laws import saved_law
from scaling.analysis.questions.quality import quality_laws, read_quality
from scaling.analysis.report.study import is_made_of, opening, page_text
from scaling.data.shards import read_index
from scaling.data.tokens import NGrams, ngrams, tokenizations
from scaling.errors import UserError
from scaling.study_folder import Study, TokenFolder

if TYPE_CHECKING:
    import pandas as pd

    from scaling.analysis.questions.frontier import StudyLaw
    from scaling.analysis.tables.ladder import Ladder


def write_report(
    study_dir: Path,
    rows: pd.DataFrame,
    study_law: StudyLaw | None,
    *,
    ladder: Ladder | None = None,
    config_text: str,
    data_dir: Path | None = None,
    refusal: str = "",
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
    Returns:
        The path of the page.
    Raises:
        UserError: `rows` is empty.
    """
    study = Study(study_dir)
    begin = opening(
        study_dir, rows, study_law, config_text=config_text, data_dir=data_dir, refusal=refusal
    )
    if is_made_of(study.report_html, begin) and (study_law is None or study.law_json.exists()):
        return study.report_html
    probed = read_quality(study_dir, "probes") is not None
    quality = quality_laws(rows, study_dir, "probe_top1") if probed else ()
    found = find(ladder or rows, study_law, refusal=refusal, quality=quality)
    if study_law is not None:
        study.write(study.law_json, saved_law.text(study_law, findings=found.to_json()))
    text = page_text(
        begin, study_dir, rows, found, config_text=config_text, data_dir=data_dir,
        ngrams=counted(data_dir),
    )  # fmt: skip
    return study.write(study.report_html, text)


def counted(data_dir: Path | None) -> list[dict[str, NGrams]] | str:
    """Single codes, pairs and triples of the study's tokens, and of other tokenizers' beside them;
    or why they cannot be counted."""
    if data_dir is None or not TokenFolder(data_dir).index.exists():
        return "the token data are not at hand"
    try:
        folders = tokenizations(data_dir)
        longest = min(3, read_index(data_dir)["tokens_per_frame"])
        return [
            {label: ngrams(folder, n) for label, folder in folders.items()}
            for n in range(1, longest + 1)
        ]
    except UserError as missing:
        return str(missing)
