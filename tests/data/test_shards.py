"""Order of the data: permutations, mixtures, and batches as pure functions of a counter."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.data import shards
from scaling.data.shards import SCHEMA, SPECIALS, TokenData, Writer, mixture, permute, sequence
from scaling.errors import UserError


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**31), st.integers(0, 5))
def test_permute_is_a_permutation(size: int, seed: int, epoch: int) -> None:
    out = permute(np.arange(size), size, (seed, epoch))
    assert sorted(out.tolist()) == list(range(size))


def test_permute_differs_by_key_and_looks_random() -> None:
    size = 10_000
    a = permute(np.arange(size), size, (0, 0, 0))
    b = permute(np.arange(size), size, (0, 0, 1))
    assert (a == b).mean() < 0.002
    assert abs(np.corrcoef(a, np.arange(size))[0, 1]) < 0.03
    assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 0.03


def test_permute_works_far_beyond_memory() -> None:
    size = 10**15
    places = np.array([0, 1, 10**14, size - 1])
    out = permute(places, size, (1,))
    assert len(set(out.tolist())) == 4 and (out >= 0).all() and (out < size).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6))
def test_mixture_keeps_the_shares_over_any_window(weights: list[float]) -> None:
    order, before = mixture(tuple(weights))
    share = np.asarray(weights) / sum(weights)
    twice = np.concatenate([order, order])
    counts = np.cumsum(twice[:, None] == np.arange(len(weights)), axis=0)
    window = counts[1000:] - counts[:-1000]
    assert np.abs(window / 1000 - share).max() < 0.01
    np.testing.assert_array_equal(before[-1], np.bincount(order, minlength=len(weights)))


def test_the_papers_mixture() -> None:
    order, _ = mixture((0.2, 0.1, 0.1, 0.6))
    assert Counter(order[:1000].tolist()) == {0: 200, 1: 100, 2: 100, 3: 600}


def test_a_weight_too_small_to_be_honoured_is_refused() -> None:
    with pytest.raises(UserError, match="never be seen"):
        mixture((1.0, 1e-6))


def write(
    path: Path,
    sizes: tuple[int, ...] = (50, 7),
    weights: tuple[float, ...] = (0.8, 0.2),
    length: int = 6,
) -> Path:
    """A token directory whose codes say source and row."""
    path.mkdir()
    sources = []
    for s, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        codes = np.full((size, length), 1000 * s) + np.arange(size)[:, None]
        entry = {"name": f"s{s}", "kind": "video", "weight": weight}
        for split in ("train", "validation"):
            tokens = sequence(codes if split == "train" else codes[:3], 1)
            writer = Writer(path, f"{s}.{split}", length + 2)
            for chunk in np.array_split(tokens, 3):
                writer.write(chunk)
            entry[split] = writer.close()
        sources.append(entry)
    index = {
        "schema": SCHEMA,
        "key": "k",
        "vocab": 5000,
        "context": length + 1,
        "frames": 1,
        "size": 16,
        "tokens_per_frame": length,
        "tokenizer": {"label": "test"},
        "sources": sources,
    }
    (path / "index.json").write_text(json.dumps(index))
    return path


def test_sequence_has_start_codes_end() -> None:
    tokens = sequence(np.array([[0, 5, 8191]]), 3)
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == [[3, SPECIALS, 5 + SPECIALS, 8191 + SPECIALS, 2]]


def test_batches_are_a_pure_function_of_the_counter(tmp_path: Path) -> None:
    data = TokenData.open(write(tmp_path / "d"))
    big, big_source = data.batch(0, 120, seed=5)
    for step in (7, 0, 3):  # any order, any split into batches
        tokens, source = data.batch(step, 12, seed=5)
        np.testing.assert_array_equal(tokens, big[step * 12 : step * 12 + 12])
        np.testing.assert_array_equal(source, big_source[step * 12 : step * 12 + 12])
    assert (data.batch(0, 120, seed=6)[0] != big).any()
    np.testing.assert_array_equal(TokenData.open(tmp_path / "d").batch(0, 120, 5)[0], big)


def test_every_pass_sees_every_sequence_once_in_a_new_order(tmp_path: Path) -> None:
    data = TokenData.open(write(tmp_path / "d"))
    tokens, source = data.batch(0, 20_000, seed=0)  # crosses periods and blocks
    for s, size in ((0, 50), (1, 7)):
        rows = tokens[source == s, 1] - SPECIALS - 1000 * s
        passes = rows[: len(rows) // size * size].reshape(-1, size)
        assert (np.sort(passes, 1) == np.arange(size)).all()
        assert (passes[0] != passes[1]).any()
    epochs = data.epochs(20_000, 1, 0)
    assert epochs == {"s0": 16_000 / 50, "s1": 4_000 / 7}


def test_many_small_shards_read_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = TokenData.open(write(tmp_path / "one"))
    monkeypatch.setattr(shards, "SHARD_BYTES", 100)  # 6 sequences of 16 bytes
    many = TokenData.open(write(tmp_path / "many"))
    assert len(list((tmp_path / "many").glob("0.train-*.bin"))) == 9
    for step in (0, 3, 40):
        np.testing.assert_array_equal(many.batch(step, 32, 0)[0], one.batch(step, 32, 0)[0])
    np.testing.assert_array_equal(many.validation()["s0"], one.validation()["s0"])


def test_contract_of_the_opened_data(tmp_path: Path) -> None:
    data = TokenData.open(write(tmp_path / "d"))
    assert (data.vocab, data.context, data.sources) == (5000, 7, ("s0", "s1"))
    validation = data.validation()
    assert validation["s1"].shape == (3, 8) and validation["s1"].dtype == np.int64
    tokens, _ = data.batch(0, 4, 0)
    assert tokens.dtype == np.int64 and (tokens[:, 0] == 1).all() and (tokens[:, -1] == 2).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda d: (d / "0.train-00000.bin").write_bytes(b"ab"),
            r"0\.train-00000\.bin has 2 bytes",
        ),
        (
            lambda d: (d / "1.validation-00000.bin").unlink(),
            r"1\.validation-00000\.bin cannot be read",
        ),
        (lambda d: (d / "index.json").unlink(), "index.json is missing"),
        (lambda d: (d / "index.json").write_text("{"), "cannot be read"),
        (lambda d: (d / "index.json").write_text('{"schema": 0}'), "schema 0"),
    ],
)
def test_damage_is_named_with_the_remedy(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    path = write(tmp_path / "d")
    damage(path)
    with pytest.raises(UserError, match=message) as caught:
        TokenData.open(path)
    assert "again" in str(caught.value)


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "d")
    content = bytearray((path / "0.train-00000.bin").read_bytes())
    content[100] ^= 1
    (path / "0.train-00000.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"0\.train-00000\.bin is corrupt.*Remove"):
        TokenData.open(path)
