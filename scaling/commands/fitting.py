"""Commands that read rows: fit, report. Imports are lazy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaling.commands.table_options import TableOptions, bewares_of, reads_tables, say_notes
from scaling.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from scaling.analysis.laws.formulas import Form

SourceArg = Annotated[
    str,
    typer.Argument(
        help="A study's folder, its rows.csv, any table of runs (CSV, JSON, Parquet, Markdown, "
        "FILE.xlsx#SHEET), an MLflow address such as http://HOST:5000#EXPERIMENT, Optuna's journal "
        "or database (FILE.db#STUDY), or a folder of runs that TensorBoard, Lightning or the "
        "Hugging Face Trainer logged."
    ),
]
SeedOption = Annotated[int, typer.Option(help="Seed of the bootstrap.")]
FloorOption = Annotated[
    float | None,
    typer.Option(
        "--e", help="Pin the floor E, in the unit of the loss as it is fitted; 0: a pure law."
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        help="Column of weights, in proportion to 1 / variance of the loss: how many runs a row is "
        "the mean of, or 1 / its squared standard error."
    ),
]
LossKindOption = Annotated[
    str | None,
    typer.Option(
        help="What L(N, D) minimises: huber | squared | l1 of log loss, linear (squared) | "
        "asymmetric of the loss itself."
    ),
]
DeltaOption = Annotated[
    float | None,
    typer.Option(
        help="Corner of Huber's loss, in log loss; with --loss-kind linear in the loss itself."
    ),
]
FormOption = Annotated[
    str,
    typer.Option(
        help="select | power | saturating | parametric | overtraining | curve | rates; of "
        "repeated data: repeated | effective | effective_data | penalty; or your formula: FORM.yaml"
    ),
]
FigureOption = Annotated[
    Path | None,
    typer.Option(
        help="Draw it: FILE.html, or .png or .svg through a local Chromium. Its data go to "
        "FILE.points.csv beside it."
    ),
]

FORMS = ("select", "power", "saturating")  # of one variable
SURFACES = ("parametric", "overtraining")  # of N and D
CURVE = "curve"  # of the loss along a run, under any schedule
RATES = "rates"  # of the best learning rate and batch, and the loss off them


def read(
    source: str | Path, *, group: str | None = None, form: Form | str | None = None, **options: Any
) -> pd.DataFrame:
    """Rows of a study, or of anyone's runs in a file or an MLflow server; prints how the latter
    were read. options: of scaling.analysis.tables.read. group: only the rows of this value of the
    column `by`, without printing. form: that the rows are read for, whose columns are kept."""
    from scaling.analysis.questions.form_study import further, notes_for
    from scaling.runs import rows_of

    if form is not None:
        options["keep"] = (*options.get("keep", ()), *further(form))
    found, notes = rows_of(source, **options)
    if form is not None:
        notes = notes_for(notes, form)
    if group is not None:
        found = found[found["by"] == group].reset_index(drop=True)
    else:
        say_notes(notes)
    found.attrs["notes"] = tuple(notes)  # `scaling audit` asks for them
    return found


@reads_tables
def fit(
    source: SourceArg,
    form: FormOption = "select",
    of: Annotated[str, typer.Option(help="A law of: compute | params | tokens")] = "compute",
    method: Annotated[
        str, typer.Option(help="Frontier: auto | budget | lowest | binned | envelope | hull")
    ] = "auto",
    e: FloorOption = None,
    weights: WeightsOption = None,
    loss_kind: LossKindOption = None,
    delta: DeltaOption = None,
    at: Annotated[float | None, typer.Option(help="Predict the loss there.")] = None,
    figure: FigureOption = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the law to FILE.json, for `scaling predict`.")
    ] = None,
    seed: SeedOption = 0,
    *,
    table: TableOptions,
    groups: str | None = None,
) -> None:
    """Fit a law to finished runs: L = a C^b or L = E + a C^b, of compute, of parameters or of
    tokens; L(N, D) with --form parametric; L(N, M = D/N) with --form overtraining; L(N, D, U) of
    repeated data with --form repeated; any formula with --form FORM.yaml; the loss
    along a run under any schedule of the rate with --form curve, from a table of step, lr, loss;
    the best learning rate and batch as laws of N and D with --form rates.

    Example: `scaling fit studies/quickstart`

    Example: `scaling fit table.csv --n "Model Size" --c "Training FLOP" --compute-unit FLOPs`

    Example: `scaling fit table.csv --form parametric --e 1.7 --weights count --save law.json`

    Example: `scaling fit history.csv --form curve --save curve.json`

    Example: `scaling fit sweep.csv --form rates --save rates.json`
    """
    if figure is not None:
        drawn_files("scaling fit", figure, source)
    if save is not None:
        _claim_law(save, source)
    unlike = {
        "e": e, "weights": weights, "loss_kind": loss_kind, "figure": figure,
        "of": of if of != "compute" else None, "method": method if method != "auto" else None,
    }  # fmt: skip
    if form in (CURVE, RATES):
        given = unlike | {"at": at, "figure": None}
        _fit_apart(form, source, table, groups, given, delta, save, figure)
        return
    if Path(source).is_dir() and table["metric"] not in (None, "loss"):
        unlike |= {"delta": delta, "save": save, **table, "metric": None}
        what = f"--metric {table['metric']} of a study's folder"
        _refuse_unread(what, "fit another table", **unlike)
        _fit_quality(Path(source), table["metric"], form, at, seed)
        return
    other = _check_form(form, of, method=method, loss_kind=loss_kind, figure=figure)
    chosen = _criterion(loss_kind, delta) | {"form": other or form, "method": method, "seed": seed}
    of_ladder = {"variable": of, "e": e, "weights": weights}
    rows = read(source, of=of, keep=() if weights is None else (weights,), form=other, **table)
    bewares = bewares_of(rows.attrs.get("notes", ()))
    if groups is None:
        _fit_rows(rows, of_ladder, chosen, at, figure, save, bewares)
        return
    parts = {
        f"{groups} = {value}": part.reset_index(drop=True) for value, part in rows.groupby("by")
    }
    without = _fit_parts(parts, of_ladder, chosen, at, figure, save, bewares)
    parts = {name: part for name, part in parts.items() if name not in without}
    if other is None and form not in SURFACES and of == "compute":
        _say_differences(parts, of_ladder, table["metric"], chosen)


def _fit_apart(
    form: str, source: str, table: TableOptions, groups: str | None, unlike: dict[str, Any],
    delta: float | None, save: Path | None, figure: Path | None,
) -> None:  # fmt: skip
    """The law of the loss curve, or of rate and batch: forms that are no law of finished runs' best
    losses. unlike: options that they do not read."""
    what = f"--form {form}"
    if form == CURVE:
        from scaling.commands.curves import READ, fit_table

        unlike |= {k: v for k, v in table.items() if k not in READ}
        _refuse_unread(what, "fit another form", **unlike)
        fit_table(source, table, _criterion(None, delta).get("delta"), save, figure, draw)
        return
    from scaling.analysis.questions.rate_doubts import notes_of
    from scaling.commands import rates
    from scaling.runs import rows_of

    _refuse_unread(what, "fit another form", **unlike, delta=delta, metric=table["metric"])
    rows, notes = rows_of(source, **table)
    kept = notes_of(notes)
    say_notes(kept)
    parts = {"": rows}
    if groups is not None:
        by = rows.groupby("by")
        parts = {f"{groups} = {value}": one.reset_index(drop=True) for value, one in by}
    rates.fit_rows(parts, kept, save, figure, draw)


def _check_form(
    form: str, of: str, *, method: str, loss_kind: str | None, figure: Path | None
) -> Form | str | None:
    """The form, where it is one of laws/formulas.py or of the user's own.

    Raises UserError: no such form or variable, or an option that this one would not read.
    """
    if of not in ("compute", "params", "tokens"):
        raise UserError(f"--of {of}: choose compute, params or tokens")
    method_, of_ = method if method != "auto" else None, of if of != "compute" else None
    if form not in (*FORMS, *SURFACES):
        from scaling.runs import form_of

        other = form_of(form)
        _refuse_unread(
            f"--form {form}", "fit a law of compute", method=method_, loss_kind=loss_kind, of=of_
        )
        return other
    if form in SURFACES:
        _refuse_unread(
            f"--form {form}", "fit a law of compute", method=method_, figure=figure, of=of_
        )
    elif of_ is not None:
        _refuse_unread(
            f"--of {of}", "fit a law of compute", method=method_, figure=figure,
            loss_kind=loss_kind,
        )  # fmt: skip
    else:
        _refuse_unread(f"--form {form}", "fit --form parametric", loss_kind=loss_kind)
    return None


def _say_differences(
    parts: dict[str, pd.DataFrame], of_ladder: dict[str, Any], metric: str | None,
    chosen: dict[str, Any],
) -> None:  # fmt: skip
    """How the law of each group differs from the first's."""
    from scaling.analysis.questions.frontier import fit_frontier
    from scaling.analysis.tables.ladder import Ladder
    from scaling.commands.comparing import Arm, say_difference, unit_of

    ladders = {name: Ladder.of(rows, **of_ladder) for name, rows in parts.items()}
    arms = [Arm(name, one, fit_frontier(one, **chosen), chosen) for name, one in ladders.items()]
    for other in arms[1:]:
        print(f"\n{other.name}: {other.law.compared}")
        say_difference(arms[0], other, unit_of(other.rows, metric))


def _claim_law(path: Path, source: str) -> None:
    """Raise UserError, before any work, where a law may not be written there."""
    from scaling.storage import outputs

    if path.suffix != ".json":
        raise UserError(f"--save {path}: end it in .json")
    outputs.claim("scaling fit", path, inputs=[Path(source)] if "://" not in source else [])


def _criterion(loss_kind: str | None, delta: float | None) -> dict[str, Any]:
    """What a fit minimises: those options that were given. Raises UserError."""
    from scaling.analysis.laws.parametric import LOSSES

    if loss_kind is not None and loss_kind not in LOSSES:
        raise UserError(f"--loss-kind {loss_kind}: choose one of {', '.join(LOSSES)}")
    if delta is not None and not 0 < delta < float("inf"):
        raise UserError(f"--delta {delta:g}: give a positive number, e.g. 0.001")
    if delta is not None and loss_kind not in (None, "huber", "linear"):
        raise UserError(
            f"--delta {delta:g}: --loss-kind {loss_kind} has no corner; leave one of them out, or "
            "give huber or linear"
        )
    given = {"loss_kind": loss_kind, "delta": delta}
    return {name: value for name, value in given.items() if value is not None}


def _fit_rows(
    rows: pd.DataFrame, of_ladder: dict[str, Any], chosen: dict[str, Any], at: float | None,
    figure: Path | None, save: Path | None, bewares: Sequence[str],
) -> None:  # fmt: skip
    """Fit, print, draw and save one law. of_ladder, chosen: the options of the ladder and of the
    fit. bewares: of the table."""
    form, method = chosen["form"], chosen["method"]
    options = {name: v for name, v in chosen.items() if name not in ("form", "method")}
    from scaling.analysis.findings import Repeated
    from scaling.analysis.questions import saved_law
    from scaling.analysis.questions.form_study import StudyForm, fit_study_form, repeated_law
    from scaling.analysis.questions.frontier import StudyLaw, fit_frontier
    from scaling.analysis.questions.parametric_study import StudySurface, fit_surface
    from scaling.analysis.questions.variable import VariableLaw, fit_variable
    from scaling.analysis.tables.ladder import Ladder
    from scaling.results import loss_unit

    ladder = Ladder.of(rows, **of_ladder)
    found: StudyLaw | VariableLaw | StudySurface | StudyForm
    if form not in (*FORMS, *SURFACES):
        found = fit_study_form(ladder, form, **options)
    elif form in ("parametric", "overtraining"):
        found = fit_surface(ladder, tied=form == "overtraining", **options)
    elif ladder.variable != "compute":
        found = fit_variable(ladder, form=form, **options)
    else:
        found = fit_frontier(ladder, form=form, method=method, **options)
    print(found.summary())
    if isinstance(found, StudyLaw):
        again = repeated_law(ladder, seed=chosen["seed"])
        if again is not None:
            print(Repeated.of(again))
    if figure is not None and isinstance(found, StudyLaw):
        from scaling.analysis.figures import runs as figures

        drawn = found.figure(rows, unit=loss_unit(rows.get("tokenizer", ())))
        draw("scaling fit", drawn, figures.run_points(rows), figure)
    if figure is not None and isinstance(found, StudyForm):
        from scaling.analysis.figures.forms import form_figure, form_points

        points = form_points(found.law)
        unit = loss_unit(rows.get("tokenizer", ()))
        draw("scaling fit", form_figure(points, unit=unit), points, figure)
    if at is not None:
        print(found.prediction(at))
    plain = options.keys() == {"seed"} and ladder.e is None and ladder.weights is None
    if form == "parametric" and plain and rows["budget_macs"].notna().any():
        from scaling.analysis.questions.isoflop import approaches, rule
        from scaling.analysis.questions.size_law import summary

        print(f"{summary(approaches(ladder, seed=chosen['seed']))}\n  {rule()}")
    if save is not None:
        from scaling.storage import outputs

        outputs.write("scaling fit", save, saved_law.text(found, bewares))
        print(f"  saved        {save}; `scaling predict {save} --at ...`")


def _fit_parts(
    parts: Mapping[str, pd.DataFrame], of_ladder: dict[str, Any], chosen: dict[str, Any],
    at: float | None, figure: Path | None, save: Path | None, bewares: Sequence[str],
) -> list[str]:  # fmt: skip
    """A law of each part, or why it has none; files are numbered in their order.

    Returns the parts without a law. Raises NotIdentified where that is every part.
    """
    from scaling.analysis.laws.fit import NotIdentified

    without = []
    for k, (name, part) in enumerate(parts.items(), 1):
        print(f"\n{name}: {len(part)} rows")
        drawn, saved = (f and f.with_stem(f"{f.stem}-{k}") for f in (figure, save))
        try:
            _fit_rows(part, of_ladder, chosen, at, drawn, saved, bewares)
        except NotIdentified as refusal:
            print(f"no law: {refusal}")
            without.append(name)
    if len(without) == len(parts):
        raise NotIdentified("no part has a law; the reason of each stands above")
    return without


def _refuse_unread(what: str, instead: str, **given: object) -> None:
    """Options that a form would not read are the user's mistake, not to be passed over."""
    unread = [
        f"--{name.replace('_', '-')} {value}" for name, value in given.items() if value is not None
    ]
    if unread:
        it = "it" if len(unread) == 1 else "them"
        raise UserError(
            f"{' and '.join(unread)}: {what} does not read {it}; leave {it} out, or {instead} "
            f"(without {what})"
        )


def drawn_files(command: str, path: Path, *sources: str) -> Path:
    """Where the data of a figure go. Raises UserError, before any work: no such kind of figure, or
    files that `command` may not replace."""
    from scaling.storage import outputs

    if path.suffix not in (".html", ".png", ".svg"):
        raise UserError(f"--figure {path}: end it in .html, .png or .svg")
    data = path.with_suffix(".points.csv")
    outputs.claim(command, path, data, inputs=[Path(s) for s in sources if "://" not in s])
    return data


def draw(command: str, figure: go.Figure, points: pd.DataFrame, path: Path) -> None:
    """A figure as HTML, PNG or SVG, by the file's ending, and its data beside it as CSV."""
    import shutil

    from scaling.analysis.figures.export import write_png, write_svg
    from scaling.storage import outputs, scratch

    data = drawn_files(command, path)
    if path.suffix == ".html":
        outputs.write(command, path, figure.to_html(include_plotlyjs=True))
    else:
        room = scratch.make()
        try:
            with outputs.writing(command, path) as picture:
                (write_png if path.suffix == ".png" else write_svg)(figure, picture, within=room)
        finally:
            shutil.rmtree(room, ignore_errors=True)
    outputs.write(command, data, points.to_csv(index=False))
    print(f"  drawn        {path}, its data {data.name}")


def _fit_quality(source: Path, metric: str, form: str, at: float | None, seed: int) -> None:
    """Print a law per data set and head; a refusal of all is the user's to mend."""
    from scaling.analysis.questions.frontier import StudyLaw
    from scaling.representations.learned import learned

    if not source.is_dir():
        raise UserError(f"{source}: --metric {metric} reads a study's folder")
    laws = learned(source).laws(metric, rows=read(source), seed=seed, form=form)
    for name, law in laws.items():
        if isinstance(law, StudyLaw):
            print(f"{name}: {law.summary(published=False)}")
            if at is not None:
                p = law.law.predict(at)
                told = f"{p.loss:.4g} [{p.low:.4g}, {p.high:.4g}] at {at:.3g} MACs"
                print(f"  predicts     {p if p.refused else told}")
        else:
            print(f"{name}: no law: {law}")
    if not any(isinstance(law, StudyLaw) for law in laws.values()):
        raise UserError(f"{source}: the data determine no law of {metric} (reasons above)")


def report(
    folder: Annotated[Path, typer.Argument(help="The study's folder, e.g. studies/quickstart.")],
    e: FloorOption = None,
    weights: WeightsOption = None,
) -> None:
    """Write report.html of a study again from its rows.

    Example: `scaling report studies/quickstart`

    Example: `scaling report studies/quickstart --e 1.7`
    """
    from scaling.study.page import law_and_page
    from scaling.study_folder import Study

    study = Study.open(folder)
    study.claim(*study.report_files)
    config, table = study.config(), study.rows()
    data_dir = study.tokens_of(str(table["data_key"].iloc[0])).path
    page, beside = law_and_page(config, study, data_dir, table, e=e, weights=weights)
    if beside is not None:
        for row in beside.itertuples():
            print(
                f"{row.data}: {row.choice:24} paper {row.paper:5.1f}  here {row.ours:5.1f} "
                f"[{row.low:.1f}, {row.high:.1f}]  to the first {row.difference:+.1f} "
                f"[{row.difference_low:+.1f}, {row.difference_high:+.1f}]"
            )
        print(f"table   {study.paper_csv}")
    print(f"report  {page}")
