"""Raw clips in, a power law with honest error bars out.

    import scaling

    runs = scaling.open("studies/quickstart")     # or scaling.read("table.csv")
    print(runs.law().summary()); runs.law().figure()

What is listed here is loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaling.analysis.findings import Findings as Findings
    from scaling.analysis.laws.compare import exponents as compare
    from scaling.analysis.laws.fit import NotIdentified as NotIdentified
    from scaling.analysis.laws.fit import fit as fit_points
    from scaling.analysis.laws.parametric import fit_parametric as fit_parametric
    from scaling.analysis.laws.references import PORIAN_STEPS as PORIAN_STEPS
    from scaling.analysis.laws.references import SURFACES as SURFACES
    from scaling.analysis.laws.references import reference as published
    from scaling.data.tokens import Tokens as Tokens
    from scaling.data.tokens import tokens as tokens
    from scaling.errors import UserError as UserError
    from scaling.representations.learned import Learned as Learned
    from scaling.representations.learned import learned as learned
    from scaling.runs import Runs as Runs
    from scaling.runs import fit as fit
    from scaling.runs import fit_curves as fit_curves
    from scaling.runs import fit_rates as fit_rates
    from scaling.runs import open as open
    from scaling.runs import read as read

__version__ = "0.1.0"
_FRONT = {  # name -> module, and its name there
    "Findings": ("scaling.analysis.findings", "Findings"),
    "PORIAN_STEPS": ("scaling.analysis.laws.references", "PORIAN_STEPS"),
    "SURFACES": ("scaling.analysis.laws.references", "SURFACES"),
    "Learned": ("scaling.representations.learned", "Learned"),
    "NotIdentified": ("scaling.analysis.laws.fit", "NotIdentified"),
    "Runs": ("scaling.runs", "Runs"),
    "Tokens": ("scaling.data.tokens", "Tokens"),
    "UserError": ("scaling.errors", "UserError"),
    "compare": ("scaling.analysis.laws.compare", "exponents"),
    "fit": ("scaling.runs", "fit"),
    "fit_curves": ("scaling.runs", "fit_curves"),
    "fit_rates": ("scaling.runs", "fit_rates"),
    "fit_parametric": ("scaling.analysis.laws.parametric", "fit_parametric"),
    "fit_points": ("scaling.analysis.laws.fit", "fit"),
    "learned": ("scaling.representations.learned", "learned"),
    "open": ("scaling.runs", "open"),
    "published": ("scaling.analysis.laws.references", "reference"),
    "read": ("scaling.runs", "read"),
    "tokens": ("scaling.data.tokens", "tokens"),
}
__all__ = [
    "PORIAN_STEPS",
    "SURFACES",
    "Findings",
    "Learned",
    "NotIdentified",
    "Runs",
    "Tokens",
    "UserError",
    "__version__",
    "compare",
    "fit",
    "fit_curves",
    "fit_parametric",
    "fit_points",
    "fit_rates",
    "learned",
    "open",
    "published",
    "read",
    "tokens",
]  # fmt: skip


if not TYPE_CHECKING:  # to a type checker only what is listed is there

    def __getattr__(name: str) -> Any:
        if name in _FRONT:
            module, own = _FRONT[name]
            return getattr(importlib.import_module(module), own)
        if name in ("analysis", "models"):
            return importlib.import_module(f"scaling.{name}")
        raise AttributeError(
            f"module 'scaling' has no attribute {name!r}; it has {', '.join(__all__)}"
        )


def __dir__() -> list[str]:
    return list(__all__)
