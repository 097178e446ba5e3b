"""Ready tokens as a source: NumPy's arrays and token directories, with vocabulary and grid said."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from scaling.config.schema import StudyConfig
from scaling.data.shards import END, SPECIALS, VIDEO_START, TokenData
from scaling.data.tokens import tokens_summary
from scaling.errors import UserError
from tests.data.test_encode import run, source

GIVEN = {"kind": "given"}
LENGTH = 2 * 4 * 4  # frames of 16 px in squares of 4


def arrays(folder: Path, codes: int = 16, count: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [(2, 4, 4), (2, 16), (32,)]
    made = {}
    for i in range(count):
        codes_N = rng.integers(0, codes, (3 + i, *shapes[i % 3])).astype(
            ["u1", "<i8", ">u2"][i % 3]
        )
        folder.mkdir(exist_ok=True)
        np.save(folder / f"{i}.npy", np.asfortranarray(codes_N) if i == 4 else codes_N)
        made[f"{i}.npy"] = codes_N.reshape(len(codes_N), LENGTH).astype(int)
    return made


def ready(out: Path, folder: Path, **changes: object) -> Path:
    return run(out, source("tokens", folder, name="x"), tokenizer=GIVEN, **changes)  # type: ignore[arg-type]


def test_arrays_become_the_sequences_of_their_split(tmp_path: Path) -> None:
    made = arrays(tmp_path / "in")
    data = TokenData.open(ready(tmp_path / "out", tmp_path / "in"))
    assert data.vocab == 16 + SPECIALS and data.tokenizer == "given-4px-16"
    with (data.path / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_split = {split: [r["path"] for r in rows if r["split"] == split]
                for split in ("train", "validation")}  # fmt: skip
    assert sorted(by_split["train"] + by_split["validation"]) == sorted(made) and all(
        by_split.values()
    )
    expected = np.concatenate([made[name] for name in by_split["validation"]])
    got = data.validation()["x"]
    assert (got[:, 0] == VIDEO_START).all() and (got[:, -1] == END).all()
    assert np.array_equal(got[:, 1:-1] - SPECIALS, expected)
    train = np.concatenate([made[name] for name in by_split["train"]])
    seen, _ = data.batch(0, len(train), 0)
    assert {row.tobytes() for row in seen[:, 1:-1] - SPECIALS} == {row.tobytes() for row in train}
    about = tokens_summary(data.path)
    assert about["psnr"] == {} and about["sha256"] == ""
    assert about["entropy_nats"] > 2.5 and about["codes_used"] == 16


def test_a_token_directory_gives_its_own_bytes(tmp_path: Path) -> None:
    encoded = run(tmp_path / "one", source("leaves"))
    again = ready(tmp_path / "two", encoded)
    shards = [[p.read_bytes() for p in sorted(d.glob("*.bin"))] for d in (encoded, again)]
    assert len(shards[0]) == 2 and sorted(shards[0]) == sorted(shards[1])
    with pytest.raises(UserError) as told:
        ready(tmp_path / "no", encoded, codes=32, frames=3)
    assert "tokenizer.codes is 32, of these tokens 16; data.frames is 3" in str(told.value)
    shard = next(encoded.glob("*train*.bin"))
    whole = shard.read_bytes()
    for damaged, match in (
        (whole[:-2] + b"\0\0", "its sha256 is not the index's. Put the file back"),
        (whole[:-2], f"has {len(whole) - 2} bytes, its index promises {len(whole)}"),
    ):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match=match):
            ready(tmp_path / "no", encoded)
    shard.write_bytes(whole)
    index = json.loads((encoded / "index.json").read_text())
    index["sources"][0]["train"]["shards"][0]["file"] = "../x.bin"
    (encoded / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside of its folder"):
        ready(tmp_path / "no", encoded)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    arrays(folder, codes=17)
    with pytest.raises(UserError, match=r"\.npy, sequence \d: code 16 is not in 0 to 15"):
        ready(tmp_path / "out", folder)
    assert not list((tmp_path / "out").glob("*/*"))
    ready(tmp_path / "out", folder, codes=17)  # and nothing stands in the way of the right one
    np.save(folder / "9.npy", np.zeros((4, 2, 5, 5), int))
    np.save(folder / "8.npy", np.zeros((4, 2, 4, 4)))
    with pytest.raises(UserError) as told:
        ready(tmp_path / "out", folder)
    assert "8.npy holds float64" in str(told.value)
    assert "9.npy has the shape (4, 2, 5, 5)" in str(told.value)
    assert "(n, 2, 4, 4), (n, 2, 16), (n, 32)" in str(told.value)
    negative = tmp_path / "negative"
    arrays(negative)
    np.save(negative / "1.npy", np.full((2, 32), -1))
    with pytest.raises(UserError, match="code -1 is not in 0 to 15"):
        ready(tmp_path / "out", negative)


def test_files_that_are_no_arrays_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    made = arrays(folder)
    (folder / "cut.npy").write_bytes((folder / "3.npy").read_bytes()[:-9])
    np.savez(folder / "z.npz", a=made["0.npy"])
    shutil.move(folder / "z.npz", folder / "z.npy")
    np.save(folder / "object.npy", np.array([{}], object), allow_pickle=True)
    np.save(folder / "empty.npy", np.zeros((0, 32), int))
    with (ready(tmp_path / "out", folder) / "manifest.csv").open() as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert {name for name, row in rows.items() if row["status"] == "error"} == {
        "cut.npy", "z.npy", "object.npy", "empty.npy"
    }  # fmt: skip
    assert sum(row["status"] == "ok" for row in rows.values()) == len(made)
    one = tmp_path / "one"
    arrays(one, count=1)
    with pytest.raises(UserError, match="split by file, never inside of one"):
        ready(tmp_path / "out", one)


@pytest.mark.parametrize(
    ("data", "tokenizer", "message"),
    [
        ({}, {}, "go together"),
        ({"pixels": True}, GIVEN, "without their frames"),
        ({}, GIVEN | {"weights": "x"}, "has no weights"),
        ({"sources": [{"name": "l", "kind": "leaves"}]}, GIVEN, "go together"),
    ],
)
def test_a_study_says_both_or_none(
    data: dict[str, object], tokenizer: dict[str, object], message: str
) -> None:
    study = {
        "study": "x",
        "data": {"frames": 2, "size": 16, "sources": [{"name": "t", "kind": "tokens", "path": "x"}]}
        | data,
        "tokenizer": {"patch": 4, "codes": 16} | tokenizer,
        "ladder": {"sizes": ["t16"], "budgets_macs": [1e9], "tokens_per_param": [2, 200]},
    }
    with pytest.raises(ValueError, match=message):
        StudyConfig.model_validate(study)
