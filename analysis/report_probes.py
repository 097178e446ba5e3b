"""The parts of the report on what the models learned; each is there when the study holds it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import figures, pictures
from analysis.figures_probes import frame_loss_figure, layer_figure, quality_figure
from analysis.frontier import StudyLaw
from analysis.page import Column, figure, table
from analysis.paper_tables import paper_tables
from analysis.quality import (
    best_layers,
    davis_best,
    davis_points,
    difference,
    probe_points,
    quality_laws,
    read_quality,
)  # fmt: skip
from analysis.style import escape, number_text, readable

SEQUENCES = 4  # film strips, at most
CLIPS = 4  # generated clips, at most


def probe_sections(study_dir: Path, rows: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(key, title, HTML) of probes, tracking and generation; a part that is missing is empty."""
    return [
        ("probes", "What the layers know", probe_section(study_dir, rows)),
        ("tracking", "Tracking without training", davis_section(study_dir)),
        ("generated", "Generated clips", generated_section(study_dir)),
        ("paper", "Beside the paper’s comparisons", paper_section(study_dir)),
    ]


def probe_files(study_dir: Path) -> list[Path]:
    """All that `probe_sections` read."""
    found = [study_dir / f"{name}.csv" for name in ("probes", "davis", "finetune")]
    return found + sorted((study_dir / "generated").glob("*.csv"))


def probe_section(study_dir: Path, rows: pd.DataFrame) -> str:
    probes = read_quality(study_dir, "probes")
    if probes is None:
        return ""
    points, best = probe_points(probes), best_layers(probes)
    laws = dict(quality_laws(rows, study_dir, "probe_top1"))
    parts = [_summary(probes, best)]
    for number, ((data, key, head), one) in enumerate(
        points.groupby(["data", "data_key", "head"], sort=False)
    ):
        spent = one.groupby(["run_id", "weights"]).macs_total.transform("max")
        last = one[one.macs_total == spent]
        text = (
            f"{data}, {head} head, {one.seeds.iloc[0]} seeds with 95% intervals. Solid: trained to "
            "the largest budget. Dashed: the same model before training. Dotted: the most frequent "
            "class."
        )
        parts.append(
            figure(
                f"probe-{number}", "Probe accuracy by layer.", text,
                layer_figure(last, "accuracy", "top-1 accuracy"), last,
                alt=f"Line chart: top-1 accuracy against relative depth. {text}",
            )
        )  # fmt: skip
        mine = best[(best.data == data) & (best.data_key == key) & (best["head"] == head)]
        mine = mine[mine.weights == "trained"]
        errors = mine.assign(error=1 - mine.accuracy, low=1 - mine.high, high=1 - mine.low)
        law = laws.get(f"1 - probe_top1 on {data}, {head} head")
        parts.append(_law_figure(f"probe-law-{number}", f"{data}, {head} head", errors, law))
    return "".join(parts)


def _law_figure(
    key: str, what: str, errors: pd.DataFrame, law: StudyLaw | ValueError | None
) -> str:
    curve = None
    if isinstance(law, StudyLaw):
        curve = figures.law_points(law.law, law.law.compute.min(), law.law.compute.max())
        low, high = law.law.ci["b"]
        text = (
            f"{what}: error = {number_text(law.law.e) + ' + ' if law.law.e else ''}"
            f"{number_text(law.law.a)} C^{law.law.b:.4f}, exponent {law.law.level:.0%} "
            f"[{low:.4f}, {high:.4f}], fitted to the best size of each budget."
        )
    else:
        text = f"{what}. No law: {readable(str(law))}" if law else what
    return figure(
        key, "Error against compute.", text, quality_figure(errors, curve), errors,
        alt=f"Chart on two logarithmic axes: error of the best layer against training MACs. {text}",
    )  # fmt: skip


def _summary(probes: pd.DataFrame, best: pd.DataFrame) -> str:
    """Best layer of each model's last point, next to random weights and chance."""
    spent = best.groupby(["data_key", "head", "run_id", "weights"]).macs_total.transform("max")
    last = best[best.macs_total == spent]
    keys = ["data", "data_key", "head", "run_id"]
    trained = last[last.weights == "trained"].set_index(keys)
    random = last[last.weights == "random"].set_index(keys)
    joined = trained.join(random[["accuracy", "low", "high"]].add_suffix("_random")).reset_index()
    for suffix in ("", "_random"):
        joined[f"text{suffix}"] = [
            f"{a:.1%} [{low:.1%}, {high:.1%}]"
            for a, low, high in zip(
                joined[f"accuracy{suffix}"], joined[f"low{suffix}"], joined[f"high{suffix}"],
                strict=True,
            )
        ]  # fmt: skip
    lines = []
    for d in difference(probes).to_dict("records"):
        lines.append(
            f"<li>{escape(d['data'])}, {escape(d['head'])} head: trained less random weights "
            f"{100 * d['difference']:+.1f} points [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}], "
            f"over {d['runs']} models</li>"
        )
    columns = [
        Column("data", "Data", kind="text"),
        Column("head", "Head", kind="text"),
        Column("size", "Model", kind="text"),
        Column("macs_total", "MACs", number_text),
        Column("depth", "Best depth", lambda d: f"{d:.0%}"),
        Column("text", "Top-1 [95%]", kind="text"),
        Column("text_random", "Random weights", kind="text"),
        Column("chance", "Chance", lambda c: f"{c:.1%}"),
    ]
    caption = (
        "Each model’s best layer. A seed is scored at the layer that the other seeds choose, so "
        "that the maximum is not taken on the files that it is reported on."
    )
    return f"<ul>{''.join(lines)}</ul>" + table(joined, columns, caption=caption)


def davis_section(study_dir: Path) -> str:
    davis = read_quality(study_dir, "davis")
    if davis is None:
        return ""
    groups = davis.groupby(["protocol", "rows"], sort=False)
    return "".join(_davis_part(number, one, study_dir) for number, (_, one) in enumerate(groups))


def _davis_part(number: int, davis: pd.DataFrame, study_dir: Path) -> str:
    """One protocol and grid: the curve, the table, the strips."""
    points, best = davis_points(davis), davis_best(davis)
    rows = int(davis["rows"].iloc[0])
    text = (
        f"J&F on {points.sequences.max()} DAVIS sequences by label propagation "
        f"({davis.protocol.iloc[0]}’s protocol, {rows} tokens on the short side), 95% intervals "
        "over sequences. The dash-dotted line takes the patches’ own pixels as features."
    )
    parts = [
        figure(
            f"davis-{number}", "Tracking by layer.", text,
            layer_figure(points, "jf", "J&F"), points,
            alt=f"Line chart: J&F against relative depth. {text}",
        )
    ]  # fmt: skip
    columns = [
        Column("weights", "Features", kind="text"),
        Column("size", "Model", lambda s: "–" if pd.isna(s) else str(s), "text"),
        Column("layer", "Best layer", lambda v: f"{v:.0f}"),
        *(Column(c, name, lambda v: f"{v:.1%}") for c, name in (
            ("jf", "J&F"), ("j_mean", "J mean"), ("j_recall", "J recall"), ("j_decay", "J decay"),
            ("f_mean", "F mean"), ("f_recall", "F recall"), ("f_decay", "F decay"),
        )),
    ]  # fmt: skip
    parts.append(table(best, columns, caption="Best layer of each, as the DAVIS toolkit measures."))
    return "".join(parts) + _film_strips(study_dir, davis, best)


def _film_strips(study_dir: Path, davis: pd.DataFrame, best: pd.DataFrame) -> str:
    """Masks over frames: the truth, then each kind of features at its best layer."""
    protocol, rows = davis.protocol.iloc[0], int(davis["rows"].iloc[0])
    settings = {
        p.parent: json.loads(p.read_text()) for p in (study_dir / "davis").glob("*/index.json")
    }
    folders = [f for f, s in settings.items() if (s["protocol"], s["rows"]) == (protocol, rows)]
    if not folders:
        return ""
    folder = folders[0]
    held = sorted({p.name.removeprefix("frames-") for p in folder.glob("frames-*.npz")})
    strips = []
    for name in held[:SEQUENCES]:
        with np.load(folder / f"frames-{name}") as kept:
            frames, truth = kept["frames"], kept["truth"]
        lines, labels = [pictures.overlay(frames, truth)], ["truth"]
        for row in best.sort_values("macs_total").to_dict("records"):
            stem = "pixels" if row["weights"] == "pixels" else f"{row['run_id']}-{row['weights']}"
            files = sorted(folder.glob(f"{stem}*-{name}"))
            if not files:
                continue
            with np.load(files[-1]) as kept:
                at = list(kept["layers"]).index(int(row["layer"]))
                masks = kept["masks"][at]
            lines.append(pictures.overlay(frames, masks.astype(np.int64)))
            labels.append(row["weights"])
        image = pictures.data_uri(pictures.contact_sheet(lines))
        text = f"{name.removesuffix('.npz')}, from above: {', '.join(labels)}"
        strips.append(f'<div><img src="{image}" alt="{escape(text)}"><p>{escape(text)}</p></div>')
    return (
        f'<figure class="numbered wide"><div class="strips">{"".join(strips)}</div><figcaption><b>'
        "Masks over frames.</b> The mask of the first frame is given; the rest is carried on by "
        "similarity of features alone.</figcaption></figure>"
    )


def generated_section(study_dir: Path) -> str:
    tables = sorted((study_dir / "generated").glob("*.csv"))
    parts = []
    for number, path in enumerate(tables[:CLIPS]):
        strip = path.with_suffix(".png")
        losses = pd.read_csv(path)
        points = losses.groupby(["what", "frame"])[["loss"]].mean().reset_index()
        size, clip = losses["size"].iloc[0], str(losses["clip"].iloc[0])
        frames = int(losses[losses.what == "drawn"].frame.max()) + 1
        if strip.exists():
            image = "data:image/png;base64," + base64.b64encode(strip.read_bytes()).decode()
            alt = f"above: frames of {clip}; below: the same beginning, continued by {size}"
            parts.append(
                f'<figure class="numbered wide"><div class="strips"><div><img src="{image}" '
                f'alt="{escape(alt)}"></div></div><figcaption><b>{escape(clip)}, continued.</b> '
                f"Above: the clip. Below: its first frames, and what {escape(size)} drew after "
                f"them, {frames} frames in all.</figcaption></figure>"
            )
        text = (
            f"{clip}, {size}: mean over the positions of a frame. Beyond the context the window "
            "slides by frames."
        )
        parts.append(
            figure(
                f"generated-{number}", "Loss by frame.", text, frame_loss_figure(points), losses,
                alt=f"Line chart: loss against frame. {text}",
            )
        )  # fmt: skip
    return "".join(parts)


def paper_section(study_dir: Path) -> str:
    """The paper's tables with ours beside; it says at what scale ours was run."""
    tables = paper_tables(study_dir)
    columns = [
        Column("choice", "Choice", kind="text"),
        Column("paper", "Paper, ImageNet (%)", lambda v: number_text(v)),
        Column("ours", "Here (%)", lambda v: f"{v:.1f}"),
        Column("low", "95% from", lambda v: f"{v:.1f}"),
        Column("high", "to", lambda v: f"{v:.1f}"),
        Column("data", "Data", kind="text"),
        Column("scale", "Run at", kind="wrap"),
    ]
    text = (
        "<p>Top-1 accuracy. The paper’s are of ImageNet and models of 120 million to 1.1 billion "
        "parameters, so which choice wins may be compared, and the accuracies may not.</p>"
    )
    shown = [table(rows, columns, caption=title) for title, rows in tables.items()]
    return text + "".join(shown) if shown else ""
