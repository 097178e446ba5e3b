#!/usr/bin/env bash
# optuna 5.0.0: a study in a file, continued by a new process with the same seeded sampler.
#
# Guess: the seed fixes one sequence of trials, and who continues a study goes on in it.
# Seen: a sampler keeps its state in itself, not in the storage. The second process proposes the
# first one's points again, all of them (RandomSampler, and TPESampler in its start-up trials): half
# of a sweep that was interrupted half way is trained twice. QMCSampler, whose place is kept in the
# storage, goes on.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "optuna==5.0.0" scipy
cd "$work"
cat > leg.py <<'PY'
import sys

import optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)
sampler = {
    "RandomSampler": lambda: optuna.samplers.RandomSampler(seed=0),
    "TPESampler": lambda: optuna.samplers.TPESampler(seed=0, n_startup_trials=8),
    "QMCSampler": lambda: optuna.samplers.QMCSampler(seed=0, scramble=True),
}[sys.argv[1]]()
study = optuna.create_study(
    storage=f"sqlite:///{sys.argv[1]}.db", study_name="sweep", load_if_exists=True, sampler=sampler
)
study.optimize(lambda t: (t.suggest_float("lr", 1e-4, 1e-1, log=True) - 0.01) ** 2, n_trials=4)
rates = [trial.params["lr"] for trial in study.trials]
print(f"optuna {optuna.__version__}: {sys.argv[1]}:", *(f"{rate:.3g}" for rate in rates))
if len(rates) == 8:
    sys.exit(3 if rates[4:] == rates[:4] else 0)
PY
status=0
for sampler in RandomSampler TPESampler QMCSampler; do
  "$work/venv/bin/python" -W ignore leg.py "$sampler" >/dev/null
  again=0
  "$work/venv/bin/python" -W ignore leg.py "$sampler" || again=$?
  case "$sampler:$again" in
    RandomSampler:3 | TPESampler:3 | QMCSampler:0) ;;
    *) status=1 ;;
  esac
done
exit "$status"
