"""Figure 9 as the paper ran it, and its copy for two cores: the same structure, planned."""

from pathlib import Path

import pytest

from scaling.config.study_file import load_study
from scaling.models.family import PRINTED_PARAMETERS, named, shape
from scaling.plan.cost import study_cost
from scaling.plan.runs import ladder_runs
from scaling.plan.sweeps import sweeps

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"


@pytest.mark.parametrize("name", ["figure9", "figure9_small"])
def test_vqgan_tokens_cosine_and_the_sizes_of_table_15(name: str) -> None:
    config = load_study(SWEEPS / f"{name}.yaml")
    assert config.ladder is not None and config.tokenizer.kind == "vqgan"
    assert config.train.schedule == "cosine" and config.model.parametrization == "mup"
    assert {shape(named(size)) for size in config.ladder.sizes} == {"mqa-ff5.33"}
    assert [one.shape for one in sweeps(config)] == ["mqa-ff5.33"], "the rate is that of its shape"
    runs, left = ladder_runs(config, 2.0**-7, "key", Path())
    pairs = {(run.model.name, run.budgets_macs) for run in runs}
    assert len(pairs) == len(runs) and all(len(budgets) == 1 for _, budgets in pairs)
    asked = len(config.ladder.sizes) * len(config.ladder.budgets_macs)
    assert len(runs) + len(left) == asked


def test_the_parameters_are_those_that_the_paper_prints() -> None:
    costs, _ = study_cost(load_study(SWEEPS / "figure9.yaml"), threads=1, measure=False)
    found = {cost.size: cost.params for cost in costs if cost.role == "ladder"}
    assert list(found) == [f"table15-a{k}" for k in range(1, 7)]
    for size, params in found.items():
        assert params == pytest.approx(PRINTED_PARAMETERS[size], rel=0.018)


@pytest.mark.parametrize("name", ["figure9", "toto_slurm"])
def test_no_size_holds_most_of_the_compute(name: str) -> None:
    """The top budget is one that three sizes spend within the most tokens that a run may see."""
    config = load_study(SWEEPS / f"{name}.yaml")
    assert config.ladder is not None
    costs, left = study_cost(config, threads=1, measure=False)
    macs = {cost.size: cost.macs for cost in costs if cost.role == "ladder"}
    assert max(macs.values()) < 0.4 * sum(macs.values())
    top = config.ladder.budgets_macs[-1]
    assert len({one.size for one in left if one.budget_macs == top}) == len(macs) - 3
