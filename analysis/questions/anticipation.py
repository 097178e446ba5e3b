"""What a table of anticipation says (`scaling anticipate`): a row a setting, measure, difference.

Percent; intervals are 95%, of the seeds and of the frames measured.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import pandas as pd

# Of the challenge's four figures; noun_seconds is what it calls noun + TTC.
CRITERIA = ("noun", "noun_verb", "noun_seconds", "overall")
NAMES = dict(zip(CRITERIA, ("noun", "noun + verb", "noun + time", "overall"), strict=True))
KS = (5, 1)  # false positives of an object that are dropped, and one: 1 is plain precision
# What a setting is compared to: the same, but for these.
LESS: dict[str, dict[str, Any]] = {
    "": {},
    "the last frame alone": {"frames": 1},
    "random weights": {"weights": "random"},
    "no next-token loss": {"next_token_weight": 0.0},
    "a frozen model": {"frozen": True, "next_token_weight": 0.0},
}
SETTING = [
    "data", "data_key", "run_id", "size", "px", "fast_px", "frames", "stride", "rope_base",
    "next_token_weight", "verb_weight", "frozen", "layer_decay", "lr", "head_lr", "steps", "batch",
    "weights",
]  # fmt: skip


def settings(table: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Each setting and weights, with its rows."""
    for key, rows in table.groupby(SETTING, sort=False, dropna=False):
        yield dict(zip(SETTING, key, strict=True)), rows


def named(of: dict[str, Any]) -> str:
    """`t32 from trained weights, 8 frames (48 px, before it 24 px)`."""
    frames = int(of["frames"])
    seen = "the last frame alone" if frames == 1 else f"{frames} frames"
    px = f"{int(of['px'])} px" + ("" if frames == 1 else f", before it {int(of['fast_px'])} px")
    how = ", frozen" if of["frozen"] else ""
    if not of["frozen"] and of["next_token_weight"] != 1:
        how = f", next-token loss x {of['next_token_weight']:g}"
    return f"{of['size']} from {of['weights']} weights, {seen} ({px}){how}"


def figures(rows: pd.DataFrame, less: str = "", k: int = 5, interval: bool = True) -> str:
    """`noun 70.1 [66.0, 74.2], noun + verb ...` of one setting; "" where there is none."""
    mine = rows[(rows.less.fillna("") == less) & (rows.k == k)].to_dict("records")
    return ", ".join(f"{NAMES[one['criterion']]} {text(one, bool(less), interval)}" for one in mine)


def text(row: Mapping[Hashable, Any], signed: bool = False, interval: bool = True) -> str:
    """`70.1 [66.0, 74.2]`; of one video alone there is no interval."""
    sign = "+" if signed else ""
    ends = f" [{row['low']:{sign}.1f}, {row['high']:{sign}.1f}]"
    return f"{row['percent']:{sign}.1f}" + ends * (interval and row["low"] == row["low"])


def worth(rows: pd.DataFrame, name: str) -> list[str]:
    """The four figures of what is called so, and beside them what top-5 does not show."""
    first = rows.iloc[0]
    silent = f"{first.silent:,} of them without a prediction"
    if first.silent:
        silent += " and left out with their objects, as the challenge does"
    return [
        f"{name}: {figures(rows)}",
        f"  top-5 mean average precision, %, of {first.n_test:,} frames, {silent}; plain: "
        f"{figures(rows, k=1, interval=False)}",
    ]


def lines(of: dict[str, Any], rows: pd.DataFrame) -> list[str]:
    """What a setting is worth, in words, and its differences to others."""
    made = worth(rows, named(of))
    for less in LESS:
        if less and (text := figures(rows, less)):
            made.append(f"  less {less}: {text}")
    return made
