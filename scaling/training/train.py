"""Training one run: `train(run, run_dir) -> rows`. The loop is inline; its state is one dict.

The run directory: config.yaml, metrics.jsonl (one line per window of steps, one per evaluation),
checkpoint.pt (+ .previous), trunk.pt (the branch point to return to), weights-<n>.pt (of each
budget but the last, for probes), loss_by_position.json (at the last budget), rows.json (when
finished).
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch

from scaling import checkpoint
from scaling.checkpoint import STOP, Interrupted, StopFlag
from scaling.config.schedule import WINDOW_STEPS, evaluation_steps, position, rate, segments
from scaling.config.schema import RunConfig
from scaling.data import feed
from scaling.data.shards import TokenData
from scaling.errors import UserError
from scaling.models.macs import forward_macs, parameter_counts
from scaling.models.memory import check_fits
from scaling.models.parametrization import build, optimizer
from scaling.results import SOURCE_PREFIX, Row, dumps, loss_unit
from scaling.storage import files, scratch
from scaling.storage.files import RunBusy, RunLock
from scaling.study_folder import RunFolder
from scaling.training.device import autocast, compiles, device_name, gemm_peak_macs
from scaling.training.ranks import Ranks, join, load, restore, save


def train(
    run: RunConfig,
    run_dir: Path,
    *,
    stop: StopFlag = STOP,
    log: Callable[[str], None] = print,
) -> list[Row]:
    """Train a run to its end, or return its rows if that was done before.

    Continues from whatever state the directory holds; on a CPU the result equals that of an
    uninterrupted run bit for bit (same thread count). Started by torchrun or Slurm as several
    tasks, each calls it with the same run and takes its share of every batch.

    Raises:
        RunBusy: another live process works in `run_dir`.
        Interrupted: `stop` was set; the state is saved and the same call continues.
        UserError: an impossible schedule, a directory of another run, damaged data, a batch that
            does not divide among the ranks.
        UserError: a model that does not fit the device, ranks that cannot meet.
    """
    ranks = join()
    with ranks.together(), ExitStack() as held:

        def begin() -> list[Row] | None:
            run_dir.mkdir(parents=True, exist_ok=True)
            held.enter_context(RunLock(run_dir))
            scratch.drop_half_files(run_dir)
            return RunFolder(run_dir).read()

        try:
            rows = ranks.by_first(begin)
        except RunBusy:
            if ranks.size > 1 and ranks.boundary(stop, False)[0]:
                raise Interrupted(f"{run_dir.name}: stopped while waiting for it") from None
            raise
        if rows is None:
            rows = _train(run, run_dir, ranks, stop, log if ranks.first else _silent)
        return rows


def _train(
    run: RunConfig, run_dir: Path, ranks: Ranks, stop: StopFlag, log: Callable[[str], None]
) -> list[Row]:
    plan = segments(run)
    folder = RunFolder(run_dir)
    config_path = folder.config_yaml

    def claim() -> None:
        there = RunConfig.from_yaml(config_path).run_id if config_path.exists() else run.run_id
        if there != run.run_id:
            raise UserError(f"{run_dir} holds run {there}, not {run.run_id}; use its own folder")
        if not config_path.exists() or RunConfig.from_yaml(config_path) != run:
            files.write(config_path, run.to_yaml())

    ranks.by_first(claim)
    device, bf16 = ranks.device, run.precision == "bf16"
    sharded = ranks.size > 1 and run.parallel == "fsdp"
    with ranks.alike():
        passes, sequences = ranks.share(run)
        data = TokenData.open(Path(run.data_dir))
        if data.key != run.data_key:
            raise UserError(
                f"{run.data_dir} holds tokens {data.key}, the run was planned on {run.data_key}"
            )
        shards = ranks.size if sharded else 1
        check_fits(run.model, sequences, device, bf16=bf16, recompute=run.recompute, shards=shards)
    total = position(plan, len(plan) - 1, plan[-1].end)
    step_macs = 3 * run.batch * sum(forward_macs(run.model, run.model.context).values())
    model = build(run.model, seed=run.seed, device=device)
    model.recompute = run.recompute
    if compiles(run, device, total * step_macs):
        model.compile()
    loss_of: Any = model.loss
    if ranks.size > 1:
        from scaling.models.parallel import distribute

        loss_of = distribute(model, run.parallel)
    unsynchronised = getattr(loss_of, "no_sync", nullcontext)  # DDP: gradients travel once a step
    optim = optimizer(model, lr=run.lr, weight_decay=run.weight_decay)
    peak_lrs = [group["lr"] for group in optim.param_groups]
    parameters = list(model.parameters())
    with ranks.alike():
        validation = {
            name: (inputs.to(device), targets.to(device))
            for name, (inputs, targets) in feed.validation_pairs(data, run.model).items()
        }
    shares = {s["name"]: s["weight"] for s in data.meta["sources"]}
    weights = {name: share / sum(shares.values()) for name, share in shares.items()}
    identity = _identity(run, data, ranks) | {"data_mix": json.dumps(weights)}
    evaluate_at = evaluation_steps(run)
    # Twice the untrained model's loss: nats a token, or the variance of a normalised patch.
    diverged_above = 2.0 if run.model.patch_targets else 2 * math.log(run.model.vocab)
    peak_macs = gemm_peak_macs(device)  # per second

    state: dict[str, Any] = {
        "segment": 0,
        "step": 0,
        "rows": [],
        "window": 0.0,  # sum of losses in the window that is open
        "window_steps": 0,
        "loss_sum": 0.0,  # since the last evaluation
        "loss_steps": 0,
        "seconds": 0.0,
    }
    needed = set(state)

    def wrong(saved: dict[str, Any]) -> str:
        """A file of another run, or with parts missing, is not continued from."""
        if saved.get("run_id", run.run_id) != run.run_id:
            return f"it is of run {saved['run_id']}"
        weights = {"shards"} if "shards" in saved else {"model", "optimizer"}
        missing = (needed | weights) - saved.keys()
        return f"it lacks {', '.join(sorted(missing))}" if missing else ""

    saved = load(folder.checkpoint, ranks, log, wrong)
    if saved is not None:
        restore(run_dir, saved, model, optim)
        state = saved
        state["rows"] = json.loads(state["rows"])
        log(f"{run_dir.name}: continues at step {state['step']}")
    else:
        log(f"{run_dir.name}: {run.model.name}, {total} steps on {device_name(device)}")
    metrics = folder.metrics

    def rewind_metrics() -> None:
        if ranks.first:
            _truncate_metrics(metrics, position(plan, state["segment"], state["step"]))

    def keep(path: Path, **changes: Any) -> None:
        now = state | {"seconds": seconds(), "window": float(ranks.total(window))} | changes
        now |= {"rows": json.dumps(now["rows"]), "run_id": run.run_id}
        save(path, now, model, optim, ranks, sharded=sharded)

    def seconds() -> float:
        return state["seconds"] + time.monotonic() - started

    def write_metrics(**record: Any) -> None:
        if not ranks.first:
            return
        at = {"position": position(plan, state["segment"], state["step"]), "step": state["step"]}
        with open(metrics, "a") as file:
            file.write(json.dumps(at | {"macs": state["step"] * step_macs} | record) + "\n")
            if "val_loss" in record:
                file.flush()
                os.fsync(file.fileno())

    def mfu() -> float | None:
        """Share of the measured peak since the last evaluation, by the median window."""
        if peak_macs is None or not paces:
            return None
        share = step_macs / statistics.median(paces) / (peak_macs * ranks.size)
        paces.clear()
        return share

    def evaluate(decayed: bool, budget: int | None) -> None:
        by_source, by_position = _validation_loss(
            model, validation, run.micro_batch or run.batch, ranks, bf16
        )
        overall = sum(weights[s] * v for s, v in by_source.items())
        state["rows"].append(
            identity
            | _cost(run, data, state, step_macs)
            | {"seconds": round(seconds(), 3), "mfu": mfu()}
            | {SOURCE_PREFIX + s: v for s, v in by_source.items()}
            | {
                "budget_macs": run.budgets_macs[budget] if budget is not None else None,
                "val_loss": overall,
                "train_loss": state["loss_sum"] / max(1, state["loss_steps"]) or None,
                "decayed": decayed,
                "status": "finished" if math.isfinite(overall) else "diverged",
            }
        )
        state["loss_sum"], state["loss_steps"] = 0.0, 0
        last = budget == len(run.budgets_steps) - 1
        if ranks.first and last and not run.model.patch_targets:
            loss_T = sum(weights[source] * loss for source, loss in by_position.items())
            record = {"run_id": run.run_id, "size": run.model.name}
            record |= {"tokens_per_frame": data.meta["tokens_per_frame"]}
            files.write(folder.positions_json, json.dumps(record | {"loss": loss_T.tolist()}))
        write_metrics(
            val_loss=overall, decayed=decayed, **{f"val_loss/{s}": v for s, v in by_source.items()}
        )

    rewind_metrics()
    started = last_save = last_log = window_began = time.monotonic()
    first_position = position(plan, state["segment"], state["step"])
    window = torch.tensor(state["window"] if ranks.first else 0.0, device=device)
    portion = torch.full((), 1 / passes, device=device)  # of the batch in one forward pass
    paces: list[float] = []  # seconds a step, of each window since the last evaluation
    at_hand = -1  # the window whose tokens are at hand
    model.train()
    diverged = False
    while state["segment"] < len(plan) and not diverged:
        segment = plan[state["segment"]]
        while state["step"] < segment.end:
            step = state["step"]
            multiple = rate(run, segment, step)
            for group, peak in zip(optim.param_groups, peak_lrs, strict=True):
                group["lr"] = peak * multiple
            if at_hand != step // WINDOW_STEPS:
                at_hand = step // WINDOW_STEPS
                drawn = feed.train_pair(
                    data, run.model, at_hand, WINDOW_STEPS * run.batch, run.seed
                )
                shape = (WINDOW_STEPS, passes, ranks.size, sequences)
                inputs_WPB, targets_WPB = (
                    x.reshape(*shape, *x.shape[1:])[:, :, ranks.rank].to(device) for x in drawn
                )
            now_at = step % WINDOW_STEPS
            for left, inputs_B, targets_B in zip(
                range(passes - 1, -1, -1), inputs_WPB[now_at], targets_WPB[now_at], strict=True
            ):
                with unsynchronised() if left else nullcontext():
                    with autocast(device, bf16):
                        loss = loss_of(feed.values(inputs_B), feed.values(targets_B))
                    loss.backward(portion)
                window.add_(loss.detach(), alpha=1 / (passes * ranks.size))
            torch.nn.utils.clip_grad_norm_(parameters, run.grad_clip)
            optim.step()
            optim.zero_grad(set_to_none=True)
            state["step"] += 1
            state["window_steps"] += 1
            if state["step"] % WINDOW_STEPS == 0 or state["step"] == segment.end:
                summed = float(ranks.total(window))
                mean = summed / state["window_steps"]
                state["loss_sum"] += summed
                state["loss_steps"] += state["window_steps"]
                now = time.monotonic()
                paces.append((now - window_began) / state["window_steps"])
                window_began = now
                window.zero_()
                state["window_steps"] = 0
                write_metrics(train_loss=mean, lr=run.lr * multiple, seconds=round(seconds(), 3))
                if not math.isfinite(mean) or mean > diverged_above:
                    diverged = True
                    break
                if now - last_log > 10:
                    here = position(plan, state["segment"], state["step"])
                    log(
                        _progress(
                            run, here, total, here - first_position, now - started, step_macs, mean
                        )
                    )
                    last_log = now
            if (
                not segment.cooldown
                and state["step"] in evaluate_at
                and state["step"] > segment.start
            ):
                evaluate(decayed=False, budget=None)
            asked, due = ranks.boundary(stop, time.monotonic() - last_save > run.checkpoint_seconds)
            if asked or due:
                keep(folder.checkpoint)
                last_save = time.monotonic()
            if asked:
                raise Interrupted(f"{run_dir.name}: saved at step {state['step']}")
        if diverged:
            break
        if segment.budget is not None:
            evaluate(decayed=True, budget=segment.budget)
            if state["segment"] + 1 < len(plan) and ranks.first and not sharded:
                # What this budget learned; that of the last one is checkpoint.pt.
                held = folder.weights(segment.budget)
                checkpoint.save(held, {"model": model.state_dict()})
                checkpoint.drop(held, files=1, folders=0)
        state["segment"] += 1
        if state["segment"] == len(plan):
            break
        if segment.cooldown:  # back to the branch point
            rows, spent = state["rows"], seconds()
            trunk = load(folder.trunk, ranks, log, wrong)
            if trunk is None:
                raise UserError(
                    f"{folder.trunk}: every copy is damaged; remove the run directory and run "
                    f"the study again to train it from the start"
                )
            restore(run_dir, trunk, model, optim)
            expected = state["segment"]
            state = trunk
            state["rows"] = rows if state["segment"] == expected else json.loads(state["rows"])
            state["seconds"], started = spent, time.monotonic()
            window.fill_(state["window"] if ranks.first else 0.0)
            if state["segment"] != expected:  # an older branch point: its branches are done again
                rewind_metrics()
        elif plan[state["segment"]].cooldown and state["segment"] + 1 < len(plan):
            keep(folder.trunk, segment=state["segment"] + 1)

    if diverged:
        ahead = [s.budget for s in plan[state["segment"] :] if s.budget is not None]
        state["rows"].append(
            identity
            | _cost(run, data, state, step_macs)
            | {"seconds": round(seconds(), 3), "mfu": mfu()}
            | {SOURCE_PREFIX + s: None for s in data.sources}
            | {
                "budget_macs": run.budgets_macs[ahead[0]],
                "val_loss": None,
                "train_loss": mean,
                "decayed": False,
                "status": "diverged",
            }
        )
        log(f"{run_dir.name}: diverged at step {state['step']} (training loss {mean:.4g})")
    else:
        log(
            f"{run_dir.name}: finished after {seconds():.1f} s, "
            f"{state['rows'][-1]['val_loss']:.4f} {loss_unit([identity['tokenizer']])}"
        )
    keep(folder.checkpoint)

    def finish() -> list[Row]:
        checkpoint.drop(folder.trunk, files=0, folders=0)
        checkpoint.drop(folder.checkpoint, files=1, folders=int(sharded))
        files.write(folder.rows_json, dumps(state["rows"]))
        return state["rows"]

    return ranks.by_first(finish)


def _truncate_metrics(path: Path, position: int) -> None:
    """Drop what was logged after the state that is continued from, and a torn last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # torn by a crash; the steps it described are done again
        if record["position"] <= position:
            kept.append(line)
    files.write(path, "".join(line + "\n" for line in kept))


@torch.no_grad()
def _validation_loss(
    model: Any, validation: dict[str, feed.Pair], batch: int, ranks: Ranks, bf16: bool
) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Mean loss of each source's validation sequences, all together and by position (T,).

    The sequences are shared out to the ranks.
    """
    model.eval()
    positions = next(iter(validation.values()))[1].shape[1]
    sums = torch.zeros(len(validation), 1 + positions, dtype=torch.float64, device=ranks.device)
    for k, pair in enumerate(validation.values()):
        for inputs_B, targets_B in zip(*(x.split(batch) for x in pair), strict=True):
            own = slice(ranks.rank, None, ranks.size)
            count = len(inputs_B[own])
            if count == 0:  # a sharded model takes all ranks for every forward pass
                own = slice(1)
            with autocast(ranks.device, bf16):
                loss_BT = model.loss(
                    feed.values(inputs_B[own]), feed.values(targets_B[own]), reduction="none"
                )
            if count:
                sums[k, 0] += loss_BT.mean().double() * count
                sums[k, 1:] += loss_BT.double().sum(0)
    model.train()
    counts = torch.tensor([[len(inputs)] for inputs, _ in validation.values()])
    means = ranks.total(sums).cpu() / counts
    return (
        {source: float(mean) for source, mean in zip(validation, means[:, 0], strict=True)},
        dict(zip(validation, means[:, 1:], strict=True)),
    )


def _silent(text: str) -> None:
    """Of several ranks the first speaks."""


def _identity(run: RunConfig, data: TokenData, ranks: Ranks) -> Row:
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
        "parametrization": "completep" if run.model.base_layers else run.model.parametrization,
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
    }


def _tokenizer(run: RunConfig, data: TokenData) -> str:
    """`dvae-8px-8192`, or with patches what is read and what predicted: `patch-8px > ...`."""
    reads, predicts = (
        f"patch-{round((values / 3) ** 0.5)}px" if values else data.tokenizer
        for values in (run.model.patch_inputs, run.model.patch_targets)
    )
    return reads if reads == predicts else f"{reads} > {predicts}"


def _cost(run: RunConfig, data: TokenData, state: dict[str, Any], step_macs: int) -> Row:
    """What the path to this step costs: trunk steps plus the branch's own."""
    step = state["step"]
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


def _progress(
    run: RunConfig, here: int, total: int, done: int, took: float, step_macs: int, loss: float
) -> str:
    per_second = done / took
    left = (total - here) / per_second
    tokens = per_second * run.batch * run.model.context
    return (
        f"{run.run_id} {run.model.name} step {here}/{total} loss {loss:.3f} "
        f"{tokens:,.0f} tokens/s {per_second * step_macs / 1e9:.1f} GMAC/s "
        f"ETA {int(left // 60)}:{int(left % 60):02d}"
    )


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
