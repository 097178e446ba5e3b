"""J and F of object masks, as the DAVIS toolkit computes them (davis2017-evaluation).

J is region overlap, F the agreement of contours within a tolerance (Perazzi et al. 2016).
Shapes: H x W pixels, T frames.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

from scaling.errors import UserError

VOID = 255  # counts for none
TOLERANCE = 0.008  # of the image diagonal
BINS = 4  # of a sequence, for the decay


def jaccard(mask_HW: np.ndarray, truth_HW: np.ndarray) -> float:
    """Intersection over union of two boolean masks; 1 when both are empty."""
    union = int((mask_HW | truth_HW).sum())
    return int((mask_HW & truth_HW).sum()) / union if union else 1.0


def boundary(mask_HW: np.ndarray) -> np.ndarray:
    """Pixels that differ from their right, lower or lower right neighbour (`seg2bmap`)."""
    m = mask_HW.astype(bool)
    right, below, both = m.copy(), m.copy(), m.copy()
    right[:, :-1], below[:-1], both[:-1, :-1] = m[:, 1:], m[1:], m[1:, 1:]
    edge: np.ndarray = (m ^ right) | (m ^ below) | (m ^ both)
    edge[-1] = m[-1] ^ right[-1]
    edge[:, -1] = m[:, -1] ^ below[:, -1]
    edge[-1, -1] = False
    return edge


def contour_f(mask_HW: np.ndarray, truth_HW: np.ndarray) -> float:
    """F of two boolean masks' contours; a contour pixel matches within TOLERANCE (a disk)."""
    radius = int(np.ceil(TOLERANCE * np.linalg.norm(mask_HW.shape)))
    ours, theirs = boundary(mask_HW), boundary(truth_HW)
    n_ours, n_theirs = int(ours.sum()), int(theirs.sum())
    if not n_ours and not n_theirs:
        return 1.0
    if not n_ours or not n_theirs:
        return 0.0  # precision 1 and recall 0, or the reverse
    precision = int((ours & _near(theirs, ours, radius)).sum()) / n_ours
    recall = int((theirs & _near(ours, theirs, radius)).sum()) / n_theirs
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _near(edge_HW: np.ndarray, wanted_HW: np.ndarray, radius: int) -> np.ndarray:
    """Pixels within `radius` of an edge, right wherever `wanted_HW` is set."""
    out = np.zeros_like(edge_HW)
    rows, columns = np.flatnonzero(wanted_HW.any(1)), np.flatnonzero(wanted_HW.any(0))
    # Only the part that can match: the box of what is wanted, and a radius around it.
    box = (
        slice(max(0, rows[0] - radius), rows[-1] + radius + 1),
        slice(max(0, columns[0] - radius), columns[-1] + radius + 1),
    )
    if edge_HW[box].any():
        distance = distance_transform_edt(~edge_HW[box])
        # Squared distances are integers: rounded, the comparison is exact.
        out[box] = np.rint(distance**2) <= radius**2
    return out


def statistics(values_T: np.ndarray) -> tuple[float, float, float]:
    """Mean, recall (share above 0.5) and decay (first less last quarter) of a sequence's frames."""
    values_T = np.asarray(values_T, float)
    ids = (np.round(np.linspace(1, len(values_T), BINS + 1) + 1e-10) - 1).astype(int)
    quarters = [values_T[ids[i] : ids[i + 1] + 1] for i in range(BINS)]
    decay = float(np.nanmean(quarters[0]) - np.nanmean(quarters[-1]))
    return float(np.nanmean(values_T)), float(np.nanmean(values_T > 0.5)), decay


def evaluate(masks_THW: np.ndarray, truth_THW: np.ndarray) -> list[dict[str, float]]:
    """One dict per object: object, j_mean, j_recall, j_decay, f_mean, f_recall, f_decay.

    Masks hold 0 for background and k for object k; the objects are 1 to the largest number of the
    first frame, as the toolkit counts: one that is nowhere is right wherever it is left out. The
    first frame, which is given, and the last one do not count (the toolkit's semi-supervised rule).
    Raises UserError for shapes that differ, fewer than three frames, or no object.
    """
    if masks_THW.shape != truth_THW.shape or len(truth_THW) < 3:
        raise UserError(
            f"masks {masks_THW.shape}, truth {truth_THW.shape}: want equal shapes and at least "
            "three frames"
        )
    first_HW = truth_THW[0]
    objects = range(1, 1 + int(first_HW[first_HW < VOID].max(initial=0)))
    if not objects:
        raise UserError("the first frame marks no object; its mask is what is carried on")
    rows = []
    for k in objects:
        pairs = [(m == k, t == k) for m, t in zip(masks_THW[1:-1], truth_THW[1:-1], strict=True)]
        j, f = ([measure(m, t) for m, t in pairs] for measure in (jaccard, contour_f))
        (jm, jr, jd), (fm, fr, fd) = statistics(np.array(j)), statistics(np.array(f))
        rows.append(
            {"object": k, "j_mean": jm, "j_recall": jr, "j_decay": jd}
            | {"f_mean": fm, "f_recall": fr, "f_decay": fd}
        )
    return rows
