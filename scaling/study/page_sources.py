"""What a study's page shows of its folder, read: the page itself opens nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis.questions.quality import DAVIS_KINDS, davis_best
from scaling.analysis.report.sources import (
    Counted,
    Film,
    Generated,
    Sources,
    Strip,
    TokenData,
    Tracked,
)
from scaling.data.shards import read_index
from scaling.data.tokens import ngrams, tokenizations
from scaling.errors import UserError
from scaling.results import read_learned
from scaling.study_folder import ProbeFolder, Study, TokenFolder

SEQUENCES = 4  # film strips, at most
STRIP_FRAMES = 8
CLIPS = 4  # generated clips, at most


def made_of(study: Study, tokens: TokenFolder | None) -> list[Path]:
    """The files whose change changes the page; some need not be there."""
    found: list[Path] = []
    if tokens is not None:
        found += [tokens.index, tokens.manifest, tokens.samples]
        found += sorted(one.index for one in tokens.beside())  # other tokenizers'
    return [*found, study.plan_json, study.positions_json, *study.probe_files, *study.continued()]


def read_sources(
    study: Study, tokens: TokenFolder | None, rows: pd.DataFrame, config_text: str
) -> Sources:
    """All that the page shows of a study's folder, beside its rows and its configuration.

    Raises UserError: a table of what the models learned is damaged, or of an older version.
    """
    davis = read_learned(study.davis_csv)
    return Sources(
        rows, config_text,
        tokens=None if tokens is None or not tokens.index.exists() else _tokens(tokens),
        positions=_positions(study),
        probes=read_learned(study.probes_csv),
        tracked=() if davis is None else _tracked(study, davis),
        finetune=read_learned(study.finetune_csv),
        anticipation=read_learned(study.anticipation_csv),
        variants=read_learned(study.variants_csv),
        generated=[_clip(path) for path in study.continued()[:CLIPS]],
        macs={entry["run_id"]: entry["macs"] for entry in study.plan().runs},
    )  # fmt: skip


def _tokens(tokens: TokenFolder) -> TokenData:
    manifest: pd.DataFrame | None = None
    strips: list[Strip] | None = None
    if tokens.manifest.exists():
        manifest = pd.read_csv(tokens.manifest, keep_default_na=False)
    if tokens.samples.exists():
        with np.load(tokens.samples) as held:
            clips = held["source"], held["original"], held["reconstruction"]
        strips = list(zip(*clips, strict=True))
    return TokenData(tokens.read_index(), manifest, strips, _counted(tokens))


def _counted(tokens: TokenFolder) -> Counted | str:
    """Single codes, pairs and triples of the study's tokens, and of other tokenizers' beside them;
    or why they cannot be counted."""
    try:
        folders = tokenizations(tokens.path)
        longest = min(3, read_index(tokens.path)["tokens_per_frame"])
        return [
            {label: ngrams(folder, n) for label, folder in folders.items()}
            for n in range(1, longest + 1)
        ]
    except UserError as missing:
        return str(missing)


def _positions(study: Study) -> dict[str, Any] | str | None:
    try:
        return study.positions()
    except UserError as damaged:
        return str(damaged)


def _tracked(study: Study, davis: pd.DataFrame) -> list[Tracked]:
    """Of each of DAVIS_KINDS, with the film strips of the newest folder of each."""
    newest: dict[tuple[Any, ...], ProbeFolder] = {}
    schemas: dict[tuple[Any, ...], int] = {}
    for folder in ProbeFolder.all_in(study.davis_dir):
        index = folder.read_index()
        of, schema = tuple(index.get(kind) for kind in DAVIS_KINDS), index.get("schema", 0)
        if schema > schemas.get(of, -1):
            newest[of], schemas[of] = folder, schema
    return [
        Tracked(one, [_strip_of(film) for film in films(newest[of].path, one, SEQUENCES)])
        if of in newest
        else Tracked(one, ())
        for of, one in davis.groupby(list(DAVIS_KINDS), sort=False)
    ]


def films(folder: Path, davis: pd.DataFrame, most: int | None = None) -> Iterator[Film]:
    """Of the sequences of a folder: the truth, then each kind of features at its best layer.

    davis: rows of one of DAVIS_KINDS. most: of how many sequences.
    """
    best = davis_best(davis).sort_values("macs_total").to_dict("records")
    names = sorted(path.name.removeprefix("frames-") for path in folder.glob("frames-*.npz"))
    for name in names[:most]:
        with np.load(folder / f"frames-{name}") as kept:
            frames, masks = kept["frames"], [("truth", kept["truth"])]
        for row in best:
            stem = "pixels" if row["weights"] == "pixels" else f"{row['run_id']}-{row['weights']}"
            if not (held := sorted(folder.glob(f"{stem}*-{name}"))):
                continue
            with np.load(held[-1]) as kept:
                at = list(kept["layers"]).index(int(row["layer"]))
                masks.append((row["weights"], kept["masks"][at]))
        yield Film(name.removesuffix(".npz"), frames, masks)


def _strip_of(film: Film) -> Film:
    """Evenly spaced frames of a film."""
    at = np.linspace(0, len(film.frames) - 1, STRIP_FRAMES).round().astype(int)
    masks = [(made_by, masks[at]) for made_by, masks in film.masks]
    return Film(film.sequence, film.frames[at], masks)


def _clip(path: Path) -> Generated:
    strip = path.with_suffix(".png")
    return Generated(pd.read_csv(path), strip.read_bytes() if strip.exists() else None)
