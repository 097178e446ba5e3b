#!/usr/bin/env bash
# safetensors 0.8.0, safetensors.numpy.save on an array that is not C-contiguous.
#
# Guess: an array's values are stored, whatever its memory layout, as 0.7.0 did.
# Seen: its memory is stored under its shape. A transposed or strided array comes back with other
# values, of the right shape and type, and nothing is raised. np.ascontiguousarray first is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
run() {
  "$work/venv/bin/pip" install --quiet "safetensors==$1" "numpy==2.4.*"
  "$work/venv/bin/python" - "$1" <<'PY'
import sys

import numpy as np
import safetensors
from safetensors.numpy import load, save

assert safetensors.__version__ == sys.argv[1]
square = np.arange(9, dtype=np.float32).reshape(3, 3)
cases = {
    "transposed": square.T,
    "every other column": square[:, ::2],
    "contiguous copy of the transposed": np.ascontiguousarray(square.T),
}
same = {}
for name, array in cases.items():
    back = load(save({"x": array}))["x"]
    assert back.shape == array.shape and back.dtype == array.dtype
    same[name] = bool((back == array).all())
    print(f"safetensors {sys.argv[1]}: {name}: {'same values' if same[name] else 'OTHER VALUES'}")
expected = [True] * 3 if sys.argv[1] == "0.7.0" else [False, False, True]
sys.exit(list(same.values()) != expected)
PY
}
run 0.7.0
run 0.8.0
