"""Encoding on a cluster: shares of the units as an array of jobs, by the launcher of the runs.

A share's state is the parts that it has made, so a job that was warned, preempted or lost is simply
started again, and a driver that was killed finds its live jobs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scaling.checkpoint import STOP, Interrupted
from scaling.config.schema import LaunchConfig
from scaling.data.encode import Mapper, Work
from scaling.data.sources import Unit
from scaling.errors import UserError
from scaling.jobs.job import Job
from scaling.jobs.launch import Launcher
from scaling.study_folder import Study


@dataclass(frozen=True, eq=False)
class Share:
    """What one job does."""

    work: Work
    units: tuple[Unit, ...]


def encode_share(share: Share, folder: Path) -> None:
    """Make the parts of a share; a warned job stops between two units. Raises Interrupted."""
    for done, unit in enumerate(share.units):
        if STOP:
            raise Interrupted(f"{folder.name}: stopped after {done} of {len(share.units)} units")
        share.work([unit])


def on_cluster(launch: LaunchConfig, study: Study) -> Mapper:
    """The mapper of `prepare` for `launch.cluster: slurm`: a job (a core, a GPU if any) a share.

    The study's folder of jobs has submitit's files, as for runs, and another the logs while there
    is work. The mapper raises UserError where a job failed.
    """
    extra = {k: v for k, v in launch.extra.items() if k.replace("_", "-") != "ntasks-per-node"}
    one = {"gpus": min(1, launch.gpus), "nodes": 1, "extra": extra}
    # A unit is decoded by one thread: more cores (launch.threads, for training) would stand idle.
    single = launch.model_copy(update={**one, "threads": 1})

    def mapper(work: Work, lists: Sequence[list[Unit]]) -> Iterator[int]:
        logs = study.encode_dir.resolve()
        jobs = [
            Job(Share(work, tuple(units)), logs / f"{number:05d}")
            for number, units in enumerate(lists)
        ]
        with Launcher(single, study.jobs_dir, function=encode_share) as launcher:
            for finished in launcher.map(jobs):
                if finished.error:
                    raise UserError(f"encoding on the cluster: {finished.error}")
                yield 1
        for job in jobs:
            shutil.rmtree(job.run_dir, ignore_errors=True)
        with suppress(OSError):  # something of the user's is there too
            logs.rmdir()

    return mapper
