"""Built-in clips to anticipate in, in Ego4D's layout: a hand moves towards one of many things.

Nine to twelve things lie on a table, so that top-5 cannot name them all. A hand moves in a straight
line towards one of them, and nothing else lies on its way: the thing is the noun (its shape and
colour), the hand's shape the verb, and the time to contact is the way that is left, up to the
thing's rim, by the speed. The last frame shows where the hand is and its shape; where it goes and
how fast, only the frames before it.

    DIR/fho_sta_train.json, fho_sta_val.json, clips/VIDEO.mp4

A training video holds `EPISODES` of them, one after another, a validation video one: these are
what an interval is drawn over.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaling.errors import UserError
from scaling.representations.anticipation_files import SPLITS
from scaling.representations.continuation import write_video
from scaling.storage import files, outputs
from scaling.study.progress import teller

MAKER = "scaling anticipate"
SCHEMA = 1
SIZE = 64  # px
FPS = 5
EPISODES = 50  # of a training video
THINGS = (9, 12)
SHAPES = ("disc", "square")
COLOURS = {"red": (215, 50, 45), "green": (55, 165, 60), "blue": (55, 80, 205)}
NOUNS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
VERBS = ("take", "push", "cut")  # an open ring, a bar, a cross
SKIN = (240, 205, 165)
HALF = (0.075, 0.1)  # of a thing's side, in sides of the frame
HAND = 0.085
SPEED = (0.1, 0.3)  # sides a second
SECONDS = (0.25, 2.0)  # to contact, from the last frame
SPLIT_SEED = {"train": 0, "val": 1}
COUNT = {"train": 4000, "val": 400}
EPISODE = 8  # frames
# `Anticipation` on these clips: verbs weigh as much as nouns, or a short run does not learn them.
BUILT_IN = {"frames": EPISODE, "verb_weight": 1.0, "steps": 1200}
TOKENS = 12  # on the side of the last frame, whatever a token's px


@dataclass(frozen=True, eq=False)
class Scene:
    """One episode: frames uint8 (T, S, S, 3), and what is touched next, in px."""

    frames: np.ndarray
    box: list[float]
    noun: int
    verb: int
    seconds: float


def scene(rng: np.random.Generator, *, frames: int, size: int = SIZE) -> Scene:
    """An episode of `frames` frames at `FPS`, drawn from `rng`."""
    while True:
        centres_N2, half_N = _table(rng)
        target = int(rng.integers(len(half_N)))
        speed, seconds = rng.uniform(*SPEED), rng.uniform(*SECONDS)
        angle = rng.uniform(0, 2 * np.pi)
        way_2 = np.array([np.sin(angle), np.cos(angle)])
        ago_T = np.arange(frames - 1, -1, -1) / FPS
        left_T = half_N[target] + speed * (seconds + ago_T)
        hand_T2 = centres_N2[target] - left_T[:, None] * way_2
        if (np.abs(hand_T2 - 0.5) < 0.5 - HAND / 2).all() and _is_free(
            hand_T2[-1], target, centres_N2, half_N
        ):
            break
    noun_N, verb = rng.integers(len(NOUNS), size=len(half_N)), int(rng.integers(len(VERBS)))
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    table = 110 + 30 * rng.random(3) + 20 * (y - 0.5)[..., None] * rng.choice([-1, 1])
    for (cy, cx), half, noun in zip(centres_N2, half_N, noun_N, strict=True):
        colour, shape = list(COLOURS.values())[noun // len(SHAPES)], SHAPES[noun % len(SHAPES)]
        away = np.maximum(abs(y - cy), abs(x - cx))
        table[(np.hypot(y - cy, x - cx) if shape == "disc" else away) < half] = colour
    out = np.empty((frames, size, size, 3), np.uint8)
    for t, (cy, cx) in enumerate(hand_T2):
        picture = table.copy()
        picture[_hand(verb, y - cy, x - cx)] = SKIN
        noisy = picture + rng.normal(0, 2, picture.shape)
        out[t] = np.clip(noisy, 0, 255).astype(np.uint8)
    (cy, cx), half = centres_N2[target], half_N[target]
    box = [round(float(v) * size, 2) for v in (cx - half, cy - half, cx + half, cy + half)]
    return Scene(out, box, int(noun_N[target]), verb, round(float(seconds), 3))


def _table(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Centres (N, 2) as y, x and half sides (N,) of things that do not touch."""
    count = int(rng.integers(THINGS[0], THINGS[1] + 1))
    cells = rng.permutation(16)[:count]
    half_N = rng.uniform(*HALF, count)
    free_N = 0.125 - half_N - 0.01
    jitter_N2 = rng.uniform(-1, 1, (count, 2)) * free_N[:, None]
    return (np.stack([cells // 4, cells % 4], 1) + 0.5) / 4 + jitter_N2, half_N


def _is_free(hand_2: np.ndarray, target: int, centres_N2: np.ndarray, half_N: np.ndarray) -> bool:
    """Whether nothing else lies on the hand's way to its target."""
    way_2 = centres_N2[target] - hand_2
    share_N = ((centres_N2 - hand_2) @ way_2 / (way_2 @ way_2)).clip(0, 1)
    near_N = np.linalg.norm(hand_2 + share_N[:, None] * way_2 - centres_N2, axis=1)
    others = np.arange(len(half_N)) != target
    return bool((near_N > half_N + HAND / 4)[others].all())


def _hand(verb: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Where the hand covers, of places from its middle."""
    covered: np.ndarray
    if verb == 0:
        covered = (np.hypot(y, x) < HAND) & (np.hypot(y, x) > HAND / 2.5)
    elif verb == 1:
        covered = (abs(y) < HAND) & (abs(x) < HAND / 2.5)
    else:
        covered = (np.minimum(abs(y), abs(x)) < HAND / 4) & (np.maximum(abs(y), abs(x)) < HAND)
    return covered


def write_scenes(
    out: Path, *, count: dict[str, int] | None = None, say: Callable[[str], None] = print
) -> Path:
    """Write the clips and their annotations below `out`, where they are not there yet; returns it.

    count: episodes of train and val. They are the same wherever they are written, but for what
    another version of the video's encoder makes of them.
    Raises UserError: a folder with clips of others, no space.
    """
    count = count or COUNT
    settings = json.dumps({"schema": SCHEMA, "count": count})
    made_by, clips = out / "settings.json", out / "clips"
    held = made_by.read_text(errors="replace") if made_by.is_file() else None
    if held == settings:
        return out
    if held is not None or (clips.is_dir() and not outputs.wrote(MAKER, clips)):
        raise UserError(
            f"{out} holds clips of other settings ({held or 'unknown'}, not {settings}); remove it "
            "or move it away"
        )
    with files.explained(out):
        clips.mkdir(parents=True, exist_ok=True)
        outputs.claim(MAKER, made_by, *(out / SPLITS[split] for split in count))
        for split, episodes in count.items():
            given = _write_split(clips, split, episodes)
            outputs.write(MAKER, out / SPLITS[split], json.dumps(given))
        outputs.write(MAKER, made_by, settings)
    say(f"{out}: {count['train']:,} built-in episodes to learn from, {count['val']:,} to measure")
    return out


def _write_split(clips: Path, split: str, episodes: int) -> dict[str, Any]:
    """The videos of a split; returns its annotations."""
    each = EPISODES if split == "train" else 1
    annotations: list[dict[str, Any]] = []
    sizes = {}
    tell = teller()
    for first in range(0, episodes, each):
        video = f"{split}-{first // each:04d}"
        shots: list[np.ndarray] = []
        for number in range(first, min(first + each, episodes)):
            made = scene(np.random.default_rng([SPLIT_SEED[split], number]), frames=EPISODE)
            thing = {"box": made.box, "noun_category_id": made.noun, "verb_category_id": made.verb}
            annotations.append(
                {
                    "uid": f"{split}-{number:05d}",
                    "video_uid": video,
                    "frame": EPISODE * (len(shots) + 1) - 1,
                    "objects": [thing | {"time_to_contact": made.seconds}],
                }
            )
            shots.append(made.frames)
        if not (clips / f"{video}.mp4").exists():
            write_video(MAKER, clips / f"{video}.mp4", np.concatenate(shots), fps=FPS)
        sizes[video] = {"frame_width": SIZE, "frame_height": SIZE, "fps": float(FPS)}
        tell(f"built-in episodes of {split}", min(first + each, episodes), episodes)
    return {
        "info": {"video_metadata": sizes},
        "noun_categories": [{"id": i, "name": name} for i, name in enumerate(NOUNS)],
        "verb_categories": [{"id": i, "name": name} for i, name in enumerate(VERBS)],
        "annotations": annotations,
    }
