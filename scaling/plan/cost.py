"""What the runs of a study will cost: memory, GPUs, time, disk; and the limits that were set."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scaling.analysis.questions.rounds import MOST_SEEDS
from scaling.config.run import RunConfig
from scaling.config.schema import LaunchConfig, StudyConfig, variant_studies
from scaling.errors import UserError
from scaling.models.family import ModelConfig
from scaling.models.macs import parameter_counts
from scaling.plan.runs import (
    Left,
    context,
    data_of,
    every_cell,
    ladder_model,
    ladder_runs,
    ladder_space,
    path_macs,
    step_macs,
    undecided_macs,
    united,
)
from scaling.plan.sweeps import grid_runs, ladders_at, sweep_run, sweeps

LATER = "later"  # role of what a ladder that places its own runs has not decided on
USABLE = 0.9  # of a GPU's memory: the allocator's fragments and the libraries take the rest


def rank_bytes(run: RunConfig, ranks: int) -> int:
    """Memory of one of several ranks that share a run's batch, and its weights too with FSDP."""
    from scaling.models.memory import training_bytes

    need = training_bytes(
        run.model,
        max(1, (run.micro_batch or run.batch) // ranks),
        bf16=run.precision == "bf16",
        recompute=run.recompute,
        shards=ranks if run.parallel == "fsdp" else 1,
    )
    return sum(need.values())


def gpus_of(launch: LaunchConfig, run: RunConfig) -> int:
    """GPUs per node of a run: `launch.gpus`, or with `launch.gpu_memory_gb` the fewest it fits on.

    Raises UserError when it does not fit on all of them, or its batch does not divide among them.
    """
    if launch.cluster != "slurm":  # one process a run
        return min(1, launch.gpus)
    sequences = run.micro_batch or run.batch
    allowed = [n for n in range(1, max(1, launch.gpus) + 1) if max(1, launch.gpus) % n == 0]
    counts = [n for n in allowed if sequences % (n * launch.nodes) == 0]
    if launch.gpu_memory_gb is None or launch.gpus == 0:
        if allowed[-1] not in counts:
            raise UserError(
                f"{run.model.name}: {sequences} sequences of a forward pass do not divide among "
                f"{allowed[-1]} tasks on each of {launch.nodes} nodes; change train.batch (or "
                f"train.micro_batch), launch.gpus or launch.nodes"
            )
        return launch.gpus
    for count in counts:
        if rank_bytes(run, count * launch.nodes) <= USABLE * launch.gpu_memory_gb * 1e9:
            return count
    most = max(counts, default=1)
    raise UserError(
        f"{run.model.name} needs {rank_bytes(run, most * launch.nodes) / 1e9:.1f} GB on each of "
        f"{most} GPUs of {launch.nodes} nodes; of launch.gpu_memory_gb {launch.gpu_memory_gb:g} "
        f"{USABLE:.0%} can be used. Try train.recompute: true, a smaller train.micro_batch, "
        f"train.parallel: fsdp, or more GPUs (they must divide the batch)"
    )


def measure_step_seconds(
    model: ModelConfig, batch: int, precision: str, threads: int, kind: str = "adamw"
) -> float:
    """Seconds of one training step here: median of 3 on random data, after a warm-up."""
    import torch

    from scaling.models.parametrization import build, optimizer

    before = torch.get_num_threads()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(threads)
    try:
        net = build(model, seed=0, device=device)
        optim = optimizer(net, lr=1e-3, weight_decay=0.1, kind=kind)
        inputs, targets = (
            torch.rand(batch, model.context, values, device=device)
            if values
            else torch.randint(0, model.vocab, (batch, model.context), device=device)
            for values in (model.patch_inputs, model.patch_targets)
        )
        times = []
        for _ in range(4):
            start = time.perf_counter()
            with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
                loss = net.loss(inputs, targets)
            loss.backward()
            optim.step()
            optim.zero_grad(set_to_none=True)
            loss.item()
            times.append(time.perf_counter() - start)
        return sorted(times[1:])[1]
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Cost:
    """What one group of equal runs costs. Seconds are None where they were not measured."""

    role: str
    size: str
    params: int
    runs: int
    steps: int
    tokens: int
    macs: int
    bytes_memory: int  # of each rank
    gpus: int  # of a run, on each of its nodes
    seconds: float | None


MEASURABLE_MACS = 2e11  # a step beyond this takes more than seconds on a small machine


def study_cost(
    config: StudyConfig, *, threads: int, measure: bool, log: Callable[[str], None] = lambda _: None
) -> tuple[list[Cost], list[Left]]:
    """The cost of every group of runs of a study. Raises UserError as the study itself would."""
    runs: list[RunConfig] = []
    for sweep in sweeps(config):
        runs += grid_runs(config, sweep)
    check_ladders(config)
    left: list[Left] = []
    ladder: list[RunConfig] = []
    for one in variant_studies(config).values():
        rate = one.ladder.log2_lr if one.ladder else None
        of_one, left_of_one = ladder_runs(one, 2.0 ** (rate or 0), data_of(one), Path())
        ladder += of_one
        left += left_of_one
    groups: dict[tuple[str, ModelConfig], list[RunConfig]] = {}
    for run in [*runs, *united(ladder).values()]:  # variants may share runs
        groups.setdefault((run.role, run.model), []).append(run)
    costs = []
    for (role, model), members in groups.items():
        name, batch = model.name, members[0].batch
        gpus = gpus_of(config.launch, members[0])
        ranks = max(1, gpus) * (config.launch.nodes if config.launch.cluster == "slurm" else 1)
        macs = sum(path_macs(r) for r in members)
        steps = macs // step_macs(model, batch)
        seconds = None
        if measure and step_macs(model, batch) <= MEASURABLE_MACS:
            log(f"measuring a step of {name} ({role})")
            seconds = steps * measure_step_seconds(
                model, batch, members[0].precision, threads, members[0].optimizer
            )
        costs.append(
            Cost(
                role=role,
                size=name,
                params=parameter_counts(model)["all"],
                runs=len(members),
                steps=steps,
                tokens=steps * batch * model.context,
                macs=macs,
                bytes_memory=rank_bytes(members[0], ranks),
                gpus=gpus,
                seconds=seconds,
            )
        )
    if undecided := undecided_macs(config, ladder):
        costs.append(_later(undecided, [c for c in costs if c.role == "ladder"]))
    return costs, left


def check_ladders(config: StudyConfig) -> None:
    """Raises UserError where a run of the ladder, or one whose setting a sampler chooses, cannot
    be at whichever setting is chosen."""
    for sweep in sweeps(config):
        if sweep.asked.searches:
            for setting in sweep.asked.over.corners():
                for member in sweep.asked.members:
                    sweep_run(config, sweep, member, 1.0, "", Path(), setting)
    for at in ladders_at(config):
        for one in variant_studies(at).values():
            try:
                for run in ladder_runs(one, 1.0, "", Path(), every_cell(one))[0]:
                    gpus_of(config.launch, run)
            except UserError as error:
                if at is config:
                    raise
                raise UserError(
                    f"lr.over: with batch {at.train.batch}, warmup_steps {at.train.warmup_steps} "
                    f"and cooldown {at.train.cooldown:g} for the ladder: {error}"
                ) from None


def _later(macs: int, begin: list[Cost]) -> Cost:
    """What a ladder that places its own runs spends after its first round, whose pace it has."""
    seconds = [c.seconds for c in begin if c.seconds is not None]
    pace = sum(seconds) / sum(c.macs for c in begin) if len(seconds) == len(begin) else None
    return Cost(
        role=LATER, size="", params=0, runs=0, steps=0, tokens=0, macs=macs, bytes_memory=0,
        gpus=0, seconds=None if pace is None else pace * macs,
    )  # fmt: skip


def must_time(launch: LaunchConfig) -> bool:
    """Whether a limit in GPU-hours can only be judged by timing steps here."""
    return launch.max_gpu_hours is not None and launch.gpu_macs_per_second is None


def gpu_hours(launch: LaunchConfig, costs: list[Cost]) -> float | None:
    """GPU-hours of a study if its runs scale perfectly over their GPUs; None where nothing tells.

    By `launch.gpu_macs_per_second`, else by steps that were timed on a GPU of this machine.
    """
    if launch.gpu_macs_per_second is not None:
        return sum(c.macs for c in costs) / launch.gpu_macs_per_second / 3600
    import torch

    seconds = [c.seconds for c in costs if c.seconds is not None]
    if not torch.cuda.is_available() or len(seconds) < len(costs):
        return None
    return sum(seconds) / 3600


def over_budget(launch: LaunchConfig, costs: list[Cost]) -> list[str]:
    """How a plan goes beyond `launch.max_macs` and `launch.max_gpu_hours`; empty when it does not.

    Raises UserError for a limit in GPU-hours where the speed of a GPU is not known.
    """
    macs = sum(c.macs for c in costs)
    over = []
    if launch.max_macs is not None and macs > launch.max_macs:
        over.append(f"{macs:.3g} training MACs, launch.max_macs is {launch.max_macs:.3g}")
    if launch.max_gpu_hours is not None:
        hours = gpu_hours(launch, costs)
        if hours is None:
            raise UserError(
                f"launch.max_gpu_hours is {launch.max_gpu_hours:g}, but the speed of a GPU is not "
                f"known: none here can be timed. Set launch.gpu_macs_per_second (half of the "
                f"FLOP/s that one GPU sustains in training), or limit launch.max_macs instead"
            )
        if hours > launch.max_gpu_hours:
            over.append(
                f"about {hours:.3g} GPU-hours, launch.max_gpu_hours is {launch.max_gpu_hours:g}"
            )
    return over


def disk_bytes(config: StudyConfig, costs: list[Cost]) -> int:
    """Shards (2 bytes a token, 3 a stored pixel), the weights of every budget, fp32, and the states
    (two moments as well) from which a trunk goes on to others."""
    total = 0
    for one in {data_of(one): one for one in variant_studies(config).values()}.values():
        data = one.data
        sequences = (data.train_sequences + data.val_sequences) * len(data.sources)
        a_sequence = 2 * (context(one) + 1) + 3 * data.frames * data.size**2 * data.pixels
        total += a_sequence * sequences
    grows = config.train.schedule == "wsd" and config.ladder is not None
    budgets = len(config.ladder.budgets_macs) if config.ladder else 0
    if config.ladder and config.ladder.macs:  # at most: every size to every budget
        names, space = ladder_space(config)
        for name, steps in zip(names, space.steps, strict=True):
            params = parameter_counts(ladder_model(config, name))["all"]
            total += 16 * params * MOST_SEEDS * int((steps > 0).sum())
    each = {"ladder": 16 * budgets} if grows else {}
    return total + sum(each.get(c.role, 4) * c.params * c.runs for c in costs)


def free_bytes(folder: Path) -> int:
    """Free space of the device that holds a folder (or its first existing parent)."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
