"""The part of the report that asks what a referee would: `questions.audit`, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from scaling.analysis.figures.style import escape, readable
from scaling.analysis.questions.audit import Audit, audit
from scaling.analysis.report.page import Column, table
from scaling.analysis.tables.ladder import Ladder

if TYPE_CHECKING:
    from scaling.analysis.questions.frontier import StudyLaw


def audit_section(
    ladder: Ladder, study_law: StudyLaw | None, specifications: pd.DataFrame | None
) -> str:
    """Every question with its evidence, its weight and what would settle it."""
    if not (ladder.rows.role != "lr_sweep").any():
        return ""
    return audit_table(audit(ladder, study=study_law, specifications=specifications))


def audit_table(found: Audit) -> str:
    """An audit as a table, the heaviest question first, and the run that would settle most."""
    records = [
        {
            "weight": finding.weight,
            "question": finding.question,
            "evidence": readable(finding.evidence),
            "remedy": readable(finding.remedy) or "–",
        }
        for finding in found.findings
    ]
    columns = [
        Column("weight", "weight", kind="text"),
        Column("question", "question", kind="wrap"),
        Column("evidence", "what the runs say", kind="wrap"),
        Column("remedy", "what would settle it", kind="wrap"),
    ]
    caption = (
        f"{len(found.open)} weighty questions are open: there the law may be wrong by more than "
        "its interval says. Slight ones are worth a sentence beside the law."
    )
    return (
        table(pd.DataFrame(records), columns, caption=caption)
        + f"<p>The next run: {escape(readable(found.next))}.</p>"
    )
