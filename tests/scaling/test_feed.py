"""What models read and predict: Table 3's six pairs, from the configuration to a trained run."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from scaling.checkpoint import Interrupted, StopFlag
from scaling.config.run import RunConfig
from scaling.config.schema import DataConfig, SourceConfig, StudyConfig, TokenizerConfig
from scaling.config.study_file import load_study
from scaling.data import feed
from scaling.data.encode import prepare
from scaling.data.shards import SPECIALS, TokenData
from scaling.errors import UserError
from scaling.models.tokenizers.codebook import Codebook
from scaling.plan import runs as plan
from scaling.results import loss_unit
from scaling.training.train import train

STUDY = """\
study: table3
data:
  frames: 1
  size: {size}
  pixels: true
  sources: [{{name: leaves, kind: leaves}}]
tokenizer: {{kind: {kind}, patch: {patch}, codes: {codes}}}
model: {{inputs: {inputs}, targets: {targets}}}
ladder: {{sizes: [large], budgets_macs: [1e18], log2_lr: -7}}
"""


@pytest.mark.parametrize(
    ("kind", "size", "patch", "codes", "inputs", "targets", "positions", "reads", "predicts"),
    [
        ("vqgan", 256, 16, 16384, "tokens", "tokens", 257, 0, 0),
        ("vqgan", 256, 16, 1024, "tokens", "tokens", 257, 0, 0),
        ("dvae", 256, 8, 8192, "tokens", "tokens", 1025, 0, 0),
        ("dvae", 128, 8, 8192, "tokens", "tokens", 257, 0, 0),
        ("codebook", 256, 16, 16384, "patches", "patches", 256, 768, 768),
        ("dvae", 128, 8, 8192, "patches", "tokens", 257, 192, 0),
    ],
)
def test_the_pairs_of_table_3(
    tmp_path: Path,
    kind: str,
    size: int,
    patch: int,
    codes: int,
    inputs: str,
    targets: str,
    positions: int,
    reads: int,
    predicts: int,
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(**locals()))
    config = load_study(file)
    ((run,), left) = plan.ladder_runs(config, 2.0**-7, "", Path())
    assert (run.model.context, run.model.vocab) == (positions, codes + SPECIALS) and not left
    assert (run.model.patch_inputs, run.model.patch_targets) == (reads, predicts)
    file.write_text(file.read_text().replace("pixels: true", "pixels: false"))
    if reads:
        with pytest.raises(UserError, match=r"set data\.pixels: true"):
            load_study(file)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenData:
    data, tokenizer = _study().data, _study().tokenizer
    return TokenData.open(prepare(data, tokenizer, tmp_path_factory.mktemp("data"), seed=0))


def _study(inputs: str = "patches", targets: str = "patches") -> StudyConfig:
    sources = tuple(SourceConfig(name=name, kind="leaves") for name in ("one", "two"))
    return StudyConfig.model_validate(
        {
            "study": "patches",
            "data": DataConfig(
                sources=sources,
                frames=2,
                size=8,
                train_sequences=1000,
                val_sequences=32,
                pixels=True,
            ),
            "tokenizer": TokenizerConfig(patch=4, codes=16, fit_frames=64),
            "model": {"inputs": inputs, "targets": targets, "base_width": 16},
            "train": {"batch": 4, "warmup_steps": 5, "compile": "off"},
            "ladder": {"sizes": ["t16"], "budgets_macs": [1e8, 4e8], "log2_lr": -6.0},
        }
    )


def _run(tokens: TokenData, inputs: str, targets: str) -> RunConfig:
    runs, _ = plan.ladder_runs(_study(inputs, targets), 2.0**-6, tokens.key, tokens.path)
    return runs[0]


@pytest.mark.parametrize("inputs", ["tokens", "patches"])
@pytest.mark.parametrize("targets", ["tokens", "patches"])
def test_positions_line_up(tokens: TokenData, inputs: str, targets: str) -> None:
    """The patch at a position is the square whose code stands there."""
    run = _run(tokens, inputs, targets)
    reads, predicts = feed.train_pair(tokens, run.model, 3, 4, 0)
    assert reads.shape[1] == predicts.shape[1] == run.model.context
    ids, _ = tokens.batch(3, 4, 0)
    book = Codebook.load(tokens.path / "tokenizer.safetensors")

    def as_tokens(x: torch.Tensor) -> np.ndarray:
        """Ids of codes or of patches, by the nearest centroid."""
        if x.dtype == torch.int64:
            return x.numpy()
        squares = x.reshape(-1, 4, 4, 3).numpy()
        return book.encode(squares).reshape(x.shape[:2]).astype(np.int64) + SPECIALS

    if inputs == "patches":
        assert not reads[:, 0].any()
    np.testing.assert_array_equal(as_tokens(reads[:, 1:]), ids[:, 1:-1][:, : reads.shape[1] - 1])
    np.testing.assert_array_equal(as_tokens(predicts), ids[:, 1:][:, : predicts.shape[1]])


@pytest.mark.parametrize("targets", ["tokens", "patches"])
def test_a_model_of_patches_learns_and_resumes_bitwise(
    tokens: TokenData, tmp_path: Path, targets: str
) -> None:
    run = _run(tokens, "patches", targets)
    said: list[str] = []
    rows = train(run, tmp_path / "whole", log=said.append)
    losses = [row["val_loss"] for row in rows if row["decayed"]]
    untrained = 1.0 if targets == "patches" else np.log(20)
    assert len(losses) == 2 and losses[1] < losses[0] and losses[1] < 0.97 * untrained
    label = "patch-4px" if targets == "patches" else "patch-4px > codebook-4px-16"
    assert {row["tokenizer"] for row in rows} == {label}
    unit = "squared error per value" if targets == "patches" else "nats per token"
    assert loss_unit(row["tokenizer"] for row in rows) == unit and said[-1].endswith(unit)

    class Once(StopFlag):
        looks = 20

        def __bool__(self) -> bool:
            self.looks -= 1
            return self.looks == 0

    with pytest.raises(Interrupted):
        train(run, tmp_path / "cut", stop=Once(), log=lambda _: None)
    again = train(run, tmp_path / "cut", log=lambda _: None)
    assert [row["val_loss"] for row in again] == [row["val_loss"] for row in rows]


def test_frames_that_were_not_stored(tmp_path: Path, tokens: TokenData) -> None:
    study = _study()
    bare = study.data.model_copy(update={"pixels": False})
    path = prepare(bare, study.tokenizer, tmp_path, seed=0)
    run = dataclasses.replace(
        _run(tokens, "patches", "tokens"), data_dir=str(path), data_key=TokenData.open(path).key
    )
    with pytest.raises(UserError, match=r"set data\.pixels: true and encode again"):
        train(run, tmp_path / "run", log=lambda _: None)
