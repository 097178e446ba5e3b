"""Reading the variants of a study: each trained model, by a head or fine-tuned, on labelled data.

Seed i is the i-th training of a variant, the i-th split of the files and the i-th start of the
heads: all that chance decides differs together, and seed i of two variants shares split and order.

STUDY/variants.csv: one row per data, variant, weights, seed and layer, beside rows.csv.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pandas as pd

from scaling.config.schema import StudyConfig, variant_studies
from scaling.errors import UserError
from scaling.models.probes import Recipe
from scaling.representations import finetune, probe
from scaling.representations.encoded import Views, encoded
from scaling.representations.labelled import Labelled, read_labelled
from scaling.representations.trained import (
    WEIGHTS,
    TrainedRun,
    data_dir_of,
    open_tokenizer,
    trained_runs,
)
from scaling.storage import files
from scaling.study_folder import Study

COLUMNS = [
    "study", "variant", "run_id", "size", "params", "macs_total", "tokenizer", "data", "data_key",
    "px", "tokens", "head", "tuned", "weights", "seed", "layer", "depth", "split", "n_train",
    "n_test", "top1", "chance", "next_token_loss",
]  # fmt: skip
Say = Callable[[str], None]


def read_variants(
    study: Study,
    config: StudyConfig,
    data: Path,
    *,
    views: Views = Views(),  # noqa: B008 (frozen)
    memory_gb: float = 2.0,
    say: Say = print,
) -> Path:
    """Probe or fine-tune every run of every variant; returns STUDY/variants.csv.

    Rows of other data that are there stay. What is finished is not done again.
    Raises UserError: a study that is not trained to its end, and what `probe` and `tuned` raise.
    """
    try:
        runs_of: dict[str, list[str]] = files.read_json(study.variants_json, dict)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{study.variants_json}: cannot be read ({error}); run `scaling study` first"
        ) from None
    if missing := [name for name in variant_studies(config) if name not in runs_of]:
        raise UserError(
            f"{study}: {', '.join(missing)}: not trained yet; run `scaling study` first"
        )
    path = study.variants_csv
    study.claim(path, inputs=[data])
    labelled = read_labelled(data)
    if labelled.about:
        say(labelled.about)
    rows: list[dict[str, Any]] = []
    for name, one in variant_studies(config).items():
        for seed, run_id in enumerate(runs_of[name]):
            budgets = one.ladder.budgets_macs if one.ladder else ()
            (trained,) = (  # two variants may be two budgets of one run
                t for t in trained_runs(study, [run_id]) if t.row["budget_macs"] in budgets
            )
            label = open_tokenizer(data_dir_of(study, trained.run))[1]["tokenizer"]["label"]
            about = f"{name}, seed {seed}: {trained.run.model.name}, {label}"
            if one.finetune is None:
                found = _probed(study, one, trained, labelled, data, seed, views, memory_gb, say)
            else:
                say(about)
                found = finetune.tuned(
                    study, trained, labelled, data, one.finetune, one.probe.head, seed, say
                )
                found = [r | {"weights": "trained", "tuned": _described(one)} for r in found]
            mine = [r["top1"] for r in found if r["weights"] == "trained"]
            say(f"{about}: top-1 {max(mine):.1%} (chance {found[0]['chance']:.1%})")
            about_data = {"data_key": labelled.key, "tokenizer": label}
            rows += [r | about_data | {"variant": name} for r in found]
    table = pd.DataFrame(rows, columns=COLUMNS)  # a probe has no next-token loss
    if path.exists():
        before = pd.read_csv(path, dtype={"run_id": str})
        if list(before.columns) == COLUMNS:  # else an older version wrote it
            of_study = before.run_id.isin({r for ids in runs_of.values() for r in ids})
            before = before[of_study & (before.data_key != labelled.key)]
            if before.data.isin(table.data).any():  # two folders of one name
                table["data"] += f" ({labelled.key[:6]})"
            table = pd.concat([before, table])
    return study.write(path, table.to_csv(index=False))


def _probed(
    study: Study, one: StudyConfig, trained: TrainedRun, labelled: Labelled, data: Path, seed: int,
    views: Views, memory_gb: float, say: Say,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of the model as it was trained, and of its random weights."""
    folder = encoded(study, trained, labelled, data, views, Recipe(), say)
    found = []
    for weights in WEIGHTS:
        probe.probe_run(
            folder, trained, weights, (one.probe.head,), None, range(seed, seed + 1), memory_gb,
            Recipe(), lambda _: None, Event(),
        )  # fmt: skip
        rows = probe.read_rows(folder / f"{trained.label(weights)}-{one.probe.head}.json")
        found += [r for r in rows if r["seed"] == seed]
    px = one.data.size
    tokens = (px // one.tokenizer.patch) ** 2
    return [r | {"px": px, "tokens": tokens, "tuned": ""} for r in found]


def _described(one: StudyConfig) -> str:
    """Of a fine-tuning: `300 steps, causal, RoPE base 50,000`."""
    assert one.finetune is not None
    tuning = one.finetune
    end = ", end to end" * tuning.end_to_end
    long = f"{tuning.steps} steps" if tuning.epochs is None else f"{tuning.epochs:g} epochs"
    return f"{long}, {tuning.attention}{end}, RoPE base {tuning.rope_base:,.0f}"
