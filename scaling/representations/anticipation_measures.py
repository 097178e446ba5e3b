"""Short-term anticipation measured as Ego4D's challenge does: top-5 mean average precision.

A frame's objects are those that will be touched next: a box, a noun, the verb of the contact and
the seconds until it. Four criteria judge each prediction apart (`CRITERIA`). What a re-implementer
gets wrong, and Ego4D's own evaluator (EGO4D/forecasting, `STAMeanAveragePrecision`) does so:

- A frame without any prediction is left out, and its objects are not missed ones: silence on hard
  frames raises the figure. `Judged.silent` counts these frames.
- Of each frame's false positives the first (K - 1) a true object, by falling score, are dropped,
  whatever their noun, and of each criterion its own: K - 1 other objects might have been touched.
- Boxes are inclusive: a side is x2 - x1 + 1 px. An overlap must be more than .5, while seconds may
  differ by .25 and that included.

Of equal scores the prediction that is listed first comes first (the evaluator's order of ties is
that of an unstable sort).

Shapes: P predictions, G objects of a frame, F frames, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scaling.analysis.questions.anticipation import CRITERIA
from scaling.errors import UserError

K = 5
MIN_OVERLAP = 0.5
HELD = 2**21  # weights of predictions in resamples that are in memory together
MAX_SECONDS_APART = 0.25
APART = 8.0  # times between medians of times, from which they look to be in other units


@dataclass(frozen=True, eq=False)
class Objects:
    """Objects of one frame, true or predicted.

    box_N4: x1, y1, x2, y2 in px of the full frame. noun_N, verb_N: ids of categories. seconds_N:
    until the contact. score_N: of predictions.
    """

    box_N4: np.ndarray
    noun_N: np.ndarray
    verb_N: np.ndarray
    seconds_N: np.ndarray
    score_N: np.ndarray

    def __len__(self) -> int:
        return len(self.box_N4)

    def __getitem__(self, keep: np.ndarray) -> Objects:
        return Objects(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))


def objects(rows: Sequence[Sequence[float]]) -> Objects:
    """Of rows (x1, y1, x2, y2, noun, verb, seconds, score).

    >>> len(objects([(0, 0, 9, 9, 3, 1, 0.5, 1.0)]))
    1
    """
    table = np.array(rows, float).reshape(-1, 8)
    ids = table[:, 4:6].astype(np.int64)
    return Objects(table[:, :4], ids[:, 0], ids[:, 1], table[:, 6], table[:, 7])


def overlaps(a_N4: np.ndarray, b_M4: np.ndarray) -> np.ndarray:
    """Intersection over union of inclusive boxes, (N, M)."""
    low = np.maximum(a_N4[:, None, :2], b_M4[None, :, :2])
    high = np.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:])
    shared_NM = (high - low + 1).clip(0).prod(-1)
    area_N, area_M = ((box[:, 2:] - box[:, :2] + 1).prod(-1) for box in (a_N4, b_M4))
    return np.asarray(shared_NM / (area_N[:, None] + area_M[None] - shared_NM))


def matches(truth: Objects, found: Objects) -> np.ndarray:
    """Of one frame which predictions, by falling score, are true, (4, P): one row a criterion.

    Each object is taken once a criterion, by the first prediction that fits it; one that fits
    several takes the one that it overlaps most.
    """
    overlap_PG = overlaps(found.box_N4, truth.box_N4)
    noun_PG = (overlap_PG > MIN_OVERLAP) & (found.noun_N[:, None] == truth.noun_N)
    verb_PG = found.verb_N[:, None] == truth.verb_N
    time_PG = np.abs(found.seconds_N[:, None] - truth.seconds_N) <= MAX_SECONDS_APART
    fits_CPG = np.stack(
        [noun_PG, noun_PG & verb_PG, noun_PG & time_PG, noun_PG & verb_PG & time_PG]
    )
    true_CP = np.zeros(fits_CPG.shape[:2], bool)
    for c, fits_PG in enumerate(fits_CPG):
        free_G = np.ones(len(truth), bool)
        for p in np.flatnonzero(fits_PG.any(1)):
            open_G = fits_PG[p] & free_G
            if open_G.any():
                free_G[np.where(open_G, overlap_PG[p], -1).argmax()] = False
                true_CP[c, p] = True
    return true_CP


def doubts(truth: Sequence[Objects], found: Sequence[Objects]) -> list[str]:
    """What boxes and times look to be in another layout or unit, which the challenge takes as they
    are and counts as wrong."""
    out = []
    for what, given in (("true", truth), ("predicted", found)):
        box_N4 = np.concatenate([one.box_N4 for one in given])
        turned = int((box_N4[:, 2:] < box_N4[:, :2]).any(1).sum())
        if turned:
            out.append(
                f"{turned} of {len(box_N4)} {what} boxes have x2 < x1 or y2 < y1, and overlap "
                "nothing: want [x1, y1, x2, y2], not [x, y, width, height]"
            )
        negative = int((np.concatenate([one.seconds_N for one in given]) < 0).sum())
        if negative:
            out.append(f"{negative} {what} times are below 0: want the seconds until the contact")
    true_N, found_N = (np.concatenate([o.seconds_N for o in one]) for one in (truth, found))
    boxes = [np.concatenate([o.box_N4 for o in one]) for one in (truth, found)]
    if not len(true_N) or not len(found_N):
        return out
    if boxes[1].max() <= 1.5 < boxes[0].max():
        out.append(f"no predicted box goes beyond {boxes[1].max():.3g} px: want px, not shares")
    middles = float(np.median(true_N)), float(np.median(found_N))
    if middles[1] > APART * max(middles[0], MAX_SECONDS_APART):
        out.append(
            f"half of the predicted times are above {middles[1]:.3g} s, of the true ones above "
            f"{middles[0]:.3g} s: want seconds, not frames or milliseconds"
        )
    return out


@dataclass(frozen=True, eq=False)
class Judged:
    """Predictions of all frames, judged by one criterion, and what is dropped of them is gone.

    The arrays `_N` are of predictions, by falling score.
    """

    frame_N: np.ndarray
    noun_N: np.ndarray
    true_N: np.ndarray
    objects_FC: np.ndarray  # of each frame and noun (by its place in `nouns`), 0 of silent frames
    nouns: np.ndarray

    @cached_property
    def _of_nouns(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each noun its predictions: their frames, and which are true."""
        return [(self.frame_N[m], self.true_N[m]) for m in (self.noun_N == n for n in self.nouns)]

    def mean_precision(self, weight_RF: np.ndarray | None = None) -> np.ndarray:
        """Mean over nouns of the average precision, percent, (R,); NaN where no frame has objects.

        weight_RF: how often a resample holds each frame; default once.
        """
        frames = len(self.objects_FC)
        weight_RF = np.ones((1, frames)) if weight_RF is None else weight_RF
        count_RC = weight_RF @ self.objects_FC
        precision_RC = np.zeros(count_RC.shape)
        for c, (frame_N, true_N) in enumerate(self._of_nouns):
            at_once = max(1, HELD // max(1, len(frame_N)))
            for r in range(0, len(weight_RF), at_once):
                part = slice(r, r + at_once)
                weight_RN = weight_RF[part][:, frame_N]
                precision_RC[part, c] = average_precision(weight_RN, true_N, count_RC[part, c])
        there_RC = count_RC > 0
        with np.errstate(invalid="ignore"):
            mean_R = np.where(there_RC, precision_RC, 0).sum(1) / there_RC.sum(1)
        percent_R: np.ndarray = 100 * mean_R
        return percent_R


def average_precision(weight_RN: np.ndarray, true_N: np.ndarray, count_R: np.ndarray) -> np.ndarray:
    """Area under the falling envelope of precision over recall, (R,); 0 where count is 0.

    weight_RN: of each prediction, by falling score. count_R: true objects, found or not.
    """
    if not len(true_N):
        return np.zeros(len(count_R))
    hits_RN = weight_RN * true_N
    found_RN, shown_RN = hits_RN.cumsum(1), weight_RN.cumsum(1)
    precision_RN = found_RN / np.maximum(shown_RN, 1e-300)
    envelope_RN = np.maximum.accumulate(precision_RN[:, ::-1], 1)[:, ::-1]
    area_R = (envelope_RN * hits_RN).sum(1)
    return np.asarray(area_R / np.where(count_R > 0, count_R, np.inf))


@dataclass(frozen=True, eq=False)
class Scores:
    """Percent, of each of `CRITERIA`; top5 is the challenge's figure, plain has K = 1."""

    top5: dict[str, Judged]
    plain: dict[str, Judged]
    frames: int
    silent: int  # frames without a prediction, which count nowhere

    def values(self, plain: bool = False) -> dict[str, float]:
        """Criterion -> mean average precision, percent."""
        judged = self.plain if plain else self.top5
        return {name: float(one.mean_precision()[0]) for name, one in judged.items()}


def evaluate(truth: Sequence[Objects], found: Sequence[Objects]) -> Scores:
    """Judge the predictions of each frame. Raises UserError: other frames, no object at all."""
    if len(truth) != len(found):
        raise UserError(f"{len(found)} frames have predictions and {len(truth)} have objects")
    if not sum(map(len, truth)):
        raise UserError("no frame has an object, so that there is nothing to anticipate")
    ordered = [one[np.argsort(-one.score_N, kind="stable")] for one in found]
    true = [matches(t, f) for t, f in zip(truth, ordered, strict=True)]
    nouns = np.unique(np.concatenate([t.noun_N for t in truth]))
    spoken = [bool(len(one)) for one in found]
    objects_FC = np.array(
        [(t.noun_N[:, None] == nouns).sum(0) * s for t, s in zip(truth, spoken, strict=True)], float
    )
    frame_N = np.repeat(np.arange(len(found)), [len(one) for one in found])
    noun_N = np.concatenate([one.noun_N for one in ordered])
    order_N = np.argsort(-np.concatenate([one.score_N for one in ordered]), kind="stable")

    def judged(k: int) -> dict[str, Judged]:
        made = {}
        for c, name in enumerate(CRITERIA):
            kept = [
                hits[c] | ((~hits[c]).cumsum() > (k - 1) * len(t))
                for hits, t in zip(true, truth, strict=True)
            ]
            keep_N = order_N[np.concatenate(kept)[order_N]]
            true_N = np.concatenate([hits[c] for hits in true])[keep_N]
            made[name] = Judged(frame_N[keep_N], noun_N[keep_N], true_N, objects_FC, nouns)
        return made

    return Scores(judged(K), judged(1), len(found), len(found) - sum(spoken))
