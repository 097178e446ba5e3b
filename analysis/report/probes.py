"""The parts of the report on what the models learned; each is there when the study holds it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scaling.analysis.figures import pictures
from scaling.analysis.figures import runs as figures
from scaling.analysis.figures.probes import frame_loss_figure, layer_figure, quality_figure
from scaling.analysis.figures.style import number_text, readable
from scaling.analysis.findings import QualityLaw
from scaling.analysis.questions.paper_tables import paper_table, title_of, variant_points
from scaling.analysis.questions.quality import (
    best_layers,
    davis_best,
    davis_difference,
    davis_points,
    difference,
    head_difference,
    over_seeds,
    probe_points,
    scored_by_others,
)  # fmt: skip
from scaling.analysis.report.anticipation import anticipation_section
from scaling.analysis.report.page import Column, figure, strip, strips, table
from scaling.analysis.report.sources import Film, Generated, Sources, Tracked


def probe_sections(shown: Sources, quality: Sequence[QualityLaw]) -> list[tuple[str, str, str]]:
    """(key, title, HTML) of probes, tracking and generation; a part that is missing is empty."""
    return [
        ("probes", "What the layers know", probe_section(shown.probes, quality)),
        ("tracking", "Tracking without training", davis_section(shown.tracked)),
        ("tuned", "Fine-tuned", tuned_section(shown.finetune)),
        ("anticipation", "Anticipation", anticipation_section(shown.anticipation)),
        ("generated", "Generated clips", generated_section(shown.generated)),
    ]


def probe_section(probes: pd.DataFrame | None, quality: Sequence[QualityLaw]) -> str:
    """quality: the laws of probe_top1."""
    if probes is None:
        return ""
    points, best = probe_points(probes), best_layers(probes)
    laws = {one.name: one for one in quality}
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
        parts.append(_by_layer(f"probe-{number}", "Probe accuracy by layer.", text, last))
        mine = best[(best.data == data) & (best.data_key == key) & (best["head"] == head)]
        mine = mine[mine.weights == "trained"]
        errors = mine.assign(error=1 - mine.accuracy, low=1 - mine.high, high=1 - mine.low)
        law = laws.get(f"1 - probe_top1 on {data}, {head} head")
        parts.append(_law_figure(f"probe-law-{number}", f"{data}, {head} head", errors, law))
    return "".join(parts)


def _by_layer(
    key: str, title: str, text: str, points: pd.DataFrame, value: str = "accuracy",
    what: str = "top-1 accuracy",
) -> str:  # fmt: skip
    """A figure of a column of `points` (of `layer_figure`) against relative depth."""
    return figure(
        key, title, text, layer_figure(points, value, what), points,
        alt=f"Line chart: {what} against relative depth. {text}",
    )  # fmt: skip


def _law_figure(key: str, what: str, errors: pd.DataFrame, found: QualityLaw | None) -> str:
    curve, law = None, None if found is None else found.law
    if law is not None:
        curve = figures.law_points(law.law, law.law.compute.min(), law.law.compute.max())
        low, high = law.law.ci["b"]
        text = (
            f"{what}: error = {number_text(law.law.e) + ' + ' if law.law.e else ''}"
            f"{number_text(law.law.a)} C^{law.law.b:.4f}, exponent {law.law.level:.0%} "
            f"[{low:.4f}, {high:.4f}], fitted to the best size of each budget."
        )
    else:
        text = what if found is None else f"{what}. No law: {readable(found.refusal)}"
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
    apart = difference(probes)
    heads = head_difference(probes).set_index(["data_key", "head"])
    apart["text"] = [_points(d) for d in apart.to_dict("records")]
    apart["to_average"] = [
        _points(heads.loc[key].to_dict()) if key in heads.index else "–"
        for key in zip(apart.data_key, apart["head"], strict=True)
    ]
    differences = [
        Column("data", "Data", kind="text"),
        Column("head", "Head", kind="text"),
        Column("text", "Trained less random weights, points [95%]", kind="text"),
        Column("to_average", "To the average head, trained, points [95%]", kind="text"),
        Column("runs", "Models", str),
    ]
    told = "What training adds, and what a head reads more than the average of all tokens."
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
    return table(apart, differences, caption=told) + table(joined, columns, caption=caption)


def _points(d: dict[Any, Any]) -> str:
    """A difference of accuracies in points, with its interval."""
    return f"{100 * d['difference']:+.1f} [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]"


def davis_section(tracked: Sequence[Tracked]) -> str:
    return "".join(_davis_part(number, one) for number, one in enumerate(tracked))


def _davis_part(number: int, tracked: Tracked) -> str:
    """One split, size, protocol and grid: the curve, the table, the strips."""
    davis = tracked.rows
    points, best = davis_points(davis), davis_best(davis)
    rows = int(davis["rows"].iloc[0])
    text = (
        f"J&F on {points.sequences.max()} DAVIS sequences ({davis['data'].iloc[0]}) by label "
        f"propagation ({davis.protocol.iloc[0]}’s protocol, {rows} tokens on the short side, "
        "channels standardised over the first frame), 95% intervals over sequences. The "
        "dash-dotted line takes the patches’ own pixels as features."
    )
    lines = [
        f"<li>trained less {'random weights' if d['against'] == 'random' else 'pixels'}: "
        f"{_points(d)} points of J&F, paired over {d['sequences']} sequences</li>"
        for d in davis_difference(davis).to_dict("records")
    ]
    parts = [
        f"<ul>{''.join(lines)}</ul>",
        _by_layer(f"davis-{number}", "Tracking by layer.", text, points, "jf", "J&F"),
    ]
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
    return "".join(parts) + _film_strips(tracked.films)


def _film_strips(films: Sequence[Film]) -> str:
    """Masks over frames: the truth, then each kind of features at its best layer."""
    if not films:
        return ""
    shown = []
    for film in films:
        lines = [pictures.overlay(film.frames, masks.astype(np.int64)) for _, masks in film.masks]
        labels = ", ".join(label for label, _ in film.masks)
        text = f"{film.sequence}, from above: {labels}"
        shown.append(strip(pictures.data_uri(pictures.contact_sheet(lines)), text, text))
    text = (
        "The mask of the first frame is given; the rest is carried on by similarity of features "
        "alone."
    )
    return strips(shown, "Masks over frames.", text, long=True)


def generated_section(generated: Sequence[Generated]) -> str:
    parts = []
    for number, one in enumerate(generated):
        losses = one.losses
        points = losses.groupby(["what", "frame"])[["loss"]].mean().reset_index()
        size, clip = losses["size"].iloc[0], str(losses["clip"].iloc[0])
        frames = int(losses[losses.what == "drawn"].frame.max()) + 1
        if one.png is not None:
            image = "data:image/png;base64," + base64.b64encode(one.png).decode()
            alt = f"above: frames of {clip}; below: the same beginning, continued by {size}"
            text = (
                f"Above: the clip. Below: its first frames, and what {size} drew after them, "
                f"{frames} frames in all."
            )
            parts.append(strips([strip(image, alt)], f"{clip}, continued.", text, long=True))
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


def tuned_section(tuned: pd.DataFrame | None) -> str:
    """Every fine-tuning, at its best layer, from trained weights and from random ones."""
    if tuned is None:
        return ""
    keys = ["data", "data_key", "run_id", "size", "px", "frames", "stride", "tokens", "rope_base"]
    keys += ["attention", "end_to_end", "layer_decay", "head", "lr", "head_lr", "steps", "batch"]
    tuned = tuned.assign(clips=tuned.get("clips", 1), crops=tuned.get("crops", 1))
    keys += ["clips", "crops"]
    rows = []
    for key, g in tuned.groupby(keys, sort=False, dropna=False):
        found: dict[str, Any] = dict(zip(keys, key, strict=True))
        found |= dict.fromkeys(("trained", "random", "trained_hidden", "random_hidden"), "–")
        by = "labels, end to end" if found["end_to_end"] else "next tokens"
        base = "" if pd.isna(found["rope_base"]) else f", RoPE base {found['rope_base']:,.0f}"
        found["settings"] = (
            f"{found['frames']} x {found['px']} px = {found['tokens']:,} tokens, "
            f"{found['attention']}{base}, {found['steps']:,} steps by {by}, {found['head']} head"
        )
        if found["clips"] * found["crops"] > 1:
            found["settings"] += f", {found['clips']} x {found['crops']} views"
        for weights, one in g.groupby("weights"):
            found[str(weights)] = _tuned_text(one, "top1", "n_test")
            found[f"{weights}_hidden"] = _tuned_text(one, "top1_hidden", "n_hidden")
        found |= {"chance": g.chance.mean(), "seeds": g.seed.nunique()}
        found["nats"] = g[g.weights == "trained"].next_token_loss.mean()
        rows.append(found)
    columns = [
        Column("data", "Data", kind="text"),
        Column("size", "Model", kind="text"),
        Column("trained", "Top-1 from trained weights [95%]", kind="text"),
        Column("random", "from random weights [95%]", kind="text"),
        Column("chance", "Chance", lambda c: f"{c:.1%}"),
        Column("trained_hidden", "Where hidden, from trained [95%]", kind="text"),
        Column("random_hidden", "from random [95%]", kind="text"),
        Column("nats", "Nats a token", lambda v: "–" if pd.isna(v) else f"{v:.3f}"),
        Column("seeds", "Seeds"),
        Column("settings", "Fine-tuned", kind="wrap"),
    ]
    if pd.isna([row["nats"] for row in rows]).all():
        columns = [column for column in columns if column.key != "nats"]
    caption = (
        "Of several layers the best. Random: the weights that the run started with. Chance: the "
        "most frequent class."
    )
    if tuned.n_hidden.any():
        caption += " Where hidden: of the test clips that end with the ball out of sight."
    else:
        columns = [column for column in columns if not column.key.endswith("_hidden")]
    return table(pd.DataFrame(rows), columns, caption=caption)


def _tuned_text(g: pd.DataFrame, value: str, files: str) -> str:
    """`52.0% [47.1%, 56.9%]` of one fine-tuning's rows, a seed and layer each; `–` of no file."""
    if not g[files].min():
        return "–"
    scored = scored_by_others(g.pivot(index="seed", columns="layer", values=value).to_numpy(float))
    mean, low, high = over_seeds(scored, g.n_train.mean(), g[files].mean(), g.split.iloc[0])
    return f"{mean:.1%} [{low:.1%}, {high:.1%}]"


def variants_section(variants: pd.DataFrame | None) -> str:
    """The study's choices beside the paper's; it says at what scale ours were run."""
    if variants is None:
        return ""
    beside, points = paper_table(variants), variant_points(variants)
    title = title_of(list(beside.choice))

    def percent(value: float) -> str:
        return "–" if pd.isna(value) else f"{value:.1f}"

    def points_text(value: float) -> str:
        return "–" if pd.isna(value) else f"{value:+.1f}"

    columns = [
        Column("choice", "Choice", kind="text"),
        Column("paper", "Paper (%)", percent),
        Column("paper_difference", "to the first", points_text),
        Column("text", "Here (%) [95%]", kind="text"),
        Column("difference_text", "to the first [95%]", kind="text"),
        Column("random", "Before training (%)", percent),
        Column("nats_text", "Nats a token ± 95%", kind="text"),
        Column("run_at", "Run at", kind="wrap"),
    ]
    empty = {"nats_text": beside.nats.isna().all(), "random": beside.random.isna().all()}
    columns = [column for column in columns if not empty.get(column.key)]
    parts = [
        "<p>Top-1 accuracy, by 95% intervals over seeds; a seed is a training, a split of the "
        "files and a start of the heads. The paper’s are of ImageNet and models of 120 million to "
        "1.1 billion parameters: which choice wins, and by how much, may be compared; accuracies "
        "may not. Where the interval of a difference holds 0, these runs do not tell the two apart."
        "</p>"
    ]
    for number, (data, rows) in enumerate(beside.groupby("data", sort=False)):
        rows = rows.assign(
            text=[f"{r.ours:.1f} [{r.low:.1f}, {r.high:.1f}]" for r in rows.itertuples()],
            difference_text=[
                f"{r.difference:+.1f} [{r.difference_low:+.1f}, {r.difference_high:+.1f}]"
                if place
                else "–"
                for place, r in enumerate(rows.itertuples())
            ],
            nats_text=[
                "–" if pd.isna(nats) else f"{nats:.3f} ± {half:.3f}"
                for nats, half in zip(rows.nats, rows.nats_half, strict=True)
            ],
        )
        seeds, chance = rows.seeds.max(), rows.chance.mean()
        caption = f"{title}: {data}, {seeds} seeds, chance {chance:.1f}%."
        parts.append(table(rows, columns, caption=caption))
        mine = points[points.data == data]
        if mine.depth.nunique() > 1:
            text = f"{data}, {seeds} seeds with 95% intervals. Dashed: the model before training."
            title_by = "Accuracy of the choices by layer."
            parts.append(_by_layer(f"variants-{number}", title_by, text, mine))
    return "".join(parts)
