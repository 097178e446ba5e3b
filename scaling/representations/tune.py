"""Fine-tuning one model on encoded files: its context, its rates, what is descended, its steps.

Next-token loss on the model and cross-entropy on a head of every layer, whose gradient stops at the
states; or, end to end, the labels alone through one head on the last layer (`finetune` says which
of the paper's sections these are). Rates fall by `layer_decay` a layer from the last to the
embedding.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from scaling import checkpoint
from scaling.config.schema import Tuning
from scaling.errors import UserError
from scaling.models.decoder import Decoder
from scaling.models.loss import token_loss
from scaling.models.parametrization import build, optimizer
from scaling.models.probes import Heads
from scaling.representations.encoded import open_encoded
from scaling.representations.features import with_start
from scaling.representations.labelled import draw_split
from scaling.representations.trained import TrainedRun
from scaling.study.progress import teller
from scaling.study_folder import ProbeFolder

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


def view_of(step: int, files: int, views: int, seed: int) -> torch.Tensor:
    """The view (files,) that each file of a step is seen in."""
    rng = np.random.default_rng([seed, step, views])
    return torch.from_numpy(rng.integers(views, size=files))


def in_steps(tuning: Tuning, files: int) -> Tuning:
    """With its epochs as steps of so many training files; a pass leaves out what fills no batch."""
    if tuning.epochs is None:
        return tuning
    steps = max(1, round(tuning.epochs * (files // min(tuning.batch, files))))
    return tuning.model_copy(update={"steps": steps})


def rate_at(step: int, steps: int) -> float:
    """Share of the highest rate: a linear rise, then a cosine to zero."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, steps - warmup))))


class Learner:
    """A model and its heads while they learn. A checkpoint holds both, the optimizer, its rates."""

    def __init__(self, model: Decoder, heads: torch.nn.Module, tuning: Tuning) -> None:
        self.model, self.heads, self.tuning = model, heads, tuning
        groups = decayed_groups(model, tuning)
        groups.append(
            {"params": list(heads.parameters()), "lr": tuning.head_lr, "weight_decay": WEIGHT_DECAY}
        )
        self.optim = torch.optim.AdamW(groups)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optim, lambda step: rate_at(step, tuning.steps)
        )
        self.steps = 0  # that are done

    def _parts(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "heads": self.heads,
            "optim": self.optim,
            "schedule": self.schedule,
        }

    def resume(self, saved: Path) -> list[str]:
        """Continue from a checkpoint where there is one; returns what is to be said of it."""
        state, notes = checkpoint.load(saved)
        if state:
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.steps = state["step"]
        return notes

    def save(self, path: Path) -> None:
        """Write the checkpoint that `resume` continues from."""
        states = {name: part.state_dict() for name, part in self._parts().items()}
        checkpoint.save(path, states | {"step": self.steps})

    def descend(self, loss: torch.Tensor) -> None:
        """One step of the optimizer down a loss."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optim.step()
        self.schedule.step()
        self.optim.zero_grad(set_to_none=True)
        self.steps += 1


def tune(
    trained: TrainedRun,
    weights: str,
    folder: Path,
    hidden_F: np.ndarray,
    tuning: Tuning,
    head: str,
    seed: int,
    saved: Path,
    say: Callable[[str], None],
    stop: Event | None,
) -> list[dict[str, Any]]:
    """Tune on the encoded files of `folder`; a row for every layer that has a head.

    hidden_F: of each file whether what is looked for is hidden at its end. saved: the checkpoint,
    from which it continues. Once `stop` is set it is saved and KeyboardInterrupt raised.
    Raises UserError: as `retuned`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    index = ProbeFolder(folder).read_index()
    labelled, codes_FVL = open_encoded(folder)
    files, views = codes_FVL.shape[:2]
    ids_FVT = with_start(codes_FVL.reshape(files * views, -1), index["start"])
    ids_FVT = ids_FVT.reshape(files, views, -1).to(device)
    labels_F = torch.from_numpy(labelled.labels_F).to(device)
    train_F, test_F = draw_split(labelled, seed)
    tuning = in_steps(tuning, len(train_F))
    model = retuned(trained, ids_FVT.shape[2] - 1, tuning, weights).to(device)
    layers = [model.config.layers] if tuning.end_to_end else range(model.config.layers + 1)
    heads = Heads(
        head, layers, model.config.d, len(labelled.classes), side=index["side"],
        heads=model.config.heads, seed=seed,
    ).to(device)  # fmt: skip
    learner = Learner(model, heads, tuning)
    for note in learner.resume(saved):
        say(f"  {note}")
    model.train()
    tell, last_saved = teller(), time.monotonic()
    while learner.steps < tuning.steps:
        places = batch_of(learner.steps, len(train_F), tuning.batch, seed)
        chosen = torch.from_numpy(train_F[places]).to(device)
        seen = view_of(learner.steps, len(places), views, seed)
        of = ids_FVT[chosen, seen], labels_F[chosen], tuning.end_to_end
        learner.descend(objective(model, heads, *of)[0])
        tell(f"fine-tuning from {weights} weights, seed {seed}: step", learner.steps, tuning.steps)
        interrupted = stop is not None and stop.is_set()
        due = interrupted or time.monotonic() - last_saved > SAVE_SECONDS
        if due and learner.steps < tuning.steps:
            learner.save(saved)
            last_saved = time.monotonic()
        if interrupted:
            raise KeyboardInterrupt
    row = _about(trained, weights, tuning) | {
        "data": index["data"],
        "tokens": ids_FVT.shape[2] - 1,
        "head": head,
        "seed": seed,
        "split": "drawn" if labelled.split_F is None else "given",
        "n_train": len(train_F),
        "n_test": len(test_F),
        "n_hidden": int(hidden_F[test_F].sum()),
        "chance": labelled.chance,
    }
    scored = _scored(model, heads, ids_FVT, labels_F, test_F, hidden_F[test_F], tuning)
    return [row | one for one in scored]


def _about(trained: TrainedRun, weights: str, tuning: Tuning) -> dict[str, Any]:
    """What a row says of the model, its weights and how it was tuned."""
    row = {k: trained.row[k] for k in ("study", "size", "params", "macs_total")}
    row |= {"run_id": trained.run_id, "weights": weights}
    if weights == "random":
        row["macs_total"] = 0
    row |= {k: getattr(tuning, k) for k in SETTINGS}
    if trained.run.model.family != "toto":
        row["rope_base"] = None  # the others have no rotary positions
    return row


@torch.no_grad()
def _scored(
    model: Decoder,
    heads: Heads,
    ids_FVT: torch.Tensor,
    labels_F: torch.Tensor,
    test_F: np.ndarray,
    hidden: np.ndarray,
    tuning: Tuning,
) -> list[dict[str, Any]]:
    """Accuracy of every layer that has a head, on the test files; hidden: which of these are.

    A file's classes are the mean over its views of their probabilities.
    """
    model.eval()
    layers, end_to_end = model.config.layers, tuning.end_to_end
    parts, summed = [], 0.0
    views = ids_FVT.shape[1]
    for part in torch.from_numpy(test_F).to(ids_FVT.device).split(tuning.batch):
        scores_LBC: torch.Tensor | float = 0.0
        for view in range(views):
            ids_BT = ids_FVT[part, view]
            logits_LBC, _ = _read(model, heads, ids_BT, end_to_end)
            # Of one view the logits themselves: probabilities may round to ties.
            scores_LBC = logits_LBC if views == 1 else scores_LBC + logits_LBC.softmax(-1)
            if not end_to_end:
                nats = objective(model, heads, ids_BT, labels_F[part])[1]
                summed += float(nats) * len(part) / views
        assert isinstance(scores_LBC, torch.Tensor)
        parts.append((scores_LBC.argmax(-1) == labels_F[part]).cpu())
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
