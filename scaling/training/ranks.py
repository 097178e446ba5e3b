"""One run on several processes ("ranks"): what they decide together, and how they end together.

torchrun, or Slurm, starts the same command once per rank. The first rank owns the run's directory:
it alone takes the lock and writes; the others learn from it whether to go, and follow. Whatever a
rank decides by itself (its clock, a signal, a full disk) becomes common at a step boundary, so all
ranks always take the same path. One rank alone is the same code with nothing to agree on.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from scaling import checkpoint
from scaling.checkpoint import Interrupted, StopFlag
from scaling.config.run import RunConfig
from scaling.errors import UserError
from scaling.storage import files
from scaling.storage.files import RunBusy

T = TypeVar("T")
FAILED = "failed"  # key of the store: which rank failed first, and of what
GRACE_SECONDS = 10.0  # for a rank to end by itself when another has failed


def count() -> int:
    """How many ranks torchrun or Slurm started; 1 where neither did."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


@cache
def join() -> Ranks:
    """Meet the other ranks; once per process. Raises UserError where the launcher's are amiss."""
    if count() == 1:
        return Ranks(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    from scaling.models import parallel

    device = parallel.start()
    rank, size = dist.get_rank(), dist.get_world_size()
    group = dist.group.WORLD if device.type == "cpu" else dist.new_group(backend="gloo")
    # A store of its own: its failures must be heard while the process group is stuck.
    host = os.environ["MASTER_ADDR"]
    store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False) if rank == 0 else None
    port = [store.port if store else 0]
    dist.broadcast_object_list(port, group=group)
    store = store or dist.TCPStore(host, port[0], wait_for_workers=False)
    return Ranks(rank, size, device, group, store)


@dataclass(frozen=True)
class Ranks:
    """The processes that train one run together, as seen from one of them."""

    rank: int
    size: int
    device: torch.device
    group: Any = None  # CPU tensors and objects travel here
    store: Any = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def by_first(self, function: Callable[[], T]) -> T:
        """What the first rank's call returns, or raises, on every rank. All ranks wait for it."""
        if self.size == 1:
            return function()
        answer: list[Any] = [None, None]
        if self.first:
            try:
                answer[0] = function()
            except Exception as error:
                answer[1] = error
        said = [answer[0], _portable(answer[1])]
        dist.broadcast_object_list(said, group=self.group)
        if said[1] is not None:
            raise _common(answer[1] or said[1])
        value: T = said[0]
        return value

    @contextmanager
    def alike(self) -> Iterator[None]:
        """What raises in this block on one rank raises on all of them."""
        if self.size == 1:
            yield
            return
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        errors: list[Any] = [None] * self.size
        dist.all_gather_object(errors, _portable(own), group=self.group)
        for raised in (own, *errors):
            if raised is not None:
                raise _common(raised)

    def same(self, what: Any) -> bool:
        """Whether all ranks give the same value."""
        values: list[Any] = [what]
        if self.size > 1:
            values *= self.size
            dist.all_gather_object(values, what, group=self.group)
        return all(value == what for value in values)

    def total(self, x: Tensor) -> Tensor:
        """The sum over ranks, in their order: every rank has it to the last bit."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x, device="cpu") for _ in range(self.size)]
        dist.all_gather(parts, x.cpu(), group=self.group)
        return torch.stack(parts).sum(0)

    def each(self, x: Tensor) -> tuple[float, ...]:
        """A number of every rank, in their order."""
        if self.size == 1:
            return (float(x),)
        parts = [torch.empty_like(x, device="cpu") for _ in range(self.size)]
        dist.all_gather(parts, x.cpu(), group=self.group)
        return tuple(float(part) for part in parts)

    def boundary(self, stop: StopFlag, due: bool) -> tuple[bool, bool]:
        """At a step boundary: (stop, because one rank was asked to; save, by the first's clock)."""
        asked = bool(stop)
        if self.size == 1:
            return asked, due
        number = (stop.signal or signal.SIGTERM) if asked else 0
        flags = torch.tensor([number, due and self.first], dtype=torch.int64)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.group)
        stop.signal = stop.signal or int(flags[0]) or None  # who launched it acts on it as well
        return bool(flags[0]), bool(flags[1])

    def share(self, run: RunConfig) -> tuple[int, int]:
        """(forward passes of a step, sequences of each on this rank). Raises UserError."""
        micro = run.micro_batch or run.batch
        if run.batch % micro:
            raise UserError(
                f"train.micro_batch {micro} does not divide train.batch {run.batch}; choose a "
                f"divisor of it"
            )
        if micro % self.size:
            name = "train.micro_batch" if run.micro_batch else "train.batch"
            raise UserError(
                f"{name} {micro} does not divide among {self.size} ranks; make it a multiple of "
                f"{self.size}, or start another number of ranks"
            )
        return run.batch // micro, micro // self.size

    @contextmanager
    def together(self) -> Iterator[None]:
        """An exception on one rank in this block ends all ranks, wherever they wait."""
        if self.size == 1:
            yield
            return
        over = threading.Event()
        heard: list[str] = []
        threading.Thread(target=self._watch, args=(over, heard), daemon=True).start()
        try:
            yield
        except BaseException as error:
            if isinstance(error, Interrupted) or getattr(error, "common", False):
                raise
            cause = self._first_failure(error, heard)
            if self.device.type == "cpu":  # closes its connections: who waits at one end knows
                dist.destroy_process_group()
            if self.first and cause is None:
                self._keep_store()
            if cause is None:
                raise
            raise cause from error
        finally:
            over.set()

    def _first_failure(self, own: BaseException, heard: list[str]) -> Exception | None:
        """Another rank's failure that led to `own`; where there is none, `own` is told to all."""
        try:
            if heard or self.store.check([FAILED]):
                there = json.loads(heard[0] if heard else self.store.get(FAILED))
                kind = UserError if there["mistake"] else RuntimeError
                return kind(f"rank {there['rank']} failed: {there['what']}")
            failure = {
                "rank": self.rank,
                "what": str(own) or type(own).__name__,
                "mistake": isinstance(own, UserError),
            }
            self.store.set(FAILED, json.dumps(failure))
        except dist.DistError as error:
            print(f"rank 0 does not answer: {error}", file=sys.stderr)
        return None

    def _keep_store(self) -> None:
        """The store and the connections end with the first rank: it waits until all have heard."""
        others = [f"heard-{rank}" for rank in range(1, self.size)]
        end = time.monotonic() + GRACE_SECONDS
        while not self.store.check(others) and time.monotonic() < end:
            time.sleep(0.05)

    def _watch(self, over: threading.Event, heard: list[str]) -> None:
        """A collective cannot be interrupted from outside: what is stuck in one must exit."""
        while not over.wait(1.0):
            try:
                said = self.store.get(FAILED).decode() if self.store.check([FAILED]) else ""
                if said and not heard:
                    heard.append(said)
                    self.store.set(f"heard-{self.rank}", "")
            except dist.DistError as error:
                said = f"rank 0 does not answer: {error}"
            if said and not over.wait(GRACE_SECONDS):
                print(f"rank {self.rank} ends with another: {said}", file=sys.stderr, flush=True)
                os._exit(1)


def save(
    path: Path,
    state: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
    *,
    sharded: bool,
) -> None:
    """Write a checkpoint of `state`, weights and moments. Every rank calls it."""
    if sharded:
        state = state | {"shards": _save_shards(path, model, optimizer, ranks)}
    else:
        state = state | {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    if ranks.first:
        checkpoint.save(path, state)
        checkpoint.drop(path, files=2, folders=2)


def load(
    path: Path, ranks: Ranks, log: Callable[[str], None], wrong: Callable[[dict[str, Any]], str]
) -> dict[str, Any] | None:
    """The newest checkpoint that verifies; None where there is none. Raises UserError.

    `wrong` says what makes a state unfit for this run, or ''.
    """
    saved: dict[str, Any] | None = None

    def verified() -> list[str]:
        nonlocal saved
        saved, notes = checkpoint.load(path, wrong=wrong)
        return notes

    for note in ranks.by_first(verified):  # which sets the damaged aside before the others look
        log(f"{path.parent.name}: {note}")
    with ranks.alike():
        if not ranks.first:
            saved, _ = checkpoint.load(path, shards=False, wrong=wrong)
    if not ranks.same(saved and (saved["cooling"], saved["step"], saved.get("shards"))):
        raise UserError(
            f"{path}: the ranks see different files; put the study on a file system that all nodes "
            f"share (--out)"
        )
    return saved


def restore(
    run_dir: Path, saved: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Take weights and moments, whole or sharded, out of `saved` into a model, whole or sharded.

    Raises UserError when they are another model's.
    """
    if shards := saved.pop("shards", None):
        from torch.distributed.checkpoint.api import CheckpointException

        from scaling.models import parallel

        try:
            parallel.load(run_dir / shards["folder"], model, optimizer)
        except CheckpointException as error:
            for cause, _ in error.failures.values():
                if isinstance(
                    cause, (ValueError, RuntimeError)
                ):  # a size, or a name that is not there
                    raise _of_another_model(run_dir, str(cause)) from error
            raise
        return
    weights, moments = saved.pop("model"), saved.pop("optimizer")
    parameters = dict(model.named_parameters())
    for name in sorted(weights.keys() | parameters.keys()):
        there, here = (tuple(x[name].shape) if name in x else None for x in (weights, parameters))
        if there != here:
            raise _of_another_model(run_dir, f"{name} is {there} there and {here} in this run")
    model.load_state_dict({name: _placed(x, parameters.get(name)) for name, x in weights.items()})
    updated = [p for group in optimizer.param_groups for p in group["params"]]
    for number, values in moments["state"].items():
        placed = {name: _placed(x, updated[number]) for name, x in values.items()}
        moments["state"][number] = placed
    optimizer.load_state_dict(moments)


def _of_another_model(run_dir: Path, what: str) -> UserError:
    return UserError(
        f"{run_dir}: its checkpoint is of another model ({what}), so it was not made by this run; "
        f"remove its checkpoint files to train it from the start"
    )


def _save_shards(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks
) -> dict[str, Any]:
    from torch.distributed.checkpoint.api import CheckpointException

    from scaling.models import parallel

    folder = ranks.by_first(lambda: checkpoint.new_shards(path))
    try:
        parallel.save(folder, model, optimizer)
    except CheckpointException as error:  # of any rank, on all; not even an Exception
        for cause, _ in error.failures.values():
            if isinstance(cause, OSError):
                raise files.storage_error(cause, path) from error
        raise RuntimeError(str(error)) from error
    return ranks.by_first(lambda: checkpoint.seal_shards(folder))


def _placed(whole: Any, parameter: Any) -> Any:
    """A whole tensor as the shard that this rank holds of its parameter, where that is sharded."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None or whole.shape != parameter.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    there = whole.to(parameter.device)
    return distribute_tensor(there, mesh, parameter.placements, src_data_rank=None)


def _common(error: Exception) -> Exception:
    """Mark what every rank raises: nobody is left waiting."""
    error.common = True  # type: ignore[attr-defined]
    return error


def _portable(error: Exception | None) -> Exception | None:
    """An exception that other ranks can unpickle and act on."""
    if error is None or isinstance(error, (RunBusy, UserError)):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
