"""The command that says what a study will cost, and what is left of it. Imports are lazy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scaling.errors import note

if TYPE_CHECKING:
    from scaling.config.schema import LaunchConfig, StudyConfig
    from scaling.plan.cost import Cost

ConfigArg = Annotated[
    Path,
    typer.Argument(
        help="A study: a YAML file, the name of one that ships, or a started one's folder."
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder that holds all studies; default: studies.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change one value: section.key=value; sources by name: data.sources.clips.path=DIR.",
    ),
]


def plan(
    config: ConfigArg,
    out: OutOption = None,
    set_: SetOption = None,
    measure: Annotated[
        bool, typer.Option(help="Time a step of each size, and a few files' encoding, here.")
    ] = True,
    page: Annotated[
        Path | None,
        typer.Option(help="Also write this, without what is of this machine, to a Markdown file."),
    ] = None,
) -> None:
    """Say what a study will cost, before anything starts: runs, tokens, MACs, memory, time, disk.

    Of a study that was begun, also what is left.

    Example: `scaling plan sweeps/quickstart.yaml`
    """
    from scaling.jobs.launch import check, resources
    from scaling.plan import encode_cost, token_cost
    from scaling.plan.cost import over_budget, study_cost
    from scaling.storage import outputs
    from scaling.study.growth import left_of
    from scaling.study.status import left
    from scaling.study_folder import choose

    if page is not None:
        outputs.claim("scaling plan", page, inputs=[config])
    chosen, study = choose(config, out, set_ or ())
    launch = chosen.launch
    parallel, threads = resources(launch)
    costs, left_out = study_cost(chosen, threads=threads, measure=measure, log=note)
    told = [f"study {chosen.study}: {parallel} jobs at once, {threads} threads each"]
    told += _table(launch, costs) + _remarks(chosen, costs)
    told += [f"left out: {x.size} at {x.budget_macs:.3g} MACs: {x.rule}" for x in left_out]
    told += _totals(launch, costs, measure, parallel)
    told += token_cost.lines(chosen, costs)
    print("\n".join(told), flush=True)
    if measure:
        print("\n".join(encode_cost.lines(chosen, parallel)), flush=True)
    if page is not None:
        text = outputs.signed("scaling plan", token_cost.page(config, page, told))
        outputs.write("scaling plan", page, text)
    if chosen.ladder and chosen.train.schedule == "cosine":
        print(
            "cosine: a budget that is added later is trained from its first step, for its length "
            "is part of the schedule; wsd goes on from where it is"
        )
    _say_disk(chosen, costs, study.folder)
    if study.plan_json.exists():
        print(f"left: {left(study) if study.says(chosen) else left_of(chosen, study)}")
    over = over_budget(launch, costs)
    for line in over:
        print(f"over budget: {line}; `scaling study` starts it only with --yes")
    if not over and (launch.max_macs or launch.max_gpu_hours):
        print("within its budget")
    if launch.cluster == "slurm" and shutil.which("sbatch") is None:
        print("Slurm was not asked whether it takes these jobs: there is no `sbatch` here")
        return
    check(launch, study.folder)
    if launch.cluster == "slurm":
        print("Slurm would take these jobs")


def _say_disk(config: StudyConfig, costs: list[Cost], folder: Path) -> None:
    from scaling.plan.cost import disk_bytes, free_bytes

    disk, free = disk_bytes(config, costs), free_bytes(folder)
    print(f"disk: {_bytes(disk)}; free: {_bytes(free)}")
    if disk > free:
        print(
            f"beware: this study does not fit the disk of {folder}; free some of it, choose "
            f"another --out, or ask for fewer sequences and budgets"
        )


def _table(launch: LaunchConfig, costs: list[Cost]) -> list[str]:
    """A line for each group of equal runs."""
    from scaling.plan.cost import LATER

    wide = max(12, *(len(c.size) + 2 for c in costs if "=" in c.size), 0)  # of a setting
    head = (
        f"{'':10}{'size':>{wide}}{'params':>14}{'runs':>6}{'steps':>10}{'tokens':>12}{'MACs':>12}"
    )
    lines = [head + f"{'memory':>10}{'time':>10}"]
    for c in costs:
        if c.role == LATER:
            continue
        time = "not timed" if c.seconds is None else _duration(c.seconds)
        lines.append(
            f"{c.role:10}{c.size:>{wide}}{c.params:>14,}{c.runs:>6}{c.steps:>10,}{c.tokens:>12.3g}"
            f"{c.macs:>12.3g}{_bytes(c.bytes_memory):>10}{time:>10}"
            + (f"  on {c.gpus} GPUs" if c.gpus and launch.cluster == "slurm" else "")
        )
    if launch.gpus and launch.gpu_memory_gb:
        lines.append(
            f"GPUs: the fewest whose {launch.gpu_memory_gb:g} GB hold a run (memory: of each)"
        )
    return lines


def _remarks(config: StudyConfig, costs: list[Cost]) -> list[str]:
    """What to know of the ladder's runs beside their cost."""
    return _settings(config) + _placed(config, costs) + _other_batches(config)


def _settings(config: StudyConfig) -> list[str]:
    """What is swept beside the rate, and what that means for the ladder."""
    if not (config.lr and config.lr.over.given):
        return []
    over = config.lr.over.given
    how = f"{len(config.lr.over.settings())} settings, each with a sweep of the rate"
    if config.lr.searches:
        how = f"{config.lr.count} trials by {config.lr.sampler}, which chooses them and the rate"
    lines = [
        f"swept together with the rate: {', '.join(over)} ({how}); every run sees as many "
        f"sequences. The ladder above is at `train`'s own values and will have the best setting's"
    ]
    if config.lr.seeds == 1:
        lines.append(
            "beware: one seed a point: settings are told apart by the scatter about the rate's "
            "parabolas alone"
            + (", and a sampler's not at all" if config.lr.searches else "")
            + "; lr.seeds: 3 measures it"
        )
    return lines


def _other_batches(config: StudyConfig) -> list[str]:
    """Sizes whose rate is found at another batch than theirs."""
    own = config.ladder.batch if config.ladder and config.lr else {}
    others = [f"{name} at {b}" for name, b in own.items() if b != config.train.batch]
    return [
        f"beware: the sweep finds the rate at train.batch {config.train.batch}, and the best one "
        f"depends on the batch; trained with that rate: {', '.join(others)}"
    ] * bool(others)


def _placed(config: StudyConfig, costs: list[Cost]) -> list[str]:
    """What a ladder that places its own runs decides later."""
    from scaling.plan.cost import LATER
    from scaling.plan.runs import ladder_space

    later = sum(c.macs for c in costs if c.role == LATER)
    if not later or config.ladder is None:
        return []
    names, space = ladder_space(config)
    sizes = [name for name, steps in zip(names, space.steps, strict=True) if steps.any()]
    return [
        f"later: the ladder's runs above are its first round; {later:.3g} MACs more are placed by "
        f"their losses, round by round, among {', '.join(sizes)} at "
        f"{', '.join(f'{b:.3g}' for b in space.budgets)} MACs (design.json says each with its "
        f"reason). Their number, tokens and memory are not known before"
    ]


def _totals(launch: LaunchConfig, costs: list[Cost], measured: bool, parallel: int) -> list[str]:
    """The whole: runs, tokens, MACs, time, GPU-hours."""
    from scaling.plan.cost import gpu_hours

    macs = sum(c.macs for c in costs)
    lines = [
        f"total: {sum(c.runs for c in costs)} runs, {sum(c.tokens for c in costs):.3g} tokens, "
        f"{macs:.3g} training MACs (3 x forward; {2 * macs:.3g} FLOPs, "
        f"{2 * macs / 8.64e19:.2g} PF-days)"
    ]
    timed = [c.seconds for c in costs if c.seconds is not None]
    if len(timed) == len(costs):
        on = "on this machine"
        if launch.cluster == "slurm":
            on = f"by {parallel} jobs at once, each as fast as this machine"
        lines.append(f"time: about {_duration(sum(timed) / parallel)} of training {on}")
    elif measured:
        lines.append(
            "time: not estimated for the sizes whose single step is too large to time here"
        )
    if (hours := gpu_hours(launch, costs)) is not None:
        lines.append(f"GPUs: about {hours:.3g} GPU-hours")
    return lines


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} PB"
