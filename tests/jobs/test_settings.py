"""Settings beside the rate: each has its sweep, or a sampler chooses; kills change nothing."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import scaling
from scaling.analysis.schema import Setting, words
from scaling.config.over import Range
from scaling.config.schema import LaunchConfig
from scaling.config.study_file import load_study
from scaling.errors import UserError
from scaling.jobs.job import Job
from scaling.jobs.launch import Launcher
from scaling.plan.cost import study_cost
from scaling.plan.runs import with_setting
from scaling.plan.sweeps import grid_runs, sweep_model, sweeps
from scaling.study import status
from scaling.study.growth import left_of
from scaling.study.pipeline import run_study
from scaling.study.sweep import search, sweep_lr
from scaling.study_folder import Study

STUDY = """\
study: over
data: {frames: 2, size: 16, sources: [{name: leaves, kind: leaves}]}
tokenizer: {patch: 4, codes: 64}
model: {base_width: 32}
train: {batch: 4, warmup_steps: 4}
lr:
  widths: [16, 32]
  heads: 2
  steps: 60
  over:
    weight_decay: [0.01, 0.1]
    batch: [2, 4]
ladder: {sizes: [t32, t16], budgets_macs: [1e10]}
"""


@dataclass(frozen=True)
class Point:
    """Stands where a RunConfig stands: a bowl in the rate and in log10 of the weight decay."""

    width: int
    decay: float
    lr: float


def train(point: Point, run_dir: Path) -> None:
    if (run_dir / "loss").exists():
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / "trained", "a") as file:
        file.write("once\n")
    loss = 2.5 + 10 / point.width + 0.05 * (math.log2(point.lr) + 6) ** 2
    loss += 0.1 * (math.log10(point.decay) + 1) ** 2
    (run_dir / "loss").write_text(repr(loss))


def job(folder: Path, width: int, setting: Setting, lr: float) -> Job[Point]:
    decay = dict(setting)["weight_decay"]
    return Job(Point(width, decay, lr), folder / "runs" / f"{width}_{decay}_{math.log2(lr):g}")


RESULT: dict[str, Any] = {
    "read_loss": lambda one: float((one.run_dir / "loss").read_text()),
    "has_result": lambda one: (one.run_dir / "loss").exists(),
}


def launcher(folder: Path) -> Launcher[Point]:
    return Launcher(LaunchConfig(cluster="debug"), folder / "jobs", function=train)


def of_grid(folder: Path) -> Any:
    settings = [(("weight_decay", decay),) for decay in (0.01, 0.1)]
    with launcher(folder) as at:
        return sweep_lr(
            lambda setting, width, lr: [job(folder, width, setting, lr)],
            (16, 32), -7, -5, at, folder / "j", settings=settings, **RESULT,
        )  # fmt: skip


def of_search(folder: Path, sampler: str = "tpe") -> Any:
    over = {"weight_decay": Range(min=0.001, max=1.0, log=True)}
    with launcher(folder) as at:
        return search(
            lambda setting, lr: [job(folder, width, setting, lr) for width in (16, 32)],
            over, -8, -4, at, folder / "j", sampler=sampler, count=10, name="x", **RESULT,
        )  # fmt: skip


@pytest.mark.parametrize("work", [of_grid, of_search])
def test_a_kill_at_any_line_changes_nothing(tmp_path: Path, work: Any) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    result = work(whole)
    before = (whole / "j").read_bytes()
    assert work(whole) == result and (whole / "j").read_bytes() == before
    lines = before.splitlines(keepends=True)
    trained = {path.name for path in (whole / "runs").iterdir()}
    for cut in range(0, len(lines), 4):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        torn = lines[cut][: len(lines[cut]) // 2] if cut % 8 else b""
        (folder / "j").write_bytes(b"".join(lines[:cut]) + torn)
        if cut % 3 == 0:  # the runs had finished
            shutil.copytree(whole / "runs", folder / "runs")
        assert work(folder) == result
        assert {path.name for path in (folder / "runs").iterdir()} == trained
        assert all((r / "trained").read_text() == "once\n" for r in (folder / "runs").iterdir())


def test_each_setting_has_its_grid(tmp_path: Path) -> None:
    found = of_grid(tmp_path)
    assert [words(setting) for setting in found] == ["weight_decay=0.01", "weight_decay=0.1"]
    assert [one.log2_lr for one in found.values()] == [-6, -6]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_search_finds_rate_and_setting(tmp_path: Path, sampler: str) -> None:
    found = of_search(tmp_path, sampler)
    assert len(found) == 10
    for setting, log2_lr in found:
        (decay,) = dict(setting).values()
        assert 0.001 <= decay <= 1 and float(f"{decay:.3g}") == decay
        assert -8 <= log2_lr <= -4 and (4 * log2_lr).is_integer()
    losses = [(p + 6) ** 2 / 20 + (math.log10(dict(s)["weight_decay"]) + 1) ** 2 / 10
              for s, p in found]  # fmt: skip
    assert min(losses) < 0.05


def study(tmp_path: Path, old: str = "", new: str = "") -> Path:
    path = tmp_path / "over.yaml"
    assert old in STUDY
    path.write_text(STUDY.replace(old, new))
    return path


def test_all_settings_see_as_much(tmp_path: Path) -> None:
    config = load_study(study(tmp_path))
    (sweep,) = sweeps(config)
    runs = grid_runs(config, sweep)
    assert len(runs) == 2 * 2 * 2 * 6 == len({run.run_id for run in runs})
    assert {run.batch * run.budgets_steps[0] for run in runs} == {240}
    assert {(run.batch, run.weight_decay) for run in runs} == {
        (2, 0.01), (2, 0.1), (4, 0.01), (4, 0.1)
    }  # fmt: skip
    setting = (("batch", 2), ("weight_decay", 0.1))
    assert sweep_model(config, sweep, 16, setting).name == "batch=2,weight_decay=0.1-d16l2h2"
    assert sweep_model(config, sweep, 16).name == "d16l2h2"
    costs, _ = study_cost(config, threads=1, measure=False)
    swept = [cost for cost in costs if cost.role == "lr_sweep"]
    assert len(swept) == 8 and len({cost.tokens for cost in swept}) == 1
    assert with_setting(config, setting).train.batch == 2 and config.train.batch == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("weight_decay: [", "weight_dcay: [", "over.yaml:11: lr.over.weight_dcay: unknown key; d"),
        ("[0.01, 0.1]", "[0.01, -1]", "over.yaml:11: lr.over.weight_decay: -1: input should be gr"),
        ("[0.01, 0.1]", "[0.01, .nan]", "lr.over.weight_decay: nan: "),
        ("[0.01, 0.1]", "[]", "over.yaml:11: lr.over.weight_decay: an empty list; give the values"),
        ("[0.01, 0.1]", "0.1", "lr.over.weight_decay: 0.1 is no list: give the values to try"),
        ("[0.01, 0.1]", "[0.1, 0.1]", r"lr.over.weight_decay: \[0.1, 0.1\] repeat"),
        ("[0.01, 0.1]", "{min: 1, max: 0.1}", "lr.over.weight_decay: min 1 is not below max 0.1"),
        ("[0.01, 0.1]", "{min: 0.01}", "lr.over.weight_decay: max: missing"),
        ("[0.01, 0.1]", "{min: 0.01, max: 1}", "lr: over: weight_decay: between ends only sampler"),
        ("[2, 4]", "[2, 7]", r"over.yaml:12: lr.over.batch: \[7\] do not divide the 240 sequences"),
        ("[2, 4]", "[2.5]", "lr.over.batch: 2.5: input should be a valid integer"),
        ("[2, 4]", "{min: 2, max: 8}", r"lr.over.batch: list the batches to try, \[8, 16\]"),
        ("t16]", "t16, t32-gpt2]", r"over.yaml:10: lr.over: the ladder has sizes of several s"),
        ("1e10]", "1e10], log2_lr: -6", "lr.over: ladder.log2_lr skips the sweep that this asks"),
        ("1e10]", "1e10], batch: {t16: 2}", "lr.over.batch: the batch is swept, and ladder.batch"),
        ("heads: 2", "heads: 2\n  trials: 7", "trials 7 with sampler grid, which tries all"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_study(study(tmp_path, old, new))


def test_what_a_plan_refuses(tmp_path: Path) -> None:
    many = f"[{', '.join(str(k / 1000) for k in range(1, 300))}]"
    with pytest.raises(UserError, match=r"lr.over: 598 settings x 6 rates x 2 models x 1 seeds are "
                       r"7,176 runs of \S+ training MACs together, above 5,000"):  # fmt: skip
        sweeps(load_study(study(tmp_path, "[0.01, 0.1]", many)))
    ranged = study(tmp_path, "heads: 2", "heads: 2\n  sampler: tpe")
    ranged.write_text(
        ranged.read_text().replace("[2, 4]", "[4]\n    warmup_steps: {min: 2, max: 40}")
    )
    with pytest.raises(
        UserError, match=r"lr.steps with batch=4,warmup_steps=40,.* 60 steps, fewer"
    ):
        study_cost(load_study(ranged), threads=1, measure=False)
    with pytest.raises(
        UserError, match=r"lr.steps with batch=30,weight_decay=0.01: 8 steps, fewer"
    ):
        study_cost(load_study(study(tmp_path, "[2, 4]", "[4, 30]")), threads=1, measure=False)


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_the_best_setting_goes_into_the_ladder(tmp_path: Path, sampler: str) -> None:
    text = STUDY.replace(
        "frames: 2,", "frames: 2, stride: 1, train_sequences: 64, val_sequences: 8,"
    )
    text = text.replace("codes: 64}", "codes: 16, fit_frames: 64}").replace("[16, 32]", "[16]")
    text = text.replace("[2, 4]", "[2]").replace("t32, t16", "t16").replace("1e10", "1e8, 2e8")
    text = text.replace("steps: 60", "steps: 20, seeds: 2, log2_min: -7, log2_max: -5".replace(
        ", ", "\n  "))  # fmt: skip
    if sampler == "tpe":
        text = text.replace("seeds: 2", "seeds: 2\n  sampler: tpe\n  trials: 5")
        text = text.replace("[0.01, 0.1]", "{min: 0.01, max: 0.1, log: true}")
    text += "launch: {cluster: debug, threads: 1}\nfit: {resamples: 200}\n"
    (tmp_path / "over.yaml").write_text(text)
    config, folder = load_study(tmp_path / "over.yaml"), Study(tmp_path / "over")
    told: list[str] = []
    page = run_study(config, folder, say=told.append)
    runs = scaling.open(folder.folder)
    found = runs.settings()
    assert folder.plan().setting == found.taken and f"setting {found.taken[:5]}" in "\n".join(told)
    values = found.table.iloc[0]
    ladder = runs.rows[runs.rows.role == "ladder"]
    assert set(ladder.weight_decay) == {values.weight_decay}
    assert set(ladder.batch_tokens) == {2 * 33}, "not train's own batch, 4"
    assert found.seeds == 2 and len(found.table) == (2 if sampler == "grid" else 5)
    assert page is not None and "told apart beyond" in page.read_text()
    assert f"setting that the sweep found: {found.taken}" in status.text(folder)
    before = folder.rows_csv.read_bytes(), folder.plan_json.read_bytes()
    run_study(config, folder, say=told.append)
    assert (folder.rows_csv.read_bytes(), folder.plan_json.read_bytes()) == before
    more = load_study(tmp_path / "over.yaml", ["ladder.budgets_macs=[1e8, 2e8, 4e8]"])
    left = left_of(more, folder)
    assert ("go on" if sampler == "grid" else "not known") in left
