"""Every figure can be seen, on any page and by any eye, and every number can be read."""

import numpy as np
import pytest

from scaling.analysis.figures import style

# --- colours


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("count", [2, 5, 9, 25])
def test_ramps_keep_their_order_without_hue_and_stand_off_the_page(count: int) -> None:
    """Ordered by lightness alone, so any colour vision and grey print read them."""
    light = style.shades(count)
    dark = [style.DARK[c] for c in light]
    assert len(set(light)) == count
    levels = [luminance(c) for c in light]
    assert levels == sorted(levels, reverse=True)
    night = [luminance(c) for c in dark]
    assert night == sorted(night)
    assert min(contrast(c, style.PAPER) for c in light) > 2.6
    assert min(contrast(c, style.DARK[style.PAPER]) for c in dark) > 3


def test_text_colours_are_readable() -> None:
    """WCAG AA: 4.5 to 1."""
    for colour in (style.INK, style.SOFT, style.LAW):
        assert contrast(colour, style.PAPER) >= 4.5
        assert contrast(style.DARK[colour], style.DARK[style.PAPER]) >= 4.5


# --- numbers as text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.6149, "2.61"),
        (-0.04534, "−0.0453"),
        (0.0, "0"),
        (3.12e12, "3.12 × 10¹²"),
        (-4.2e-7, "−4.20 × 10⁻⁷"),
        (1234.0, "1,234"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
    ],
)
def test_number_text(value: float, text: str) -> None:
    assert style.number_text(value).replace("\u00a0", " ") == text


@pytest.mark.parametrize(
    ("value", "text"), [(928, "928"), (22_656, "22.7 K"), (999_999, "1 M"), (1.147e9, "1.15 B")]
)
def test_count_text(value: float, text: str) -> None:
    assert style.count_text(value).replace("\u00a0", " ") == text


@pytest.mark.parametrize(("low", "high"), [(2.3, 3.6), (0.11, 9.2), (1.0, 1.01), (600, 9000)])
def test_tick_steps_are_round_and_few(low: float, high: float) -> None:
    step = style.tick_step(low, high)
    assert 3 <= (high - low) / step <= 10
    assert f"{step:.0e}"[0] in "125"


@pytest.mark.parametrize(("low", "high"), [(22_656, 262_656), (1e6, 2e9), (300, 310)])
def test_count_axes_have_a_few_readable_ticks(low: float, high: float) -> None:
    figure = style.base_figure("parameters", "loss")
    style.log_count(figure, low, high)
    ticks = figure.layout.xaxis.tickvals
    assert 1 <= len(ticks) <= 12 and list(ticks) == sorted(ticks)
    assert min(ticks) < high and max(ticks) > low
    assert list(figure.layout.xaxis.ticktext) == [style.count_text(t) for t in ticks]
