#!/usr/bin/env bash
# pandas 3.1.1, read_csv on a column of whole numbers between 2^63 and 2^64: training FLOPs of about
# 1e19, written out.
#
# Guess: with a cell missing, or a -1 for it, the column becomes float64, as one of smaller numbers.
# Seen: it becomes text. max and sort_values go by characters, so 9.3e18 is above 1.2e19; the
# missing cell is an empty string, for isna a value. Without it the column is uint64. With a number
# of 2^64 or more it holds Python integers (object), which compare rightly.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "pandas==3.1.1" "numpy==2.4.*"
"$work/venv/bin/python" -W error - <<'PY'
import io
import sys

import pandas as pd

MORE, LESS, HUGE = 12 * 10**18, 93 * 10**17, 3 * 10**20


def read(*cells):
    lines = [f"run{i},{cell}" for i, cell in enumerate(cells)]
    return pd.read_csv(io.StringIO("\n".join(["run,flops", *lines])))["flops"]


cases = {
    "whole": read(MORE, LESS),
    "one missing": read(MORE, LESS, ""),
    "a -1": read(MORE, LESS, -1),
    "one of 3e20": read(MORE, LESS, HUGE),
    "smaller, one missing": read(MORE // 10, LESS // 10, ""),
}
kinds = {}
for name, flops in cases.items():
    kinds[name] = str(flops.dtype)
    print(f"pandas {pd.__version__}: {name}: {flops.dtype}, max {flops.max()!s}, "
          f"missing {int(flops.isna().sum())}")
texts = [cases["one missing"].max(), cases["a -1"].max()] == [str(LESS)] * 2
known = not cases["one missing"].isna().any()
expected = ["uint64", "str", "str", "object", "float64"]
if not (pd.__version__ == "3.1.1" and texts and known and list(kinds.values()) == expected):
    sys.exit("changed: whole numbers above 2^63 are read otherwise than stated above")
PY
