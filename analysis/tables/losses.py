"""The loss of a table in nats, or 1 - another measure."""

from __future__ import annotations

import re

import numpy as np

from scaling.analysis.tables.columns import (
    HIGHER,
    LOGARITHMS,
    TRAINING,
    WORDS,
    Table,
    choose_loss,
    listed,
    loss_kind,
    several,
)
from scaling.analysis.tables.quantities import Quantity, middle_of
from scaling.analysis.tables.units import Cells, Name, numbers, parse_name
from scaling.errors import UserError

HIGHEST_LOSS = 15.0  # nats: log of a vocabulary of three million
FAR = 3.0  # times the middle loss: far from those of the other runs
OF_BASE = 0.01  # how near a loss times ln 2 is to the logarithm of the perplexity beside it
PERCENT = 1.5  # an accuracy whose largest value is above this is in percent


def read_loss(table: Table, given: str | None, metric: str | None) -> tuple[Quantity, list[str]]:
    """The loss, or 1 - a metric, with notes. Raises UserError where there is none."""
    if metric is not None:
        return _read_metric(table, metric)

    def same(columns: list[str]) -> bool:
        values = [numbers(table.frame[c], thousands=False).values for c in columns]
        return all(np.allclose(values[0], v, rtol=1e-6, equal_nan=True) for v in values[1:])

    column, why, notes = choose_loss(table, given, same)
    if column is None or (notes and given is None and _converted(table)):
        column, notes, why = _other_measure(table), [], ""
    name = table.names.get(column)
    if name is None:
        raise UserError(f"column {column!r} is empty: there is no number in it")
    kind = loss_kind(name) or "nats"
    if kind == "higher":
        raise UserError(
            f"column {column!r} grows as models get better, so it is no loss: --metric {column!r} "
            f"fits a law of 1 - it"
        )
    cells = numbers(table.frame[column], thousands=False)
    if not np.isfinite(cells.values).any():
        first = str(table.frame[column].dropna().iloc[0])
        comma = "; write decimal points" if re.fullmatch(r"-?\d+,\d+", first.strip()) else ""
        raise UserError(f"column {column!r} holds no numbers (its first value is {first!r}){comma}")
    _refuse_no_loss(column, name, kind, cells)
    values = cells.values.copy()
    values[values <= 0] = np.nan if kind == "perplexity" else values[values <= 0]
    quantity = Quantity(column, values, cells=cells)
    quantity.notes.append(why.removeprefix(", ")) if why else None
    if kind == "perplexity":
        quantity.values = np.log(values)
        quantity.notes.append("perplexity: its logarithm, in nats")
    elif kind == "bits":
        quantity.values = values * np.log(2)
        quantity.notes.append(f"bits: x ln 2, nats per {_per(name)}")
    elif given is None and middle_of(values) > HIGHEST_LOSS:
        raise UserError(
            f"column {column!r} is {middle_of(values):.3g} in the middle row, more than a loss in "
            f"nats per token can be: is it a perplexity or a sum? --loss {column!r} takes it as "
            "it is"
        )
    if kind == "nats" and _of_other_base(table, quantity):
        notes = [note for note in notes if "in bits" not in note]
    if cells.decorated:
        quantity.notes.append(f"{cells.decorated} cells without their marks and errors")
    return quantity, notes


def _of_other_base(table: Table, loss: Quantity) -> bool:
    """A loss in bits, as fairseq writes it, by a perplexity beside it that is 2 to its power."""
    for column, name in table.names.items():
        if loss_kind(name) != "perplexity":
            continue
        with np.errstate(all="ignore"):
            ratio = np.log(numbers(table.frame[column], thousands=False).values) / loss.values
        ratio = ratio[np.isfinite(ratio)]
        if len(ratio) and np.quantile(np.abs(ratio / np.log(2) - 1), 0.9) < OF_BASE:
            loss.values = loss.values * np.log(2)
            loss.notes.append(f"in bits, as {column!r} is 2 to its power: x ln 2, nats")
            return True
    return False


def _refuse_no_loss(column: str, name: Name, kind: str, cells: Cells) -> None:
    """Raise UserError for numbers that are no loss: a logarithm, a likelihood, percent."""
    if name.log or LOGARITHMS & set(name.words):
        raise UserError(
            f"column {column!r}: a logarithm of the loss, or a loss that was taken with that "
            "logarithm? Write the loss in nats, or for log2 rename it, as in 'val_loss (bits)'"
        )
    usable = cells.values[np.isfinite(cells.values)]
    if kind != "perplexity" and np.median(usable) < 0:
        raise UserError(
            f"column {column!r} is {np.median(usable):.3g} in the middle row: a log-likelihood? A "
            "loss is positive: write its negative into a column"
        )
    if cells.percent and kind == "nats":
        raise UserError(
            f"column {column!r} has {cells.percent} cells in percent, which a loss is not: write "
            "them as plain numbers, or name another column (loss=..., or --loss on the command "
            "line)"
        )


def impossible(losses: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Which of the runs' losses no model has, marks of failed runs (999) or what diverged; and
    what is said of them."""
    middle = middle_of(losses)
    highest = max(HIGHEST_LOSS, FAR * middle)
    with np.errstate(invalid="ignore"):
        far = losses > (np.inf if middle > HIGHEST_LOSS else highest)
    if not far.any():
        return far, []
    return far, [
        f"{int(far.sum())} losses above {highest:.3g} (up to {losses[far].max():.3g}) are of no "
        "trained model: these runs count as diverged"
    ]


def _per(name: Name) -> str:
    words = set(name.everything)
    short = {"bpb": "byte", "bpc": "character", "bpt": "token", "bpd": "dimension"}
    named = [w for w in ("byte", "token", "char", "pixel", "dim", "word") if w in words]
    return next(iter(named), next((long for w, long in short.items() if w in words), "unit"))


def _converted(table: Table) -> list[str]:
    """Columns of perplexity or bits, not of training."""
    return [
        c for c, name in table.names.items()
        if loss_kind(name) in ("perplexity", "bits") and not TRAINING & {*name.path, *name.words}
    ]  # fmt: skip


def _other_measure(table: Table) -> str:
    """A perplexity or bits where there is no loss; else the error that says what there is."""
    kinds: dict[str, list[str]] = {"perplexity": [], "bits": [], "higher": [], "lower": []}
    for column, name in table.names.items():
        kind = loss_kind(name)
        if kind in kinds:
            kinds[kind].append(column)
    for kind in ("perplexity", "bits"):
        columns = [c for c in _converted(table) if c in kinds[kind]]
        if len(columns) > 1:
            shortest = [c for c in columns if not set(table.names[c].path) - {"eval", "val"}]
            columns = shortest if len(shortest) == 1 else columns
            if len(columns) > 1:
                raise several("loss", columns)
        if columns:
            return columns[0]
    if _is_letter_loss(table):
        return "L"
    if measures := [*kinds["higher"], *kinds["lower"]]:
        raise UserError(
            f"no column for loss: the table has {listed(table.frame.columns)}; --metric "
            f"{measures[0]!r} fits a law of "
            + ("1 - it" if kinds["higher"] else "it")
            + ", or name one (loss=..., or --loss on the command line)"
        )
    for column in table.frame.columns[table.empty]:
        if loss_kind(parse_name(column)) == "nats":
            raise UserError(f"column {column!r} is empty: there is no number in it")
    said = missing(table, "loss")
    if any({"lr"} & set(name.everything) for name in table.names.values()):
        said += "; best learning rates by width are read by `scaling transfer`"
    raise UserError(said)


def _is_letter_loss(table: Table) -> bool:
    """Whether a column L is the loss beside C, N or D, and no number of layers."""
    if "L" not in table.names or not {"C", "N", "D"} & set(table.names):
        return False
    values = numbers(table.frame["L"], thousands=False).values
    values = values[np.isfinite(values)]
    return bool(len(values)) and values.max() <= HIGHEST_LOSS and bool((values % 1 != 0).any())


def missing(table: Table, role: str) -> str:
    """That the table lacks a column for a role: what it has, and what to do."""
    said = (
        f"no column for {WORDS[role]}: the table has {listed(table.frame.columns)}; name one "
        f"({role}=..., or --{role} on the command line)"
    )
    logs = [c for c, name in table.names.items() if name.log == "log" and loss_kind(name) is None]
    if logs:
        said += f"; of {logs[0]!r} it is not said which logarithm: rename it log10_... or ln_..."
    return said


def _read_metric(table: Table, metric: str) -> tuple[Quantity, list[str]]:
    """1 - accuracy (or an error as it is), in (0, 1]."""
    column = table.check("loss", metric)
    name = table.names[column]
    kind = loss_kind(name)
    if kind in ("nats", "bits", "perplexity"):
        return read_loss(table, column, None)
    if kind is None:
        raise UserError(
            f"--metric {metric!r}: is it better high or low? Names with one of "
            f"{', '.join(sorted(HIGHER)[:6])} ... are read as better high; rename the column so, "
            f"or give --loss {metric!r} where low is better"
        )
    cells = numbers(table.frame[column], thousands=False)
    values = cells.values
    share = values / 100 if cells.percent or np.nanmax(values) > PERCENT else values
    if kind == "higher" and not (np.nanmin(share) >= 0 and np.nanmax(share) <= 1):
        raise UserError(
            f"--metric {metric!r}: values from {np.nanmin(values):.3g} to {np.nanmax(values):.3g} "
            "are no shares of 1 or of 100: a law of 1 - it has no meaning"
        )
    quantity = Quantity(column, 1 - share if kind == "higher" else share, cells=cells)
    quantity.notes.append("1 - it" if kind == "higher" else "an error, as it is")
    if share is not values:
        quantity.notes.append("percent: / 100")
    return quantity, []
