"""What a run writes into a row besides its losses: identity, design, cost."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

from scaling.config.run import RunConfig
from scaling.data.shards import TokenData
from scaling.models.macs import forward_macs, parameter_counts
from scaling.results import ADDED, Row
from scaling.training.device import device_name
from scaling.training.ranks import Ranks


def identity(run: RunConfig, data: TokenData, ranks: Ranks, shares: dict[str, float]) -> Row:
    """The columns of every row of a run. shares: of the sources, as configured, by name."""
    counts = parameter_counts(run.model)
    several = f", {ranks.size} ranks {run.parallel}" if ranks.size > 1 else ""
    return {
        "run_id": run.run_id,
        "study": run.study,
        "role": run.role,
        "git_sha": git_sha(),
        "seed": run.seed,
        "schema": run.schema,
        "size": run.model.name,
        "family": run.model.family,
        "parametrization": run.model.parametrized,
        "d": run.model.d,
        "layers": run.model.layers,
        "heads": run.model.heads,
        "d_ff": run.model.d_ff,
        "vocab": run.model.vocab,
        "context": run.model.context,
        "params": counts["all"],
        "params_non_embedding": counts["non_embedding"],
        "params_matmul_head": counts["matmul_head"],
        "tokenizer": _tokenizer(run, data),
        "data_key": run.data_key,
        "lr": run.lr,
        "log2_lr": math.log2(run.lr),
        "schedule": run.schedule,
        "warmup_steps": run.warmup_steps,
        "batch_tokens": run.batch * run.model.context,
        "weight_decay": run.weight_decay,
        "precision": run.precision,
        "device": device_name(ranks.device) + several,
        "data_mix": json.dumps(shares),
        **{k: getattr(run, k) for k, usual in ADDED.items() if getattr(run, k) != usual},
    }


def _tokenizer(run: RunConfig, data: TokenData) -> str:
    """`dvae-8px-8192`, or with patches what is read and what predicted: `patch-8px > ...`."""
    reads, predicts = (
        f"patch-{round((values / 3) ** 0.5)}px" if values else data.tokenizer
        for values in (run.model.patch_inputs, run.model.patch_targets)
    )
    return reads if reads == predicts else f"{reads} > {predicts}"


def cost(run: RunConfig, data: TokenData, step: int, step_macs: int) -> Row:
    """What the path to this step costs: trunk steps plus the branch's own."""
    terms = forward_macs(run.model, run.model.context)
    epochs = data.epochs(step, run.batch, run.seed)
    sequences = {source["name"]: source["train"]["sequences"] for source in data.meta["sources"]}
    drawn = {name: round(passes * sequences[name]) for name, passes in epochs.items()}
    return {
        "steps": step,
        "tokens": step * run.batch * run.model.context,
        "epochs": max(epochs.values()) if epochs else None,
        "drawn": json.dumps(drawn),
        "macs_total": step * step_macs,
        **{f"macs_{term}": 3 * run.batch * step * macs for term, macs in terms.items()},
    }


def git_sha() -> str:
    """Commit of this code, with '+' when it was changed since; '' outside a checkout."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return described.stdout.strip()
