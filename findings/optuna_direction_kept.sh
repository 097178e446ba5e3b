#!/usr/bin/env bash
# optuna 5.0.0, create_study with load_if_exists=True and another direction than the stored study's.
#
# Guess: an error, or at least a warning.
# Seen: neither. The stored direction stays: an accuracy study that was first made without a
# direction goes on minimising, and best_trial is its worst.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "optuna==5.0.0"
cd "$work"
"$work/venv/bin/python" -W error::UserWarning - <<'PY'
import logging
import sys

import optuna

heard = []


class Heard(logging.Handler):
    def emit(self, record):
        if record.levelno >= logging.WARNING:
            heard.append(record.getMessage())


optuna.logging.get_logger("optuna").addHandler(Heard())
optuna.logging.disable_default_handler()
where = {"storage": "sqlite:///studies.db", "study_name": "accuracy"}
optuna.create_study(**where)
study = optuna.create_study(**where, direction="maximize", load_if_exists=True)
study.optimize(lambda trial: (0.2, 0.9, 0.6)[trial.number], n_trials=3)
print(f"optuna {optuna.__version__}: asked to maximize, does {study.direction.name}; "
      f"best of 0.2, 0.9, 0.6: {study.best_value}; warnings: {heard}")
if not (optuna.__version__ == "5.0.0" and study.best_value == 0.2 and not heard):
    sys.exit("changed: another direction than the stored one no longer passes in silence")
PY
