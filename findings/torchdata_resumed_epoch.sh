#!/usr/bin/env bash
# torchdata 0.11.0 (torch 2.13.0), StatefulDataLoader with shuffle=True and a seeded generator.
#
# Guess: a loader that loads the state of another goes on as that one would have: with the rest of
# the epoch, and then with the epochs that it would have drawn.
# Seen: with num_workers=0 the rest of the epoch is right, and every later epoch is another
# permutation than the uninterrupted run's. A state taken at an epoch's end gives another next epoch
# at once. With one worker the later epochs are right too. So a run that was killed twice has seen
# other batches than one that was not, though each resumption looks exact at first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "torch==2.13.0" --index-url https://download.pytorch.org/whl/cpu ||
  "$work/venv/bin/pip" install --quiet "torch==2.13.0" # where that index is out of reach
"$work/venv/bin/pip" install --quiet "torchdata==0.11.0" "numpy==2.4.*"
"$work/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
import torchdata
from torchdata.stateful_dataloader import StatefulDataLoader

assert torch.__version__.startswith("2.13.0") and torchdata.__version__.startswith("0.11.0")
FILES, BATCH, EPOCHS, TAKEN = 12, 2, 3, 2


def loader(workers):
    generator = torch.Generator().manual_seed(3)
    return StatefulDataLoader(
        list(range(FILES)), BATCH, shuffle=True, generator=generator, num_workers=workers
    )


def epoch(of):
    return [batch.tolist() for batch in of]


def resumed(workers, taken):
    """Epochs of a loader that goes on from another's state, after `taken` batches of the first."""
    first = loader(workers)
    batches = iter(first)
    seen = [next(batches).tolist() for _ in range(taken)]
    state = first.state_dict()
    second = loader(workers)
    second.load_state_dict(state)
    return [seen + epoch(second), *(epoch(second) for _ in range(EPOCHS - 1))]


found = {}
for workers in (0, 1):
    whole = loader(workers)
    expected = [epoch(whole) for _ in range(EPOCHS)]
    again = loader(workers)
    assert [epoch(again) for _ in range(EPOCHS)] == expected  # the seed fixes all epochs
    got = resumed(workers, TAKEN)
    assert all(sorted(sum(e, [])) == list(range(FILES)) for e in got)
    found[workers] = [a == b for a, b in zip(got, expected)]
    print(f"{workers} workers: epochs equal to the uninterrupted run's: {found[workers]}")
whole = loader(0)
expected = [epoch(whole), epoch(whole)]
ended = loader(0)
epoch(ended)
then = loader(0)
then.load_state_dict(ended.state_dict())
at_end = epoch(then) == expected[1]
print(f"0 workers, state of an epoch's end: the next epoch is equal: {at_end}")
if (found, at_end) != ({0: [True, False, False], 1: [True, True, True]}, False):
    print("changed: torchdata 0.11.0 resumes otherwise than stated above")
    sys.exit(1)
PY
