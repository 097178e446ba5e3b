"""Published laws with their units and sources, and conversion between units of compute.

A law's exponent does not depend on the unit of compute, its coefficient does: L = a C^b in
units of `u` MACs is a (C / u)^b in MACs. Losses are nats per token of the source's own tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scaling.analysis.laws.value import Value
from scaling.errors import UserError

MACS_PER_FLOP = 0.5
MACS_PER_PF_DAY = 4.32e19  # 1 PF-day = 8.64e19 FLOPs
UNITS = {"MACs": 1.0, "FLOPs": MACS_PER_FLOP, "PF-days": MACS_PER_PF_DAY}
# Dense bf16 peak of one accelerator, FLOPs per second (vendors' data sheets).
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "TPUv4": 275e12}


def macs_per(unit: str, *, mfu: float | None = None) -> float:
    """MACs in one `unit`: "MACs", "FLOPs", "PF-days", or "<GPU> hours" at a utilisation `mfu`, the
    share of the peak in (0, 1].

    Raises UserError: another unit, or hours without a utilisation.
    """
    named = {name.lower(): value for name, value in UNITS.items()}
    if unit.lower() in named:
        return named[unit.lower()]
    device = unit.removesuffix(" hours")
    if device != unit and device in PEAK_FLOPS:
        if mfu is None or not 0 < mfu <= 1:
            raise UserError(f"{unit}: give mfu, the share of peak reached, in (0, 1]; got {mfu}")
        return PEAK_FLOPS[device] * 3600 * mfu * MACS_PER_FLOP
    known = [*UNITS, *(f"{d} hours" for d in PEAK_FLOPS)]
    raise UserError(f"unknown unit of compute {unit!r}: choose one of {', '.join(known)}")


def convert(value: float, unit: str, to: str, *, mfu: float | None = None) -> float:
    """`value` of compute in another unit; units and errors as of `macs_per`.

    >>> convert(1, "PF-days", "FLOPs"), convert(6e21, "FLOPs", "MACs")
    (8.64e+19, 3e+21)
    """
    return value * macs_per(unit, mfu=mfu) / macs_per(to, mfu=mfu)


def bits_per_pixel(
    nats_per_token: Value, tokens_per_frame: float, pixels_per_frame: float
) -> Value:
    """What losses of different tokenizers can be compared in; the shape of the first argument.

    A loss of tokens says nothing of what the tokenizer itself discards: compare reconstructions
    beside it.

    >>> round(bits_per_pixel(3.27, tokens_per_frame=16, pixels_per_frame=16 * 16), 4)
    0.2949
    """
    bits: Value = nats_per_token * tokens_per_frame / (pixels_per_frame * math.log(2))
    return bits


@dataclass(frozen=True)
class Reference:
    """A published L = E + a x^b. `x` says of what: compute in `unit`, parameters, or tokens."""

    name: str
    b: float
    a: float
    unit: str
    source: str
    e: float = 0.0
    x: str = "compute"
    interval: tuple[float, float] | None = None  # of b, when the source states one
    note: str = ""
    fitted: tuple[float, float] | None = None  # smallest and largest x, where the source tells it

    def __call__(self, x: float) -> float:
        """Loss at x in this law's own unit."""
        loss: float = self.e + self.a * x**self.b
        return loss

    @property
    def form(self) -> str:
        return "saturating" if self.e else "power"

    @property
    def fitted_macs(self) -> tuple[float, float] | None:
        """MACs between which a law of compute was fitted; None: not known, or of something else."""
        if self.x != "compute" or self.fitted is None:
            return None
        low, high = (convert(c, self.unit, "MACs") for c in self.fitted)
        return low, high

    def coefficient(self, unit: str) -> float:
        """a for compute in another unit. Raises UserError: it is a law of something else."""
        if self.x != "compute":
            raise UserError(f"{self.name} is a law of {self.x}: its coefficient has no conversion")
        converted: float = self.a * convert(1.0, unit, self.unit) ** self.b
        return converted

    def __str__(self) -> str:
        floor = f"{self.e:g} + " if self.e else ""
        symbol = {"compute": "C", "parameters": "N", "tokens": "D"}[self.x]
        return f"{self.name}: L = {floor}{self.a:.4g} {symbol}^{self.b:g} [{self.unit}]"


def _scaled(
    name: str, scale: float, exponent: float, e: float, x: str, source: str,
    fitted: tuple[float, float] | None = None,
) -> Reference:  # fmt: skip
    """Henighan's and Kaplan's notation: L = E + (x / scale)^exponent."""
    unit = {"compute": "PF-days", "parameters": "non-embedding parameters", "tokens": "tokens"}[x]
    return Reference(name, exponent, scale**-exponent, unit, source, e, x, fitted=fitted)


_HENIGHAN = "Henighan et al. 2020, arXiv 2010.14701, Table 1"
_KAPLAN = "Kaplan et al. 2020, arXiv 2001.08361, section 1.2"
_HENIGHAN_ROWS = {
    "language": (0.0, 3.47e8, -0.048, 0.0, 1.47e14, -0.070),
    "image-8": (3.13, 1.8e-8, -0.19, 3.12, 80.0, -0.24),
    "image-16": (2.64, 1.6e-8, -0.16, 2.64, 280.0, -0.22),
    "image-32": (2.21, 3.6e-9, -0.10, 2.20, 63.0, -0.13),
    "image-vq-16": (4.09, 6.1e-7, -0.11, 3.99, 2.7e4, -0.13),
    "image-vq-32": (3.17, 2.6e-6, -0.12, 3.07, 1.9e4, -0.14),
    "video": (0.95, 2.2e-5, -0.14, 1.01, 3.7e4, -0.24),
}

REFERENCES: dict[str, Reference] = {
    "gpt3": Reference(
        "GPT-3", -0.048, 2.57, "PF-days", "Brown et al. 2020, arXiv 2005.14165, Figure 3.1",
        fitted=(1e-6, 3.64e3),  # from the end of that figure's axis to its largest model, Table D.1
    ),
    "toto": Reference(
        "Toto", -0.0378, 7.32, "million MACs", "arXiv 2501.05453, section 4.9: L = 7.32 C^-0.0378",
        fitted=(2.57e7, 1.055e11),  # the markers of figure 9, digitised
        note="printed 'in MACs'; the figure's line is the printed law only with C in 10^6 MACs, "
        "and its axis reads best as forward MACs of one 256-token image times optimizer steps",
    ),
    "toto-training": Reference(
        "Toto (training compute)", -0.0378, 3.19, "PF-days",
        "arXiv 2501.05453, figure 9 re-read: axis x 4096 images x 3 (forward and backward)",
        fitted=(7.3e-3, 30.0),
        note="an inference about the axis, not stated by the authors",
    ),
    # "Eight orders of magnitude" of compute; their ends are those of figure 13's axis.
    "kaplan": _scaled("Kaplan L(C_min)", 3.1e8, -0.050, 0.0, "compute", _KAPLAN, (1e-8, 1.0)),
    "kaplan-n": _scaled("Kaplan L(N)", 8.8e13, -0.076, 0.0, "parameters", _KAPLAN),
    "kaplan-d": _scaled("Kaplan L(D)", 5.4e13, -0.095, 0.0, "tokens", _KAPLAN),
    **{
        f"henighan-{key}": _scaled(f"Henighan {key}", c, bc, ec, "compute", _HENIGHAN)
        for key, (ec, c, bc, _, _, _) in _HENIGHAN_ROWS.items()
    },
    **{
        f"henighan-{key}-n": _scaled(f"Henighan {key} L(N)", n, bn, en, "parameters", _HENIGHAN)
        for key, (_, _, _, en, n, bn) in _HENIGHAN_ROWS.items()
    },
}  # fmt: skip
UNITS["million MACs"] = 1e6


@dataclass(frozen=True)
class ReferenceSurface:
    """A published L = E + A / N^alpha + B / D^beta (nats per token)."""

    name: str
    e: float
    a: float
    alpha: float
    b: float
    beta: float
    source: str

    def __call__(self, n: float, d: float) -> float:
        loss: float = self.e + self.a / n**self.alpha + self.b / d**self.beta
        return loss


SURFACES: dict[str, ReferenceSurface] = {
    # The exponents printed as .34 and .28 are rounded, which biases predictions (Epoch 2024).
    "chinchilla": ReferenceSurface(
        "Chinchilla", 1.6934, 406.4, 0.3392, 410.7, 0.2849,
        "Hoffmann et al. 2022, arXiv 2203.15556, unrounded values in the TeX source",
    ),
    "epoch": ReferenceSurface(
        "Epoch replication", 1.8172, 482.01, 0.3478, 2085.43, 0.3658,
        "Besiroglu et al. 2024, arXiv 2404.10102",
    ),
}  # fmt: skip

# Exponents of the optimal size N ~ C^x after each correction (Porian et al., arXiv 2406.19146,
# RefinedWeb): the order in which Kaplan's exponent turns into Chinchilla's.
PORIAN_STEPS: tuple[tuple[str, float], ...] = (
    ("Kaplan's setting", 0.835),
    ("last layer counted", 0.707),
    ("short warm-up", 0.602),
    ("cosine to the budget", 0.572),
    ("tuned optimizer, no decay", 0.497),
)


def reference(name: str) -> Reference:
    """Look a published law up by its short name. Raises UserError, which lists the names.

    >>> print(reference("gpt3"))
    GPT-3: L = 2.57 C^-0.048 [PF-days]
    """
    if name not in REFERENCES:
        raise UserError(f"unknown reference {name!r}: choose one of {', '.join(REFERENCES)}")
    return REFERENCES[name]
