"""A case to be audited, and a finding about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from scaling.analysis.questions.frontier import StudyLaw
from scaling.analysis.tables.ladder import Ladder


@dataclass(frozen=True)
class Finding:
    """One question and its answer."""

    key: str
    question: str
    evidence: str
    weight: str  # weighty | slight | fine
    remedy: str = ""  # '' where the question is answered


@dataclass(frozen=True)
class Case:
    """What the questions are put to."""

    ladder: Ladder
    notes: tuple[str, ...]  # of scaling.analysis.tables.read; () of the tool's own studies
    at: float | None  # MACs that are to be predicted
    study: StudyLaw | None
    refusal: str
    given: pd.DataFrame | None  # `choices.specifications` of the rows, where at hand

    @property
    def rows(self) -> pd.DataFrame:
        """All rows, those that do not count too."""
        return self.ladder.rows

    @property
    def kept(self) -> pd.DataFrame:
        """The rows that may enter a law."""
        return self.ladder.kept()

    def said(self, *words: str) -> str:
        """The notes of the reading that hold one of these words."""
        return "; ".join(n.removeprefix("beware: ") for n in self.notes if n.startswith(words))

    def values(self, column: str) -> pd.Series:
        """What the kept rows say in a column; nothing where they lack it."""
        if column not in self.kept.columns:
            return pd.Series(dtype=object)
        found = self.kept[column]
        return found[found.notna() & (found.astype(str) != "")]


Found = Iterator[Finding]
