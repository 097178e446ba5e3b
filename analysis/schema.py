"""The row: its columns, the unit of its loss. The contract between running and reading."""

from __future__ import annotations

from collections.abc import Iterable

COLUMNS: dict[str, str] = {
    # identity
    "run_id": "str",
    "study": "str",
    "role": "str",  # lr_sweep | ladder | single
    "git_sha": "str",
    "seed": "int",
    "schema": "int",
    # design
    "size": "str",
    "family": "str",
    "parametrization": "str",
    "d": "int",
    "layers": "int",
    "heads": "int",
    "d_ff": "int",
    "vocab": "int",
    "context": "int",  # positions of a training sequence
    "params": "int",
    "params_non_embedding": "int",
    "params_matmul_head": "int",
    "tokenizer": "str",
    "data_key": "str",
    "data_mix": "str",  # JSON: source -> share of the sequences, as configured
    "lr": "float",  # muP base rate
    "log2_lr": "float",
    "schedule": "str",
    "warmup_steps": "int",
    "batch_tokens": "int",
    "weight_decay": "float",
    "optimizer": "str",
    "beta1": "float",
    "beta2": "float",
    "cooldown": "float",  # share of the steps over which the rate falls (wsd)
    "grad_clip": "float",
    "precision": "str",
    # cost
    "steps": "int",
    "tokens": "int",
    "drawn": "str",  # JSON: source -> sequences drawn so far
    "epochs": "float",  # passes over the most-repeated source; NaN: every clip was new
    "macs_qkvo": "int",
    "macs_attention": "int",
    "macs_ffn": "int",
    "macs_head": "int",
    "macs_total": "int",  # training MACs (3 x forward) of the path to this point
    "seconds": "float",  # of the run's process so far; the one column that may differ in a repeat
    "device": "str",
    "mfu": "float",
    # outcome
    "budget_macs": "float",  # nominal budget that this decayed point serves; NaN mid-schedule
    "val_loss": "float",  # in `loss_unit`, sources weighted as in training
    "train_loss": "float",  # in the same, mean since the last evaluation
    "decayed": "bool",
    "status": "str",  # finished | diverged | failed
}
# Columns that a row leaves out where this is their value, which all runs had before there were
# others: rows are as they were.
ADDED: dict[str, str | float] = {
    "optimizer": "adamw", "beta1": 0.9, "beta2": 0.95, "cooldown": 0.2, "grad_clip": 1.0,
}  # fmt: skip
ALWAYS = COLUMNS.keys() - ADDED.keys()  # the columns of every version's tables
SOURCE_PREFIX = "val_loss/"  # one further float column per source
# A further column where the weights of rows are known: in proportion to 1 / variance.
WEIGHT = "relative_weight"
TOKEN_UNIT, PATCH_UNIT = "nats per token", "squared error per value"  # of a loss


# Numbers of a study's `train` that were swept with the rate: their names and values.
Setting = tuple[tuple[str, int | float], ...]


def words(setting: Setting) -> str:
    """A setting in the name (`size`) of a swept model and in tables: `batch=8,beta2=0.99`."""
    return ",".join(f"{name}={value!r}" for name, value in setting)


def parsed(text: str) -> dict[str, float]:
    """The values that `words` wrote."""
    return {name: float(value) for name, value in (part.split("=") for part in text.split(","))}


def predicted(tokenizer: str) -> str:
    """What the loss is of: `patch-8px` of `dvae-8px-8192 > patch-8px`, else the whole label."""
    return tokenizer.split(" > ")[-1]


def loss_unit(tokenizers: Iterable[str]) -> str:
    """The unit of the losses of rows whose column `tokenizer` has these values.

    Without any (rows of a foreign table) it is that of tokens.
    """
    patches = {predicted(label).startswith("patch-") for label in tokenizers}
    return " or ".join(PATCH_UNIT if one else TOKEN_UNIT for one in sorted(patches or {False}))
