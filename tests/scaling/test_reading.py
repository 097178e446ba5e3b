"""`scaling fit`, `compare`, `choices`, `next`, `power` on studies, tables and MLflow servers."""

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from mlflow import MlflowClient
from typer.testing import CliRunner

from scaling.analysis.laws.references import bits_per_pixel
from scaling.analysis.questions.frontier import fit_frontier
from scaling.analysis.questions.parametric_study import fit_rows, fit_surface
from scaling.analysis.questions.simulate import TRUTH, study
from scaling.analysis.questions.variable import fit_variable
from scaling.analysis.schema import ADDED
from scaling.analysis.tables import read
from scaling.analysis.tables.ladder import Ladder
from scaling.cli import app
from scaling.commands.table_options import OPTIONS
from scaling.errors import UserError
from scaling.tracking.load import load
from tests.report.conftest import simulated_rows

Run = Callable[..., str]


@pytest.fixture
def run() -> Run:
    """The output of a command, which must succeed."""

    def command(*arguments: object) -> str:
        done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return command


@pytest.fixture(scope="module")
def rows_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    simulated_rows().to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def foreign() -> pd.DataFrame:
    rows = study(TRUTH, sizes=7, budgets=5, seed=3)
    return pd.DataFrame(
        {
            "Model Size": rows["params"] / 1e6,
            "seen": rows["tokens"] / 1e9,
            "Training FLOP": 2 * rows["macs_total"],
            "loss": rows["val_loss"],
            "run": rows["run_id"],  # the budgets of a size are branches of one trunk
        }
    )


def test_fit_of_a_study_prints_its_law(run: Run, rows_csv: Path) -> None:
    said = run("fit", rows_csv)
    assert fit_frontier(simulated_rows(), seed=0).summary() in said
    assert "predicts" in run("fit", rows_csv, "--at", 1e14)


def test_fit_of_a_table_with_its_columns_named(
    run: Run, foreign: pd.DataFrame, tmp_path: Path
) -> None:
    foreign.to_csv(tmp_path / "t.csv", index=False)
    said = run("fit", tmp_path / "t.csv", "--n", "Model Size", "--params-in", "M", "--d", "seen",
               "--tokens-in", "B", "--c", "Training FLOP")  # fmt: skip
    expected = fit_frontier(study(TRUTH, sizes=7, budgets=5, seed=3)).law
    assert f"C^{expected.b:.4f}" in said
    assert "'seen'" in said and "budget frontier" in said


def test_laws_of_sizes_tokens_and_both(run: Run, rows_csv: Path) -> None:
    rows = simulated_rows()
    for of in ("params", "tokens"):
        assert fit_variable(Ladder.of(rows, variable=of)).summary() in run(
            "fit", rows_csv, "--of", of
        )
    said = run("fit", rows_csv, "--form", "parametric", "--at", 1e14)
    assert fit_surface(rows).summary() in said and "2 parabola at each budget" in said
    a, b, eta = fit_rows(rows, tied=True).overtraining
    said = run("fit", rows_csv, "--form", "overtraining")
    assert f"({a:.4g} M^{eta:.4f} + {b:.4g} M^-{eta:.4f}) C^-{eta:.4f}" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--form", "parametric", "--of", "params"), "--of params: --form parametric does not"),
        (("--form", "overtraining", "--figure", "x.html"), "--figure x.html: --form overtraining"),
        (("--of", "tokens", "--method", "hull", "--figure", "x.html"),
         "--method hull and --figure x.html: --of tokens does not read them"),
    ],
)  # fmt: skip
def test_options_that_a_form_does_not_read_are_refused(
    run: Run, rows_csv: Path, options: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run("fit", rows_csv, *options)


def test_a_law_of_sizes_from_sizes_and_losses_alone(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("params,loss\n" + "".join(f"{10**k},{2 + 50 / 10 ** (k / 4)}\n" for k in
                                              range(6, 12)))  # fmt: skip
    said = run("fit", path, "--of", "params", "--form", "power", "--at", 1e12)
    for words in ("L(N) = ", "the pure law was asked for", "curvature", "beware", "predicts"):
        assert words in said


def test_a_size_law_is_of_the_smallest_losses(rows_csv: Path) -> None:
    rows = study(TRUTH, sizes=8, budgets=6, decades=3.0, run_noise=0, point_noise=0, reach=1e9)
    law = fit_variable(Ladder.of(rows, variable="params"), form="power").law
    best = rows.groupby("params")["val_loss"].min()
    assert law.loss.tolist() == best.tolist() and law.unit == "parameters"
    assert str(law).startswith("L(N) = ")
    with pytest.raises(ValueError, match="the ladder is of 'seed': make it of params or tokens"):
        fit_variable(Ladder.of(rows, variable="seed"))


@pytest.mark.parametrize("ending", ["html", "txt"])
def test_a_figure_and_its_data(run: Run, rows_csv: Path, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"law.{ending}"
    if ending == "txt":
        with pytest.raises(UserError, match="end it in"):
            run("fit", rows_csv, "--figure", path)
        return
    run("fit", rows_csv, "--figure", path)
    assert "plotly" in path.read_text() and len(pd.read_csv(tmp_path / "law.points.csv")) > 10


def test_compare_with_published_laws(run: Run, rows_csv: Path, tmp_path: Path) -> None:
    said = run("compare", rows_csv, "--to", "gpt3", "toto", "henighan-video", "kaplan-n",
               "--figure", tmp_path / "c.html")  # fmt: skip
    law = fit_frontier(simulated_rows())
    assert law.saturating is not None
    for b, reference in ((law.pure.b, -0.048), (law.pure.b, -0.0378), (law.saturating.b, -0.14)):
        assert f"difference {b - reference:+.4f}" in said
    assert "not comparable, that is a law of parameters" in said
    points = pd.read_csv(tmp_path / "c.points.csv")
    assert set(points["law"]) == {"rows.csv", "GPT-3", "Toto", "Henighan video"}
    assert "section 4.9" in said and "Kaplan L(N): a law of parameters" in said
    assert "GPT-3: fitted to 4.3e+13 to 1.6e+23 MACs, out of view" in said
    assert "Henighan video: what compute it was fitted to is not recorded" in said


def test_compare_names_all_that_is_wrong_before_it_reads(rows_csv: Path) -> None:
    with pytest.raises(UserError) as refused:
        CliRunner().invoke(app, ["compare", str(rows_csv), "--to", "gtp3", "gpt3", "gpt3",
                                 "nowhere.csv", str(rows_csv)], catch_exceptions=False)  # fmt: skip
    said = str(refused.value)
    assert "gtp3: no study or file, and no published law; did you mean 'gpt3'?" in said
    assert "nowhere.csv: no study or file" in said and "henighan-video" in said
    assert "gpt3: given twice" in said and f"{rows_csv}: given twice" in said


def test_compare_of_several_tables_and_one_without_a_law(run: Run, tmp_path: Path) -> None:
    for k, name in enumerate(("a", "b", "c", "short")):
        rows = simulated_rows(seed=k).assign(tokenizer="ours", data_key="d" if k else "other")
        if name == "short":
            rows = rows[~(rows["budget_macs"] > 1e11)]
        (tmp_path / name).mkdir()
        rows.to_csv(tmp_path / name / "rows.csv", index=False)
    a, b, c, short = (tmp_path / name / "rows.csv" for name in ("a", "b", "c", "short"))
    said = run("compare", b, "--to", a, short, c, "toto", "--figure", tmp_path / "f.html")
    assert said.count("difference ") == 3 and f"{short}: no law: " in said
    assert "there are 3" in said and "data differ: each is drawn over its own law's loss" in said
    assert said.count("no multiplier of compute at equal loss: data differ") == 1
    assert f"{c} needs" in said, "these two have the same data"
    points = pd.read_csv(tmp_path / "f.points.csv")
    names = {"a/rows.csv", "b/rows.csv", "c/rows.csv"}
    assert set(points["law"]) == names | {"Toto"}
    starts = points[points["kind"] == "curve"].groupby("law")["height"].first()
    assert starts[list(names)].tolist() == [1.0, 1.0, 1.0]


def test_compare_of_one_without_a_law_has_nothing_to_compare(run: Run, tmp_path: Path) -> None:
    rows = simulated_rows()
    rows[~(rows["budget_macs"] > 1e11)].to_csv(tmp_path / "short.csv", index=False)
    with pytest.raises(UserError, match=r"short\.csv: no law: (.|\n)*nothing is left to compare"):
        run("compare", tmp_path / "short.csv", "--to", "gpt3")


def folder_of(tmp_path: Path, name: str, scale: float, tokenizer: str, per_frame: int) -> Path:
    """A study's folder with rows and data whose loss is `scale` times the simulated one."""
    folder = tmp_path / name
    rows = simulated_rows(seed=len(name))
    rows = rows.assign(val_loss=rows["val_loss"] * scale, tokenizer=tokenizer)
    for run_id, mine in rows.groupby("run_id"):
        (folder / "runs" / str(run_id)).mkdir(parents=True)
        (folder / "runs" / str(run_id) / "rows.json").write_text(mine.to_json(orient="records"))
    data = folder / "data" / "abc"
    data.mkdir(parents=True)
    (data / "index.json").write_text(json.dumps({"tokens_per_frame": per_frame, "size": 16}))
    return folder


def test_studies_of_different_tokenizers_meet_in_bits_per_pixel(run: Run, tmp_path: Path) -> None:
    """Half the loss a token with twice the tokens a frame is the same number of bits."""
    one = folder_of(tmp_path, "one", 1.0, "coarse", 16)
    other = folder_of(tmp_path, "two", 0.5, "fine", 32)
    said = run("compare", one, "--to", other)
    assert "bits/pixel" in said and "not separated by these data" in said
    times = re.search(r"needs ([0-9.]+)x the compute", said)
    assert times and 0.9 < float(times[1]) < 1.1
    assert bits_per_pixel(np.log(2), 256, 256) == pytest.approx(1.0)


def test_a_squared_error_is_no_number_of_bits(run: Run, tmp_path: Path) -> None:
    one = folder_of(tmp_path, "one", 1.0, "patch-4px", 16)
    other = folder_of(tmp_path, "two", 0.5, "codebook-4px-512", 16)
    assert "no common unit of loss" in run("compare", one, "--to", other)
    same = folder_of(tmp_path, "three", 1.0, "codebook-4px-512 > patch-4px", 16)
    assert " squared error per value " in run("compare", one, "--to", same)


def test_choices_next_and_power(run: Run, rows_csv: Path) -> None:
    assert "specifications" in run("choices", rows_csv)
    assert "of 1e+13 MACs" in run("next", rows_csv, "--budget", 1e13, "--runs", 3)
    said = run("power", "--studies", 10, "--sizes", 5, "--budgets", 4, "--width", 0.003)
    widths = [float(line.split()[4]) for line in said.splitlines()[1:]]
    assert widths[-1] <= 0.003 and all(w > 0.003 for w in widths[:-1])
    assert "noise" in run("power", rows_csv, "--studies", 10)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MLflow's own calls to SQLAlchemy
def test_an_mlflow_server_of_someone_else(run: Run, tmp_path: Path) -> None:
    """Runs that this tool did not log: parameters as text, losses as metrics, one that failed."""
    uri = f"sqlite:///{tmp_path}/theirs.db"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("ladder", artifact_location=tmp_path.as_uri())
    rows = study(TRUTH, sizes=5, budgets=4, seed=5)
    for k, row in enumerate(rows.to_dict("records")):
        one = client.create_run(experiment).info.run_id
        client.log_param(one, "n_params", f"{row['params']:.6f}")
        client.log_param(one, "tokens", f"{row['tokens']:.3f}")
        client.log_metric(one, "eval/loss", 9.0, step=0)
        client.log_metric(one, "eval/loss", row["val_loss"], step=1)
        client.set_terminated(one, "FAILED" if k == 0 else "FINISHED")
    said = run("fit", f"{uri}#ladder", "--form", "power")
    table = rows[["params", "tokens", "val_loss"]]
    table = table.assign(state=["failed", *["finished"] * (len(rows) - 1)])
    expected = fit_frontier(read(table)[0], form="power").law
    assert f"C^{expected.b:.4f}" in said and "1 rows: did not finish" in said
    with pytest.raises(UserError, match="no study 'other'"):
        run("fit", f"{uri}#other")
    for row in rows.to_dict("records")[:3]:  # where MLflow puts runs without an experiment
        one = client.create_run("0").info.run_id
        client.log_metric(one, "loss", row["val_loss"])
        client.log_metric(one, "train_flops", 2 * row["macs_total"])
        client.set_terminated(one)
    with pytest.raises(ValueError, match=r"3 distinct|decade|at least|the data span"):
        run("fit", f"{uri}#Default")


READERS = ("fit", "compare", "choices", "next", "power", "audit", "transfer", "isoflop")


def test_every_command_takes_the_options_of_the_reader() -> None:
    wanted = set(inspect.signature(read).parameters) - {"source", "of", "keep"}
    assert set(OPTIONS) == wanted
    commands: Any = typer.main.get_command(app)
    for name in READERS:
        assert wanted <= {p.name for p in commands.commands[name].params}, name
    laws = {"fit", "compare", "choices", "next", "power", "audit", "report"}
    for name, of_law in commands.commands.items():
        given = {p.name for p in of_law.params} & {"e", "weights"}
        # `next` predicts new runs, of which no weights are known; approach 2 has no floor.
        assert given == (
            {"e"} if name == "next" else {"weights"} if name == "isoflop"
            else {"e", "weights"} if name in laws else set()
        ), name  # fmt: skip


def test_groups_of_one_table_are_compared_as_two_files_are(
    run: Run, tmp_path: Path, foreign: pd.DataFrame
) -> None:
    other = foreign.assign(loss=foreign["loss"] * 0.98)
    arms = {"a": foreign, "b": other}
    for name, arm in arms.items():
        arm.to_csv(tmp_path / f"{name}.csv", index=False)
    both = pd.concat([arm.assign(optimizer=name) for name, arm in arms.items()])
    both.to_csv(tmp_path / "both.csv", index=False)
    flags = ("--params-in", "M", "--d", "seen", "--tokens-in", "B")
    apart = run("compare", tmp_path / "a.csv", *flags, "--to", tmp_path / "b.csv")
    together = run("compare", tmp_path / "both.csv", *flags, "--by", "optimizer")
    times = [
        re.findall(r"needs (\S+)x the compute of .*(\[.*\])", said) for said in (apart, together)
    ]
    assert times[0] and times[0] == times[1]
    run("compare", tmp_path / "both.csv", *flags, "--by", "optimizer", "--figure",
        tmp_path / "by.html")  # fmt: skip
    drawn = pd.read_csv(tmp_path / "by.points.csv")
    assert set(drawn["law"]) == {"optimizer = a", "optimizer = b"}
    curves = drawn[drawn["kind"] == "curve"]
    assert (curves["height"] == curves["loss"]).all(), "groups of one table share a level"
    fitted = run("fit", tmp_path / "both.csv", *flags, "--by", "optimizer")
    assert f"optimizer = a: {len(foreign)} rows" in fitted and times[0] == re.findall(
        r"needs (\S+)x the compute of .*(\[.*\])", fitted
    )
    assert (
        run("choices", tmp_path / "both.csv", *flags, "--by", "optimizer").count("specifications")
        == 2
    )


def test_own_rows_with_flags_give_the_law_without(run: Run, rows_csv: Path) -> None:
    said = run("fit", rows_csv, "--loss", "val_loss", "--n", "params", "--c", "macs_total")
    assert fit_frontier(simulated_rows(), seed=0).summary() in said
    assert "budget frontier" in run("fit", rows_csv, "--where", "size != 'none'")


def test_a_column_that_somebody_added_to_own_rows_is_theirs(run: Run, tmp_path: Path) -> None:
    rows = simulated_rows()
    mean_of = np.where(rows["val_loss"].rank() % 2 > 0, 4.0, 1.0)
    rows.assign(mean_of=mean_of, note="mine").to_csv(tmp_path / "rows.csv", index=False)
    back = load(tmp_path / "rows.csv")
    assert (back["note"] == "mine").all() and back["mean_of"].dtype == float
    pd.testing.assert_frame_equal(back[rows.columns], load(rows_of(tmp_path / "plain.csv")))
    said = run("fit", tmp_path / "rows.csv", "--weights", "mean_of")
    plain = run("fit", tmp_path / "rows.csv")
    assert said != plain and "weights   " in said


def test_rows_of_two_optimizers_are_no_repeats(run: Run, tmp_path: Path) -> None:
    rows = simulated_rows()
    assert set(rows.optimizer) == {"adamw"}
    rows.drop(columns=list(ADDED)).to_csv(tmp_path / "before.csv", index=False)
    pd.testing.assert_frame_equal(load(tmp_path / "before.csv"), load(rows_of(tmp_path / "a.csv")))
    muon = rows.assign(
        optimizer="muon", run_id="m" + rows.run_id, val_loss=0.9 * rows.val_loss, seed=rows.seed + 9
    )
    pd.concat([rows, muon]).to_csv(tmp_path / "both.csv", index=False)
    told, _ = read(rows.drop(columns=list(ADDED)), where="d > 0")  # a frame of before
    assert len(told) == len(rows)
    said = run("fit", tmp_path / "both.csv")
    assert "2 values of optimizer in one law: other optimizers have other laws" in said
    said = run("fit", tmp_path / "both.csv", "--by", "optimizer")
    assert "optimizer = adamw" in said and "optimizer = muon" in said and "beware: 2" not in said


def rows_of(path: Path) -> Path:
    simulated_rows().to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--compute-unit", "FLOPs"), "--compute-unit FLOPs: these are rows of a study"),
        (("--tokens-in", "B"), "--tokens-in B: these are rows of a study"),
        (("--finished-if", "ok"), "--finished-if: these are rows of a study"),
        (("--no-history",), "--history: these are rows of a study"),
        (("--c", "lr"), "of MACs or of FLOPs"),
    ],
)
def test_what_own_rows_say_themselves_is_not_asked_for(
    run: Run, rows_csv: Path, options: tuple[str, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run("fit", rows_csv, *options)


def test_a_column_of_own_rows_in_another_unit_is_converted(run: Run, tmp_path: Path) -> None:
    rows = simulated_rows()
    rows.assign(gflops=rows["macs_total"] * 2e-9).to_csv(tmp_path / "r.csv", index=False)
    law = re.compile(r"C\^(\S+),")
    plain = law.search(run("fit", tmp_path / "r.csv", "--form", "power"))
    other = law.search(run("fit", tmp_path / "r.csv", "--form", "power", "--c", "gflops"))
    assert plain and other and plain[1] == other[1]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("power", "--where", "seed == 1"), "--where: of a table of runs, and none is given"),
        (("transfer", "FOLDER", "--lr", "lr"), "--lr: scaling transfer does not read them of"),
        (("fit", "FOLDER", "--metric", "probe_top1", "--method", "hull", "--where", "d > 1"),
         "--method hull and --where d > 1: --metric probe_top1 of a study's folder does not read"),
    ],
)  # fmt: skip
def test_options_that_a_command_does_not_use_are_refused(
    run: Run, rows_csv: Path, tmp_path: Path, command: tuple[str, ...], words: str
) -> None:
    given = [str(tmp_path if "fit" in command else rows_csv) if a == "FOLDER" else a
             for a in command]  # fmt: skip
    with pytest.raises(UserError, match=re.escape(words)):
        run(*given)


def test_groups_differ_by_the_laws_that_are_printed(
    run: Run, tmp_path: Path, foreign: pd.DataFrame
) -> None:
    both = pd.concat([foreign.assign(arm="a"), foreign.assign(arm="b", loss=foreign["loss"] * 0.9)])
    both.to_csv(tmp_path / "both.csv", index=False)
    flags = ("--params-in", "M", "--d", "seen", "--tokens-in", "B", "--by", "arm")
    said = run("fit", tmp_path / "both.csv", *flags, "--method", "hull", "--form", "power")
    printed = re.findall(r"C\^(-0\.\d+)", said.split("arm = b: L")[0])
    assert f"exponent {float(printed[-1]):+.4f}" in said.split("arm = b: L")[1]


def test_a_law_of_an_accuracy(run: Run, foreign: pd.DataFrame, tmp_path: Path) -> None:
    table = foreign.assign(acc=1 - foreign["loss"] / 10).drop(columns="loss")
    table.to_csv(tmp_path / "t.csv", index=False)
    flags = ("--params-in", "M", "--d", "seen", "--tokens-in", "B")
    said = run("fit", tmp_path / "t.csv", *flags, "--metric", "acc", "--form", "power")
    foreign.to_csv(tmp_path / "l.csv", index=False)
    plain = run("fit", tmp_path / "l.csv", *flags, "--form", "power")
    exponent = re.search(r"C\^(\S+),", plain)
    assert exponent and f"C^{exponent[1]}," in said and "1 - it" in said


def test_transfer_of_a_table(run: Run, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "Width,SP opt LR\n128,1e-3\n256,5e-4\n512,2.5e-4\n1024,1.25e-4\n"
    )
    assert "-3.00" in run("transfer", tmp_path / "t.csv")
    losses = pd.DataFrame([(w, 2.0**k, 3 + 0.02 * (k + 9) ** 2) for w in (64,
    128) for k in range(-12, -6)],
                          columns=["width", "lr", "loss"])  # fmt: skip
    losses.to_csv(tmp_path / "l.csv", index=False)
    said = run("transfer", tmp_path / "l.csv", "--figure", tmp_path / "f.html")
    assert "transfers" in said and (tmp_path / "f.html").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("1/meta.yaml", "MLFLOW_ALLOW_FILE_STORE"), ("a/trainer_state.json", "Hugging Face"),
     ("v/events.out.tfevents.1", "TensorBoard"), ("version_0/metrics.csv", "Lightning")],
)  # fmt: skip
def test_folders_of_other_tools_say_what_to_give(
    run: Run, tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=words):  # UserError, or of the reader of such files
        run("fit", tmp_path)
