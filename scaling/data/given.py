"""Tokens that were made elsewhere: NumPy's arrays of codes, or a token directory of this tool.

The YAML says the vocabulary (tokenizer.codes) and the grid (data.frames, data.size and
tokenizer.patch); what does not fit is refused, for it is not known which of the two is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scaling.config.schema import DataConfig, SourceConfig, TokenizerConfig
from scaling.data import media, shards
from scaling.data.parts_to_shards import stem, write_index
from scaling.data.sources import Source, row, split
from scaling.errors import UserError
from scaling.study_folder import TokenFolder

_BLOCK = 4096  # sequences that are in memory


@dataclass
class Given(Source):
    """The files of a source of tokens."""

    rows_of: dict[str, int] = field(default_factory=dict)  # name -> its sequences
    own: bool = False  # a token directory of this tool, which is split already

    def codes(self, name: str, length: int) -> np.ndarray:
        """The codes of a file, (n, length), mapped; of a token directory plus SPECIALS."""
        if not self.own:
            codes: np.ndarray = _mapped(self.folder / name).reshape(self.rows_of[name], length)
            return codes
        shape = (self.rows_of[name], length + 2)
        shard = {"sequences": shape[0], "sha256": self.identity[name]}  # what the key stands for
        if why := shards.fault(self.folder / name, shard, 2 * shape[1], verify=True):
            raise UserError(f"source {self.name!r}: {why}. Put the file back, or leave it out.")
        tokens = np.memmap(self.folder / name, np.uint16, mode="r", shape=shape)
        return tokens[:, 1:-1]


def survey(
    number: int, settings: SourceConfig, data: DataConfig, tokenizer: TokenizerConfig, seed: int
) -> Given:
    """List, check and split the files of a source. Raises UserError where they do not fit."""
    source = Given(number, settings)
    assert settings.path is not None
    root = settings.path.expanduser()
    if not root.is_dir():
        raise UserError(
            f"source {source.name!r}: {root} is no folder. Give one of .npy files of codes, or a "
            "token directory (studies/NAME/data/KEY)."
        )
    if TokenFolder(root).index.exists():
        try:
            wrong = _token_directory(source, data, tokenizer)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            wrong = [f"{TokenFolder(root).index} is damaged ({type(error).__name__}: {error})"]
    else:
        wrong = _arrays(source, root, data, tokenizer)
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise UserError(
            f"source {source.name!r}: {'; '.join(wrong[:3])}{more}. {_asked(data, tokenizer)}"
        )
    if not source.own:
        split(source, data.val_fraction, seed)
        if not source.validation and len(source.train) > 1:
            source.move_next()
    if not source.train or not source.validation:
        told = "".join(f" {r['path']}: {r['error']}." for r in source.rows[:3])
        raise UserError(
            f"source {source.name!r}: {len(source.identity)} files of tokens in {root}: training "
            f"and validation each need one (they are split by file, never inside of one). Save the "
            f"codes as more files, a video or a shard each (numpy.save).{told}"
        )
    return source


def _grid(data: DataConfig, tokenizer: TokenizerConfig) -> tuple[int, int]:
    """Frames of a sequence, and the codes along a side of a frame."""
    return data.frames, data.size // tokenizer.patch


def _shapes(data: DataConfig, tokenizer: TokenizerConfig) -> list[tuple[int, ...]]:
    """Of a sequence of codes."""
    frames, side = _grid(data, tokenizer)
    return [(frames, side, side), (frames, side**2), (frames * side**2,)]


def _asked(data: DataConfig, tokenizer: TokenizerConfig) -> str:
    shapes = ", ".join(f"(n, {str(shape).strip('(,)')})" for shape in _shapes(data, tokenizer))
    return (
        f"data.frames {data.frames}, data.size {data.size} and tokenizer.patch {tokenizer.patch} "
        f"say whole numbers of one of the shapes {shapes}, below tokenizer.codes {tokenizer.codes}"
    )


def _mapped(path: Path) -> np.ndarray:
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(mapped, np.ndarray):
        raise ValueError("an archive of arrays (.npz) by another name")
    return mapped


def _arrays(source: Given, root: Path, data: DataConfig, tokenizer: TokenizerConfig) -> list[str]:
    """Find the .npy files; returns what is wrong with those whose shape or type is."""
    names, left_out = media.list_files(root, frozenset([".npy"]))
    source.rows += [row(source.name, "", name, "ignored", error=why) for name, why in left_out]
    wrong = []
    for name in names:
        path = source.folder / name
        try:
            codes, identity = _mapped(path), media.fingerprint(path)
        except (OSError, ValueError, EOFError) as error:
            why = f"no array that can be read: {media.reason(error, path)}"
            source.rows.append(row(source.name, "", name, "error", error=why))
            continue
        if codes.dtype.kind not in "iu":
            wrong.append(f"{name} holds {codes.dtype}")
        elif codes.shape[1:] not in _shapes(data, tokenizer):
            wrong.append(f"{name} has the shape {codes.shape}")
        elif len(codes):
            source.identity[name], source.rows_of[name] = identity, len(codes)
        else:
            source.rows.append(row(source.name, "", name, "error", error="empty"))
    return wrong


def _token_directory(source: Given, data: DataConfig, tokenizer: TokenizerConfig) -> list[str]:
    """The shards of a token directory, which keep their split; returns what does not fit."""
    source.own = True
    index = shards.read_index(source.folder)
    frames, side = _grid(data, tokenizer)
    asked = {
        "tokenizer.codes": (tokenizer.codes, index["vocab"] - shards.SPECIALS),
        "data.frames": (frames, index["frames"]),
        "codes of a frame, (data.size / tokenizer.patch)^2": (side**2, index["tokens_per_frame"]),
    }
    wrong = [f"{what} is {ours}, of these tokens {theirs}"
             for what, (ours, theirs) in asked.items() if ours != theirs]  # fmt: skip
    if wrong:
        return wrong
    width = index["context"] + 1
    for entry in index["sources"]:
        if entry["kind"] == "images":
            why = "sequences of images that are no clips; encode the images with the study"
            source.rows.append(row(source.name, "", entry["name"], "ignored", error=why))
            continue
        shown = [shard["file"] for part in shards.SPLITS for shard in entry[part]["shards"]]
        if outside := [name for name in shown if Path(name).name != name]:
            return [f"{TokenFolder(source.folder).index} names {outside[0]}, outside of its folder"]
        for side_of, names in (("train", source.train), ("validation", source.validation)):
            for shard in entry[side_of]["shards"]:
                if why := shards.fault(source.folder / shard["file"], shard, 2 * width, False):
                    return [why]
                if shard["sequences"]:
                    names.append(shard["file"])
                    source.identity[shard["file"]] = shard["sha256"]
                    source.rows_of[shard["file"]] = shard["sequences"]
    return []


def write(
    folder: Path,
    sources: tuple[Given, ...],
    data: DataConfig,
    tokenizer: TokenizerConfig,
    key: str,
    settings: dict[str, Any],
) -> None:
    """Write the token directory. Raises UserError where a code is not of the vocabulary."""
    frames, side = _grid(data, tokenizer)
    length = frames * side**2
    used = np.zeros(tokenizer.codes, np.int64)
    manifest: list[dict[str, Any]] = []
    entries = []
    for number, source in enumerate(sources):
        entry: dict[str, Any] = dict(settings["sources"][number])
        manifest += source.rows
        for part in shards.SPLITS:
            names = source.train if part == "train" else source.validation
            most = None if part == "train" else data.val_sequences
            writer = shards.Writer(folder, stem(source, part), length + 2)
            try:
                for codes in _chosen(source, names, length, tokenizer.codes, most):
                    if part == "train":
                        used += np.bincount(codes.reshape(-1), minlength=len(used))
                    writer.write(shards.sequence(codes, shards.VIDEO_START))
            except UserError:
                writer.file.close()
                raise
            entry[part] = writer.close()
            for name in names:
                n = source.rows_of[name]
                counts = {"frames": n * frames, "clips": n, "tokens": n * length}
                manifest.append(row(source.name, part, name, "ok", **counts))
        entry["frames"] = sum(r["frames"] for r in manifest if r["source"] == source.name)
        entry["seconds"] = 0.0
        entries.append(entry)
    about = {
        "label": f"given-{tokenizer.patch}px-{tokenizer.codes}",
        "codes": tokenizer.codes,
        "reconstruction": {},
    }
    write_index(folder, data, side**2, about, used, manifest, entries, key, settings)


def _chosen(
    source: Given, names: list[str], length: int, codes: int, most: int | None
) -> Iterator[np.ndarray]:
    """The codes of files, (n, length), a block at a time; at most `most`, evenly over all."""
    total = sum(source.rows_of[name] for name in names)
    keep = np.arange(total) if most is None or total <= most else np.arange(most) * total // most
    before = 0
    for name in names:
        held = source.codes(name, length)
        for first in range(0, len(held), _BLOCK):
            block = held[first : first + _BLOCK].astype(np.int64)
            block -= shards.SPECIALS if source.own else 0
            outside = np.argwhere((block < 0) | (block >= codes))
            if len(outside):
                at, place = (int(i) for i in outside[0])
                raise UserError(
                    f"source {source.name!r}: {name}, sequence {first + at}: code "
                    f"{block[at, place]:,} is not in 0 to {codes - 1:,}. tokenizer.codes is the "
                    "vocabulary of the tokenizer that made them, specials left out."
                )
            ends = before + first, before + first + len(block)
            mine = keep[np.searchsorted(keep, ends[0]) : np.searchsorted(keep, ends[1])]
            if len(mine):
                yield block[mine - ends[0]]
        before += len(held)
