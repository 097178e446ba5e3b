#!/usr/bin/env bash
# mlflow 3.17.2, two values of a metric with one step and one timestamp, in a SQLite store.
#
# Guess: the run's metric is the one that was logged last; a loss that a resumed run logs again
# replaces the one before it.
# Seen: it is the larger of the two, whatever their order (and any number before NaN). A lower loss
# logged again at its step, with the timestamp that it was measured at, is in the history alone.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "mlflow==3.17.2"
cd "$work"
MLFLOW_DISABLE_TELEMETRY=true "$work/venv/bin/python" - <<'PY' 2>"$work/log"
import sys

import mlflow
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

assert mlflow.__version__ == "3.17.2"
client = MlflowClient("sqlite:///runs.db")
experiment = client.create_experiment("losses")
kept = {}
for first, second in ((3.0, 2.0), (2.0, 3.0)):
    run = client.create_run(experiment).info.run_id
    for value in (first, second):
        client.log_batch(run, [Metric("val_loss", value, timestamp=1_700_000_000_000, step=500)])
    kept[first, second] = client.get_run(run).data.metrics["val_loss"]
    history = sorted(m.value for m in client.get_metric_history(run, "val_loss"))
    print(f"mlflow 3.17.2: {first}, then {second}: {kept[first, second]} (history {history})")
sys.exit(kept != {(3.0, 2.0): 3.0, (2.0, 3.0): 3.0})
PY
