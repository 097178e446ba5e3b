"""The report's part on settings that were swept together with the learning rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from scaling.analysis.figures.style import count_text, escape, power_of_two_text, readable
from scaling.analysis.questions.settings import said
from scaling.analysis.report.page import Column, table

if TYPE_CHECKING:
    from scaling.analysis.questions.settings import Settings

SHOWN = 40  # the best of them


def settings_section(found: Settings | None, unit: str) -> str:
    """What was found, and its table; losses in `unit`; '' where none were."""
    if found is None:
        return ""
    told = "".join(f"<li>{escape(readable(line.strip()))}</li>" for line in found.lines(unit))
    rows = found.table.head(SHOWN).assign(setting=[said(s) for s in found.table.setting[:SHOWN]])
    columns = [
        Column("setting", "setting", kind="text"),
        Column("log2_lr", "best rate near", _power),
        Column("val_loss", f"loss there ({unit})", _loss),
        Column("above", "above the best", _loss),
        Column("margin", "told apart beyond", lambda v: "–" if math.isnan(v) else f"{v:.4f}"),
        Column("verdict", "verdict", kind="text"),
        Column("runs", "runs", count_text),
    ]
    left = len(found.table) - len(rows)
    more = f"<p>{left:,} more settings, all above these, are not shown.</p>" if left > 0 else ""
    return f"<ul>{told}</ul>" + table(rows, columns) + more


def _power(log2_lr: float) -> str:
    return "–" if math.isnan(log2_lr) else power_of_two_text(log2_lr)


def _loss(loss: float) -> str:
    return f"{loss:.4f}" if math.isfinite(loss) else "diverged"
