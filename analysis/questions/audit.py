"""What a referee would ask of a law, with the answer that its runs give.

    found = audit(rows, notes=notes, at=1e19)     # Audit: .findings, .open, .next
    print(found); found.to_json()

Each question has its evidence, its weight (weighty: the law may be wrong by more than its interval
says; slight: worth a sentence in the paper; fine: answered) and, where it is open, a remedy.
The questions themselves: analysis/questions/audit_runs.py and analysis/questions/audit_law.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.questions import audit_law, audit_runs
from scaling.analysis.questions.audit_case import Case, Finding, Found
from scaling.analysis.questions.frontier import StudyLaw, fit_frontier
from scaling.analysis.questions.next import first_runs
from scaling.analysis.tables.ladder import Ladder
from scaling.errors import UserError

ORDER = ("weighty", "slight", "fine")
AHEAD = 3.0  # the next run may cost so many times the largest one
FAILED = "no law is identified"
QUESTIONS: tuple[Callable[[Case], Found], ...] = (
    audit_law.the_law, audit_law.luck, audit_law.edge, audit_runs.settings, audit_runs.history,
    audit_runs.mixture, audit_runs.repetition, audit_runs.ratio, audit_law.floor, audit_law.surface,
    audit_runs.loss_size, audit_runs.cost, audit_law.held_out, audit_law.bend, audit_law.analysts,
    audit_law.span, audit_law.ahead, audit_runs.seeds, audit_runs.columns,
)  # fmt: skip


@dataclass(frozen=True)
class Audit:
    """All questions, the heaviest first, and the run that would settle most."""

    law: str  # as `scaling fit` prints it, or why there is none
    findings: tuple[Finding, ...]
    next: str  # the run that narrows the law most; or why none is known

    @property
    def open(self) -> tuple[Finding, ...]:
        """The weighty ones."""
        return tuple(f for f in self.findings if f.weight == "weighty")

    def __str__(self) -> str:
        count = {weight: sum(f.weight == weight for f in self.findings) for weight in ORDER}
        lines = [
            self.law,
            f"{len(self.findings)} questions: {count['weighty']} weighty, {count['slight']} "
            f"slight, {count['fine']} answered",
        ]
        for finding in self.findings:
            lines.append(f"  {finding.weight:12} {finding.question} {finding.evidence}")
            if finding.remedy:
                lines.append(f"  {'':12} -> {finding.remedy}")
        lines.append(f"  {'next':12} {self.next}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives the audit back."""
        return {"law": self.law, "findings": [asdict(f) for f in self.findings], "next": self.next}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Audit:
        """The audit that `to_json` wrote."""
        return cls(plain["law"], tuple(Finding(**f) for f in plain["findings"]), plain["next"])


def audit(
    rows: pd.DataFrame | Ladder,
    *,
    notes: Sequence[str] = (),
    at: float | None = None,
    study: StudyLaw | None = None,
    specifications: pd.DataFrame | None = None,
    seed: int = 0,
) -> Audit:
    """Ask a table of runs what a referee would.

    Args:
        rows: of a study, or of analysis.tables.read, or their ladder, whose pinned floor and
            weights hold.
        notes: of analysis.tables.read.
        at: MACs whose loss the law is to predict.
        study, specifications: of `fit_frontier` and `choices.specifications`, where at hand.
        seed: of the bootstrap.
    Returns:
        The questions and what the runs answer. Rows without a law are audited as far as they go.
    """
    refusal, ladder = "", Ladder.of(rows)
    if study is None:
        try:
            study = fit_frontier(ladder, seed=seed)
        except NotIdentified as error:
            refusal = str(error)
    case = Case(ladder, tuple(notes), at, study, refusal, specifications)
    asked = QUESTIONS if len(case.kept) else (audit_law.the_law,)
    found = [finding for ask in asked for finding in ask(case)]
    found.sort(key=lambda finding: ORDER.index(finding.weight))
    law = f"{FAILED}: {refusal}" if study is None else str(study.law)
    return Audit(law, tuple(found), _next(ladder, at, study, seed))


def _next(ladder: Ladder, at: float | None, study: StudyLaw | None, seed: int) -> str:
    """The run, or the sizes of one new budget, that narrow the law most."""
    try:
        budget = AHEAD * float(ladder.rows["macs_total"].max())
        plan = first_runs(ladder, budget, at, study, seed)
    except UserError as refusal:
        return f"none can be chosen: {refusal}"
    designs = "; ".join(
        ("" if run["seeds"] == 1 else f"{run['seeds']} x ")
        + _design(run["params"], run["tokens"], run["macs_total"])
        for run in plan.runs.to_dict("records")
    )
    return f"{designs}: narrows {plan.what} most of all that cost at most {budget:.3g} MACs"


def _design(params: float, tokens: float, macs: float) -> str:
    if not params > 0:
        return f"a run of {macs:.3g} MACs"
    return f"{params:.3g} parameters on {tokens:.3g} tokens ({macs:.3g} MACs)"
