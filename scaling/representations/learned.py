"""What a study's models learned, from the tables in its folder: probes, tracking, positions.

    learned = scaling.learned("studies/representations")
    learned.best_layers(); learned.layer_figures(); learned.tracking()

Nothing is read before it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from scaling.analysis.figures import model as figures_model
from scaling.analysis.figures import probes as figures
from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.questions import quality
from scaling.analysis.questions.frontier import StudyLaw
from scaling.analysis.questions.targets import Target, targets
from scaling.errors import UserError
from scaling.results import read_csv, read_learned
from scaling.study_folder import Study


@dataclass(frozen=True)
class Tracking:
    """Tracking of one of `quality.DAVIS_KINDS`. rows: one an object, layer and sequence."""

    rows: pd.DataFrame

    def best(self) -> pd.DataFrame:
        """The best layer of each run and weights, by J&F, as `quality.davis_best`."""
        return quality.davis_best(self.rows)

    def less_baselines(self) -> pd.DataFrame:
        """J&F less that of random weights and of pixels, as `quality.davis_difference`."""
        return quality.davis_difference(self.rows)

    def figure(self) -> go.Figure:
        """J&F layer by layer."""
        return figures.layer_figure(quality.davis_points(self.rows), "jf", "J&F")


@dataclass(frozen=True, eq=False)
class Learned:
    """What the models of a study learned. Its tables are None where they were not made yet."""

    study: Study

    @cached_property
    def probes(self) -> pd.DataFrame | None:
        """The rows of `scaling probe`: one a run, weights, head, layer and seed. Raises UserError:
        a damaged table, or one of an older version."""
        return read_learned(self.study.probes_csv)

    @cached_property
    def davis(self) -> pd.DataFrame | None:
        """The rows of `scaling davis`: one a run, weights, layer, sequence and object."""
        return read_learned(self.study.davis_csv)

    @cached_property
    def anticipation(self) -> pd.DataFrame | None:
        """The rows of `scaling anticipate`: percent and its 95% interval, one a setting, criterion,
        K and what it is less of (`analysis.questions.anticipation`)."""
        return read_learned(self.study.anticipation_csv)

    def _made(self, name: str) -> pd.DataFrame:
        """Of "probes" and "davis"; UserError where it was not made."""
        table, command = {
            "probes": (self.probes, "scaling probe"), "davis": (self.davis, "scaling davis"),
        }[name]  # fmt: skip
        if table is None:
            raise UserError(f"{self.study}: has no {name}.csv; `{command} {self.study}` makes it")
        return table

    def best_layers(self) -> pd.DataFrame:
        """Top-1 of the best layer, free of its choice, with its 95% interval over seeds, as
        `quality.best_layers`. Raises UserError: not probed."""
        return quality.best_layers(self._made("probes"))

    def less_untrained(self) -> pd.DataFrame:
        """Top-1 less that of the weights before training, in pairs, as `quality.difference`."""
        return quality.difference(self._made("probes"))

    def less_average(self) -> pd.DataFrame:
        """Top-1 of attention and grid heads less that of the average of all tokens (Table 5), as
        `quality.head_difference`."""
        return quality.head_difference(self._made("probes"))

    def layer_figures(self) -> dict[tuple[str, str], go.Figure]:
        """(data, head) -> top-1 layer by layer: each run's last point, and before training."""
        points = quality.probe_points(self._made("probes"))
        keys = ["data_key", "head", "run_id", "weights"]
        last = points[points.macs_total == points.groupby(keys).macs_total.transform("max")]
        return {
            (str(data), str(head)): figures.layer_figure(one, "accuracy", "top-1 accuracy")
            for (data, head), one in last.groupby(["data", "head"])
        }

    def laws(
        self, metric: str = "probe_top1", *, rows: pd.DataFrame | None = None, **options: Any
    ) -> dict[str, StudyLaw | NotIdentified]:
        """The law of an error against compute, of each data set and head, or why there is none.

        rows: of the study, where they are at hand. metric, options: as of `quality.quality_laws`.
        Raises UserError: another metric, or the study was not probed.
        """
        table = self._made(quality.table_of(metric))
        rows = read_csv(self.study.rows_csv) if rows is None else rows
        return dict(quality.quality_laws(rows, table, metric, **options))

    def targets(self, **options: Any) -> list[Target]:
        """The loss, and each error of probes and tracking: best sizes, and the error by the loss.

        options: as of `targets.targets`. Raises UserError: neither probed nor tracked.
        """
        tables = {"probe_top1": self.probes, "davis_jf": self.davis}
        made = {metric: table for metric, table in tables.items() if table is not None}
        if not made:
            raise UserError(
                f"{self.study}: neither probed nor tracked yet: `scaling probe {self.study} --data "
                f"LABELLED` or `scaling davis {self.study} --data DAVIS` first"
            )
        return targets(read_csv(self.study.rows_csv), made, **options)

    def error_figures(self) -> dict[tuple[str, str], go.Figure]:
        """(data, head) -> error of the best layer against training MACs."""
        best = self.best_layers()
        best = best.assign(error=1 - best.accuracy, low=1 - best.high, high=1 - best.low)
        return {
            (str(data), str(head)): figures.quality_figure(one)
            for (data, head), one in best[best.weights == "trained"].groupby(["data", "head"])
        }

    def tracking(self) -> dict[tuple[str, str, int], Tracking]:
        """(data, protocol, tokens on the short side) -> what was tracked so; {} where nothing was.

        data: split and resolution of DAVIS, as `val, 480p`.
        """
        if self.davis is None:
            return {}
        return {
            (str(data), str(protocol), int(one["rows"].iloc[0])): Tracking(one)
            for (data, protocol, _), one in self.davis.groupby(list(quality.DAVIS_KINDS))
        }

    def positions(self) -> pd.DataFrame:
        """Validation loss (nats) of the ladder's best run by position in a sequence, as
        `position_points`. Raises UserError where the study has none."""
        if (record := self.study.positions()) is None:
            raise UserError(
                f"{self.study}: has no {self.study.positions_json.name}; a study writes it when "
                f"its ladder is trained"
            )
        return figures_model.position_points(record["loss"], record["tokens_per_frame"])

    def position_figure(self) -> go.Figure:
        """`positions` as a figure, with the mean of each frame."""
        return figures_model.position_figure(self.positions())


def learned(folder: str | Path) -> Learned:
    """What the models of a study learned, by its folder: accuracies as shares, J&F likewise, losses
    in nats. Raises UserError where there is no such folder; a table is read when it is asked for.
    """
    study = Study(Path(folder))
    if not study.folder.is_dir():
        raise UserError(f"{study}: no such study; see the folders in {study.folder.parent}/")
    return Learned(study)
