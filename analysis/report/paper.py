"""The paper's tables and figures with what this study has of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pandas as pd

from scaling.analysis.figures.model import position_points
from scaling.analysis.figures.style import count_text, number_text
from scaling.analysis.findings import Findings
from scaling.analysis.questions.anticipation import figures, named, settings
from scaling.analysis.questions.paper import ITEMS
from scaling.analysis.questions.paper_tables import paper_table, title_of
from scaling.analysis.questions.quality import best_layers, davis_best, over_seeds, scored_by_others
from scaling.analysis.report.page import Column, table
from scaling.analysis.report.sources import Sources
from scaling.analysis.schema import loss_unit

MOST = 6  # of the same kind in one cell


def paper_section(shown: Sources, found: Findings) -> str:
    """Every item of the paper, of a study whose models were asked what they learned."""
    if not any(
        (shown.probes is not None, shown.finetune is not None, shown.variants is not None,
         shown.anticipation is not None, shown.tracked, shown.generated)
    ):  # fmt: skip
        return ""
    lines = beside(shown, found)
    there, lacking = lines[lines.here != ""], lines[lines.here == ""]
    text = (
        f"{len(there)} of {len(lines)} tables and figures have a row of this study. The paper’s "
        "models have 120 million to 1.1 billion parameters and were trained on 10<sup>12</sup> "
        "tokens; intervals are 95%."
    )
    paper = Column("item", "Paper", kind="wrap")
    columns = [
        paper,
        Column("paper", "Printed, of its own models", kind="wrap"),
        Column("here", "This study", kind="wrap"),
        Column("compared", "What may be compared", kind="wrap"),
    ]
    asked = [paper, Column("commands", "Made by, or why by nothing", kind="wrap")]
    return (
        f"<p>{text}</p>{table(there, columns)}<details><summary>{len(lacking)} have none"
        f"</summary>{table(lacking, asked)}</details>"
    )


def beside(shown: Sources, found: Findings) -> pd.DataFrame:
    """One row an item: item (its name and what it is of), paper (printed), here ("": nothing),
    commands (that make it, or why there are none), compared (with what to know of the print)."""
    rows = []
    for item in ITEMS:
        ours = list(HERE[item.name](shown, found))[: MOST + 1] if item.name in HERE else []
        if len(ours) > MOST:
            ours = [*ours[:MOST], "and more"]
        rows.append(
            {
                "item": f"{item.name}: {item.what}",
                "paper": item.summary() or "a figure",
                "here": "; ".join(ours),
                "commands": "; ".join(item.commands) or item.compared,
                "compared": item.compared + (f". Printed: {item.note}" if item.note else ""),
            }
        )
    return pd.DataFrame(rows)


# --- what a study has of each: short texts, none where it has nothing

Texts = Iterable[str]


def _sizes(shown: Sources, found: Findings) -> Texts:
    ladder = shown.rows[shown.rows.role != "lr_sweep"]
    for row in ladder.drop_duplicates("size").sort_values("params").itertuples():
        yield (
            f"{row.size}: dimension {row.d}, {row.heads} heads, {row.layers} layers, "
            f"{row.params:,} parameters"
        )


def _data(shown: Sources, found: Findings) -> Texts:
    if shown.tokens is None:
        return
    index = shown.tokens.index
    whole = sum(source["weight"] for source in index["sources"])
    for source in index["sources"]:
        tokens = source["train"]["sequences"] * (index["context"] + 1)
        yield (
            f"{source['name']}: {source['weight'] / whole:.0%} of the sequences, "
            f"{count_text(tokens)} tokens"
        )


def _training(shown: Sources, found: Findings) -> Texts:
    unit = loss_unit(shown.rows.tokenizer)
    last = shown.rows[shown.rows.decayed & (shown.rows.role != "lr_sweep")]
    last = last.sort_values(["params", "macs_total"]).drop_duplicates("size", keep="last")
    for row in last.itertuples():
        yield f"{row.size} ends at {row.train_loss:.3f} {unit}, {row.macs_total:.2g} MACs"


def _ngrams(n: int) -> Callable[[Sources, Findings], Texts]:
    def texts(shown: Sources, found: Findings) -> Texts:
        counted = () if shown.tokens is None else shown.tokens.ngrams
        if isinstance(counted, str) or len(counted) < n:
            return
        for label, one in counted[n - 1].items():
            yield f"{label}: {one.coverage:.1%} of {number_text(one.possible)} occur"

    return texts


def _choices(title_end: str) -> Callable[[Sources, Findings], Texts]:
    def texts(shown: Sources, found: Findings) -> Texts:
        if shown.variants is None:
            return
        names = list(shown.variants.variant.unique())
        if not title_of(names).endswith(title_end):
            return
        for row in paper_table(shown.variants).itertuples():
            yield (
                f"{row.choice} {row.ours:.1f} [{row.low:.1f}, {row.high:.1f}]% on {row.data}, "
                f"{row.macs:.2g} training MACs"
            )

    return texts


def _layers(head: str, *, tasks: bool = False) -> Callable[[Sources, Findings], Texts]:
    """Where the best layer lies: of pictures under a head, or of every task."""

    def texts(shown: Sources, found: Findings) -> Texts:
        if shown.probes is not None:
            last = _last_trained(shown.probes)
            last = last[(last["head"] == head) & (tasks | (last.frames == 1))]
            for row in last.itertuples():
                yield f"{row.size} at {row.depth:.0%} of its depth on {row.data}"
        for tracked in shown.tracked if tasks else ():
            best, of = davis_best(tracked.rows), tracked.rows.iloc[0]
            for row in best[best.weights == "trained"].drop_duplicates("size").itertuples():
                yield f"{row.size} at {row.depth:.0%} of its depth on DAVIS ({of.protocol})"

    return texts


def _probed(head: str, *, moving: bool) -> Callable[[Sources, Findings], Texts]:
    def texts(shown: Sources, found: Findings) -> Texts:
        if shown.probes is None:
            return
        last = _last_trained(shown.probes)
        last = last[(last["head"] == head) & ((last.frames > 1) == moving)]
        keys = ["data_key", "head", "run_id"]
        before = shown.probes[shown.probes.weights == "random"]
        random = {} if before.empty else best_layers(before).set_index(keys).accuracy.to_dict()
        for row in last.to_dict("records"):
            at_random = random.get(tuple(row[key] for key in keys))
            told = "" if at_random is None else f"random weights {at_random:.1%}, "
            yield (
                f"{row['size']} {row['accuracy']:.1%} [{row['low']:.1%}, {row['high']:.1%}] on "
                f"{row['data']}, {told}{row['classes']} classes, chance {row['chance']:.1%}, "
                f"{row['macs_total']:.2g} MACs"
            )

    return texts


def _last_trained(probes: pd.DataFrame) -> pd.DataFrame:
    """`best_layers` of each run's last point, with the classes and frames of its data."""
    best = best_layers(probes[probes.weights == "trained"])
    spent = best.groupby(["data_key", "head", "run_id"]).macs_total.transform("max")
    about = probes.drop_duplicates("data_key").set_index("data_key")[["classes", "frames"]]
    return best[best.macs_total == spent].join(about, on="data_key")


def _tracked(shown: Sources, found: Findings) -> Texts:
    for tracked in shown.tracked:
        about = tracked.rows.iloc[0]
        best = davis_best(tracked.rows).sort_values("macs_total").drop_duplicates(
            "weights", keep="last"
        )  # fmt: skip
        told = []
        for row in best.to_dict("records"):
            of = {"trained": row["size"], "random": f"random {row['size']}"}
            told.append(
                f"{of.get(row['weights'], row['weights'])} "
                f"{row['j_mean']:.1%} / {row['f_mean']:.1%} / {row['jf']:.1%}"
            )
        yield (
            f"{', '.join(told)} (J / F / J&F; {about['data']}, {about['protocol']}, "
            f"{about['rows']} rows)"
        )


def _anticipated(shown: Sources, found: Findings) -> Texts:
    if shown.anticipation is None:
        return
    for of, rows in settings(shown.anticipation):
        first = rows.iloc[0]
        silent = f", {first.silent} of them without a prediction" if first.silent else ""
        yield (
            f"{named(of)}: {figures(rows)} (top-5 mAP, %, {first.n_test:,} frames of "
            f"{of['data']}{silent})"
        )


def _films(shown: Sources, found: Findings) -> Texts:
    for tracked in shown.tracked:
        for film in tracked.films:
            yield f"{film.sequence}, {int(tracked.rows.iloc[0]['rows'])} rows"


def _tuned(
    keep: Callable[[pd.DataFrame], pd.Series], value: str = "top1", files: str = "n_test"
) -> Callable[[Sources, Findings], Texts]:
    """Fine-tunings that `keep` keeps, from trained weights, at their best layer."""

    def texts(shown: Sources, found: Findings) -> Texts:
        if shown.finetune is None:
            return
        chosen = shown.finetune[keep(shown.finetune) & (shown.finetune.weights == "trained")]
        by = ["data", "data_key", "run_id", "size", "px", "frames", "attention", "end_to_end",
              "head", "steps", "lr"]  # fmt: skip
        for key, one in chosen.groupby(by, sort=False, dropna=False):
            named = dict(zip(by, key, strict=True))
            wide = one.pivot_table(index="seed", columns="layer", values=value)
            scores = scored_by_others(wide.to_numpy(float))
            mean, low, high = over_seeds(
                scores, one.n_train.mean(), one[files].mean(), one.split.iloc[0]
            )
            yield (
                f"{named['size']} {mean:.1%} [{low:.1%}, {high:.1%}] on {named['data']}, "
                f"{named['frames']} frames of {named['px']} px, {named['attention']} attention"
                + (", end to end" if named["end_to_end"] else ", fine-tuned")
            )

    return texts


def _law(shown: Sources, found: Findings) -> Texts:
    if found.law is None:
        return
    for law in [found.law.pure, *([found.law.law] if found.law.law.e else [])]:
        low, high = law.ci["b"]
        floor = f"{number_text(law.e)} + " if law.e else ""
        yield (
            f"L = {floor}{number_text(law.a)} C^{law.b:.4f}, exponent [{low:.4f}, {high:.4f}], "
            f"{law.decades:.2g} decades to {law.compute.max():.2g} {law.unit}"
        )


def _positions(shown: Sources, found: Findings) -> Texts:
    record = shown.positions
    if not isinstance(record, dict):
        return
    try:
        points = position_points(record["loss"], record["tokens_per_frame"])
        size = str(record["size"])
    except (ValueError, KeyError, TypeError):  # the part on positions says so
        return
    frames = points.dropna(subset="frame_loss").groupby("frame").frame_loss.first()
    if len(frames) > 1:
        yield (
            f"{size}: {number_text(frames.iloc[0])} nats per token in the first frame, "
            f"{number_text(frames.iloc[1:].mean())} in the later ones"
        )


def _rates(shown: Sources, found: Findings) -> Texts:
    if found.rates is None:
        return
    for line in found.rates.lines(loss_unit(shown.rows.tokenizer)):
        if not line.startswith(" "):
            yield line.split(";")[0]


def _generated(shown: Sources, found: Findings) -> Texts:
    for one in shown.generated:
        drawn = one.losses[one.losses.what == "drawn"]
        yield f"{one.losses['clip'].iloc[0]}: {int(drawn.frame.max()) + 1} frames"


def _all_of(*several: Callable[[Sources, Findings], Texts]) -> Callable[[Sources, Findings], Texts]:
    def texts(shown: Sources, found: Findings) -> Texts:
        for one in several:
            yield from one(shown, found)

    return texts


def _beside_next_tokens(moving: bool) -> Callable[[pd.DataFrame], pd.Series]:
    """Fine-tunings on next tokens, of pictures or of clips in which nothing is hidden."""
    return lambda t: ~t.end_to_end & ((t.frames > 1) == moving) & (t.n_hidden == 0)


HERE: dict[str, Callable[[Sources, Findings], Texts]] = {
    "Table 1": _sizes,
    "Table 2": _data,
    "Figure 2": _training,
    "Figure 3": _ngrams(1),
    "Table 3": _choices("(Table 3)"),
    "Table 4": _choices("(Table 4)"),
    "Table 5": _choices("(Table 5)"),
    "Table 6": _choices("(Table 6)"),
    "Figure 4": _layers("attention"),
    "Table 7": _all_of(_probed("attention", moving=False), _tuned(_beside_next_tokens(False))),
    "Table 8": _all_of(_probed("attention", moving=True), _tuned(_beside_next_tokens(True))),
    "Table 9": _anticipated,
    "Table 10": _tracked,
    "Figure 5": _films,
    "Table 12": _tuned(lambda t: (t.n_hidden > 0) | t.data.str.contains("cater", case=False)),
    "Figure 8": _layers("attention", tasks=True),
    "Figure 9": _law,
    "Figure 10": _positions,
    "Figure 11": _rates,
    "A.2": _choices("(A.2)"),
    "Table 13": _tuned(lambda t: t.end_to_end & (t.attention == "full") & (t.frames == 1)),
    "Table 14": _probed("average", moving=False),
    "Table 15": _sizes,
    "Figure 12": _ngrams(2),
    "Figure 13": _ngrams(3),
    "Table 16": _probed("cross", moving=True),
    "A.8": _generated,
    "Figure 14": _layers("average"),
}
