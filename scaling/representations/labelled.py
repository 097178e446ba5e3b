"""Labelled images and clips: which file has which label, and how they are split.

Which layouts are read is told in `representations.layouts`; beside them an .npz with `images`
(N, H, W, 3) and `labels`.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scaling.data import media
from scaling.errors import UserError
from scaling.representations import layouts

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
    about: str = ""  # the layout that was taken, and what its lists name that is not there

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
            self.about,
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
    found = layouts.of_csv(path) if path.is_file() else layouts.of_folder(path)
    return _checked(path if path.is_dir() else path.parent, found, path)


def _checked(root: Path, found: layouts.Found, path: Path) -> Labelled:
    entries, lacking = found.entries, ""
    if found.missing:
        shown = ", ".join(found.missing[:MOST_NAMED])
        listed = len(entries) + len(found.missing)
        lacking = (
            f"{len(found.missing):,} of {listed:,} labels have no file: {shown}"
            f"{' ...' if len(found.missing) > MOST_NAMED else ''}"
        )
        if not entries:
            raise UserError(f"{path}: {lacking}. Files are looked for below {root}; put them there")
    about = "; ".join([f"{path}: {found.layout}", *found.notes, *([lacking] if lacking else [])])
    suffixes = {Path(name).suffix.lower() for name, _, _ in entries}
    kind = "images" if suffixes <= media.IMAGE_SUFFIXES else "video"
    if not entries or not (suffixes <= media.IMAGE_SUFFIXES or suffixes <= media.VIDEO_SUFFIXES):
        raise UserError(
            f"{about}: {len(entries)} labelled files with the suffixes "
            f"{', '.join(sorted(suffixes)) or '(none)'}: want images alone or clips alone, in a "
            f"folder per class or listed in a CSV with columns path,label"
        )
    splits = {split for _, _, split in entries}
    if splits - {""} and splits != {"train", "test"}:
        raise UserError(
            f"{about}: splits {', '.join(sorted(s or '(none)' for s in splits))}: every file is in "
            f"train or test, and both have files; or leave the split out and it is drawn"
        )
    return _labelled(
        path,
        root,
        tuple(name for name, _, _ in entries),
        [label for _, label, _ in entries],
        np.array([split for _, _, split in entries]) if splits == {"train", "test"} else None,
        kind,
        about=about,
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
    about: str = "",
) -> Labelled:
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise UserError(
            f"{about or path}: one class only ({classes[0]}); telling classes apart needs at least "
            f"two"
        )
    place = {name: i for i, name in enumerate(classes)}
    labels_F = np.array([place[label] for label in labels], np.int64)
    counts = "" if split_F is None else f" ({(split_F == 'train').sum():,} to learn from)"
    about += f"; {len(names):,} files{counts}, {len(classes):,} classes" if about else ""
    return Labelled(root, names, labels_F, classes, split_F, kind, images, about)


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
    seeds test every file once. A file, with all its clips and crops, is on one side, and so are all
    files of one group: those cut from one video, as UCF-101's names say (v_CLASS_g01_c03).
    """
    if data.split_F is not None:
        return np.flatnonzero(data.split_F == "train"), np.flatnonzero(data.split_F == "test")
    rng = np.random.default_rng([seed // FOLDS, 0x5B117])
    groups = [
        re.sub(r"(_g\d+)_c\d+$", r"\1", str(Path(name).with_suffix(""))) for name in data.names
    ]
    _, first_G, group_F = np.unique(groups, return_index=True, return_inverse=True)
    # In the order of the files; a group is of the class of its first.
    order = np.argsort(first_G)
    label_G, number = data.labels_F[first_G[order]], np.argsort(order)
    by_class = [rng.permutation(np.flatnonzero(label_G == c)) for c in range(len(data.classes))]
    fold_G = np.empty(len(order), np.int64)
    fold_G[np.concatenate(by_class)] = np.arange(len(order)) % FOLDS
    fold_F = fold_G[number[group_F]]
    return np.flatnonzero(fold_F != seed % FOLDS), np.flatnonzero(fold_F == seed % FOLDS)
