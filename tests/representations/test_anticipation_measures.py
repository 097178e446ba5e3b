"""Ego4D's anticipation metric: the reference evaluator's numbers, and cases counted by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from scaling.analysis.questions.anticipation import CRITERIA
from scaling.errors import UserError
from scaling.representations.anticipation_measures import Objects, evaluate, objects, overlaps

VECTORS = Path(__file__).resolve().parents[3] / "shared/research/sta_vectors"
NAMES = dict(
    zip(("map_box_noun", "map_box_noun_verb", "map_box_noun_ttc", "map_box_noun_verb_ttc"),
        CRITERIA, strict=True)
)  # fmt: skip


def read(rows: list[dict]) -> Objects:  # type: ignore[type-arg]
    return objects(
        [
            (*o["box"], o["noun_category_id"], o["verb_category_id"], o["time_to_contact"],
             o.get("score", 1))
            for o in rows
        ]
    )  # fmt: skip


@pytest.mark.parametrize("name", ["empties", "many", "one_gt", "small", "tiny"])
def test_the_reference_evaluator_is_met(name: str) -> None:
    """EGO4D/forecasting at 38d1931b, on random sets: to 1e-9 percent."""
    if not VECTORS.is_dir():
        pytest.skip(f"the reference's values are not in {VECTORS}")
    parts = [
        json.loads((VECTORS / f"sta_{name}_{part}.json").read_text())
        for part in ("annotations", "predictions", "expected")
    ]
    truth = [read(one["objects"]) for one in parts[0]["annotations"]]
    found = [read(parts[1]["results"][one["uid"]]) for one in parts[0]["annotations"]]
    scores = evaluate(truth, found)
    for reference, ours in NAMES.items():
        assert scores.values()[ours] == pytest.approx(parts[2]["top5"][reference], abs=1e-9)
        plain = parts[2]["top1_standard_map"][reference]
        assert scores.values(plain=True)[ours] == pytest.approx(plain, abs=1e-9)
    assert scores.silent == sum(not len(one) for one in found)
    if name == "empties":
        assert (scores.frames, scores.silent) == (40, 15)


def test_boxes_are_inclusive() -> None:
    """Ten px a side from 0 to 9; half of one's columns are the other's."""
    box, half, beside = [0, 0, 9, 9], [5, 0, 14, 9], [10, 0, 19, 9]
    found = overlaps(np.array([box]), np.array([box, half, beside]))
    np.testing.assert_allclose(found, [[1, 50 / 150, 0]])


BOX = (0, 0, 9, 9)
FAR = (50, 50, 59, 59)


def test_an_overlap_of_a_half_is_too_little_and_a_quarter_second_enough() -> None:
    half = (0, 0, 9, 4)  # 50 of 100 px
    assert evaluate([objects([(*BOX, 1, 1, 1, 1)])], [objects([(*half, 1, 1, 1, 1)])]).values() == {
        "noun": 0, "noun_verb": 0, "noun_seconds": 0, "overall": 0,
    }  # fmt: skip
    truth = [objects([(*BOX, 1, 1, 1.0, 1)])]
    for seconds, there in ((1.25, 100), (0.75, 100), (1.2501, 0)):
        found = evaluate(truth, [objects([(*BOX, 1, 1, seconds, 1)])])
        assert found.values() == {
            "noun": 100, "noun_verb": 100, "noun_seconds": there, "overall": there,
        }  # fmt: skip


def test_four_false_positives_an_object_are_free_whatever_their_noun() -> None:
    """Five wrong ones come first: four are dropped, the fifth is of another noun than the true."""
    truth = [objects([(*BOX, 1, 1, 1, 1)])]
    wrong = [(*FAR, 1, 1, 1, 0.9 - 0.1 * i) for i in range(4)]
    right = (*BOX, 1, 1, 1, 0.1)
    scores = evaluate(truth, [objects([*wrong, right])])
    assert scores.values()["noun"] == 100
    assert scores.values(plain=True)["noun"] == pytest.approx(100 / 5)
    # One more is counted; of another noun it harms that noun alone, which has no object.
    more = [(*FAR, 1, 1, 1, 0.95), *wrong, right]
    assert evaluate(truth, [objects(more)]).values()["noun"] == 50
    more[4] = (*FAR, 2, 1, 1, 0.6)
    assert evaluate(truth, [objects(more)]).values()["noun"] == 100


def test_a_criterion_drops_and_takes_its_own() -> None:
    """The first box is true by its noun and wrong in its verb: the second is true there, and a
    second one on an object already taken elsewhere."""
    truth = [objects([(*BOX, 1, 1, 1, 1)])]
    found = [objects([(*BOX, 1, 2, 1, 0.9), (*BOX, 1, 1, 1, 0.8)])]
    assert evaluate(truth, found).values(plain=True) == {
        "noun": 100, "noun_verb": 50, "noun_seconds": 100, "overall": 50,
    }  # fmt: skip


def test_silent_frames_are_left_out_and_counted() -> None:
    truth = [objects([(*BOX, 1, 1, 1, 1)])] * 2
    right, none = objects([(*BOX, 1, 1, 1, 0.9)]), objects([])
    scores = evaluate(truth, [right, none])
    assert scores.values()["noun"] == 100 and (scores.frames, scores.silent) == (2, 1)
    wrong = objects([(*FAR, 1, 1, 1, 0.9)] * 5)
    assert evaluate(truth, [right, wrong]).values()["noun"] == 50
    assert np.isnan(evaluate(truth, [none, none]).values()["noun"])  # nothing was said at all
    with pytest.raises(UserError, match="no frame has an object"):
        evaluate([none], [right])


def test_resampled_frames_count_as_often_as_they_are_drawn() -> None:
    """Weights of frames give what the frames themselves give, repeated; scores are distinct."""
    rng = np.random.default_rng(0)
    truth, found = [], []
    for _ in range(30):
        n = rng.integers(1, 4)
        boxes = rng.uniform(0, 40, (n, 2)).round()
        rows = np.column_stack([boxes, boxes + 15, rng.integers(0, 4, (n, 2)), rng.random((n, 2))])
        truth.append(objects(rows.tolist()))
        guess = np.repeat(rows, 3, 0)
        guess[:, :4] += rng.normal(0, 3, (len(guess), 4))
        guess[:, 4] = np.where(rng.random(len(guess)) < 0.3, 2, guess[:, 4])
        guess[:, 7] = rng.random(len(guess))
        found.append(objects(guess.tolist()))
    drawn = rng.integers(0, 30, (3, 30))
    weight = np.stack([np.bincount(d, minlength=30) for d in drawn]).astype(float)
    scores = evaluate(truth, found)
    for d, got in zip(drawn, scores.top5["noun"].mean_precision(weight), strict=True):
        shifted = [found[f][np.arange(len(found[f]))] for f in d]
        again = evaluate([truth[f] for f in d], shifted)
        # Repeated frames tie in score, and a step of two is one: the envelope may differ a little.
        assert again.values()["noun"] == pytest.approx(got, abs=0.6)
