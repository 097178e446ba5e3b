"""The page of a study that is at work: how far its runs are, and their curves so far. No law."""

from __future__ import annotations

import numpy as np
import pandas as pd

from scaling.analysis.figures import runs as figures
from scaling.analysis.figures.style import count_text, escape, power_of_two_text, readable
from scaling.analysis.report.page import Column, figure, head, page, table


def running_text(
    study: str, told: str, written: str, runs: pd.DataFrame, points: pd.DataFrame,
    sweep: pd.DataFrame, *, unit: str, refresh: int,
) -> str:  # fmt: skip
    """The whole page.

    Args:
        study: its name.
        told: how far it is, in a line.
        written: when, for people.
        runs: columns run_id, size, role, log2_lr, state, done (share), val_loss (NaN: none yet).
        points: of `figures.run_points`, of the ladder so far; may be empty.
        sweep: of `questions.transfer.learning_rate_points`; may be empty.
        unit: of the losses.
        refresh: seconds after which a browser asks again.
    """
    note = (
        f"Written at {written}, and again while the study runs, at most every {refresh} s: this "
        "page loads itself. The report with the law takes its place in the end. Where the time "
        "stands still, scaling status says why."
    )
    header = (
        f'<p class="kicker">Scaling-law study, running</p><h1>{escape(study)}</h1>'
        f'<p class="lead">{escape(readable(told))}</p><p class="note">{escape(note)}</p>'
    )
    sections = []
    if np.isfinite(points.val_loss).any():
        text = (
            "Lines: the runs so far. Filled: points whose rate has decayed, of which a law is made."
        )
        drawn = figures.scaling_figure(points, unit=unit)
        sections.append(("compute", "Loss against compute", figure(
            "compute", "Loss against training compute so far.", text, drawn, points,
            alt=f"Chart on two logarithmic axes: validation loss against training MACs. {text}",
            wide=True,
        )))  # fmt: skip
    if sweep.val_loss.notna().any():
        text = "A line a width; each one's best rate so far is drawn large and open."
        drawn = figures.learning_rate_figure(sweep, unit=unit)
        sections.append(("rate", "The learning rate", figure(
            "rate", "Loss against learning rate so far.", text, drawn, sweep,
            alt=f"Line chart: final validation loss against learning rate. {text}",
        )))  # fmt: skip
    columns = [
        Column("run_id", "run", kind="text"),
        Column("size", "size", kind="text"),
        Column("role", "role", kind="text"),
        Column("log2_lr", "rate", power_of_two_text),
        Column("state", "state", kind="text"),
        Column("done", "done", lambda share: f"{share:.0%}"),
        Column("val_loss", f"last loss ({unit})", lambda v: "" if pd.isna(v) else f"{v:.4f}"),
    ]
    listed = table(runs, columns, sortable=True)
    sections.append(("runs", f"All {count_text(len(runs))} runs planned so far", listed))
    return page(head(study, "running", refresh=refresh), header, sections, "")
