"""Labels from folders, tables and archives; and what is not usable, said clearly."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scaling.errors import UserError
from scaling.representations.labelled import Labelled, draw_split, read_labelled, usable


def test_folder_per_class(pictures: Path) -> None:
    data = read_labelled(pictures)
    assert data.classes == ("above", "below", "striped") and data.kind == "images"
    assert [data.names[i].split("/")[0] for i in (0, 12, 24)] == list(data.classes)
    assert np.bincount(data.labels_F).tolist() == [12, 12, 12] and data.split_F is None


def test_a_hidden_folder_is_no_class(pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "own")
    copies = tmp_path / "own" / ".ipynb_checkpoints"
    shutil.copytree(pictures / "above", copies)
    shutil.copytree(pictures / "above", tmp_path / "own" / "above" / copies.name)
    found, given = read_labelled(tmp_path / "own"), read_labelled(pictures)
    assert found.classes == given.classes and found.names == given.names


def test_train_and_val_folders(clips: Path, tmp_path: Path) -> None:
    for part, picked in (("train", (0, 1)), ("val", (2,))):
        for name in ("left", "right"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in picked:
                (folder / f"{i}.mp4").symlink_to(clips / name / f"{i}.mp4")
    data = read_labelled(tmp_path)
    assert data.kind == "video" and len(data.names) == 6
    train, test = draw_split(data, seed=3)
    assert all(data.names[i].startswith("train/") for i in train)
    assert all(data.names[i].startswith("val/") for i in test)


def test_table(pictures: Path) -> None:
    table = pictures / "labels.csv"
    table.write_text("path,label\nabove/0.png,x\nabove/1.png,x\nbelow/0.png,y\nbelow/1.png,y\n")
    try:
        assert read_labelled(table).labels_F.tolist() == [0, 0, 1, 1]
        # A table that is not Kinetics' own does not change what the folder is.
        assert len(read_labelled(pictures).names) == 36
    finally:
        table.unlink()


def test_kinetics_table(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    lines = ["label,youtube_id,time_start,time_end,split"]
    for i, name in enumerate(("left", "left", "right", "right")):
        stem = f"id{i}_{3 * i:06d}_{3 * i + 10:06d}"
        (tmp_path / "videos" / f"{stem}.mp4").symlink_to(clips / name / f"{i}.mp4")
        lines.append(f"{name},id{i},{3 * i},{3 * i + 10},{'train' if i % 2 else 'validate'}")
    (tmp_path / "k400.csv").write_text("\n".join(lines) + "\n")
    data = read_labelled(tmp_path)
    assert data.classes == ("left", "right") and data.split_F is not None
    assert data.split_F.tolist() == ["test", "train", "test", "train"]


def test_archive(tmp_path: Path) -> None:
    path = tmp_path / "some.npz"
    images = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(path, images=images, labels=np.array([1, 0, 1, 0]), class_names=np.array(["b", "a"]))
    data = read_labelled(path)
    assert data.classes == ("a", "b") and data.labels_F.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("seed", range(3))
def test_split_is_by_class_and_by_seed(pictures: Path, seed: int) -> None:
    data = read_labelled(pictures)
    train, test = draw_split(data, seed)
    assert sorted([*train, *test]) == list(range(36))
    assert np.bincount(data.labels_F[test]).tolist() == [3, 3, 3]
    assert (draw_split(data, seed)[1] == test).all()
    assert (draw_split(data, seed + 1)[1] != test).any()


def test_four_seeds_test_every_file_once(pictures: Path) -> None:
    data = read_labelled(pictures)
    for first in (0, 4):
        tested = np.concatenate([draw_split(data, first + i)[1] for i in range(4)])
        assert sorted(tested) == list(range(36))
    assert (draw_split(data, 0)[1] != draw_split(data, 4)[1]).any()
    # Two files of each class: each is learned from one.
    few = data.take(np.array([0, 1, 12, 13, 24, 25]))
    for seed in range(4):
        train, test = draw_split(few, seed)
        assert set(few.labels_F[train]) == {0, 1, 2} and len(test) in (1, 2)


def test_chance_is_the_most_frequent_class(pictures: Path) -> None:
    data = read_labelled(pictures).take(np.r_[0:6, 12:15, 24:25])
    assert data.chance == 0.6
    given = replace(data, split_F=np.array(["test"] * 6 + ["train"] * 3 + ["test"]))
    assert given.chance == 0  # of training that is the second class, which no test file has


def test_key_is_of_contents_and_labels(pictures: Path, tmp_path: Path) -> None:
    data = read_labelled(pictures)
    other = Labelled(
        data.root, data.names, data.labels_F[::-1].copy(), data.classes, None, data.kind
    )
    assert data.key == read_labelled(pictures).key != other.key


def table(folder: Path, text: str) -> Path:
    (folder / "t.csv").write_text(text)
    return folder / "t.csv"


def test_mistakes_are_explained(pictures: Path, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        read_labelled(tmp_path / "absent")
    with pytest.raises(UserError, match="0 labelled files"):
        read_labelled(tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.png").symlink_to(pictures / "above" / "0.png")
    with pytest.raises(UserError, match=r"one class only \(one\)"):
        read_labelled(tmp_path)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "b.mp4").symlink_to(clips / "left" / "0.mp4")
    with pytest.raises(UserError, match="images alone or clips alone"):
        read_labelled(tmp_path)
    with pytest.raises(UserError, match=r"1 of 2 labels have no file: gone.png"):
        read_labelled(table(tmp_path, "path,label\none/a.png,x\ngone.png,y\n"))
    with pytest.raises(UserError, match="columns path,label"):
        read_labelled(table(tmp_path, "file,class\none/a.png,x\n"))
    with pytest.raises(UserError, match="every file is in train or test"):
        read_labelled(table(tmp_path, "path,label,split\none/a.png,x,train\none/a.png,y,\n"))
    with pytest.raises(UserError, match="fewer than two readable files"):
        usable(read_labelled(table(tmp_path, "path,label\none/a.png,x\none/a.png,y\n")), tmp_path)
    np.savez(tmp_path / "bad.npz", images=np.zeros((2, 4)), labels=np.zeros(2))
    with pytest.raises(UserError, match=r"want \(N, H, W, 3\)"):
        read_labelled(tmp_path / "bad.npz")
