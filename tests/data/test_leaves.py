"""The built-in source: reproducible, endless, and with the statistics that it claims."""

from typing import Any

import numpy as np
import pytest

from scaling.data import leaves


def test_a_clip_depends_only_on_seed_stream_and_index() -> None:
    together = leaves.clips(7, 0, 40, frames=3, size=16)
    alone = np.concatenate([leaves.clips(7, i, 1, frames=3, size=16) for i in (0, 17, 39)])
    assert together.dtype == np.uint8 and together.shape == (40, 3, 16, 16, 3)
    np.testing.assert_array_equal(together[[0, 17, 39]], alone)


def test_streams_and_seeds_share_no_clip() -> None:
    def distinct(array: np.ndarray) -> set[bytes]:
        return {clip.tobytes() for clip in array}

    train = distinct(leaves.clips(0, 0, 300, frames=2, size=16))
    validation = distinct(leaves.clips(0, 0, 300, frames=2, size=16, stream="validation"))
    other = distinct(leaves.clips(1, 0, 300, frames=2, size=16))
    assert len(train) == len(validation) == len(other) == 300
    assert not train & validation and not train & other


def test_the_stream_has_no_end() -> None:
    far = leaves.clips(0, 10**9, 2, frames=2, size=16)
    assert not np.array_equal(far[0], far[1])


def test_power_spectrum_falls_like_a_natural_image() -> None:
    """Natural images have power ~ 1 / f^2 to 1 / f^3 (Ruderman 1997); white noise would give 0."""
    grey = leaves.clips(0, 0, 300, frames=1, size=64)[:, 0].mean(-1)
    grey -= grey.mean((1, 2), keepdims=True)
    window = np.hanning(64)
    power = (np.abs(np.fft.fft2(grey * window * window[:, None])) ** 2).mean(0)
    f = np.fft.fftfreq(64) * 64
    radius = np.hypot(f, f[:, None])
    rings = np.arange(2, 24)
    mean = [power[(radius >= r - 0.5) & (radius < r + 0.5)].mean() for r in rings]
    slope = np.polyfit(np.log(rings), np.log(mean), 1)[0]
    assert -3.3 < slope < -1.7


def test_objects_move_at_constant_velocity_and_colours_are_skewed() -> None:
    clips = leaves.clips(0, 0, 100, frames=4, size=32).astype(int)
    step = [np.abs(clips[:, t + 1] - clips[:, t]).mean() for t in range(3)]
    assert min(step) > 1  # things move ...
    assert max(step) < 1.2 * min(step)  # ... equally in every frame ...
    shuffled = np.abs(clips[:, 0] - np.roll(clips[:, 0], 1, axis=0)).mean()
    assert max(step) < shuffled / 2  # ... and less than scenes differ.
    frequency = np.diff(leaves._CUMULATIVE, prepend=0)
    np.testing.assert_allclose(frequency[0] / frequency[9], 10)


@pytest.mark.parametrize("wrong", [{"stream": "test"}, {"start": -1}, {"count": 0}, {"size": 2}])
def test_wrong_arguments(wrong: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"seed": 0, "start": 0, "count": 1, "frames": 1, "size": 8} | wrong
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        leaves.clips(**arguments)
