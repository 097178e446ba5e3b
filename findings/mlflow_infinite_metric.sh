#!/usr/bin/env bash
# mlflow 3.17.2, a metric of infinity in a SQLite store.
#
# Guess: infinity comes back as infinity, as NaN comes back as NaN.
# Seen: it comes back as 1.7976931348623157e+308, the largest finite double. A diverged run's loss so
# passes every test for finite numbers, and stands in means and fits as a number.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "mlflow==3.17.2"
cd "$work"
MLFLOW_DISABLE_TELEMETRY=true "$work/venv/bin/python" - <<'PY' 2>"$work/log"
import math
import sys

import mlflow
from mlflow.tracking import MlflowClient

assert mlflow.__version__ == "3.17.2"
client = MlflowClient("sqlite:///runs.db")
run = client.create_run(client.create_experiment("losses")).info.run_id
for name, value in (("diverged", math.inf), ("unknown", math.nan), ("fine", 3.25)):
    client.log_metric(run, name, value)
back = client.get_run(run).data.metrics
for name, value in back.items():
    print(f"mlflow 3.17.2: {name}: {value!r}, finite: {math.isfinite(value)}")
expected = back["fine"] == 3.25 and math.isnan(back["unknown"])
sys.exit(not (expected and back["diverged"] == sys.float_info.max))
PY
