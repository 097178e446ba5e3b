"""What is trained by which loss, at which rate; and a model that takes another resolution."""

import hashlib
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from scaling.config.schema import Tuning
from scaling.config.study_file import checked
from scaling.errors import UserError
from scaling.models.decoder import Decoder
from scaling.models.family import size
from scaling.models.parametrization import build
from scaling.models.probes import Heads
from scaling.representations import tune
from scaling.representations.finetune import finetune, read_hidden
from scaling.representations.labelled import read_labelled
from scaling.representations.trained import trained_runs
from scaling.representations.tune import batch_of, decayed_groups, objective, rate_at, retuned
from scaling.study_folder import Study
from tests.representations.conftest import write_clip

QUICK = Tuning(steps=15, batch=8)


def model_and_heads(attention: str, prefix: int = 0) -> tuple[Decoder, Heads, Tensor, Tensor]:
    config = size(16, 2, 2, vocab=20, context=9, base_width=16)
    model = build(replace(config, attention=attention, prefix=prefix), seed=0)
    with torch.no_grad():
        model.head.normal_()
    heads = Heads("attention", range(3), 16, 3, seed=0)
    with torch.no_grad():
        heads.weight.normal_()
    ids, labels = torch.randint(4, 20, (6, 9)), torch.randint(3, (6,))
    return model, heads, ids, labels


def test_heads_do_not_move_the_model_under_causal_attention() -> None:
    """The model's gradient is that of the next-token loss alone."""
    model, heads, ids, labels = model_and_heads("causal")
    objective(model, heads, ids, labels)[0].backward()
    got = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attention", ["causal", "prefix", "full"])
def test_end_to_end_the_labels_train_the_model(attention: str) -> None:
    """The gradient is that of the cross-entropy of one head on the last layer; no token counts."""
    model, _, ids, labels = model_and_heads(attention, 4 * (attention == "prefix"))
    heads = Heads("attention", [2], 16, 3, seed=0)
    with torch.no_grad():
        heads.weight.normal_()
    loss, nats = objective(model, heads, ids, labels, end_to_end=True)
    loss.backward()
    assert torch.isnan(nats) and model.head.grad is None
    down, embed = dict(model.named_parameters())["layers.0.down"], model.embed
    assert down.grad is not None and float(down.grad.abs().max()) > 0
    assert embed.grad is not None
    got = embed.grad.clone()
    model.zero_grad()
    _, hidden = model(ids, hidden=True)
    last = torch.nn.functional.layer_norm(hidden["layer_2"][None, :, 1:], (16,))
    torch.nn.functional.cross_entropy(heads(last)[0], labels).backward()
    torch.testing.assert_close(got, embed.grad)


def test_prefix_does_not_predict_what_it_has_seen() -> None:
    """A token inside the prefix is no target: the loss is that of the rest."""
    model, heads, ids, labels = model_and_heads("prefix", 5)
    nats = objective(model, heads, ids, labels)[1]
    losses = model.loss(ids[:, :-1], ids[:, 1:], reduction="none")
    torch.testing.assert_close(nats, losses[:, 4:].mean(), rtol=1e-5, atol=1e-5)


def test_rates_decay_by_layer() -> None:
    model = build(size(32, 3, 2, vocab=20, context=9, base_width=16), seed=0)
    names = {id(p): n for n, p in model.named_parameters()}
    rate = {names[id(g["params"][0])]: g["lr"] for g in decayed_groups(model, Tuning(lr=1.0))}
    assert rate["head"] == 1.0 and rate["norm"] == 1.0
    assert rate["embed"] == pytest.approx(0.9**4)
    assert rate["layers.2.norm_ffn"] == pytest.approx(0.9)
    assert rate["layers.0.norm_ffn"] == pytest.approx(0.9**3)
    assert rate["layers.1.qkv"] == pytest.approx(0.9**2 / 2)  # muP: half at twice the base width


def test_retuned_keeps_the_function_where_nothing_changed(study: Path) -> None:
    (trained,) = trained_runs(Study(study))
    before = trained.model("trained")
    ids = torch.randint(4, before.config.vocab, (2, 9))
    same = retuned(trained, 16, Tuning(rope_base=10_000.0))
    other = retuned(trained, 64, Tuning())
    assert other.config.context == 65 and other.config.rope_base == 50_000
    with torch.no_grad():
        torch.testing.assert_close(same(ids), before(ids))
        assert not torch.allclose(other(ids), before(ids))


def test_a_study_is_fine_tuned(study: Path, pictures: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(study, tmp_path / "own"))
    full = QUICK.model_copy(update={"attention": "full", "end_to_end": True})
    for tuning in (QUICK, full):
        out = finetune(Study(own), pictures, tuning=tuning, seeds=2, say=lambda _: None)
    table = pd.read_csv(out)
    assert len(table) == 2 * (2 * 3 + 2 * 1) and set(table.px) == {16} and set(table.tokens) == {16}
    assert set(table.weights) == {"trained", "random"} and set(table.frames) == {1}
    assert (table[table.weights == "random"].macs_total == 0).all()
    causal = table[(table.attention == "causal") & (table.weights == "trained")]
    assert causal.next_token_loss.notna().all() and (causal.next_token_loss < 4).all()
    assert table[table.attention == "full"].next_token_loss.isna().all()
    assert causal.top1.max() > causal.chance.max() + 0.2
    before = out.read_bytes()
    said: list[str] = []
    finetune(Study(own), pictures, tuning=QUICK, seeds=2, say=said.append)
    assert said == [f"{pictures}: a folder per class; 36 files, 3 classes"]  # nothing is trained
    assert out.read_bytes() == before
    torn = next(own.glob("finetuned/*.json"))
    torn.write_text(torn.read_text()[:-20])
    with pytest.raises(UserError, match=r"damaged \(.*remove it"):
        finetune(Study(own), pictures, tuning=QUICK, seeds=2, say=said.append)


def test_epochs_are_passes_over_the_training_files(
    study: Path, pictures: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(study, tmp_path / "own"))
    tuning = Tuning(epochs=1.5, batch=8)
    table = pd.read_csv(finetune(Study(own), pictures, tuning=tuning, seeds=1, say=lambda _: None))
    assert set(table.n_train) == {27} and set(table.steps) == {round(1.5 * (27 // 8))}
    # They are those steps: nothing else differs.
    steps = Tuning(steps=4, batch=8)
    both = pd.read_csv(finetune(Study(own), pictures, tuning=steps, seeds=1, say=lambda _: None))
    assert len(both) == 2 * len(table)
    numbers = ["weights", "layer", "top1", "next_token_loss"]
    assert both[numbers].duplicated(keep=False).all()
    with pytest.raises(UserError, match="steps 4 and epochs 2: give one of them"):
        checked(Tuning, epochs=2.0, steps=4)


def test_runs_of_before_keep_their_names(study: Path, pictures: Path, tmp_path: Path) -> None:
    """What was fine-tuned before there were epochs and views is not done again."""
    own = Path(shutil.copytree(study, tmp_path / "own"))
    finetune(Study(own), pictures, tuning=QUICK, seeds=1, say=lambda _: None)
    (trained,) = trained_runs(Study(own))
    settings = {
        "px": 16, "frames": None, "stride": None, "rope_base": 50_000.0, "attention": "causal",
        "end_to_end": False, "layer_decay": 0.9, "lr": 1e-3, "head_lr": 3e-3, "steps": 15,
        "batch": 8, "head": "attention", "run": trained.run_id,
        "data": read_labelled(pictures).key, "seed": 0, "weights": "trained",
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    assert (own / "finetuned" / f"{key}.json").exists()


@pytest.fixture(scope="module")
def corners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bright square jumps from corner to corner for 6 frames; the label is the last corner.

    The list says of every third clip that what is looked for is hidden.
    """
    root = tmp_path_factory.mktemp("corners")
    rng = np.random.default_rng(0)
    rows = ["path,label,visible"]
    for i in range(64):
        path = [*rng.integers(4, size=5).tolist(), i % 4]
        frames = np.full((6, 32, 32, 3), 40, np.uint8)
        for t, corner in enumerate(path):
            y, x = 16 * (corner // 2), 16 * (corner % 2)
            frames[t, y : y + 16, x : x + 16] = 220
        write_clip(root / f"{i}.mp4", frames)
        rows.append(f"{i}.mp4,{i % 4},{float(i % 3 > 0)}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root / "labels.csv"


def test_clips_longer_than_those_of_training_are_learned(
    study: Path, corners: Path, tmp_path: Path
) -> None:
    """Six frames, where training had four: the last corner is found, in one context of all."""
    own = Path(shutil.copytree(study, tmp_path / "own"))
    tuning = Tuning(frames=6, end_to_end=True, steps=60, lr=3e-3, head_lr=1e-2, batch=16)
    out = finetune(Study(own), corners, tuning=tuning, head="grid", seeds=2, say=lambda _: None)
    table = pd.read_csv(out)
    assert (
        set(table.stride) == {1}
        and set(table.px) == {8}
        and set(table.tokens) == {24}
        and set(table.frames) == {6}
    )
    assert list(table.weights) == ["random", "random", "trained", "trained"]
    trained = table[table.weights == "trained"]
    assert trained.top1.min() > 0.8 and trained.chance.max() == 0.25
    assert (trained.n_hidden > 0).all() and (trained.n_hidden < trained.n_test).all()
    assert trained.top1_hidden.notna().all()


def test_a_file_is_judged_by_the_mean_over_its_views(
    study: Path, corners: Path, tmp_path: Path
) -> None:
    """Probabilities are averaged, and every view is one that a step can see."""
    model, heads, ids, _ = model_and_heads("causal")
    ids_FVT = torch.stack([ids, ids.flip(0), ids.roll(1, 0)], 1)
    labels, none = torch.arange(6) % 3, np.zeros(6, bool)
    found = tune._scored(model, heads, ids_FVT, labels, np.arange(6), none, Tuning(batch=4))
    with torch.no_grad():
        each = [tune._read(model, heads, ids_FVT[:, v], False)[0].softmax(-1) for v in range(3)]
        nats = [float(objective(model, heads, ids_FVT[:, v], labels)[1]) for v in range(3)]
    right = (torch.stack(each).mean(0).argmax(-1) == labels).double().mean(1)
    assert [one["top1"] for one in found] == right.tolist()
    assert found[0]["next_token_loss"] == pytest.approx(np.mean(nats), rel=1e-5)
    seen = torch.stack([tune.view_of(step, 6, 3, seed=0) for step in range(20)])
    assert seen.unique().tolist() == [0, 1, 2] and not tune.view_of(0, 6, 1, seed=0).any()
    own = Path(shutil.copytree(study, tmp_path / "own"))
    tuning = Tuning(clips=2, crops=3, steps=5, batch=8)
    table = pd.read_csv(finetune(Study(own), corners, tuning=tuning, seeds=1, say=lambda _: None))
    assert set(table.clips) == {2} and set(table.crops) == {3}


def test_a_grid_is_read_of_the_last_frame() -> None:
    """Its own tokens, and those before it only through the model's attention."""
    model, _, ids, _ = model_and_heads("causal")
    heads = Heads("grid", range(3), 16, 3, side=2, seed=0)  # 9 ids: a start, two frames of 4
    other = ids.clone()
    other[:, 1:5] = 4 + (ids[:, 1:5] - 3) % 16
    with torch.no_grad():
        heads.weight.normal_()
        before, after = (tune._read(model, heads, x, False)[0] for x in (ids, other))
    torch.testing.assert_close(after[0], before[0])  # the embedding of the last frame is the same
    assert float((after[2] - before[2]).abs().max()) > 1e-3


def test_random_weights_are_those_that_the_run_started_with(study: Path) -> None:
    (trained,) = trained_runs(Study(study))
    made = retuned(trained, 64, Tuning(), "random").state_dict()
    start = build(trained.run.model, seed=trained.run.seed).state_dict()
    assert all(torch.equal(made[name], start[name]) for name in start)


def test_what_is_hidden_is_said_by_a_column(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,label,visible\na,0,0.000\nb,1,0.250\n")
    assert read_hidden(table, ["b", "a"]).tolist() == [False, True]
    table.write_text("path,label\na,0\nb,1\n")
    assert read_hidden(table, ["a", "b"]).tolist() == [False, False]
    table.write_text("path,label,visible\na,0,yes\n")
    with pytest.raises(UserError, match=r"column visible: .*'yes'; want shares, 0 to 1"):
        read_hidden(table, ["a"])


def test_mistakes(study: Path, pictures: Path, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images have no frames, no stride and one view each"):
        finetune(Study(study), pictures, tuning=Tuning(frames=8))
    with pytest.raises(UserError, match="one view each"):
        finetune(Study(study), pictures, tuning=Tuning(crops=3))
    with pytest.raises(UserError, match="frames: 0: input should be greater than 0"):
        checked(Tuning, frames=0)
    with pytest.raises(UserError, match="12 frames are too few for 16 frames at stride 1"):
        finetune(
            Study(Path(shutil.copytree(study, tmp_path / "own"))), clips, tuning=Tuning(frames=16),
            say=lambda _: None,
        )  # fmt: skip
    with pytest.raises(UserError, match="6 px are no multiple of the tokenizer's 4 px"):
        finetune(Study(study), clips, tuning=Tuning(px=6))
    with pytest.raises(UserError, match="attention: 'both' is not one of 'causal', 'prefix'"):
        checked(Tuning, attention="both")
    with pytest.raises(UserError, match="labels must train the model: set end_to_end"):
        checked(Tuning, attention="full")
    with pytest.raises(UserError, match="head 'mean': choose one of average, attention, grid"):
        finetune(Study(study), pictures, head="mean")
    with pytest.raises(UserError, match="10 px are no multiple of the tokenizer's 4 px"):
        finetune(Study(study), pictures, tuning=Tuning(px=10))


def test_the_paper_s_settings_are_the_defaults() -> None:
    """Section 4.2: doubled resolution, RoPE base 50,000, layer decay 0.9, causal attention."""
    tuning = Tuning()
    assert (tuning.px, tuning.rope_base, tuning.layer_decay) == (None, 50_000.0, 0.9)
    assert tuning.attention == "causal" and not tuning.end_to_end


def test_order_and_rate_are_functions_of_the_step() -> None:
    seen = np.concatenate([batch_of(step, 10, 4, 7) for step in range(4)])
    assert len(seen) == 16 and sorted(set(seen[:8])) == sorted(seen[:8])  # a pass repeats nothing
    assert (batch_of(2, 10, 4, 7) != batch_of(0, 10, 4, 7)).any()
    assert len(batch_of(0, 3, 32, 7)) == 3
    rates = [rate_at(step, 100) for step in range(101)]
    assert rates[0] == 0.1 and rates[9] == rates[10] == 1.0 and rates[100] == pytest.approx(0)
    assert np.all(np.diff(rates[10:]) < 0)


@pytest.mark.parametrize("end_to_end", [False, True])
def test_interrupted_it_ends_the_same(
    study: Path,
    pictures: Path,
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end_to_end: bool,
) -> None:
    """Ctrl-C in the middle: the same call goes on from the saved step, to the same rows."""
    tuning = QUICK.model_copy(update={"end_to_end": end_to_end})
    data = clips if end_to_end else pictures
    whole = Path(shutil.copytree(study, tmp_path / "whole"))
    expected = finetune(Study(whole), data, tuning=tuning, seeds=1, say=lambda _: None).read_bytes()
    own = Path(shutil.copytree(study, tmp_path / "own"))
    steps: list[int] = []
    real, one_at_a_time = tune.batch_of, Lock()

    def counted(step: int, *rest: int) -> np.ndarray:
        with one_at_a_time:
            steps.append(step)
            if step == 9 and steps.count(9) == 1:
                raise KeyboardInterrupt
        return real(step, *rest)

    monkeypatch.setattr(tune, "batch_of", counted)
    monkeypatch.setattr(tune, "SAVE_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        finetune(Study(own), data, tuning=tuning, seeds=1, say=lambda _: None)
    assert list(own.glob("finetuned/*.pt"))
    (own / "finetuned" / ".a.other-1.tmp.json").write_text("[")  # what a killed call leaves
    out = finetune(Study(own), data, tuning=tuning, seeds=1, say=lambda _: None)
    # From trained and from random weights, nothing again but the step that was not finished.
    assert Counter(steps) == Counter(range(15)) + Counter(range(15)) + Counter([9])
    assert out.read_bytes() == expected
    assert not list(own.glob("finetuned/*.pt*"))
