"""J and F equal an independent implementation; labels travel as the protocol says."""

import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from scipy.spatial import cKDTree

from scaling.commands.probes import represent
from scaling.config.schema import Tuning
from scaling.errors import UserError
from scaling.models.propagation import DINO, JABRI, Protocol, propagate
from scaling.representations import davis, davis_masks, permanence, tiles
from scaling.representations.davis_folders import find_sequences
from scaling.representations.davis_measures import (
    boundary,
    contour_f,
    evaluate,
    jaccard,
    statistics,
)
from scaling.representations.trained import data_dir_of, open_tokenizer, trained_runs
from scaling.study_folder import Study


def plain_boundary(mask: np.ndarray) -> list[tuple[int, int]]:
    """The toolkit's contour, pixel by pixel."""
    height, width = mask.shape
    found = []
    for y in range(height):
        for x in range(width):
            right = mask[y, min(x + 1, width - 1)]
            below = mask[min(y + 1, height - 1), x]
            both = mask[min(y + 1, height - 1), min(x + 1, width - 1)]
            if y == height - 1:
                edge = mask[y, x] != right
            elif x == width - 1:
                edge = mask[y, x] != below
            else:
                edge = mask[y, x] != right or mask[y, x] != below or mask[y, x] != both
            if edge and not (y == height - 1 and x == width - 1):
                found.append((y, x))
    return found


def plain_f(mask: np.ndarray, truth: np.ndarray) -> float:
    """By distances between the two lists of contour pixels, not by dilation."""
    ours, theirs = plain_boundary(mask), plain_boundary(truth)
    if not ours and not theirs:
        return 1.0
    precision, recall = (1.0, 0.0) if theirs else (0.0, 1.0)
    if ours and theirs:
        reach = np.ceil(0.008 * np.hypot(*mask.shape)) + 1e-9
        precision = float(np.mean(cKDTree(theirs).query(ours)[0] <= reach))
        recall = float(np.mean(cKDTree(ours).query(theirs)[0] <= reach))
    return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(0, 4)):
        cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(1, height / 3)
        mask |= (y - cy) ** 2 + (x - cx) ** 2 < r**2
    return mask


@pytest.mark.parametrize("seed", range(40))
def test_measures_on_random_masks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(5, 150)), int(rng.integers(5, 150))
    ours = rng.random(shape) < 0.3 if seed % 4 == 0 else blobs(rng, *shape)
    theirs = blobs(rng, *shape)
    assert [tuple(p) for p in np.argwhere(boundary(ours)).tolist()] == plain_boundary(ours)
    assert contour_f(ours, theirs) == pytest.approx(plain_f(ours, theirs), abs=1e-6)
    a, b = set(map(tuple, np.argwhere(ours))), set(map(tuple, np.argwhere(theirs)))
    expected = len(a & b) / len(a | b) if a | b else 1.0
    assert jaccard(ours, theirs) == pytest.approx(expected, abs=1e-6)


def test_measures_on_real_masks(shared_data: Path) -> None:
    """Each mask against the one five frames later, at full size."""
    for name in ("240p/camel", "480p/blackswan"):
        paths = sorted((shared_data / "davis2016" / "Annotations" / name).glob("*.png"))
        ours, theirs = davis_masks.read_masks(paths[:6:5]) > 0
        assert 0 < contour_f(ours, theirs) < 1
        assert contour_f(ours, theirs) == pytest.approx(plain_f(ours, theirs), abs=1e-6)


def test_statistics_by_hand() -> None:
    mean, recall, decay = statistics(np.array([1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]))
    assert mean == pytest.approx(0.4875) and recall == pytest.approx(3 / 8)
    # Quarters share their ends: frames 1-3 and 6-8, as in the toolkit.
    assert decay == pytest.approx((1.0 + 0.8 + 0.6) / 3 - (0.3 + 0.2 + 0.1) / 3)


def test_first_and_last_frame_do_not_count() -> None:
    truth = np.zeros((6, 20, 20), np.uint8)
    truth[:, 5:12, 5:12] = 1
    truth[:, 14:18, 2:9] = 2
    masks = truth.copy()
    masks[0] = masks[-1] = 0
    for row, k in zip(evaluate(masks, truth), (1, 2), strict=True):
        assert row["object"] == k and row["j_mean"] == row["f_mean"] == 1 and row["j_decay"] == 0
    masks[2][truth[2] == 2] = 1
    assert evaluate(masks, truth)[1]["j_mean"] == pytest.approx(3 / 4)
    with pytest.raises(ValueError, match="marks no object"):
        evaluate(masks, np.zeros_like(truth))


@pytest.mark.parametrize(
    "protocol",
    [replace(JABRI, context=3, top_k=4, radius=2), replace(DINO, context=3, radius=2), DINO],
)
def test_propagation_equals_a_plain_one(protocol: Protocol) -> None:
    """Written out place by place; 10 places do not divide into blocks."""
    torch.manual_seed(0)
    T, h, w, d = 6, 9, 10, 5
    features, first = torch.randn(T, h, w, d), torch.rand(h, w, 3).softmax(-1)
    got = propagate(features, first, protocol)
    x = features / features.norm(dim=-1, keepdim=True)
    labels = [first]
    for t in range(1, T):
        out = torch.empty(h, w, 3)
        if protocol.filled:  # as if frame 0 had been shown `context` times before the video
            video = [0] * protocol.context + list(range(T))
            frames = [0, *video[t : t + protocol.context]]
        else:
            frames = [0] + [f for f in range(max(0, t - protocol.context), t) if f]
        for y in range(h):
            for c in range(w):
                found = []
                for place, f in enumerate(frames):
                    for yy in range(h):
                        for cc in range(w):
                            dy, dx = abs(y - yy), abs(c - cc)
                            near = max(dy, dx) <= protocol.radius
                            if not protocol.square:
                                near = (dy**2 + dx**2) ** 0.5 < protocol.radius
                            if near or (place == 0 and protocol.first_anywhere):
                                found.append((float(x[t, y, c] @ x[f, yy, cc]), labels[f][yy, cc]))
                best = sorted(found, key=lambda pair: -pair[0])[: protocol.top_k]
                weight = torch.tensor([a / protocol.temperature for a, _ in best]).softmax(0)
                out[y, c] = sum(wt * lab for wt, (_, lab) in zip(weight, best, strict=True))
        labels.append(out)
    torch.testing.assert_close(got, torch.stack(labels), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DAVIS's folders: a red square that moves over noise, 6 frames of 64 x 48 px, two sizes."""
    root = tmp_path_factory.mktemp("davis")
    rng = np.random.default_rng(0)
    for name, start in (("slow", 10), ("fast", 4)):
        pictures, marks = root / "JPEGImages" / "480p" / name, root / "Annotations" / "480p" / name
        pictures.mkdir(parents=True)
        marks.mkdir(parents=True)
        for t in range(6):
            rgb = rng.integers(60, 90, (48, 64, 3)).astype(np.uint8)
            mask = np.zeros((48, 64), np.uint8)
            x = start + t * (3 if name == "slow" else 6)
            mask[14:34, x : x + 20] = 255
            rgb[mask > 0] = (220, 40, 40)
            Image.fromarray(rgb).save(pictures / f"{t:05d}.jpg", quality=95)
            Image.fromarray(mask).save(marks / f"{t:05d}.png")
    return root


def test_a_study_tracks(study: Path, layout: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(study, tmp_path / "own"))
    said: list[str] = []
    table = pd.read_csv(davis.track(Study(own), layout, rows=12, say=said.append))
    assert set(table.weights) == {"trained", "random", "pixels"} and len(said) == 5
    assert said[0] == "2 sequences of all (there is no ImageSets/) at 480p"
    assert len(table) == 2 * 3 + 2 * 3 + 2  # sequences x layers; pixels have one
    by = table.groupby("weights").j_mean.max()
    assert by.pixels > 0.8 and by.trained > 0.6
    strip = next((own / "davis").glob("*/*-trained*-slow.npz"))
    with np.load(strip) as held:
        assert held["masks"].shape == (3, 6, 120, 160) and held["masks"].max() == 1
    with av.open(str(next((own / "davis").glob("*/slow.mp4")))) as film:
        (*_, last) = film.decode(video=0)
        assert film.streams.video[0].frames == 6
    top_left = last.to_ndarray(format="rgb24")[:120, :160].astype(int)
    x = round((10 + 5 * 3 + 10) * 120 / 48)  # the middle of the square in the last frame
    assert np.abs(top_left[60, x] - (227, 105, 18)).max() < 30  # orange over red
    before = (own / "davis.csv").read_bytes()
    for path in (own / "davis").glob("*/*-trained*-*.json"):
        half = f".{path.stem}.other-1.tmp.json"
        path.rename(path.with_name(half))  # as if it had been killed there
    davis.track(Study(own), layout, rows=12, every_point=True, say=said.append)  # it has one
    assert (own / "davis.csv").read_bytes() == before
    shutil.rmtree(own / "davis")
    davis.track(Study(own), layout, rows=12, memory_gb=1e-4, say=said.append)  # a layer at a time
    assert (own / "davis.csv").read_bytes() == before


def test_objects_are_counted_to_the_largest_number() -> None:
    """As davis2017-evaluation counts: number 2 of 1 and 3 is nowhere, and right if left out."""
    truth = np.zeros((4, 20, 20), np.uint8)
    truth[:, 2:8, 2:8], truth[:, 12:18, 12:18], truth[:, 0, 0] = 1, 3, 255
    assert [(r["object"], r["j_mean"]) for r in evaluate(truth, truth)] == [(1, 1), (2, 1), (3, 1)]


def test_labels_begin_and_end_as_the_protocol_says() -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :3] = 1  # of the left half of 2 x 2 places three quarters, their middles with it
    assert davis.shares(mask, 2, 2)[:, :, 1].tolist() == [[0.75, 0], [0.75, 0]]
    assert davis.nearest(mask, 2, 2)[:, :, 1].tolist() == [[1, 0], [1, 0]]
    faint = torch.tensor([[[0.9, 0.1], [1.0, 0.0]]] * 2)[None].expand(2, 2, 2, 2)
    assert not davis.hard_masks(faint, mask, normalised=False)[1].any()
    stretched = davis.hard_masks(faint, mask, normalised=True)[1]  # 0.1 is all that there is of it
    assert stretched[:, :3].all() and not stretched[:, 5:].any()


def test_splits_and_sizes_are_told_apart(study: Path, layout: Path, tmp_path: Path) -> None:
    own, root = Path(shutil.copytree(study, tmp_path / "own")), tmp_path / "DAVIS"
    shutil.copytree(layout, root)
    for part in ("JPEGImages", "Annotations"):
        shutil.copytree(root / part / "480p", root / part / "Full-Resolution")
    lists = root / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("fast\n")
    (lists / "val.txt").write_text("slow\nmissing\n")
    assert (found := find_sequences(root)).told == (
        "1 sequences of val (ImageSets/2017/val.txt) at 480p, not at Full-Resolution; 1 of the "
        "list are not there (missing), so that the mean is not the published one's"
    )
    assert found.named == "val, 480p" and list(found.sequences) == ["slow"]
    full = find_sequences(root, "trainval", "Full-Resolution")
    assert list(full.sequences) == ["fast", "slow"]
    assert full.sequences["fast"].frames[0].parent.parent.name == "Full-Resolution"
    for options, match in [
        (("vall", None), r"split 'vall': .* has train, val, all; did you mean val\?"),
        (
            ("all", "1080p"),
            "resolution '1080p': .* holds 480p, Full-Resolution|Full-Resolution, 480p",
        ),
    ]:
        with pytest.raises(UserError, match=match):
            find_sequences(root, *options)
    lists.rename(root / "ImageSets" / "480p")  # as DAVIS 2016 has them
    line = "/JPEGImages/480p/{0}/0000{1}.jpg /Annotations/480p/{0}/0000{1}.png\n"
    lines = "".join(line.format("slow", t) for t in range(6))
    (root / "ImageSets" / "480p" / "val.txt").write_text(lines)
    assert list(find_sequences(root).sequences) == ["slow"]

    def tracked(split: str | None = None) -> pd.DataFrame:
        kept = davis.track(Study(own), root, rows=12, layers=[0], split=split, say=lambda _: None)
        return pd.read_csv(kept)

    assert set(tracked().data) == {"val, 480p"}
    both = tracked("train")
    assert both.groupby("data").sequence.unique().map(list).to_dict() == {
        "train, 480p": ["fast"], "val, 480p": ["slow"],
    }  # fmt: skip
    mask = root / "Annotations/480p/slow/00000.png"  # another first mask is another question
    numbers = np.asarray(Image.open(mask)).copy()
    numbers[:24] = 0
    Image.fromarray(numbers).save(mask)
    again = tracked()
    assert not again[again.sequence == "slow"].equals(both[both.sequence == "slow"])


def test_channels_are_standardised_over_the_first_frame() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 6) * torch.arange(1, 7) + 10
    got = tiles.standardised(x.half())
    torch.testing.assert_close(got[0].mean((0, 1)), torch.zeros(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(got[0].std((0, 1), correction=0), torch.ones(6), atol=1e-3, rtol=0)
    change = (x[2] - x[1]) / x[0].std((0, 1), correction=0)
    torch.testing.assert_close(got[2] - got[1], change, atol=0.05, rtol=0)


def test_tiles_are_the_models_own_states(study: Path) -> None:
    """A frame of one tile gives exactly model(x, hidden=True)."""
    (trained,) = trained_runs(Study(study))
    tokenizer, index = open_tokenizer(data_dir_of(Study(study), trained.run))
    frame = np.random.default_rng(1).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    model = trained.model("trained")
    got = tiles.tiled_features(model, tokenizer, frame, size=8, patch=4, at_once=2)
    ids = torch.from_numpy(tokenizer.encode(frame[None]).astype(np.int64) + 4)
    with torch.no_grad():
        _, hidden = model(torch.nn.functional.pad(ids, (1, 0), value=1), hidden=True)
    torch.testing.assert_close(got[2], hidden["layer_2"][0, 1:].view(2, 2, -1))
    wide = tiles.tiled_features(
        model, tokenizer, np.tile(frame, (2, 3, 1)), size=8, patch=4, at_once=2
    )
    assert wide.shape == (3, 4, 6, 16) and index["size"] == 8


def test_mistakes(study: Path, layout: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not DAVIS's layout"):
        davis.track(Study(study), tmp_path)
    with pytest.raises(UserError, match=r"layer 9 of run .*0 \(the embedding\) to 2"):
        davis.track(Study(study), layout, layers=[9])
    with pytest.raises(UserError, match="protocol 'other'"):
        davis.track(Study(study), layout, protocol="other")
    broken = Path(shutil.copytree(layout, tmp_path / "broken"))
    (broken / "Annotations/480p/fast/00003.png").unlink()
    with pytest.raises(UserError, match=r"no mask .*00003.png"):
        davis.track(Study(study), broken)
    (broken / "Annotations/480p/fast/00003.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as a mask"):
        davis_masks.read_masks(find_sequences(broken).sequences["fast"].masks)


NUMBERS = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3


def saved(folder: Path, *images: Image.Image) -> list[Path]:
    paths = [folder / f"{i:05d}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    return paths


def palette(numbers: np.ndarray) -> Image.Image:
    image = Image.fromarray(numbers, "P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (palette(NUMBERS), NUMBERS),
        (Image.fromarray(NUMBERS), NUMBERS),  # grey
        (palette(NUMBERS).convert("RGB"), NUMBERS),
        (palette(NUMBERS).convert("RGBA"), NUMBERS),
        (Image.fromarray(NUMBERS.astype(np.uint16)), NUMBERS),
        (Image.fromarray((NUMBERS > 0).astype(np.uint8) * 255), NUMBERS > 0),  # DAVIS 2016
        (Image.fromarray(NUMBERS > 0), NUMBERS > 0),  # one bit
        (Image.fromarray((NUMBERS > 0).astype(np.uint16) * 65535), NUMBERS > 0),
        (Image.fromarray(np.where(NUMBERS == 2, 255, NUMBERS).astype(np.uint8)),
         np.where(NUMBERS == 2, 255, NUMBERS)),  # 1, and void
        (Image.fromarray(np.stack([NUMBERS * 9, NUMBERS * 7, NUMBERS], -1)), NUMBERS),
    ],
)  # fmt: skip
def test_masks_are_read_as_they_are_written(
    tmp_path: Path, image: Image.Image, expected: np.ndarray
) -> None:
    np.testing.assert_array_equal(davis_masks.read_masks(saved(tmp_path, image))[0], expected)


def test_a_sequence_tells_what_its_values_are(tmp_path: Path) -> None:
    """A later frame in which only void, or one object, is left is read like the first."""
    later = np.where(NUMBERS == 2, 255, 0).astype(np.uint8)
    found = davis_masks.read_masks(
        saved(tmp_path, Image.fromarray(NUMBERS), Image.fromarray(later))
    )
    np.testing.assert_array_equal(found, [NUMBERS, later])
    soft = np.linspace(0, 255, 256).astype(np.uint8).reshape(16, 16)
    (mask,) = davis_masks.read_masks(saved(tmp_path, Image.fromarray(soft)))
    np.testing.assert_array_equal(mask, soft > 127)


def test_masks_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    greys = Image.fromarray((NUMBERS * 100).astype(np.uint8))
    for images, match in [
        ([greys], r"grey masks of the values 0, 100, 200: want the objects' numbers"),
        ([Image.fromarray(NUMBERS * 0)], r"00000.png: marks no object \(its values: 0\)"),
        ([palette(NUMBERS), Image.new("P", (9, 9))], r"00001.png: 9 x 9 px, and 00000.png 4 x 3"),
        ([palette(NUMBERS), greys], r"masks of several kinds \(L, P\)"),
    ]:
        with pytest.raises(UserError, match=match) as caught:
            davis_masks.read_masks(saved(tmp_path, *images))
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("case", ["Lids", "rgb", "u16"])
def test_cases(shared_data: Path, case: str) -> None:
    folder = shared_data.parent / "cases" / "davis" / case
    for sequence in find_sequences(folder).sequences.values():
        masks = davis_masks.read_masks(sequence.masks)
        assert len(sequence.frames) == len(masks) == 4 and set(np.unique(masks)) == {0, 1, 2}
        assert [row["object"] for row in evaluate(masks, masks)] == [1, 2]


def test_one_command_makes_every_part(
    study: Path, layout: Path, pictures: Path, clips: Path, tmp_path: Path
) -> None:
    """`scaling represent`: probes, tracking, a continued clip, and the report that shows them."""
    config = {
        "study": "tiny",
        "data": {"frames": 4, "size": 8, "sources": [{"name": "leaves", "kind": "leaves"}]},
        "tokenizer": {"patch": 4, "codes": 32},
        "ladder": {"sizes": ["t16"], "budgets_macs": [1e7], "log2_lr": -6.0},
    }
    own = Path(shutil.copytree(study, tmp_path / "own"))
    (own / "study.yaml").write_text(yaml.safe_dump(config))
    represent(
        own, data=[pictures], davis_data=layout, prompt=[clips / "left" / "0.mp4"], seeds=2,
        clips=1, rows=12, frames=6, memory_gb=1.0,
    )  # fmt: skip
    page = (own / "report.html").read_text()
    for title in ("What the layers know", "Tracking without training", "Generated clips"):
        assert title in page
    assert "No law" in page  # of one run


def test_one_command_runs_the_study_first(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`scaling represent FILE.yaml`; a hidden ball is looked for too."""
    monkeypatch.setattr(permanence, "CLIPS", 48)
    monkeypatch.setattr(permanence, "TUNING", Tuning(end_to_end=True, steps=3, batch=4))
    config = {
        "study": "tiny",
        "data": {"frames": 4, "size": 8, "stride": 1, "train_sequences": 64, "val_sequences": 8,
                 "sources": [{"name": "leaves", "kind": "leaves"}]},
        "tokenizer": {"patch": 4, "codes": 32, "fit_frames": 100},
        "train": {"batch": 4, "warmup_steps": 1, "evals": 0, "compile": "off"},
        "ladder": {"sizes": ["t16"], "budgets_macs": [3e7], "log2_lr": -6.0},
        "launch": {"cluster": "debug"},
    }  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    out = tmp_path / "studies"
    represent(path, data=[pictures], hidden=[8], seeds=1, out=out, set_=["seed=3"])
    rows = pd.read_csv(out / "tiny" / "probes.csv")
    assert set(rows.data) == {pictures.name} and set(rows.chance.notna()) == {True}
    assert set(pd.read_csv(out / "tiny" / "finetune.csv").data) == {"permanence-8"}
    assert yaml.safe_load((out / "tiny" / "study.yaml").read_text())["seed"] == 3
    assert "What the layers know" in (out / "tiny" / "report.html").read_text()
