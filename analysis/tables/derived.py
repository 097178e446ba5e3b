"""Tokens that two columns give together: a ratio to parameters, epochs of a data set, steps of a
batch."""

from __future__ import annotations

import re

import numpy as np

from scaling.analysis.tables.columns import PLANNED, STEP, Table
from scaling.analysis.tables.quantities import Quantity, read_quantity
from scaling.analysis.tables.units import Name, numbers
from scaling.errors import UserError

RATIO = {"tpp", "tokenspp", "dovern", "tokensperparam", "tokensperparameter", "tokenparamratio",
         "tokentoparamratio", "tokenstoparamsratio", "tokenparameterratio"}  # fmt: skip
_TOKENS = {"d", "token", "tokens", "tok", "toks"}
_PARAMETERS = {"n", "param", "params", "parameter", "parameters"}
_AROUND = {"ratio", "train", "training", "per", "to", "the", "of", "non", "embedding"}
PER_STEP = {"batchtokens", "tokensperbatch", "tokensperstep", "batchsizetokens", "tokensperupdate",
            "globalbatchtokens", "batchsizeintokens", "globalbatchsizetokens"}  # fmt: skip
STEPS = STEP | {"steps", "trainsteps", "trainingsteps", "iterations", "iters"}
SEQUENCES = {"globalbatchsize", "globalbatch", "totalbatchsize", "trainbatchsize", "batchsize",
             "batch", "gbs", "globalbs", "globaltrainbatchsize"}  # fmt: skip
LENGTH = {"seqlen", "seqlength", "sequencelength", "contextlength", "contextlen", "context", "ctx",
          "nctx", "ctxlen", "blocksize", "maxseqlen", "maxseqlength"}  # fmt: skip
# Beside one of these a batch may be that of one device or of one pass, and is not multiplied.
_OF_A_PART = {
    "worldsize", "gpus", "ngpus", "numgpus", "devices", "numdevices", "nodes", "gradaccum",
    "gradaccumsteps", "accumulationsteps", "gradientaccumulation", "gradientaccumulationsteps",
    "dp", "dpsize", "microbatch", "microbatchsize",
}  # fmt: skip
MOST_SEQUENCES = 65536  # in a batch; more are tokens
CONSUMED = {"consumedsamples", "consumedtrainsamples", "consumedsequences", "sequencesseen",
            "numsequences", "trainsequences", "consumedtrainsequences"}  # fmt: skip
_TOKENS_PER = re.compile(
    r"(?:tokens|toks|ntokens)per(sample|clip|image|frame|sequence|video|example)"
)
_ALL = "(?:num|n|total|train|training|consumed|seen|processed|trained)"
HOW = (
    "; tokens are also read from a column of tokens per parameter ('D/N'), of 'epochs' with "
    "'unique_tokens', of 'steps' with 'batch_tokens' or with 'global_batch_size' and 'seq_length', "
    "of 'consumed_samples' with 'seq_length', or of 'clips_seen' with 'tokens_per_clip'"
)


def is_ratio(name: Name, plain: str) -> bool:
    """Whether a column holds tokens per parameter."""
    words = set(name.path) | set(name.words)
    apart = words & _TOKENS and words & _PARAMETERS and not words - _TOKENS - _PARAMETERS - _AROUND
    return plain in RATIO or (name.rate and bool(apart))


def ratio_given(table: Table, given: str | None) -> bool:
    """Whether the column that the caller named for tokens holds tokens per parameter."""
    return given in table.names and is_ratio(table.names[str(given)], table.plain(str(given)))


def tokens(table: Table, n: Quantity | None, given: str | None) -> Quantity | None:
    """Tokens by a product of two columns; None where the table has no such pair.

    n: the parameters; given: the column that the caller named for tokens, which may be a ratio.
    """
    ratios = [c for c, name in table.names.items() if is_ratio(name, table.plain(c))]
    if given is not None:
        ratios = [c for c in ratios if c == given]
        if not ratios:
            return None
        if n is None:
            raise UserError(f"column {given!r} is tokens per parameter: name the parameters (--n)")
    if len(ratios) == 1 and n is not None:
        times = _numbers(table, ratios[0])
        return Quantity(ratios[0], times * n.values, notes=[f"x parameters, column {n.column!r}"])
    steps = [*table.named(STEPS), *table.named(PLANNED)][:1]
    for first, second in ((table.passes()[:1], table.unique()[:1]), (steps, table.named(PER_STEP))):
        if first and second:
            return _product(table, second[0], first[0])
    return _of_sequences(table) or _of_examples(table)


def _of_sequences(table: Table) -> Quantity | None:
    """Steps x sequences of a batch x their length."""
    step, sequences, lengths = (table.named(of) for of in (STEPS | PLANNED, SEQUENCES, LENGTH))
    if not step or not sequences:
        return None
    steps, batch = step[0], sequences[0]
    whole = "global" in table.plain(batch) or "total" in table.plain(batch)
    if not whole and table.named(_OF_A_PART):
        return None
    if whole and np.nanmin(_numbers(table, batch)) > MOST_SEQUENCES:  # OLMo-core's, in tokens
        return _product(table, batch, steps)
    if not lengths:
        return None
    length = lengths[0]
    values = [_numbers(table, column) for column in (steps, batch, length)]
    if not np.nanmax(values[1]) <= MOST_SEQUENCES:
        return None
    notes = [f"x columns {batch!r} (sequences) and {length!r}"]
    return Quantity(steps, values[0] * values[1] * values[2], notes=notes)


def _of_examples(table: Table) -> Quantity | None:
    """Sequences that were consumed x their length; clips x tokens of a clip."""
    length, consumed = table.named(LENGTH), table.named(CONSUMED)
    if length and consumed:
        return _product(table, length[0], consumed[0])
    for column in table.names:
        if (per := _TOKENS_PER.fullmatch(table.plain(column))) is not None:
            seen = re.compile(rf"{_ALL}*{per[1]}s?{_ALL}*")
            if counts := [c for c in table.names if seen.fullmatch(table.plain(c))]:
                return _product(table, column, counts[0])
    return None


def _product(table: Table, column: str, *times: str) -> Quantity:
    """A column of tokens times others."""
    held = read_quantity(table, "d", column, None, None)
    for other in times:
        held.values = _numbers(table, other) * held.values
        held.notes.append(f"x column {other!r}")
    return held


def _numbers(table: Table, column: str) -> np.ndarray:
    return numbers(table.frame[column], thousands=True).values
