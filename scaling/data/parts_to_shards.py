"""Parts -> shards: the last step of encoding, by one process, from finished part files."""

import csv
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaling.config.schema import DataConfig
from scaling.data import shards
from scaling.data.sources import Reader, Source, Unit, rng_of, row
from scaling.models.tokenizers.codebook import psnr
from scaling.storage import files
from scaling.study_folder import TokenFolder

SAMPLE_CLIPS = 4  # clips a source that are shown
MANIFEST = ("source", "split", "path", "status", "frames", "seconds", "clips", "tokens", "error")


def part_path(work: Path, unit: Unit) -> Path:
    """The file of an encoded unit; a folder for every 256, so that none holds too many."""
    return work / "parts" / unit.name[-2:] / f"{unit.name}.npz"


@dataclass
class Joiner:
    """Joins the parts under `work` into the directory `work`/done."""

    reader: Reader
    tokenizer: Any
    label: str
    work: Path

    def __post_init__(self) -> None:
        self.frame_tokens = (self.reader.data.size // self.tokenizer.patch) ** 2
        self.length = self.reader.data.frames * self.frame_tokens

    def _parts(self, source: Source, split: str) -> Iterator[Any]:
        for unit in self.reader.units(source, split):
            with np.load(part_path(self.work, unit)) as part:
                yield part

    def count(self, source: Source, split: str) -> int:
        """Sequences in the parts of a source and split."""
        return sum(len(part["codes"]) for part in self._parts(source, split))

    def join(self, key: str, settings: dict[str, Any]) -> None:
        """Write shards, manifest, samples and, last, the index into `work`/done."""
        done = self.work / "done"
        shutil.rmtree(done, ignore_errors=True)
        done.mkdir()
        used = np.zeros(self.tokenizer.codes, np.int64)
        manifest: list[dict[str, Any]] = []
        sources, errors = [], {}
        for number, source in enumerate(self.reader.sources):
            entry: dict[str, Any] = dict(settings["sources"][number])
            manifest += source.rows
            for split in ("train", "validation"):
                counts = used if split == "train" else None
                entry[split] = self._write_shards(done, source, split, counts)
                if self.reader.keeps_pixels:
                    entry[split]["pixels"] = self._write_pixels(done, source, split)
                rows, mse = self._accounts(source, split, entry[split]["sequences"])
                manifest += rows
                if split == "validation":
                    errors[source.name] = {"mse": mse, "psnr": psnr(mse)}
            mine = [r for r in manifest if r["source"] == source.name]
            entry["frames"] = sum(r["frames"] for r in mine)
            entry["seconds"] = round(sum(r["seconds"] for r in mine), 3)
            sources.append(entry)
        there = TokenFolder(done)
        files.write(there.samples, self._samples())
        weights = there.tokenizer
        files.write(weights, (self.work / weights.name).read_bytes())
        about = {
            "label": self.label,
            "file": weights.name,
            "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "codes": self.tokenizer.codes,
            "reconstruction": errors,
        }
        data, per_frame = self.reader.data, self.frame_tokens
        write_index(done, data, per_frame, about, used, manifest, sources, key, settings)

    def _write_shards(
        self, folder: Path, source: Source, split: str, used: np.ndarray | None
    ) -> dict[str, Any]:
        """Write the sequences of a split; count the codes in `used`; returns the index entry."""
        start = shards.IMAGE_START if source.kind == "images" else shards.VIDEO_START
        writer = shards.Writer(folder, stem(source, split), self.length + 2)
        for codes_NL in self._sequences(source, split, "codes"):
            if used is not None:
                used += np.bincount(codes_NL.reshape(-1), minlength=len(used))
            writer.write(shards.sequence(codes_NL, start))
        return writer.close()

    def _write_pixels(self, folder: Path, source: Source, split: str) -> dict[str, Any]:
        """The frames of the same sequences, for inputs or targets that are not tokens."""
        values = 3 * self.reader.data.frames * self.reader.data.size**2
        writer = shards.Writer(folder, stem(source, split) + ".pixels", values, np.uint8)
        for pixels_ND in self._sequences(source, split, "pixels"):
            writer.write(pixels_ND)
        return writer.close()

    def _accounts(
        self, source: Source, split: str, sequences: int
    ) -> tuple[list[dict[str, Any]], float]:
        """Manifest rows and, in validation, the mean squared error of the reconstruction."""
        squared = values = 0
        rows: list[dict[str, Any]] = []
        for part in self._parts(source, split):
            squared += int(part["squared"])
            values += int(part["values"])
            rows += json.loads(part["rows"].tobytes())
        for r in rows:
            frames = r["clips"] * self.reader.data.frames
            if source.kind == "images" and r["status"] != "error":
                frames = self.reader.crops(source, split)
            r["tokens"] = frames * self.frame_tokens
        if source.kind == "leaves":
            frames = sequences * self.reader.data.frames
            counts = {"frames": frames, "clips": sequences, "tokens": sequences * self.length}
            rows.append(row(source.name, split, "(built-in)", "ok", **counts))
        return rows, squared / values

    def _sequences(self, source: Source, split: str, what: str) -> Iterator[np.ndarray]:
        """`codes` or `pixels` of whole sequences, (n, values), a part or a pass at a time."""
        if source.kind == "images":
            yield from self._image_sequences(source, split, what)
            return
        total, most = self.count(source, split), self.reader.data.val_sequences
        keep = np.arange(total)
        if split == "validation" and total > most:  # evenly over all files
            keep = np.arange(most) * total // most
        before = 0
        for part in self._parts(source, split):
            here = part[what]
            mine = keep[(keep >= before) & (keep < before + len(here))] - before
            before += len(here)
            if len(mine):
                yield here[mine].reshape(len(mine), -1)

    def _image_sequences(self, source: Source, split: str, what: str) -> Iterator[np.ndarray]:
        """T images make one sequence.

        A pass takes one crop of every image, in a new random order, and leaves out the few that
        make no whole sequence.
        """
        data, crops = self.reader.data, self.reader.crops(source, split)
        parts = [part[what] for part in self._parts(source, split)]
        all_NCV = np.concatenate(
            [p.reshape(len(p) // crops, crops, p[0].size) for p in parts if len(p)]
        )
        a_pass = len(all_NCV) // data.frames
        if split == "validation":
            count = min(data.val_sequences, a_pass)
            yield all_NCV[: count * data.frames].reshape(count, -1)
            return
        for number, done in enumerate(range(0, data.train_sequences, a_pass)):
            rng = rng_of(self.reader.seed, "images", source.name, number)
            order = rng.permutation(len(all_NCV))
            count = min(data.train_sequences - done, a_pass)
            yield all_NCV[order[: count * data.frames], number % crops].reshape(count, -1)

    def _samples(self) -> bytes:
        """An .npz: `original`, `reconstruction`, uint8 (n, T, S, S, 3), and `source` names (n,)."""
        samples = [self._sample(source) for source in self.reader.sources]
        original = np.concatenate(samples)
        frames = original.reshape(-1, *original.shape[2:])
        rebuilt = self.tokenizer.decode(self.tokenizer.encode(frames)).reshape(original.shape)
        names = [s.name for s in self.reader.sources]
        source = np.repeat(names, [len(clips) for clips in samples])
        buffer = io.BytesIO()
        np.savez_compressed(buffer, original=original, reconstruction=rebuilt, source=source)
        return buffer.getvalue()

    def _sample(self, source: Source) -> np.ndarray:
        """The first validation clips of a source, uint8 (n, T, S, S, 3)."""
        found: list[np.ndarray] = []
        count, wanted = 0, SAMPLE_CLIPS * self.reader.data.frames
        for unit in self.reader.units(source, "validation"):
            pixels, _ = self.reader.pixels(unit, limit=wanted)
            if len(pixels):
                found.append(pixels.reshape(-1, *pixels.shape[-3:]))
                count += len(found[-1])
            if count >= wanted:
                break
        frames = np.concatenate(found)[:wanted]
        whole = len(frames) // self.reader.data.frames
        frames = frames[: whole * self.reader.data.frames]
        return frames.reshape(whole, -1, *frames.shape[1:])


def write_index(
    folder: Path,
    data: DataConfig,
    tokens_per_frame: int,
    tokenizer: dict[str, Any],
    used: np.ndarray,
    manifest: list[dict[str, Any]],
    sources: list[dict[str, Any]],
    key: str,
    settings: dict[str, Any],
) -> None:
    """Write the manifest and, last, the index of a token directory whose shards are there.

    `used` has how often each code occurs in training.
    """
    there = TokenFolder(folder)
    # A name on disk need not be UTF-8: what is not is written as \udc.. here.
    files.write(there.manifest, _manifest(manifest).encode(errors="backslashreplace"))
    status = [r["status"] for r in manifest]
    counted = {"codes_used": int((used > 0).sum()), "entropy_nats": _entropy(used)}
    index = {
        "schema": shards.SCHEMA,
        "key": key,
        "vocab": tokenizer["codes"] + shards.SPECIALS,
        "context": data.frames * tokens_per_frame + 1,
        "frames": data.frames,
        "size": data.size,
        "tokens_per_frame": tokens_per_frame,
        "tokenizer": tokenizer | counted,
        "files": {kind: status.count(kind) for kind in sorted(set(status))},
        "settings": settings,
        "sources": sources,
    }
    files.write(there.index, json.dumps(index, indent=1).encode())
    files.sync_folder(folder)


def stem(source: Source, split: str) -> str:
    """The beginning of the names of the shards of a source and split."""
    return f"{source.number}-{re.sub(r'[^A-Za-z0-9_-]+', '_', source.name)}.{split}"


def _entropy(counts: np.ndarray) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


def _manifest(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, MANIFEST, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
