"""Files in Ego4D's layout: both names of a video, the test split, every mistake at once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling.errors import UserError
from scaling.representations.anticipation import score
from scaling.representations.anticipation_files import (
    Annotations,
    read_annotations,
    read_submission,
    submission,
)
from scaling.representations.anticipation_measures import doubts, evaluate, objects

ONE = {"box": [10.5, 20, 110, 220], "noun_category_id": 1, "verb_category_id": 0,
       "time_to_contact": 0.7}  # fmt: skip


def annotation(number: int, **changes: Any) -> dict[str, Any]:
    one = {"uid": f"u{number}", "video_uid": "v1", "frame": 90 + number, "objects": [dict(ONE)]}
    return {k: v for k, v in (one | changes).items() if v is not None}


def write(path: Path, *listed: dict[str, Any], **changes: Any) -> Path:
    sizes = {"frame_width": 640, "frame_height": 480, "fps": 30.0}
    given = {
        "info": {"video_metadata": {"v1": sizes, "other": sizes}},
        "noun_categories": [{"id": 0, "name": "cup"}, {"id": 1, "name": "pan"}],
        "verb_categories": [{"id": 0, "name": "take"}],
        "annotations": list(listed),
    }
    path.write_text(json.dumps(given | changes))
    return path


def test_both_names_of_the_video_and_the_test_split(tmp_path: Path) -> None:
    one = annotation(0, clip_uid="c9", clip_frame=12)
    other = annotation(1, video_uid=None, video_id="other")
    read = read_annotations(write(tmp_path / "a.json", one, other))
    assert [still.video for still in read.stills] == ["v1", "other"]
    assert [(still.clip, still.clip_frame) for still in read.stills] == [("c9", 12), ("", 0)]
    first = read.stills[0]
    assert (first.frame, first.width, first.height, first.fps) == (90, 640, 480, 30)
    assert first.objects is not None and first.objects.box_N4.tolist() == [[10.5, 20, 110, 220]]
    assert read.nouns == {0: "cup", 1: "pan"} and read.annotated
    blind = read_annotations(write(tmp_path / "t.json", annotation(0, objects=None)))
    assert not blind.annotated and blind.stills[0].objects is None


def test_boxes_without_an_area_are_not_learned_from_but_measured(tmp_path: Path) -> None:
    flat = ONE | {"box": [5, 5, 5, 40]}
    path = write(
        tmp_path / "a.json", annotation(0, objects=[flat, dict(ONE)]), annotation(1, objects=[flat])
    )
    learned = read_annotations(path, to_learn=True)
    assert [still.uid for still in learned.stills] == ["u0"]
    assert learned.notes == (
        "2 boxes without an area are left out",
        "1 frames that have no other object with them",
    )
    measured = read_annotations(path)
    assert [len(still.objects or ()) for still in measured.stills] == [2, 1] and not measured.notes
    only = write(tmp_path / "b.json", annotation(1, objects=[flat]))
    with pytest.raises(UserError, match="no annotated frame has a box with an area"):
        read_annotations(only, to_learn=True)


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.json",
        annotation(0, objects=[{k: v for k, v in ONE.items() if k != "box"}]),
        annotation(1, video_uid="othr"),
        annotation(2, frame=-3, objects=[ONE | {"noun_category_id": 7, "time_to_contact": None}]),
        annotation(3, video_id="other"),
        annotation(4, objects=[]),
        annotation(5),
        annotation(5, objects=[ONE | {"box": [1, 2, float("nan"), 4]}], uid=""),
    )
    with pytest.raises(UserError) as told:
        read_annotations(path)
    for line in (
        "annotation 0 (u0), object 0: has no box: want [x1, y1, x2, y2] in px of the full frame",
        "annotation 1 (u1): video 'othr' is not in info.video_metadata; did you mean 'other'?",
        "annotation 2 (u2): frame is -3: want a whole number of at least 0",
        "annotation 2 (u2), object 0: noun_category_id is 7: want a whole number, one of the 2 of",
        "annotation 2 (u2), object 0: time_to_contact is None: want seconds, at least 0",
        "annotation 3 (u3): video_uid and video_id say both other and v1: want the name of one",
        "annotation 4 (u4): objects is []: want a list of at least one",
        "annotation 6: uid is '': want a name",
        "annotation 6, object 0: box is [1, 2, nan, 4]: want",
    ):
        assert line in str(told.value)
    twice = write(tmp_path / "b.json", annotation(0), annotation(0), annotation(2, objects=None))
    with pytest.raises(UserError, match=r"uid 'u0' is there twice\n.*1 of 3 have no `objects`"):
        read_annotations(twice)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"box": [0.1, 0.2, 0.5, 0.9]}, "no box goes beyond 0.9 px: want px, not shares"),
        ({"time_to_contact": 700}, "the median time_to_contact is 700: want it in seconds"),
        ({"box": [900, 20, 990, 80]}, "u0: a box lies beyond the frame of 640 x 480 px"),
    ],
)
def test_other_units_are_mistakes(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_annotations(write(tmp_path / "a.json", annotation(0, objects=[ONE | change])))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[", "cannot be read as JSON"),
        ("[]", "holds a list, not a dict"),
        ("{}", "annotations: want a list of annotated frames"),
        ('{"info": {"video_metadata": {"v": 3}}}', "video v: frame_width, frame_height, fps are"),
    ],
)
def test_what_is_no_annotation_is_a_message(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=told):
        read_annotations(tmp_path / "a.json")


@pytest.fixture
def two(tmp_path: Path) -> Annotations:
    return read_annotations(write(tmp_path / "a.json", annotation(0), annotation(1)))


def test_a_submission_comes_back_as_it_was_written(tmp_path: Path, two: Annotations) -> None:
    """Whole numbers are written as floats, a silent frame as an empty list."""
    found = [objects([(10, 20, 110, 220, 1, 0, 1, 1), (0, 0, 9, 9, 0, 0, 2, 0)]), objects([])]
    path = tmp_path / "s.json"
    path.write_text(submission(["u0", "u1"], found))
    held = json.loads(path.read_text())
    assert set(held) == {"version", "challenge", "results"} and held["results"]["u1"] == []
    assert '"time_to_contact": 1.0, "score": 1.0' in path.read_text()
    again = read_submission(path, two)
    for before, after in zip(found, again, strict=True):
        np.testing.assert_array_equal(before.box_N4, after.box_N4)
        np.testing.assert_array_equal(before.score_N, after.score_N)
    truth = [still.objects for still in two.stills if still.objects is not None]
    assert evaluate(truth, again).silent == 1


def test_what_the_challenge_refuses_is_refused(tmp_path: Path, two: Annotations) -> None:
    good = ONE | {"score": 0.5}
    wrong = [good | {"score": 1}, good | {"box": [1, 2, 3]}, good | {"verb_category_id": "take"}]
    given = {"version": "2", "challenge": "other", "results": {"u0": wrong, "u7": []}}
    (tmp_path / "s.json").write_text(json.dumps(given))
    with pytest.raises(UserError) as told:
        read_submission(tmp_path / "s.json", two)
    for line in (
        "version: is '2': want '1.0'",
        "results u7: no such frame in a.json",
        "results u1: is missing: a frame without predictions has []",
        "results u0, prediction 0: score is 1, which the challenge refuses: want a float",
        "results u0, prediction 1: box is [1, 2, 3]: want",
        "results u0, prediction 2: verb_category_id is 'take': want a whole number, one of",
    ):
        assert line in str(told.value)


def test_a_submission_of_another_split_is_one_message(tmp_path: Path, two: Annotations) -> None:
    (tmp_path / "s.json").write_text(submission([f"t{i}" for i in range(50)], [objects([])] * 50))
    with pytest.raises(UserError, match=r"none of its 50 frames \(t0, t1, t2\) is one of the 2"):
        read_submission(tmp_path / "s.json", two)


def test_other_layouts_and_units_are_doubted() -> None:
    truth = [objects([(10, 20, 110, 220, 1, 0, 0.7, 1)])]
    assert doubts(truth, truth) == []
    for row, told in (
        ((10, 200, 100, 50, 1, 0, 0.7, 1.0), "1 of 1 predicted boxes have x2 < x1 or y2 < y1"),
        ((0.1, 0.2, 0.3, 0.4, 1, 0, 0.7, 1.0), "no predicted box goes beyond 0.4 px"),
        ((10, 20, 110, 220, 1, 0, 21, 1.0), "half of the predicted times are above 21 s"),
        ((10, 20, 110, 220, 1, 0, -1, 1.0), "1 predicted times are below 0"),
    ):
        (text,) = doubts(truth, [objects([row])])
        assert told in text


def test_a_submission_without_predictions_is_refused(tmp_path: Path) -> None:
    said = write(tmp_path / "a.json", annotation(0))
    (tmp_path / "s.json").write_text(submission(["u0"], [objects([])]))
    with pytest.raises(UserError, match="none of the 1 frames has a prediction"):
        score(tmp_path / "s.json", said)


def test_ids_that_no_float_holds_are_refused(tmp_path: Path) -> None:
    large = [{"id": 2**60, "name": "cup"}]
    with pytest.raises(UserError, match="noun_categories: want"):
        read_annotations(write(tmp_path / "a.json", annotation(0), noun_categories=large))
