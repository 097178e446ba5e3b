"""Which column means what: by its name, by conventions of the field, and by its values.

Every meaning ("role") has candidates in tiers, best first. Several candidates of the best tier that
hold the same numbers are one; else they are told apart by what training costs (6 N D FLOPs), or
the table is refused with their names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np
import pandas as pd

from scaling.analysis.tables.units import Name, parse_name
from scaling.errors import UserError

WORDS = {
    "n": "parameters (N)", "d": "tokens (D)", "c": "compute (C)", "loss": "loss", "run": "run id",
    "step": "step", "seed": "seed", "lr": "learning rate", "batch": "batch",
    "budget": "nominal budget", "epochs": "epochs", "unique": "unique tokens",
    "schedule": "schedule", "decayed": "decayed", "planned": "planned steps",
}  # fmt: skip
# Words that change nothing of a quantity's meaning.
_NEUTRAL = {
    "n": {"n", "num", "number", "of", "total", "model", "count", "nr", "trainable", "size", "all",
          "the", "actual"},
    "d": {"n", "d", "num", "number", "of", "total", "train", "training", "trained", "seen", "input",
          "processed", "consumed", "count", "the", "so", "far", "actual", "data"},
    "c": {"total", "train", "training", "model", "achieved", "used", "est", "estimated", "actual",
          "cumulative", "c", "nd", "6nd", "6", "compute", "cost", "n", "num", "the", "of", "final",
          "theoretical", "spent"},
}  # fmt: skip
_QUALIFIED = {
    "n": {"non", "no", "emb", "embed", "embeds", "embedding", "embeddings", "active", "activated",
          "matmul", "head", "without", "w", "o", "wo", "excl", "excluding", "nonembedding",
          "nonemb", "backbone", "non-embedding", "body", "with", "incl", "including"},
    "d": set(),
    "c": {"no", "emb", "non", "embedding", "embed", "attn", "attention", "hardware", "with",
          "without"},
}  # fmt: skip
_CORE = {
    "n": {"params", "parameters", "param", "parameter", "paramcount", "nparams", "numparams",
          "numparameters", "modelparams"},
    "d": {"tokens", "token", "toks", "tok", "ntokens", "numtokens"},
    "c": {"flops", "flop", "macs", "compute", "pfdays", "c6nd", "6nd"},
}  # fmt: skip
_LETTER = {"n": "n", "d": "d", "c": "c"}
_BUDGET = {"budget", "nominal", "iso"}
VALIDATION = {"val", "valid", "validation", "eval", "evaluation", "dev", "heldout", "holdout"}
TESTING = {"test", "testing"}
TRAINING = {"train", "training", "trn"}
_TIMES = {"s", "sec", "second", "seconds", "minute", "hour", "day", "step", "iteration"}
_LOSS = {"loss", "nll", "xent", "crossentropy", "logloss"}
_LOSS_NEUTRAL = {"loss", "final", "last", "mean", "avg", "average", "lm", "macro", "overall",
                 "cross",
                 "entropy", "nats", "token", "per", "nll", "ce", "xent", "total", "the",
                 "model", "value", "log", "likelihood", "negative"}  # fmt: skip
PERPLEXITY = {"ppl", "perplexity", "pplx"}
BITS = {"bpb", "bpc", "bpd", "bpt", "bpp", "bits", "bpw"}
HIGHER = {
    "acc", "accuracy", "acc1", "acc5", "top1", "top5", "recall", "precision", "f1", "map", "iou",
    "miou", "auc", "auroc", "score", "jf", "bleu", "rouge", "em", "pass", "correct", "winrate",
    "psnr", "ssim", "r2", "success",
}  # fmt: skip
LOGARITHMS = {"log2", "log10", "ln"}  # loss (log2): in bits, or the logarithm of the loss?
ERRORS = {"err", "error", "errors", "errorrate"}
LOWER = ERRORS | {"wer", "cer", "fid", "mse", "mae", "rmse", "fvd", "lpips"}
RUN = (
    ("runid", True), ("runuuid", True), ("runhash", True), ("experimentkey", True), ("run", True),
    ("trialid", True), ("id", True), ("uuid", True), ("runname", False), ("expname", False),
    ("expid", True), ("displayname", False),
    ("name", False), ("mlflowrunname", False), ("wandbrunid", True), ("wandbid", True),
    ("wandbrunname", False),
    ("runlabel", False), ("jobid", True), ("version", True), ("number", True), ("trial", True),
)  # fmt: skip
STEP = {"step", "globalstep", "iter", "iteration", "trainingiteration", "currentstep",
        "currentsteps", "trainstep", "trainerglobalstep", "updates", "checkpoint",
        "ckpt"}  # fmt: skip
PLANNED_TOKENS = {"maxtokens", "targettokens", "plannedtokens", "tokenbudget", "maxtraintokens",
                  "tokenhorizon", "horizontokens", "scheduledtokens"}  # fmt: skip
PLANNED = {"totalsteps", "maxsteps", "numtrainsteps", "numsteps", "plannedsteps", "totaliters",
           "trainiters", "numiterations", "maxiters", "maxiterations"}  # fmt: skip
LR = {"lr", "learningrate", "peaklr", "maxlr", "baselr", "peaklearningrate", "maxlearningrate",
      "lrpeak", "lrmax", "optlr", "baselearningrate", "initlr"}  # fmt: skip
# Lightning's and OLMo's names for the rate of the first group of parameters.
LR |= {"learningrategroup0", "lrgroup0"} | {
    f"lr{optimizer}{group}" for group in ("", "pg1")
    for optimizer in ("adam", "adamw", "sgd", "lion", "muon", "adafactor", "radam", "rmsprop")
}  # fmt: skip
BATCH = {"batchtokens", "tokensperbatch", "tokensperstep", "batchsize", "globalbatchsize", "bs",
         "globalbs", "batch", "batchsizetokens", "trainbatchsize", "gbs",
         "perdevicetrainbatchsize"}  # fmt: skip
SEED = {"seed", "randomseed", "rngseed", "trainseed", "modelseed", "initseed", "dataseed",
        "replicate", "replica", "rep"}  # fmt: skip
# Passes over the data, and tokens of the data that are not repeated: words that tell, and words
# that may stand beside them.
EPOCHS = {"epochs", "numepochs", "nepochs", "epoch", "dataepochs", "numtrainepochs",
          "epochsoverdata", "epochsofdata"}  # fmt: skip
_EPOCHS = {"epochs", "epoch"}  # with other words: in some trainers what lies between checkpoints
_PASSES = {"passes", "repeats", "repeat", "repetitions", "repetition"}
_UNIQUE = {"unique", "distinct", "fresh", "dataset", "subset", "pool", "corpus",
           "uniqued", "uniquetokens", "datasettokens"}  # fmt: skip
_OF_DATA = {"n", "num", "number", "of", "total", "max", "train", "training", "trained", "data",
            "dataset", "seen", "factor", "over", "the", "count", "size", "budget",
            "pool"}  # fmt: skip
_SINGLE = {"tokens", "token", "toks", "tok", "d", "uniqued", "uniquetokens",
           "datasettokens"}  # fmt: skip
SCHEDULE = {"schedule", "lrschedule", "scheduler", "lrscheduler", "lrschedulertype",
            "learningrateschedule"}  # fmt: skip
# Further settings that runs of one N and D may be searched over.
SETTINGS = {"wd", "weightdecay", "beta1", "beta2", "dropout", "warmup", "warmupsteps",
            "warmupratio", "warmupfraction", "clip", "gradclip", "gradclipping", "eps",
            "momentum", "embmult", "minlr", "initstd", "lrmult"}  # fmt: skip
# What one law may not silently mix: output column -> names.
MIXES = {
    "tokenizer": {"tokenizer", "tokenizername", "tok", "tokeniser"},
    "vocab": {"vocab", "vocabsize", "nvocab", "vocabulary", "vocabularysize"},
    "data_key": {"dataset", "traindataset", "trainingdataset", "data", "corpus", "traindata",
                 "trainingdata", "datamix", "upstreamdataset", "datasetname", "pretraindataset",
                 "mixture", "datasource"},
    "context": {"context", "seqlen", "contextlength", "sequencelength", "blocksize", "ctxlen",
                "maxseqlen", "contextlen", "seqlength", "nctx"},
    "optimizer": {"optimizer", "optim", "optimiser", "opt", "optimizername"},
    "evaluated_on": {"downstreamdataset", "evaldataset", "valdataset", "testdataset", "evalset",
                     "evaluationdataset", "validationdataset", "benchmark", "task", "evalname"},
    "parametrization": {"parametrization", "parameterization", "parametrisation"},
    "family": {"family", "architecture", "modelfamily", "modeltype", "arch", "modelclass"},
}  # fmt: skip
SAME = 0.02  # columns whose median ratio is within this of 1 hold the same numbers


class Table:
    """A table's columns with their parsed names, without those `apart`, whose meaning is told."""

    def __init__(self, frame: pd.DataFrame, apart: Collection[str] = ()) -> None:
        self.frame = frame
        self.empty = empty = frame.isna().all()
        self.names: dict[str, Name] = {
            c: parse_name(c) for c in frame.columns if not bool(empty[c]) and c not in apart
        }

    def plain(self, column: str) -> str:
        return "".join(self.names[column].everything).replace(".", "")

    def named(self, names: Iterable[str]) -> list[str]:
        """Columns whose last part, without spaces and signs, is one of these; plain ones first."""
        wanted = set(names)
        found = [c for c in self.names if self.plain(c) in wanted]
        return sorted(found, key=lambda c: len(self.names[c].path))

    def first(self, role: str, names: Iterable[str], given: str | None = None) -> str | None:
        """One column of a setting, or None."""
        if given is not None:
            return self.check(role, given)
        found = self.named(names)
        return found[0] if found else None

    def check(self, role: str, given: str) -> str:
        if given in self.frame.columns:
            return given
        near = [c for c in self.frame.columns if str(c).strip().lower() == given.strip().lower()]
        if len(near) == 1:
            return near[0]
        raise UserError(
            f"no column {given!r} for {WORDS.get(role, role)}; the table has "
            f"{listed(self.frame.columns)}"
        )

    def quantity(self, role: str) -> list[list[str]]:
        """Candidates for "n", "d" or "c" by tier: plain, letter alone, budget (c), qualified."""
        tiers: list[list[str]] = [[], [], [], []]
        for column, name in self.names.items():
            tier = _tier(role, name)
            if tier is not None:
                tiers[tier].append(column)
        return tiers

    def passes(self) -> list[str]:
        """Columns of epochs or repetitions, plain ones first."""
        worded = self._worded(lambda words: bool(words & _PASSES) and words <= _PASSES | _OF_DATA)
        return [*self.named(EPOCHS), *worded]

    def trainers_epochs(self) -> list[str]:
        """Columns of epochs that may be of a trainer and not of the data: "total_epochs"."""
        worded = self._worded(lambda words: bool(words & _EPOCHS) and words <= _EPOCHS | _OF_DATA)
        return [c for c in worded if c not in self.named(EPOCHS)]

    def unique(self) -> list[str]:
        """Columns of the tokens that a run's data hold before any is repeated, plain ones first."""
        allowed = _UNIQUE | _SINGLE | _OF_DATA
        return self._worded(
            lambda words: bool(words & _UNIQUE and words & _SINGLE) and words <= allowed
        )

    def _worded(self, tells: Callable[[set[str]], bool]) -> list[str]:
        found = [
            c for c, name in self.names.items()
            if not name.rate and not name.log and tells(set(name.words))
        ]  # fmt: skip
        return sorted(found, key=lambda c: (len(self.names[c].path), len(self.names[c].words)))

    def run(self) -> tuple[str | None, bool]:
        """The column of runs, and whether it is an id (else a display name, which may be "
        "shared)."""
        for wanted, is_id in RUN:
            found = self.named([wanted]) or [
                c for c, name in self.names.items()
                if name.path and "".join((*name.path, *name.everything)) == wanted  # run.hash
            ]  # fmt: skip
            if wanted == "version":  # Lightning's; elsewhere of a model or a program
                found = [c for c in found if self.frame[c].astype(str).str.match("version_").all()]
            if found:
                return found[0], is_id
        return None, False


def _tier(role: str, name: Name) -> int | None:
    words = [w for w in name.words if w]
    if name.rate or name.log == "log" or not words:
        return None
    if role == "n" and name.unit in ("FLOPs", "MACs", "tokens"):
        return None
    kept = set(words)
    whole = "".join(words)
    if role != "c" and kept & {"batch", "unique", "vocab"}:
        return None
    if whole == _LETTER[role]:
        return 1
    if role == "n" and whole in ("size", "modelsize"):
        return 1
    core = kept & _CORE[role] or (whole in _CORE[role] and {whole})
    if not core:
        # "N_no_emb", "C_no_emb": a letter with a qualification
        letter = kept & {_LETTER[role]} and kept - {_LETTER[role]}
        if not letter:
            return None
        if role == "c" and kept <= {"c", "6nd", "nd", "6"}:
            return 0
        return 3 if letter <= _QUALIFIED[role] else None
    rest = kept - _CORE[role] - {whole}
    if rest <= _NEUTRAL[role]:
        return 0
    if role == "c" and rest - _NEUTRAL["c"] <= _BUDGET:
        return 2
    if rest - _NEUTRAL[role] <= _QUALIFIED[role]:
        return 3
    return None


def budget_columns(table: Table) -> list[str]:
    return [
        c for c, name in table.names.items()
        if set(name.words) & _BUDGET and not name.rate
        and set(name.words) <= _BUDGET | _NEUTRAL["c"] | _CORE["c"] | {"target"}
    ]  # fmt: skip


# --- the loss ---------------------------------------------------------------------------------


def loss_kind(name: Name) -> str | None:
    """nats | perplexity | bits | higher | lower: what a column measures, by its name."""
    words = set(name.words) | set(name.everything)
    joined = "".join(name.words)
    if words & PERPLEXITY:
        return "perplexity"
    if words & BITS or (words & _LOSS and name.unit == "bits"):
        return "bits"
    if words & _LOSS or {"cross", "entropy"} <= words or joined.endswith("loss"):
        return "nats"
    if words & HIGHER:
        if not words & ERRORS:
            return "higher"
        return "lower" if words & {"top1", "top5"} else None  # of an accuracy: its standard error?
    if words & LOWER:
        return "lower"
    return None


def loss_candidates(table: Table) -> dict[str, list[str]]:
    """Columns of a loss in nats by class: validation, test, plain, qualified validation,
    qualified, training."""
    found: dict[str, list[str]] = {
        k: [] for k in ("validation", "test", "plain", "some validation", "some", "training")
    }
    for column, name in table.names.items():
        per_time = name.rate and set(name.everything) & _TIMES
        if per_time or (loss_kind(name) != "nats" and not _paloma(name)) or name.log:
            continue
        words, path = set(name.words), set(name.path)
        joined = "".join(name.words)
        for head in ("val", "eval", "train", "valid", "test", "final"):  # valloss, trainloss
            if joined == f"{head}loss":
                words = {head, "loss"}
        if words & {"aux", "auxiliary", "z", "router", "scale", "std", "min", "max", "delta",
                    "weight", "spike", "spikes", "ema", *LOGARITHMS}:  # fmt: skip
            continue
        both = words | path
        rest = words - _LOSS_NEUTRAL - VALIDATION - TRAINING - TESTING
        inner = (
            path - VALIDATION - TRAINING - TESTING - {"loss", "losses", "lm", "metrics", "trainer"}
        )
        if both & TRAINING and not both & VALIDATION:
            found["training"].append(column)
        elif both & VALIDATION:
            found["some validation" if rest or inner else "validation"].append(column)
        elif both & TESTING:
            found["some validation" if rest or inner else "test"].append(column)
        else:
            found["some" if rest or inner else "plain"].append(column)
    return found


def _paloma(name: Name) -> bool:
    """Marin's and Levanter's tables: the mean over Paloma's sets."""
    words = set(name.words) | set(name.path)
    return {"paloma", "macro"} <= words and not words & BITS


def choose_loss(
    table: Table, given: str | None, same: Callable[[list[str]], bool]
) -> tuple[str | None, str, list[str]]:
    """(column, why, notes); None where the table has no loss. `same`: do columns agree?"""
    if given is not None:
        return table.check("loss", given), "", []
    found = loss_candidates(table)
    notes: list[str] = []
    for kind in ("validation", "test", "some validation", "plain", "some", "training"):
        columns = found[kind]
        if not columns:
            continue
        if kind == "some validation" and len(columns) > 1 and not same(columns):
            if found["plain"]:
                columns = [*found["plain"], *columns]
            raise UserError(_several("loss", columns))
        if kind == "plain" and len(columns) > 1 and not same(columns):
            exact = [c for c in columns if table.plain(c) == "loss" and not table.names[c].path]
            if len(exact) != 1:
                raise UserError(_several("loss", columns))
            columns = exact
        elif len(columns) > 1 and not same(columns):
            raise UserError(_several("loss", columns))
        column = columns[0]
        others = [c for k in found for c in found[k] if c != column]
        why = "" if not others else f", not {listed(others, 3)}"
        if kind == "training":
            notes.append(
                f"beware: no column of a validation loss: {column!r} is of training, which says "
                "less about new data and is noisier"
            )
        if table.plain(column) in ("nllloss", "validnllloss", "trainnllloss"):
            notes.append(
                f"beware: {column!r} is fairseq's name for a loss in bits, and it is read in nats: "
                "if it is fairseq's, call it 'loss (bits)'"
            )
        if {"excess", "reducible"} & set(table.names[column].words):
            notes.append(
                f"beware: {column!r} is a loss above a floor that was taken off already: a floor "
                "fitted to it is what is left of that one; --e 0 fits a law without"
            )
        if {"best", "min", "lowest"} & set(table.names[column].words):
            notes.append(
                f"beware: {column!r} is the lowest of each run, not its last: too low by the noise "
                "between its evaluations"
            )
        return column, why, notes
    return None, "", []


def _several(role: str, columns: list[str]) -> str:
    return (
        f"{WORDS[role]}: columns {', '.join(map(repr, columns))} could all be meant; name one "
        f"({role}=..., or --{role} on the command line)"
    )


def several(role: str, columns: list[str]) -> UserError:
    return UserError(_several(role, columns))


def listed(columns: Iterable[object], most: int = 20) -> str:
    names = [repr(str(c)) for c in columns]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def agree(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two columns hold the same numbers, but for roundings."""
    both = np.isfinite(a) & np.isfinite(b) & (a > 0) & (b > 0)
    if both.sum() < min(np.isfinite(a).sum(), np.isfinite(b).sum()) * 0.5 or not both.any():
        return False
    ratio = np.abs(np.log(a[both] / b[both]))
    return bool(np.quantile(ratio, 0.9) < SAME)
