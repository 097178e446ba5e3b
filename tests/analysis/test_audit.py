"""The audit: a fault that is planted alone is found, a clean table raises nothing weighty."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from scaling.analysis.laws.fit import NotIdentified
from scaling.analysis.questions.audit import QUESTIONS, Audit, audit
from scaling.analysis.questions.audit_case import Case, Finding
from scaling.analysis.questions.frontier import fit_frontier
from scaling.analysis.questions.simulate import PURE, TRUTH, Truth, study
from scaling.analysis.report.audit import audit_table
from scaling.analysis.tables import read
from scaling.analysis.tables.ladder import Ladder
from scaling.cli import app


def clean(truth: Truth = PURE, **more: Any) -> pd.DataFrame:
    """Two seeds of nine sizes over 2.4 decades, settings told, rates by size."""
    design: dict[str, Any] = {
        "sizes": 9, "budgets": 7, "decades": 2.4, "seeds": 2, "trunks": False,
        "run_noise": 0.0, "point_noise": 0.001, "seed": 4,
    }  # fmt: skip
    rows = study(truth, **(design | more))
    rate = 0.01 * (rows["params"] / rows["params"].min()) ** -0.3
    return rows.assign(
        lr=rate.round(5), batch_tokens=1000, schedule="cosine", epochs=1.0, vocab=512
    )


def findings(
    rows: pd.DataFrame, *, at: float | None = None, notes: Iterable[str] = ()
) -> dict[str, Finding]:
    """Everything but the costly question of the analysts' choices, by key."""
    law, refusal = None, ""
    try:
        law = fit_frontier(rows, resamples=400)
    except NotIdentified as error:
        refusal = str(error)
    case = Case(
        Ladder.of(rows), tuple(notes), at, law, refusal, pd.DataFrame({"form": [], "b": []})
    )
    return {f.key: f for ask in QUESTIONS for f in ask(case)}


def with_slower_rates(rows: pd.DataFrame) -> pd.DataFrame:
    more = rows.assign(run_id="slow " + rows["run_id"], lr=rows["lr"] * 4)
    return pd.concat([rows, more.assign(val_loss=rows["val_loss"] * 1.02)], ignore_index=True)


def with_training_curves(rows: pd.DataFrame) -> pd.DataFrame:
    parts = [rows]
    for share in (0.37, 0.53, 0.71):
        early = rows.assign(
            tokens=rows["tokens"] * share, macs_total=rows["macs_total"] * share,
            budget_macs=np.nan, val_loss=rows["val_loss"] * share**-0.05,
        )  # fmt: skip
        parts.append(early)
    return pd.concat(parts, ignore_index=True)


def without_large_sizes(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["params"] < PURE.n_opt(rows["macs_total"].to_numpy())]


def of_one_ratio(_: pd.DataFrame) -> pd.DataFrame:
    n = np.geomspace(1e6, 1e8, 8)
    d = 20 * n
    loss = PURE(n, d) * np.exp(0.001 * np.random.default_rng(0).standard_normal(8))
    return read(pd.DataFrame({"N": n, "D": d, "loss": loss}))[0]


def with_a_run_below_the_floor(_: pd.DataFrame) -> pd.DataFrame:
    rows = clean(TRUTH, decades=4.0)
    stray = rows.iloc[[-1]].assign(run_id="stray", budget_macs=np.nan, val_loss=1.2)
    return pd.concat([rows, stray], ignore_index=True)


def steepening(rows: pd.DataFrame) -> pd.DataFrame:
    decades = np.log10(rows["macs_total"] / rows["macs_total"].min())
    return rows.assign(val_loss=rows["val_loss"] * np.exp(-0.02 * decades**2))


def scaled(column: str, factor: float) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda rows: rows.assign(**{column: rows[column] * factor})


def compute(factor: float) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda rows: rows.assign(
        macs_total=rows["macs_total"] * factor, budget_macs=rows["budget_macs"] * factor
    )


def largest_budget_worse(rows: pd.DataFrame) -> pd.DataFrame:
    top = rows["budget_macs"] == rows["budget_macs"].max()
    return rows.assign(val_loss=rows["val_loss"] * np.where(top, 1.04, 1.0))


FAULTS: dict[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    # fault: the question's key, how it is planted, what the evidence says
    "rates searched": ("settings", with_slower_rates, "learning rate varies within"),
    "training curves": ("history", with_training_curves, "as a training curve has"),
    "two tokenizers": (
        "mixture", lambda r: r.assign(tokenizer=np.where(r["seed"] == 0, "a", "b")), "2 values of",
    ),
    "20 epochs": ("repetition", lambda r: r.assign(epochs=20.0), "up to 20 passes"),
    "no large sizes": ("edge", without_large_sizes, "at 7 of 7 budgets"),
    "one ratio": ("ratio", of_one_ratio, "about 20 tokens per parameter"),
    "below the floor": ("floor", with_a_run_below_the_floor, "the lowest loss is 1.2"),
    "perplexity": ("loss", lambda r: r.assign(val_loss=np.exp(3 * r["val_loss"])), "perplexity"),
    "tiny loss": ("loss", scaled("val_loss", 0.01), "smaller than any"),
    "FLOPs as MACs": ("cost", compute(2.0), "it is 12 N D"),
    "forward alone": ("cost", compute(1 / 3), "it is 2 N D"),
    "one decade": ("range", lambda _: clean(decades=1.1), "1.10 decades"),
    "steepens": ("curvature", steepening, "it steepens"),
    "last budget off": ("held out", largest_budget_worse, "predicted from the rest"),
    "one budget": ("law", lambda r: r[r["budget_macs"] == r["budget_macs"].min()], "distinct"),
    "no trend": ("law", lambda r: r.assign(
        val_loss=2 * np.exp(0.01 * np.random.default_rng(1).standard_normal(len(r)))), "holds 0"),
}  # fmt: skip


@pytest.fixture(scope="module")
def found() -> Audit:
    return audit(clean())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str) -> None:
    key, plant, evidence = FAULTS[fault]
    one = findings(plant(clean()))[key]
    assert one.weight == "weighty", one
    assert evidence in one.evidence and one.remedy, one


def test_a_clean_table_raises_nothing_weighty(found: Audit) -> None:
    assert found.open == (), [f.evidence for f in found.open]
    fine = {f.key for f in found.findings if f.weight == "fine"}
    assert {"law", "edge", "settings", "mixture", "ratio", "cost", "seeds", "columns"} <= fine
    assert "parameters on" in found.next and "narrows the exponent" in found.next


def test_what_is_asked_far_beyond_the_runs_is_said() -> None:
    rows = clean()
    top = float(rows["macs_total"].max())
    assert findings(rows, at=top)["distance"].weight == "fine"
    far = findings(rows, at=1e3 * top)["distance"]
    assert far.weight == "weighty" and "decades" in far.evidence


def test_slight_questions() -> None:
    rows = clean(seeds=1).drop(columns=["lr", "schedule", "epochs"])
    some = findings(rows, notes=["not used: 'warmup', 'epoch'", "loss: column 'x'"])
    assert some["seeds"].weight == "slight" and "one seed" in some["seeds"].evidence
    assert some["columns"].weight == "slight"
    assert "no column tells learning rate, schedule, passes" in some["columns"].evidence
    assert "not used: 'warmup', 'epoch'" in some["columns"].evidence
    assert "loss: column" not in some["columns"].evidence


def test_an_audit_is_plain_data(found: Audit) -> None:
    assert Audit.from_json(json.loads(json.dumps(found.to_json()))) == found
    said = str(found)
    assert said.splitlines()[1].startswith(f"{len(found.findings)} questions: 0 weighty, ")
    page = audit_table(found)
    assert all(f.question in page for f in found.findings) and "The next run: " in page


def test_the_command_prints_json_and_is_strict(tmp_path: Path) -> None:
    rows = clean(seeds=1)
    rows = rows[rows["params"] < PURE.n_opt(rows["macs_total"].to_numpy())]
    path = tmp_path / "runs.csv"
    pd.DataFrame(
        {"N": rows["params"], "D": rows["tokens"], "loss": rows["val_loss"]}
    ).to_csv(path, index=False)  # fmt: skip
    done = CliRunner().invoke(app, ["audit", str(path), "--json", "--strict"])
    assert done.exit_code == 1, done.output
    found = Audit.from_json(json.loads(done.stdout))
    assert any(f.key == "edge" for f in found.open)
    assert "column 'loss'" in done.stderr


REFUSED = {
    "cs336_isoflops_curves.json", "mlfoundations_overtraining_104.csv", "openclip_arch_info.csv",
    "nanosmol_all_eval_points.csv", "nanosmol_run_summaries.csv", "openclip_zeroshot_results.csv",
    "xlstm_isoflop_llama_ctx8192.csv",
}  # fmt: skip


def test_published_tables_are_audited_or_refused(shared_data: Path) -> None:
    """No table of the field's ends in a traceback; what cannot be read without a flag is refused
    by the reader, and the audit of the others has a law or says why not."""
    read_at_all = 0
    for path in sorted((shared_data / "scaling_tables").glob("*.[cj]s*")):
        try:
            rows, notes = read(path)
        except ValueError as refusal:
            assert path.name in REFUSED, refusal
            continue
        read_at_all += 1
        some = findings(rows, at=10 * float(rows["macs_total"].max()), notes=notes)
        assert {"law", "columns"} <= set(some), path.name
        assert all(f.evidence and (f.remedy or f.weight == "fine") for f in some.values())
    assert read_at_all >= 6


def test_searched_rates_are_found_in_a_published_grid(shared_data: Path) -> None:
    """Step law's 1,911 runs are 17 cells of 47 to 120 rates and batches."""
    rows, notes = read(shared_data / "scaling_tables" / "steplaw_dense_lr_bs_loss.csv")
    one = findings(rows, notes=notes)["settings"]
    assert one.weight == "slight" and "vary within 17 cells" in one.evidence  # the best of each
    one = findings(rows.assign(role="ladder"))["settings"]
    assert one.weight == "weighty" and "learning rate varies within 17 cells" in one.evidence
