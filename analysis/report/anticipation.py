"""The report's part on short-term anticipation (`scaling anticipate`)."""

from __future__ import annotations

from typing import Any

import pandas as pd

from scaling.analysis.questions.anticipation import CRITERIA, LESS, NAMES, named, settings, text
from scaling.analysis.report.page import Column, table


def anticipation_section(anticipation: pd.DataFrame | None) -> str:
    """Each setting's four figures, plain precision, and its differences; "" where there is none."""
    if anticipation is None:
        return ""
    rows = []
    for of, mine in settings(anticipation):
        first = mine.iloc[0]
        about = {"data": of["data"], "frames": f"{first.n_test:,}", "silent": first.silent}
        about |= {"seeds": first.seeds, "nats": first.next_token_loss}
        what = (
            f"{named(of)}; {first.tokens:,} tokens, {of['steps']:,} steps of {of['batch']}, verb "
            f"loss x {of['verb_weight']:g}"
        )
        for k, less in ((5, ""), (1, ""), *((5, one) for one in LESS if one)):
            shown = mine[(mine.k == k) & (mine.less.fillna("") == less)]
            if len(shown):
                row = f"less {less}" if less else "plain mAP" if k == 1 else what
                of_row = {r["criterion"]: text(r, bool(less)) for r in shown.to_dict("records")}
                rows.append((about if row == what else {}) | {"what": row} | of_row)
    columns = [
        Column("data", "Data", _or_nothing, kind="text"),
        Column("what", "Top-5 mAP (%) of", kind="wrap"),
        *(Column(name, f"{NAMES[name]} [95%]", kind="text") for name in CRITERIA),
        Column("silent", "Frames without a prediction", _or_nothing),
        Column("frames", "Frames", _or_nothing),
        Column("seeds", "Seeds", _or_nothing),
        Column("nats", "Nats a token", lambda v: "" if pd.isna(v) else f"{v:.3f}"),
    ]
    caption = (
        "As Ego4D’s challenge measures: of an object’s false positives four are free, an overlap "
        "of boxes is more than .5, a time right to .25 s, and frames without a prediction count "
        "nowhere. Intervals: of the seeds, and of the videos, drawn anew. Plain: no false positive "
        "is free."
    )
    return table(pd.DataFrame(rows), columns, caption=caption)


def _or_nothing(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)
