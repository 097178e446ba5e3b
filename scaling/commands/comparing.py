"""The command that sets laws side by side: of studies, tables, groups of a table, published ones.

Imports are lazy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaling.commands.fitting import (
    FigureOption,
    FloorOption,
    SeedOption,
    SourceArg,
    WeightsOption,
    draw,
    drawn_files,
    read,
)  # fmt: skip
from scaling.commands.table_options import TableOptions, reads_tables
from scaling.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

    from scaling.analysis.laws.power_law import PowerLaw
    from scaling.analysis.laws.references import Reference
    from scaling.analysis.questions.frontier import StudyLaw
    from scaling.analysis.tables.ladder import Ladder


@dataclass(frozen=True)
class Arm:
    """One of what is compared: a study, a table, or a group of one."""

    name: str  # as given, or "column = value"
    ladder: Ladder
    law: StudyLaw
    options: Mapping[str, Any] = field(default_factory=dict)  # of fit_frontier

    @property
    def rows(self) -> pd.DataFrame:
        return self.ladder.rows

    def times(self, factor: float) -> PowerLaw:
        """The law of the losses times a factor, its floor too."""
        from scaling.analysis.questions.frontier import fit_frontier

        ladder = self.ladder.replaced(val_loss=self.rows["val_loss"] * factor)
        floor = None if ladder.e is None else ladder.e * factor
        return fit_frontier(replace(ladder, e=floor), **self.options).law


@reads_tables
def compare(
    source: SourceArg,
    more: Annotated[
        list[str] | None, typer.Argument(help="Further laws, studies or tables, after --to.")
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", help="A published law by name, or another study or table."),
    ] = None,
    e: FloorOption = None,
    weights: WeightsOption = None,
    figure: FigureOption = None,
    seed: SeedOption = 0,
    *,
    table: TableOptions,
    groups: str | None = None,
) -> None:
    """Compare exponents with published laws or other studies: interval, test, what it may mean.

    Example: `scaling compare studies/quickstart --to gpt3 toto henighan-video`

    Example: `scaling compare studies/a --to studies/b table.csv gpt3 --figure all.html`
    """
    from scaling.analysis.questions.frontier import BESIDE
    from scaling.analysis.tables.ladder import Ladder

    tables, published = _sorted(source, [*(to or []), *(more or [])])
    if figure is not None:
        drawn_files("scaling compare", figure, source, *tables)
    keep = () if weights is None else (weights,)
    rows = read(source, keep=keep, **table)
    parts = {source: rows}
    if groups is not None:
        by = rows.groupby("by")
        parts = {f"{groups} = {value}": part.reset_index(drop=True) for value, part in by}
    elif not tables and not published:
        published = _published(*BESIDE)
    units = {name: value for name, value in table.items() if name != "by"}  # of the first alone
    for name in tables:
        print(f"\n{name}")
        parts[name] = read(name, keep=keep, **units)
    ladders = {name: Ladder.of(part, e=e, weights=weights) for name, part in parts.items()}
    arms = _fitted(ladders, published, seed)
    first, *others = arms
    unit = unit_of(rows, table["metric"])
    _say(first)
    for other in others:
        print()
        _say(other)
        say_difference(first, other, unit)
    for law in published:
        print(f"\n{first.law.beside(law)}\n  source: {law.source}")
        if law.note:
            print(f"  note: {law.note}")
    if (tests := len(others) + len(published)) > 2:
        print(f"\neach p and interval is of one comparison alone; there are {tests}")
    if figure is not None:
        _draw(figure, arms, published, unit, parts_of_one=not tables)


def _sorted(source: str, others: Sequence[str]) -> tuple[list[str], list[Reference]]:
    """Other studies and tables, and published laws. Raises UserError, naming all that is wrong."""
    from scaling.analysis.laws.references import REFERENCES
    from scaling.analysis.tables.files import parted

    tables = [name for name in others if "://" in name or parted(name)[0].exists()]
    names = [name for name in others if name not in tables]
    wrong = [
        f"{name}: no study or file, and no published law{did_you_mean(name, REFERENCES)}"
        for name in names
        if name not in REFERENCES
    ]
    if wrong:
        wrong.append(f"choose a published law of {', '.join(REFERENCES)}, or give a path")
    given = [source, *others]
    wrong += [f"{name}: given twice" for name in dict.fromkeys(given) if given.count(name) > 1]
    if wrong:
        raise UserError("\n".join(wrong))
    return tables, _published(*names)


def _published(*names: str) -> list[Reference]:
    from scaling.analysis.laws.references import reference

    return [reference(name) for name in names]


def _fitted(ladders: Mapping[str, Ladder], published: Sequence[Reference], seed: int) -> list[Arm]:
    """The law of each; one that has none is said and left out, while two are left to compare."""
    from scaling.analysis.laws.fit import NotIdentified
    from scaling.analysis.questions.frontier import fit_frontier

    arms, refused = [], []
    for name, ladder in ladders.items():
        try:
            arms.append(Arm(name, ladder, fit_frontier(ladder, seed=seed), {"seed": seed}))
        except NotIdentified as refusal:
            refused.append(f"{name}: no law: {refusal}")
    if not arms or (refused and len(arms) + len(published) < 2):
        raise UserError("\n".join([*refused, "nothing is left to compare"]))
    for line in refused:
        print(line)
    return arms


def _say(arm: Arm) -> None:
    """An arm's laws. Where the curve bends, its exponent is one of the range it was fitted to."""
    study = arm.law
    print(f"{arm.name}: {study.pure}")
    if study.saturating is not None:
        print(f"{arm.name}, above a floor: {study.saturating}")
    if study.law.mixture is not None and (local := study.law.mixture.local()):
        print(f"{arm.name} bends: {local}; its one exponent is an average over that range")


def unit_of(rows: pd.DataFrame, metric: str | None = None) -> str:
    """Of the losses, in words."""
    from scaling.results import loss_unit

    if metric not in (None, "loss"):
        return f"of {metric}, as fitted"
    return loss_unit(rows.get("tokenizer", ()))


def say_difference(ours: Arm, theirs: Arm, unit: str) -> None:
    """Print how two exponents differ, and the compute that a common loss takes, where one is.

    unit: of the losses.
    """
    from scaling.analysis.laws.compare import compute_multiplier, levels_differ
    from scaling.results import predicted

    print(ours.law.beside(theirs.law))
    law, other = ours.law.law, theirs.law.law
    condition = "if both were trained on the same tokens"
    tokenizers = [set(map(predicted, a.rows["tokenizer"])) for a in (ours, theirs)
                  if "tokenizer" in a.rows]  # fmt: skip
    if len(tokenizers) == 2 and tokenizers[0] != tokenizers[1]:
        scale, their_scale = _bits_per_pixel(ours), _bits_per_pixel(theirs)
        if scale is None or their_scale is None:
            print("  tokenizers differ and their data are not at hand: no common unit of loss")
            return
        law, other = ours.times(scale), theirs.times(their_scale)
        unit = "bits/pixel"
        condition = "as far as both tokenizers keep the same detail (see reconstruction PSNR)"
    elif apart := levels_differ([ours.rows, theirs.rows], parts_of_one=True):
        print(f"  no multiplier of compute at equal loss: {apart}")
        return
    loss = float(max(law.loss.min(), other.loss.min()))
    try:
        times, low, high = compute_multiplier(law, other, loss)
    except UserError as refusal:
        print(f"  no multiplier of compute at equal loss: {refusal}")
        return
    print(
        f"  at {loss:.4f} {unit} {theirs.name} needs {times:.3g}x the compute of {ours.name} "
        f"[{low:.3g}, {high:.3g}], {condition}"
    )


def _bits_per_pixel(arm: Arm) -> float | None:
    """Bits per pixel of one nat per token, from the study's own data; None without them."""
    from scaling.analysis.laws.references import bits_per_pixel
    from scaling.results import TOKEN_UNIT, loss_unit
    from scaling.study_folder import Study

    if loss_unit(arm.rows["tokenizer"]) != TOKEN_UNIT or "data_key" not in arm.rows:
        return None
    index = Study(Path(arm.name)).tokens_of(str(arm.rows["data_key"].iloc[0])).index
    if not index.exists():
        return None
    about = json.loads(index.read_text())
    return float(bits_per_pixel(1.0, about["tokens_per_frame"], about["size"] ** 2))


def _draw(
    path: Path, arms: Sequence[Arm], published: Sequence[Reference], unit: str, parts_of_one: bool
) -> None:
    """The figure of all, and what it does not show."""
    from scaling.analysis.figures.compare import comparison_figure, comparison_points
    from scaling.analysis.laws.compare import levels_differ

    apart = levels_differ([arm.rows for arm in arms], parts_of_one=parts_of_one)
    names = short_names([arm.name for arm in arms])
    known = {law.name for law in published}
    names = [f"{name} (given)" if name in known else name for name in names]
    laws = dict(zip(names, (arm.law for arm in arms), strict=True))
    points = comparison_points(laws, published, divided=bool(apart))
    draw("scaling compare", comparison_figure(points, divided=bool(apart), unit=unit), points, path)
    if apart:
        print(f"  heights      {apart}: each is drawn over its own law's loss where that begins")
    shown = set(points.loc[points["kind"] == "curve", "law"])
    for law in published:
        if law.x != "compute":
            print(f"  not drawn    {law.name}: a law of {law.x}")
        elif law.fitted_macs is None:
            print(f"  no slope     {law.name}: what compute it was fitted to is not recorded here")
        elif law.name not in shown:
            low, high = law.fitted_macs
            print(f"  no slope     {law.name}: fitted to {low:.2g} to {high:.2g} MACs, out of view")


def short_names(names: Sequence[str]) -> list[str]:
    """The ends of paths that tell them apart ("a", "b" of studies/a, studies/b); else as given."""
    paths = {name: Path(name).parts for name in names if Path(name).exists()}
    out = []
    for name in names:
        parts = paths.get(name, (name,))
        ends = ("/".join(parts[-k:]) for k in range(1, len(parts) + 1))
        others = [other for other in paths.values() if other != parts]
        out.append(next(
            (e for k, e in enumerate(ends, start=1)
             if all("/".join(other[-k:]) != e for other in others)), name,
        ))  # fmt: skip
    return out
