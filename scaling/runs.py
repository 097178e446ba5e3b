"""Runs of a study or of anyone's table, and what may be asked of them: the front door's objects.

    runs = scaling.open("studies/quickstart")     # or scaling.read("table.csv", n="Model Size")
    print(runs.law().summary()); runs.law().figure()
    print(runs.compare("gpt3", "toto")); print(runs.audit(at=1e15))

What is asked is computed when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from scaling.analysis.findings import Findings, find
from scaling.analysis.laws.compare import Comparison
from scaling.analysis.laws.curve import Curve
from scaling.analysis.laws.formulas import Form
from scaling.analysis.laws.formulas import form_of as form_from
from scaling.analysis.laws.references import reference
from scaling.analysis.questions import choices
from scaling.analysis.questions.audit import Audit, audit
from scaling.analysis.questions.curve_study import StudyCurve, study_curves
from scaling.analysis.questions.design import Plan
from scaling.analysis.questions.form_study import (
    KNOWN,
    StudyForm,
    fit_study_form,
    form_named,
    further,
)
from scaling.analysis.questions.frontier import BESIDE, StudyLaw, fit_frontier
from scaling.analysis.questions.isoflop import approaches, size_laws
from scaling.analysis.questions.next import next_runs
from scaling.analysis.questions.parametric_study import StudySurface, fit_surface
from scaling.analysis.questions.rate_study import StudyRates, study_rates
from scaling.analysis.questions.rounds import PLACED
from scaling.analysis.questions.settings import Settings
from scaling.analysis.questions.settings import compare as compare_settings
from scaling.analysis.questions.size_law import SizeLaw
from scaling.analysis.questions.transfer import Rates, learning_rate_points, series_points
from scaling.analysis.questions.variable import VariableLaw, fit_variable
from scaling.analysis.schema import ALWAYS, loss_unit
from scaling.analysis.tables import read as read_table
from scaling.analysis.tables.curves import read_curves
from scaling.analysis.tables.files import is_folder, parted
from scaling.analysis.tables.ladder import Ladder
from scaling.analysis.tables.trials import is_database
from scaling.config import yaml_file
from scaling.errors import UserError, did_you_mean
from scaling.results import frame, read_csv
from scaling.study.curves import frame as logged_curves
from scaling.study_folder import Study

if TYPE_CHECKING:
    import plotly.graph_objects as go

FORMS = ("select", "power", "saturating", "parametric", "overtraining", "curve")
YAML = (".yaml", ".yml")
READ_ALREADY = "runs that were read have their columns, floor and weights: leave them out"


@dataclass(frozen=True, eq=False)
class Runs:
    """Rows, one an evaluation of a run, and the questions that `scaling` asks of them.

    Compute is in training MACs (1 MAC = 2 FLOPs), losses in `unit`. e: pins the floor E of every
    law, in that unit. weights: column in proportion to 1 / variance of the loss. What the rows do
    not determine is refused with the reason: NotIdentified, a UserError.
    """

    name: str
    rows: pd.DataFrame  # columns of scaling.analysis.schema.COLUMNS, as far as they are known
    notes: tuple[str, ...] = ()  # how a table was read; () of a study
    e: float | None = None
    weights: str | None = None

    def ladder(self, variable: str = "compute") -> Ladder:
        """The rows that count in a law of compute, of params or of tokens."""
        if variable == "compute":
            return self._ladder
        return Ladder.of(self.rows, variable=variable, e=self.e, weights=self.weights)

    @cached_property
    def _ladder(self) -> Ladder:
        return Ladder.of(self.rows, e=self.e, weights=self.weights)

    def law(
        self, *, form: str = "select", method: str = "auto", seed: int = 0, **options: Any
    ) -> StudyLaw:
        """The law of compute, L(C) in MACs.

        form: "select", "power" or "saturating". method: "auto" or how the frontier's points are
        read, as of `frontier`. options, errors: as of `fit_frontier`.
        """
        return fit_frontier(self._ladder, seed, form=form, method=method, **options)

    def law_of(self, variable: str, *, form: str = "select", **options: Any) -> VariableLaw:
        """The law of "params" or "tokens"; arguments and errors as of `fit_variable`."""
        return fit_variable(self.ladder(variable), form=form, **options)

    def surface(self, *, tied: bool = False, **options: Any) -> StudySurface:
        """The law L(N, D); arguments and errors as of `fit_surface`."""
        return fit_surface(self._ladder, tied=tied, **options)

    def form(self, form: str | Path | Form, **options: Any) -> StudyForm:
        """The law of any form: a name of `scaling.analysis.laws.formulas.FORMS`, "repeated", a
        YAML file or a `Form` of one's own; options and errors as of `fit_study_form`."""
        return fit_study_form(self._ladder, form_of(form), **options)

    def size_laws(self, **options: Any) -> list[SizeLaw]:
        """N* = k C^p and D* = k C^p by each method, as `isoflop.size_laws`."""
        return size_laws(self._ladder, **options)

    def sizes(self, **options: Any) -> pd.DataFrame:
        """The laws of the best size and number of tokens side by side, as `approaches`."""
        return approaches(self._ladder, **options)

    def choices(self) -> pd.DataFrame:
        """The exponent under every reasonable choice, as `choices.specifications`."""
        return choices.specifications(self._ladder)

    def choices_figure(self, shown: Sequence[str], *, law: StudyLaw | None = None) -> go.Figure:
        """The exponents of `choices`, of the form of a law (of `law()`, where it is None).

        shown: the choices of each that are marked below: compute, frontier, corner, points.
        """
        from scaling.analysis.figures import law as figures_law

        law = law or self.law()
        table = self.choices()
        mine = table[table["form"] == ("saturating" if law.law.e else "pure")]
        points = figures_law.specification_points(mine)
        return figures_law.specification_figure(points, shown, law.law.ci["b"])

    def influence(self, *, form: str = "pure") -> pd.DataFrame:
        """The exponent without each run and each budget, as `choices.influence`."""
        return choices.influence(self._ladder, form=form)

    def next(self, budget: float, **options: Any) -> Plan:
        """The runs that so many MACs should buy, as `next_runs`."""
        return next_runs(self._ladder, budget, **options)

    def audit(self, *, at: float | None = None, seed: int = 0) -> Audit:
        """What a referee would ask, the heaviest first, and the run that would settle most.

        at: MACs whose loss the law is to predict. Rows that determine no law are audited as far as
        they go.
        """
        return audit(self._ladder, notes=self.notes, at=at, seed=seed)

    def findings(self, law: StudyLaw | None = None) -> Findings:
        """All that a study's page says, as data; law: of `law`, fitted here where it is None."""
        return find(self._ladder, law or self.law())

    def rates(self) -> Rates:
        """The sweeps over several widths or depths side by side: does the best rate transfer?"""
        return Rates.of(series_points(self.rows))

    def transfer_figure(self) -> go.Figure:
        """`rates` as a figure: loss against the rate, a panel a series."""
        from scaling.analysis.figures.transfer import transfer_figure

        return transfer_figure(self.rates(), unit=self.unit)

    def sweep(self) -> pd.DataFrame:
        """Final losses by learning rate and model, as `learning_rate_points`."""
        return learning_rate_points(self.rows)

    def settings(self) -> Settings:
        """The settings that were swept with the rate, the best first: which are told apart.

        Raises UserError: none were.
        """
        found = compare_settings(self.rows)
        if found is None:
            raise UserError(
                f"{self.name}: no settings were swept with the rate (`lr: {{over: ...}}`)"
            )
        return found

    def rate_figure(self) -> go.Figure:
        """Loss against learning rate, a line a width, and the rate of the ladder."""
        from scaling.analysis.figures import runs as figures

        used = self.rows.loc[self.rows["role"] == "ladder", "log2_lr"].unique()
        chosen = float(used[0]) if len(used) == 1 else None
        return figures.learning_rate_figure(self.sweep(), chosen, unit=self.unit)

    @property
    def unit(self) -> str:
        """Of the losses, in words."""
        return loss_unit(self.rows.get("tokenizer", ()))

    def compare(self, *others: str | Runs, seed: int = 0) -> list[Comparison]:
        """The exponent beside that of published laws, by name, and of other runs.

        Args:
            others: names of published laws ("gpt3", "toto", ...) or runs; without any: GPT-3's and
                Toto's.
            seed: of the bootstrap.
        Returns:
            One `Comparison` each: difference of exponents, its 95% interval, p, what follows.
        Raises:
            NotIdentified: one of the laws is not determined.
            UserError: a name that is not known.
        """
        mine = self.law(seed=seed)
        out = []
        for other in others or BESIDE:
            theirs = other.law(seed=seed) if isinstance(other, Runs) else reference(other)
            out.append(mine.beside(theirs, name=self.name))
        return out

    def figure(self, law: StudyLaw | None = None) -> go.Figure:
        """Every run, the frontier and the law (of `law`, fitted here where it is None)."""
        return (law or self.law()).figure(self.rows, unit=self.unit)


def open(folder: str | Path, *, e: float | None = None, weights: str | None = None) -> Runs:
    """The finished runs of a study, by its folder.

    Args:
        folder: of the study, e.g. "studies/quickstart".
        e, weights: of `Runs`.
    Raises:
        UserError: no study's folder, or no run has finished.
    """
    path = Path(folder)
    if path.is_file():
        raise UserError(f"{path}: a file, not a study's folder; scaling.read(...) reads a table")
    return Runs(path.name, Study.open(path).rows(), (), e, weights)


def read(
    source: str | Path | pd.DataFrame, *, e: float | None = None, weights: str | None = None,
    keep: Sequence[str] = (), **columns: Any,
) -> Runs:  # fmt: skip
    """The runs of a table in any usual format, a frame, an MLflow address or a study's folder.

    Args:
        source: what `scaling fit` takes, or a DataFrame with a row a run or an evaluation.
        e, weights: of `Runs`.
        keep: further columns to keep.
        columns: of `scaling.analysis.tables.read` (n=, d=, c=, loss=, compute_unit=, where= ...),
            where the names and units of the table do not tell.
    Returns:
        Runs whose `notes` say how each column was read.
    Raises:
        UserError: a table that cannot be read without guessing.

    >>> runs = read(pd.DataFrame({"params": [1e6], "tokens": [2e7], "loss": [4.0]}))
    >>> float(runs.rows["macs_total"][0]), runs.notes[3]
    (60000000000000.0, 'compute: 3 N D training MACs (6 N D FLOPs), as no column gives it')
    """
    kept = (*keep, *(() if weights is None else (weights,)))
    name = "table" if isinstance(source, pd.DataFrame) else str(source)
    rows, notes = rows_of(source, keep=kept, **columns)
    return Runs(name, rows, tuple(notes), e, weights)


def fit(
    source: str | Path | pd.DataFrame | Runs, *, form: str | Path | Form = "select",
    of: str = "compute", method: str = "auto", seed: int = 0, e: float | None = None,
    weights: str | None = None, **columns: Any,
) -> StudyLaw | VariableLaw | StudySurface | StudyForm:  # fmt: skip
    """The law of runs, as `scaling fit` finds it: of compute, of "params" or "tokens" (of), L(N, D)
    (form "parametric" or "overtraining"), or any other form.

    Args:
        source: of `read`; of `Runs` its own floor and weights hold.
        form: "select", "power", "saturating"; "parametric", "overtraining" of N and D; else a name
            of `scaling.analysis.laws.formulas.FORMS`, "repeated", a file FORM.yaml, or a `Form`.
        of: "compute" (MACs), "params" or "tokens".
        method: how the points of a law of compute are read, as of `fit_frontier`.
        seed: of the bootstrap.
        e, weights, columns: of `read`.
    Returns:
        StudyLaw, VariableLaw, StudySurface or StudyForm: each has `.law`, `.warnings` and
        `.summary()`.
    Raises:
        NotIdentified: a UserError; the runs do not determine it.
        UserError: arguments that do not go together, or a table that cannot be read.

    >>> sizes = {"params": [1e6, 1e7, 1e8, 1e9], "tokens": [2e7, 2e8, 2e9, 2e10]}
    >>> print(fit(pd.DataFrame(sizes | {"loss": [4.0, 3.4, 2.9, 2.5]}), form="power").law)
    L(C) = 11.75 C^-0.0341, C in MACs; exponent 95% [-0.0360, -0.0318]
    """
    if form not in FORMS:
        if of != "compute" or method != "auto":
            raise UserError("of and method are of laws of one variable: leave them out")
        other = form_of(form)
        if not isinstance(source, Runs):
            kept = tuple(columns.pop("keep", ())) + further(other)
            source = read(source, e=e, weights=weights, keep=kept, **columns)
        elif e is not None or weights is not None or columns:
            raise UserError(READ_ALREADY)
        return source.form(other, seed=seed)
    if form == "curve":
        raise UserError(
            "form is 'curve': a law of the loss along runs is fitted to their histories; call "
            "scaling.fit_curves(source)"
        )
    assert isinstance(form, str)
    surface = form in ("parametric", "overtraining")
    if surface and of != "compute":
        raise UserError(f"of is {of!r}: the form {form} is of parameters and tokens; leave it out")
    if (surface or of != "compute") and method != "auto":
        raise UserError(f"method is {method!r}: of a law of compute alone; leave it out")
    runs = source
    if not isinstance(runs, Runs):
        runs = read(runs, e=e, weights=weights, of=of, **columns)
    elif e is not None or weights is not None or columns:
        raise UserError(READ_ALREADY)
    if surface:
        return runs.surface(tied=form == "overtraining", seed=seed)
    if of != "compute":
        return runs.law_of(of, form=form, seed=seed)
    return runs.law(form=form, method=method, seed=seed)


def fit_curves(source: str | Path | pd.DataFrame, **columns: str | None) -> StudyCurve:
    """The law of the loss curves of one model, as `scaling fit --form curve` finds it.

    Args:
        source: a table with step, lr and loss along runs, a frame, or a study's folder.
        columns: run=, loss=, where= of `scaling.analysis.tables.curves.read_curves`.
    Returns:
        StudyCurve: `.law`, whose `.predict(schedule)` takes a
        `scaling.analysis.laws.schedule.Schedule`, `.answers`, `.warnings`, `.summary()`.
    Raises:
        NotIdentified: a UserError; one schedule only, no fall of the rate, too few losses.
        UserError: a table without a rate, or of several sizes.
    """
    if columns.get("by") is not None:
        raise UserError("by: of one model here; choose it with where=")
    return study_curves(curves_of(source, **columns)[0][""])


def fit_rates(source: str | Path | pd.DataFrame, **columns: Any) -> StudyRates:
    """The best learning rate and batch as laws of N and D, as `scaling fit --form rates` finds it.

    Args:
        source: of `read`: a sweep of several sizes, or a study's folder. columns: of `read`.
    Returns:
        StudyRates: `.law`, whose `.best(n, d)` is the best rate and batch, `.points`, `.warnings`,
        `.summary()`.
    Raises:
        NotIdentified: a UserError; too few cells, one rate, no optimum inside the rates tried.
        UserError: a table without rates, or of several parametrisations.
    """
    return study_rates(rows_of(source, **columns)[0])


def form_of(given: str | Path | Form) -> Form | str:
    """A form of one's own as it is, of a YAML file, or by its name; of "repeated", which stands for
    several, the name. Raises UserError: no such form, or a file that holds none.
    """
    if isinstance(given, Form):
        return given
    path = Path(given)
    if path.suffix in YAML:
        return form_from(yaml_file.read(path)[0], str(path))
    name = str(given)
    if name in FORMS:
        raise UserError(
            f"form is {name!r}: of compute or of N and D; ask `law` or `surface` for it"
        )
    if name not in KNOWN:
        every = (*FORMS, *KNOWN)
        raise UserError(
            f"form is {name!r}: choose one of {', '.join(every)}, or give a file FORM.yaml"
            f"{did_you_mean(name, every)}"
        )
    return form_named(name)


def rows_of(
    source: str | Path | pd.DataFrame, *, of: str = "compute", keep: Sequence[str] = (),
    **columns: Any,
) -> tuple[pd.DataFrame, Sequence[str]]:  # fmt: skip
    """Rows of a study, or of anyone's runs, and notes on how they were read; arguments and errors
    as of `scaling.analysis.tables.read`, None for what is not given."""
    found, ours = (
        (source, set(source.columns) >= ALWAYS)
        if isinstance(source, pd.DataFrame)
        else source_of(source)
    )
    given = {name: value for name, value in columns.items() if value is not None}
    if given.get("metric") == "loss":
        given.pop("metric")
    if ours and not given and isinstance(found, pd.DataFrame):
        return found, _of_design(source)
    rows, notes = read_table(found, of=of, keep=keep, **given)
    return rows, [*notes, *_of_design(source)]


def _of_design(source: str | Path | pd.DataFrame) -> list[str]:
    """What to know of the intervals of a study's folder whose ladder placed its own runs."""
    if isinstance(source, pd.DataFrame) or "://" in str(source) or not Path(source).is_dir():
        return []
    return [f"beware: {PLACED}"] * Study(Path(source)).design_json.exists()


def curves_of(
    source: str | Path | pd.DataFrame, **columns: str | None
) -> tuple[dict[str, list[Curve]], list[str]]:
    """The loss curves of a table of evaluations along runs, by group; arguments and errors as of
    `scaling.analysis.tables.curves.read_curves`."""
    if not isinstance(source, pd.DataFrame):
        path = Path(source)
        if path.is_dir() and Study(path).is_there():
            return read_curves(logged_curves(Study(path)), **columns)  # type: ignore[arg-type]
        found = _source(source)
        if isinstance(found, pd.DataFrame):
            raise UserError(
                f"{source}: rows of finished runs, without the loss along them: give the study's "
                "folder, or a table with step, lr and loss"
            )
        source = found
    return read_curves(source, **columns)  # type: ignore[arg-type]


def source_of(source: str | Path) -> tuple[pd.DataFrame | Path, bool]:
    """This tool's rows as a frame, a file of other rows as its path; and whether they are ours."""
    found = _source(source)
    return found, not isinstance(found, Path) and set(found.columns) >= ALWAYS


def _source(source: str | Path) -> pd.DataFrame | Path:
    path, part = parted(source)
    if "://" in str(source) and not is_database(path):
        from scaling.tracking import mlflow_copy

        uri, _, study = str(source).partition("#")
        if rows := mlflow_copy.load_rows(uri, study):
            return frame(rows)
        return pd.DataFrame(mlflow_copy.load_runs(uri, study))
    if part:
        return Path(f"{path}#{part}")
    if path.is_dir():
        if not Study(path).is_there() and is_folder(path):
            return path
        _refuse_other_folders(path)
        return Study(path).rows()
    if not path.exists():
        raise UserError(f"{path}: not a study directory and no such file")
    with path.open(errors="replace") as file:
        header = file.readline().strip().split(",")
    return read_csv(path) if path.suffix == ".csv" and set(header) >= ALWAYS else path


def _refuse_other_folders(path: Path) -> None:
    """Say what to give of a folder that another tool wrote."""
    if Study(path).runs_dir.is_dir():
        return
    if any(path.glob("*/meta.yaml")) or (path / "meta.yaml").exists():
        raise UserError(
            f"{path}: a folder of MLflow's old file store, which MLflow 3 refuses unless it is "
            f"told: MLFLOW_ALLOW_FILE_STORE=true scaling fit file://{path.resolve()}#EXPERIMENT"
        )
