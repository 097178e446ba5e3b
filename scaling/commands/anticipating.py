"""Commands about short-term anticipation. Imports are lazy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scaling.errors import UserError


def anticipate(
    study: Annotated[Path, typer.Argument(help="The study's folder, e.g. studies/quickstart.")],
    data: Annotated[
        Path | None,
        typer.Option(help="A folder in Ego4D's layout, with videos. Default: built-in clips."),
    ] = None,
    run: Annotated[str | None, typer.Option(help="Default: the run of most compute.")] = None,
    px: Annotated[
        int | None, typer.Option(help="Short side of the last frame; default: the study's doubled.")
    ] = None,
    fast_px: Annotated[
        int | None, typer.Option(help="Of the frames before it; default: half of that.")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="The last one included; default 8.")] = None,
    stride: Annotated[int | None, typer.Option(help="Frames of the video between them.")] = None,
    still_only: Annotated[
        bool, typer.Option("--still-only", help="The last frame alone, as frames 1.")
    ] = False,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="The pyramid and the head learn, the model does not.")
    ] = False,
    next_token_weight: Annotated[
        float | None, typer.Option(help="Of that loss beside the task's; 0 is the ablation.")
    ] = None,
    verb_weight: Annotated[
        float | None, typer.Option(help="Of the verb's loss; default .1, on built-in clips 1.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Of the last layer, at the muP base width; default 1e-3.")
    ] = None,
    head_lr: Annotated[float | None, typer.Option(help="Of pyramid and head; 3e-3.")] = None,
    steps: Annotated[int | None, typer.Option(help="Default 2000.")] = None,
    batch: Annotated[int | None, typer.Option(help="Annotated frames of a step; 16.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Starts of the head, orders of frames.")] = 1,
) -> None:
    """Fine-tune a model to anticipate: what will be touched next, by which verb, and when?

    A StillFast-style pyramid on five layers, and a single-stage head. Measured as Ego4D's
    short-term anticipation is: top-5 mAP of noun, noun + verb, noun + time to contact, overall.
    Beside the trained weights, those that the run started with.

    Example: `scaling anticipate studies/quickstart`, then again with `--still-only`

    Interrupt it whenever you like: the same command continues where it stopped.
    """
    from scaling.representations.anticipation import anticipate
    from scaling.study_folder import Study

    if still_only and frames not in (None, 1):
        raise UserError(
            f"--still-only takes the last frame alone, --frames {frames} more: give one"
        )
    given = {
        "px": px, "fast_px": fast_px, "frames": 1 if still_only else frames, "stride": stride,
        "frozen": frozen or None, "next_token_weight": next_token_weight,
        "verb_weight": verb_weight, "lr": lr, "head_lr": head_lr, "steps": steps, "batch": batch,
    }  # fmt: skip
    asked = {name: value for name, value in given.items() if value is not None}
    print(f"rows    {anticipate(Study.open(study), data, given=asked, run=run, seeds=seeds)}")
    print(f"report  `scaling report {study}` shows them")


def score(
    submission: Annotated[Path, typer.Argument(help="Predictions in the challenge's layout.")],
    data: Annotated[Path, typer.Option(help="The annotations, fho_sta_val.json, say.")],
) -> None:
    """Measure anyone's predictions as Ego4D's short-term anticipation challenge does.

    Beside its top-5 mAP stand the plain one and the frames without a prediction, which the
    challenge leaves out together with their objects.

    Example: `scaling score predictions.json --data fho_sta_val.json`
    """
    from scaling.representations.anticipation import score

    for line in score(submission, data):
        print(line)
