"""Storages, event folders and spreadsheets, made by their own libraries, read as the same runs."""

import importlib.util
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from scaling.analysis.tables import read
from scaling.analysis.tables.sweeps import read_sweep
from scaling.commands.fitting import read as of_command
from tests.analysis.base_runs import BASE, LOST, PLAIN, counted, history, same_runs

RATES = optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True)
WIDTHS = optuna.distributions.IntDistribution(64, 4096)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def storage(path: Path) -> Any:
    if path.suffix == ".db":
        return optuna.storages.RDBStorage(f"sqlite:///{path}")
    return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


def close(held: Any) -> None:
    if isinstance(held, optuna.storages.RDBStorage):
        held.remove_session()
        held.engine.dispose()


def ladder(held: Any, name: str, factor: float = 1.0, **options: Any) -> optuna.Study:
    """A study whose trials are the runs, three of them pruned, failed or still running."""
    study = optuna.create_study(storage=held, study_name=name, **options)
    states = dict(zip(LOST, (TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING), strict=True))
    trials = []
    row: Any
    for i, row in enumerate(PLAIN.itertuples()):
        state = states.get(i, TrialState.COMPLETE)
        one = create_trial(
            state=state, params={"lr": 1e-3}, distributions={"lr": RATES},
            value=row.loss * factor if state == TrialState.COMPLETE else None,
            user_attrs={"n_params": int(row.params), "tokens": int(row.tokens)},
            intermediate_values={0: 1.0},
        )  # fmt: skip
        trials.append(one)
    study.add_trials(trials)
    return study


def listing(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", ["a.db", "journal.log"])
def test_a_storage_of_optuna_is_read_and_left_as_it_is(kind: str, tmp_path: Path) -> None:
    held = storage(tmp_path / kind)
    study = ladder(held, "ladder")
    study.trials_dataframe().to_csv(tmp_path / "trials.csv")
    close(held)
    before = listing(tmp_path)
    for source in (kind, f"{kind}#ladder", "trials.csv"):
        rows, notes = read(f"{tmp_path}/{source}")
        same_runs(rows, BASE.drop(index=LOST))
        assert "layout: Optuna's trials; the objective 'value' is taken for the loss" in notes
    assert listing(tmp_path) == before


def test_a_database_in_write_ahead_mode_gets_no_files_beside_it(tmp_path: Path) -> None:
    held = storage(tmp_path / "a.db")
    ladder(held, "ladder")
    close(held)
    with closing(sqlite3.connect(tmp_path / "a.db")) as there:
        there.execute("pragma journal_mode=wal")
    before = listing(tmp_path)
    assert list(before) == ["a.db"]
    same_runs(read(tmp_path / "a.db")[0], BASE.drop(index=LOST))
    assert listing(tmp_path) == before
    with closing(sqlite3.connect(tmp_path / "a.db")) as writer:  # which is at work on it
        writer.execute("update trial_values set value = value * 2")
        writer.commit()
        rows = read(tmp_path / "a.db")[0]
    same_runs(rows.assign(val_loss=rows["val_loss"] / 2), BASE.drop(index=LOST))


@pytest.mark.parametrize("kind", ["a.db", "journal.log"])
def test_several_studies_are_named(kind: str, tmp_path: Path) -> None:
    held = storage(tmp_path / kind)
    ladder(held, "adam")
    ladder(held, "muon", 0.9)
    close(held)
    path = tmp_path / kind
    with pytest.raises(ValueError, match=r"2 studies, 'adam', 'muon': name one .* FILE#adam"):
        read(path)
    with pytest.raises(ValueError, match=r"no study 'sgd'; it holds 'adam', 'muon'"):
        read(f"{path}#sgd")
    rows = read(f"{path}#muon")[0]
    same_runs(rows.assign(val_loss=rows["val_loss"] / 0.9), BASE.drop(index=LOST))
    same_runs(read(path, where="study == 'adam'")[0], BASE.drop(index=LOST))
    address = f"sqlite:///{path}" if kind == "a.db" else str(path)
    assert len(counted(of_command(f"{address}#adam"))) == 27
    rows = read(path, by="study")[0]
    same_runs(rows[rows["by"] == "adam"], BASE.drop(index=LOST))
    assert len(counted(read(path, where="study in ['adam', 'muon']")[0])) == 54


def test_an_objective_that_is_maximised_is_no_loss(tmp_path: Path) -> None:
    held = storage(tmp_path / "journal.log")
    ladder(held, "accuracy", 0.1, direction="maximize")
    with pytest.raises(ValueError, match="--metric 'score' fits a law of 1 - it"):
        read(tmp_path / "journal.log")
    rows = read(tmp_path / "journal.log", metric="score")[0]
    same_runs(rows.assign(val_loss=10 - 10 * rows["val_loss"]), BASE.drop(index=LOST))


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_a_csv_of_trials_whose_objective_may_be_an_accuracy(scale: float, tmp_path: Path) -> None:
    study = ladder(optuna.storages.InMemoryStorage(), "s", scale, direction="maximize")
    study.trials_dataframe().to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match="a loss, or an accuracy"):
        read(tmp_path / "t.csv")


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_objectives_by_name() -> None:
    study = ladder(optuna.storages.InMemoryStorage(), "s")
    study.set_metric_names(["nats"])
    same_runs(read(study.trials_dataframe())[0], BASE.drop(index=LOST))
    several = optuna.create_study(directions=["minimize", "minimize"])
    several.set_metric_names(["nats", "seconds"])
    several.add_trial(create_trial(values=[3.0, 1.0], params={"lr": 1e-3},
                                   distributions={"lr": RATES}))  # fmt: skip
    with pytest.raises(ValueError, match="several objectives, 'values_nats', 'values_seconds'"):
        read(several.trials_dataframe())


def sweep(held: Any, drift: float) -> None:
    study = optuna.create_study(storage=held, study_name=f"drift {drift}")
    for k, width in enumerate((128, 256, 512, 1024)):
        for log2_lr in range(-12, -4):
            loss = 3 - 0.2 * k + 0.01 * (log2_lr + 8 - drift * k) ** 2
            study.add_trial(create_trial(
                value=loss, params={"lr": 2.0**log2_lr, "width": width},
                distributions={"lr": RATES, "width": WIDTHS},
            ))  # fmt: skip


def test_a_sweep_by_optuna_says_whether_its_optimum_moves(tmp_path: Path) -> None:
    from scaling.analysis.questions.transfer import verdict_lines

    path = tmp_path / "journal.log"
    sweep(storage(path), 0.0)
    sweep(storage(path), -1.0)
    with pytest.raises(ValueError, match="2 studies"):
        read_sweep(path)
    still, _ = read_sweep(f"{path}#drift 0.0")
    moving, _ = read_sweep(path, where="study == 'drift -1.0'")
    assert sorted(still["member"].unique()) == [128, 256, 512, 1024]
    assert "+0.00" in " ".join(verdict_lines(still))
    assert "-3.00" in " ".join(verdict_lines(moving))


def test_databases_that_are_not_read(tmp_path: Path) -> None:
    held = storage(tmp_path / "old.db")
    ladder(held, "s")
    close(held)
    with closing(sqlite3.connect(tmp_path / "old.db")) as there:
        there.execute("update alembic_version set version_num = 'v2.6.0.a'")
        there.execute("update version_info set library_version = '2.10.1'")
        there.commit()
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as there:
        there.execute("create table experiments (x)")
        there.execute("create table runs (x)")
    with closing(sqlite3.connect(tmp_path / "other.db")) as there:
        there.execute("create table cats (x)")
    (tmp_path / "torn.db").write_bytes((tmp_path / "old.db").read_bytes()[:5000])
    before = listing(tmp_path)
    for name, words in (
        ("old.db", r"a storage of Optuna 2.10.1.*trials_dataframe\(\).to_csv.*upgrade a copy"),
        ("mlflow.db", "MLflow's database: give its address, sqlite:///.*mlflow.db#EXPERIMENT"),
        ("other.db", "with 'cats', neither Optuna's nor MLflow's"),
        ("torn.db", "that SQLite does not read"),
    ):
        with pytest.raises(ValueError, match=words):
            read(tmp_path / name)
    assert listing(tmp_path) == before


def test_journals_that_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    ladder(storage(path), "s")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])  # a line that is being written: the trials before it are there
    same_runs(read(path)[0], BASE.drop(index=[*LOST, 29]))
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b'{"op_code": 99}\n', b"{torn\n", *lines[3:]]))
    with pytest.raises(ValueError, match="Optuna's journal, which the installed Optuna does not"):
        read(path)


# --- TensorBoard --------------------------------------------------------------------------------

tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)


def writer(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def logged(folder: Path, row: Any, *, tokens: bool = True) -> None:
    """A run as PyTorch's writer logs it: counts and losses at steps of their own, one file more
    after a resume, hyper-parameters in a folder below."""
    for steps in ((100, 200), (200, 300, 400)):
        with writer(folder) as log:
            for step in steps:
                early = 1 + 0.1 * (400 / step - 1)
                log.add_scalar("train/loss", row.loss * 0.98 * early, step - 10)
                if tokens:
                    log.add_scalar("tokens", row.tokens * step / 400, step - 1)
                log.add_scalar("val/loss", row.loss * early, step)
                log.add_scalar("lm loss vs samples", row.loss, step * 64)
            if 400 in steps:
                log.add_hparams({"n_params": int(row.params), "lr": 1e-3}, {"hparam/x": 1.0})


@tensorboard
def test_folders_of_tensorboard_are_runs(tmp_path: Path) -> None:
    row: Any
    for i, row in enumerate(PLAIN.itertuples()):
        logged(tmp_path / "sweep" / f"r{i}", row)
    before = sorted(tmp_path.rglob("*"))
    rows, notes = read(tmp_path)
    same_runs(rows)
    assert sorted(rows["run_id"])[0] == "sweep/r0"
    assert sorted(tmp_path.rglob("*")) == before
    assert "layout: TensorBoard's logs of 30 runs, a folder each" in notes
    assert any("'lm loss vs samples'" in n for n in notes)


@tensorboard
def test_folders_of_tensorboard_that_lack_something(tmp_path: Path) -> None:
    rows = list(PLAIN.itertuples())[:3]
    logged(tmp_path / "one" / "a", rows[0])
    with pytest.raises(ValueError, match=r"TensorBoard's log of one run, 'a': a law needs several"):
        read(tmp_path / "one")
    with pytest.raises(ValueError, match="log of one run: give the folder"):
        read(next((tmp_path / "one" / "a").glob("*tfevents*")))
    for i, row in enumerate(rows):
        logged(tmp_path / "no tokens" / str(i), row, tokens=False)
    with pytest.raises(ValueError, match=r"no column for tokens \(D\): .*'hparams/n_params'"):
        read(tmp_path / "no tokens")


@tensorboard
def test_splits_and_pictures_of_a_run_are_no_runs(tmp_path: Path) -> None:
    row: Any
    for i, row in enumerate(PLAIN.itertuples()):
        run = tmp_path / f"r{i}"
        for split, factor in (("train", 0.98), ("validation", 1.0)):  # Keras
            with writer(run / split) as log:
                log.add_scalar("epoch_loss", row.loss * factor, 10)
                if split == "train":
                    log.add_scalar("n_params", row.params, 0)
                    log.add_scalar("tokens", row.tokens, 10)
    rows, _ = read(tmp_path)
    same_runs(rows)
    with writer(tmp_path / "pictures" / "a") as log:
        log.add_scalars("loss", {"train": 3.0, "val": 3.1}, 1)
    with pytest.raises(ValueError, match="one run, 'a'"):
        read(tmp_path / "pictures")


@tensorboard
def test_scalars_of_tensorflow_2_are_tensors(tmp_path: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    row: Any
    for i, row in enumerate(PLAIN.itertuples()):
        log = EventFileWriter(str(tmp_path / f"r{i}"))
        values = {"n_params": row.params, "tokens": row.tokens, "val/loss": row.loss}
        for tag, value in values.items():
            log.add_event(Event(step=9, summary=scalar_pb(tag, value)))
        log.close()
    same_runs(read(tmp_path)[0])


def test_tensorboard_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r0").mkdir()
    (tmp_path / "r0" / "events.out.tfevents.1").write_bytes(b"")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name)
    )
    with pytest.raises(ValueError, match="pip install tensorboard"):
        read(tmp_path)


# --- spreadsheets -------------------------------------------------------------------------------

excel = pytest.mark.skipif(
    importlib.util.find_spec("openpyxl") is None, reason="openpyxl is not installed"
)


@excel
def test_spreadsheets(tmp_path: Path) -> None:
    with pd.ExcelWriter(tmp_path / "one.xlsx") as book:
        PLAIN.to_excel(book, sheet_name="runs", index=False, startrow=3, startcol=1)
        book.sheets["runs"]["B1"] = "Our runs"
    same_runs(read(tmp_path / "one.xlsx")[0])
    with pd.ExcelWriter(tmp_path / "two.xlsx") as book:
        PLAIN.to_excel(book, sheet_name="our runs")
        PLAIN.assign(loss=PLAIN["loss"] * 1.1).to_excel(book, sheet_name="theirs", index=False)
        pd.DataFrame().to_excel(book, sheet_name="empty")
    with pytest.raises(ValueError, match=r"sheets 'our runs', 'theirs': .*two.xlsx#our runs"):
        read(tmp_path / "two.xlsx")
    same_runs(read(f"{tmp_path}/two.xlsx#our runs")[0])
    with pytest.raises(ValueError, match="no sheet 'ours' with rows"):
        read(f"{tmp_path}/two.xlsx#ours")


def test_spreadsheets_that_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.xls").write_bytes(b"x")
    (tmp_path / "new.xlsx").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"save it as \.xlsx or CSV"):
        read(tmp_path / "old.xls")
    find = importlib.util.find_spec
    for missing, words in ((True, "pip install openpyxl"), (False, "no .xlsx inside")):
        monkeypatch.setattr(
            importlib.util, "find_spec",
            lambda name, missing=missing: (None if missing else True) if name == "openpyxl"
            else find(name),
        )  # fmt: skip
        with pytest.raises(ValueError, match=words):
            read(tmp_path / "new.xlsx")


# --- counts and losses in rows apart ------------------------------------------------------------


def apart(gap: int) -> pd.DataFrame:
    """A history whose evaluations stand `gap` steps behind the counts."""
    parts = []
    row: Any
    for i, row in enumerate(PLAIN.itertuples()):
        for step in (250, 500, 750, 1000):
            told = {"run_id": f"r{i}", "params": row.params}
            parts.append(told | {"step": step - gap, "tokens": row.tokens * step / 1000})
            parts.append(told | {"step": step, "val_loss": row.loss * (1 + 10 / step - 0.01)})
    return pd.DataFrame(parts)


def test_an_evaluation_takes_the_count_of_the_row_before() -> None:
    rows, notes = read(apart(1))
    same_runs(rows)
    assert any("120 rows with a loss alone take that of the row before" in n for n in notes)


def test_an_evaluation_takes_no_count_of_long_before() -> None:
    table = apart(1)
    late = (table["step"] == 999) & (table["run_id"] == "r4")
    rows, _ = read(table[~late])  # its last tokens were written at step 749 of 1000
    same_runs(rows, BASE.drop(index=4))
    with pytest.raises(ValueError, match="no row has both a loss and compute"):
        read(apart(100).query("step > 800"))
    assert np.isnan(rows.loc[rows["run_id"] == "r4", "tokens"]).all()


# --- folders of trainers ------------------------------------------------------------------------


def trainer_state(folder: Path, row: Any, share: float = 1.0, **more: Any) -> None:
    """The state that the Hugging Face Trainer saves, of a run that has done a share of its 1000
    steps."""
    step, loss = int(1000 * share), row.loss * (1 + 0.1 * (1 / share - 1))
    log: list[dict[str, Any]] = [
        {"epoch": share, "step": step - 10, "loss": loss * 0.98, "learning_rate": 1e-4},
        {"epoch": share, "step": step, "eval_loss": loss, "eval_runtime": 3.1},
        {"epoch": share, "step": step, "train_runtime": 3600.0, "total_flos": 1.0},
    ]
    state = {"global_step": step, "max_steps": 1000, "epoch": share, "log_history": log,
             "total_flos": 6.0 * row.params * row.tokens * share,
             "num_input_tokens_seen": int(row.tokens * share)}  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps(state | more))


def test_folders_of_the_hugging_face_trainer(tmp_path: Path) -> None:
    row: Any
    for i, row in enumerate(PLAIN.itertuples()):
        trainer_state(tmp_path / f"r{i}" / "checkpoint-500", row, 0.5)
        if i != 7:  # which stopped half way
            trainer_state(tmp_path / f"r{i}" / "checkpoint-1000", row)
    (tmp_path / "r3" / "runs").mkdir()
    (tmp_path / "r3" / "runs" / "events.out.tfevents.1").write_bytes(b"")
    rows, notes = read(tmp_path)
    same_runs(rows, BASE.drop(index=7))
    assert notes[-1].startswith("not used")
    assert any("1 runs end before their learning rate has decayed" in n for n in notes)
    assert any("30 runs, a folder each" in n for n in notes)
    assert any("small models cost more than it says" in n for n in notes)


def test_folders_of_the_hugging_face_trainer_that_lack_something(tmp_path: Path) -> None:
    rows = list(PLAIN.itertuples())
    trainer_state(tmp_path / "d" / "b", rows[1], log_history=[{"step": 10, "eval_loss": 9.0}])
    (tmp_path / "d" / "torn").mkdir()
    (tmp_path / "d" / "torn" / "trainer_state.json").write_text('{"global_step": 3, ')
    with pytest.raises(ValueError, match=r"of 1 runs: a law needs several.*left out: .*torn"):
        read(tmp_path)
    trainer_state(tmp_path / "a", rows[0])
    found, notes = read(tmp_path)
    assert any("run 'd/b' has no evaluation at its last steps" in n for n in notes)
    assert found["val_loss"].isna().tolist() == [False, True]


def test_folders_of_lightning(tmp_path: Path) -> None:
    table = history(4, rate=True).rename(columns={"lr": "lr-AdamW"})
    for name, part in table.groupby("run_id"):
        version = tmp_path / "lightning_logs" / f"version_{str(name)[1:]}"
        version.mkdir(parents=True)
        size = int(part["params"].iloc[0])
        counts = part[["step", "tokens", "lr-AdamW"]]
        both = pd.concat([counts, part[["step", "val_loss"]]]).sort_values("step", kind="stable")
        both.to_csv(version / "metrics.csv", index=False)
        held = f"model:\n  n_params: {size}\n  d_model: 512\nname: x\nbetas: [0.9, 0.95]\n"
        (version / "hparams.yaml").write_text(held)
    rows, notes = read(tmp_path)
    same_runs(rows)
    assert sorted(rows["run_id"])[0] == "lightning_logs/version_0"
    (version / "hparams.yaml").write_text("model: !!python/object/apply:print [x]\n")
    rows, notes = read(tmp_path)
    assert len(rows) == 29 and any("left out: " in n and "hparams" not in n for n in notes)
