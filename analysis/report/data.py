"""The parts of the report that say what a study was made of: runs, data, tokens, configuration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis.figures import model as figures_model
from scaling.analysis.figures import pictures
from scaling.analysis.figures.style import count_text, escape, number_text, power_of_two_text
from scaling.analysis.report.page import Column, figure, strip, strips, table
from scaling.analysis.report.sources import Counted, Strip, TokenData
from scaling.analysis.schema import loss_unit

TABLE_ROWS = 2000  # rows of a table on the page, at most; rows.csv has them all
STRIPS = 6  # clips shown, at most


def runs_section(rows: pd.DataFrame) -> str:
    points = run_table(rows)
    text = "Every decayed point, and the last point of each run that has none. "
    if len(points) > TABLE_ROWS:
        text += f"The first {TABLE_ROWS:,} of {len(points):,} are here. "
    text += "<code>rows.csv</code>, beside this page, has every evaluation with every column."
    return f"<p>{text}</p>" + table(
        points.head(TABLE_ROWS), _run_columns(loss_unit(rows.tokenizer)), sortable=True
    )


def run_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the page's table: decayed points, and the last row of each run without one."""
    decayed = rows[rows.decayed]
    others = rows[~rows.run_id.isin(decayed.run_id)].sort_values("steps")
    chosen = pd.concat([decayed, others.drop_duplicates("run_id", keep="last")])
    order = ["role", "params", "macs_total", "log2_lr", "run_id"]
    return chosen.sort_values(order).reset_index(drop=True)


def data_section(tokens: TokenData | None) -> str:
    if tokens is None:
        return (
            "<p>The token data of this study is not at hand, so this page cannot describe it.</p>"
        )
    index = tokens.index
    tokenizer, size = index["tokenizer"], index["size"]
    text = (
        f"A sequence is {index['frames']} frames of {size} × {size} pixels, "
        f"{index['tokens_per_frame']} tokens a frame, {index['context'] + 1} tokens with start and "
        f"end. The tokenizer is <code>{escape(tokenizer['label'])}</code>. The training data use "
        f"{tokenizer['codes_used']:,} of its {tokenizer['codes']:,} codes; their entropy, "
        f"{number_text(tokenizer['entropy_nats'])} nats, is the loss of a model that knows how "
        "frequent each code is and nothing else."
    )
    whole = sum(source["weight"] for source in index["sources"])
    sources = pd.DataFrame(
        [
            {
                "name": source["name"],
                "kind": source["kind"],
                "share": source["weight"] / whole,
                "train": source["train"]["sequences"],
                "tokens": source["train"]["sequences"] * (index["context"] + 1),
                "validation": source["validation"]["sequences"],
                "psnr": tokenizer["reconstruction"].get(source["name"], {}).get("psnr", math.nan),
            }
            for source in index["sources"]
        ]
    )
    columns = [
        Column("name", "source", kind="text"),
        Column("kind", "kind", kind="text"),
        Column("share", "share of training", lambda v: f"{v:.0%}"),
        Column("train", "training sequences", lambda v: f"{v:,}"),
        Column("tokens", "training tokens", count_text),
        Column("validation", "validation sequences", lambda v: f"{v:,}"),
        Column("psnr", "reconstruction PSNR (dB)", lambda v: "-" if math.isnan(v) else f"{v:.2f}"),
    ]
    return (
        f"<p>{text}</p>"
        + table(sources, columns)
        + _files(tokens.manifest)
        + _strips(tokens.strips)
        + _ngrams(tokens.ngrams)
    )


def _files(manifest: pd.DataFrame | None) -> str:
    """What became of every file."""
    if manifest is None:
        return '<p class="note">There is no list of the files.</p>'
    counts = ", ".join(f"{n:,} {escape(s)}" for s, n in manifest.status.value_counts().items())
    odd = manifest[manifest.status != "ok"]
    text = f"<p>Files by outcome: {counts}.</p>"
    if odd.empty:
        return text
    columns = [
        Column("source", "source", kind="text"),
        Column("path", "file", kind="text"),
        Column("status", "outcome", kind="text"),
        Column("frames", "usable frames", lambda v: f"{v:,}"),
        Column("error", "reason", kind="wrap"),
    ]
    more = f", the first {TABLE_ROWS:,} of which are here" if len(odd) > TABLE_ROWS else ""
    return (
        f"{text}<details><summary>{len(odd):,} not used in full{more}</summary>"
        f"{table(odd.head(TABLE_ROWS), columns)}</details>"
    )


def _strips(clips: Sequence[Strip] | None) -> str:
    if clips is None:
        return '<p class="note">No sample frames were kept.</p>'
    shown = []
    for name, before, after in _spread(clips):
        psnr = f"{pictures.psnr_decibel(before, after):.1f} dB"
        alt = (
            f"{len(before)} frames of a validation clip of {name}; under each, the frame as its "
            f"tokens give it back, at {psnr}"
        )
        image = pictures.data_uri(pictures.contact_sheet([before, after]))
        shown.append(strip(image, alt, f"{name}, {psnr}"))
    text = (
        "Above: validation frames. Below: the same frames through the tokenizer and back, which "
        "is all that the models can know of them."
    )
    return strips(shown, "Frames and their reconstruction.", text)


def _spread(clips: Sequence[Strip]) -> list[Strip]:
    """A few clips, taken from every source in turn."""
    turn: dict[str, int] = {}
    order = []
    for clip in clips:
        turn[str(clip[0])] = turn.get(str(clip[0]), 0) + 1
        order.append(turn[str(clip[0])])
    return [clips[i] for i in np.argsort(order, kind="stable")[:STRIPS]]


def _ngrams(ngrams: Counted | str) -> str:
    """Which codes, and which runs of codes, the frames use; by tokenizer where there are several.

    (The paper's Figures 3, 12 and 13.)
    """
    if isinstance(ngrams, str):
        return f'<p class="note">The n-grams were not counted: {escape(ngrams)}</p>'
    shown = []
    for n, (words, counted) in enumerate(
        zip(("single codes", "pairs", "triples"), ngrams, strict=False), 1
    ):
        points = figures_model.ngram_points(
            {label: (found.counts, found.possible) for label, found in counted.items()}
        )
        text = " ".join(
            f"{label} uses {len(found.counts):,} of {number_text(found.possible)} {words} "
            f"({number_text(100 * found.coverage)}%); {found.counts.sum():,} were looked at."
            for label, found in counted.items()
        )
        shown.append(
            figure(
                f"ngrams-{n}", f"How often each of the {words} occurs.", text,
                figures_model.ngram_figure(points), points,
                alt=f"Chart on two logarithmic axes: share of each n-gram against its rank. {text}",
            )
        )  # fmt: skip
    note = (
        "<p>N-grams are neighbours in raster order within a frame. A long flat line uses its codes "
        "evenly, a steep one rests on a few.</p>"
    )
    return note + "".join(shown)


def position_section(record: dict[str, Any] | str | None) -> str:
    """Mean loss by token position (the paper's Figure 10); empty where there is none.

    record: size (its name), tokens_per_frame, loss (nats, by position); or why it cannot be read.
    """
    if record is None:
        return ""
    not_shown = "<p>The loss by position cannot be shown: {}.</p>"
    if isinstance(record, str):
        return not_shown.format(escape(record))
    try:
        points = figures_model.position_points(record["loss"], record["tokens_per_frame"])
        size = str(record["size"])
    except (ValueError, KeyError, TypeError) as error:
        return not_shown.format(escape(error))
    frames = points.dropna(subset="frame_loss").groupby("frame").frame_loss.first()
    first, rest = float(frames.iloc[0]), float(frames.iloc[1:].mean())
    text = (
        f"Size {size}, mean over the validation sequences; the step line is the mean of a frame. "
        f"The first frame costs {number_text(first)} nats per token"
    )
    if len(frames) > 1:
        text += (
            f", the frames after it {number_text(rest)}: what the frames before tell about a frame "
            f"is worth {number_text(first - rest)} nats per token"
        )
    return figure(
        "position", "Loss by token position.", f"{text}.",
        figures_model.position_figure(points), points, wide=True,
        alt=f"Line chart: validation loss at each token position. {text}.",
    )  # fmt: skip


def config_section(config_text: str) -> str:
    if not config_text.strip():
        return "<p>No configuration was given.</p>"
    return (
        "<p>The whole configuration, defaults included. The same configuration gives the same runs."
        f"</p><pre><code>{escape(config_text.strip())}</code></pre>"
    )


def _run_columns(unit: str) -> list[Column]:
    return [
        Column("run_id", "run", kind="text"),
        Column("size", "size", kind="text"),
        Column("role", "role", kind="text"),
        Column("macs_total", "MACs", lambda v: number_text(float(v))),
        Column("val_loss", f"loss ({unit})", lambda v: f"{v:.4f}" if np.isfinite(v) else "–"),
        Column("status", "status", kind="text"),
        Column("d", "width"),
        Column("layers", "layers"),
        Column("params", "parameters", count_text),
        Column("log2_lr", "rate", power_of_two_text),
        Column("tokens", "tokens", count_text),
        Column("seed", "seed"),
        Column("seconds", "seconds", number_text),
    ]
