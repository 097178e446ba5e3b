"""The runs of a study, before anything starts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaling.analysis.questions.rounds import Cell, Space, propose
from scaling.analysis.schema import Setting
from scaling.config.ladder import LadderConfig
from scaling.config.run import RunConfig
from scaling.config.schedule import branch, length, segments
from scaling.config.schema import StudyConfig
from scaling.errors import UserError
from scaling.jobs.machine import computes_in_bf16
from scaling.models.family import SPECIAL_TOKENS, ModelConfig, named, shape
from scaling.models.macs import forward_macs, parameter_counts

TOP = 7  # of a ladder's MACs, the part that its largest budget may have: three sizes take half
DOUBLINGS = 5, 4  # of the smallest budget: where none is given; and at least, which is 1.2 decades
MIN_STEPS_PER_WARMUP = 2  # a budget shorter than this many warm-ups is not a point on a frontier


@dataclass(frozen=True)
class Left:
    """A (size, budget) pair that the plan leaves out, and by which rule."""

    size: str
    budget_macs: float
    rule: str


def data_of(config: StudyConfig) -> str:
    """What a study's tokens are made by; variants that agree in it share them."""
    return config.model_dump_json(include={"data", "tokenizer"})


def vocab(config: StudyConfig) -> int:
    """Codes and special tokens."""
    return config.tokenizer.codes + SPECIAL_TOKENS


def context(config: StudyConfig) -> int:
    """Positions of a training sequence: start token and codes predict codes and end token.

    With patches as targets there is no end to predict.
    """
    codes = config.data.frames * (config.data.size // config.tokenizer.patch) ** 2
    return codes + (config.model.targets == "tokens")


def _patches(config: StudyConfig) -> dict[str, Any]:
    """What a model reads and predicts: values of a patch, 0 for tokens."""
    values = 3 * config.tokenizer.patch**2
    return {
        "patch_inputs": values * (config.model.inputs == "patches"),
        "patch_targets": values * (config.model.targets == "patches"),
    }


def ladder_model(config: StudyConfig, name: str) -> ModelConfig:
    """A size of the family with the study's vocabulary, context and parametrisation.

    Raises UserError where muP's base width cannot have its shape.
    """
    return in_study(config, named(name), config.model.parametrization)


def with_setting(config: StudyConfig, setting: Setting) -> StudyConfig:
    """The study with these values in its `train`."""
    if not setting:
        return config
    return config.model_copy(update={"train": config.train.model_copy(update=dict(setting))})


def in_study(config: StudyConfig, model: ModelConfig, parametrization: str) -> ModelConfig:
    """A model as the study has it. Raises UserError as `ladder_model` does."""
    patches = any(_patches(config).values())
    model = dataclasses.replace(
        model, tied=model.tied and not patches, **_shared(config, parametrization)
    )
    if model.parametrization == "mup":
        try:
            model.at_width(model.base_width)
        except UserError as error:
            raise UserError(
                f"model.base_width {model.base_width} cannot be the muP base of {model.name}: "
                f"{error}"
            ) from None
    return model


def _shared(config: StudyConfig, parametrization: str) -> dict[str, Any]:
    """What all models of a study have in common."""
    depth_too = parametrization == "completep"
    return {
        "vocab": vocab(config),
        "context": context(config),
        "parametrization": "mup" if depth_too else parametrization,
        "base_width": config.model.base_width,
        "base_layers": config.model.base_layers if depth_too else 0,
        "rope_base": config.model.rope_base,
        **_patches(config),
    }


def step_macs(model: ModelConfig, batch: int) -> int:
    """Training MACs of one optimizer step: 3 x forward x sequences."""
    return 3 * batch * sum(forward_macs(model, model.context).values())


def path_macs(run: RunConfig) -> int:
    """MACs that a run really spends, cooldown branches included."""
    return length(segments(run)) * step_macs(run.model, run.batch)


def united(runs: Iterable[RunConfig]) -> dict[str, RunConfig]:
    """Runs by name. What is asked of one by several (variants, say) is asked of it together."""
    found: dict[str, RunConfig] = {}
    for run in runs:
        there = found.get(run.run_id, run)
        budgets = sorted(
            {b for r in (there, run) for b in zip(r.budgets_steps, r.budgets_macs, strict=True)}
        )
        steps, macs = zip(*budgets, strict=True)
        found[run.run_id] = dataclasses.replace(there, budgets_steps=steps, budgets_macs=macs)
    return found


def batch_of(config: StudyConfig, name: str) -> int:
    """Sequences of a step of one of the ladder's sizes."""
    return (config.ladder.batch if config.ladder else {}).get(name, config.train.batch)


def run_of(
    config: StudyConfig, model: ModelConfig, budgets: list[float], **fields: Any
) -> RunConfig:
    """The run that spends these MACs, trained as the study says. fields: of `RunConfig`."""
    if fields["role"] == "ladder":
        fields["batch"] = batch_of(config, model.name)
    per_step = step_macs(model, fields.get("batch", config.train.batch))
    shared = {
        name: getattr(config.train, name)
        for name in (
            "batch", "optimizer", "schedule", "warmup_steps", "cooldown", "weight_decay",
            "beta1", "beta2", "grad_clip", "evals", "checkpoint_seconds", "micro_batch",
            "recompute", "compile", "parallel",
        )
    }  # fmt: skip
    settings = shared | fields
    return RunConfig(
        model=model,
        budgets_steps=tuple(max(1, round(b / per_step)) for b in budgets),
        budgets_macs=tuple(budgets),
        precision=_precision(config),
        study=config.study,
        **settings,
    )


def _precision(config: StudyConfig) -> str:
    if config.train.precision != "auto":
        return config.train.precision
    if config.launch.cluster == "slurm":  # its login node need not have the GPUs of its jobs
        return "bf16" if config.launch.gpus else "fp32"
    return "bf16" if computes_in_bf16() else "fp32"


def ladder_runs(
    config: StudyConfig,
    lr: float | Mapping[str, float],
    data_key: str,
    data_dir: Path,
    cells: Collection[Cell] | None = None,
) -> tuple[list[RunConfig], list[Left]]:
    """The runs of the ladder, if any, and the pairs left out, each with its rule.

    lr: the rate, or that of each shape of its sizes.
    cells: of a ladder that places its own runs: what was decided; None: its first round.
    With `wsd` one run of a size serves all its budgets; with `cosine` each budget is a run.
    """
    if config.ladder is None:
        return [], []
    asked, left = _asked(config, config.ladder, cells)
    runs = [
        run_of(
            config,
            ladder_model(config, name),
            group,
            role="ladder",
            lr=lr if isinstance(lr, float) else lr[shape(named(name))],
            seed=config.seed + repeat,
            data_key=data_key,
            data_dir=str(data_dir),
        )
        for (name, repeat), budgets in asked.items()
        for group in ([budgets] if config.train.schedule == "wsd" else [[b] for b in budgets])
    ]
    if not runs:
        rules = "; ".join(f"{x.size} at {x.budget_macs:g}: {x.rule}" for x in left[:4])
        raise UserError(f"ladder: no (size, budget) pair is left to train ({rules})")
    return runs, left


def _asked(
    config: StudyConfig, ladder: LadderConfig, cells: Collection[Cell] | None
) -> tuple[dict[tuple[str, int], list[float]], list[Left]]:
    """(size, seed counted from that of the study) -> budgets; and the pairs left out."""
    asked: dict[tuple[str, int], list[float]] = {}
    if ladder.macs is not None:
        sizes, space = ladder_space(config)
        first = propose(space, {}) if cells is None else None
        for cell in sorted(first.cells if first else cells or ()):
            key = (sizes[cell.size], cell.seed)
            asked.setdefault(key, []).append(float(space.budgets[cell.budget]))
        return asked, []
    left: list[Left] = []
    for name in ladder.sizes:
        model = ladder_model(config, name)
        rules = {b: _rule_against(config, model, b) for b in ladder.budgets_macs}
        left += [Left(name, budget, rule) for budget, rule in rules.items() if rule]
        if kept := [budget for budget, rule in rules.items() if not rule]:
            asked |= {(name, repeat): kept for repeat in range(ladder.seeds)}
    return asked, left


def ladder_space(config: StudyConfig) -> tuple[list[str], Space]:
    """The sizes and budgets among which a ladder of `macs` places its runs; names of the sizes.

    Raises UserError: so little compute buys no law.
    """
    ladder = config.ladder
    assert ladder is not None and ladder.macs is not None
    by_size = {name: ladder_model(config, name) for name in ladder.sizes}
    counts = {name: parameter_counts(model)["matmul_head"] for name, model in by_size.items()}
    names = sorted(by_size, key=counts.__getitem__)
    top = ladder.macs / TOP
    first = ladder.first_macs or top / 2 ** DOUBLINGS[0]
    doublings = max(0, math.floor(math.log2(top / first) + 1e-9))
    budgets, steps, branches = [], [], []
    for budget in (first * 2**k for k in range(doublings + 1)):
        runs = [
            run_of(config, by_size[name], [budget], role="ladder", lr=1.0, data_key="")
            for name in names
        ]
        kept = [not _rule_against(config, run.model, budget) for run in runs]
        if sum(kept) >= 3:
            budgets.append(budget)
            steps.append([r.budgets_steps[0] * k for r, k in zip(runs, kept, strict=True)])
            branches.append([branch(r, r.budgets_steps[0]) for r in runs])
    least = DOUBLINGS[1] + 1
    if len(budgets) < least:
        enough = f" (from {budgets[0]:.3g} on: {1.01 * TOP * 2 ** DOUBLINGS[1] * budgets[0]:.3g})"
        raise UserError(
            f"ladder.macs {ladder.macs:g}: too small for a law. Its largest budget is a seventh of "
            f"that, {top:.3g}, and of the doublings from {first:.3g} up to there {len(budgets)} "
            f"have three sizes of {', '.join(names)} that the rules of warm-up and tokens let "
            f"through; a law takes {least}. Give more MACs{enough if budgets else ''}, smaller "
            f"sizes or a shorter train.warmup_steps"
        )
    return names, Space(
        params=np.array([counts[n] for n in names], float),
        budgets=np.array(budgets),
        step_macs=np.array([step_macs(by_size[n], batch_of(config, n)) for n in names]),
        steps=np.array(steps).T,
        branches=np.array(branches).T,
        macs=ladder.macs,
    )


def every_cell(config: StudyConfig) -> list[Cell] | None:
    """Every size at every budget at which a ladder of `macs` may train it; None for another."""
    if config.ladder is None or config.ladder.macs is None:
        return None
    sizes, budgets = ladder_space(config)[1].steps.nonzero()
    return [Cell(i, 0, k) for i, k in zip(sizes.tolist(), budgets.tolist(), strict=True)]


def undecided_macs(config: StudyConfig, ladder: Iterable[RunConfig]) -> int:
    """MACs of runs that a ladder which places its own has not decided on, beside these of it."""
    if config.ladder is None or config.ladder.macs is None:
        return 0
    return max(0, int(config.ladder.macs) - sum(map(path_macs, ladder)))


def _rule_against(config: StudyConfig, model: ModelConfig, budget: float) -> str:
    """Why a pair is not trained, or ''. The rules are fixed before any result is known."""
    run = run_of(config, model, [budget], role="ladder", lr=1.0, data_key="")
    if short := too_short(run, 0):
        return short
    tokens = run.budgets_steps[0] * run.batch * model.context
    if config.ladder and config.ladder.max_tokens and tokens > config.ladder.max_tokens:
        return f"{tokens:.3g} tokens, above ladder.max_tokens {config.ladder.max_tokens:.3g}"
    if config.ladder and config.ladder.tokens_per_param:
        low, high = config.ladder.tokens_per_param
        ratio = tokens / parameter_counts(model)["matmul_head"]
        if not low <= ratio <= high:
            return (
                f"{ratio:.3g} tokens per parameter, outside ladder.tokens_per_param "
                f"[{low:g}, {high:g}]"
            )
    return ""


def too_short(run: RunConfig, index: int) -> str:
    """Why a run has no such budget, or ''."""
    steps, warmup = run.budgets_steps[index], run.warmup_steps
    least = max(10, math.ceil(MIN_STEPS_PER_WARMUP * warmup / (1 - run.cooldown)))
    return (
        f"{steps} steps, fewer than {least} ({MIN_STEPS_PER_WARMUP} warm-ups)"
        if steps < least
        else ""
    )
