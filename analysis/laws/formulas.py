"""Forms of a law: a formula, its parameters with their bounds, the columns that it needs.

    FORMS["effective"]                                   # those that come with the tool
    form_of({"formula": "E + A / N^alpha", "parameters": {"E": [0, 5], ...}}, "mine.yaml")
    Form("mine", function, {"E": (0, 5), "A": (1, 1e6)}) # def function(N, E, A)

All of them are fitted by laws/form_fit.py. In a formula N is parameters, D tokens, C compute in
MACs, U tokens of the data before any is repeated, lr and batch the learning rate and the batch;
any other name that is no parameter is a column of the table.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scaling.analysis.laws.expression import FUNCTIONS, Expression, parse
from scaling.errors import UserError, did_you_mean

MEANINGS = {
    "N": "parameters", "D": "tokens", "C": "compute in MACs",
    "U": "tokens before any is repeated", "lr": "learning rate", "batch": "batch",
}  # fmt: skip
WIDE = 1e3  # a parameter whose bounds are this factor apart, and positive, is searched in logs
KEYS = ("formula", "parameters", "name", "reference", "assumes")
STEP = 6e-6  # relative, of the slopes of a function of Python: the cube root of a double's digits


@dataclass(frozen=True, eq=False)
class Form:
    """A law's form. rule: text of a formula, or a function of columns and parameters by name.

    A function is called with arrays, parameters (R, 1) and columns (n,), and gives the loss (R, n)
    by NumPy's broadcasting.
    """

    name: str
    rule: str | Callable[..., Any]
    parameters: Mapping[str, tuple[float, float]]  # bounds; two that are equal fix it
    reference: str = ""  # where it is from
    assumes: str = ""
    expression: Expression | None = field(init=False, repr=False)
    columns: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        _check_parameters(self.name, self.parameters)
        if callable(self.rule):
            expression, names = None, _arguments(self.name, self.rule)
        else:
            expression = parse(self.rule)
            names = expression.names
        unused = [p for p in self.parameters if p not in names]
        if unused:
            hint = did_you_mean(unused[0], [n for n in names if n not in self.parameters])
            raise UserError(
                f"form {self.name}: {', '.join(map(repr, unused))} "
                f"{'is' if len(unused) == 1 else 'are'} not in its formula, which has "
                f"{', '.join(names)}{hint}"
            )
        columns = tuple(n for n in names if n not in self.parameters)
        if not columns:
            raise UserError(
                f"form {self.name}: every name of its formula is a parameter; a law needs a column "
                f"too, such as {', '.join(MEANINGS)}"
            )
        object.__setattr__(self, "expression", expression)
        object.__setattr__(self, "columns", columns)

    @property
    def formula(self) -> str:
        """The formula, or the name of the function."""
        return self.expression.text if self.expression else f"{_name_of(self.rule)}(...)"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.parameters)

    @property
    def free(self) -> int:
        """How many parameters are not fixed."""
        return sum(low < high for low, high in self.parameters.values())

    @property
    def in_logs(self) -> np.ndarray:
        """Which parameters (p,) are searched by their logarithm."""
        return np.array([0 < low < high / WIDE for low, high in self.parameters.values()], bool)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(p,) each, as the search has them."""
        ends = np.array(list(self.parameters.values()), float).reshape(-1, 2)
        low, high = self.inner(ends.T)
        return low, high

    def inner(self, values: np.ndarray) -> np.ndarray:
        """Parameters (..., p) as the search has them."""
        safe = np.where(self.in_logs, np.maximum(values, 1e-300), 1.0)
        return np.where(self.in_logs, np.log(safe), values)

    def outer(self, theta: np.ndarray) -> np.ndarray:
        """Parameters (..., p) as the formula has them."""
        return np.where(self.in_logs, np.exp(np.where(self.in_logs, theta, 0.0)), theta)

    def loss(
        self, columns: Mapping[str, np.ndarray | float], values: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Loss (R, n) and its slopes (R, n, p) by the parameters `values` (R, p); columns (n,) or
        (R, n)."""
        named, given = self._arrays(columns, values)
        if self.expression is not None:
            return self.expression.derivatives({**given, **named}, self.names)
        return self._slopes_of_function(given, named)

    def value(self, columns: Mapping[str, np.ndarray | float], values: np.ndarray) -> np.ndarray:
        """The loss (R, n) alone."""
        named, given = self._arrays(columns, values)
        if self.expression is not None:
            return self.expression({**given, **named})
        return self._called(given | named)

    def _arrays(
        self, columns: Mapping[str, np.ndarray | float], values: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        named = {name: values[:, i : i + 1] for i, name in enumerate(self.names)}
        given = {name: np.atleast_1d(np.asarray(columns[name], float)) for name in self.columns}
        return named, given

    def log_loss(
        self, columns: Mapping[str, np.ndarray | float], theta: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log loss (R, n) and its slopes (R, n, p) by theta (R, p), as the search has them."""
        values = self.outer(theta)
        with np.errstate(all="ignore"):
            loss, slopes = self.loss(columns, values)
            slopes = slopes * np.where(self.in_logs, values, 1.0)[:, None]
            return np.log(loss), slopes / loss[..., None]

    def _slopes_of_function(
        self, given: dict[str, np.ndarray], named: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """By central differences: a function of Python has no other slopes."""
        loss = self._called(given | named)
        slopes = np.empty((*loss.shape, len(self.names)))
        for i, name in enumerate(self.names):
            low, high = self.parameters[name]
            step = STEP * np.maximum(np.abs(named[name]), 1e-3 * (high - low) or 1.0)
            up, down = np.minimum(named[name] + step, high), np.maximum(named[name] - step, low)
            wide = np.where(up > down, up - down, 1.0)
            ends = [self._called(given | named | {name: end}) for end in (up, down)]
            slopes[..., i] = (ends[0] - ends[1]) / wide
        return loss, slopes

    def _called(self, arguments: dict[str, np.ndarray]) -> np.ndarray:
        assert callable(self.rule)
        shape = np.broadcast_shapes(*(one.shape for one in arguments.values()))
        with np.errstate(all="ignore"):
            try:
                out = np.asarray(self.rule(**arguments), dtype=float)
                return np.broadcast_to(out, shape)
            except (TypeError, ValueError, ArithmeticError) as error:
                raise UserError(
                    f"form {self.name}: the function does not give the loss {shape} of parameters "
                    f"({shape[0]}, 1) and columns (points,): {error}; write it with NumPy's "
                    "operations on whole arrays"
                ) from error

    def fixed(self, name: str, value: float) -> Form:
        """The form with a parameter that is given and not fitted. Raises UserError: none such."""
        if name not in self.parameters:
            raise UserError(
                f"form {self.name} has no parameter {name!r}, but {', '.join(self.names)}"
                f"{did_you_mean(name, self.names)}"
            )
        bounds = {**self.parameters, name: (float(value), float(value))}
        return Form(self.name, self.rule, bounds, self.reference, self.assumes)


def form_of(content: object, where: str) -> Form:
    """A form of a YAML file's content: `formula`, and `parameters` with their bounds.

    A parameter is `name: [low, high]`, or `name: value` where it is given. `name`, `reference` and
    `assumes` may say more. where: the file, for messages.
    Raises UserError: all that is wrong with it.
    """
    if not isinstance(content, Mapping):
        raise UserError(f'{where}: a form is `formula: "..."` and `parameters: {{A: [1, 1e6]}}`')
    wrong = [
        f"{key!r} is no key of a form ({', '.join(KEYS)}){did_you_mean(str(key), KEYS)}"
        for key in content
        if key not in KEYS
    ]
    formula, given = content.get("formula"), content.get("parameters")
    if not isinstance(formula, str):
        wrong.append('`formula` is no text, such as "E + A / N^alpha"')
    for key in ("name", "reference", "assumes"):
        if key in content and not isinstance(content[key], str):
            wrong.append(f"`{key}` is no text")
    bounds: dict[str, tuple[float, float]] = {}
    if not isinstance(given, Mapping) or not given:
        wrong.append("`parameters` names no parameter with its bounds, such as `A: [1, 1e6]`")
    else:
        for name, ends in given.items():
            pair = _pair(ends)
            if pair is None:
                wrong.append(f"{name}: {ends!r} is neither [low, high] nor a number that is given")
            else:
                bounds[str(name)] = pair
    if wrong:
        raise UserError(f"{where}: " + "; ".join(wrong))
    assert isinstance(formula, str)
    try:
        return Form(
            str(content.get("name", where)), formula, bounds, str(content.get("reference", "")),
            str(content.get("assumes", "")),
        )  # fmt: skip
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _pair(ends: Any) -> tuple[float, float] | None:
    """Bounds of [low, high] or of a number; YAML reads 1e6 as text, which is a number too."""
    several = list(ends) if isinstance(ends, (list, tuple)) else [ends, ends]
    if len(several) != 2 or any(isinstance(one, bool) for one in several):
        return None
    try:
        low, high = (float(one) for one in several)
    except (TypeError, ValueError):
        return None
    return low, high


def _check_parameters(form: str, parameters: Mapping[str, tuple[float, float]]) -> None:
    wrong = []
    for name, (low, high) in parameters.items():
        if not name.isidentifier() or name in FUNCTIONS:
            wrong.append(f"{name!r} is no name of a parameter")
        elif not (math.isfinite(low) and math.isfinite(high)):
            wrong.append(f"{name}: bounds {low:g} and {high:g} are not both numbers")
        elif low > high:
            wrong.append(f"{name}: the lower bound {low:g} is above the upper one {high:g}")
    if not parameters:
        wrong.append("it has no parameter")
    elif all(low == high for low, high in parameters.values()):
        wrong.append("every parameter is given and none is to be fitted")
    if wrong:
        raise UserError(f"form {form}: " + "; ".join(wrong))


def _name_of(rule: object) -> str:
    return str(getattr(rule, "__name__", "function"))


def _arguments(form: str, rule: Callable[..., Any]) -> tuple[str, ...]:
    try:
        found = inspect.signature(rule).parameters.values()
    except (TypeError, ValueError):
        raise UserError(f"form {form}: {rule!r} does not tell its arguments") from None
    if any(one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) for one in found):
        raise UserError(
            f"form {form}: {_name_of(rule)} has arguments without a name: name every column and "
            "parameter, as in def law(N, D, E, A, alpha)"
        )
    return tuple(one.name for one in found if one.default is one.empty)


FLOOR = {"E": (0.0, 20.0)}
TERMS = {"A": (1e-3, 1e12), "alpha": (0.0, 3.0), "B": (1e-3, 1e12), "beta": (0.0, 3.0)}
SURFACE = {**FLOOR, **TERMS}
REPEATS = "F = min(U, D)\nR = D / F - 1\n"  # tokens that are fresh, and how often they are repeated
PENALTY = {"P": (1e-15, 1e9), "r": (0.0, 3.0), "s": (0.0, 3.0), "u": (0.0, 3.0)}
MUENNIGHOFF = "Muennighoff et al. 2023, arXiv 2305.16264"

_FORMS: Sequence[Form] = (
    Form(
        "fresh", "E + A / N^alpha + B / D^beta", SURFACE, "Hoffmann et al. 2022, equation 2",
        "a token seen again is worth a new one",
    ),
    Form(
        "effective_data",
        REPEATS + "E + A / N^alpha + B / (F * (1 + R_D * (1 - exp(-R / R_D))))^beta",
        {**SURFACE, "R_D": (0.1, 1e4)}, f"{MUENNIGHOFF}, its effective data",
        "what a token teaches fades with every repetition; more training never raises the loss",
    ),
    Form(
        "effective",
        REPEATS
        + "G = (alpha * A / (beta * B))^(1 / (alpha + beta))\n"
        "U_N = min((F * G)^(beta / alpha) * G, N)\n"
        "T = N / U_N - 1\n"
        "E + A / (U_N * (1 + R_N * (1 - exp(-T / R_N))))^alpha"
        " + B / (F * (1 + R_D * (1 - exp(-R / R_D))))^beta",
        {**FLOOR, "A": (1e-3, 1e12), "alpha": (0.02, 3.0), "B": (1e-3, 1e12),
         "beta": (0.02, 3.0), "R_D": (0.1, 1e4), "R_N": (0.1, 1e4)},
        f"{MUENNIGHOFF}, its effective data and effective parameters",
        "as effective_data, and parameters beyond those that the unique data call for fade too",
    ),
    Form(
        "penalty",
        REPEATS + "E + A / N^alpha + B / D^beta + P * R^r * N^s / U^u",
        {**SURFACE, **PENALTY},
        "this tool's own; the additive penalty of arXiv 2605.01640 may be another",
        "repetition adds to the loss, the more the larger the model and the fewer the data: more "
        "training can raise it",
    ),
)  # fmt: skip
FORMS: dict[str, Form] = {form.name: form for form in _FORMS}
REPEATED = ("effective_data", "effective", "penalty")  # of which held-out error chooses
