"""Anyone's table of runs as rows that analysis/frontier.py reads.

    rows, notes = read("runs.csv")                       # columns found by their names
    rows, notes = read(frame, n="Model Size", c="Training FLOP", compute_unit="FLOPs")

A table needs a loss and compute, or parameters and tokens. Nothing is guessed silently: `notes`
says which column became what and what was left out, and an ambiguity is an error that names both.

    files      a file of any usual format as a frame
    layouts    exports of known tools, reshaped to a row a run or a row an evaluation
    columns    which column means what
    units      units and numbers in names and cells
    states     which runs finished
    histories  the last decayed point of each run
    settings   repeated data, grids of settings, mixtures
    reading    all of it in order
"""

from analysis.tables.reading import budgets, read

__all__ = ["budgets", "read"]
