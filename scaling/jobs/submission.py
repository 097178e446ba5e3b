"""Jobs of submitit, on this machine or on Slurm. Its one home."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaling.jobs import search_path


def executor(folder: Path, cluster: str, **parameters: Any) -> Any:
    """A submitit executor for one machine or for Slurm; its files go to a new folder."""
    import submitit

    # Runs are bounded by their steps, and give up when a whole time limit brings none (slurm.py).
    python = f"{shlex.quote(sys.executable)} -P"  # where job_variables do not travel to the node
    made = submitit.AutoExecutor(
        folder,
        cluster=cluster,
        slurm_max_num_timeout=1_000_000,
        slurm_python=python,
        local_python=python,
    )
    made.update_parameters(**parameters)
    return made


def requeued(work: Callable[[], object]) -> Any:
    """What submitit wants of a job that is to run again, with the state it has now."""
    from submitit.helpers import DelayedSubmission

    return DelayedSubmission(work)


def join_tasks() -> int:
    """In a job of several tasks: tell torch.distributed of the others (`env://`). Returns the rank.

    Needs a submitit job around it.
    """
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    here = JobEnvironment()
    if here.num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    return here.global_rank


def new_folder(folder: Path) -> Path:
    """A folder that no job used before: where job numbers repeat, old results would be taken."""
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    for count in range(1000):
        fresh = folder / (f"{stamp}-{count}" if count else stamp)
        if not fresh.exists():
            return fresh
    raise RuntimeError(f"{folder}: no free name like {stamp}-999")


# Of the shell that submits: they would keep `job_variables` from the jobs (a site's or a user's
# default), and of an allocation (`salloc --mem-per-cpu`) in which the command was given, srun in
# the job refuses its memory beside that of the job.
NOT_HANDED_ON = (
    "SBATCH_EXPORT", "SLURM_EXPORT_ENV", "SRUN_EXPORT_ENV",
    "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU", "SLURM_MEM_PER_NODE",
)  # fmt: skip


@contextmanager
def job_variables(threads: int) -> Iterator[None]:
    """What is started meanwhile gives its numeric libraries this many threads, and imports ours."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    wanted = dict.fromkeys(names, str(threads)) | search_path.variables()
    before = {name: os.environ.get(name) for name in (*wanted, *NOT_HANDED_ON)}
    for name in NOT_HANDED_ON:
        os.environ.pop(name, None)
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
