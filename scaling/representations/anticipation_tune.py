"""One model fine-tuned to anticipate: its steps, its predictions, and what these are worth.

End to end by the task's loss, with the next-token loss beside it (Section 4.4: "self-supervision
improves"; its weight is not given there). Where the transformer is frozen, the pyramid and the head
on it learn alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, model_validator

from scaling.config.schema import Tuning
from scaling.config.section import Positive, PositiveFloat, Section
from scaling.data import shards
from scaling.models.anticipation import Anticipator, Layout, Target, answers, five_of, task_loss
from scaling.models.decoder import Decoder
from scaling.models.loss import token_loss
from scaling.representations.anticipation_files import Annotations, Still
from scaling.representations.anticipation_measures import Objects, evaluate
from scaling.representations.features import with_start
from scaling.representations.trained import TrainedRun
from scaling.representations.tune import SAVE_SECONDS, Learner, batch_of, retuned
from scaling.study.progress import teller

RESAMPLES = 1000
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Anticipation(Section):
    """How a model is fine-tuned to anticipate (Section 4.4)."""

    # Short side of the last frame; null: twice the study's, of built-in clips TOKENS.
    px: Positive | None = None
    fast_px: Positive | None = None  # of the frames before it; null: half of that
    frames: Positive = 8  # 1: the last alone
    stride: Positive = 1  # frames of the video between them
    rope_base: PositiveFloat = 50_000.0
    next_token_weight: Weight | None = None  # of the loss; null: 1, of a frozen model 0
    verb_weight: Weight = 0.1  # StillFast's
    frozen: bool = False
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    lr: PositiveFloat = 1e-3  # of the last layer, at the muP base width
    head_lr: PositiveFloat = 3e-3
    steps: Positive = 2000
    batch: Positive = 16

    @model_validator(mode="after")
    def _trains_something(self) -> Anticipation:
        if self.frozen and self.next_token_weight:
            raise ValueError(
                f"next_token_weight {self.next_token_weight:g} of a frozen model, which no loss "
                "changes; leave it out, or do not freeze"
            )
        return self

    @property
    def tokens_weight(self) -> float:
        """Of the next-token loss."""
        given = self.next_token_weight
        return float(not self.frozen) if given is None else given


@dataclass(frozen=True, eq=False)
class Split:
    """Frames as token ids (F, 1 + T) with the start token, and what they are annotated with."""

    ids_FT: torch.Tensor
    annotations: Annotations

    @classmethod
    def of(cls, codes_FT: np.ndarray, annotations: Annotations) -> Split:
        return cls(with_start(codes_FT, shards.VIDEO_START), annotations)

    def __len__(self) -> int:
        return len(self.ids_FT)


class Reader:
    """Token ids -> maps: the transformer, and the pyramid and head on five of its layers."""

    def __init__(self, model: Decoder, head: Anticipator, frozen: bool) -> None:
        self.model, self.head, self.frozen = model, head, frozen
        names = ["embed", *(f"layer_{i + 1}" for i in range(model.config.layers))]
        self.five = [names[layer] for layer in five_of(model.config.layers)]
        model.requires_grad_(not frozen)

    def maps(self, ids_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The head's maps, and the input (B, 1 + T, d) of the readout."""
        states: dict[str, torch.Tensor] = {}
        final_BTd = self.model.features(ids_BT, states)
        return self.head([states[name][:, 1:] for name in self.five]), final_BTd

    def nats(self, final_BTd: torch.Tensor, ids_BT: torch.Tensor) -> torch.Tensor:
        """Next-token loss a token."""
        scaled = final_BTd[:, :-1] * self.model.config.readout_scale
        return token_loss(scaled, self.model.head, ids_BT[:, 1:], "mean")


def anticipate_with(
    trained: TrainedRun,
    weights: str,
    layout: Layout,
    train: Split,
    tuning: Anticipation,
    seed: int,
    saved: Path,
    say: Callable[[str], None],
    stop: Event | None,
) -> Reader:
    """A model that was fine-tuned so; it continues from `saved`, where it keeps its state.

    Once `stop` is set it is saved and KeyboardInterrupt raised.
    Raises UserError: as `tune.retuned`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    of = Tuning(
        rope_base=tuning.rope_base, layer_decay=tuning.layer_decay, lr=tuning.lr,
        head_lr=tuning.head_lr, steps=tuning.steps, batch=tuning.batch,
    )  # fmt: skip
    model = retuned(trained, layout.tokens, of, weights).to(device)
    nouns, verbs = len(train.annotations.nouns), len(train.annotations.verbs)
    channels = min(256, max(32, model.config.d // 2))
    head = Anticipator(model.config.d, nouns, verbs, layout, channels=channels, seed=seed)
    reader = Reader(model, head.to(device), tuning.frozen)
    learner = Learner(model, reader.head, of)
    for note in learner.resume(saved):
        say(f"  {note}")
    model.train()
    tell, last_saved = teller(), time.monotonic()
    while learner.steps < tuning.steps:
        places = batch_of(learner.steps, len(train), tuning.batch, seed)
        ids_BT = train.ids_FT[places].to(device)
        maps, final_BTd = reader.maps(ids_BT)
        target = target_of([train.annotations.stills[i] for i in places], train.annotations, device)
        loss = task_loss(maps, target, nouns, tuning.verb_weight)
        if tuning.tokens_weight:
            loss = loss + tuning.tokens_weight * reader.nats(final_BTd, ids_BT)
        learner.descend(loss)
        tell(f"anticipating from {weights} weights, seed {seed}: step", learner.steps, tuning.steps)
        interrupted = stop is not None and stop.is_set()
        due = interrupted or time.monotonic() - last_saved > SAVE_SECONDS
        if due and learner.steps < tuning.steps:
            learner.save(saved)
            last_saved = time.monotonic()
        if interrupted:
            raise KeyboardInterrupt
    return reader


def target_of(stills: list[Still], annotations: Annotations, device: torch.device) -> Target:
    """What the frames of a batch are to be told of; ids as places in the rising lists of them."""
    parts: list[list[np.ndarray]] = [[], [], [], [], []]
    for number, still in enumerate(stills):
        of = still.objects
        assert of is not None
        scale = np.array([still.width, still.height] * 2, float)
        rows = (np.full(len(of), number), of.box_N4 / scale, of.noun_N, of.verb_N, of.seconds_N)
        for part, row in zip(parts, rows, strict=True):
            part.append(row)
    frame, box, noun, verb, seconds = map(np.concatenate, parts)
    noun = np.searchsorted(sorted(annotations.nouns), noun)
    verb = np.searchsorted(sorted(annotations.verbs), verb)
    made = [torch.from_numpy(np.asarray(a)) for a in (frame, box, noun, verb, seconds)]
    return Target(*(a.float() if a.dtype == torch.float64 else a.long() for a in made)).to(device)


@torch.no_grad()
def predictions(reader: Reader, split: Split, batch: int) -> tuple[list[Objects], float]:
    """Of each frame, in px and ids of the annotations; and the next-token loss, nats a token."""
    reader.model.eval()
    device = reader.model.head.device
    rows: list[torch.Tensor] = []
    summed = 0.0
    for ids_BT in split.ids_FT.split(batch):
        maps, final_BTd = reader.maps(ids_BT.to(device))
        rows += answers(maps, reader.head.nouns)
        summed += float(reader.nats(final_BTd, ids_BT.to(device))) * len(ids_BT)
    nouns, verbs = (
        np.array(sorted(of)) for of in (split.annotations.nouns, split.annotations.verbs)
    )
    found = []
    for still, row in zip(split.annotations.stills, rows, strict=True):
        of = row.double().numpy()
        box_N4 = of[:, :4] * ([still.width, still.height] * 2)
        noun_N, verb_N = nouns[of[:, 4].astype(int)], verbs[of[:, 5].astype(int)]
        found.append(Objects(box_N4, noun_N, verb_N, of[:, 6], of[:, 7]))
    return found, summed / len(split)


def resamples(annotations: Annotations) -> np.ndarray:
    """How often each of `RESAMPLES` draws of the videos holds each frame, (R, F).

    Frames of one video are alike, and are drawn together. Always the same draws for one file, so
    that differences are of pairs.
    """
    videos = [still.video for still in annotations.stills]
    _, video_F = np.unique(videos, return_inverse=True)
    count = int(video_F.max()) + 1
    drawn_RV = np.random.default_rng(0xE904).multinomial(
        count, np.full(count, 1 / count), RESAMPLES
    )
    return np.asarray(drawn_RV[:, video_F], float)


def measured(found: list[Objects], annotations: Annotations) -> dict[str, object]:
    """Mean average precisions in percent, by criterion and K, each with those of `resamples`."""
    truth = [still.objects for still in annotations.stills if still.objects is not None]
    scores = evaluate(truth, found)
    weight_RF = resamples(annotations)
    videos = len({still.video for still in annotations.stills})
    made: dict[str, object] = {"n_test": scores.frames, "silent": scores.silent, "videos": videos}
    for k, judged in (("5", scores.top5), ("1", scores.plain)):
        for name, one in judged.items():
            made[f"{name}@{k}"] = float(one.mean_precision()[0])
            made[f"{name}@{k} resampled"] = one.mean_precision(weight_RF).round(4).tolist()
    return made
