"""The part of the report that asks what a referee would: `questions.audit`, as a table."""

from __future__ import annotations

import pandas as pd

from scaling.analysis.figures.style import escape, readable
from scaling.analysis.questions.audit import Audit
from scaling.analysis.report.page import Column, table


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
