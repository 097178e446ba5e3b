"""Reading token directories: what is in them, and how their tokens are distributed.

    tokens = scaling.tokens("studies/quickstart")
    tokens.sources(); tokens.ngrams(1, 2, 3); tokens.reconstructions("codebook-8px-1024")

Nothing is read before it is asked for.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scaling.data.shards import SPECIALS, SPLITS, Rows, read_index
from scaling.errors import UserError
from scaling.study_folder import Study, TokenFolder

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from PIL import Image


@dataclass(frozen=True)
class NGrams:
    """How often each n-gram of codes that occurs does; Figures 3, 12 and 13 of the paper."""

    n: int
    counts: np.ndarray  # int64, one for each n-gram that occurs, falling
    possible: float  # codes^n

    @property
    def coverage(self) -> float:
        """Share of the possible n-grams that occur. Bounded by the number of tokens looked at."""
        return len(self.counts) / self.possible

    @property
    def entropy_nats(self) -> float:
        """Of the n-grams that occur, by their shares."""
        share = self.counts / self.counts.sum()
        return float(-(share * np.log(share)).sum())


def ngrams(
    path: Path,
    n: int,
    *,
    source: str | None = None,
    split: str = "train",
    most_frames: int = 10_000,
) -> NGrams:
    """n-grams of neighbouring codes in raster order, within frames, of at most `most_frames`.

    The frames are the first ones of evenly spaced sequences (the paper looks at 10,000 images).
    `source` None is all sources. Raises UserError for an unknown source.
    """
    index = read_index(path)
    width, per_frame = index["context"] + 1, index["tokens_per_frame"]
    names = [s["name"] for s in index["sources"]]
    if source is not None and source not in names:
        raise UserError(f"source {source!r} is not in {path}; it has {', '.join(names)}.")
    chosen = [s for s in index["sources"] if source in (None, s["name"])]
    total = sum(s[split]["sequences"] for s in chosen)
    found = []
    for entry in chosen:
        rows = Rows(path, entry[split], width, verify=False)
        take = min(len(rows), max(1, round(most_frames * len(rows) / total)))
        every = np.arange(take) * len(rows) // take
        found.append(rows[every][:, 1 : 1 + per_frame].astype(np.int64) - SPECIALS)
    frames_NL = np.concatenate(found)
    codes = index["tokenizer"]["codes"]
    key = np.zeros((len(frames_NL), per_frame - n + 1), np.int64)
    for offset in range(n):
        key = key * codes + frames_NL[:, offset : offset + key.shape[1]]
    counts = np.unique(key, return_counts=True)[1]
    return NGrams(n, np.sort(counts)[::-1], float(codes) ** n)


def tokens_summary(path: Path) -> dict[str, Any]:
    """What `scaling tokens` prints: totals, and a row for each source and split.

    A row: source, kind, weight, split, files (used), partial, errors, ignored, hours (of video),
    frames (in the files), sequences, tokens (with start and end), gigabytes.
    """
    index = read_index(path)
    width = index["context"] + 1
    status: Counter[tuple[str, str, str]] = Counter()
    seconds: defaultdict[tuple[str, str], float] = defaultdict(float)
    frames: Counter[tuple[str, str]] = Counter()
    manifest = TokenFolder(path).manifest
    try:
        with manifest.open() as file:
            for row in csv.DictReader(file):
                status[row["source"], row["split"], row["status"]] += 1
                seconds[row["source"], row["split"]] += float(row["seconds"])
                frames[row["source"], row["split"]] += int(row["frames"])
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise UserError(
            f"{manifest}: cannot be read ({error}); remove {path} and run again: it is encoded anew"
        ) from None
    rows = []
    for entry in index["sources"]:
        for split in SPLITS:
            place = entry["name"], split
            tokens = entry[split]["sequences"] * width
            rows.append(
                {
                    "source": entry["name"],
                    "kind": entry["kind"],
                    "weight": entry["weight"],
                    "split": split,
                    "files": status[(*place, "ok")] + status[(*place, "partial")],
                    "partial": status[(*place, "partial")],
                    "errors": status[(*place, "error")],
                    "hours": seconds[place] / 3600,
                    "frames": frames[place],
                    "sequences": entry[split]["sequences"],
                    "tokens": tokens,
                    "gigabytes": 2 * tokens / 1e9,
                }
            )
    tokenizer = index["tokenizer"]
    return {
        "key": index["key"],
        "tokenizer": tokenizer["label"],
        "sha256": tokenizer.get("sha256", ""),  # of one that made its tokens elsewhere
        "vocab": index["vocab"],
        "context": index["context"],
        "frames": index["frames"],
        "size": index["size"],
        "tokens_per_frame": index["tokens_per_frame"],
        "codes": tokenizer["codes"],
        "codes_used": tokenizer["codes_used"],
        "coverage": tokenizer["codes_used"] / tokenizer["codes"],
        "entropy_nats": tokenizer["entropy_nats"],
        "psnr": {name: error["psnr"] for name, error in tokenizer["reconstruction"].items()},
        "not_used": {kind: index["files"].get(kind, 0) for kind in ("error", "ignored")},
        "rows": rows,
    }


def tokenizations(data_dir: Path) -> dict[str, Path]:
    """Label -> token directory: the study's own, then others beside it with other tokenizers."""
    found: dict[str, Path] = {}
    own = TokenFolder(data_dir)
    for there in [own, *own.beside()]:
        found.setdefault(there.read_index()["tokenizer"]["label"], there.path)
    return found


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of a study, by tokenizer: one token directory each."""

    folders: dict[str, Path]  # by the tokenizer's label
    _counted: dict[int, dict[str, NGrams]] = field(default_factory=dict, repr=False)

    def sources(self) -> pd.DataFrame:
        """Files, hours, sequences, tokens of each source and split, as `tokens_summary`."""
        import pandas as pd

        rows = {label: tokens_summary(folder)["rows"] for label, folder in self.folders.items()}
        return pd.concat({label: pd.DataFrame(found) for label, found in rows.items()})

    def psnr(self) -> pd.DataFrame:
        """Peak signal-to-noise ratio (dB) of all validation frames, by source and tokenizer."""
        import pandas as pd

        found = {label: tokens_summary(folder)["psnr"] for label, folder in self.folders.items()}
        return pd.DataFrame(found)

    def _count(self, n: int) -> dict[str, NGrams]:
        if n not in self._counted:
            self._counted[n] = {label: ngrams(one, n) for label, one in self.folders.items()}
        return self._counted[n]

    def ngrams(self, *lengths: int) -> pd.DataFrame:
        """How many n-grams of each length occur, their coverage and entropy, by tokenizer.

        Of at most 10,000 training frames, as `ngrams`.
        """
        import pandas as pd

        rows = [
            {"tokenizer": label, "n": n, "occur": len(found.counts), "possible": found.possible,
             "coverage (%)": 100 * found.coverage, "entropy (nats)": found.entropy_nats}
            for n in lengths for label, found in self._count(n).items()
        ]  # fmt: skip
        return pd.DataFrame(rows).set_index(["n", "tokenizer"])

    def ngram_figure(self, n: int) -> go.Figure:
        """Share of each n-gram against its rank, a line a tokenizer (Figures 3, 12 and 13)."""
        from scaling.analysis.figures.model import ngram_figure, ngram_points

        counts = {label: (found.counts, found.possible) for label, found in self._count(n).items()}
        return ngram_figure(ngram_points(counts))

    def reconstructions(self, label: str) -> tuple[Image.Image, float]:
        """A validation clip above the same through a tokenizer and back, and its PSNR (dB)."""
        from scaling.analysis.figures.pictures import contact_sheet, psnr_decibel

        held = TokenFolder(self.folders[label]).samples
        if not held.exists():
            raise UserError(f"{held.parent}: tokens made elsewhere come without frames")
        with np.load(held) as samples:
            before, after = samples["original"][0], samples["reconstruction"][0]
        return contact_sheet([before, after]), psnr_decibel(before, after)


def tokens(study: str | Path) -> Tokens:
    """The tokens of a study, by its folder: those of its own tokenizer, then of others beside it.

    Raises UserError where it has none, or one of them is damaged.
    """
    there = Study(Path(study)).tokens()
    if not there:
        raise UserError(f"{study}: has no tokens; `scaling encode` makes those of a study's YAML")
    return Tokens(tokenizations(there[0].path))
