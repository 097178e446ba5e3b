"""report.html while a study runs: written now and again, with the curves of every run so far."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any

from scaling.storage import outputs
from scaling.study.curves import records

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaling.study.status import RunState
    from scaling.study_folder import RunFolder, Study

REFRESH_SECONDS = 15
SHARE = 0.02  # of the driver's time, at most

Row = dict[str, Any]


class RunningPage:
    """The page of one study. It is due REFRESH_SECONDS after the work began, and after each time;
    later where writing it takes long."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._due = time.monotonic() + REFRESH_SECONDS
        self._held: dict[str, tuple[tuple[int, int], list[Row]]] = {}

    def write_if_due(self, states: Sequence[RunState], told: str) -> None:
        """Write it, if it is time. Raises UserError: no space, or a page that is not ours."""
        began = time.monotonic()
        at_work = any(s.state not in ("finished", "diverged") for s in states)
        if began < self._due or not at_work:
            return
        outputs.write_signed(outputs.STUDY, self.study.report_html, self._page(states, told))
        spent = time.monotonic() - began
        self._due = began + max(REFRESH_SECONDS, spent / SHARE)

    def _page(self, states: Sequence[RunState], told: str) -> str:
        import pandas as pd

        from scaling.analysis.figures.runs import run_points
        from scaling.analysis.questions.transfer import learning_rate_points
        from scaling.analysis.report.running import running_text
        from scaling.results import loss_unit

        rows = pd.DataFrame(
            [row for state in states for row in self._rows(self.study.run(state.run_id), state)],
            columns=list(KINDS),
        ).astype(KINDS)  # of no row too
        runs = pd.DataFrame(
            [
                (
                    s.run_id, s.size, s.role, s.log2_lr, s.state, s.steps_done / s.steps,
                    math.nan if s.val_loss is None else s.val_loss,
                )
                for s in states
            ],
            columns=["run_id", "size", "role", "log2_lr", "state", "done", "val_loss"],
        )  # fmt: skip
        ended = rows[rows.decayed | (rows.status != "finished")]
        written = time.strftime("%Y-%m-%d %H:%M:%S")
        return running_text(
            self.study.folder.resolve().name, told, written, runs, run_points(rows),
            learning_rate_points(ended), unit=loss_unit(rows.tokenizer), refresh=REFRESH_SECONDS,
        )  # fmt: skip

    def _rows(self, run: RunFolder, state: RunState) -> list[Row]:
        """The evaluations in a run's metrics, as much of a row as a figure asks for."""
        try:
            there = os.stat(run.metrics)
        except OSError:
            return []
        stamp = (there.st_mtime_ns, there.st_size)
        if self._held.get(state.run_id, (None,))[0] != stamp:
            self._held[state.run_id] = (stamp, _evaluations(run))
        rows = self._held[state.run_id][1]
        if state.state == "diverged" and rows:
            return [*rows[:-1], rows[-1] | {"status": "diverged"}]
        return rows


KINDS = {
    "run_id": "str", "role": "str", "size": "str", "params": "int64", "d": "int64",
    "layers": "int64", "parametrization": "str", "tokenizer": "str", "seed": "int64",
    "log2_lr": "float64", "steps": "int64", "tokens": "int64", "macs_total": "float64",
    "decayed": "bool", "val_loss": "float64", "status": "str",
}  # fmt: skip


def _evaluations(run: RunFolder) -> list[Row]:
    from scaling.config.run import RunConfig
    from scaling.models.macs import parameter_counts

    config = RunConfig.from_yaml(run.config_yaml)
    model = config.model
    shared = {
        "run_id": run.path.name,
        "role": config.role,
        "size": model.name,
        "params": parameter_counts(model)["all"],
        "d": model.d,
        "layers": model.layers,
        "parametrization": model.parametrized,
        "tokenizer": "patch-" if model.patch_targets else "",
        "seed": config.seed,
        "log2_lr": math.log2(config.lr),
        "status": "finished",
    }
    rows = []
    for record in records(run):
        if "val_loss" in record:
            point = {
                "steps": record["step"],
                "tokens": record["step"] * config.batch * model.context,
                "macs_total": record["macs"],
                "decayed": record["decayed"],
                "val_loss": record["val_loss"],
            }
            rows.append(shared | point)
    return rows
