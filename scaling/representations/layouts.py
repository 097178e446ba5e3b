"""Which file has which label: the layouts in which labelled images and clips are handed round.

A folder per class; folders train, val, valid, test ... with one per class in each (ImageFolder,
Roboflow's export); Kinetics' CSVs beside its clips or in annotations/; UCF-101's and HMDB-51's
official lists; Something-Something's JSON; CATER's videos/ with lists/localize/*.txt; a CSV with
columns path,label and perhaps split. Names of splits are never classes; hidden folders are nothing.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from scaling.data import media
from scaling.errors import UserError
from scaling.storage import files

SPLITS = {
    "train": "train", "training": "train", "val": "test", "valid": "test", "validate": "test",
    "validation": "test", "test": "test", "testing": "test", "eval": "test", "dev": "test",
}  # fmt: skip
KNOWN = media.VIDEO_SUFFIXES | media.IMAGE_SUFFIXES
Entry = tuple[str, str, str]  # relative path, label, split ("" where none is given)


@dataclass
class Found:
    """The entries of a layout; what lists name and the folder lacks is in `missing`."""

    layout: str
    entries: list[Entry] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def of_folder(root: Path) -> Found:
    """The labelled files of a folder, by the first layout that it has."""
    for layout in (_cater, _kinetics, _ucf, _hmdb, _something, _splits):
        if found := layout(root):
            return found
    return Found("a folder per class", _classes(root))


def of_csv(path: Path) -> Found:
    """The rows of a CSV with the columns path,label and perhaps split."""
    rows = _rows(path)
    if _is_kinetics(path):
        return _of_kinetics([path], path.parent)
    if not rows or not {"path", "label"} <= set(rows[0]):
        raise UserError(
            f"{path}: want a header with the columns path,label (and perhaps split: train or "
            f"test); it has {', '.join(rows[0]) if rows else 'no row'}"
        )
    found = Found(f"{path.name}: path,label")
    for row in rows:
        split = row.get("split", "").lower()
        entry = (row["path"], row["label"], SPLITS.get(split, split))
        if (path.parent / row["path"]).is_file():
            found.entries.append(entry)
        else:
            found.missing.append(row["path"])
    return found


def _folders(root: Path) -> list[Path]:
    return [p for p in files.whole(root, "*") if p.is_dir() and p.name != "__MACOSX"]


def _classes(root: Path, before: str = "", split: str = "") -> list[Entry]:
    found = []
    for folder in _folders(root):
        names, _ = media.list_files(folder, KNOWN)
        found += [(f"{before}{folder.name}/{name}", folder.name, split) for name in names]
    return found


def _splits(root: Path) -> Found | None:
    folders = _folders(root)
    parts = [folder for folder in folders if folder.name.lower() in SPLITS]
    if not parts:
        return None
    found = Found(f"{', '.join(part.name for part in parts)} with a folder per class in each")
    several = len({SPLITS[part.name.lower()] for part in parts}) > 1
    for part in parts:
        split = SPLITS[part.name.lower()] if several else ""
        inside = _classes(part, f"{part.name}/", split)
        if not inside and (flat := media.list_files(part, KNOWN)[0]):
            found.notes.append(f"{part.name}/ has {len(flat)} files and no folder per class")
        found.entries += inside
    others = [folder.name for folder in folders if folder not in parts]
    if others:
        found.notes.append(f"folders beside the splits are left out: {', '.join(others[:5])}")
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    """Rows by column, names lower-cased and both stripped; a byte order mark is no letter."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            separator = max(",;\t", key=head.count)
            file.seek(0)
            reader = csv.DictReader(file, delimiter=separator, skipinitialspace=True)
            return [
                {
                    str(name).strip().lower(): (value or "").strip()
                    for name, value in row.items()
                    if name is not None and not isinstance(value, list)
                }
                for row in reader
                if any(isinstance(value, str) and value.strip() for value in row.values())
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV table ({error})") from None


def _by_stem(root: Path) -> dict[str, str]:
    """Stem of each file, in lower case, to its path: lists and files differ in case and suffix."""
    return {Path(name).stem.lower(): name for name in media.list_files(root, KNOWN)[0]}


def _near(root: Path, pattern: str) -> list[Path]:
    """Files that match in a folder and in those in it."""
    return files.whole(root, pattern) + files.whole(root, f"*/{pattern}")


# -- public sets -----------------------------------------------------------------------------------


def _kinetics(root: Path) -> Found | None:
    tables = [table for table in _near(root, "*.csv") if _is_kinetics(table)]
    return _of_kinetics(tables, root) if tables else None


def _is_kinetics(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        head = file.readline().replace('"', "").lower()
    return {name.strip() for name in head.split(",")} >= {"youtube_id", "time_start", "time_end"}


def _of_kinetics(tables: list[Path], root: Path) -> Found:
    """Clips named <youtube_id>_<start, 6 digits>_<end>.* or <youtube_id>.*, anywhere below."""
    found = Found(f"Kinetics' {', '.join(t.relative_to(root).as_posix() for t in tables)}")
    there = {Path(name).stem: name for name in media.list_files(root, KNOWN)[0]}
    unlabelled = 0
    for table in tables:
        of_table = SPLITS.get(re.split(r"[-_.]", table.stem.lower())[-1], "")
        for row in _rows(table):
            if not row.get("label"):
                unlabelled += 1
                continue
            try:
                start, end = int(float(row["time_start"])), int(float(row["time_end"]))
            except ValueError:
                raise UserError(
                    f"{table}: time_start {row['time_start']!r}, time_end {row['time_end']!r} of "
                    f"{row['youtube_id']} are no seconds"
                ) from None
            stem = f"{row['youtube_id']}_{start:06d}_{end:06d}"
            name = there.get(stem) or there.get(row["youtube_id"])
            if name is None:
                found.missing.append(stem)
            else:
                split = SPLITS.get(row.get("split", "").lower(), of_table)
                found.entries.append((name, row["label"], split))
    if unlabelled:
        found.notes.append(f"{unlabelled} rows without a label are left out")
    return found


def _ucf(root: Path) -> Found | None:
    """trainlist01.txt and testlist01.txt: lines of CLASS/v_CLASS_gNN_cNN.avi, perhaps a number."""
    lists = {p.name.lower(): p for p in _near(root, "*list0*.txt")}
    chosen = [(lists.get("trainlist01.txt"), "train"), (lists.get("testlist01.txt"), "test")]
    if not all(path for path, _ in chosen):
        return None
    found, there = Found("UCF-101's trainlist01 and testlist01"), _by_stem(root)
    for path, split in chosen:
        assert path is not None
        for line in path.read_text("utf-8-sig").splitlines():
            if line.strip():
                listed = line.split()[0]
                name = there.get(Path(listed).stem.lower())
                if name is None:
                    found.missing.append(listed)
                else:
                    found.entries.append((name, listed.split("/")[0], split))
    return found


def _hmdb(root: Path) -> Found | None:
    """CLASS_test_split1.txt: lines of a file and 1 (train), 2 (test) or 0 (neither)."""
    lists = _near(root, "*_test_split1.txt")
    if not lists:
        return None
    found, there = Found("HMDB-51's split 1"), _by_stem(root)
    for path in lists:
        label = path.name[: -len("_test_split1.txt")]
        for line in path.read_text("utf-8-sig").splitlines():
            listed, _, number = line.strip().rpartition(" ")
            if number not in ("1", "2"):
                continue
            name = there.get(Path(listed.strip()).stem.lower())
            if name is None:
                found.missing.append(listed.strip())
            else:
                found.entries.append((name, label, "train" if number == "1" else "test"))
    return found


def _something(root: Path) -> Found | None:
    """Something-Something: JSON lists of {id, template}; a class is a template without brackets."""
    chosen = []
    for path in _near(root, "*.json"):
        part = next((w for w in re.split(r"[-_.]", path.stem.lower()) if w in SPLITS), None)
        if part is not None and '"template"' in path.read_text("utf-8-sig", errors="replace"):
            chosen.append((path, SPLITS[part]))
    if not chosen:
        return None
    found = Found(f"Something-Something's {', '.join(path.name for path, _ in chosen)}")
    there = _by_stem(root)
    for path, split in chosen:
        try:
            listed = json.loads(path.read_text("utf-8-sig"))
            pairs = [
                (str(one["id"]), one["template"].replace("[", "").replace("]", ""))
                for one in listed
            ]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path}: want a list of {{id, template}} ({error})") from None
        for number, label in pairs:
            name = there.get(number.lower())
            if name is None:
                found.missing.append(number)
            else:
                found.entries.append((name, label, split))
    return found


def _cater(root: Path) -> Found | None:
    lists = files.whole(root, "lists/localize/*.txt")
    if not lists:
        return None
    found = Found("CATER's lists/localize")
    for path in lists:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        wrong = [" ".join(line) for line in lines if len(line) != 2]
        if wrong:
            raise UserError(f"{path}: want lines of a video and a cell, found {wrong[0]!r}")
        for name, label in lines:
            if (root / "videos" / name).is_file():
                found.entries.append((f"videos/{name}", label, SPLITS.get(path.stem, "")))
            else:
                found.missing.append(name)
    return found
