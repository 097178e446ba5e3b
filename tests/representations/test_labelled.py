"""Labels from folders, tables and archives; and what is not usable, said clearly."""

import shutil
from collections.abc import Callable
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
    with pytest.raises(UserError, match=r"1 of 2 labels have no file: gone.png: one class"):
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


# -- the layouts of public sets --------------------------------------------------------------------


@pytest.fixture
def lay(clips: Path, tmp_path: Path) -> Callable[..., Path]:
    """Put a clip at each of the given paths, and a text at each of the named ones."""

    def put(*names: str, **texts: str) -> Path:
        for number, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(clips / ("left", "right")[number % 2] / f"{number // 2 % 4}.mp4")
        for name, text in texts.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
        return tmp_path

    return put


def told(data: Labelled) -> list[tuple[str, str, str]]:
    """(stem, class, split) of each file."""
    split = [""] * len(data.names) if data.split_F is None else data.split_F.tolist()
    return sorted(
        (Path(name).stem, data.classes[label], part)
        for name, label, part in zip(data.names, data.labels_F, split, strict=True)
    )


def test_kinetics_as_it_is_unpacked(lay: Callable[..., Path]) -> None:
    """Quotes, a byte order mark, clips that are gone, a test list without labels, both names."""
    head = "label,youtube_id,time_start,time_end,split"
    quoted = ",".join(f'"{name}"' for name in head.split(","))
    root = lay(
        "train/-a_b_000001_000011.mp4", "val/bbb.mp4", "train/ccc_000005_000015.mkv",
        **{
            "annotations/train.csv": f'\ufeff{quoted}\n"air, drumming","-a_b",1,11,"train"\n\n'
            "zumba,ccc,5,15,train\nzumba,gone,1,11,train\n",
            "annotations/validate.csv": f"{head}\r\nzumba,bbb,0,10,validate\r\n",
            "annotations/test.csv": "youtube_id,time_start,time_end,split\nddd,0,10,test\n",
        },
    )  # fmt: skip
    data = read_labelled(root)
    assert told(data) == [
        ("-a_b_000001_000011", "air, drumming", "train"),
        ("bbb", "zumba", "test"),
        ("ccc_000005_000015", "zumba", "train"),
    ]
    assert "Kinetics' annotations/test.csv, annotations/train.csv" in data.about
    assert "1 of 4 labels have no file: gone_000001_000011" in data.about
    assert "1 rows without a label are left out" in data.about
    assert "3 files (2 to learn from), 2 classes" in data.about


def test_ucf_101_and_its_groups(lay: Callable[..., Path]) -> None:
    names = (
        "Bike/v_Bike_g01_c01 Hand/v_HandStand_g01_c01 Bike/v_Bike_g02_c01 "
        "Hand/v_HandStand_g02_c01 Bike/v_Bike_g01_c02 Hand/v_HandStand_g03_c01"
    )
    root = lay(*(f"UCF-101/{name}.mp4" for name in names.split()))
    drawn = read_labelled(root / "UCF-101")
    assert drawn.split_F is None
    for seed in range(8):
        sides = [{Path(drawn.names[i]).stem[:-4] for i in part} for part in draw_split(drawn, seed)]
        assert not sides[0] & sides[1]
    lists = {
        "trainlist01": "Bike/v_Bike_g01_c01.avi 1\r\nHand/v_Handstand_g01_c01.avi 2\r\n"
        "Bike/v_Bike_g01_c02.avi 1\r\n",
        "testlist01": "Bike/v_Bike_g02_c01.avi\nHand/v_HandStand_g02_c01.avi\n"
        "Hand/v_HandStand_g09_c01.avi\n",
        "classInd": "1 Bike\n2 Hand\n",
    }
    lay(**{f"ucfTrainTestlist/{name}.txt": text for name, text in lists.items()})
    data = read_labelled(root)
    assert [split for _, _, split in told(data)] == ["train", "train", "test", "train", "test"]
    assert data.classes == ("Bike", "Hand")
    assert "1 of 6 labels have no file" in data.about and "trainlist01" in data.about


def test_hmdb_51_and_something_something(lay: Callable[..., Path]) -> None:
    root = lay(
        "hmdb/run/a b.mp4", "hmdb/walk/c.mp4", "hmdb/run/d.mp4", "hmdb/walk/e.mp4",
        "ssv2/videos/11.webm", "ssv2/videos/22.webm", "ssv2/videos/33.webm",
        **{
            "hmdb/testTrainMulti_7030_splits/run_test_split1.txt": "a b.avi 1 \nd.avi 2 \n",
            "hmdb/testTrainMulti_7030_splits/walk_test_split1.txt": "c.avi 1 \ne.avi 0 \n",
            "ssv2/labels/train.json": '[{"id": 11, "template": "Putting [something] on [a table]"}'
            ',{"id": "22", "template": "Closing [something]"}]',
            "ssv2/labels/validation.json": '[{"id": "33", "template": "Closing [something]"},'
            '{"id": "44", "template": "Closing [something]"}]',
            "ssv2/labels/test.json": '[{"id": "55"}]',
            "ssv2/labels/labels.json": '{"Closing something": "0"}',
        },
    )  # fmt: skip
    assert told(read_labelled(root / "hmdb")) == [
        ("a b", "run", "train"), ("c", "walk", "train"), ("d", "run", "test"),
    ]  # fmt: skip
    data = read_labelled(root / "ssv2")
    assert told(data) == [
        ("11", "Putting something on a table", "train"),
        ("22", "Closing something", "train"),
        ("33", "Closing something", "test"),
    ]
    assert "1 of 4 labels have no file: 44" in data.about


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "valid"), {"train", "test"}),
        (("Train", "Test", "valid"), {"train", "test"}),
        (("train", "val", "annotations"), {"train", "test"}),
        (("train",), {""}),  # drawn
    ],
)
def test_names_of_splits_are_no_classes(
    lay: Callable[..., Path], folders: tuple[str, ...], splits: set[str]
) -> None:
    parts = [folder for folder in folders if folder != "annotations"]
    clips_there = [f"{part}/{name}/{i}.mp4" for part in parts for i in (0, 1) for name in "xy"]
    others = ("README.txt", "train/_a.txt", f"{folders[-1]}/.cache/z.mp4", "__MACOSX/a.mp4")
    data = read_labelled(lay(*clips_there, **dict.fromkeys(others, "")))
    assert data.classes == ("x", "y") and len(data.names) == 4 * len(parts)
    assert {split for _, _, split in told(data)} == splits
    assert ("folders beside the splits are left out: annotations" in data.about) == (
        "annotations" in folders
    )


def test_split_folders_without_classes_are_refused(lay: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"train/ has 2 files and no folder per class.*0 labelled"):
        read_labelled(lay("train/a.mp4", "train/b.mp4"))


def test_tables_as_spreadsheets_write_them(lay: Callable[..., Path]) -> None:
    lines = ["\ufeffPath; Label ;split", '"a 1.mp4"; "x" ;Train', ";;", " b.mp4;y;training",
             "c.mp4;x;valid", "gone.mp4;x;valid", ""]  # fmt: skip
    root = lay("a 1.mp4", "b.mp4", "c.mp4", **{"t.csv": "\r\n".join(lines)})
    data = read_labelled(root / "t.csv")
    assert told(data) == [("a 1", "x", "train"), ("b", "y", "train"), ("c", "x", "test")]
    assert "1 of 4 labels have no file: gone.mp4" in data.about


def test_cases(shared_data: Path) -> None:
    cases = shared_data.parent / "cases" / "labels"
    kinetics = read_labelled(cases / "k_cvdf")
    assert kinetics.classes == ("abseiling", "zumba") and kinetics.split_F is not None
    assert sorted(kinetics.split_F) == ["test", "test", "train", "train"]
    valid = read_labelled(cases / "sp_train_valid")
    assert valid.classes == ("x", "y") and valid.split_F is not None
    assert sorted(valid.split_F) == ["test"] * 4 + ["train"] * 4
    missing = read_labelled(cases / "k_missing")
    assert len(missing.names) == 4 and "1 of 5 labels have no file: 9aBcDeFgHi1" in missing.about
