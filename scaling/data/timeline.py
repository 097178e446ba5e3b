"""When the frames of a video are shown, and which frames a clip is made of.

A container's times are a hint. They start again where streams were joined, repeat where the clock
is coarser than the frames, and rise in decoding order where a muxer did not know better; the
decoder's output order is the truth. Where packets' times say that order, frames need not be decoded
to be counted (`order_known`).

Shapes: F frames, P packets, n clips, T frames of a clip. Times are in the stream's unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

SLIP = 4  # packets within which decoding time that goes back is a muxer's slip, and no join
TRIFLE = 0.05  # of the usual distance of two frames
JOIN_SECONDS = 10.0  # a step of time beyond this is a join, as for ffmpeg's -dts_delta_threshold


@dataclass(frozen=True)
class Timeline:
    """The frames of a video in the order in which they are shown."""

    times: np.ndarray  # (F,), rising within a stretch
    stretch: np.ndarray  # (F,) number of the stretch between joins, rising
    period: float  # usual distance of two times
    shows: np.ndarray  # (P,) the frame that each packet shows, or -1; in decoding order
    order_known: bool  # else `shows` is a guess, and frames are known by the order they come in

    def piece(self, frames: slice) -> Timeline:
        """Some of the frames, for a plan of clips; frame 0 is the first of them."""
        return replace(self, times=self.times[frames], stretch=self.stretch[frames])

    def clips(
        self,
        frames: int,
        step: float,
        clips: int,
        rng: np.random.Generator | None,
        crops: int | None = None,
    ) -> np.ndarray:
        """Frames of each clip, (n, T), `step` apart, none across a join; n = 0 if all are short.

        The arguments are those of `video.read_video`.
        """
        if not len(self.times):
            return np.empty((0, frames), np.int64)
        bounds = np.flatnonzero(np.diff(self.stretch, prepend=-1, append=-1))
        parts = [slice(a, b) for a, b in pairwise(bounds)]
        span = (frames - 1) * step
        # Half a period of slack: rounded timestamps must not cost the last clip.
        slack = self.period / 2
        possible = [
            int(np.searchsorted(self.times[p], self.times[p][-1] - span + slack, side="right"))
            for p in parts
        ]
        starts = np.concatenate(
            [p.start + np.arange(n) for p, n in zip(parts, possible, strict=True)]
        )
        if not len(starts):
            return np.empty((0, frames), np.int64)
        if crops is not None:
            first = np.repeat(starts[(spread(clips) * len(starts)).astype(np.int64)], crops)
        elif rng is not None:
            at = ((np.arange(clips) + rng.random(clips)) / clips * len(starts)).astype(np.int64)
            first = starts[np.minimum(at, len(starts) - 1)]
        else:
            first = self._spaced(parts, possible, span, clips)
        part_of = np.searchsorted(bounds, first, side="right") - 1
        wanted = self.times[first][:, None] + np.arange(frames) * step + slack
        shown = np.empty((len(first), frames), np.int64)
        for number, part in enumerate(parts):
            mine = part_of == number
            shown[mine] = part.start - 1 + np.searchsorted(self.times[part], wanted[mine], "right")
        shown[:, 0] = first  # also where frames are closer than half the usual distance
        return shown

    def _spaced(
        self, parts: Sequence[slice], possible: Sequence[int], span: float, clips: int
    ) -> np.ndarray:
        """First frames of at most `clips` clips that do not overlap, each amid its own part."""
        slack = self.period / 2
        durations = [self.times[p][-1] - self.times[p][0] + self.period for p in parts]
        room = np.array(
            [
                max(1, int((duration + slack) // (span + self.period))) if n else 0
                for duration, n in zip(durations, possible, strict=True)
            ]
        )
        clips = max(1, min(clips, int(room.sum())))
        chosen = ((np.arange(clips) + 0.5) / clips * room.sum()).astype(np.int64)
        counts = np.bincount(
            np.searchsorted(np.cumsum(room), chosen, side="right"), minlength=len(parts)
        )
        found = []
        for part, duration, n, count in zip(parts, durations, possible, counts, strict=True):
            if count:
                middle = self.times[part][0] + (np.arange(count) + 0.5) * (duration / count)
                at = np.searchsorted(self.times[part], middle - span / 2, side="right") - 1
                found.append(part.start + np.clip(at, 0, n - 1))
        return np.concatenate(found)

    def of_output(self, packets: Sequence[int]) -> Timeline:
        """The same with the frames that a decoder gave: of each the packet that it came from."""
        came = np.array(packets, np.int64)
        stretch_of_packet = np.maximum.accumulate(
            np.where(self.shows >= 0, self.stretch[self.shows], 0)
        )
        stretch = np.maximum.accumulate(stretch_of_packet[came])
        times = np.where(self.shows[came] >= 0, self.times[self.shows[came]], np.nan)
        if not (np.diff(times)[np.diff(stretch) == 0] > 0).all():
            times = np.arange(len(came)) * self.period
        shows = np.full(len(self.shows), -1)
        shows[came] = np.arange(len(came))
        return Timeline(times, stretch, self.period, shows, order_known=False)

    @property
    def seconds_in_units(self) -> float:
        """How long all stretches last together, in the stream's unit."""
        if not len(self.times):
            return 0.0
        within = np.diff(self.times)[np.diff(self.stretch) == 0].sum()
        return float(within) + self.period * len(np.unique(self.stretch))


def of_packets(
    pts: Sequence[int | None],
    dts: Sequence[int | None],
    shown: Sequence[bool],
    *,
    reorders: bool,
    unit: float,
) -> Timeline:
    """The timeline that a look at the packets gives, in decoding order.

    Args:
        shown: whether a packet shows a frame; a reference for others, say, does not.
        reorders: whether the codec shows frames in another order than it decodes them.
        unit: seconds of one step of the times.
    """
    visible = np.flatnonzero(shown)
    shows = np.full(len(shown), -1)
    if not len(visible):
        return Timeline(np.empty(0, np.int64), np.empty(0, np.int64), 1.0, shows, True)
    stretch = _stretches([dts[int(i)] for i in visible], unit)
    times = np.empty(len(visible))
    order_known = True
    for number in range(int(stretch[-1]) + 1):
        mine = np.flatnonzero(stretch == number)
        own = [pts[i] for i in visible[mine]]
        if None in own:
            order_known = order_known and not reorders
            times[mine] = np.nan
            shows[visible[mine]] = mine
            continue
        values = np.array(own, np.int64)
        order = np.argsort(values, kind="stable")
        rises = bool((np.diff(values) > 0).all())
        distinct = len(np.unique(values)) == len(values)
        # Rising times of a codec that reorders are decoding times.
        order_known = order_known and distinct and not (reorders and rises and len(values) > 2)
        times[mine] = _spread_repeats(values[order])
        shows[visible[mine[order]]] = mine
    steps = np.diff(times)[np.diff(stretch) == 0]
    steps = steps[np.isfinite(steps) & (steps > 0)]
    period = float(np.median(steps)) if len(steps) else 1.0
    for number in np.unique(stretch[np.isnan(times)]):
        times[stretch == number] = np.arange((stretch == number).sum()) * period
    return Timeline(times, stretch, period, shows, order_known)


def _stretches(dts: Sequence[int | None], unit: float) -> np.ndarray:
    """Number of the stretch of each packet; a new one begins where decoding time starts again."""
    known = np.array([np.nan if t is None else t for t in dts], float)
    steps = np.diff(known)
    rising = steps[steps > 0]
    usual = float(np.median(rising)) if len(rising) else 1.0
    join = steps * unit > JOIN_SECONDS  # unknown times join nothing
    for at in np.flatnonzero(steps < -usual):
        # A muxer's slip is made good by the next packets; a stream that begins again stays behind.
        after = known[at + 1 : at + 1 + SLIP]
        join[at] = len(after) == SLIP and bool((after < known[at]).all())
    return np.concatenate([[0], np.cumsum(join)])


def _spread_repeats(times: np.ndarray) -> np.ndarray:
    """Rising times; frames that share one tick of a coarse clock are spread to the next tick.

    One tick, too, are times that a muxer moved on by a trifle, so that they rise.
    """
    steps = np.diff(times)
    new = np.concatenate([[True], steps > TRIFLE * (np.percentile(steps, 75) if len(steps) else 0)])
    if new.all():
        return times
    first = np.flatnonzero(new)
    ticks = np.diff(times[first])
    end = times[-1] + (np.median(ticks) if len(ticks) else 1)
    spread_times: np.ndarray = np.interp(
        np.arange(len(times)), np.append(first, len(times)), np.append(times[first], end)
    )
    return spread_times


def spread(count: int) -> np.ndarray:
    """Places in [0, 1): the middle, or from the first to the last."""
    last = np.nextafter(1, 0)
    return np.array([0.5]) if count == 1 else np.linspace(0, last, count)
