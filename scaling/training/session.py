"""A run up to its loop: what it works with, where it stands, and how that is saved and told.

What all ranks must do together (totals, checkpoints, evaluations) each of these methods does on
every rank; the first one alone writes files and speaks.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from scaling import checkpoint
from scaling.config.run import RunConfig
from scaling.config.schedule import position, segments
from scaling.data import feed
from scaling.data.shards import TokenData
from scaling.errors import UserError
from scaling.models.macs import forward_macs
from scaling.models.memory import check_fits
from scaling.models.parametrization import build, optimizer
from scaling.results import SOURCE_PREFIX, Row, dumps, loss_unit
from scaling.storage import files
from scaling.study_folder import RunFolder
from scaling.training.device import autocast, compiles, device_name, gemm_peak_macs
from scaling.training.ranks import Ranks, load, restore, save
from scaling.training.row import cost, identity

LOG_SECONDS = 10.0  # between lines about progress
START: dict[str, Any] = {  # of a state
    "segment": 0,
    "step": 0,
    "rows": [],
    "window": 0.0,  # sum of losses in the window that is open
    "window_steps": 0,
    "loss_sum": 0.0,  # since the last evaluation
    "loss_steps": 0,
    "seconds": 0.0,
}


class Session:
    """One run in one process of its ranks. `state` is all that a checkpoint holds but weights."""

    def __init__(
        self, run: RunConfig, run_dir: Path, ranks: Ranks, log: Callable[[str], None]
    ) -> None:
        self.run, self.ranks, self.log = run, ranks, log
        self.folder, self.name = RunFolder(run_dir), run_dir.name
        self.plan = segments(run)
        self.bf16 = run.precision == "bf16"
        self.sharded = ranks.size > 1 and run.parallel == "fsdp"
        ranks.by_first(self._claim)
        self._open()
        self.total = position(self.plan, len(self.plan) - 1, self.plan[-1].end)  # steps
        self.step_macs = 3 * run.batch * sum(forward_macs(run.model, run.model.context).values())
        self._build()
        self._prepare_rows()
        self.state: dict[str, Any] = {**START, "rows": []}

    def _claim(self) -> None:
        """Raises UserError for the directory of another run."""
        run, there = self.run, self.folder.config_yaml
        held = RunConfig.from_yaml(there).run_id if there.exists() else run.run_id
        if held != run.run_id:
            raise UserError(
                f"{self.folder.path} holds run {held}, not {run.run_id}; use its own folder"
            )
        if not there.exists() or RunConfig.from_yaml(there) != run:
            files.write(there, run.to_yaml())

    def _open(self) -> None:
        """The data, once it is clear that this run can be trained on them here."""
        run, ranks = self.run, self.ranks
        with ranks.alike():
            self.passes, self.sequences = ranks.share(run)  # of a step; of a pass, on this rank
            self.data = TokenData.open(Path(run.data_dir))
            if self.data.key != run.data_key:
                raise UserError(
                    f"{run.data_dir} holds tokens {self.data.key}, the run was planned on "
                    f"{run.data_key}"
                )
            check_fits(
                run.model, self.sequences, ranks.device, bf16=self.bf16, recompute=run.recompute,
                shards=ranks.size if self.sharded else 1,
            )  # fmt: skip

    def _build(self) -> None:
        """The model, the loss that is descended (over all ranks), and the optimizer."""
        run, ranks = self.run, self.ranks
        self.model = build(run.model, seed=run.seed, device=ranks.device)
        self.model.recompute = run.recompute
        if compiles(run, ranks.device, self.total * self.step_macs):
            self.model.compile()
        self.loss_of: Any = self.model.loss
        if ranks.size > 1:
            from scaling.models.parallel import distribute

            self.loss_of = distribute(self.model, run.parallel)
        self.optim = optimizer(self.model, lr=run.lr, weight_decay=run.weight_decay)
        # Before a checkpoint is read, which holds the rates of its step.
        self.peak_lrs = [group["lr"] for group in self.optim.param_groups]

    def _prepare_rows(self) -> None:
        """What evaluations need: validation batches, the sources' weights, the rows' columns."""
        with self.ranks.alike():
            self.validation = {
                name: (inputs.to(self.ranks.device), targets.to(self.ranks.device))
                for name, (inputs, targets) in feed.validation_pairs(
                    self.data, self.run.model
                ).items()
            }
        shares = {s["name"]: s["weight"] for s in self.data.meta["sources"]}
        self.weights = {name: share / sum(shares.values()) for name, share in shares.items()}
        self.identity = identity(self.run, self.data, self.ranks, self.weights)
        self.peak_macs = gemm_peak_macs(self.ranks.device)  # per second

    # -------------------------------------------------------------------------- where it stands

    def resume(self) -> None:
        """Go on from the newest checkpoint that verifies, or begin."""
        saved = load(self.folder.checkpoint, self.ranks, self.log, self._wrong)
        if saved is not None:
            restore(self.folder.path, saved, self.model, self.optim)
            self.state = saved | {"rows": json.loads(saved["rows"])}
            self.log(f"{self.name}: continues at step {self.state['step']}")
        else:
            on = device_name(self.ranks.device)
            self.log(f"{self.name}: {self.run.model.name}, {self.total} steps on {on}")
        self._rewind_metrics()
        self._started = self._saved = self._told = self._window_began = time.monotonic()
        self._first_position = self.position()
        first = self.state["window"] if self.ranks.first else 0.0
        self.window = torch.tensor(first, device=self.ranks.device)
        self._paces: list[float] = []  # seconds a step, of each window since the last evaluation

    def _wrong(self, saved: dict[str, Any]) -> str:
        """A file of another run, or with parts missing, is not continued from."""
        if saved.get("run_id", self.run.run_id) != self.run.run_id:
            return f"it is of run {saved['run_id']}"
        weights = {"shards"} if "shards" in saved else {"model", "optimizer"}
        missing = (START.keys() | weights) - saved.keys()
        return f"it lacks {', '.join(sorted(missing))}" if missing else ""

    def position(self) -> int:
        """Steps done, those of cooldown branches included."""
        return position(self.plan, self.state["segment"], self.state["step"])

    def seconds(self) -> float:
        """Of training, over all processes that worked on the run."""
        return float(self.state["seconds"]) + time.monotonic() - self._started

    def keep(self, path: Path, **changes: Any) -> None:
        """Save the state, with changes, and the weights."""
        open_window = float(self.ranks.total(self.window))
        now = self.state | {"seconds": self.seconds(), "window": open_window} | changes
        now |= {"rows": json.dumps(now["rows"]), "run_id": self.run.run_id}
        save(path, now, self.model, self.optim, self.ranks, sharded=self.sharded)

    def save(self) -> None:
        self.keep(self.folder.checkpoint)
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last checkpoint is older than it may be."""
        return time.monotonic() - self._saved > self.run.checkpoint_seconds

    def back_to_branch(self) -> None:
        """After a cooldown: the trunk goes on from where it was left. Raises UserError: damaged."""
        rows, spent = self.state["rows"], self.seconds()
        trunk = load(self.folder.trunk, self.ranks, self.log, self._wrong)
        if trunk is None:
            raise UserError(
                f"{self.folder.trunk}: every copy is damaged; remove the run directory and run "
                f"the study again to train it from the start"
            )
        restore(self.folder.path, trunk, self.model, self.optim)
        expected = self.state["segment"]
        older = trunk["segment"] != expected  # its branches are done again
        self.state = trunk | {"rows": json.loads(trunk["rows"]) if older else rows}
        self.state["seconds"], self._started = spent, time.monotonic()
        self.window.fill_(self.state["window"] if self.ranks.first else 0.0)
        if older:
            self._rewind_metrics()

    # -------------------------------------------------------------------------- what is told

    def close_window(self, lr: float) -> float:
        """The mean loss of the steps since the last window, which is logged; a new one begins."""
        state, now = self.state, time.monotonic()
        summed = float(self.ranks.total(self.window))
        mean: float = summed / state["window_steps"]
        state["loss_sum"] += summed
        state["loss_steps"] += state["window_steps"]
        self._paces.append((now - self._window_began) / state["window_steps"])
        self._window_began = now
        self.window.zero_()
        state["window_steps"] = 0
        self._write_metrics(train_loss=mean, lr=lr, seconds=round(self.seconds(), 3))
        return mean

    def tell(self, loss: float) -> None:
        """A line about progress, now and then."""
        now = time.monotonic()
        if now - self._told <= LOG_SECONDS:
            return
        self._told, run, here = now, self.run, self.position()
        per_second = (here - self._first_position) / (now - self._started)
        left = (self.total - here) / per_second
        tokens = per_second * run.batch * run.model.context
        self.log(
            f"{run.run_id} {run.model.name} step {here}/{self.total} loss {loss:.3f} "
            f"{tokens:,.0f} tokens/s {per_second * self.step_macs / 1e9:.1f} GMAC/s "
            f"ETA {int(left // 60)}:{int(left % 60):02d}"
        )

    def evaluate(self, budget: int | None = None) -> None:
        """A row: mid-schedule, or at the decayed end of a budget."""
        run, decayed = self.run, budget is not None
        by_source, by_position = _validation_loss(
            self.model, self.validation, run.micro_batch or run.batch, self.ranks, self.bf16
        )
        overall = sum(self.weights[s] * v for s, v in by_source.items())
        status = "finished" if math.isfinite(overall) else "diverged"
        self._append_row(
            budget,
            {SOURCE_PREFIX + s: v for s, v in by_source.items()},
            val_loss=overall,
            train_loss=self.state["loss_sum"] / max(1, self.state["loss_steps"]) or None,
            decayed=decayed,
            status=status,
        )
        self.state["loss_sum"], self.state["loss_steps"] = 0.0, 0
        last = budget == len(run.budgets_steps) - 1
        if self.ranks.first and last and not run.model.patch_targets:
            loss_T = sum(self.weights[source] * loss for source, loss in by_position.items())
            record = {"run_id": run.run_id, "size": run.model.name}
            record |= {"tokens_per_frame": self.data.meta["tokens_per_frame"]}
            record |= {"loss": loss_T.tolist()}
            files.write(self.folder.positions_json, json.dumps(record))
        sources = {SOURCE_PREFIX + s: v for s, v in by_source.items()}
        self._write_metrics(val_loss=overall, decayed=decayed, **sources)

    def keep_weights(self, budget: int) -> None:
        """What this budget learned; that of the last one is the checkpoint's."""
        if self.ranks.first and not self.sharded:
            held = self.folder.weights(budget)
            checkpoint.save(held, {"model": self.model.state_dict()})
            checkpoint.drop(held, files=1, folders=0)

    def finish(self, diverged_at: float | None) -> list[Row]:
        """The last row of a run that diverged, at this training loss; rows.json; what stays."""
        state = self.state
        if diverged_at is not None:
            ahead = [s.budget for s in self.plan[state["segment"] :] if s.budget is not None]
            self._append_row(
                ahead[0],
                {SOURCE_PREFIX + s: None for s in self.data.sources},
                val_loss=None,
                train_loss=diverged_at,
                decayed=False,
                status="diverged",
            )
            self.log(
                f"{self.name}: diverged at step {state['step']} (training loss {diverged_at:.4g})"
            )
        else:
            loss, unit = state["rows"][-1]["val_loss"], loss_unit([self.identity["tokenizer"]])
            self.log(f"{self.name}: finished after {self.seconds():.1f} s, {loss:.4f} {unit}")
        self.keep(self.folder.checkpoint)

        def settle() -> list[Row]:
            checkpoint.drop(self.folder.trunk, files=0, folders=0)
            checkpoint.drop(self.folder.checkpoint, files=1, folders=int(self.sharded))
            files.write(self.folder.rows_json, dumps(state["rows"]))
            rows: list[Row] = state["rows"]
            return rows

        return self.ranks.by_first(settle)

    def _append_row(self, budget: int | None, sources: Row, **outcome: Any) -> None:
        nominal = self.run.budgets_macs[budget] if budget is not None else None
        self.state["rows"].append(
            self.identity
            | cost(self.run, self.data, self.state["step"], self.step_macs)
            | {"seconds": round(self.seconds(), 3), "mfu": self._mfu()}
            | sources
            | {"budget_macs": nominal}
            | outcome
        )

    def _mfu(self) -> float | None:
        """Share of the measured peak since the last evaluation, by the median window."""
        if self.peak_macs is None or not self._paces:
            return None
        share = self.step_macs / statistics.median(self._paces)
        self._paces.clear()
        return share / (self.peak_macs * self.ranks.size)

    def _write_metrics(self, **record: Any) -> None:
        if not self.ranks.first:
            return
        step = self.state["step"]
        at = {"position": self.position(), "step": step, "macs": step * self.step_macs}
        with open(self.folder.metrics, "a") as file:
            file.write(json.dumps(at | record) + "\n")
            if "val_loss" in record:
                file.flush()
                os.fsync(file.fileno())

    def _rewind_metrics(self) -> None:
        """Drop what was logged after the state that is continued from, and a torn last line."""
        path, last = self.folder.metrics, self.position()
        if not self.ranks.first or not path.exists():
            return
        kept = []
        for line in path.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # torn by a crash; the steps it described are done again
            if record["position"] <= last:
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
