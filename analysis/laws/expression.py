"""A formula as text: its values and its exact derivatives. Nothing of it is ever run as code.

    law = parse("E + A / N^alpha + B / D^beta")
    law.names                                        # ("E", "A", "N", "alpha", "B", "D", "beta")
    values, slopes = law.derivatives(arrays, ("E", "A", "alpha", "B", "beta"))

Numbers, names, + - * / ^ (or **), brackets and FUNCTIONS are all there is. Lines, or what a ";"
parts, may first name what is used below: `R = max(D / U - 1, 0)`; the last one is the law. Python's
parser reads the text; the tree it gives is copied node by node, and what is not listed here is
refused.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from scaling.errors import UserError, did_you_mean

FUNCTIONS = {"exp": 1, "log": 1, "sqrt": 1, "min": 2, "max": 2}  # how many arguments, at least
MOST_CHARACTERS = 2000
DEEPEST = 40  # brackets and operations inside each other
ALLOWED = (
    f"a formula has numbers, names, + - * / ^, brackets and {', '.join(FUNCTIONS)}, for instance "
    '"E + A / N^alpha + B / D^beta"'
)
OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "^",
}  # fmt: skip

Slopes = dict[int, np.ndarray]  # of a part, by parameter; what is not there is 0


@dataclass(frozen=True, eq=False)
class Part:
    """A node: what is done, to which parts. A part that is named may be a part of several."""

    does: str  # number | name | + | - | * | / | ^ | a key of FUNCTIONS
    of: tuple[Part, ...] = ()
    number: float = 0.0
    name: str = ""


@dataclass(frozen=True, eq=False)
class Expression:
    """A parsed formula."""

    text: str  # on one line, lines parted by ";"
    names: tuple[str, ...]  # in their order in the text, without those that its own lines give
    root: Part = field(repr=False)

    def __call__(self, values: Mapping[str, np.ndarray | float]) -> np.ndarray:
        """The formula's value by NumPy's broadcasting; NaN or infinite where it has none."""
        return self.derivatives(values, ())[0]

    def derivatives(
        self, values: Mapping[str, np.ndarray | float], by: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values (...) and their derivatives (..., p) by the names `by`, e.g. of parameters (R, 1)
        and columns (n,): (R, n) and (R, n, p). Forward mode: exact, all at once.

        At a tie `min` and `max` go by their first argument.
        """
        arrays = {name: np.asarray(values[name], dtype=float) for name in self.names}
        shape = np.broadcast_shapes(*(a.shape for a in arrays.values()))
        place = {name: i for i, name in enumerate(by)}
        done: dict[int, tuple[np.ndarray, Slopes]] = {}
        with np.errstate(all="ignore"):
            for part in self._order:
                if part.does == "number":
                    out: tuple[np.ndarray, Slopes] = np.asarray(part.number), {}
                elif part.does == "name":
                    slopes = {place[part.name]: np.ones(())} if part.name in place else {}
                    out = arrays[part.name], slopes
                else:
                    out = RULES[part.does](*(done[id(one)] for one in part.of))
                done[id(part)] = out
        value, slopes = done[id(self.root)]
        every = np.zeros((*shape, len(by)))
        for i, slope in slopes.items():
            every[..., i] = slope
        return np.broadcast_to(value, shape), every

    def linear_in(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of `names`, in their order, in which together the formula is linear."""
        found: list[str] = []
        for name in names:
            if self._is_linear({*found, name}):
                found.append(name)
        return tuple(found)

    def refuse_unknown(self, known: Collection[str], what: str) -> None:
        """Raise UserError where a name of the formula is not among `known`, which are `what`."""
        unknown = [name for name in self.names if name not in known]
        if unknown:
            hints = "".join(did_you_mean(name, known) for name in unknown[:1])
            raise UserError(
                f"formula {self.text!r}: {', '.join(map(repr, unknown))} "
                f"{'is' if len(unknown) == 1 else 'are'} none of {what} "
                f"({', '.join(map(str, known))}){hints}"
            )

    @cached_property
    def _order(self) -> list[Part]:
        """Every part once, after those that it is made of."""
        order: list[Part] = []
        seen: set[int] = set()
        waiting = [(self.root, False)]
        while waiting:
            part, ready = waiting.pop()
            if ready:
                order.append(part)
            elif id(part) not in seen:
                seen.add(id(part))
                waiting += [(part, True), *((one, False) for one in part.of)]
        return order

    def _is_linear(self, names: set[str]) -> bool:
        degree: dict[int, int] = {}  # 0: free of the names, 1: linear in them, 2: neither
        for part in self._order:
            of = [degree[id(one)] for one in part.of]
            if part.does in ("+", "-"):
                out = max(of)
            elif part.does == "*":
                out = min(sum(of), 2)
            elif part.does == "/":
                out = 2 if of[1] else of[0]
            else:
                out = 2 if any(of) else 0
            degree[id(part)] = int(part.name in names) if part.does == "name" else out
        return degree[id(self.root)] <= 1


Dual = tuple[np.ndarray, Slopes]


def _sum(first: Slopes, second: Slopes) -> Slopes:
    out = dict(first)
    for i, slope in second.items():
        out[i] = out[i] + slope if i in out else slope
    return out


def _times(slopes: Slopes, factor: np.ndarray) -> Slopes:
    return {i: slope * factor for i, slope in slopes.items()}


def _plus(a: Dual, b: Dual) -> Dual:
    return a[0] + b[0], _sum(a[1], b[1])


def _minus(a: Dual, *b: Dual) -> Dual:
    if not b:
        return -a[0], _times(a[1], np.asarray(-1.0))
    return a[0] - b[0][0], _sum(a[1], _times(b[0][1], np.asarray(-1.0)))


def _product(a: Dual, b: Dual) -> Dual:
    return a[0] * b[0], _sum(_times(a[1], b[0]), _times(b[1], a[0]))


def _quotient(a: Dual, b: Dual) -> Dual:
    value = a[0] / b[0]
    slopes = _times(a[1], 1 / b[0])
    return value, _sum(slopes, _times(b[1], -value / b[0])) if b[1] else slopes


def _power(a: Dual, b: Dual) -> Dual:
    """a^b. Of positive a by its logarithm, which the slope along b needs and which is quick."""
    base, exponent = a[0], b[0]
    if b[1] and (base > 0).all():
        log = np.log(base)
        value = np.exp(exponent * log)
        slopes = _times(b[1], value * log)
        return value, _sum(_times(a[1], exponent * value / base), slopes) if a[1] else slopes
    value = base**exponent
    slopes = {}
    if b[1]:
        nil = (base == 0) & (exponent > 0)  # 0^b is 0 for every b > 0
        slopes = _times(b[1], np.where(nil, 0.0, value * np.log(np.where(nil, 1.0, base))))
    if a[1]:
        # A square at 0 has the slope 0, where 0 times 0^-1 would have none.
        flat = exponent == 0
        slope = np.where(flat, 0.0, exponent * base ** np.where(flat, 0.0, exponent - 1))
        slopes = _sum(_times(a[1], slope), slopes)
    return value, slopes


def _exp(a: Dual) -> Dual:
    value = np.exp(a[0])
    return value, _times(a[1], value)


def _log(a: Dual) -> Dual:
    return np.log(a[0]), _times(a[1], 1 / a[0])


def _sqrt(a: Dual) -> Dual:
    value = np.sqrt(a[0])
    return value, _times(a[1], 0.5 / value)


def _extreme(keep: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., Dual]:
    def of(first: Dual, *more: Dual) -> Dual:
        value, slopes = first
        for other, theirs in more:
            # What has no value has none here either, and is not passed over.
            mine = keep(value, other) | np.isnan(value)
            value = np.where(mine, value, other)
            slopes = {
                i: np.where(mine, slopes.get(i, 0.0), theirs.get(i, 0.0))
                for i in {*slopes, *theirs}
            }
        return value, slopes

    return of


RULES: dict[str, Callable[..., Dual]] = {
    "+": _plus, "-": _minus, "*": _product, "/": _quotient, "^": _power, "exp": _exp, "log": _log,
    "sqrt": _sqrt, "min": _extreme(np.less_equal), "max": _extreme(np.greater_equal),
}  # fmt: skip


def parse(text: str) -> Expression:
    """The formula of a text.

    Raises UserError, naming the formula and the place: what is not allowed in one.

    >>> law = parse("A / N^alpha")
    >>> law({"A": 8.0, "N": np.array([1.0, 16.0]), "alpha": 0.5}).tolist()
    [8.0, 2.0]
    >>> parse("open(N)")
    Traceback (most recent call last):
    scaling.errors.UserError: formula 'open(N)': 'open' is no function of a formula: a formula ...
    """
    return _Reader(text).read()


class _Reader:
    """Copies the parser's tree, and knows where in the text each part stands."""

    def __init__(self, text: str) -> None:
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"formula {text!r}: it is empty: {ALLOWED}")
        self.text = text
        if len(text) > MOST_CHARACTERS:
            raise UserError(
                f"formula of {len(text)} characters: at most {MOST_CHARACTERS}: {text[:60]!r}..."
            )
        # Python's ^ binds looser than +; a power it is only as **.
        lines = [line.strip() for line in text.splitlines()]
        self.python = "\n".join(line.rstrip(";") for line in lines if line).replace("^", "**")
        self.names: dict[str, None] = {}
        self.given: dict[str, Part] = {}

    def read(self) -> Expression:
        try:
            body = ast.parse(self.python).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self._wrong(self._place(error)) from None
        for number, statement in enumerate(body):
            root = self._statement(statement, last=number == len(body) - 1)
        shown = "; ".join(" ".join(self._source(one).split()) for one in body)
        return Expression(shown, tuple(self.names), root)

    def _statement(self, statement: ast.stmt, last: bool) -> Part:
        if isinstance(statement, ast.Expr) and last:
            return self._part(statement.value, 0)
        if isinstance(statement, ast.Assign):
            target = statement.targets[0]
            if len(statement.targets) > 1 or not isinstance(target, ast.Name):
                raise self._wrong(f"{self._at(statement)}: what is left of = is one name")
            name = target.id
            if name in FUNCTIONS or name in self.given or name in self.names:
                raise self._wrong(
                    f"{self._at(statement)}: {name!r} has a meaning already; take another name"
                )
            part = self._part(statement.value, 0)
            if name in self.names:
                raise self._wrong(f"{self._at(statement)}: {name!r} is explained by itself")
            if not last:
                self.given[name] = part
            return part
        if isinstance(statement, ast.Expr):
            raise self._wrong(
                f"{self._at(statement)}: only the last line is the law, the others name their "
                "parts: part = ..."
            )
        raise self._wrong(f"{self._at(statement)} is no formula: {ALLOWED}")

    def _part(self, node: ast.expr, depth: int) -> Part:
        if depth > DEEPEST:
            raise self._wrong(
                f"more than {DEEPEST} operations inside each other; name parts of it on lines of "
                "their own: part = ..."
            )
        if isinstance(node, ast.Constant):
            return self._number(node)
        if isinstance(node, ast.Name):
            return self._name(node)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            of = self._part(node.left, depth + 1), self._part(node.right, depth + 1)
            return Part(OPERATORS[type(node.op)], of)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            inner = self._part(node.operand, depth + 1)
            return Part("-", (inner,)) if isinstance(node.op, ast.USub) else inner
        if isinstance(node, ast.Call):
            return self._call(node, depth)
        raise self._wrong(f"{self._at(node)} is not allowed: {ALLOWED}")

    def _number(self, node: ast.Constant) -> Part:
        value = node.value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(f"{self._at(node)} is no number: {ALLOWED}")
        try:
            number = float(value)
        except OverflowError:
            number = float("inf")
        if not np.isfinite(number):
            raise self._wrong(f"{self._at(node)} is too large a number")
        return Part("number", number=number)

    def _name(self, node: ast.Name) -> Part:
        if node.id in FUNCTIONS:
            raise self._wrong(f"{node.id} is a function: write {node.id}(...)")
        if node.id in self.given:
            return self.given[node.id]
        self.names[node.id] = None
        return Part("name", name=node.id)

    def _call(self, node: ast.Call, depth: int) -> Part:
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS:
            called = self._at(node.func)
            hint = did_you_mean(called.strip("'"), FUNCTIONS)
            raise self._wrong(f"{called} is no function of a formula: {ALLOWED}{hint}")
        name, least = node.func.id, FUNCTIONS[node.func.id]
        many = least > 1
        starred = any(isinstance(one, ast.Starred) for one in node.args)
        count = len(node.args)
        if node.keywords or starred or count < least or (count > least and not many):
            want = f"{'at least ' * many}{least} value{'s' * many}"
            raise self._wrong(f"{self._at(node)}: {name} is of {want}")
        return Part(name, tuple(self._part(one, depth + 1) for one in node.args))

    def _at(self, node: ast.AST) -> str:
        return repr(self._source(node)[:60])

    def _source(self, node: ast.AST) -> str:
        return (ast.get_source_segment(self.python, node) or "").replace("**", "^")

    def _place(self, error: BaseException) -> str:
        if not isinstance(error, SyntaxError) or not error.lineno:
            return f"it cannot be read: {ALLOWED}"
        line = self.python.splitlines()[error.lineno - 1]
        before = line[: max((error.offset or 1) - 1, 0)].replace("**", "^")
        rest = line[len(before.replace("^", "**")) :].replace("**", "^")
        where = f"at {rest[:20]!r}, after {before[-20:]!r}" if rest else f"after {before[-20:]!r}"
        return f"it cannot be read {where}: {ALLOWED}"

    def _wrong(self, what: str) -> UserError:
        return UserError(f"formula {' '.join(self.text.split())[:200]!r}: {what}")
