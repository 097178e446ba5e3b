"""Fine-tuning a study's model on labelled images or clips: resolution, length, attention.

A sequence that is longer than those of training, of more tokens a frame or of more frames, is read
whole: the context grows with it, and a larger rotary base slows the rotations (Table 4).

Section 4.2: next-token loss on the model, cross-entropy on a head of every layer, whose gradient
stops at the states. Sections A.2 and A.3, end to end: the labels alone train the model, through one
head on the last layer, under causal, prefix or full attention. Rates fall by `layer_decay` a layer
from the last to the embedding.

STUDY/finetuned/<key>.json holds the rows of one (run, data, settings, seed), <key>.pt the state of
one that is not finished, STUDY/finetune.csv the rows of all. Each is done twice: from the trained
weights, and from those that their run started with.
"""

from __future__ import annotations

import csv
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from scaling import checkpoint
from scaling.config.schema import Tuning
from scaling.errors import UserError
from scaling.jobs.machine import in_threads
from scaling.models.decoder import Decoder
from scaling.models.loss import token_loss
from scaling.models.parametrization import build, optimizer
from scaling.models.probes import KINDS, Heads, Recipe
from scaling.representations.encoded import Views, encoded, open_encoded
from scaling.representations.features import with_start
from scaling.representations.labelled import Labelled, draw_split, read_labelled
from scaling.representations.probe import read_rows
from scaling.representations.weights import (
    WEIGHTS,
    TrainedRun,
    data_dir_of,
    open_tokenizer,
    trained_runs,
)
from scaling.storage import files
from scaling.study.progress import teller
from scaling.study_folder import ProbeFolder, Study

COLUMNS = (
    "run_id", "study", "size", "params", "macs_total", "data", "data_key", "px", "frames",
    "stride", "tokens", "rope_base", "attention", "end_to_end", "layer_decay", "lr", "head_lr",
    "steps", "batch", "head", "weights", "layer", "depth", "seed", "split", "n_train", "n_test",
    "top1", "chance", "n_hidden", "top1_hidden", "next_token_loss",
)  # fmt: skip
SETTINGS = (
    "rope_base",
    "attention",
    "end_to_end",
    "layer_decay",
    "lr",
    "head_lr",
    "steps",
    "batch",
)
WARMUP = 0.1  # of the steps, over which the rate rises; then it falls to zero along a cosine
WEIGHT_DECAY = 0.05
SAVE_SECONDS = 30.0
Say = Callable[[str], None]


def finetune(
    study: Study,
    data: Path,
    *,
    tuning: Tuning = Tuning(),  # noqa: B008 (frozen)
    head: str = "attention",
    run: str | None = None,
    seeds: int = 3,
    say: Say = print,
) -> Path:
    """Fine-tune one model, by default the study's costliest; returns STUDY/finetune.csv.

    Seeds draw the split of the files, the heads and the order. What is there is not done again, and
    what was interrupted continues where it was saved last.
    Raises UserError: as `tuned`, and what reading data and runs raises.
    """
    trained = trained_runs(study, [run] if run else None)[-1]
    study.claim(study.finetune_csv, inputs=[data])
    labelled = read_labelled(data)
    one = partial(tuned, study, trained, labelled, data, tuning, head)
    in_threads([partial(one, s, say, weights) for s in range(seeds) for weights in WEIGHTS])
    return gather(study)


def tuned(
    study: Study,
    trained: TrainedRun,
    labelled: Labelled,
    data: Path,
    tuning: Tuning,
    head: str,
    seed: int,
    say: Say,
    weights: str = "trained",
    stop: Event | None = None,
) -> list[dict[str, Any]]:
    """The rows of one fine-tuning, which is done where they are not there yet.

    Once `stop` is set it saves itself and ends with KeyboardInterrupt.
    Raises UserError: frames of images, a size that the tokenizer does not divide, a model that
    cannot attend so; of clips, what `encoded` raises.
    """
    images = labelled.kind == "images"
    if images and (tuning.frames or tuning.stride):
        raise UserError(f"{data}: images have no frames and no stride; leave them out")
    if head not in KINDS:
        raise UserError(f"head '{head}': choose one of {', '.join(KINDS)}")
    config = trained.run.model
    if config.patch_inputs or config.patch_targets:
        raise UserError(f"{config.name} works on patches; fine-tuning takes models of tokens")
    if config.family == "mamba" and tuning.attention != "causal":
        raise UserError(f"{config.name} is a mamba, which has no attention: use causal")
    _, index = open_tokenizer(data_dir_of(study, trained.run))
    patch = round(index["size"] / index["tokens_per_frame"] ** 0.5)
    px = tuning.px or (1 + images) * index["size"]
    if px % patch:
        raise UserError(f"{px} px are no multiple of the tokenizer's {patch} px; use one")
    settings = tuning.model_dump() | {"px": px, "head": head, "run": trained.run_id}
    settings |= {"data": labelled.key, "seed": seed, "weights": weights}
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    path = study.finetuned_dir / f"{key}.json"
    if path.exists():
        return read_rows(path)
    with files.explained(study.folder):
        path.parent.mkdir(exist_ok=True)
        views = Views(frames=tuning.frames, stride=tuning.stride)
        with files.RunLock(
            path.parent, "encode.lock", wait=True
        ):  # all seeds and weights read the same tokens
            folder = encoded(study, trained, labelled, data, views, Recipe(), say, px)
        saved = path.with_suffix(".pt")
        hidden_F = read_hidden(data, ProbeFolder(folder).read_index()["names"])
        seen = {"data_key": labelled.key, "px": px}
        seen["frames"] = 1 if images else tuning.frames or index["frames"]
        seen["stride"] = None if images else tuning.stride or index["settings"]["stride"]
        found = _tune(trained, weights, folder, hidden_F, tuning, head, seed, saved, say, stop)
        rows = [r | seen for r in found]
        files.write(path, json.dumps(rows))
        checkpoint.drop(saved, files=0, folders=0)
    best = max(rows, key=lambda r: r["top1"])
    say(
        f"{trained.run_id} {config.name} from {weights} weights, {best['frames']} x {px} px, "
        f"{tuning.attention}{', end to end' * tuning.end_to_end}, RoPE base {tuning.rope_base:g}, "
        f"seed {seed}: top-1 {best['top1']:.1%} at layer {best['layer']} "
        f"(chance {best['chance']:.1%})"
    )
    return rows


def read_hidden(data: Path, names: list[str]) -> np.ndarray:
    """Of each file whether what is looked for is hidden at its end, where the labels say so.

    Said by the column `visible` of a CSV, a share, as `scaling permanence` writes it.
    Raises UserError for a value that is no number.
    """
    none = np.zeros(len(names), bool)
    if data.suffix != ".csv":
        return none
    with data.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not {"path", "visible"} <= set(rows[0]):
        return none
    try:
        hidden = {row["path"]: float(row["visible"]) == 0 for row in rows}
    except ValueError as error:
        raise UserError(f"{data}: column visible: {error}; want shares, 0 to 1") from None
    return np.array([hidden[name] for name in names])


def retuned(trained: TrainedRun, tokens: int, tuning: Tuning, weights: str = "trained") -> Decoder:
    """The model with another context, rotary base and attention.

    Raises UserError for learned positions, which end where the context did.
    """
    model = trained.model(weights)
    old = model.config
    if old.family == "gpt2" and old.positions == "learned" and tokens + 1 > old.context:
        raise UserError(f"{old.name} has learned positions and ends at {old.context} of them")
    prefix = (1 + tokens) // 2 if tuning.attention == "prefix" else 0
    config = replace(
        old,
        context=max(old.context, tokens + 1),
        rope_base=tuning.rope_base,
        attention=tuning.attention,
        prefix=prefix,
    )
    made = build(config, seed=0)
    made.load_state_dict(model.state_dict())
    return made


def decayed_groups(model: Decoder, tuning: Tuning) -> list[dict[str, Any]]:
    """The optimizer's groups with each layer's rate: lr decay^(layers + 1 - place).

    The embedding is place 0, block i place i, and what follows the blocks layers + 1.
    """
    place = {}
    for name, p in model.named_parameters():
        parts = name.split(".")
        inside = int(parts[1]) + 1 if parts[0] == "layers" else model.config.layers + 1
        place[id(p)] = 0 if parts[0].startswith(("embed", "positions")) else inside
    groups = []
    for group in optimizer(model, lr=tuning.lr, weight_decay=WEIGHT_DECAY).param_groups:
        for p in group["params"]:
            rate = group["lr"] * tuning.layer_decay ** (model.config.layers + 1 - place[id(p)])
            kept = {"weight_decay": group["weight_decay"], "eps": group["eps"]}
            groups.append({"params": [p], "lr": rate} | kept)
    return groups


def objective(
    model: Decoder,
    heads: Heads,
    ids_BT: torch.Tensor,
    labels_B: torch.Tensor,
    end_to_end: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss that is descended, next-token loss in nats a token; NaN end to end)."""
    config = model.config
    logits_LBC, final_BTd = _read(model, heads, ids_BT, end_to_end)
    target_LB = labels_B.expand(len(logits_LBC), -1)
    loss = F.cross_entropy(logits_LBC.flatten(0, 1), target_LB.flatten()) * len(logits_LBC)
    if end_to_end:
        return loss, torch.tensor(float("nan"))
    # A position of the prefix has seen its target, but for the last one.
    first = max(0, config.prefix - 1)
    scaled = final_BTd[:, first:-1] * config.readout_scale
    nats = token_loss(scaled, model.head, ids_BT[:, first + 1 :], "mean")
    return loss + nats, nats.detach()


def _read(
    model: Decoder, heads: Heads, ids_BT: torch.Tensor, end_to_end: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The heads' logits (L, B, C), of the last layer alone end to end, and the model's features.

    A grid is read of a clip's last frame, whose states can hold what the frames before it showed:
    the mean over frames that probes read would hold every place that a thing has passed.
    """
    states: dict[str, torch.Tensor] = {}
    final_BTd = model.features(ids_BT, states)
    layers = model.config.layers
    names = ["embed", *(f"layer_{i + 1}" for i in range(layers))][layers if end_to_end else 0 :]
    first = -(heads.side**2) if heads.kind == "grid" else 1  # without the start token
    x_LBTd = torch.stack([states[name][:, first:] for name in names])
    x_LBTd = F.layer_norm(x_LBTd, x_LBTd.shape[-1:])
    return heads(x_LBTd if end_to_end else x_LBTd.detach()), final_BTd


def batch_of(step: int, files: int, batch: int, seed: int) -> np.ndarray:
    """Places of a step's files: every pass over them has its own order, of (seed, pass)."""
    batch = min(batch, files)
    passed, place = divmod(step, files // batch)
    order = np.random.default_rng([seed, passed]).permutation(files)
    return order[place * batch : (place + 1) * batch]


def rate_at(step: int, steps: int) -> float:
    """Share of the highest rate: a linear rise, then a cosine to zero."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, steps - warmup))))


def _tune(
    trained: TrainedRun,
    weights: str,
    folder: Path,
    hidden_F: np.ndarray,
    tuning: Tuning,
    head: str,
    seed: int,
    saved: Path,
    say: Say,
    stop: Event | None,
) -> list[dict[str, Any]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    index = ProbeFolder(folder).read_index()
    labelled, codes_FVL = open_encoded(folder)
    ids_FT = with_start(codes_FVL[:, 0], index["start"]).to(device)
    tokens = ids_FT.shape[1] - 1
    model = retuned(trained, tokens, tuning, weights).to(device)
    layers, end_to_end = model.config.layers, tuning.end_to_end
    train_F, test_F = draw_split(labelled, seed)
    heads = Heads(
        head,
        [layers] if end_to_end else range(layers + 1),
        model.config.d,
        len(labelled.classes),
        side=index["side"],
        heads=model.config.heads,
        seed=seed,
    ).to(device)
    groups = decayed_groups(model, tuning)
    groups.append(
        {"params": list(heads.parameters()), "lr": tuning.head_lr, "weight_decay": WEIGHT_DECAY}
    )
    optim = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optim, lambda step: rate_at(step, tuning.steps))
    parts: dict[str, Any] = {"model": model, "heads": heads, "optim": optim, "schedule": schedule}
    state, notes = checkpoint.load(saved)
    for note in notes:
        say(f"  {note}")
    if state:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    labels_F = torch.from_numpy(labelled.labels_F).to(device)
    done = state["step"] if state else 0
    model.train()
    tell, last_saved = teller(), time.monotonic()
    for step in range(done, tuning.steps):
        chosen = torch.from_numpy(train_F[batch_of(step, len(train_F), tuning.batch, seed)])
        chosen = chosen.to(device)
        loss, _ = objective(model, heads, ids_FT[chosen], labels_F[chosen], end_to_end)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        schedule.step()
        optim.zero_grad(set_to_none=True)
        done, now = step + 1, time.monotonic()
        tell(f"fine-tuning from {weights} weights, seed {seed}: step", done, tuning.steps)
        interrupted = stop is not None and stop.is_set()
        if (interrupted or now - last_saved > SAVE_SECONDS) and done < tuning.steps:
            states = {name: part.state_dict() for name, part in parts.items()}
            checkpoint.save(saved, states | {"step": done})
            last_saved = now
        if interrupted:
            raise KeyboardInterrupt
    row = {k: trained.row[k] for k in ("study", "size", "params", "macs_total")}
    if weights == "random":
        row["macs_total"] = 0
    row |= {k: getattr(tuning, k) for k in SETTINGS}
    if model.config.family != "toto":
        row["rope_base"] = None  # the others have no rotary positions
    row |= {
        "run_id": trained.run_id,
        "data": index["data"],
        "tokens": tokens,
        "head": head,
        "weights": weights,
        "seed": seed,
        "split": "drawn" if labelled.split_F is None else "given",
        "n_train": len(train_F),
        "n_test": len(test_F),
        "n_hidden": int(hidden_F[test_F].sum()),
        "chance": labelled.chance,
    }
    scored = _scored(model, heads, ids_FT, labels_F, test_F, hidden_F[test_F], tuning)
    return [row | one for one in scored]


@torch.no_grad()
def _scored(
    model: Decoder,
    heads: Heads,
    ids_FT: torch.Tensor,
    labels_F: torch.Tensor,
    test_F: np.ndarray,
    hidden: np.ndarray,
    tuning: Tuning,
) -> list[dict[str, Any]]:
    """Accuracy of every layer that has a head, on the test files; hidden: which of these are."""
    model.eval()
    layers, end_to_end = model.config.layers, tuning.end_to_end
    parts, summed = [], 0.0
    for part in torch.from_numpy(test_F).to(ids_FT.device).split(tuning.batch):
        logits_LBC, _ = _read(model, heads, ids_FT[part], end_to_end)
        parts.append((logits_LBC.argmax(-1) == labels_F[part]).cpu())
        if not end_to_end:
            summed += float(objective(model, heads, ids_FT[part], labels_F[part])[1]) * len(part)
    right_LF = torch.cat(parts, 1).numpy()
    first = layers if end_to_end else 0
    return [
        {
            "layer": first + i,
            "depth": (first + i) / layers,
            "top1": float(right.mean()),
            "top1_hidden": float(right[hidden].mean()) if hidden.any() else None,
            "next_token_loss": None if end_to_end else summed / len(test_F),
        }
        for i, right in enumerate(right_LF)
    ]


def gather(study: Study) -> Path:
    """STUDY/finetune.csv of all rows that are there."""
    import pandas as pd

    rows = [r for p in sorted(study.finetuned_dir.glob("*.json")) for r in read_rows(p)]
    rows = [r for r in rows if set(COLUMNS) <= set(r)]  # others are an older version's
    keys = ["data", "data_key", "run_id", "px", "frames", "rope_base", "attention", "end_to_end"]
    keys += ["head"]
    keys += ["weights", "seed", "layer"]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(keys, kind="stable")
    return study.write(study.finetune_csv, table.to_csv(index=False))
