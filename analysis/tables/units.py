"""Units in the names of columns, in brackets behind them, and in single cells.

parse_name("throughput/total_gflops")   # words total, flops; 1e9 FLOPs each
numbers(["1.95B", "**4.435**", "3.1 ± .01"], ...)  # as floats, and what could not be read
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

LETTERS = {
    "k": 1e3, "m": 1e6, "mn": 1e6, "mm": 1e6, "b": 1e9, "bn": 1e9, "g": 1e9, "t": 1e12, "tn": 1e12,
    "p": 1e15, "e": 1e18, "z": 1e21,
}  # fmt: skip
PREFIXES = {
    "kilo": 1e3, "mega": 1e6, "giga": 1e9, "tera": 1e12, "peta": 1e15, "exa": 1e18, "zetta": 1e21,
    "yotta": 1e24, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12,
    "quadrillion": 1e15, "quintillion": 1e18,
}  # fmt: skip
SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}  # of a flag
SECONDS = {"s": 1.0, "sec": 1.0, "second": 1.0, "hour": 3600.0, "hr": 3600.0, "day": 86400.0,
           "year": 365.25 * 86400}  # fmt: skip
BASES = {"flop": "FLOPs", "flo": "FLOPs", "mac": "MACs", "token": "tokens", "tok": "tokens",
         "param": "parameters", "parameter": "parameters"}  # fmt: skip
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_GLUED = re.compile(
    r"(?P<prefix>kilo|mega|giga|tera|peta|exa|zetta|yotta|bn|[kmgbtpez])?"
    r"(?P<base>flop|flo|mac|token|tok|parameter|param)s?"
)
# "D/N" and "tokens/param" are ratios, "train/step" is a path.
_COUNTED = {"c", "d", "flop", "flops", "mac", "macs", "tok", "token", "tokens", "sample", "samples",
            "frame", "frames", "image", "images"}  # fmt: skip
_PER = {"n", "param", "params", "parameter", "parameters", "token", "tokens", "step", "steps", "s",
        "sec", "second", "gpu", "device", "chip", "sample", "image", "frame"}  # fmt: skip


# What a tracker keeps of a curve.
_SUMMARIES = {"last", "final", "mean", "avg", "average", "min", "max", "best", "std"}
_SPLITS = {"train", "training", "val", "valid", "validation", "eval", "test", "dev"}


@dataclass(frozen=True)
class Name:
    """What a column's name says."""

    words: tuple[str, ...]  # lower case, without units; the last part of a path
    path: tuple[str, ...] = ()  # words of the parts before it: ("eval",) of eval/loss
    factor: float = 1.0  # of the unit that the name gives
    scaled: bool = False  # whether the name gives a factor at all
    unit: str | None = None  # "FLOPs", "MACs", "bits", "percent", or None
    rate: bool = False  # per second, per token, D/N: no total
    log: str = ""  # "log10", "ln", or "log" without a base
    everything: tuple[str, ...] = field(default=(), compare=False)  # words with their units


# Groups that tools put before a name: MLflow, Optuna, W&B, Lightning, nested JSON.
_GROUP = re.compile(
    r"^(?:metrics|params|tags\.mlflow|tags|config|summary|user_attrs|hparams|parameters|hyperparameters)"
    r"[./]|^user_attrs_|^attributes/|^sys/",
    re.IGNORECASE,
)


def parse_name(name: object) -> Name:
    """The words, unit and factor of a column's name. Nothing is decided about its meaning."""
    text = _GROUP.sub("", str(name).strip()).removesuffix(".value")  # W&B's raw configs
    text = re.sub(r"/(?=pg\d+$)", " ", text)  # Lightning's groups of parameters
    log, text = _logarithm(text)
    brackets = re.findall(r"[\[(]([^\])]*)[\])]", text)
    text = re.sub(r"[\[(][^\])]*[\])]", " ", text)
    text, per, parts = _divided(text)
    factor, scaled, unit, rate = per, per != 1.0, None, False
    last = split_words(parts[-1])
    path = tuple(w for part in parts[:-1] for w in split_words(part))
    words: list[str] = []
    found = _unit_words(last, words)
    for inside in brackets:
        kept: list[str] = []
        one = _unit_words(split_words(inside), kept, bracket=True)
        words += kept
        found = _both(found, one)
    factor, scaled = factor * found[0], scaled or found[1]
    unit, rate = found[2], found[3]
    if path and len(words) == 1 and words[0] in _PER and path[-1] in _COUNTED:
        rate = True
    return Name(tuple(words), path, factor, scaled, unit, rate, log, tuple(last))


def split_words(text: str) -> list[str]:
    """Lower-case words; 1e18, 10^18 and camelCase are kept apart, signs dropped."""
    text = re.sub(r"(?i)\biso[-_ ]?(flops?)", r"iso \1", text)
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    text = re.sub(r"10([⁰¹²³⁴⁵⁶⁷⁸⁹]+)", lambda m: "10^" + m[1].translate(_SUPERSCRIPT), text)
    text = re.sub(r"10\s*(?:\^|\*\*)\s*\{?(\d+)\}?", r" 1e\1 ", text)
    text = re.sub(r"[×·*]", " ", text)
    words = re.split(r"[^a-z0-9.+%]+", text.lower())
    return [w.rstrip(".") for w in words if w.strip(".+")]


def _logarithm(text: str) -> tuple[str, str]:
    """("log10", the rest) of "log10(C)", "log10_flops"; "" where there is no logarithm."""
    found = re.match(
        r"^\s*(log_?10|log_?2|lg|ln|log)(?=[\s_(\[]|[NDC]$)[\s_]*[(\[]?(.*?)[)\]]?\s*$",
        text, re.IGNORECASE,
    )  # fmt: skip
    if not found:
        return "", text
    base = found.group(1).lower().replace("_", "")
    return {"lg": "log10"}.get(base, base), found.group(2)


def _divided(text: str) -> tuple[str, float, list[str]]:
    """A division by a number is a factor ("FLOPs / 1e18"); other slashes and dots part a path."""
    power = re.search(
        r"/\s*(10\s*(?:\^|\*\*)\s*\{?\d+\}?|\d+(?:\.\d+)?(?:e\+?\d+)?)\s*$", text, re.I
    )
    factor = 1.0
    if power:
        digits = re.sub(r"10\s*(?:\^|\*\*)\s*\{?(\d+)\}?", r"1e\1", power.group(1))
        factor, text = float(digits), text[: power.start()]
    text = re.sub(r"(flops?)\s*/\s*(s|sec|second)\b", r"\1 \2", text, flags=re.I)
    parts = [p for p in re.split(r"/|(?<=[a-z])\.(?=[a-z])", text, flags=re.I) if p.strip()]
    if len(parts) > 1 and parts[-1].strip().lower() in _SUMMARIES:  # val_loss.last
        parts = [*parts[:-2], f"{parts[-2]} {parts[-1]}"]
    if len(parts) > 1 and parts[-1].strip().lower() in _SPLITS:  # Loss/val
        parts = [*parts[:-2], parts[-1], parts[-2]]
    return text, factor, parts or [""]


# (factor, whether one is given, unit, whether it is a rate)
Said = tuple[float, bool, str | None, bool]


def _both(a: Said, b: Said) -> Said:
    return a[0] * b[0], a[1] or b[1], a[2] or b[2], a[3] or b[3]


def _unit_words(words: list[str], rest: list[str], *, bracket: bool = False) -> Said:
    """What the words say; the other words go to `rest`.

    A unit keeps its word (flops, macs, tokens, params) in `rest`, since that is its meaning too.
    """
    factor, scaled, unit, rate = 1.0, False, None, False
    for i, word in enumerate(words):
        plural = word.rstrip("s") if len(word) > 2 else word
        glued = _GLUED.fullmatch(word)
        after_flops = unit in ("FLOPs", "PF") and i > 0
        if word == "per":
            rate = True
        elif rate and plural in SECONDS:
            continue
        elif glued:
            unit = BASES[glued["base"]]
            if glued["prefix"]:
                factor, scaled = factor * _prefix(glued["prefix"]), True
            rest.append({"FLOPs": "flops", "MACs": "macs"}.get(unit, glued["base"] + "s"))
        elif word in ("pf", "ef") and i + 1 < len(words):
            unit, factor, scaled = "FLOPs", factor * _prefix(word[0]), True
            rest.append("flops")
        elif word in ("pfdays", "pfday"):
            unit, factor, scaled = "FLOPs", factor * 1e15 * 86400, True
            rest.append("flops")
        elif after_flops and plural in SECONDS:
            following = words[i + 1].rstrip("s") if i + 1 < len(words) else ""
            if plural in ("s", "sec", "second") and following not in SECONDS:
                rate = True  # FLOP/s: a speed
            elif plural not in ("s", "sec", "second"):
                factor, scaled = factor * SECONDS[plural], True
        elif re.fullmatch(r"\d+(\.\d+)?e\+?\d+|e\d{1,2}", word):
            factor, scaled = factor * float(word if word[0] != "e" else "1" + word), True
        elif plural in PREFIXES and (i > 0 or bracket or len(words) > 1):
            factor, scaled = factor * PREFIXES[plural], True
        elif word in LETTERS and (bracket or (0 < i == len(words) - 1) or _counts(words, i + 1)):
            factor, scaled = factor * LETTERS[word], True
        elif bracket and re.fullmatch(r"x?1(?:0{3}){1,6}", word):
            factor, scaled = factor * float(word.lstrip("x")), True
        elif word == "in" or (bracket and word in ("x", "units", "of")):
            continue
        elif word in ("bits", "bit"):
            unit = "bits"
            rest.append("bits")
        elif word == "%" or (bracket and word in ("percent", "pct")):
            unit = "percent"
        else:
            rest.append(word)
    return factor, scaled, unit, rate


def _counts(words: list[str], i: int) -> bool:
    """Whether a word is a quantity without a prefix of its own: "G FLOPs", "B tokens"."""
    glued = _GLUED.fullmatch(words[i]) if i < len(words) else None
    return glued is not None and not glued["prefix"]


def _prefix(text: str) -> float:
    return PREFIXES[text] if text in PREFIXES else LETTERS[text]


# --- cells ------------------------------------------------------------------------------------

MISSING = {
    "", "-", "--", "—", "–", "n/a", "na", "nan", "none", "null", "?", "tbd", "missing", "oom",
    "diverged", "failed", "crashed", "inf", "-inf", "+inf", "infinity", "-infinity", "n.a.",
    "<na>", "nat", "x", ".", "...", "…", "pending", "running",
}  # fmt: skip
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_CELL = re.compile(
    rf"^(?P<value>{_NUMBER})"
    rf"(?P<spread>\s*\((?:\d+|best|±?\s*{_NUMBER}%?)\)"
    rf"|\s*(?:±|\+/-|\+-|\\pm)\s*{_NUMBER}%?)?"
    r"(?P<power>\s*(?:x|×|·|\*|\\times|\\cdot)\s*10\s*(?:\^|\*\*)?\s*\{?(?P<exponent>[+-]?\d+)\}?)?"
    r"\s*(?P<unit>[a-z%/ .-]*)$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Cells:
    """A column as floats; NaN where it is missing or was not read."""

    values: np.ndarray
    own: np.ndarray  # whether the cell gave a factor of its own ("1.95B")
    unread: dict[int, str]  # row -> text that is no number and no word for a missing one
    decorated: int  # cells with bold, an error or a bracket
    percent: int  # cells that end in a percent sign
    unit: str | None  # FLOPs or MACs, where cells say it


def numbers(series: pd.Series, *, thousands: bool) -> Cells:
    """A column as floats. thousands: whether "1,024" is one thousand (a loss of "2,961" may be
    either, and is not read)."""
    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype(object)
    none = np.zeros(len(series), bool)
    if series.dtype == bool:
        return Cells(series.to_numpy(float), none, {}, 0, 0, None)
    if pd.api.types.is_numeric_dtype(series.dtype):
        values = series.to_numpy(dtype=float, na_value=np.nan)
        return Cells(values, none, {}, 0, 0, None)
    numeric = pd.to_numeric(series, errors="coerce")
    values = np.array(numeric.to_numpy(dtype=float, na_value=np.nan))
    unsure = np.isnan(values) & series.notna().to_numpy()
    if not unsure.any():
        return Cells(values, none, {}, 0, 0, None)
    own = none.copy()
    unread: dict[int, str] = {}
    decorated = percent = 0
    units: set[str] = set()
    read: dict[str, Cell] = {}
    objects = series.to_numpy(dtype=object)
    for i in np.flatnonzero(unsure):
        text = str(objects[i])
        if text not in read:
            read[text] = cell(text, thousands=thousands)
        one = read[text]
        if one.kind == "unread":
            unread[int(i)] = text
        elif one.kind != "missing":
            values[i], own[i] = one.value, one.own
            percent += one.kind == "percent"
            decorated += one.decorated
            units |= {one.unit} if one.unit else set()
    unit = units.pop() if len(units) == 1 else None
    return Cells(values, own, unread, decorated, percent, unit)


@dataclass(frozen=True)
class Cell:
    kind: str  # number | percent | missing | unread
    value: float = float("nan")
    own: bool = False  # it gave a factor of its own
    decorated: bool = False
    unit: str | None = None  # FLOPs or MACs


def cell(text: str, *, thousands: bool = True) -> Cell:
    """One cell of text; its spread (± .004, (4)) and its decoration are left aside."""
    plain = bare(text)
    if plain.lower() in MISSING:
        return Cell("missing")
    if thousands and re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?\s*[a-z]*", plain, re.I):
        plain = plain.replace(",", "")
    elif thousands and re.match(r"^\d{1,3}([ _']\d{3})+(\D|$)", plain):
        plain = re.sub(r"(?<=\d)[ _'](?=\d{3}(\D|$))", "", plain)
    elif thousands and re.fullmatch(r"\d{1,3}(\.\d{3}){2,}", plain):
        plain = plain.replace(".", "")
    found = _CELL.match(plain)
    if not found:
        return Cell("unread")
    value, own, kind, base = float(found["value"]), False, "number", None
    if found["power"]:
        value *= 10.0 ** int(found["exponent"])
    unit = found["unit"].strip().lower().rstrip(".")
    if unit == "%":
        kind = "percent"
    elif unit:
        scale, base = _cell_unit(unit)
        if scale is None:
            return Cell("unread")
        value, own = value * scale, scale != 1.0
    return Cell(kind, value, own, plain != text.strip() or bool(found["spread"]), base)


def bare(text: str) -> str:
    """A cell without Markdown, LaTeX or HTML around it, footnote marks, and signs of about."""
    text = re.sub(r"<[^<>]+>", "", str(text)).strip()
    text = re.sub(r"\\(?:textbf|mathbf|underline|emph|text|bf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"[\u00a0\u2009\u202f]", " ", text.replace("−", "-"))
    text = re.sub(r"10([⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)", lambda m: "10^" + m[1].translate(_SUPERSCRIPT), text)
    text = re.sub(r"^[\s*_`$~≈]+|[\s*_`$†‡§¹²³]+$", "", text)
    # "**4.435** (best)", "**4.435** ± .004"
    text = re.sub(r"(?<=\d)[*_`]+(?=[\s(±])", "", text)
    return text.strip()


def _cell_unit(unit: str) -> tuple[float | None, str | None]:
    """1e9 of "B", "BT", "B tokens", "GFLOPs"; 1 of "tokens", "nats"; None of other words. And
    FLOPs or MACs, where it says one."""
    scale, base = 1.0, None
    for word in re.split(r"[\s/.-]+", unit):
        glued = _GLUED.fullmatch(word)
        if word in LETTERS:
            scale *= LETTERS[word]
        elif re.fullmatch(r"[kmbgt]t", word):  # billion tokens
            scale *= LETTERS[word[0]]
        elif glued:
            scale *= _prefix(glued["prefix"]) if glued["prefix"] else 1.0
            base = {"FLOPs": "FLOPs", "MACs": "MACs"}.get(BASES[glued["base"]], base)
        elif word.rstrip("s") in PREFIXES:
            scale *= PREFIXES[word.rstrip("s")]
        elif word not in ("nats", "nat", "of", "best"):
            return None, None
    return scale, base
