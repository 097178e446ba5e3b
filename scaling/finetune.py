"""Fine-tuning a study's model on labelled images: resolution, rotary base, attention.

Sections 4.2, A.2 and A.3. Causal and prefix attention: next-token loss on the model, cross-entropy
on the heads of every layer, whose gradient stops at the states. Full attention sees what it would
predict, so there is no next-token loss and the heads' gradient trains the model. Rates fall by
`layer_decay` a layer from the last to the embedding.

STUDY/finetuned/<key>.json holds the rows of one (run, data, settings, seed), STUDY/finetune.csv
those of all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from models.decoder import Decoder
from models.loss import token_loss
from models.parametrization import build, optimizer
from models.probes import Heads
from scaling import disk, media, shards
from scaling.checkpoint import write_atomic
from scaling.errors import UserError
from scaling.features import with_start
from scaling.labelled import Labelled, draw_split, read_labelled, usable
from scaling.weights import TrainedRun, data_dir_of, open_tokenizer, trained_runs

COLUMNS = (
    "run_id", "study", "size", "params", "macs_total", "data", "px", "tokens", "rope_base",
    "attention", "layer_decay", "lr", "steps", "head", "layer", "depth", "seed", "n_train",
    "n_test", "top1", "chance", "next_token_loss",
)  # fmt: skip
Say = Callable[[str], None]


@dataclass(frozen=True)
class Tuning:
    """How a model is fine-tuned. lr: of the last layer, at the muP base width."""

    px: int | None = None  # side of the images; default twice that of the study
    rope_base: float = 50_000.0
    attention: str = "causal"  # prefix: the first half of the tokens see one another
    layer_decay: float = 0.9
    lr: float = 1e-3
    head_lr: float = 3e-3
    steps: int = 300
    batch: int = 32


def finetune(
    study: Path,
    data: Path,
    *,
    tuning: Tuning = Tuning(),
    run: str | None = None,
    seeds: int = 3,
    say: Say = print,
) -> Path:
    """Fine-tune one model, by default the study's costliest; returns STUDY/finetune.csv.

    Seeds draw the split of the files, the heads and the order. What is there is not done again.
    Raises UserError: clips in place of images, a size that the tokenizer does not divide, a model
    that cannot attend so, and what reading data and runs raises.
    """
    trained = trained_runs(study, [run] if run else None)[-1]
    labelled = read_labelled(data)
    if labelled.kind != "images":
        raise UserError(f"{data}: clips; fine-tuning takes labelled images")
    if tuning.attention not in ("causal", "prefix", "full"):
        raise UserError(f"attention '{tuning.attention}': choose causal, prefix or full")
    config = trained.run.model
    if config.patch_inputs or config.patch_targets:
        raise UserError(f"{config.name} works on patches; fine-tuning takes models of tokens")
    if config.family == "mamba" and tuning.attention != "causal":
        raise UserError(f"{config.name} is a mamba, which has no attention: use causal")
    tokenizer, index = open_tokenizer(data_dir_of(study, trained.run))
    patch = round(index["size"] / index["tokens_per_frame"] ** 0.5)
    px = tuning.px or 2 * index["size"]
    if px < patch or px % patch:
        raise UserError(f"{px} px are no multiple of the tokenizer's {patch} px; use one")
    settings = asdict(tuning) | {"px": px, "run": trained.run_id, "data": labelled.key}
    codes_FL: np.ndarray | None = None
    with disk.explained(study):
        (study / "finetuned").mkdir(exist_ok=True)
        for seed in range(seeds):
            key = hashlib.sha256(json.dumps(settings | {"seed": seed}).encode()).hexdigest()[:16]
            path = study / "finetuned" / f"{key}.json"
            if path.exists():
                continue
            if codes_FL is None:
                labelled, codes_FL = _encode(labelled, data, tokenizer, px, say)
            name = data.parent.name if data.suffix == ".csv" else data.stem
            rows = _tune(trained, labelled, codes_FL, replace(tuning, px=px), index, seed)
            write_atomic(path, json.dumps([r | {"data": name} for r in rows]))
            best = max(rows, key=lambda r: r["top1"])
            say(
                f"{trained.run_id} {config.name} {px} px, {tuning.attention}, RoPE base "
                f"{tuning.rope_base:g}, seed {seed}: top-1 {best['top1']:.1%} at layer "
                f"{best['layer']} (chance {best['chance']:.1%})"
            )
        return gather(study)


def _encode(
    labelled: Labelled, path: Path, tokenizer: Any, px: int, say: Say
) -> tuple[Labelled, np.ndarray]:
    codes, kept = [], []
    for i, name in enumerate(labelled.names):
        try:
            if labelled.images is not None:
                rgb = media.resize_short(labelled.images[i], px)
                y, x = (rgb.shape[0] - px) // 2, (rgb.shape[1] - px) // 2
                pixels = rgb[None, y : y + px, x : x + px]
            else:
                pixels = media.read_image(labelled.root / name, size=px, crops=1, rng=None)
        except (media.MediaError, OSError) as error:
            say(f"  not used: {name}: {error}")
            continue
        codes.append(tokenizer.encode(pixels)[0])
        kept.append(i)
    if not kept:
        raise UserError(f"{path}: no labelled file can be read")
    left = labelled.take(np.array(kept))
    usable(left, path)
    return left, np.stack(codes)


def retuned(trained: TrainedRun, tokens: int, tuning: Tuning) -> Decoder:
    """The trained model with another context, rotary base and attention.

    Raises UserError for learned positions, which end where the context did.
    """
    model = trained.model("trained")
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
    for group in optimizer(model, lr=tuning.lr, weight_decay=0.05).param_groups:
        for p in group["params"]:
            rate = group["lr"] * tuning.layer_decay ** (model.config.layers + 1 - place[id(p)])
            kept = {"weight_decay": group["weight_decay"], "eps": group["eps"]}
            groups.append({"params": [p], "lr": rate} | kept)
    return groups


def objective(
    model: Decoder, heads: Heads, ids_BT: torch.Tensor, labels_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss that is descended, next-token loss in nats a token; NaN with full attention)."""
    config = model.config
    states: dict[str, torch.Tensor] = {}
    final_BTd = model.features(ids_BT, states)
    x_LBTd = stacked(states, config.layers)
    full = config.attention == "full"
    logits_LBC = heads(x_LBTd if full else x_LBTd.detach())
    target_LB = labels_B.expand(len(logits_LBC), -1)
    loss = F.cross_entropy(logits_LBC.flatten(0, 1), target_LB.flatten()) * len(logits_LBC)
    if full:
        return loss, torch.tensor(float("nan"))
    # A position of the prefix has seen its target, but for the last one.
    first = max(0, config.prefix - 1)
    scaled = final_BTd[:, first:-1] * config.readout_scale
    nats = token_loss(scaled, model.head, ids_BT[:, first + 1 :], "mean")
    return loss + nats, nats.detach()


def stacked(states: dict[str, torch.Tensor], layers: int) -> torch.Tensor:
    """Standardised states of every layer without the start token, (L, B, T, d)."""
    names = ["embed", *(f"layer_{i + 1}" for i in range(layers))]
    x_LBTd = torch.stack([states[name][:, 1:] for name in names])
    return F.layer_norm(x_LBTd, x_LBTd.shape[-1:])


def _tune(
    trained: TrainedRun,
    labelled: Labelled,
    codes_FL: np.ndarray,
    tuning: Tuning,
    index: dict[str, Any],
    seed: int,
) -> list[dict[str, Any]]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens = codes_FL.shape[1]
    model = retuned(trained, tokens, tuning).to(device)
    layers = model.config.layers
    images = any(s["kind"] == "images" for s in index["sources"])
    start = shards.IMAGE_START if images else shards.VIDEO_START
    ids_FT = with_start(codes_FL, start).to(device)
    labels_F = torch.from_numpy(labelled.labels_F).to(device)
    train_F, test_F = draw_split(labelled, seed)
    heads = Heads("attention", layers + 1, model.config.d, len(labelled.classes), seed=seed)
    groups = [*decayed_groups(model, tuning)]
    groups.append({"params": list(heads.parameters()), "lr": tuning.head_lr, "weight_decay": 0.05})
    heads.to(device)
    optim = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optim, lambda step: 0.5 * (1 + np.cos(np.pi * step / tuning.steps))
    )
    random = torch.Generator().manual_seed(seed)
    model.train()
    nats = torch.tensor(float("nan"))
    for _ in range(tuning.steps):
        rows = torch.randint(len(train_F), (tuning.batch,), generator=random).numpy()
        chosen = torch.from_numpy(train_F[rows]).to(device)
        loss, nats = objective(model, heads, ids_FT[chosen], labels_F[chosen])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optim.step()
        schedule.step()
        optim.zero_grad(set_to_none=True)
    model.eval()
    right = torch.zeros(layers + 1, dtype=torch.float64)
    summed, count = 0.0, 0
    with torch.no_grad():
        for part in torch.from_numpy(test_F).split(tuning.batch):
            states: dict[str, torch.Tensor] = {}
            model.features(ids_FT[part.to(device)], states)
            found = heads(stacked(states, layers)).argmax(-1)
            right += (found == labels_F[part.to(device)]).double().sum(1).cpu()
            _, nats = objective(model, heads, ids_FT[part.to(device)], labels_F[part.to(device)])
            summed, count = summed + float(nats) * len(part), count + len(part)
    most = np.bincount(labelled.labels_F[train_F]).argmax()
    base = {k: trained.row[k] for k in ("study", "size", "params", "macs_total")}
    base |= {"run_id": trained.run_id, "px": tuning.px, "tokens": tokens, "head": "attention"}
    base |= {
        k: getattr(tuning, k) for k in ("rope_base", "attention", "layer_decay", "lr", "steps")
    }
    base |= {"seed": seed, "n_train": len(train_F), "n_test": len(test_F)}
    base |= {"chance": float((labelled.labels_F[test_F] == most).mean())}
    base |= {"next_token_loss": None if np.isnan(summed) else summed / count}
    return [
        base | {"layer": i, "depth": i / layers, "top1": float(right[i]) / len(test_F)}
        for i in range(layers + 1)
    ]


def gather(study: Path) -> Path:
    """STUDY/finetune.csv of all rows that are there."""
    import pandas as pd

    rows = [
        r for p in sorted((study / "finetuned").glob("*.json")) for r in json.loads(p.read_text())
    ]
    keys = ["data", "run_id", "px", "rope_base", "attention", "seed", "layer"]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(keys, kind="stable")
    write_atomic(study / "finetune.csv", table.to_csv(index=False))
    return study / "finetune.csv"
