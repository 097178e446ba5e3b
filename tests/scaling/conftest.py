"""A data directory and runs small enough to train in a second."""

from pathlib import Path

import pytest
import torch

from scaling.config.run import RunConfig
from scaling.config.schema import DataConfig, SourceConfig, TokenizerConfig
from scaling.data.encode import prepare
from scaling.data.shards import TokenData
from scaling.models.family import size


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generated sources of 2 frames of 8x8 px: 9 positions a sequence, 20 tokens."""
    data = DataConfig(
        sources=(
            SourceConfig(name="near", kind="leaves", weight=3.0),
            SourceConfig(name="far", kind="leaves", weight=1.0),
        ),
        frames=2,
        size=8,
        train_sequences=256,
        val_sequences=8,
    )
    tokenizer = TokenizerConfig(patch=4, codes=16, fit_frames=200)
    return prepare(data, tokenizer, tmp_path_factory.mktemp("data"), seed=0)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here and in child processes: the last digits depend on the number of threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)


@pytest.fixture
def run(data_dir: Path) -> RunConfig:
    """Three budgets on one WSD trunk: 60 steps of trunk and three branches."""
    data = TokenData.open(data_dir)
    return RunConfig(
        model=size(16, 1, 2, vocab=data.vocab, context=data.context, base_width=16),
        data_key=data.key,
        data_dir=str(data_dir),
        role="ladder",
        lr=2.0**-6,
        budgets_steps=(25, 45, 75),
        budgets_macs=(1e6, 2e6, 3e6),
        batch=4,
        warmup_steps=5,
        evals=3,
        study="test",
    )
