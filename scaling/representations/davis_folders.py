"""DAVIS's folders: which sequences, at which size, and what that may be compared with.

JPEGImages/RESOLUTION/SEQUENCE/00000.jpg ...   480p, Full-Resolution, 1080p
Annotations/RESOLUTION/SEQUENCE/00000.png ...
ImageSets/YEAR/SPLIT.txt                        2016, 2017, 480p: train, val, trainval
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path

from scaling.errors import UserError
from scaling.storage import files

USUAL = "480p"  # what published figures are measured at
LISTS = ("2017", "2016", USUAL)  # folders of ImageSets, the first that is there


@dataclass(frozen=True)
class Sequence:
    """The frames of a sequence and the mask of each, in order."""

    frames: list[Path]
    masks: list[Path]

    @property
    def key(self) -> str:
        """Of the names and sizes of all files, and of what the first mask holds."""
        parts = [f"{p.name} {p.stat().st_size}" for p in (*self.frames, *self.masks)]
        digest = hashlib.sha256("\n".join(parts).encode())
        digest.update(self.masks[0].read_bytes())
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Davis:
    """sequences: by name. split: of ImageSets, or "all". resolutions: their folders."""

    sequences: dict[str, Sequence]
    split: str
    resolutions: list[str]
    told: str  # what was taken, and what that leaves out

    @property
    def named(self) -> str:
        """`val, 480p`: what a mean over these is a mean of."""
        return f"{self.split}, {' and '.join(self.resolutions)}"


def find_sequences(data: Path, split: str | None = None, resolution: str | None = None) -> Davis:
    """The sequences of a split, each at one size.

    Args:
        split: a list of ImageSets, "trainval" (both), or "all". Default: val where there are
            lists (published figures are its means), else all.
        resolution: a folder of JPEGImages. Default: a sequence's 480p, else the only one.
    Raises:
        UserError: not DAVIS's layout; no such list or size; a sequence that two sizes hold, none of
            them 480p; fewer than three frames; a frame without its mask.
    """
    images, masks = data / "JPEGImages", data / "Annotations"
    folders = [p for p in files.whole(images, "*/*") if p.is_dir()]
    if not folders or not masks.is_dir():
        raise UserError(
            f"{data}: not DAVIS's layout; want JPEGImages/480p/SEQUENCE/00000.jpg and "
            f"Annotations/480p/SEQUENCE/00000.png"
        )
    there = sorted({folder.parent.name for folder in folders})
    if resolution is not None and resolution not in there:
        raise UserError(f"resolution '{resolution}': {images} holds {', '.join(there)}")
    names, split, listed = _listed(data, split)
    chosen: dict[str, Path] = {}
    for name in sorted({folder.name for folder in folders}) if names is None else names:
        at = [f for f in folders if f.name == name and resolution in (None, f.parent.name)]
        usual = [f for f in at if f.parent.name == USUAL]
        if len(at) > 1 and not usual:
            sizes = ", ".join(f.parent.name for f in at)
            raise UserError(
                f"{images}: {name} in {sizes}; choose one: --resolution {at[0].parent.name}"
            )
        if at:
            chosen[name] = (usual or at)[0]
    if not chosen:
        raise UserError(f"{images}: none of the {len(names or ())} sequences of {listed}")
    missing = [name for name in names or () if name not in chosen]
    found = {name: _sequence(folder, masks) for name, folder in chosen.items()}
    taken = sorted({folder.parent.name for folder in chosen.values()})
    told = f"{len(found)} sequences of {split} ({listed}) at {' and '.join(taken)}"
    if others := [name for name in there if name not in taken]:
        told += f", not at {', '.join(others)}"
    if missing:
        told += (
            f"; {len(missing)} of the list are not there ({', '.join(missing[:5])}"
            f"{' ...' * (len(missing) > 5)}), so that the mean is not the published one's"
        )
    return Davis(found, split, taken, told)


def _listed(data: Path, split: str | None) -> tuple[list[str] | None, str, str]:
    """Names of a split (None: all that are there), the split, and where that is said."""
    lists = next((p for y in LISTS if (p := data / "ImageSets" / y).is_dir()), None)
    if split == "all" or (split is None and lists is None):
        return None, "all", "of every list" if lists else "there is no ImageSets/"
    if lists is None:
        raise UserError(f"split '{split}': {data} has no ImageSets/ with lists; use all")
    split = split or "val"
    paths = [lists / f"{split}.txt"]
    if split == "trainval" and not paths[0].is_file():
        paths = [lists / "train.txt", lists / "val.txt"]
    if not all(path.is_file() for path in paths):
        stems = [*sorted(p.stem for p in files.whole(lists, "*.txt")), "all"]
        near = difflib.get_close_matches(split, stems, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"split '{split}': {lists} has {', '.join(stems)}{hint}")
    lines = [line for path in paths for line in path.read_text().splitlines() if line.strip()]
    # A line is a name (2017), or a frame's path and its mask's (2016).
    names = [Path(line.split()[0]).parent.name or line.split()[0] for line in lines]
    where = " and ".join(str(path.relative_to(data)) for path in paths)
    return list(dict.fromkeys(names)), split, where


def _sequence(folder: Path, masks: Path) -> Sequence:
    frames = files.whole(folder, "*.jpg")
    marks = [masks / folder.parent.name / folder.name / f"{f.stem}.png" for f in frames]
    missing = [m for m in marks if not m.is_file()]
    if missing or len(frames) < 3:
        why = f"no mask {missing[0]}" if missing else "fewer than three frames"
        raise UserError(f"{folder}: {len(frames)} frames, {why}; take the sequence out or mend it")
    return Sequence(frames, marks)
