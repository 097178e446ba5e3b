"""The runs of a study's learning-rate sweeps, before anything starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scaling.analysis.schema import Setting, words
from scaling.config.ladder import LrConfig
from scaling.config.run import RunConfig
from scaling.config.schema import StudyConfig
from scaling.errors import UserError
from scaling.models.family import ModelConfig, named, resized, shape
from scaling.plan.runs import in_study, run_of, step_macs, too_short, with_setting

MOST_SWEPT = 5000  # runs of a sweep: more are a mistake, not a plan


@dataclass(frozen=True)
class Sweep:
    """A learning-rate sweep as the study asks for it, over models of one shape."""

    asked: LrConfig
    like: str  # a size, whose shape the models have
    of_ladder: bool  # gives the ladder's sizes of that shape their rate

    @property
    def shape(self) -> str:
        """`family.shape` of its models."""
        return shape(named(self.like))

    @property
    def named(self) -> str:
        """`, gpt2` behind what is said of it; '' for Toto's shape."""
        return f", {self.shape}" * bool(self.shape)

    @property
    def settings(self) -> list[Setting]:
        """Those that have a sweep of the rate each; `[()]` without `over`, or where a sampler
        chooses them."""
        return [()] if self.asked.searches else self.asked.over.settings()

    def grid(self) -> Iterator[tuple[Setting, int, float]]:
        """Every setting, member and rate of the grid; of a sampler that chooses settings, as many
        as it tries, all alike: what they cost is the same whatever it chooses."""
        powers = [2.0**p for p in range(self.asked.log2_min, self.asked.log2_max + 1)]
        if self.asked.sampler != "grid":
            powers = powers[:1] * self.asked.count
        for setting in self.settings:
            for member in self.asked.members:
                yield from ((setting, member, rate) for rate in powers)


def sweeps(config: StudyConfig) -> list[Sweep]:
    """The learning-rate sweeps of a study, each over models of every shape that its ladder has
    (Toto's, where it has no ladder); those of the ladder come first, where it needs a rate."""
    ladder = config.ladder
    likes: dict[str, str] = {}
    for name in ladder.sizes if ladder else ("a1",):
        likes.setdefault(shape(named(name)), name)
    found = []
    if config.lr and ladder and ladder.log2_lr is None:
        found = [Sweep(config.lr, like, of_ladder=True) for like in likes.values()]
    found += [Sweep(s, like, False) for s in config.transfer for like in likes.values()]
    for sweep in found:
        _refuse_many(config, sweep)
    return found


def _refuse_many(config: StudyConfig, sweep: Sweep) -> None:
    asked = sweep.asked
    rates = asked.count if asked.sampler != "grid" else asked.log2_max - asked.log2_min + 1
    count = len(sweep.settings) * len(asked.members) * rates * asked.seeds
    if count <= MOST_SWEPT:
        return
    a_member = [
        asked.steps * step_macs(sweep_model(config, sweep, member), config.train.batch)
        for member in asked.members
    ]
    macs = count * sum(a_member) / len(a_member)
    section = "lr.over" if sweep.of_ladder else "transfer"
    raise UserError(
        f"{section}: {len(sweep.settings):,} settings x {rates:,} rates x "
        f"{len(asked.members)} models x {asked.seeds} seeds are {count:,} runs of {macs:.3g} "
        f"training MACs together, above {MOST_SWEPT:,}; list fewer values, or let sampler tpe "
        f"choose lr.trials of them"
    )


def sweep_model(
    config: StudyConfig, sweep: Sweep, member: int, setting: Setting = ()
) -> ModelConfig:
    """A model of a learning-rate sweep: `member` is its width, or its depth (LrConfig.axis). A
    setting is the beginning of its name.

    Raises UserError as `ladder_model` does.
    """
    asked = sweep.asked
    width, layers = (asked.widths[0], member) if asked.depths else (member, asked.layers)
    model = resized(named(sweep.like), width, layers, asked.heads)
    if setting:
        size = f"d{width}l{layers}h{model.heads}"  # at the end, as `questions.transfer` reads it
        parts = (model.name.removesuffix(size).rstrip("-"), words(setting), size)
        model = dataclasses.replace(model, name="-".join(part for part in parts if part))
    return in_study(config, model, asked.parametrization or config.model.parametrization)


def sweep_run(
    config: StudyConfig, sweep: Sweep, member: int, lr: float, data_key: str, data_dir: Path,
    setting: Setting = (), repeat: int = 0,
) -> RunConfig:  # fmt: skip
    """One run of a learning-rate sweep: all of a sweep see as many sequences, in whatever batches.

    repeat: 0, or how many seeds after the study's own. Raises UserError when its budget is too
    short.
    """
    model = sweep_model(config, sweep, member, setting)
    run = run_of(
        with_setting(config, setting),
        model,
        [float(sweep.asked.steps * step_macs(model, config.train.batch))],
        role="lr_sweep",
        evals=0,  # only the decayed point is asked for
        lr=lr,
        seed=config.seed + repeat,
        data_key=data_key,
        data_dir=str(data_dir),
    )
    short = too_short(run, 0)
    if short:
        at = f" with {words(setting)}" if setting else ""
        raise UserError(f"lr.steps{at}: {short}; raise it or shorten train.warmup_steps")
    return run


def grid_runs(
    config: StudyConfig, sweep: Sweep, data_key: str = "", data_dir: Path = Path()
) -> list[RunConfig]:
    """The runs of a sweep's grid (`Sweep.grid`), with their seeds. Raises UserError as
    `sweep_run`."""
    return [
        sweep_run(config, sweep, member, lr, data_key, data_dir, setting, repeat)
        for setting, member, lr in sweep.grid()
        for repeat in range(sweep.asked.seeds)
    ]


def ladders_at(config: StudyConfig) -> Iterator[StudyConfig]:
    """The study at its own setting, and at each that its sweep may choose for the ladder, as far
    as the steps of runs hang on it."""
    yield config
    if config.lr and config.ladder and config.ladder.log2_lr is None:
        steps = ("batch", "warmup_steps", "cooldown")
        once = {tuple(p for p in s if p[0] in steps): None for s in config.lr.over.corners()}
        yield from (with_setting(config, setting) for setting in once if setting)
