"""Rows of a study as one frame, whatever holds them: its folder, a CSV, MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scaling import results
from scaling.study_folder import Study
from scaling.tracking import mlflow_copy

if TYPE_CHECKING:
    import pandas as pd


def load(source: str | Path) -> pd.DataFrame:
    """The same frame, to the last digit, from each of these.

    Args:
        source: a study's folder, a `.csv` that a study exported, or an MLflow address such as
            `sqlite:///studies/quickstart/mlflow.db#quickstart` (after `#`: the study).
    Raises:
        UserError: nothing there, or not rows of this schema.
    """
    if "://" in str(source):
        uri, _, study = str(source).partition("#")
        return results.frame(mlflow_copy.load_rows(uri, study))
    path = Path(source)
    return results.read_csv(path) if path.suffix == ".csv" else Study(path).rows()
