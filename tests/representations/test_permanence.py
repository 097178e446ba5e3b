"""Clips whose ball is hidden, their labels, CATER's lists, and reading beyond the context."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from scaling.config.schema import Tuning
from scaling.errors import UserError
from scaling.models.family import size
from scaling.models.parametrization import build
from scaling.models.probes import Recipe
from scaling.representations import permanence
from scaling.representations.encoded import Views
from scaling.representations.features import with_start, write_features
from scaling.representations.labelled import draw_split, read_labelled
from scaling.representations.permanence import locate, scene, write_permanence
from scaling.representations.probe import probe
from scaling.study_folder import Study
from tests.representations.conftest import moving_bar, write_clip


def red(frame: np.ndarray) -> np.ndarray:
    r, g, b = frame.astype(int).transpose(2, 0, 1)
    return np.asarray((r > 200) & (g < 100) & (b < 90))


def test_label_is_where_the_ball_is_seen() -> None:
    """Where the ball shows in the last frame, its middle lies in the cell of the label."""
    shown = hidden = 0
    for i in range(60):
        pixels, cell, visible = scene(0, i, frames=16, size=60)
        ball = np.argwhere(red(pixels[-1]))
        if visible[-1] == 1:
            y, x = ball.mean(0) / 60 * 6
            assert abs(y - (cell // 6 + 0.5)) < 0.7 and abs(x - (cell % 6 + 0.5)) < 0.7
            shown += 1
        elif visible[-1] == 0:
            assert len(ball) == 0
            hidden += 1
    assert shown > 10 and hidden > 15  # under the cup, or behind a block


def test_ball_passes_behind_and_comes_back() -> None:
    """In some clips it is hidden for a while and seen again."""
    found = 0
    for i in range(60):
        visible = scene(1, i, frames=32, size=60)[2]
        out = np.flatnonzero(visible == 0)
        found += bool(len(out) and (visible[out[0] :] == 1).any())
    assert found > 5


def test_scenes_are_pure_functions() -> None:
    a, b = scene(3, 7, frames=8, size=40), scene(3, 7, frames=8, size=40)
    assert (a[0] == b[0]).all() and a[1] == b[1]
    assert (scene(3, 8, frames=8, size=40)[0] != a[0]).any()


def test_folder_is_labelled_data(tmp_path: Path) -> None:
    table = write_permanence(tmp_path / "p", clips=48, frames=8, size=32)
    data = read_labelled(table)
    train, test = draw_split(data, seed=0)
    assert len(train) + len(test) == 48 and 4 < len(test) <= 12
    assert set(data.labels_F[test]) <= set(data.labels_F[train])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "p").glob("*.mp4")}
    write_permanence(tmp_path / "p", clips=48, frames=8, size=32)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "p").glob("*.mp4")} == before
    with pytest.raises(UserError, match=r'"frames": 8.* not .*"frames": 16.*; remove it or give'):
        write_permanence(tmp_path / "p", clips=48, frames=16, size=32)
    with pytest.raises(UserError, match="an even size of at least 32 px"):
        write_permanence(tmp_path / "q", clips=48, frames=8, size=33)


def test_caters_layout(tmp_path: Path) -> None:
    (tmp_path / "lists" / "localize").mkdir(parents=True)
    for i in range(4):
        write_clip(tmp_path / "videos" / f"CATER_new_{i:06d}.avi", moving_bar(4, True, i))
    lists = tmp_path / "lists" / "localize"
    lists.joinpath("train.txt").write_text("CATER_new_000000.avi 3\nCATER_new_000001.avi 35\n")
    lists.joinpath("val.txt").write_text("CATER_new_000002.avi 3\nCATER_new_000003.avi 35\n")
    data = read_labelled(tmp_path)
    assert data.classes == ("3", "35") and data.kind == "video"
    assert [data.names[i] for i in draw_split(data, 0)[0]] == [
        "videos/CATER_new_000000.avi", "videos/CATER_new_000001.avi"
    ]  # fmt: skip
    lists.joinpath("val.txt").write_text("CATER_new_000002.avi\n")
    with pytest.raises(UserError, match="want lines of a video and a cell"):
        read_labelled(tmp_path)


def test_windows_are_sequences_of_their_own(tmp_path: Path) -> None:
    """12 tokens by a model of 6: two windows, each from the start token."""
    model = build(size(16, 2, 2, vocab=20, context=7, base_width=16), seed=0)
    codes = np.random.default_rng(0).integers(0, 16, (5, 12)).astype(np.uint16)
    path = tmp_path / "x.bin"
    shape = write_features(model, codes, path, start=1, side=1, memory_bytes=1e5, window=6)
    assert shape == (5, 3, 12, 16)
    got = np.memmap(path, np.float16, "r", shape=shape)
    for half in (slice(0, 6), slice(6, 12)):
        with torch.no_grad():
            _, hidden = model(with_start(codes[:, half], 1), hidden=True)
        np.testing.assert_allclose(got[:, 2, half], hidden["layer_2"][:, 1:], atol=2e-3)
    with pytest.raises(UserError, match=r"13 tokens exceed the context of .* \(7\)"):
        write_features(model, codes, tmp_path / "y.bin", start=1, side=1, memory_bytes=1e5)


def test_a_study_is_tuned_to_find_the_ball(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten frames of 6 x 6 tokens by a model of four of 2 x 2, whole, from both weights."""
    monkeypatch.setattr(permanence, "CLIPS", 48)
    monkeypatch.setattr(permanence, "TUNING", Tuning(end_to_end=True, steps=3, batch=4))
    own = Path(shutil.copytree(study, tmp_path / "own"))
    rows = pd.read_csv(locate(Study(own), 10, say=lambda _: None))
    assert list(rows.weights) == ["random", "trained"] and set(rows["head"]) == {"grid"}
    assert set(rows.tokens) == {360} and set(rows.frames) == {10} and set(rows.split) == {"given"}
    listed = pd.read_csv(own / "permanence-10" / "labels.csv")
    hidden = listed[(listed.split == "test") & (listed.visible == 0)]
    assert set(rows.n_hidden) == {len(hidden)} and len(hidden) > 0


def test_windows_of_a_training_sequence_are_probed(study: Path, tmp_path: Path) -> None:
    """Eight frames, twice the context of the model."""
    own = Study(Path(shutil.copytree(study, tmp_path / "own")))
    table = write_permanence(tmp_path / "p", clips=48, frames=8, size=32)
    settings = {"heads": ("attention",), "recipe": Recipe(steps=5), "say": lambda _: None}
    out = probe(own, table, seeds=1, views=Views(frames=8), **settings)  # type: ignore[arg-type]
    rows = pd.read_csv(out)
    assert set(rows.frames) == {8} and set(rows.split) == {"given"}
    with pytest.raises(UserError, match=r"6 frames are no multiple of the 4"):
        probe(own, table, seeds=1, views=Views(frames=6), **settings)  # type: ignore[arg-type]
