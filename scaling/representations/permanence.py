"""Object permanence (Section 4.7): where is the ball now? A 6 x 6 grid, as CATER's snitch has.

The built-in clips need no download. A ball moves over a floor with four blocks and a cup; it passes
behind blocks and, in some clips, is caught by the cup and carried under it, hidden, to where the
clip ends. The label is the cell of the ball in the last frame, seen or not. CATER itself is read by
`scaling.representations.labelled` (videos/ and lists/localize/*.txt).

As in the paper the model is fine-tuned on the labels. A frame has 6 x 6 tokens, one for each cell,
of which the ball covers about one, as the snitch does of the paper's (128 px, tokens of 8 px).
Clips are longer than the sequences of training and are read whole, as `finetune` says.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np

from scaling.config.schema import Tuning
from scaling.errors import UserError
from scaling.representations.continuation import write_video
from scaling.representations.finetune import Say, finetune
from scaling.representations.trained import data_dir_of, open_tokenizer, trained_runs
from scaling.storage import files, outputs
from scaling.study.progress import teller
from scaling.study_folder import Study

MAKER = "scaling permanence"
GRID = 6
BLOCKS = 4
BALL = np.array([235, 60, 45], np.float32)
BALL_RADIUS = 0.08  # of the frame's side
BLOCK_HALF = (0.08, 0.13)
CUP_HALF = 0.11
SPEED = 0.035  # of the frame's side a frame, at most
CAUGHT = 0.3  # share of the clips whose ball ends under the cup
SCHEMA = 2  # of the scenes
CLIPS = 1600
TUNING = Tuning(end_to_end=True, lr=3e-3, head_lr=1e-2, batch=8, steps=300)


def scene(seed: int, index: int, *, frames: int, size: int) -> tuple[np.ndarray, int, np.ndarray]:
    """One clip, uint8 (T, S, S, 3); the cell of the ball in its last frame; its visibility (T,).

    Clip `index` of a seed is a pure function of both. The cell is row * 6 + column. Visible is the
    share of the ball's pixels that no block or cup covers.
    """
    rng = np.random.default_rng([seed, index, 0xBA11])
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    floor = 90 + 40 * rng.random(3) + 25 * (y - 0.5)[..., None] * rng.choice([-1, 1])
    blocks = rng.uniform(0.12, 0.88, (BLOCKS, 2))
    halves = rng.uniform(*BLOCK_HALF, (BLOCKS, 2))
    colours = rng.uniform(20, 230, (BLOCKS + 1, 3)) * [0.6, 1, 1]  # none is red like the ball
    ball = _path(rng, frames)
    cup = _path(rng, frames)
    if rng.random() < CAUGHT:  # they meet, and from then on the ball travels under the cup
        meet = int(rng.integers(frames // 3, max(frames // 3 + 1, 2 * frames // 3)))
        ramp = np.clip(np.arange(frames) / max(1, meet), 0, 1)[:, None]
        cup = cup + ramp * (ball[meet] - cup[meet])
        cup = np.clip(cup, 0.02, 0.98)
        ball[meet:] = cup[meet:]
        covers = np.arange(frames) >= meet
    else:
        covers = np.zeros(frames, bool)
    out = np.empty((frames, size, size, 3), np.uint8)
    visible = np.empty(frames)
    for t in range(frames):
        picture = floor.copy()
        at_ball = (y - ball[t, 0]) ** 2 + (x - ball[t, 1]) ** 2 < BALL_RADIUS**2
        at_cup = np.maximum(abs(y - cup[t, 0]), abs(x - cup[t, 1])) < CUP_HALF
        hidden = np.zeros_like(at_ball)
        if not covers[t]:  # on the floor before it is caught, the cup stands behind the ball
            picture[at_cup] = colours[-1]
        picture[at_ball] = BALL
        if covers[t]:
            picture[at_cup] = colours[-1]
            hidden |= at_cup
        for (by, bx), (hy, hx), colour in zip(blocks, halves, colours, strict=False):
            at = (abs(y - by) < hy) & (abs(x - bx) < hx)
            picture[at] = colour
            hidden |= at
        visible[t] = 1 - (at_ball & hidden).sum() / max(1, at_ball.sum())
        noisy = picture + rng.normal(0, 2, picture.shape)
        out[t] = np.clip(noisy, 0, 255).astype(np.uint8)
    row, column = np.minimum((ball[-1] * GRID).astype(int), GRID - 1)
    return out, int(row * GRID + column), visible


def _path(rng: np.random.Generator, frames: int) -> np.ndarray:
    """A smooth walk inside the frame, (T, 2) as y, x, reflected at the rim."""
    velocity = rng.normal(0, SPEED / 2, 2)
    at = rng.uniform(0.1, 0.9, 2)
    places = []
    for _ in range(frames):
        velocity = np.clip(0.9 * velocity + rng.normal(0, SPEED / 4, 2), -SPEED, SPEED)
        at = at + velocity
        velocity = np.where((at < 0.06) | (at > 0.94), -velocity, velocity)
        at = np.clip(at, 0.06, 0.94)
        places.append(at)
    return np.array(places)


def write_permanence(out: Path, *, clips: int, frames: int, size: int, seed: int = 0) -> Path:
    """Write `clips` clips as out/<clip>.mp4 and their labels; returns the table for `--data`.

    The table has the columns path, label (a cell, as row-column), split (a quarter is test) and
    visible (of the ball, in the last frame). Clips that are there are kept.
    Raises UserError for impossible numbers, a folder with clips of others, no space.
    """
    if clips < 2 * GRID or frames < 4 or size < 32 or size % 2:
        raise UserError(
            f"{clips} clips of {frames} frames of {size} px: want at least {2 * GRID} clips, 4 "
            "frames, and an even size of at least 32 px"
        )
    settings = json.dumps({"schema": SCHEMA, "frames": frames, "size": size, "seed": seed})
    made_by = out / "settings.json"
    with files.explained(out):
        out.mkdir(parents=True, exist_ok=True)
        names = [f"{i:06d}.mp4" for i in range(clips)]
        ours = (made_by, out / "labels.csv", *(out / name for name in names))
        held = made_by.read_bytes().decode(errors="replace") if made_by.is_file() else None
        if held == settings:  # nobody else writes them so
            outputs.adopt(MAKER, *ours)
        outputs.claim(MAKER, *ours)
        if held != settings and (held or files.whole(out, "*.mp4")):
            raise UserError(
                f"{out} holds clips of other settings ({held or 'unknown'}, not {settings}), which "
                "these labels would not fit; remove it or give another folder"
            )
        outputs.write(MAKER, made_by, settings)
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(("path", "label", "split", "visible"))
        ends, tell = [], teller()
        for i, name in enumerate(names):
            pixels, cell, visible = scene(seed, i, frames=frames, size=size)
            if not (out / name).exists():
                write_video(MAKER, out / name, pixels, fps=25)
            ends.append((name, cell, visible[-1]))
            tell(f"clips of {frames} frames", i + 1, clips)
        learned = {cell for i, (_, cell, _) in enumerate(ends) if i % 4}
        for i, (name, cell, seen) in enumerate(ends):
            # A cell that no training clip ends in cannot be learned: its clips are for training.
            split = "test" if i % 4 == 0 and cell in learned else "train"
            writer.writerow((name, f"{cell // GRID}-{cell % GRID}", split, f"{seen:.3f}"))
        outputs.write(MAKER, out / "labels.csv", buffer.getvalue())
    return out / "labels.csv"


def locate(study: Study, frames: int, say: Say = print) -> Path:
    """Fine-tune the study's costliest model on CLIPS built-in clips; returns STUDY/finetune.csv.

    From its trained weights and from those that it started with, once: the clips give the split.
    Raises UserError: what `write_permanence` and `finetune` raise.
    """
    _, index = open_tokenizer(data_dir_of(study, trained_runs(study)[-1].run))
    px = round(GRID * index["size"] / index["tokens_per_frame"] ** 0.5)
    made = study.folder / f"permanence-{frames}"
    data = write_permanence(made, clips=CLIPS, frames=frames, size=max(32, 2 * px))
    tuning = TUNING.model_copy(update={"px": px, "frames": frames, "stride": 1})
    return finetune(study, data, tuning=tuning, head="grid", seeds=1, say=say)
