"""The sizes: one frozen config per model, and the table of the sizes that have a name.

Widths and depths are those of Toto (arXiv 2501.05453): Table 15 (a1 to a6) and Table 1 (base,
large, 1b). The paper's Table 15 counts and its own loss-versus-compute figures do not agree on the
feed-forward width and the vocabulary; the default a-family follows the figures (LLaMA's rule and a
16k vocabulary), the `table15-` sizes follow the printed counts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, gcd
from typing import Any

from scaling.errors import UserError, did_you_mean

SPECIAL_TOKENS = 4  # pad, video start, video end, image start: codes are offset past them
PAPER_CONTEXT = 16 * 256 + 1  # 16 frames of 16x16 tokens, a start token in front

FAMILIES = ("toto", "gpt2", "mamba")
PARAMETRIZATIONS = ("mup", "standard")
POSITIONS = ("learned", "sine-cosine")
FFN = {"toto": Fraction(11, 4), "gpt2": Fraction(4), "mamba": Fraction(2)}  # d_ff / d
MAMBA_CONV = 4  # width of its causal convolution
ATTENTIONS = ("causal", "prefix", "full")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that determines a model's function; plain scalars, so that it hashes and prints.

    d: width. d_ff: hidden width of the feed-forward. vocab: ids including the specials.
    context: positions of one training sequence, the most that one forward accepts.
    kv_heads: key and value heads; fewer than `heads` shares them (grouped or multi-query).
    base_width: the width at which muP equals the standard parametrisation.
    base_layers: the depth at which CompleteP equals plain muP; 0 switches CompleteP off.
    attention: who sees whom; with "prefix" the first `prefix` positions also see one another.
    patch_inputs, patch_targets: values of a patch that is read or predicted; 0 means tokens.
    positions: of gpt2, which has no rotary ones. state: states per channel of mamba, whose d_ff is
    its inner width.
    """

    name: str
    d: int
    layers: int
    heads: int
    kv_heads: int
    d_ff: int
    vocab: int
    context: int
    family: str = "toto"
    tied: bool = False
    rope_base: float = 10_000.0
    parametrization: str = "mup"
    base_width: int = 64
    base_layers: int = 0
    attention: str = "causal"
    prefix: int = 0
    embedding_multiplier: float = 1.0
    output_multiplier: float = 1.0
    patch_inputs: int = 0
    patch_targets: int = 0
    positions: str = "sine-cosine"
    state: int = 16

    def __post_init__(self) -> None:
        for key, allowed in (
            ("family", FAMILIES),
            ("parametrization", PARAMETRIZATIONS),
            ("attention", ATTENTIONS),
            ("positions", POSITIONS),
        ):
            value = getattr(self, key)
            if value not in allowed:
                raise UserError(
                    f"model {self.name!r}: {key} is {value!r}; "
                    f"it must be one of {', '.join(allowed)}"
                )
        for key in ("d", "layers", "heads", "kv_heads", "d_ff", "vocab", "context", "base_width"):
            if getattr(self, key) < 1:
                raise UserError(
                    f"model {self.name!r}: {key} is {getattr(self, key)}; it must be at least 1"
                )
        if self.d % self.heads:
            raise UserError(
                f"model {self.name!r}: width {self.d} is not divisible by {self.heads} heads; "
                f"use a width that is a multiple of {2 * self.heads}"
            )
        if self.family == "toto" and self.head_dim % 2:
            raise UserError(
                f"model {self.name!r}: width {self.d} over {self.heads} heads gives a head of "
                f"{self.head_dim}, and rotary positions need an even one; "
                f"use a width that is a multiple of {2 * self.heads}"
            )
        if self.heads % self.kv_heads:
            raise UserError(
                f"model {self.name!r}: {self.heads} heads cannot share {self.kv_heads} key-value "
                "heads evenly; use a divisor of the number of heads"
            )
        if self.patch_inputs < 0 or self.patch_targets < 0 or self.state < 1:
            raise UserError(
                f"model {self.name!r}: patch_inputs {self.patch_inputs} and patch_targets "
                f"{self.patch_targets} must not be negative, state {self.state} at least 1"
            )
        if self.tied and (self.patch_inputs or self.patch_targets):
            raise UserError(
                f"model {self.name!r}: tied shares one matrix between reading and predicting "
                "tokens; with patches, set tied to false"
            )
        if self.family == "mamba" and self.attention != "causal":
            raise UserError(
                f"model {self.name!r}: mamba has no attention, so attention is 'causal', "
                f"not {self.attention!r}"
            )
        if not 0 <= self.prefix <= self.context or (self.prefix and self.attention != "prefix"):
            raise UserError(
                f"model {self.name!r}: prefix is {self.prefix}; it lies between 0 and the context "
                f"({self.context}) and is used with attention: prefix only"
            )

    @property
    def parametrized(self) -> str:
        """`mup`, `standard` or `completep`, as rows have it."""
        return "completep" if self.base_layers else self.parametrization

    @property
    def head_dim(self) -> int:
        """Values of a head, d / heads."""
        return self.d // self.heads

    @property
    def width_mult(self) -> float:
        """How many times wider than the muP base; 1 under the standard parametrisation."""
        return self.d / self.base_width if self.parametrization == "mup" else 1.0

    @property
    def attention_scale(self) -> float:
        """Factor on q.k: 1/d_head under muP, matched to 1/sqrt(d_head) at the base width."""
        return float((self.head_dim * self.width_mult) ** -0.5)

    @property
    def readout_scale(self) -> float:
        """Factor on the input of the readout: the rule of mup's MuReadout, as a plain float."""
        return self.output_multiplier / self.width_mult

    @property
    def residual_scale(self) -> float:
        """Factor on each residual branch: base depth / depth under CompleteP, else 1."""
        return self.base_layers / self.layers if self.base_layers else 1.0

    @property
    def step_rank(self) -> int:
        """Rank of mamba's step size: d/16, rounded up."""
        return -(-self.d // 16)

    def at_width(self, d: int) -> ModelConfig:
        """The same model at another width: FFN in proportion, heads reduced to their ratio.

        Only shapes are asked of the result. Reducing the heads lets any width serve as muP base
        (12 heads do not divide 64) and leaves every shape as it is.
        """
        shared = gcd(self.heads, self.kv_heads)
        d_ff = self.d_ff * d / self.d
        if abs(d_ff - round(d_ff)) > 0.01 * d_ff:
            raise UserError(
                f"model {self.name!r}: a feed-forward of {self.d_ff} at width {self.d} is "
                f"{d_ff:.2f} at the muP base width {d}, more than 1% from a whole number; make "
                f"d_ff a multiple of {self.d // gcd(self.d, d)}"
            )
        return replace(
            self,
            d=d,
            d_ff=round(d_ff),
            heads=self.heads // shared,
            kv_heads=self.kv_heads // shared,
        )


def size(
    d: int,
    layers: int,
    heads: int,
    *,
    vocab: int,
    context: int,
    name: str = "",
    **options: object,
) -> ModelConfig:
    """A size outside the table, by the rule of the a-family: d_ff = 11 d / 4.

    LLaMA's 8d/3, rounded up to a multiple of d/4 (LLaMA itself rounds up to a multiple of 256,
    which gives the same 5632 at width 2048): every width's d_ff is the same multiple of the base's,
    so muP's width multipliers are exact, and a multiple of 64 wherever d is one of 256. The rivals
    have their own rule: gpt2 4 d, mamba an inner width of 2 d.
    """
    if d % 4:
        raise UserError(
            f"width {d} is not a multiple of 4, and d_ff = 11 d / 4 must be whole; "
            f"the nearest width is {max(4, round(d / 4) * 4)}"
        )
    rule = FFN.get(str(options.get("family")), FFN["toto"])
    settings: dict[str, Any] = {"kv_heads": heads, "d_ff": int(rule * d)} | options
    return ModelConfig(
        name=name or f"d{d}l{layers}h{heads}",
        d=d,
        layers=layers,
        heads=heads,
        vocab=vocab,
        context=context,
        **settings,
    )


def ffn_ratio(model: ModelConfig) -> Fraction:
    """d_ff / d by the model's rule: sizes of one rule differ by rounding, up to a multiple of 8."""
    return Fraction(model.d_ff, model.d).limit_denominator(4)


def shape(model: ModelConfig) -> str:
    """The rule that a model's sizes follow, as a word; "" for that of the a-family.

    Example: `shape(FAMILY["gpt2"])` is "gpt2-tied", that of table15-a1 "mqa-ff5.33".
    """
    ratio = ffn_ratio(model)
    parts = (
        model.family * (model.family != "toto"),
        "tied" * model.tied,
        "mqa" * (model.kv_heads < model.heads),
        f"ff{float(ratio):.3g}" * (ratio != FFN[model.family]),
    )
    return "-".join(part for part in parts if part)


def resized(model: ModelConfig, d: int, layers: int, heads: int) -> ModelConfig:
    """A model of the same shape (family, feed-forward's ratio, tied, key-value heads) of another
    size; Mamba has no heads. Raises UserError for a size that cannot be."""
    heads = 1 if model.family == "mamba" else heads
    d_ff = ffn_ratio(model) * d
    parts = (shape(model), f"d{d}l{layers}h{heads}")
    return replace(
        model,
        name="-".join(part for part in parts if part),
        d=d,
        layers=layers,
        heads=heads,
        kv_heads=max(1, heads * model.kv_heads // model.heads),
        d_ff=int(d_ff) if d_ff.denominator == 1 else 8 * ceil(d_ff / 8),
    )


# name: (d, layers), and the parameter count that the paper prints
_TABLE_15 = {
    "a1": (256, 12, 14.8e6),
    "a2": (512, 16, 77.2e6),
    "a3": (768, 20, 215e6),
    "a4": (1024, 24, 458e6),
    "a5": (1536, 28, 1.2e9),
    "a6": (1792, 32, 1.9e9),
}
# name: (d, heads, layers, d_ff, printed)
_TABLE_1 = {
    "base": (768, 12, 12, 3072, 120e6),
    "large": (1024, 16, 16, 4096, 280e6),
    "1b": (2048, 16, 22, 5632, 1.1e9),
}
# The rivals of Table 6: name, heads, layers, printed. The paper gives their parameters only; these
# are the depths that come nearest at the width of `large`.
_TABLE_6 = {"gpt2": (16, 22, 280e6), "mamba": (1, 42, 290e6)}
# For small machines: name (with the width in it) and layers. 2 heads each: with 4, a CPU takes
# twice as long for the same MACs, and the loss is no better.
_TINY = {"t16": 2, "t24": 2, "t32": 2, "t48": 3, "t64": 3, "t96": 4, "t128": 4, "t192": 4}
# The rivals beside t32 and t64, at the number of layers that comes nearest to their parameters:
# name (with the width in it), layers, heads.
_TINY_RIVALS = {
    "t32-gpt2": ("gpt2", 2, 2),
    "t32-mamba": ("mamba", 3, 1),
    "t64-gpt2": ("gpt2", 3, 2),
    "t64-mamba": ("mamba", 5, 1),
}


def _table15(d: int) -> dict[str, int]:
    """What Table 15's sizes have that the a-family has not: with 1024 codes and an untied head, the
    one natural rule that gives all six printed counts. One key-value head, and a feed-forward of
    16 d / 3, rounded up to a multiple of 8."""
    return {"kv_heads": 1, "d_ff": -(-16 * d // 24) * 8}


def _family() -> dict[str, ModelConfig]:
    sizes = []
    for name, layers in _TINY.items():
        tiny = size(int(name[1:]), layers, 2, vocab=512 + SPECIAL_TOKENS, context=257, name=name)
        sizes.append(tiny)
    for name, (family, layers, heads) in _TINY_RIVALS.items():
        vocab = 512 + SPECIAL_TOKENS
        d = int(name[1:3])
        sizes.append(size(d, layers, heads, vocab=vocab, context=257, name=name, family=family))
    for name, (d, layers, _) in _TABLE_15.items():
        vocab = 16384 + SPECIAL_TOKENS
        sizes.append(size(d, layers, 16, vocab=vocab, context=PAPER_CONTEXT, name=name))
    for name, (d, layers, _) in _TABLE_15.items():
        vocab, rule = 1024 + SPECIAL_TOKENS, _table15(d)
        sizes.append(
            size(
                d, layers, 16, vocab=vocab, context=PAPER_CONTEXT, name=f"table15-{name}", **rule
            )
        )  # fmt: skip
    for name, (d, heads, layers, d_ff, _) in _TABLE_1.items():
        vocab = 8192 + SPECIAL_TOKENS
        sizes.append(
            size(
                d,
                layers,
                heads,
                vocab=vocab,
                context=PAPER_CONTEXT,
                name=name,
                d_ff=d_ff,
                tied=True,
            )
        )
    for name, (heads, layers, _) in _TABLE_6.items():
        vocab = 8192 + SPECIAL_TOKENS
        sizes.append(
            size(
                1024,
                layers,
                heads,
                vocab=vocab,
                context=PAPER_CONTEXT,
                name=name,
                family=name,
                tied=True,
            )
        )
    return {config.name: config for config in sizes}


FAMILY: dict[str, ModelConfig] = _family()


def sized(d: int, layers: int, heads: int, family: str = "toto") -> ModelConfig:
    """A size by its shape and its family's rule ("table15": Toto by that table's): that of the
    table with this shape, where there is one, else one by the name d40l3h4, or gpt2-d40l3h4.
    Raises UserError for what cannot be."""
    small = FAMILY["t16"]
    rule: dict[str, Any] = _table15(d) if family == "table15" else {"family": family}
    own = size(d, layers, heads, vocab=small.vocab, context=small.context, name="", **rule)
    if family == "table15" and shape(own) != shape(FAMILY["table15-a1"]):
        raise UserError(
            f"width {d} with {heads} heads is no size of table15: it has one key-value head for "
            f"several heads, and a feed-forward of 16 d / 3, which {own.d_ff} is not near enough; "
            f"use 2 heads or more and a width that is a multiple of 24"
        )
    for model in FAMILY.values():
        if replace(model, name=own.name, vocab=own.vocab, context=own.context) == own:
            return model
    prefix = f"{family}-" * (family != "toto")
    return replace(own, name=f"{prefix}{own.name}")


def named(name: str) -> ModelConfig:
    """The size of a name, of the table or of `sized`. Raises UserError where there is none."""
    if name in FAMILY:
        return FAMILY[name]
    own = re.fullmatch(r"(?:(gpt2|mamba|table15)-)?d(\d{1,7})l(\d{1,5})h(\d{1,5})", name)
    if own is None:
        hint = (
            did_you_mean(name, FAMILY) or f"; known: {', '.join(FAMILY)}, and d40l3h4 and its like"
        )
        raise UserError(f"unknown size '{name}'{hint}")
    family, d, layers, heads = own.groups(default="toto")
    return sized(int(d), int(layers), int(heads), family)


PRINTED_PARAMETERS: dict[str, float] = (
    {name: printed for name, (*_, printed) in _TABLE_15.items()}
    | {f"table15-{name}": printed for name, (*_, printed) in _TABLE_15.items()}
    | {name: printed for name, (*_, printed) in (_TABLE_1 | _TABLE_6).items()}
)
