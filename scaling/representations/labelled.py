"""Labelled images and clips: which file has which label, and their tokens.

Layouts: a folder per class; train/ and val/ (or test/) with a folder per class, as Kinetics is
unpacked; a CSV with columns path,label and perhaps split; Kinetics' own CSVs (label, youtube_id,
time_start, time_end, split) beside its clips; CATER's videos/ with lists/localize/*.txt, whose
lines name a video and the cell of the snitch; an .npz with `images` (N, H, W, 3) and `labels`.
"""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaling.data import media
from scaling.errors import UserError
from scaling.storage import files

SPLITS = {"train": "train", "val": "test", "validate": "test", "validation": "test", "test": "test"}
FOLDS = 4  # of files whose split is drawn
MOST_NAMED = 5  # files named in a message


@dataclass(frozen=True)
class Labelled:
    """Files with labels. `images` holds the pictures of an .npz, in place of files."""

    root: Path
    names: tuple[str, ...]  # paths relative to root, or row numbers of an .npz
    labels_F: np.ndarray  # int64, place in `classes`
    classes: tuple[str, ...]
    split_F: np.ndarray | None  # "train" | "test"; None: to be drawn
    kind: str  # "images" | "video"
    images: np.ndarray | None = None  # uint8 (F, H, W, 3)

    @property
    def key(self) -> str:
        """A hash of contents, labels and split, not of where the files lie."""
        digest = hashlib.sha256(json.dumps([self.classes, self.labels_F.tolist()]).encode())
        digest.update(b"" if self.split_F is None else "|".join(self.split_F).encode())
        if self.images is not None:
            digest.update(self.images.tobytes())
        else:
            for name in self.names:
                digest.update(f"\0{name}\0{media.fingerprint(self.root / name)}".encode())
        return digest.hexdigest()[:16]

    @property
    def chance(self) -> float:
        """Accuracy of always naming the most frequent class: of training, on the given test files.

        Where the split is drawn, of all files: a quarter that has few of a class leaves many of it
        for training, so split by split this would come out too low.
        """
        train_F = self.labels_F if self.split_F is None else self.labels_F[self.split_F == "train"]
        test_F = self.labels_F if self.split_F is None else self.labels_F[self.split_F == "test"]
        return float((test_F == np.bincount(train_F).argmax()).mean())

    def take(self, keep: np.ndarray) -> Labelled:
        """Only the files at the given places."""
        return Labelled(
            self.root,
            tuple(self.names[i] for i in keep),
            self.labels_F[keep],
            self.classes,
            None if self.split_F is None else self.split_F[keep],
            self.kind,
            None if self.images is None else self.images[keep],
        )


def read_labelled(path: Path) -> Labelled:
    """The labelled files of a folder, a CSV or an .npz.

    Raises UserError: nothing there, fewer than two classes, labels without files, images and clips
    together.
    """
    path = path.expanduser()
    if not path.exists():
        raise UserError(
            f"{path}: no such file or folder; give labelled images or clips with --data"
        )
    if path.suffix == ".npz":
        return _from_npz(path)
    if path.is_file():
        return _checked(path.parent, _from_csv(path), path)
    cater = files.whole(path, "lists/localize/*.txt")
    tables = files.whole(path, "*.csv")
    folders = [p for p in files.whole(path, "*") if p.is_dir()]
    if cater:
        entries = [e for text in cater for e in _from_cater(text)]
    elif tables and any(_kinetics(t) for t in tables):
        entries = [e for t in tables if _kinetics(t) for e in _from_kinetics(t, path)]
    elif folders and {f.name for f in folders} <= set(SPLITS):
        entries = [
            (f"{part.name}/{relative}", label, SPLITS[part.name])
            for part in folders
            for relative, label, _ in _from_folders(part)
        ]
    else:
        entries = _from_folders(path)
    return _checked(path, entries, path)


Entry = tuple[str, str, str]  # relative path, label, split ("" where none is given)


def _from_folders(root: Path) -> list[Entry]:
    known = media.VIDEO_SUFFIXES | media.IMAGE_SUFFIXES
    found = []
    for folder in (p for p in files.whole(root, "*") if p.is_dir()):
        names, _ = media.list_files(folder, known)
        found += [(f"{folder.name}/{name}", folder.name, "") for name in names]
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV table ({error})") from None


def _from_csv(path: Path) -> list[Entry]:
    rows = _rows(path)
    if not rows or not {"path", "label"} <= set(rows[0]):
        raise UserError(
            f"{path}: want a header with the columns path,label (and perhaps split: train or "
            f"test); it has {', '.join(rows[0]) if rows else 'no row'}"
        )
    return [
        (row["path"], row["label"], SPLITS.get(row.get("split") or "", row.get("split") or ""))
        for row in rows
    ]


def _kinetics(path: Path) -> bool:
    with path.open(errors="replace") as file:
        return {"label", "youtube_id", "time_start"} <= set(file.readline().strip().split(","))


def _from_kinetics(path: Path, root: Path) -> list[Entry]:
    """Clips named <youtube_id>_<start, 6 digits>_<end>.*, anywhere under the folder."""
    there = {Path(name).stem: name for name in media.list_files(root, media.VIDEO_SUFFIXES)[0]}
    entries = []
    for row in _rows(path):
        start, end = int(float(row["time_start"])), int(float(row["time_end"]))
        stem = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        entries.append((there.get(stem, f"{stem}.mp4"), row["label"], SPLITS.get(row["split"], "")))
    return entries


def _from_cater(path: Path) -> list[Entry]:
    split = SPLITS.get(path.stem, "")
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    wrong = [" ".join(line) for line in lines if len(line) != 2]
    if wrong:
        raise UserError(f"{path}: want lines of a video and a cell, found {wrong[0]!r}")
    return [(f"videos/{name}", label, split) for name, label in lines]


def _checked(root: Path, entries: list[Entry], path: Path) -> Labelled:
    missing = [name for name, _, _ in entries if not (root / name).is_file()]
    if missing:
        shown = ", ".join(missing[:MOST_NAMED])
        raise UserError(
            f"{path}: {len(missing)} of {len(entries)} labels have no file: {shown}"
            f"{' ...' if len(missing) > MOST_NAMED else ''}. Paths are relative to {root}; put the "
            f"files there or take their lines out"
        )
    suffixes = {Path(name).suffix.lower() for name, _, _ in entries}
    kind = "images" if suffixes <= media.IMAGE_SUFFIXES else "video"
    if not entries or not (suffixes <= media.IMAGE_SUFFIXES or suffixes <= media.VIDEO_SUFFIXES):
        raise UserError(
            f"{path}: {len(entries)} labelled files with the suffixes "
            f"{', '.join(sorted(suffixes)) or '(none)'}: want images alone or clips alone, in a "
            f"folder per class or listed in a CSV with columns path,label"
        )
    splits = {split for _, _, split in entries}
    if splits - {""} and splits != {"train", "test"}:
        raise UserError(
            f"{path}: splits {', '.join(sorted(s or '(none)' for s in splits))}: every file is in "
            f"train or test, and both have files; or leave the split out and it is drawn"
        )
    return _labelled(
        path,
        root,
        tuple(name for name, _, _ in entries),
        [label for _, label, _ in entries],
        np.array([split for _, _, split in entries]) if splits == {"train", "test"} else None,
        kind,
    )


def _from_npz(path: Path) -> Labelled:
    try:
        with np.load(path, allow_pickle=False) as held:
            images, labels = held["images"], held["labels"]
            names = held.get("class_names")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: want arrays `images` and `labels` ({error})") from None
    if images.ndim != 4 or images.shape[-1] != 3 or len(images) != len(labels):
        raise UserError(
            f"{path}: images {images.shape}, labels {labels.shape}: want (N, H, W, 3) and (N,)"
        )
    text = [str(label if names is None else names[label]) for label in labels.tolist()]
    rows = tuple(str(i) for i in range(len(images)))
    return _labelled(path, path.parent, rows, text, None, "images", images)


def _labelled(
    path: Path,
    root: Path,
    names: tuple[str, ...],
    labels: list[str],
    split_F: np.ndarray | None,
    kind: str,
    images: np.ndarray | None = None,
) -> Labelled:
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise UserError(
            f"{path}: one class only ({classes[0]}); telling classes apart needs at least two"
        )
    place = {name: i for i, name in enumerate(classes)}
    labels_F = np.array([place[label] for label in labels], np.int64)
    return Labelled(root, names, labels_F, classes, split_F, kind, images)


def usable(data: Labelled, path: Path) -> None:
    """Raises UserError unless every class can be both learned and tested."""
    if data.split_F is not None:
        learned = set(data.labels_F[data.split_F == "train"].tolist())
        unseen = sorted(set(data.labels_F.tolist()) - learned)
        if unseen:
            names = ", ".join(data.classes[c] for c in unseen[:MOST_NAMED])
            raise UserError(f"{path}: classes without a training file: {names}")
        return
    count = np.bincount(data.labels_F, minlength=len(data.classes))
    if count.min() < 2:
        few = ", ".join(data.classes[c] for c in np.flatnonzero(count < 2)[:MOST_NAMED])
        raise UserError(
            f"{path}: {int((count < 2).sum())} of {len(data.classes)} classes have fewer than two "
            f"readable files ({few}), and files are split into training and test. Add files, or "
            f"take these classes out"
        )


def draw_split(data: Labelled, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the training and of the test files: the given split, or one drawn by class.

    Drawn: seeds 0 to 3 test the four quarters of one shuffle, 4 to 7 those of the next, so four
    seeds test every file once. A file, with all its clips and crops, is on one side.
    """
    if data.split_F is not None:
        return np.flatnonzero(data.split_F == "train"), np.flatnonzero(data.split_F == "test")
    rng = np.random.default_rng([seed // FOLDS, 0x5B117])
    by_class = [
        rng.permutation(np.flatnonzero(data.labels_F == c)) for c in range(len(data.classes))
    ]
    fold_F = np.empty(len(data.names), np.int64)
    fold_F[np.concatenate(by_class)] = np.arange(len(data.names)) % FOLDS
    return np.flatnonzero(fold_F != seed % FOLDS), np.flatnonzero(fold_F == seed % FOLDS)
