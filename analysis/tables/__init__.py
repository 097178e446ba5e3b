"""Anyone's table of runs as rows that analysis/questions/frontier.py reads.

    rows, notes = read("runs.csv")                       # columns found by their names
    rows, notes = read(frame, n="Model Size", c="Training FLOP", compute_unit="FLOPs")

A table needs a loss and compute, or parameters and tokens. Nothing is guessed silently: `notes`
says which column became what and what was left out, and an ambiguity is an error that names both.

    files      a file of any usual format as a frame, by content (its bytes as text), delimited,
               records (JSON), markup, lines; trials, events, trainers, logs: those of Optuna,
               TensorBoard, Lightning, the Hugging Face Trainer and Megatron-LM
    reshaped   curves in cells, a row for each number, runs side by side; pivots: losses by size
               and budget
    layouts    exports of known tools, reshaped to a row a run or a row an evaluation
    columns    which column means what
    units      units and numbers in names and cells
    losses     the loss in nats, or 1 - another measure
    quantities parameters, tokens and compute; plausible: whether they are those of any training
    states     which runs finished
    histories  the last decayed point of each run
    settings   repeated data, grids of settings, mixtures; unlike: rows that a column whose meaning
               is not known tells apart
    nominal    nominal budgets; roles: names of runs, and which of them count
    sweeps     learning-rate sweeps
    own        rows of this tool in a table
    reading    all of it in order
"""

from scaling.analysis.tables.nominal import budgets
from scaling.analysis.tables.reading import read

__all__ = ["budgets", "read"]
