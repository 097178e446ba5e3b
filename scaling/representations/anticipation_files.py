"""Ego4D's short-term anticipation files: annotations read, and submissions written and read.

    {"info": {"video_metadata": {VIDEO: {"frame_width", "frame_height", "fps"}}},
     "noun_categories": [{"id", "name"}], "verb_categories": [{"id", "name"}],
     "annotations": [{"uid", "video_uid" or "video_id", "frame", "clip_uid", "clip_frame",
                      "objects": [{"box": [x1, y1, x2, y2], "noun_category_id",
                                   "verb_category_id", "time_to_contact"}]}]}

Boxes are px of the full frame, times seconds. `video_uid` is the name in the challenge's files,
`video_id` the one that StillFast reads. The test split has no `objects`.

    {"version": "1.0", "challenge": "ego4d_short_term_object_interaction_anticipation",
     "results": {UID: [{"box", "noun_category_id", "verb_category_id", "time_to_contact",
                        "score"}]}}

Every annotated uid is a key; its list may be empty. The challenge refuses an int where a float is
asked, so all floats are written as floats.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from scaling.errors import UserError, did_you_mean
from scaling.representations.anticipation_measures import Objects, objects
from scaling.storage import files

CHALLENGE = "ego4d_short_term_object_interaction_anticipation"
VERSION = "1.0"
SPLITS = {part: f"fho_sta_{part}.json" for part in ("train", "val")}
TEST = "fho_sta_test_unannotated.json"
MAX_SHARE = 1.5  # of all boxes' coordinates, below which they are no px
MAX_USUAL_SECONDS = 60.0
MOST = 10  # mistakes named in a message


@dataclass(frozen=True, eq=False)
class Still:
    """An annotated frame: its number in the video, and in the clip where that is said.

    objects: what will be touched next; None: not said (the test split).
    """

    uid: str
    video: str
    frame: int
    width: int
    height: int
    fps: float
    clip: str = ""
    clip_frame: int = 0
    objects: Objects | None = None


@dataclass(frozen=True, eq=False)
class Annotations:
    """One split. nouns, verbs: id -> name. notes: what was left out."""

    path: Path
    nouns: Mapping[int, str]
    verbs: Mapping[int, str]
    stills: tuple[Still, ...]
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """A hash of the file's content."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]

    @property
    def annotated(self) -> bool:
        """Whether it is said what will be touched."""
        return all(still.objects is not None for still in self.stills)


@dataclass
class _Mistakes:
    """All that is wrong with a file, told at once."""

    path: Path
    found: list[str] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        self.found.append(f"{where}: {what}")

    def raise_any(self) -> None:
        if self.found:
            more = len(self.found) - MOST
            lines = [*self.found[:MOST], *[f"... and {more} more mistakes"] * (more > 0)]
            raise UserError("\n".join(f"{self.path}: {line}" for line in lines))


def _read(path: Path) -> dict[str, Any]:
    try:
        return files.read_json(path, dict)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None


# ---------------------------------------------------------------------------------- annotations


def read_annotations(path: Path, *, to_learn: bool = False) -> Annotations:
    """The annotations of one file.

    to_learn: boxes without an area are left out (the challenge's training split has some), and
    with them frames of whose objects none is left; `notes` says how many. Who is measured is
    measured on all, as the challenge does.
    Raises UserError with every mistake.
    """
    given, wrong = _read(path), _Mistakes(path)
    nouns, verbs = (_categories(given, f"{kind}_categories", wrong) for kind in ("noun", "verb"))
    about = _sizes(given, wrong)
    listed = given.get("annotations")
    if not isinstance(listed, list) or not listed:
        wrong.add("annotations", "want a list of annotated frames, and at least one")
        listed = []
    stills, seen = [], set[str]()
    flat = empty = 0
    for number, one in enumerate(listed):
        where = f"annotation {number}"
        if not isinstance(one, dict):
            wrong.add(where, f"want an object of JSON, found {one!r:.40}")
            continue
        still = _still(one, where, about, nouns, verbs, wrong)
        if still is None:
            continue
        if still.uid in seen:
            wrong.add(where, f"uid {still.uid!r} is there twice")
        seen.add(still.uid)
        if to_learn and still.objects is not None:
            corner_N4 = still.objects.box_N4
            has_area: np.ndarray = np.all(corner_N4[:, 2:] > corner_N4[:, :2], axis=1)
            flat += int((~has_area).sum())
            empty += not has_area.any()
            if not has_area.any():
                continue
            still = replace(still, objects=still.objects[has_area])
        stills.append(still)
    if stills and len({still.objects is None for still in stills}) > 1:
        without = [still.uid for still in stills if still.objects is None]
        wrong.add(
            "annotations",
            f"{len(without)} of {len(stills)} have no `objects` ({', '.join(without[:3])}), the "
            "others have: a split is annotated or it is not",
        )
    _check_units(stills, wrong)
    wrong.raise_any()
    if not stills:
        raise UserError(f"{path}: no annotated frame has a box with an area: want x2 > x1, y2 > y1")
    notes = [f"{flat} boxes without an area are left out"] * bool(flat)
    notes += [f"{empty} frames that have no other object with them"] * bool(empty)
    return Annotations(path, nouns, verbs, tuple(stills), tuple(notes))


def _check_units(stills: list[Still], wrong: _Mistakes) -> None:
    """Boxes in shares of the frame, and times in other units, are mistakes that nothing shows."""
    told = [still for still in stills if still.objects is not None]
    if not told:
        return
    box_N4 = np.concatenate([still.objects.box_N4 for still in told if still.objects])
    seconds_N = np.concatenate([still.objects.seconds_N for still in told if still.objects])
    if box_N4.max() <= MAX_SHARE and min(min(still.width, still.height) for still in told) > 16:
        wrong.add("annotations", f"no box goes beyond {box_N4.max():g} px: want px, not shares")
    if np.median(seconds_N) > MAX_USUAL_SECONDS:
        median = f"{np.median(seconds_N):g}"
        wrong.add("annotations", f"the median time_to_contact is {median}: want it in seconds")
    for still in told:
        assert still.objects is not None
        middle_N2 = (still.objects.box_N4[:, :2] + still.objects.box_N4[:, 2:]) / 2
        if (middle_N2 < 0).any() or (middle_N2 > [still.width, still.height]).any():
            wrong.add(
                f"annotation {still.uid}",
                f"a box lies beyond the frame of {still.width} x {still.height} px, of which "
                "boxes are",
            )


def _categories(given: dict[str, Any], key: str, wrong: _Mistakes) -> dict[int, str]:
    listed = given.get(key)
    if not isinstance(listed, list) or not listed:
        wrong.add(key, "want a list of {id, name}, and at least one")
        return {}
    found: dict[int, str] = {}
    for one in listed:
        if not isinstance(one, dict) or not _is_whole(one.get("id")) or "name" not in one:
            wrong.add(key, f"want {{id, name}} with a whole id, found {one!r:.60}")
        elif one["id"] in found:
            wrong.add(key, f"id {one['id']} is there twice")
        else:
            found[one["id"]] = str(one["name"])
    return found


def _sizes(given: dict[str, Any], wrong: _Mistakes) -> dict[str, tuple[int, int, float]]:
    """Width, height and frames a second of each video."""
    info = given.get("info")
    told = info.get("video_metadata") if isinstance(info, dict) else None
    if not isinstance(told, dict):
        wrong.add("info.video_metadata", "want {VIDEO: {frame_width, frame_height, fps}}")
        return {}
    found = {}
    for video, one in told.items():
        keys = ("frame_width", "frame_height", "fps")
        values: list[Any] = [one.get(k) if isinstance(one, dict) else None for k in keys]
        if all(_is_number(v) and v > 0 for v in values):
            found[video] = int(values[0]), int(values[1]), float(values[2])
        else:
            wrong.add(
                f"video {video}",
                f"frame_width, frame_height, fps are {', '.join(map(repr, values))}: want numbers "
                "above 0",
            )
            found[video] = 2**31, 2**31, 1.0  # told once
    return found


def _still(
    one: dict[str, Any],
    where: str,
    about: dict[str, tuple[int, int, float]],
    nouns: dict[int, str],
    verbs: dict[int, str],
    wrong: _Mistakes,
) -> Still | None:
    """The frame; None where something is wrong with it."""
    before = len(wrong.found)
    uid = one.get("uid")
    where = f"{where} ({uid})" if uid else where
    if not isinstance(uid, str) or not uid:
        wrong.add(where, f"uid is {uid!r}: want a name")
    names = {one[k] for k in ("video_uid", "video_id") if isinstance(one.get(k), str)}
    video = next(iter(names), "")
    if len(names) != 1:
        told = f"both {' and '.join(sorted(names))}" if names else "neither"
        wrong.add(where, f"video_uid and video_id say {told}: want the name of one video")
    elif about and video not in about:
        hint = did_you_mean(video, about) or "; add it, or take the annotation out"
        wrong.add(where, f"video '{video}' is not in info.video_metadata{hint}")
    frame, clip_frame = one.get("frame"), one.get("clip_frame")
    for name, value in (("frame", frame), ("clip_frame", clip_frame)):
        if (name == "frame" or value is not None) and not (_is_whole(value) and value >= 0):
            wrong.add(where, f"{name} is {value!r}: want a whole number of at least 0")
    there = None
    if one.get("objects") is not None:
        there = objects(_rows(one["objects"], where, nouns, verbs, wrong))
    if len(wrong.found) > before:
        return None
    assert isinstance(uid, str) and isinstance(frame, int)
    clip = str(one.get("clip_uid") or "") if clip_frame is not None else ""
    size = about.get(video, (1, 1, 1.0))
    return Still(uid, video, frame, *size, clip=clip, clip_frame=clip_frame or 0, objects=there)


def _rows(
    listed: Any, where: str, nouns: dict[int, str], verbs: dict[int, str], wrong: _Mistakes
) -> list[list[float]]:
    """Rows as of `objects`."""
    rows: list[list[float]] = []
    if not isinstance(listed, list) or not listed:
        wrong.add(where, f"objects is {listed!r:.40}: want a list of at least one")
        return rows
    for number, one in enumerate(listed):
        at = f"{where}, object {number}"
        if not isinstance(one, dict):
            wrong.add(at, f"want an object of JSON, found {one!r:.40}")
            continue
        box, seconds = one.get("box"), one.get("time_to_contact")
        ids: list[Any] = [one.get("noun_category_id"), one.get("verb_category_id")]
        fine = _box(box, at, wrong)
        for name, value, known in (("noun", ids[0], nouns), ("verb", ids[1], verbs)):
            if not _is_whole(value) or (known and value not in known):
                some = f"a whole number, one of the {len(known)} of {name}_categories"
                wrong.add(at, f"{name}_category_id is {value!r}: want {some}")
                fine = False
        if not (_is_number(seconds) and seconds >= 0):
            wrong.add(at, f"time_to_contact is {seconds!r}: want seconds, at least 0")
            fine = False
        if fine:
            rows.append([*one["box"], *ids, one["time_to_contact"], 1.0])
    return rows


def _box(box: Any, at: str, wrong: _Mistakes) -> bool:
    if box is None:
        wrong.add(at, "has no box: want [x1, y1, x2, y2] in px of the full frame")
    elif not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        wrong.add(at, f"box is {box!r:.60}: want [x1, y1, x2, y2] in px of the full frame")
    else:
        return True
    return False


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def _is_number(value: Any) -> TypeGuard[float]:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 1e12 and math.isfinite(value)


# ---------------------------------------------------------------------------------- submissions


def submission(uids: Sequence[str], found: Sequence[Objects]) -> str:
    """The challenge's file of the predictions of each frame."""
    results = {
        uid: [
            {
                "box": [float(v) for v in one.box_N4[i]],
                "noun_category_id": int(one.noun_N[i]),
                "verb_category_id": int(one.verb_N[i]),
                "time_to_contact": float(one.seconds_N[i]),
                "score": float(one.score_N[i]),
            }
            for i in range(len(one))
        ]
        for uid, one in zip(uids, found, strict=True)
    }
    return json.dumps({"version": VERSION, "challenge": CHALLENGE, "results": results})


def read_submission(path: Path, annotations: Annotations) -> list[Objects]:
    """The predictions of each annotated frame, in the order of the annotations.

    What the challenge's own validation refuses is refused. Raises UserError with every mistake.
    """
    given, wrong = _read(path), _Mistakes(path)
    for key, want in (("version", VERSION), ("challenge", CHALLENGE)):
        if given.get(key) != want:
            wrong.add(key, f"is {given.get(key)!r}: want {want!r}")
    results = given.get("results")
    if not isinstance(results, dict):
        wrong.add("results", "want {UID: list of predictions}")
        results = {}
    uids = [still.uid for still in annotations.stills]
    held = set(uids)
    if results and not held & set(results):
        raise UserError(
            f"{path}: none of its {len(results)} frames ({', '.join(list(results)[:3])}) is one of "
            f"the {len(held)} of {annotations.path} ({', '.join(uids[:3])}): give the annotations "
            "of the split that it predicts"
        )
    for uid in [uid for uid in results if uid not in held]:
        wrong.add(f"results {uid}", f"no such frame in {annotations.path.name}")
    found = []
    for uid in uids:
        if uid not in results:
            wrong.add(f"results {uid}", "is missing: a frame without predictions has []")
        found.append(_predictions(results.get(uid, []), f"results {uid}", annotations, wrong))
    wrong.raise_any()
    return found


def _predictions(listed: Any, where: str, annotations: Annotations, wrong: _Mistakes) -> Objects:
    rows: list[list[float]] = []
    if not isinstance(listed, list):
        wrong.add(where, f"want a list of predictions, found {listed!r:.40}")
        listed = []
    for number, one in enumerate(listed):
        at = f"{where}, prediction {number}"
        if not isinstance(one, dict):
            wrong.add(at, f"want an object of JSON, found {one!r:.40}")
            continue
        fine = _box(one.get("box"), at, wrong)
        for name, known in (("noun", annotations.nouns), ("verb", annotations.verbs)):
            value = one.get(f"{name}_category_id")
            if not _is_whole(value) or value not in known:
                some = f"a whole number, one of the {len(known)} of {name}_categories"
                wrong.add(at, f"{name}_category_id is {value!r}: want {some}")
                fine = False
        for name in ("time_to_contact", "score"):
            value = one.get(name)
            if not isinstance(value, float) or not math.isfinite(value):
                why = ", which the challenge refuses" if _is_whole(value) else ""
                wrong.add(at, f"{name} is {value!r}{why}: want a float, such as 1.0")
                fine = False
        if fine:
            ids = [one["noun_category_id"], one["verb_category_id"]]
            rows.append([*one["box"], *ids, one["time_to_contact"], one["score"]])
    return objects(rows)
