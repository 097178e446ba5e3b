"""Formulas as text: values, exact derivatives, what is refused and never run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling.analysis.laws.expression import parse
from scaling.errors import UserError

REPEATED = """
G = (alpha * A / (beta * B))^(1 / (alpha + beta))
U_N = min((U * G)^(beta / alpha) * G, N)
R = max(D / U - 1, 0)
L = E + A / (U_N * (1 + R_N * (1 - exp(-(N / U_N - 1) / R_N))))^alpha
    + B / (U * (1 + R_D * (1 - exp(-R / R_D))))^beta
""".replace("alpha\n", "alpha ")
TRUTH = {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 1500.0, "beta": 0.36, "R_N": 5.0, "R_D": 15.0}


@pytest.mark.parametrize(
    "text", [REPEATED, "sqrt(A) * -log(N)^2 / (1 + D**2) + max(E, B / D, 2) - alpha^beta"]
)
def test_derivatives_against_finite_differences(text: str) -> None:
    law, rng = parse(text), np.random.default_rng(0)
    columns: dict[str, Any] = {
        "N": rng.uniform(1e6, 1e8, 9), "D": rng.uniform(1e8, 1e9, 9), "U": rng.uniform(1e7, 2e8, 9)
    }  # fmt: skip
    theta: dict[str, Any] = {n: np.array([[value], [1.2 * value]]) for n, value in TRUTH.items()}
    at: dict[str, Any] = {**columns, **theta}
    by = [name for name in TRUTH if name in law.names]
    values, slopes = law.derivatives(at, by)
    assert values.shape == (2, 9) and slopes.shape == (2, 9, len(by))
    for i, name in enumerate(by):
        h = 1e-6 * theta[name]
        up, down = (law(at | {name: theta[name] + s * h}) for s in (1, -1))
        assert slopes[..., i] == pytest.approx((up - down) / (2 * h), rel=1e-5, abs=1e-12)


def test_powers_signs_and_ties() -> None:
    at: dict[str, Any] = {"a": np.array([0.0, -2.0, 3.0]), "b": 2.0}
    assert parse("-a^b")(at).tolist() == [0, -4, -9]  # ^ binds tighter than the sign
    assert parse("a + 1^b + 2 * 3^2 - 4 / 2 / 2")(at).tolist() == [18, 16, 21]
    assert parse("2^3^2")({}) == 512
    _, slopes = parse("a^b + min(a, a)").derivatives(at, ("a", "b"))
    assert slopes[:, 0].tolist() == [1, -3, 7]
    assert slopes[0, 1] == 0 and np.isnan(slopes[1, 1])  # log(-2) is no number
    assert np.isnan(parse("max(log(a), 0)")(at)[1])  # nor is what is made of it


def test_names_and_in_which_the_law_is_linear() -> None:
    law = parse("E + A / N^alpha + B / D^beta")
    assert law.names == ("E", "A", "N", "alpha", "B", "D", "beta")
    assert law.linear_in(["E", "A", "B", "alpha", "beta"]) == ("E", "A", "B")
    assert parse("(A + B) * A / E").linear_in(["A", "B", "E"]) == ("B",)
    assert parse(REPEATED).linear_in(list(TRUTH)) == ("E",)
    with pytest.raises(UserError, match=r"'Nn' is none of columns \(A, N, D\); did you mean 'N'"):
        parse("A / Nn").refuse_unknown(("A", "N", "D"), "columns")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ("A +", r"cannot be read after 'A \+'"),
        ("A / N^alpha + ) B", r"cannot be read at '\) B', after 'A / N\^alpha \+ '"),
        ("A B", "cannot be read at 'B'"),
        ("A.b", "'A.b' is not allowed: a formula has numbers, names"),
        ("A[0]", "not allowed"),
        ("[x for x in N]", "not allowed"),
        ("f'{A}'", "not allowed"),
        ("A if B else C", "not allowed"),
        ("A == B", "not allowed"),
        ("A @ B", "not allowed"),
        ("(lambda: 1)()", "no function of a formula"),
        ("().__class__.__bases__[0]()", "no function of a formula"),
        ("ecp(A)", "'ecp' is no function of a formula.*did you mean 'exp'"),
        ("1j * A", "'1j' is no number"),
        ("True + A", "'True' is no number"),
        ("1e999 * A", "too large"),
        ("9" * 400, "too large"),
        ("A" * 3000, "3000 characters: at most 2000"),
        ("-" * 1500 + "A", "inside each other"),
        ("(" * 900 + "A" + ")" * 900, "cannot be read"),
        ("A\0", "cannot be read"),
        ("exp + A", r"exp is a function: write exp\(...\)"),
        ("exp(A, B)", "exp is of 1 value"),
        ("max(A)", "max is of at least 2 values"),
        ("exp(*A)", "exp is of 1 value"),
        ("exp(x=A)", "exp is of 1 value"),
        ("A = A + 1", "'A' is explained by itself"),
        ("R = D / U; R = 2; A * R", "'R' has a meaning already"),
        ("E + A\nB", "only the last line is the law"),
        ("import os", "'import os' is no formula"),
        ("a, b = N, D", "one name"),
    ],
)
def test_what_is_no_formula_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(text)


def test_a_formula_runs_no_code(tmp_path: Path) -> None:
    made = tmp_path / "made"
    for text in (f"open({str(made)!r}, 'w')", f"exp(open({str(made)!r}, 'w'))"):
        with pytest.raises(UserError, match="no function of a formula"):
            parse(text)
    assert not made.exists()
