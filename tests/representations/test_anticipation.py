"""Anticipation end to end: frames by number, fine-tuning, the command's table, mistakes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from scaling.analysis.questions.anticipation import CRITERIA
from scaling.config.study_file import checked
from scaling.data.video import read_numbered
from scaling.errors import UserError
from scaling.models.anticipation import Layout
from scaling.representations import anticipation_scenes as scenes
from scaling.representations.anticipation import anticipate, gather, score
from scaling.representations.anticipation_files import SPLITS, TEST, read_annotations, submission
from scaling.representations.anticipation_frames import Shape, encode, open_tokens, read_folder
from scaling.representations.anticipation_measures import evaluate, objects
from scaling.representations.anticipation_tune import (
    Anticipation,
    Reader,
    Split,
    anticipate_with,
    predictions,
    resamples,
)
from scaling.representations.trained import open_tokenizer, trained_runs
from scaling.study_folder import Study
from tests.representations.conftest import write_clip

QUICK: dict[str, Any] = {"steps": 3, "batch": 4, "px": 16, "fast_px": 8}
FEW = {"train": 52, "val": 6}


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.write_scenes(tmp_path_factory.mktemp("scenes"), count=FEW, say=quiet)


@pytest.fixture
def own(study: Path, tmp_path: Path) -> Study:
    return Study(Path(shutil.copytree(study, tmp_path / "own")))


def test_built_in_clips_say_what_they_show(built_in: Path) -> None:
    """In the layout of the challenge; the hand is where distance over speed is the time told."""
    for split, count in FEW.items():
        annotations = read_annotations(built_in / SPLITS[split])
        assert len(annotations.stills) == count and annotations.annotated
    again = scenes.scene(np.random.default_rng([0, 51]), frames=8)
    last = read_annotations(built_in / SPLITS["train"]).stills[-1]
    assert (last.video, last.frame) == ("train-0001", 15)
    assert last.objects is not None and last.objects.box_N4.tolist() == [again.box]
    found, note = read_numbered(built_in / "clips/train-0001.mp4", {15}, lambda rgb: rgb)
    assert note == "" and np.abs(found[15].astype(int) - again.frames[-1]).mean() < 10
    seen = 0
    for number in range(20):
        one = scenes.scene(np.random.default_rng(number), frames=8)
        middle = np.array([one.box[1] + one.box[3], one.box[0] + one.box[2]]) / 2
        if any(
            (frame[edge].astype(int) - scenes.SKIN).__abs__().max(-1).min() < 12
            for frame in one.frames
            for edge in (0, -1, np.s_[:, 0], np.s_[:, -1])
        ):
            continue  # a part of it is not seen
        seen += 1
        hand = [
            np.argwhere((frame.astype(int) - scenes.SKIN).__abs__().max(-1) < 12).mean(0)
            for frame in one.frames
        ]
        speed = np.linalg.norm(hand[-1] - hand[0]) / 7 * scenes.FPS
        left = np.linalg.norm(middle - 0.5 - hand[-1]) - (one.box[2] - one.box[0]) / 2
        assert left / speed == pytest.approx(one.seconds, abs=0.25)
    assert seen > 5


def test_top_five_forgives_less_than_there_are_things() -> None:
    """Naming everything on the table in a random order is far from right."""
    rng = np.random.default_rng(0)
    truth, found = [], []
    for number in range(200):
        one = scenes.scene(np.random.default_rng(number), frames=8)
        centres, half = scenes._table(rng)
        boxes = np.column_stack([centres - half[:, None], centres + half[:, None]])
        boxes = 64 * boxes[:, [1, 0, 3, 2]]
        boxes[0] = one.box  # the right one is among them
        rows = [[*b, one.noun, one.verb, one.seconds, s]
                for b, s in zip(boxes, rng.random(len(boxes)), strict=True)]  # fmt: skip
        truth.append(objects([[*one.box, one.noun, one.verb, one.seconds, 1]]))
        found.append(objects(rows))
    assert evaluate(truth, found).values()["noun"] < 75


def test_frames_are_those_of_their_numbers(built_in: Path, tmp_path: Path) -> None:
    """Of a clip with B-frames too; what it does not have is not made up."""
    path = write_clip(tmp_path / "a.mp4", np.stack([np.full((32, 48, 3), 8 * i) for i in range(30)]
                                                   ).astype(np.uint8))  # fmt: skip
    found, _ = read_numbered(path, {29, 3, 17, 40}, lambda rgb: rgb.mean((0, 1)))
    assert sorted(found) == [3, 17, 29]
    for number, colour in found.items():
        np.testing.assert_allclose(colour, 8 * number, atol=3)
    assert read_numbered(path, {40}, lambda rgb: rgb) == ({}, "")


def test_frames_before_the_first_are_the_first() -> None:
    assert Shape(4, 3, 16, 8).numbers(20) == [11, 14, 17, 20]
    assert Shape(4, 3, 16, 8).numbers(4) == [0, 0, 1, 4]
    assert Shape(1, 3, 16, 16).numbers(4) == [4]


def test_tokens_are_those_of_each_frame_at_its_size(own: Study, built_in: Path) -> None:
    tokenizer, index = open_tokenizer(next(own.data_dir.glob("*/")))
    shape, videos = Shape(3, 2, 16, 8), read_folder(built_in)
    folder, layout = encode(own.anticipated_dir, videos, shape, tokenizer, index, quiet)
    assert layout == Layout(2, (2, 2), (4, 4)) and layout.tokens == 24
    codes = open_tokens(folder)["train"]
    assert codes.shape == (52, 24)
    name, last = videos.places["train"][50]
    assert last == 7
    found, _ = read_numbered(videos.root / name, {3, 5, 7}, lambda rgb: rgb)
    sizes = {3: 8, 5: 8, 7: 16}
    from scaling.data import media

    expected = [
        tokenizer.encode(media.resize(found[n], px, px)[None])[0] for n, px in sizes.items()
    ]
    np.testing.assert_array_equal(codes[50], np.concatenate(expected))


def test_a_study_anticipates(own: Study, built_in: Path) -> None:
    """Trained and random weights, two seeds, the last frame alone; nothing is done twice."""
    said: list[str] = []
    for given in (QUICK, QUICK | {"frames": 1}, QUICK | {"next_token_weight": 0.0}):
        out = anticipate(own, built_in, given=given, seeds=2, say=said.append)
    table = pd.read_csv(out)
    assert set(table.weights) == {"trained", "random"} and set(table.seeds) == {2}
    assert (table[table.weights == "random"].macs_total == 0).all()
    whole = table[(table.weights == "trained") & (table.frames == 8)]
    lesses = whole[whole.next_token_weight == 1].less.fillna("").unique().tolist()
    assert lesses == ["", "the last frame alone", "random weights", "no next-token loss"]
    assert whole[whole.less.isna() & (whole.next_token_weight == 1)].shape[0] == 8
    assert set(table.criterion) == set(CRITERIA) and set(table.k) == {5, 1}
    assert (table.low <= table.percent).all() and (table.percent <= table.high).all()
    assert ((table.high - table.low) > 0).all()  # also where nothing was found
    alone = table[table.frames == 1]
    assert alone.fast_px.isna().all() and set(alone.tokens) == {16}
    before, count = out.read_bytes(), len(list(own.anticipated_dir.glob("*.json")))
    assert anticipate(own, built_in, given=QUICK, seeds=2, say=said.append) == out
    assert (out.read_bytes(), len(list(own.anticipated_dir.glob("*.json")))) == (before, count)
    text = "\n".join(said)
    assert "from trained weights, 8 frames (16 px, before it 8 px): noun " in text
    assert "of 6 frames, 0 of them without a prediction; plain: noun" in text
    assert "  less the last frame alone: noun " in text


def reader_of(
    own: Study, built_in: Path, saved: Path, stop: Event | None = None, most: int = 52, **given: Any
) -> tuple[Reader, Split]:
    (trained,) = trained_runs(own)
    tokenizer, index = open_tokenizer(next(own.data_dir.glob("*/")))
    videos = read_folder(built_in)
    tuning = checked(Anticipation, **(QUICK | given))
    folder, layout = encode(
        own.anticipated_dir, videos, Shape(2, 1, 16, 8), tokenizer, index, quiet
    )
    few = replace(videos.splits["train"], stills=videos.splits["train"].stills[:most])
    split = Split.of(open_tokens(folder)["train"][:most], few)
    made = anticipate_with(trained, "trained", layout, split, tuning, 0, saved, quiet, stop)
    return made, split


class AfterTwo(Event):
    """Set when it is asked a third time."""

    asked = 0

    def is_set(self) -> bool:
        self.asked += 1
        return self.asked > 2


def test_an_interrupted_one_ends_as_an_undisturbed_one(
    own: Study, built_in: Path, tmp_path: Path
) -> None:
    whole, _ = reader_of(own, built_in, tmp_path / "a.pt", steps=5)
    with pytest.raises(KeyboardInterrupt):
        reader_of(own, built_in, tmp_path / "b.pt", AfterTwo(), steps=5)
    again, _ = reader_of(own, built_in, tmp_path / "b.pt", steps=5)
    for part in ("model", "head"):
        ours, theirs = (getattr(one, part).state_dict() for one in (whole, again))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_is_trained_by_which_loss(own: Study, built_in: Path, tmp_path: Path) -> None:
    """Frozen: the head alone. Without the next-token loss: all but the readout of tokens."""
    (trained,) = trained_runs(own)
    start = trained.model("trained").state_dict()
    for given, still in (
        ({"frozen": True}, set(start)),
        ({"next_token_weight": 0.0}, {"head", "norm"}),
        ({}, set()),
    ):
        reader, split = reader_of(own, built_in, tmp_path / "c.pt", **given)
        now = reader.model.state_dict()
        same = {name for name in start if torch.equal(now[name], start[name])}
        # What no loss moves is still subject to weight decay, but where it has no gradient.
        assert same >= still and (bool(same) or not still), (given, same)
        assert ("embed" in same) == bool(given.get("frozen"))
        (tmp_path / "c.pt").unlink(missing_ok=True)
    found, nats = predictions(reader, split, batch=8)
    assert len(found) == 52 and np.isfinite(nats) and all(len(one) for one in found)
    assert all((one.box_N4 >= 0).all() and (one.box_N4 <= 64).all() for one in found)


def test_a_tiny_set_is_learned_by_heart(own: Study, built_in: Path, tmp_path: Path) -> None:
    """The annotated frames of training itself: nouns, verbs and times are found."""
    given: dict[str, Any] = {
        "steps": 100,
        "batch": 3,
        "lr": 3e-3,
        "head_lr": 1e-2,
        "verb_weight": 1.0,
    }
    reader, split = reader_of(own, built_in, tmp_path / "d.pt", most=3, **given)
    found, _ = predictions(reader, split, batch=13)
    truth = [still.objects for still in split.annotations.stills if still.objects is not None]
    assert evaluate(truth, found).values(plain=True)["overall"] > 60


def test_frames_of_a_video_are_drawn_together(built_in: Path) -> None:
    train, val = (resamples(read_annotations(built_in / SPLITS[s])) for s in ("train", "val"))
    assert (train[:, :50] == train[:, :1]).all() and (train.sum(1) % 2 == 0).all()
    assert (val.sum(1) == 6).all() and val.std(0).min() > 0.5


def changed(built_in: Path, to: Path, **changes: Any) -> Path:
    """The built-in folder with values of its validation file replaced."""
    shutil.copytree(built_in, to, dirs_exist_ok=True)
    given = json.loads((to / SPLITS["val"]).read_text())
    (to / SPLITS["val"]).write_text(json.dumps(given | changes))
    return to


def test_the_test_split_gets_a_submission(own: Study, built_in: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(built_in, tmp_path / "data"))
    given = json.loads((data / SPLITS["val"]).read_text())
    for one in given["annotations"]:
        one["video_id"] = one.pop("video_uid")
        del one["objects"]
    (data / TEST).write_text(json.dumps(given))
    said: list[str] = []
    anticipate(own, data, given=QUICK | {"frames": 1}, say=said.append)
    paths = sorted(own.anticipated_dir.glob("*-test.json"))
    assert len(paths) == 2 and any(str(paths[0]) in line for line in said)
    held = json.loads(paths[0].read_text())
    assert set(held["results"]) == {one["uid"] for one in given["annotations"]}


def test_mistakes_are_messages(own: Study, built_in: Path, tmp_path: Path) -> None:
    def refused(told: str, data: Path | None = built_in, **given: Any) -> None:
        with pytest.raises(UserError, match=told):
            anticipate(own, data, given=QUICK | given, say=quiet)

    refused("no such folder", tmp_path / "none")
    refused("has no fho_sta_train.json and no fho_sta_val.json", tmp_path)
    refused("18 px are no multiple of the tokenizer's 4 px", px=18)
    refused("next_token_weight 1 of a frozen model", frozen=True, next_token_weight=1.0)
    refused("steps", steps=0)
    lost = Path(shutil.copytree(built_in, tmp_path / "lost"))
    (lost / "clips/val-0003.mp4").unlink()
    refused(r"1 annotated videos are not there: val-0003 \(1 frames\)", lost)
    short = Path(shutil.copytree(built_in, tmp_path / "short"))
    write_clip(short / "clips/val-0003.mp4", np.zeros((1, 64, 64, 3), np.uint8))
    refused(r"clips/val-0003.mp4: frames 1, 2, 3, 4, 5 ... are asked for and cannot be read", short)
    turned = Path(shutil.copytree(built_in, tmp_path / "turned"))
    write_clip(turned / "clips/val-0002.mp4", np.zeros((8, 64, 96, 3), np.uint8))
    refused("val-0002.mp4: shows 96 x 64 px, where its annotations are of 64 x 64", turned)
    nouns = [{"id": 0, "name": "cup"}]
    other = changed(built_in, tmp_path / "other", noun_categories=nouns)
    refused(
        "val.json, annotation 0|is .*: want a whole number, one of the 1 of noun_categories", other
    )
    given = json.loads((built_in / SPLITS["val"]).read_text())
    for one in given["annotations"]:
        del one["objects"]
    blind = changed(built_in, tmp_path / "blind", annotations=given["annotations"])
    refused("have no `objects`, as the challenge's test split", blind)
    named = [{"id": i, "name": f"thing {i}"} for i in range(len(scenes.NOUNS))]
    named_otherwise = changed(built_in, tmp_path / "named", noun_categories=named)
    refused("other nouns .*a category is the same in all splits", named_otherwise)


def test_one_video_has_no_interval(own: Study, built_in: Path, tmp_path: Path) -> None:
    """Frames of one video are drawn together or not at all."""
    data = Path(shutil.copytree(built_in, tmp_path / "data"))
    shutil.copy(data / SPLITS["train"], data / SPLITS["val"])
    given = json.loads((data / SPLITS["val"]).read_text())
    given["annotations"] = [a for a in given["annotations"] if a["video_uid"] == "train-0000"][:5]
    (data / SPLITS["val"]).write_text(json.dumps(given))
    table = pd.read_csv(anticipate(own, data, given=QUICK | {"frames": 1}, say=quiet))
    assert table.percent.notna().all() and table.low.isna().all() and table.high.isna().all()
    assert pd.read_csv(gather(own)).equals(table)


def test_anyones_predictions_are_measured(built_in: Path, tmp_path: Path) -> None:
    val = read_annotations(built_in / SPLITS["val"])
    right = [still.objects for still in val.stills if still.objects is not None]
    uids = [still.uid for still in val.stills]
    path = tmp_path / "mine.json"
    path.write_text(submission(uids, [*right[:4], objects([]), objects([])]))
    first, second = score(path, built_in / SPLITS["val"])
    assert first.startswith("mine.json: noun 100.0 [")
    assert "of 6 frames, 2 of them without a prediction and left out with their objects" in second
    given = json.loads((built_in / SPLITS["val"]).read_text())
    for one in given["annotations"]:
        del one["objects"]
    (tmp_path / "blind.json").write_text(json.dumps(given))
    with pytest.raises(UserError, match="no frame has `objects`, to which"):
        score(path, tmp_path / "blind.json")


def test_clips_are_written_on_where_it_stopped_and_over_nobody_elses(
    built_in: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(built_in, tmp_path / "own"))
    lost = own / "clips/val-0003.mp4"
    before = lost.read_bytes()
    lost.unlink()
    (own / "settings.json").unlink()
    (own / SPLITS["val"]).unlink()
    scenes.write_scenes(own, count=FEW, say=quiet)
    assert lost.read_bytes() == before
    assert (own / SPLITS["val"]).read_text() == (built_in / SPLITS["val"]).read_text()
    with pytest.raises(UserError, match="holds clips of other settings"):
        scenes.write_scenes(own, count={"train": 12, "val": 4}, say=quiet)
    (tmp_path / "theirs/clips").mkdir(parents=True)
    with pytest.raises(UserError, match="holds clips of other settings"):
        scenes.write_scenes(tmp_path / "theirs", count=FEW, say=quiet)
