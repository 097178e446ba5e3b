"""The command line. Thin: each command parses, calls one function, prints. Imports are lazy."""

from __future__ import annotations

import os
import sys

from scaling.jobs import search_path

sys.path[:] = search_path.ours(sys.path)  # before anything is imported that a user may have too
os.environ.update(search_path.variables())
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # before anything can import MLflow

import platform  # noqa: E402
import re  # noqa: E402
import signal  # noqa: E402
import traceback  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Annotated, Any  # noqa: E402

import typer  # noqa: E402

from scaling import __version__  # noqa: E402
from scaling.commands import (  # noqa: E402
    anticipating,
    comparing,
    fitting,
    isoflop,
    judging,
    models,
    operating,
    planning,
    predicting,
    probes,
    tokenizing,
    transferring,
)
from scaling.commands.planning import ConfigArg, OutOption, SetOption  # noqa: E402
from scaling.errors import UserError, note  # noqa: E402

app = typer.Typer(
    name="scaling",
    help="Raw clips in, a power law with honest error bars out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

FolderArg = Annotated[Path, typer.Argument(help="The study's folder, e.g. studies/quickstart.")]


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


@app.command()
def study(
    config: ConfigArg,
    out: OutOption = None,
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
    from scaling.study.pipeline import run_study
    from scaling.study_folder import choose

    run_study(*choose(config, out, set_ or ()), say=_say, detach=detach, yes=yes)


@app.command()
def encode(config: ConfigArg, out: OutOption = None, set_: SetOption = None) -> None:
    """Only make the tokens of a study: decode, crop, fit the tokenizer, write shards.

    Example: `scaling encode sweeps/clips.yaml --set data.sources.clips.path=~/Videos`
    """
    from scaling.config.schema import variant_studies
    from scaling.study.pipeline import encode as run_encode
    from scaling.study_folder import choose

    chosen, there = choose(config, out, set_ or ())
    made = [run_encode(one, there, _say) for one in variant_studies(chosen).values()]
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
    from scaling.config.run import RunConfig
    from scaling.results import loss_unit
    from scaling.storage import outputs
    from scaling.storage.files import RunBusy
    from scaling.study_folder import RunFolder
    from scaling.training.train import train as run_train

    path = RunFolder(run).config_yaml if run.is_dir() else run
    there = RunFolder(path.parent)
    asked = there.config() if path.name == there.config_yaml.name else RunConfig.from_yaml(path)
    if not there.lock.exists():  # nobody trained here
        written = (there.metrics, there.checkpoint, there.points_json, there.rows_json)
        outputs.claim("scaling train", *written)
    STOP.install(signal.SIGINT)
    try:
        rows = run_train(asked, there.path, log=_say)
    except RunBusy as busy:
        raise UserError(f"{busy}; wait for it or stop it") from None
    except Interrupted as stopped:
        note(str(stopped))
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
    from scaling.study_folder import Study
    from scaling.tracking import mlflow_copy

    mlflow_copy.ui(Study.open(folder), port)


app.command()(planning.plan)
app.command()(operating.status)
app.command()(operating.logs)
app.command()(operating.cancel)
app.command()(operating.sync)
app.command()(operating.doctor)
app.command()(fitting.fit)
app.command()(predicting.predict)
app.command()(isoflop.isoflop)
app.command()(isoflop.targets)
app.command()(comparing.compare)
app.command()(transferring.transfer)
app.command()(judging.audit)
app.command()(judging.choices)
app.command("next")(judging.next_runs)
app.command()(judging.power)
app.command()(fitting.report)
app.command()(models.models)
app.command()(models.coord_check)
app.command()(probes.probe)
app.command()(probes.davis)
app.command()(probes.generate)
app.command()(probes.permanence)
app.command()(probes.finetune)
app.command()(anticipating.anticipate)
app.command()(anticipating.score)
app.command()(probes.represent)
app.command()(tokenizing.tokens)
app.add_typer(tokenizing.tokenizer, name="tokenizer")


def _short(text: str, most: int = 1000) -> str:
    """A message without what nobody reads: a cell of six thousand digits, say."""
    return re.sub(
        rf"\S{{{most},}}", lambda word: f"{word[0][:40]}... ({len(word[0]):,} characters)", text
    )


def _say(text: str) -> None:
    print(text, flush=True)


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
            note(f"error: {_short(str(told))}")
            sys.exit(2)
        traceback.print_exc()
        note(
            f"\nThis is a fault of scaling {__version__} (Python {platform.python_version()}), "
            "not of what you gave; what is finished is kept. Please report it where you got "
            "scaling from, with the lines above."
        )
        sys.exit(1)
    if code == 130:  # typer's answer to Ctrl-C
        note("interrupted; what is finished is kept, and the same command continues")
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
