"""The sweep finds the rate, never asks twice, and ends the same after any crash."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
import pytest

from scaling.analysis.questions.best_rate import Trial, optimum
from scaling.config.schema import LaunchConfig
from scaling.errors import UserError
from scaling.jobs.job import Job
from scaling.jobs.launch import Launcher
from scaling.study.sweep import repair, sweep_lr
from scaling.study.sweep_result import SweepResult, read_trials


@dataclass(frozen=True)
class Point:
    """Stands where a RunConfig stands: one trial of a bowl with a known optimum."""

    width: int
    lr: float
    best: float = -6.0  # log2 of the optimum
    edge: float = -3.0  # diverges above
    broken: float | None = None  # log2 of a rate whose job fails


def train(point: Point, run_dir: Path) -> None:
    """Loss of the bowl, left in the run's directory; each training leaves a mark."""
    if (run_dir / "loss").exists():
        return
    log2_lr = math.log2(point.lr)
    if log2_lr == point.broken:
        raise RuntimeError("out of luck")
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / "trained", "a") as file:
        file.write("once\n")
    loss = 2.5 + 10 / point.width + 0.01 * (log2_lr - point.best) ** 2
    (run_dir / "loss").write_text(repr(math.inf if log2_lr > point.edge else loss))


def read(job: Job[Point]) -> float | None:
    loss = float((job.run_dir / "loss").read_text())
    return None if math.isinf(loss) else loss


def sweep(
    folder: Path,
    low: int = -8,
    high: int = -4,
    widths: tuple[int, ...] = (16, 32),
    sampler: str = "grid",
    **point: float,
) -> SweepResult:
    def job(width: int, lr: float) -> Job[Point]:
        name = f"w{width}_{math.log2(lr):.6f}".replace(".000000", "")
        return Job(Point(width, lr, **point), folder / "runs" / name)

    launch = LaunchConfig(cluster="debug")
    with Launcher(launch, folder / "jobs", function=train) as launcher:
        return sweep_lr(
            lambda _, width, lr: [job(width, lr)], widths, low, high, launcher, folder / "j",
            sampler=sampler, read_loss=read,
            has_result=lambda job: (job.run_dir / "loss").exists(),
        )[()]  # fmt: skip


def states(folder: Path) -> list[tuple[str, float, str]]:
    """Every trial as optuna-dashboard would read it from the journal."""
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "j"))
    storage = optuna.storages.JournalStorage(backend)
    return [
        (study.study_name, trial.params.get("log2_lr", math.nan), trial.state.name)
        for study in optuna.get_all_study_summaries(storage)
        for trial in optuna.load_study(study_name=study.study_name, storage=storage).trials
    ]


def test_finds_the_rate_and_trains_each_point_once(tmp_path: Path) -> None:
    result = sweep(tmp_path)
    assert result.best_lr == 2.0**-6 and result.log2_lr == -6
    assert [(t.member, t.log2_lr) for t in result.trials] == [
        (w, p) for w in (16, 32) for p in range(-8, -3)
    ]
    for best in result.optima:
        assert best.log2_lr == pytest.approx(-6, abs=1e-9)
        assert best.low is not None and best.high is not None
        assert best.low - 1e-9 <= -6 <= best.high + 1e-9
    assert not result.on_edge and not result.warnings
    assert result.drift_octaves == pytest.approx(0, abs=1e-9)
    assert result.low == pytest.approx(-6, abs=1e-6) == result.high
    assert "learning rate 2^-6 (95% [-6.00, -6.00], drift" in result.summary()
    before = (tmp_path / "j").read_bytes()
    assert sweep(tmp_path) == result
    assert (tmp_path / "j").read_bytes() == before, "a finished sweep writes nothing"
    assert len(states(tmp_path)) == 10


def test_a_sweep_cut_at_any_line_ends_the_same(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    result = sweep(whole, -7, -5)
    lines = (whole / "j").read_bytes().splitlines(keepends=True)
    assert len(lines) > 30
    for cut in range(len(lines)):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        torn = lines[cut][: len(lines[cut]) // 2] if cut % 2 else b""
        (folder / "j").write_bytes(b"".join(lines[:cut]) + torn)
        (folder / "j.lock").touch()  # a driver killed inside a write leaves Optuna's lock
        if cut % 3 == 0:  # some of the runs had finished
            shutil.copytree(whole / "runs", folder / "runs")
        assert sweep(folder, -7, -5) == result
        complete = [(s, p) for s, p, state in states(folder) if state == "COMPLETE"]
        assert len(complete) == len(set(complete)) == 6
        assert not [s for s in states(folder) if s[2] in ("RUNNING", "WAITING")]
        assert all((r / "trained").read_text() == "once\n" for r in (folder / "runs").iterdir())
        shutil.rmtree(folder)


@pytest.mark.parametrize("gone", ["", "loss"])
def test_a_run_whose_result_is_gone_is_trained_again(tmp_path: Path, gone: str) -> None:
    """Its loss is in the journal, but rows.csv and MLflow are made of directories; of a damaged
    result the message says to remove the file."""
    result = sweep(tmp_path)
    before = (tmp_path / "j").read_bytes()
    run = tmp_path / "runs" / "w16_-7"
    if gone:
        (run / gone).unlink()
        (run / "trained").unlink()  # the mark of the first time
    else:
        shutil.rmtree(run)
    assert sweep(tmp_path) == result
    assert (run / "loss").exists()
    assert (tmp_path / "j").read_bytes() == before
    assert all((r / "trained").read_text() == "once\n" for r in (tmp_path / "runs").iterdir())


def test_the_grid_grows_towards_a_minimum_outside_it(tmp_path: Path) -> None:
    result = sweep(tmp_path, -9, -7, best=-5.2)
    assert result.log2_lr == -5 and result.on_edge, "within its limit: two octaves"
    assert "move lr.log2_max" in result.warnings[0]
    result = sweep(tmp_path, -8, -6, best=-5.2)
    assert result.log2_lr == -5.25 and not result.on_edge, "to a quarter of an octave"
    assert max(t.log2_lr for t in result.trials) == -4


def test_divergence_is_a_value_and_does_not_bend_the_parabola(tmp_path: Path) -> None:
    result = sweep(tmp_path, -8, -1, best=-4.0)
    assert result.log2_lr == -4
    assert [t.loss for t in result.trials if t.log2_lr > -3] == [math.inf] * 4
    assert result.optima[0].log2_lr == pytest.approx(-4, abs=1e-9)
    assert "2 diverged" in result.summary()
    with pytest.raises(UserError, match=r"every learning rate diverged \(2\^-2, .*lower lr.log2"):
        sweep(tmp_path, -2, 0)


def test_failed_jobs_stop_the_sweep_and_only_they_are_tried_again(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"2 runs failed.*\n +width 16, lr 2\^-5: .*(\n.*)*out of l"
    ):
        sweep(tmp_path, broken=-5)
    assert [s[2] for s in states(tmp_path)].count("FAIL") == 2
    result = sweep(tmp_path)
    assert result.best_lr == 2.0**-6 and len(result.trials) == 10
    assert [s[2] for s in states(tmp_path)].count("COMPLETE") == 10


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_other_samplers_are_repeatable_and_resume(tmp_path: Path, sampler: str) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    a = sweep(tmp_path / "a", sampler=sampler)
    lines = (tmp_path / "a" / "j").read_bytes().splitlines(keepends=True)
    (tmp_path / "b" / "j").write_bytes(b"".join(lines[: len(lines) // 2]))
    b = sweep(tmp_path / "b", sampler=sampler)
    assert a == b
    assert len({(t.member, t.log2_lr) for t in a.trials}) == 10
    assert a.log2_lr == pytest.approx(-6, abs=1)


def test_another_configuration_is_another_sweep(tmp_path: Path) -> None:
    assert sweep(tmp_path, -8, -4).log2_lr == -6
    shutil.rmtree(tmp_path / "runs")
    assert sweep(tmp_path, -8, -5, best=-7).log2_lr == -7


def test_repair_drops_a_torn_end_only(tmp_path: Path) -> None:
    journal = tmp_path / "j"
    assert not repair(journal)
    journal.write_bytes(b'{"a":1}\n{"b":2}\n{"c"')
    assert repair(journal) and journal.read_bytes() == b'{"a":1}\n{"b":2}\n'
    assert not repair(journal)
    journal.write_bytes(b'{"a":1}\nnoise\n{"c":3}\n')
    with pytest.raises(UserError, match=r"j:2: not a line of Optuna's journal. Move the file away"):
        repair(journal)


def test_the_interval_covers_the_optimum_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        true = rng.uniform(-6.5, -5.5)
        x = np.arange(-8, -3)
        y = 2.5 + 0.01 * (x - true) ** 2 + rng.normal(0, 0.001, 5)
        best = optimum([Trial(64, float(p), float(v)) for p, v in zip(x, y, strict=True)])
        assert best.low is not None and best.high is not None
        hits += best.low <= true <= best.high
    assert 0.92 <= hits / 400 <= 0.98


def test_all_widths_together_say_it_better_than_the_lowest_point(tmp_path: Path) -> None:
    """Rates of an octave's grid, real noise: error of the rate used, and cover of its interval."""
    rng = np.random.default_rng(0)
    errors, grid_errors, hits = [], [], 0
    for _ in range(400):
        true = rng.uniform(-6.5, -5.5)
        trials = [
            Trial(w, float(p), 2.5 + 10 / w + 0.1 * (p - true) ** 2 + rng.normal(0, 0.01))
            for w in (16, 32, 64)
            for p in range(-8, -3)
        ]
        found = read_trials(trials, -8, -4)
        assert found.low is not None and found.high is not None
        hits += found.low <= true <= found.high
        errors.append(found.log2_lr - true)
        lowest = min((t for t in trials if t.member == 64), key=lambda t: t.loss)
        grid_errors.append(lowest.log2_lr - true)
    assert 0.92 <= hits / 400 <= 0.98
    assert np.abs(errors).max() < 0.25 < np.abs(grid_errors).max()
    assert np.std(errors) < np.std(grid_errors) / 3


def test_the_rate_stays_by_what_was_measured() -> None:
    def bowl(width: int, best: float, edge: float = 0.0) -> list[Trial]:
        return [
            Trial(width, float(p), math.inf if p > edge else 2.5 + 0.1 * (p - best) ** 2)
            for p in range(-8, -3)
        ]

    assert read_trials(bowl(16, -5.8) + bowl(32, -5.8), -8, -4).log2_lr == -5.75
    up = read_trials(bowl(16, -5.8) + bowl(32, -5.8, edge=-5.5), -8, -4)
    assert up.log2_lr == -6, "not towards a rate that diverged at some width"
    down = read_trials(bowl(16, -6.2) + bowl(32, -6.2, edge=-5.5), -8, -4)
    assert down.log2_lr == -6.25
    steep = [
        Trial(16, float(p), y) for p, y in zip(range(-8, -3), (9, 3, 2.9, 3.4, 5), strict=True)
    ]
    assert -6.5 <= read_trials(steep, -8, -4).log2_lr <= -5.5
    flat = [Trial(16, float(p), y) for p, y in zip(range(-8, -3), (3, 2.9, 3, 2.8, 3), strict=True)]
    assert "do not determine it" in read_trials(flat, -8, -4).summary()
    edge = read_trials(bowl(16, -3.8), -8, -4)
    assert edge.log2_lr == -4 and edge.on_edge and edge.low is None


def test_the_optimum_without_a_bowl_is_the_lowest_point() -> None:
    falling = [Trial(64, float(p), 3.0 - 0.1 * p) for p in range(-3, 1)]
    assert optimum(falling).log2_lr == 0 and optimum(falling).low is None
    two = optimum(falling[:2])
    assert two.log2_lr == -2 and two.high is None


def test_each_shape_of_a_ladder_has_its_sweep_and_its_rate(tmp_path: Path) -> None:
    """The swept models are those that are trained: their parameters, and a rate for each kind."""
    from scaling.config.study_file import load_study
    from scaling.models.macs import parameter_counts
    from scaling.plan import runs as plan
    from scaling.plan import sweeps as of_sweeps

    text = """\
study: kinds
data: {frames: 2, size: 16, sources: [{name: leaves, kind: leaves}]}
tokenizer: {patch: 4, codes: 64}
model: {base_width: 32}
train: {batch: 4, warmup_steps: 4}
lr: {widths: [32], layers: 2, heads: 2, steps: 30}
ladder: {sizes: [t32, t16, t32-gpt2, t32-mamba, table15-a1], budgets_macs: [1e12]}
"""
    (tmp_path / "kinds.yaml").write_text(text)
    config = load_study(tmp_path / "kinds.yaml")
    sweeps = of_sweeps.sweeps(config)
    assert [s.shape for s in sweeps] == ["", "gpt2", "mamba", "mqa-ff5.33"]
    found = [parameter_counts(of_sweeps.sweep_model(config, s, 32)) for s in sweeps]
    for name, counts in zip(("t32", "t32-gpt2"), found, strict=False):
        assert counts == parameter_counts(plan.ladder_model(config, name))
    rates = {s.shape: 2.0**-k for k, s in enumerate(sweeps)}
    ladder, left = plan.ladder_runs(config, rates, "key", Path())
    assert not left
    assert {run.model.name: math.log2(run.lr) for run in ladder} == {
        "t32": 0, "t16": 0, "t32-gpt2": -1, "t32-mamba": -2, "table15-a1": -3
    }  # fmt: skip
