"""The command line. Thin: each command parses, calls one function, prints. Imports are lazy."""

from __future__ import annotations

import os
import sys

from scaling import search_path

sys.path[:] = search_path.ours(sys.path)  # before anything is imported that a user may have too
os.environ.update(search_path.variables())
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before anything can import MLflow

import platform  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import traceback  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, Any  # noqa: E402

import typer  # noqa: E402

from scaling import __version__  # noqa: E402
from scaling.commands import (  # noqa: E402
    comparing,
    isoflop,
    judging,
    keeping,
    models,
    predicting,
    probes,
    reading,
    tokens,
)
from scaling.errors import UserError  # noqa: E402

app = typer.Typer(
    name="scaling",
    help="Raw clips in, a power law with honest error bars out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

ConfigArg = Annotated[
    Path,
    typer.Argument(
        help="A study: a YAML file, the name of one that ships, or a started one's folder."
    ),
]
FolderArg = Annotated[Path, typer.Argument(help="The study's folder, e.g. studies/quickstart.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder that holds all studies.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change one value: section.key=value; sources by name: data.sources.clips.path=DIR.",
    ),
]
STUDIES = Path("studies")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"scaling {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Say it and end."),
    ] = False,
) -> None:
    """Raw clips in, a power law with honest error bars out."""


def _config(path: Path, overrides: list[str] | None) -> Any:
    from scaling.config.study_file import load_study

    return load_study(path / "study.yaml" if path.is_dir() else path, overrides or ())


@app.command()
def study(
    config: ConfigArg,
    out: OutOption = STUDIES,
    set_: SetOption = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Slurm: submit what can run now, and return.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Start also beyond launch.max_macs or max_gpu_hours.")
    ] = False,
) -> None:
    """Run a study from its media to its report, or continue it.

    Example: `scaling study sweeps/quickstart.yaml`

    Interrupt it whenever you like: the same command continues where it stopped.
    """
    from scaling.study.pipeline import study as run_study

    run_study(_config(config, set_), out, say=_say, detach=detach, yes=yes)


@app.command()
def plan(
    config: ConfigArg,
    out: OutOption = STUDIES,
    set_: SetOption = None,
    measure: Annotated[
        bool, typer.Option(help="Time one training step of each size here for the estimate.")
    ] = True,
    page: Annotated[
        Path | None,
        typer.Option(help="Also write this, without what is of this machine, to a Markdown file."),
    ] = None,
) -> None:
    """Say what a study will cost, before anything starts: runs, tokens, MACs, memory, time, disk.

    Example: `scaling plan sweeps/quickstart.yaml`
    """
    from scaling.jobs.launch import check, resources
    from scaling.plan import tokens as plan_tokens
    from scaling.plan.runs import disk_bytes, free_bytes, gpu_hours, over_budget, study_cost
    from scaling.storage import outputs

    if page is not None:
        outputs.claim("scaling plan", page, inputs=[config])
    study_config = _config(config, set_)
    told: list[str] = []

    def tell(text: str) -> None:
        _say(text)
        told.append(text)

    launch = study_config.launch
    parallel, threads = resources(launch)
    costs, left = study_cost(study_config, threads=threads, measure=measure, log=_note)
    tell(f"study {study_config.study}: {parallel} jobs at once, {threads} threads each")
    head = f"{'':10}{'size':>12}{'params':>14}{'runs':>6}{'steps':>10}{'tokens':>12}{'MACs':>12}"
    tell(head + f"{'memory':>10}{'time':>10}")
    for c in costs:
        time = "not timed" if c.seconds is None else _duration(c.seconds)
        tell(
            f"{c.role:10}{c.size:>12}{c.params:>14,}{c.runs:>6}{c.steps:>10,}{c.tokens:>12.3g}"
            f"{c.macs:>12.3g}{_bytes(c.bytes_memory):>10}{time:>10}"
            + (f"  on {c.gpus} GPUs" if c.gpus and launch.cluster == "slurm" else "")
        )
    if launch.gpus and launch.gpu_memory_gb:
        tell(f"GPUs: the fewest whose {launch.gpu_memory_gb:g} GB hold a run (memory: of each)")
    for pair in left:
        tell(f"left out: {pair.size} at {pair.budget_macs:.3g} MACs: {pair.rule}")
    macs = sum(c.macs for c in costs)
    tell(
        f"total: {sum(c.runs for c in costs)} runs, {sum(c.tokens for c in costs):.3g} tokens, "
        f"{macs:.3g} training MACs (3 x forward; {2 * macs:.3g} FLOPs, "
        f"{2 * macs / 8.64e19:.2g} PF-days)"
    )
    timed = [c.seconds for c in costs if c.seconds is not None]
    if len(timed) == len(costs):
        on = "on this machine"
        if launch.cluster == "slurm":
            on = f"by {parallel} jobs at once, each as fast as this machine"
        tell(f"time: about {_duration(sum(timed) / parallel)} of training {on}")
    elif measure:
        tell("time: not estimated for the sizes whose single step is too large to time here")
    if (hours := gpu_hours(launch, costs)) is not None:
        tell(f"GPUs: about {hours:.3g} GPU-hours")
    for line in plan_tokens.lines(study_config, costs):
        tell(line)
    if page is not None:
        text = outputs.signed("scaling plan", plan_tokens.page(config, page, told))
        outputs.write("scaling plan", page, text)
    folder = out / study_config.study
    _say(f"disk: {_bytes(disk_bytes(study_config, costs))}; free: {_bytes(free_bytes(folder))}")
    over = over_budget(launch, costs)
    for line in over:
        _say(f"over budget: {line}; `scaling study` starts it only with --yes")
    if not over and (launch.max_macs or launch.max_gpu_hours):
        _say("within its budget")
    if launch.cluster == "slurm" and shutil.which("sbatch") is None:
        _say("Slurm was not asked whether it takes these jobs: there is no `sbatch` here")
        return
    check(launch, folder)
    if launch.cluster == "slurm":
        _say("Slurm would take these jobs")


@app.command()
def encode(config: ConfigArg, out: OutOption = STUDIES, set_: SetOption = None) -> None:
    """Only make the tokens of a study: decode, crop, fit the tokenizer, write shards.

    Example: `scaling encode sweeps/clips.yaml --set data.sources.clips.path=~/Videos`
    """
    from scaling.config.schema import variants
    from scaling.study.pipeline import encode as run_encode

    study_config = _config(config, set_)
    folder = out / study_config.study
    made = [run_encode(one, folder, _say) for one in variants(study_config).values()]
    for data_dir in dict.fromkeys(made):
        _say(f"tokens  {data_dir}")


@app.command()
def train(
    run: Annotated[
        Path, typer.Argument(help="A run's folder (with config.yaml), or a config.yaml.")
    ],
) -> None:
    """Train or continue one run in this process.

    Example: `scaling train studies/quickstart/runs/0a1b2c3d4e5f`
    """
    from scaling.checkpoint import STOP, Interrupted
    from scaling.config.schema import RunConfig
    from scaling.results import POSITIONS, loss_unit
    from scaling.storage import outputs
    from scaling.storage.files import RunBusy
    from scaling.training.train import train as run_train

    path = run / "config.yaml" if run.is_dir() else run
    if not (path.parent / "lock").exists():  # nobody trained here
        names = ("metrics.jsonl", "checkpoint.pt", "trunk.pt", POSITIONS)
        outputs.claim("scaling train", *(path.parent / name for name in names))
    STOP.install(signal.SIGINT)
    try:
        rows = run_train(RunConfig.from_yaml(path), path.parent, log=_say)
    except RunBusy as busy:
        raise UserError(f"{busy}; wait for it or stop it") from None
    except Interrupted as stopped:
        _note(str(stopped))
        raise typer.Exit(130) from None
    for row in rows:
        if row["decayed"] or row["status"] != "finished":
            unit = loss_unit([row["tokenizer"]])
            loss = "no loss" if row["val_loss"] is None else f"{row['val_loss']:.4f} {unit}"
            _say(f"{row['status']}: {row['macs_total']:.4g} training MACs, {loss}")


@app.command()
def ui(
    folder: FolderArg,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
) -> None:
    """Show the study's runs in MLflow's pages, to you alone: the printed address holds a secret.

    Example: `scaling ui studies/quickstart`

    On a login node: `ssh -L 5000:127.0.0.1:5000 NODE` from your own machine, then that address.
    """
    from scaling.tracking import track

    track.ui(folder, port)


app.command()(keeping.status)
app.command()(keeping.logs)
app.command()(keeping.cancel)
app.command()(keeping.sync)
app.command()(keeping.doctor)
app.command()(reading.fit)
app.command()(predicting.predict)
app.command()(isoflop.isoflop)
app.command()(comparing.compare)
app.command()(reading.transfer)
app.command()(judging.audit)
app.command()(judging.choices)
app.command("next")(judging.next_runs)
app.command()(judging.power)
app.command()(reading.report)
app.command()(models.models)
app.command()(models.coord_check)
app.command()(probes.probe)
app.command()(probes.davis)
app.command()(probes.generate)
app.command()(probes.permanence)
app.command()(probes.finetune)
app.command()(probes.represent)
app.command()(tokens.tokens)
app.add_typer(tokens.tokenizer, name="tokenizer")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} PB"


def _say(text: str) -> None:
    print(text, flush=True)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Entry point: a user's mistake is one clear message and exit code 2; a traceback is a bug."""
    usage_error: Any = typer.BadParameter.__bases__[0]  # typer carries its own copy of click
    try:
        code = app(standalone_mode=False)
    except usage_error as error:
        error.show()
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()  # `scaling status | head`
        sys.exit(0)
    except Exception as error:
        told: Exception = error
        if isinstance(error, OSError):  # a library that writes (Optuna's journal) meets a full disk
            from scaling.storage.files import storage_error

            told = storage_error(error, Path(error.filename or "the study's folder"))
        if isinstance(told, UserError):
            _note(f"error: {told}")
            sys.exit(2)
        traceback.print_exc()
        _note(
            f"\nThis is a fault of scaling {__version__} (Python {platform.python_version()}), "
            "not of what you gave; what is finished is kept. Please report it where you got "
            "scaling from, with the lines above."
        )
        sys.exit(1)
    if code == 130:  # typer's answer to Ctrl-C
        _note("interrupted; what is finished is kept, and the same command continues")
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
