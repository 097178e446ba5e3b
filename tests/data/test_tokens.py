"""Summaries and n-grams of a token directory, against direct counts."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from scaling.config.schema import DataConfig, SourceConfig, TokenizerConfig
from scaling.data.encode import prepare
from scaling.data.shards import SPECIALS, TokenData
from scaling.data.tokens import ngrams, tokens_summary
from scaling.errors import UserError
from tests.data.clips import write_video


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for i in range(4):
        write_video(folder / f"{i}.mp4", rng.integers(0, 256, (50, 16, 16, 3)).astype(np.uint8))
    (folder / "text.mp4").write_text("no video")
    (folder / "notes.txt").touch()
    sources = (
        SourceConfig(name="leaves", kind="leaves", path=None, weight=0.75),
        SourceConfig(name="clips", kind="video", path=folder, weight=0.25),
    )
    data = DataConfig(
        sources=sources,
        frames=2,
        size=16,
        stride=1,
        clips_per_video=5,
        train_sequences=40,
        val_sequences=8,
        val_fraction=0.25,
    )
    tokenizer = TokenizerConfig(kind="codebook", patch=4, codes=12, fit_frames=64)
    return prepare(data, tokenizer, tmp_path_factory.mktemp("tokens"), seed=0)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_ngrams_are_direct_counts(tokens: Path, n: int) -> None:
    data = TokenData.open(tokens)
    frames = data.validation()["leaves"][:, 1:17] - SPECIALS
    direct = Counter(tuple(frame[i : i + n]) for frame in frames for i in range(len(frame) - n + 1))
    found = ngrams(tokens, n, source="leaves", split="validation")
    assert found.counts.tolist() == sorted(direct.values(), reverse=True)
    assert found.coverage == len(direct) / 12**n
    share = np.array(list(direct.values())) / sum(direct.values())
    assert found.entropy_nats == pytest.approx(-(share * np.log(share)).sum())


def test_ngrams_over_all_sources_and_a_limit(tokens: Path) -> None:
    whole = ngrams(tokens, 1)
    assert whole.counts.sum() == (40 + 15) * 16  # the first frame of every training sequence
    assert whole.coverage == 1
    some = ngrams(tokens, 1, most_frames=11)
    assert some.counts.sum() == (8 + 3) * 16
    with pytest.raises(UserError, match=r"'nothing' is not in .*it has leaves, clips"):
        ngrams(tokens, 1, source="nothing")


def test_summary(tokens: Path) -> None:
    summary = tokens_summary(tokens)
    assert summary["tokenizer"] == "codebook-4px-12"
    assert (summary["vocab"], summary["context"], summary["coverage"]) == (16, 33, 1)
    assert summary["not_used"] == {"error": 1, "ignored": 1}
    rows = {(row["source"], row["split"]): row for row in summary["rows"]}
    train, validation = rows["clips", "train"], rows["clips", "validation"]
    assert train["files"] + validation["files"] == 4
    assert train["errors"] + validation["errors"] == 1
    assert train["frames"] + validation["frames"] == 200
    assert (train["hours"] + validation["hours"]) * 3600 == pytest.approx(4 * 2.0)  # 50 at 25 /s
    assert train["sequences"] == 15 and train["tokens"] == 15 * 34
    assert rows["leaves", "train"]["sequences"] == 40
    assert rows["leaves", "train"]["gigabytes"] == 40 * 34 * 2 / 1e9
