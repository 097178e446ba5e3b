"""Training one run: `train(run, run_dir) -> rows`. The loop is inline; its state is one dict.

`session.Session` is what the loop works with; `study_folder.RunFolder` names what a run leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path

import torch

from scaling.checkpoint import STOP, Interrupted, StopFlag
from scaling.config.run import RunConfig
from scaling.config.schedule import WINDOW_STEPS, evaluation_steps, rate
from scaling.data import feed
from scaling.results import Row
from scaling.storage import scratch
from scaling.storage.files import RunBusy, RunLock
from scaling.study_folder import RunFolder
from scaling.training import points
from scaling.training.device import autocast
from scaling.training.ranks import Ranks, join
from scaling.training.session import Session


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
            return points.settle(RunFolder(run_dir), run, locked=True)

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
    here = Session(run, run_dir, ranks, log)
    here.resume()
    device, passes, peak_lrs = ranks.device, here.passes, here.peak_lrs
    evaluate_at = evaluation_steps(run)
    portion = torch.full((), 1 / passes, device=device)  # of the batch in one forward pass
    at_hand = -1  # the window whose tokens are at hand
    while (segment := here.next()) is not None:
        state, model, optim, loss_of = here.state, here.model, here.optim, here.loss_of
        unsynchronised = getattr(loss_of, "no_sync", nullcontext)  # DDP: gradients travel once
        parameters = list(model.parameters())
        model.train()
        lost = False  # diverged
        while state["step"] < segment.end:
            step = state["step"]
            multiple = rate(run, segment, step)
            for group, peak in zip(optim.param_groups, peak_lrs, strict=True):
                group["lr"] = peak * multiple
            if at_hand != step // WINDOW_STEPS:
                at_hand = step // WINDOW_STEPS
                drawn = feed.train_pair(
                    here.data, run.model, at_hand, WINDOW_STEPS * run.batch, run.seed
                )
                shape = (WINDOW_STEPS, passes, ranks.size, here.sequences)
                inputs_WPB, targets_WPB = (
                    x.reshape(*shape, *x.shape[1:])[:, :, ranks.rank].to(device) for x in drawn
                )
            now_at = step % WINDOW_STEPS
            for left, inputs_B, targets_B in zip(
                range(passes - 1, -1, -1), inputs_WPB[now_at], targets_WPB[now_at], strict=True
            ):
                with unsynchronised() if left else nullcontext():
                    with autocast(device, here.bf16):
                        loss = loss_of(feed.values(inputs_B), feed.values(targets_B))
                    loss.backward(portion)
                here.window.add_(loss.detach(), alpha=1 / (passes * ranks.size))
            torch.nn.utils.clip_grad_norm_(parameters, run.grad_clip)
            optim.step()
            optim.zero_grad(set_to_none=True)
            state["step"] += 1
            state["window_steps"] += 1
            at_end = segment.budget is not None and state["step"] == segment.end
            if state["step"] % WINDOW_STEPS == 0 or at_end:
                lost = here.close_window(run.lr * multiple)
                if lost:
                    break
            if not segment.cooldown and state["step"] in evaluate_at:
                here.evaluate()
            asked, due = ranks.boundary(stop, here.is_due())
            if asked or due:
                here.save()
            if asked:
                raise Interrupted(f"{run_dir.name}: saved at step {state['step']}")
        if segment.budget is not None and not lost:
            here.evaluate(segment.budget)
            here.keep_weights()
    return here.finish()


def _silent(text: str) -> None:
    """Of several ranks the first speaks."""
