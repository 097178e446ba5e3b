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

from scaling import checkpoint, results
from scaling.config.run import RunConfig
from scaling.config.schedule import Segment, branch, length, segments
from scaling.data import feed
from scaling.data.shards import TokenData
from scaling.errors import UserError
from scaling.models.macs import forward_macs
from scaling.models.memory import check_fits
from scaling.models.parametrization import build, optimizer
from scaling.results import SOURCE_PREFIX, Row, dumps, loss_unit
from scaling.storage import files
from scaling.study_folder import RunFolder
from scaling.training import points
from scaling.training.device import COMPILE_STEPS, compiles, device_name, gemm_peak_macs
from scaling.training.ranks import Ranks, load, restore, save
from scaling.training.row import cost, identity
from scaling.training.validation import validation_loss

LOG_SECONDS = 10.0  # between lines about progress
START: dict[str, Any] = {  # of a state
    "cooling": None,  # steps of the budget whose cooldown it is in; None: on the trunk
    "step": 0,
    "rows": [],  # all points, of whatever budgets
    "window": (),  # sum of losses in the window that is open, of each rank
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
        self.total = length(segments(run))  # steps
        self.bf16 = run.precision == "bf16"
        self.sharded = ranks.size > 1 and run.parallel == "fsdp"
        self._open()
        self.step_macs = 3 * run.batch * sum(forward_macs(run.model, run.model.context).values())
        self._build()
        self._prepare_rows()
        self.state: dict[str, Any] = {**START, "rows": []}

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
        steps = COMPILE_STEPS if run.grows else self.total  # a trunk may go on, compiled or not
        if compiles(run, ranks.device, steps * self.step_macs):
            self.model.compile()
        self.loss_of: Any = self.model.loss
        if ranks.size > 1:
            from scaling.models.parallel import distribute

            self.loss_of = distribute(self.model, run.parallel)
        self.optim = optimizer(
            self.model, lr=run.lr, weight_decay=run.weight_decay, betas=(run.beta1, run.beta2),
            kind=run.optimizer,
        )  # fmt: skip
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
        # Twice the untrained model's loss: nats a token, or the variance of a normalised patch.
        patches, vocab = self.run.model.patch_targets, self.run.model.vocab
        self.diverged_above = 2.0 if patches else 2 * math.log(vocab)
        self.peak_macs = gemm_peak_macs(self.ranks.device)  # per second

    # -------------------------------------------------------------------------- where it stands

    def resume(self) -> None:
        """Go on from the newest checkpoint that verifies, or from what is kept of the trunk."""
        self._began = self._started = self._saved = self._told = time.monotonic()
        self._window_began = self._began
        self._paces: list[float] = []  # seconds a step, of each window since the last evaluation
        self.window = torch.zeros((), device=self.ranks.device)
        self.state["rows"] = self.ranks.by_first(lambda: points.known(self.folder, self.run))
        saved = load(self.folder.checkpoint, self.ranks, self.log, self._wrong)
        if saved is not None:
            self._take(saved)
        plan = self._plan()
        self._rewind_metrics(plan)
        self._first_position = self.total - self._left(plan)
        step = self.state["step"]
        if step and plan and (self._is_amid(plan[0]) or step == plan[0].start):
            self.log(f"{self.name}: continues at step {step}")
        elif plan:
            begun = f" from step {plan[0].start}" if plan[0].start else ""
            size, on = self.run.model.name, device_name(self.ranks.device)
            self.log(f"{self.name}: {size}, {length(plan)} steps{begun} on {on}")

    def _wrong(self, saved: dict[str, Any]) -> str:
        """A file of another run, or with parts missing, is not continued from."""
        if saved.get("run_id", self.run.run_id) != self.run.run_id:
            return f"it is of run {saved['run_id']}"
        if "segment" in saved and not self.run.grows:  # of a version before runs grew
            saved["cooling"] = self.run.budgets_steps[0] if saved.pop("segment") == 1 else None
            saved["window"] = (saved["window"],)
        weights = {"shards"} if "shards" in saved else {"model", "optimizer"}
        missing = (START.keys() | weights) - saved.keys()
        return f"it lacks {', '.join(sorted(missing))}" if missing else ""

    def _take(self, saved: dict[str, Any]) -> None:
        """Go on from a state that was saved; what is known of points since then stays known."""
        restore(self.folder.path, saved, self.model, self.optim)
        rows = points.merged(self.run, results.loads(json.loads(saved["rows"])), self.state["rows"])
        spent = max(float(saved["seconds"]), self.seconds())
        self.state = saved | {"rows": rows, "seconds": spent}
        self._started = time.monotonic()
        sums = saved["window"]
        one = sums[self.ranks.rank] if len(sums) == self.ranks.size else sum(sums)
        self.window.fill_(one if self.ranks.first or len(sums) == self.ranks.size else 0.0)

    def _plan(self) -> list[Segment]:
        """What is left, in order: first what the state at hand is of, if it is still wanted."""
        run, state = self.run, self.state
        done = points.ended(run, state["rows"])
        kept = self.ranks.by_first(self.folder.trunks)
        cooling, first = state["cooling"], []
        if cooling is None:
            kept = [*kept, state["step"]]
        elif cooling in run.budgets_steps and cooling not in done:
            budget = run.budgets_steps.index(cooling)
            first = [Segment(branch(run, cooling), cooling, budget, cooldown=True)]
        plan = segments(run, {*done, *(s.end for s in first)}, kept)
        here = [s.start == state["step"] for s in plan] if cooling is None else []
        amid = here.index(True) if True in here else 0
        return [*first, *plan[amid:], *plan[:amid]]

    def next(self) -> Segment | None:
        """The stretch to be done now, with the state that it begins from; None: nothing is left."""
        while plan := self._plan():
            self.segment, self._later = plan[0], length(plan[1:])
            if not self._stands_at(plan[0]):
                self._rewind_metrics(self._plan())  # a state was damaged: more is left
                continue
            if not plan[0].cooldown or self.state["cooling"] is not None or self._branch(plan[0]):
                return plan[0]
        return None

    def _stands_at(self, segment: Segment) -> bool:
        """Bring the state to where a stretch begins. False: what was kept there is damaged."""
        state, start = self.state, segment.start
        if self._is_amid(segment) or (state["step"] == start and state["cooling"] is None):
            return True
        if start == 0:
            self._build()
            self.state = {**START, "rows": state["rows"], "seconds": self.seconds()}
            self._started = time.monotonic()
            self.window.zero_()
            return True
        trunk = load(self.folder.trunk(start), self.ranks, self.log, self._wrong)
        if trunk is None:
            return False
        self._take(trunk)
        return True

    def _is_amid(self, segment: Segment) -> bool:
        """Whether the state is of this cooldown."""
        return segment.cooldown and bool(self.state["cooling"] == segment.end)

    def _left(self, plan: list[Segment]) -> int:
        """Steps of a plan, of which the state may be amid the first."""
        amid = bool(plan) and self._is_amid(plan[0])
        return length(plan) - (self.state["step"] - plan[0].start if amid else 0)

    def _branch(self, segment: Segment) -> bool:
        """Leave the trunk for a cooldown: whether it is to be done. The trunk's state is kept.

        A window that the branch cuts short is the cooldown's; the trunk's own stays open.
        """
        held = self.folder.trunk(segment.start)
        if (self.run.grows or self._later) and not self.ranks.by_first(held.exists):
            self.keep(held)
        self.state["cooling"] = segment.end
        return not (self.state["window_steps"] and self.close_window(self.run.lr))

    def position(self) -> int:
        """Steps done of those that the run's budgets take from its start."""
        return self.total - self._later - (self.segment.end - int(self.state["step"]))

    def seconds(self) -> float:
        """Of training, over all processes that worked on the run."""
        return float(self.state["seconds"]) + time.monotonic() - self._started

    def keep(self, path: Path) -> None:
        """Save the state and the weights."""
        now = self.state | {"seconds": self.seconds(), "window": self.ranks.each(self.window)}
        now |= {"rows": dumps(now["rows"]), "run_id": self.run.run_id}
        save(path, now, self.model, self.optim, self.ranks, sharded=self.sharded)

    def save(self) -> None:
        self.keep(self.folder.checkpoint)
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last checkpoint is older than it may be."""
        return time.monotonic() - self._saved > self.run.checkpoint_seconds

    # -------------------------------------------------------------------------- what is told

    def close_window(self, lr: float) -> bool:
        """Log the mean loss of the steps since the last window, and begin a new one. True: it
        diverged, and has its row."""
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
        if not math.isfinite(mean) or mean > self.diverged_above:
            self._append_diverged(mean)
            return True
        self._tell(mean)
        return False

    def _tell(self, loss: float) -> None:
        """A line about progress, now and then."""
        now = time.monotonic()
        if now - self._told <= LOG_SECONDS:
            return
        self._told, run, here = now, self.run, self.position()
        per_second = (here - self._first_position) / (now - self._began)
        left = (self.total - here) / per_second
        tokens = per_second * run.batch * run.model.context
        self.log(
            f"{run.run_id} {run.model.name} step {here}/{self.total} loss {loss:.3f} "
            f"{tokens:,.0f} tokens/s {per_second * self.step_macs / 1e9:.1f} GMAC/s "
            f"ETA {int(left // 60)}:{int(left % 60):02d}"
        )

    def evaluate(self, budget: int | None = None) -> None:
        """A row: mid-schedule, or at the decayed end of a budget (its place among the run's)."""
        run, decayed = self.run, budget is not None
        by_source, by_position = validation_loss(
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
        if self.ranks.first and decayed and not run.model.patch_targets:
            loss_T = sum(self.weights[source] * loss for source, loss in by_position.items())
            record = {"run_id": run.run_id, "size": run.model.name}
            record |= {"tokens_per_frame": self.data.meta["tokens_per_frame"]}
            record |= {"loss": loss_T.tolist()}
            files.write(self.folder.positions_json(self.state["step"]), json.dumps(record))
        sources = {SOURCE_PREFIX + s: v for s, v in by_source.items()}
        self._write_metrics(val_loss=overall, decayed=decayed, **sources)

    def keep_weights(self) -> None:
        """What the budget that ends here learned; a sharded run's checkpoint holds the last."""
        if self.ranks.first and not self.sharded:
            held = self.folder.weights(self.state["step"])
            named = {"run_id": self.run.run_id, "steps": self.state["step"]}
            checkpoint.save(held, named | {"model": self.model.state_dict()})
            checkpoint.drop(held, files=1, folders=0)

    def _append_diverged(self, mean: float) -> None:
        """A row for the budget ahead. A trunk that diverged serves no budget from here on, a
        cooldown that did is the end of its own."""
        cooling, budgets = self.state["cooling"], self.run.budgets_steps
        ahead = budgets.index(cooling) if cooling is not None else self._ahead()
        self._append_row(
            ahead,
            {SOURCE_PREFIX + s: None for s in self.data.sources},
            val_loss=None,
            train_loss=mean,
            decayed=False,
            status="diverged",
        )
        step = self.state["step"]
        self.log(f"{self.name}: diverged at step {step} (training loss {mean:.4g})")

    def _ahead(self) -> int:
        """The place of the budget that this stretch of the trunk leads to."""
        run, end = self.run, self.segment.end
        if run.schedule == "cosine":
            return 0
        return next(i for i, steps in enumerate(run.budgets_steps) if branch(run, steps) >= end)

    def finish(self) -> list[Row]:
        """The rows that are asked for, all of them there; what stays of the run is settled."""
        run, rows = self.run, points.chosen(self.run, self.state["rows"])
        if rows[-1]["status"] == "finished":
            loss, unit = rows[-1]["val_loss"], loss_unit([self.identity["tokenizer"]])
            self.log(f"{self.name}: finished after {self.seconds():.1f} s, {loss:.4f} {unit}")
        if self.sharded:
            self.keep(self.folder.checkpoint)

        def settle() -> list[Row] | None:
            checkpoint.drop(
                self.folder.checkpoint, files=int(self.sharded), folders=int(self.sharded)
            )
            for step in self.folder.trunks():
                checkpoint.drop(self.folder.trunk(step), files=1, folders=int(self.sharded))
            points.write(self.folder, self.state["rows"])
            return points.settle(self.folder, run, locked=True)

        settled = self.ranks.by_first(settle)
        assert settled is not None, self.folder.path
        return settled

    def _append_row(self, budget: int | None, sources: Row, **outcome: Any) -> None:
        nominal = self.run.budgets_macs[budget] if budget is not None else None
        row = (
            self.identity
            | cost(self.run, self.data, self.state["step"], self.step_macs)
            | {"seconds": round(self.seconds(), 3), "mfu": self._mfu()}
            | sources
            | {"budget_macs": nominal}
            | outcome
        )
        self.state["rows"] = points.merged(self.run, self.state["rows"], [row])

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
        at["branch"] = self.state["cooling"]
        with open(self.folder.metrics, "a") as file:
            file.write(json.dumps(at | record) + "\n")
            if "val_loss" in record:
                file.flush()
                os.fsync(file.fileno())

    def _rewind_metrics(self, plan: list[Segment]) -> None:
        """Drop what was logged of stretches that are done again, and a torn last line."""
        path = self.folder.metrics
        if not self.ranks.first or not path.exists():
            return
        done = self.total - self._left(plan)
        kept = []
        for line in path.read_text(errors="replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # torn by a crash; the steps it described are done again
            if "branch" not in record:  # of a version whose runs did not grow
                again = record["position"] > done
            else:
                again = any(self._is_in(stretch, record) for stretch in plan)
            if not again:
                kept.append(line)
        files.write(path, "".join(line + "\n" for line in kept))

    def _is_in(self, stretch: Segment, record: dict[str, Any]) -> bool:
        """Whether a record tells of a stretch; a cooldown's first may be of its branch point."""
        if record["branch"] != (stretch.end if stretch.cooldown else None):
            return False
        first = stretch.start if stretch.cooldown else stretch.start + 1
        if self._is_amid(stretch):
            first = self.state["step"] + 1
        return bool(first <= record["step"] <= stretch.end)
