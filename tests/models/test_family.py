"""The table of sizes: the paper's counts, exact muP proportions, mistakes with a remedy."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from scaling.models.family import (
    FAMILY,
    PRINTED_PARAMETERS,
    ModelConfig,
    named,
    resized,
    shape,
    size,
    sized,
)
from scaling.models.macs import models_table, parameter_counts

TINY = size(32, 2, 2, vocab=100, context=64)


@pytest.mark.parametrize(
    ("name", "printed", "digit"),
    [
        ("table15-a1", 14.8e6, 0.1e6),
        ("table15-a2", 77.2e6, 0.1e6),
        ("table15-a3", 215e6, 1e6),
        ("table15-a4", 458e6, 1e6),
        ("table15-a5", 1.2e9, 0.1e9),
        ("table15-a6", 1.9e9, 0.1e9),
        ("base", 120e6, 10e6),
        ("large", 280e6, 10e6),
        ("1b", 1.1e9, 0.1e9),
        ("mamba", 290e6, 10e6),
    ],
)
def test_printed_counts_after_rounding(name: str, printed: float, digit: float) -> None:
    assert PRINTED_PARAMETERS[name] == printed
    assert round(parameter_counts(FAMILY[name])["all"] / digit) == round(printed / digit)


def test_shapes_of_the_paper() -> None:
    widths = {f"a{i}": FAMILY[f"a{i}"].d for i in range(1, 7)}
    depths = {f"a{i}": FAMILY[f"a{i}"].layers for i in range(1, 7)}
    assert list(widths.values()) == [256, 512, 768, 1024, 1536, 1792]
    assert list(depths.values()) == [12, 16, 20, 24, 28, 32]
    assert all(FAMILY[name].heads == 16 for name in widths)


def test_figure_9_ratios() -> None:
    """MACs a token relative to a1, as in the paper.s Figure 9 (one frame of attention)."""
    from scaling.models.macs import forward_macs

    def macs(name: str) -> float:
        return sum(forward_macs(FAMILY[name], 256).values())

    for name, ratio in {"a2": 4.21, "a3": 10.98, "a4": 22.45, "a6": 88.4}.items():
        assert macs(name) / macs("a1") == pytest.approx(ratio, rel=0.01)


@pytest.mark.parametrize("name", [n for n in FAMILY if not n.startswith("table15")])
def test_feed_forward_is_an_exact_multiple_of_the_base(name: str) -> None:
    config = FAMILY[name]
    base = config.at_width(config.base_width)
    assert config.d_ff * config.base_width == base.d_ff * config.d


def test_table_for_the_command_line() -> None:
    rows = models_table(["a1", "base"])
    assert [row["name"] for row in rows] == ["a1", "base"]
    assert rows[1]["printed"] == 120e6
    assert rows[1]["difference"] == pytest.approx(-0.0037, abs=1e-4)
    macs = [float(str(v)) for key, v in rows[0].items() if key.startswith("macs_")]
    assert sum(macs[:-1]) == pytest.approx(macs[-1])
    with pytest.raises(ValueError, match=r"unknown size 'a7'; known: .*a6"):
        models_table(["a7"])


def test_config_is_plain_and_hashable() -> None:
    assert {TINY: 1}[replace(TINY)] == 1
    assert ModelConfig(**asdict(TINY)) == TINY
    assert all(isinstance(v, str | int | float | bool) for v in asdict(TINY).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d": 100, "heads": 16}, "width 100 is not divisible by 16 heads; use .* multiple of 32"),
        ({"d": 48, "heads": 16}, "a head of 3, and rotary positions need an even one"),
        ({"heads": 4, "kv_heads": 3}, "4 heads cannot share 3 key-value heads"),
        ({"layers": 0}, "layers is 0; it must be at least 1"),
        ({"family": "lstm"}, "family is 'lstm'; it must be one of toto, gpt2, mamba"),
        ({"attention": "causel"}, "attention is 'causel'"),
        ({"parametrization": "ntk"}, "parametrization is 'ntk'"),
        ({"prefix": 3}, "prefix is 3; .* used with attention: prefix only"),
        ({"tied": True, "patch_inputs": 48}, "set tied to false"),
        ({"family": "mamba", "attention": "full"}, "mamba has no attention"),
        ({"patch_targets": -1}, "must not be negative"),
    ],
)
def test_mistakes(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_widths_without_a_whole_feed_forward() -> None:
    with pytest.raises(ValueError, match=r"width 30 is not a multiple of 4.* nearest width is 32"):
        size(30, 2, 2, vocab=100, context=64)
    with pytest.raises(ValueError, match="more than 1% from a whole number; make d_ff a multiple"):
        replace(TINY, d_ff=33).at_width(1)


@pytest.mark.parametrize("name", FAMILY)
def test_a_size_is_its_shape_at_its_width(name: str) -> None:
    """The rule that is read from a size gives that size again, and no other family's."""
    model = FAMILY[name]
    again = resized(model, model.d, model.layers, model.heads)
    assert replace(again, name=name) == model
    small = resized(model, 48, 2, 4)
    assert shape(small) == shape(model) and small.context == model.context


def test_shapes_have_names() -> None:
    shapes = {name: shape(FAMILY[name]) for name in ("a1", "t32-gpt2", "gpt2", "mamba", "base")}
    assert shapes == {
        "a1": "", "t32-gpt2": "gpt2", "gpt2": "gpt2-tied", "mamba": "mamba-tied", "base": "tied-ff4"
    }  # fmt: skip
    assert {shape(FAMILY[f"table15-a{i}"]) for i in range(1, 7)} == {"mqa-ff5.33"}
    assert resized(FAMILY["table15-a1"], 64, 2, 4).name == "mqa-ff5.33-d64l2h4"
    assert resized(FAMILY["a1"], 64, 2, 4).name == "d64l2h4"


def test_own_sizes_by_the_rule_of_table_15() -> None:
    assert sized(256, 12, 16, "table15") == FAMILY["table15-a1"]
    small = sized(48, 2, 4, "table15")
    assert small == named("table15-d48l2h4") and (small.kv_heads, small.d_ff) == (1, 256)
    found = resized(FAMILY["table15-a6"], 48, 2, 4)
    assert replace(found, name=small.name, vocab=small.vocab, context=small.context) == small
    assert {shape(sized(d, 2, 2, "table15")) for d in range(24, 1025, 12)} == {"mqa-ff5.33"}
    for d, heads in ((16, 2), (48, 1)):
        with pytest.raises(ValueError, match=r"is no size of table15: .* multiple of 24"):
            sized(d, 2, heads, "table15")
