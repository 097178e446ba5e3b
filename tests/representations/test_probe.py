"""A study is probed from its labelled files to its rows; killed anywhere, it ends the same."""

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from scaling import checkpoint
from scaling.data.shards import TokenData
from scaling.errors import UserError
from scaling.models.parametrization import build
from scaling.models.probes import Heads, Recipe
from scaling.representations import encoded, features, probe
from scaling.representations.encoded import Views
from scaling.representations.features import Features
from scaling.representations.trained import open_tokenizer, trained_runs
from scaling.storage import files
from scaling.storage.files import RunLock
from scaling.study_folder import Study
from scaling.training.train import train
from tests.representations.conftest import write_clip
from tests.shell import HANGS, changed
from tests.warm import Warm, command

QUICK = Recipe(steps=60, batch=32)


def run(study: Path, data: Path, **options: object) -> pd.DataFrame:
    settings: dict[str, Any] = {"seeds": 2, "recipe": QUICK, "say": lambda _: None} | options
    return pd.read_csv(probe.probe(Study(study), data, **settings))


@pytest.fixture
def own(study: Path, tmp_path: Path) -> Path:
    """A copy of the study, to be written to."""
    return Path(shutil.copytree(study, tmp_path / "own"))


def test_probes_beat_chance(own: Path, pictures: Path) -> None:
    table = run(own, pictures, heads=("average", "attention", "grid", "cross"))
    assert len(table) == 2 * 4 * 2 * 3  # weights, heads, seeds, layers
    trained = table[table.weights == "trained"]
    assert (trained.macs_total > 0).all() and (
        table[table.weights == "random"].macs_total == 0
    ).all()
    assert trained.groupby("head").top1.max().min() > trained.chance.max() + 0.3
    assert (table.top5 >= table.top1).all() and table.top5.min() == 1.0  # of three classes
    assert sorted(table.depth.unique()) == [0, 0.5, 1]
    assert set(table.n_test) == {9} and set(table.n_train) == {27}


def test_states_are_the_models(own: Path, pictures: Path) -> None:
    """What lies on disk is model(x, hidden=True), to half precision, in every layer."""
    run(own, pictures, seeds=1)
    (folder,) = (own / "probes").iterdir()
    (trained,) = trained_runs(Study(own))
    codes = np.load(folder / "tokens.npz")["codes"]
    shape = tuple(json.loads(next(folder.glob("features/*-trained*.json")).read_text())["shape"])
    states = np.memmap(next(folder.glob("features/*-trained*.bin")), np.float16, "r", shape=shape)
    start = json.loads((folder / "index.json").read_text())["start"]
    ids = np.concatenate((np.full((len(codes), 1), start), codes[:, 0].astype(np.int64) + 4), 1)
    with torch.no_grad():
        _, hidden = trained.model("trained")(torch.from_numpy(ids), hidden=True)
    for i, name in enumerate(("embed", "layer_1", "layer_2")):
        np.testing.assert_allclose(states[:, i], hidden[name][:, 1:], rtol=2e-3, atol=2e-3)


def test_clips_and_views(own: Path, clips: Path) -> None:
    table = run(own, clips, heads=("average",), views=Views(3, 2), seeds=1)
    assert set(table.clips) == {3} and set(table.crops) == {2} and set(table.n_test) == {2}
    (folder,) = (own / "probes").iterdir()
    codes = np.load(folder / "tokens.npz")["codes"]
    assert codes.shape == (8, 6, 16)
    assert (codes[:, 0] != codes[:, 1]).any() and (codes[:, 0] != codes[:, 2]).any()


SHORT = {"heads": ("attention",), "recipe": Recipe(steps=5, batch=32)}


@pytest.fixture(scope="module")
def whole(study: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The rows of a call that nothing interrupts."""
    own = Path(shutil.copytree(study, tmp_path_factory.mktemp("whole") / "own"))
    run(own, pictures, **SHORT)
    return (own / "probes.csv").read_bytes()


@pytest.mark.parametrize("after", range(7))
def test_killed_anywhere_ends_the_same(
    own: Path, pictures: Path, whole: bytes, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every durable write is a place to die at; what came before it is not done again."""
    monkeypatch.setattr(encoded, "CHUNK", 16)
    writes = 0

    def dying(real: Callable[[Path, bytes | str], None]) -> Callable[[Path, bytes | str], None]:
        def write(path: Path, content: bytes | str) -> None:
            nonlocal writes
            if writes == after:  # all is there but the name: what `kill -9` leaves
                half = path.with_name(f".{path.stem}.other-1{files.HALF}{path.suffix}")
                real(half, content)
                raise KeyboardInterrupt
            writes += 1
            real(path, content)

        return write

    with monkeypatch.context() as dies:
        dies.setattr(files, "write", dying(files.write))
        with pytest.raises(KeyboardInterrupt):
            run(own, pictures, **SHORT)
    made = {p: p.stat().st_mtime_ns for p in own.glob("probes/*/parts/[!.]*.npz")}
    read: list[int] = []
    real_pixels = encoded._pixels

    def watched(labelled: Any, i: int, *rest: Any) -> Any:
        read.append(i)
        return real_pixels(labelled, i, *rest)

    monkeypatch.setattr(encoded, "_pixels", watched)
    run(own, pictures, **SHORT)
    assert (own / "probes.csv").read_bytes() == whole
    assert len(read) == (0 if after >= 4 else 36 - 16 * len(made) + 12 * (len(made) == 3))


def test_kill_nine_at_random_moments(study: Path, pictures: Path, tmp_path: Path) -> None:
    """The command itself, dying again and again while it writes: the same table, and no state
    computed twice. A moment is a number of files written since the start."""
    draw, tables, killed = random.Random(0), [], 0
    for kills in (0, 5):
        own = Path(shutil.copytree(study, tmp_path / str(kills)))
        (own / "probes").mkdir()
        states: dict[Path, int] = {}
        code = 1
        while code:
            words = f"probe {own} --data {pictures} --head average --head attention --seeds 2"
            process = Warm(command, *words.split(), said=tmp_path / "said")
            if killed < kills:
                killed += changed(process, own / "probes", draw.randint(1, 3))
                process.kill()
            code = process.wait()
            assert code in (0, -signal.SIGKILL), process.said.read_text()
            kept = {p: p.stat().st_mtime_ns for p in own.glob("probes/*/features/*.json")}
            assert {p: kept[p] for p in states} == states
            states = kept
            if code == 0 and killed < min(kills, 2):  # it ended before it was killed: once more
                shutil.rmtree(own / "probes")
                (own / "probes").mkdir()
                states, code = {}, 1
        tables.append((own / "probes.csv").read_bytes())
    assert tables[0] == tables[1]


def test_files_that_were_read_twice_are_read_again(
    own: Path, pictures: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older versions took half-written parts of a killed call for parts."""
    real = files.whole

    def twice(folder: Path, pattern: str) -> list[Path]:
        return (2 if folder.name == "parts" else 1) * real(folder, pattern)

    with monkeypatch.context() as older:
        older.setattr(encoded, "CHUNK", 16)
        older.setattr(files, "whole", twice)
        run(own, pictures, **SHORT)
    assert (own / "probes.csv").read_bytes() != whole
    said: list[str] = []
    run(own, pictures, **SHORT, say=said.append)
    assert (own / "probes.csv").read_bytes() == whole
    assert sum("older version took files twice; made again" in line for line in said) == 1


def test_two_at_once(own: Path, pictures: Path) -> None:
    """The second says who is at it, rather than write states over those of the first."""
    run(own, pictures, seeds=1)
    (folder,) = (own / "probes").iterdir()
    label = trained_runs(Study(own))[0].label("random")
    busy = pytest.raises(UserError, match=r"in use by .*, which probes the same; wait for it")
    with RunLock(folder, f"{label}.lock"), busy:
        run(own, pictures)
    assert len(run(own, pictures)) == 2 * 3 * 2 * 3  # weights, heads, seeds, layers


def test_done_work_is_not_repeated(
    own: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(own, pictures, heads=("attention",))
    monkeypatch.setattr(probe, "train_heads", None)
    pd.testing.assert_frame_equal(run(own, pictures, heads=("attention",)), first)
    monkeypatch.undo()
    monkeypatch.setattr(features, "_states", None)  # more seeds and heads need no new states
    before = {p: p.stat().st_mtime_ns for p in own.glob("probes/*/features/*")}
    more = run(own, pictures, heads=("attention", "average"), seeds=3)
    assert len(more) == 3 * len(first)
    assert {p: p.stat().st_mtime_ns for p in own.glob("probes/*/features/*")} == before


def test_layers_that_are_asked_for_alone_are_trained(
    own: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They get the rows that they have among all layers, and the others are then added."""
    everything = run(own, pictures)
    shutil.rmtree(own / "probes")
    trained: list[list[int]] = []

    def watched(kind: str, layers: list[int], *rest: Any, **more: Any) -> Heads:
        trained.append(list(layers))
        return Heads(kind, layers, *rest, **more)

    monkeypatch.setattr(probe, "Heads", watched)
    some = run(own, pictures, layers=[2])
    assert trained and all(layers == [2] for layers in trained)
    assert set(some.layer) == {2}
    trained.clear()
    both = run(own, pictures)
    assert trained and all(layers == [0, 1] for layers in trained)
    pd.testing.assert_frame_equal(both, everything, atol=0.12)  # one file in nine may tip


def test_linear_heads_need_no_state_of_every_token(own: Path, pictures: Path) -> None:
    """Cells are kept in their place, and the rows are the same but for the rounding of means."""
    cells = run(own, pictures, heads=("average", "grid"))
    assert {p.name.split(".")[1] for p in own.glob("probes/*/features/*.bin")} == {"cells"}
    shutil.rmtree(own / "probes")
    tokens = run(own, pictures)
    assert {p.name.split(".")[1] for p in own.glob("probes/*/features/*.bin")} == {"tokens"}
    tokens = tokens[tokens["head"] != "attention"].reset_index(drop=True)
    pd.testing.assert_frame_equal(cells, tokens, atol=0.12)  # one file in nine may tip


def test_memory_bound_changes_no_number(
    own: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = run(own, pictures)
    shutil.rmtree(own / "probes")
    sizes = []

    class Watched(Features):
        def raw(self, rows: torch.Tensor) -> torch.Tensor:
            x = super().raw(rows)
            sizes.append(x.numel() * 4)
            return x

    monkeypatch.setattr(probe, "Features", Watched)
    tight = run(own, pictures, memory_gb=40e-6)  # 40 kB: six rows of 768 B at a time
    assert max(sizes) <= 40e3 / 8
    pd.testing.assert_frame_equal(tight, free, atol=0.12)  # one file in nine may tip


def test_memory_is_bounded(tmp_path: Path) -> None:
    """The peak of a whole process: below the flag where states would not fit, above where they do.

    The second half shows that the measure sees the states at all.
    """
    rise = {}
    for gigabytes in (0.1, 4.0):
        folder = tmp_path / str(gigabytes)
        folder.mkdir()
        work = "tests.representations.memory_work"
        command = [sys.executable, "-m", work, str(folder), str(gigabytes)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS, check=True)
        rise[gigabytes] = int(done.stdout)
    states = (tmp_path / "0.1" / "states.bin").stat().st_size
    assert rise[0.1] < 0.1e9 < states < rise[4.0] < 4e9


def test_bad_input(own: Path, pictures: Path, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"layer 3, -1 of run .*0 \(the embedding\) to 2"):
        run(own, pictures, layers=[1, 3, -1])
    with pytest.raises(UserError, match="head mean: choose of average"):
        run(own, pictures, heads=("mean",))
    with pytest.raises(UserError, match="no finished run 'nothere'"):
        run(own, pictures, runs=["nothere"])
    with pytest.raises(UserError, match="no run of the ladder has finished yet"):
        run(tmp_path, pictures)


def test_unreadable_clip_is_named_and_left_out(own: Path, clips: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(clips, tmp_path / "data"))
    (data / "left" / "0.mp4").write_bytes(b"not a video")
    said: list[str] = []
    table = run(own, data, heads=("average",), seeds=1, say=said.append)
    assert set(table.n_train + table.n_test) == {7}
    assert any("1 of 8 files were not used" in line for line in said)
    assert any("left/0.mp4" in line for line in said)
    for i in (1, 2):
        (data / "left" / f"{i}.mp4").write_bytes(b"not a video either")
    with pytest.raises(UserError, match=r"fewer than two readable files \(left\)"):
        run(own, data, heads=("average",), seeds=1)


def test_too_short_a_clip_is_named(own: Path, clips: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(clips, tmp_path / "data"))
    write_clip(data / "left" / "short.mp4", np.zeros((2, 32, 32, 3), np.uint8))
    said: list[str] = []
    run(own, data, heads=("average",), seeds=1, say=said.append)
    assert any("left/short.mp4: 2 frames are too few" in line for line in said)


def test_checkpoint_of_another_tokenizer(own: Path, pictures: Path) -> None:
    (data_dir,) = (p for p in (own / "data").iterdir() if p.is_dir())
    index = json.loads((data_dir / "index.json").read_text())
    tokenizer = data_dir / index["tokenizer"]["file"]
    intact = tokenizer.read_bytes()
    tokenizer.write_bytes(intact[:-1] + b"\0")
    with pytest.raises(UserError, match="is not the tokenizer of"):
        open_tokenizer(data_dir)
    tokenizer.write_bytes(intact)
    (data_dir / "index.json").write_text(json.dumps(index | {"vocab": 99}))
    with pytest.raises(UserError, match=r"vocabulary of 99 .*codes of another tokenizer mean"):
        run(own, pictures)


def test_damaged_checkpoint(own: Path, pictures: Path) -> None:
    (path,) = own.glob("runs/*/weights-*.pt")
    whole, (state, _) = path.read_bytes(), checkpoint.load(path)
    assert state is not None
    for other in ({"run_id": "0" * 12}, {"steps": 7}):  # of the same shapes
        checkpoint.save(path, state | other)
        with pytest.raises(UserError, match=r"the file is another's\. Put its own back"):
            run(own, pictures)
    checkpoint.drop(path, files=1, folders=0)
    path.write_bytes(whole)
    path.write_bytes(path.read_bytes()[:-10] + b"0123456789")
    with pytest.raises(UserError, match=r"no checkpoint that verifies; weights-\d+.pt is damaged"):
        run(own, pictures)


def test_every_held_budget_is_a_point(own: Path, pictures: Path, tmp_path: Path) -> None:
    """A run that goes on leaves the weights of both: what trained longer is another point."""
    (first,) = trained_runs(Study(own))
    longer = replace(first.run, budgets_steps=(20, 40), budgets_macs=(1e7, 2e7))
    train(longer, own / "runs" / longer.run_id, log=lambda _: None)
    early, late = trained_runs(Study(own), [longer.run_id])
    assert (early.row["steps"], late.row["steps"]) == (20, 40) and late.last and not early.last
    assert not torch.equal(early.model("trained").head, late.model("trained").head)
    table = run(own, pictures, runs=[longer.run_id], seeds=1, heads=("average",))
    assert table.groupby(["weights", "macs_total"]).size().tolist() == [3, 3, 3]
    with torch.no_grad():  # the weights are those that were evaluated
        data = TokenData.open(own / "data" / longer.data_key).validation()["leaves"]
        ids = torch.from_numpy(data)
        loss = float(early.model("trained").loss(ids[:, :-1], ids[:, 1:]))
    assert loss == pytest.approx(early.row["val_loss"], rel=1e-5)


def test_a_model_that_reads_patches(study: Path, pictures: Path, tmp_path: Path) -> None:
    """Its states are those of the pixels themselves, scaled as in training."""
    (trained,) = trained_runs(Study(study))
    model = build(replace(trained.run.model, patch_inputs=48), seed=0)
    tokenizer, _ = open_tokenizer(study / "data" / trained.run.data_key)
    frames = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3)).astype(np.uint8)
    patches = features.seen(model.config, tokenizer, frames)
    assert patches.shape == (3, 4, 48)
    path = tmp_path / "states.bin"
    shape = features.write_features(model, patches, path, start=1, side=2, memory_bytes=1e6)
    states = np.memmap(path, np.float16, "r", shape=shape)
    inputs = torch.zeros(3, 5, 48)
    inputs[:, 1:] = torch.from_numpy(patches) / 255
    with torch.no_grad():
        _, hidden = model(inputs, hidden=True)
    np.testing.assert_allclose(states[:, 2], hidden["layer_2"][:, 1:], rtol=2e-3, atol=2e-3)
