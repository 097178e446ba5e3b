"""Commands about what a study's models have learned. Imports are lazy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaling.commands.planning import OutOption
from scaling.errors import UserError

if TYPE_CHECKING:
    from scaling.study_folder import Study

StudyArg = Annotated[Path, typer.Argument(help="The study's folder, e.g. studies/quickstart.")]
RunsOption = Annotated[
    list[str] | None,
    typer.Option("--run", help="A run's id; repeatable. Default: the whole ladder."),
]
MemoryOption = Annotated[
    float, typer.Option("--memory-gb", help="Hidden states and activations in memory, at most.")
]


def probe(
    study: StudyArg,
    data: Annotated[
        Path,
        typer.Option(
            help="A folder per class, train/ and val/ of these, a CSV path,label, or an .npz."
        ),
    ],
    head: Annotated[
        list[str] | None,
        typer.Option(help="average | attention | grid | cross; repeatable. Default: the first 3."),
    ] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(help="0 is the embedding; repeatable. Default: every layer."),
    ] = None,
    run: RunsOption = None,
    seeds: Annotated[
        int, typer.Option(help="Starts of the heads; every four test each file once.")
    ] = 8,
    clips: Annotated[int, typer.Option(help="Views of a video in time (the paper: 10).")] = 1,
    crops: Annotated[int, typer.Option(help="Views of a video in space (the paper: 3).")] = 1,
    frames: Annotated[
        int | None,
        typer.Option(help="Frames of a clip; beyond a training sequence they are read in windows."),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Frame periods between them; default: as in training.")
    ] = None,
    memory_gb: MemoryOption = 2.0,
) -> None:
    """Probe every layer of a study's models on labelled images or clips, against random weights.

    Heads: average (of all tokens, linear) and attention (one learned query) are the paper's; grid
    (of each cell of the frame, linear) keeps where things are; cross is the larger one of A.7.

    Example: `scaling probe studies/quickstart --data ~/sign_digits`

    Interrupt it whenever you like: the same command continues where it stopped.
    """
    from scaling.representations.encoded import Views
    from scaling.representations.probe import probe
    from scaling.study_folder import Study

    out = probe(
        Study.open(study),
        data,
        heads=tuple(head or ("average", "attention", "grid")),
        layers=layer or None,
        runs=run or None,
        seeds=seeds,
        views=Views(clips, crops, frames, stride),
        memory_gb=memory_gb,
    )
    print(f"rows    {out}\nreport  `scaling report {study}` shows them")


def davis(
    study: StudyArg,
    data: Annotated[Path, typer.Option(help="DAVIS's folder: JPEGImages/ and Annotations/.")],
    run: Annotated[
        list[str] | None,
        typer.Option("--run", help="A run's id; repeatable. Default: the one of most compute."),
    ] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(help="0 is the embedding; repeatable. Default: every layer."),
    ] = None,
    protocol: Annotated[str, typer.Option(help="jabri | dino")] = "jabri",
    rows: Annotated[int, typer.Option(help="Tokens on the short side of a frame.")] = 24,
    split: Annotated[
        str | None,
        typer.Option(help="train | val | trainval, of ImageSets/, or all. Default: val."),
    ] = None,
    resolution: Annotated[
        str | None, typer.Option(help="A folder of JPEGImages/. Default: 480p.")
    ] = None,
    every_point: Annotated[
        bool,
        typer.Option("--every-point", help="Each decayed point of the ladder, for a law of J&F."),
    ] = False,
    memory_gb: MemoryOption = 2.0,
) -> None:
    """Track DAVIS's objects by label propagation: J, F and J&F of every layer.

    Next to the same models with random weights, and to the pixels' own colours.

    Example: `scaling davis studies/quickstart --data ~/DAVIS --protocol jabri`
    """
    from scaling.representations.davis import track
    from scaling.study_folder import Study

    out = track(
        Study.open(study), data, runs=run or None, layers=layer or None, protocol=protocol,
        rows=rows, split=split, resolution=resolution, every_point=every_point,
        memory_gb=memory_gb,
    )  # fmt: skip
    print(f"rows    {out}\nreport  `scaling report {study}` shows them")


def generate(
    run: Annotated[Path, typer.Argument(help="A run's folder: studies/NAME/runs/ID.")],
    prompt: Annotated[Path, typer.Option(help="A clip whose first frames are continued.")],
    frames: Annotated[int, typer.Option(help="Frames to draw.")] = 64,
    prompt_frames: Annotated[
        int | None,
        typer.Option(help="Frames of the clip that are given; default: half a sequence."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The video, .mp4 or .gif.")] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest that reach p.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
) -> None:
    """Continue a clip: a video, a strip of its frames, and the loss by frame and position.

    Example: `scaling generate studies/quickstart/runs/0a1b2c3d4e5f --prompt clip.mp4 --frames 64`
    """
    from scaling.representations.continuation import continue_clip

    for path in continue_clip(
        run, prompt, frames=frames, prompt_frames=prompt_frames, out=out, temperature=temperature,
        top_k=top_k, top_p=top_p, seed=seed,
    ):  # fmt: skip
        print(path)


def permanence(
    out: Annotated[Path, typer.Argument(help="Folder for the clips and labels.csv.")],
    clips: Annotated[int, typer.Option(help="How many; a quarter is for the test.")] = 1200,
    frames: Annotated[int, typer.Option(help="Frames of a clip.")] = 32,
    size: Annotated[int, typer.Option(help="Pixels on the side.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
) -> None:
    """Make clips in which a ball passes behind and under others; the label is its last cell of 36.

    Example: `scaling permanence permanence --frames 32`, then `scaling finetune studies/quickstart
    --data permanence/labels.csv --frames 32 --stride 1 --px 24 --end-to-end --head grid --lr 3e-3
    --batch 8 --seeds 1`; px: 6 times the tokenizer's patch, so that a cell is a token.
    """
    from scaling.representations.permanence import write_permanence

    print(f"labels  {write_permanence(out, clips=clips, frames=frames, size=size, seed=seed)}")


def finetune(
    study: StudyArg,
    data: Annotated[Path, typer.Option(help="Labelled images or clips, as for `scaling probe`.")],
    run: Annotated[str | None, typer.Option(help="Default: the run of most compute.")] = None,
    px: Annotated[
        int | None, typer.Option(help="Side; default: of images doubled, of clips as in training.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Frames of a clip; default: as in training.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Frame periods between them; default: as in training.")
    ] = None,
    rope_base: Annotated[float, typer.Option(help="Base of the rotary positions.")] = 50_000.0,
    attention: Annotated[str, typer.Option(help="causal | prefix | full")] = "causal",
    end_to_end: Annotated[
        bool,
        typer.Option(help="Labels train the model, by one head on the last layer (A.2, A.3)."),
    ] = False,
    head: Annotated[
        str, typer.Option(help="average | attention | grid (of a clip's last frame) | cross")
    ] = "attention",
    layer_decay: Annotated[float, typer.Option(help="Of the rate, a layer.")] = 0.9,
    lr: Annotated[float, typer.Option(help="Of the last layer, at the muP base width.")] = 1e-3,
    steps: Annotated[int | None, typer.Option(min=1, help="Default 300.")] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the training files, in place of steps.")
    ] = None,
    clips: Annotated[int, typer.Option(help="Views of a video in time; a test takes all.")] = 1,
    crops: Annotated[int, typer.Option(help="Views of a video in space.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images or clips of a step.")] = 32,
    seeds: Annotated[int, typer.Option(min=1, help="Splits of the files, starts.")] = 3,
) -> None:
    """Fine-tune a model on labelled images or clips: resolution, length, rotary base, attention.

    Next tokens train the model while the heads learn beside it (Section 4.2), or, end to end, the
    labels do. Beside the trained weights, those that the run started with.

    Clips of more frames than training's are read whole: a longer context, a larger rotary base.

    Example: `scaling finetune studies/quickstart --data ~/sign_digits --px 32 --rope-base 50000`

    Interrupt it whenever you like: the same command continues where it stopped.
    """
    from scaling.config.schema import Tuning
    from scaling.config.study_file import checked
    from scaling.representations.finetune import finetune
    from scaling.study_folder import Study

    tuning = checked(
        Tuning, px=px, frames=frames, stride=stride, rope_base=rope_base, attention=attention,
        end_to_end=end_to_end, layer_decay=layer_decay, lr=lr, epochs=epochs, batch=batch,
        clips=clips, crops=crops, **({} if steps is None else {"steps": steps}),
    )  # fmt: skip
    there = Study.open(study)
    print(f"rows    {finetune(there, data, tuning=tuning, head=head, run=run, seeds=seeds)}")
    print(f"report  `scaling report {study}` shows them")


def represent(
    study: Annotated[
        Path, typer.Argument(help="A study's folder; or its YAML file, and it is run first.")
    ],
    data: Annotated[
        list[Path] | None, typer.Option(help="Labelled images or clips to probe on; repeatable.")
    ] = None,
    davis_data: Annotated[Path | None, typer.Option("--davis", help="DAVIS's folder.")] = None,
    prompt: Annotated[
        list[Path] | None, typer.Option(help="A clip that is continued; repeatable.")
    ] = None,
    hidden: Annotated[
        list[int] | None,
        typer.Option(
            "--permanence", help="Frames of clips with a hidden ball, to find it; repeatable."
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(help="Of the probes; a study of variants has its own, ladder.seeds.")
    ] = 8,
    clips: Annotated[int, typer.Option(help="Views of a labelled clip in time.")] = 1,
    rows: Annotated[int, typer.Option(help="DAVIS: tokens on the short side of a frame.")] = 24,
    frames: Annotated[int, typer.Option(help="Frames to draw after a prompt.")] = 64,
    out: OutOption = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="As of `scaling study`.")] = None,
    memory_gb: MemoryOption = 2.0,
) -> None:
    """Probe, track, generate and write the report: all that a study's models know, in one command.

    A study of variants is read as its file says: each by its head, or fine-tuned, a seed a run.

    Example: `scaling represent studies/quickstart --data ~/digits --davis ~/DAVIS --prompt a.mp4`

    Interrupt it whenever you like: the same command continues where it stopped.
    """
    from scaling.commands.fitting import report
    from scaling.representations.continuation import continue_clip, targets
    from scaling.representations.davis import track
    from scaling.representations.permanence import locate
    from scaling.representations.trained import trained_runs

    there = _run_first(study, out, set_ or ())
    there.claim(*there.report_files, *there.probe_files)
    prompts = list(dict.fromkeys(prompt or ()))
    if prompts:
        best = min(trained_runs(there), key=lambda t: t.row["val_loss"])
    for clip in prompts:
        targets(there, best.run_id, clip)
    for one in data or ():
        _probe_or_variants(there, one, seeds, clips, memory_gb)
    for length in hidden or ():
        locate(there, length)
    if davis_data is not None:
        track(there, davis_data, rows=rows, memory_gb=memory_gb)
    for clip in prompts:
        print(continue_clip(best.folder, clip, frames=frames)[0])
    report(there.folder)


def _run_first(study: Path, out: Path | None, assignments: Sequence[str]) -> Study:
    """The study of a folder; of a YAML file after it was run. Raises UserError."""
    from scaling.study.pipeline import run_study
    from scaling.study_folder import Study, choose

    if study.is_dir():
        if assignments:
            raise UserError(
                f"{study} is a study's folder, whose values are set; give its YAML file with --set"
            )
        return Study.open(study)
    config, there = choose(study, out, assignments)
    there.claim_to_run(config, *there.probe_files)
    run_study(config, there)
    return there


def _probe_or_variants(study: Study, data: Path, seeds: int, clips: int, memory_gb: float) -> None:
    """Read a study's models on labelled data, in the way that its file says."""
    from scaling.representations.encoded import Views
    from scaling.representations.of_variants import read_variants
    from scaling.representations.probe import probe

    config, views = study.config(), Views(clips)
    if config.variants:
        read_variants(study, config, data, views=views, memory_gb=memory_gb)
    else:
        probe(study, data, seeds=seeds, views=views, memory_gb=memory_gb)
