"""`scaling tokens` and `scaling tokenizer` as a user types them."""

from contextlib import chdir
from pathlib import Path

import pytest
import torch

from scaling.data.shards import read_index
from scaling.models.tokenizers.dvae import DVAE
from scaling.models.tokenizers.weights import load
from tests import shell
from tests.data.clips import write_video
from tests.data.test_encode import noise

STUDY = """\
study: own
data:
  frames: 2
  size: 16
  stride: 1
  clips_per_video: 6
  train_sequences: 40
  val_sequences: 8
  val_fraction: 0.3
  sources:
    - {name: clips, kind: video, path: clips, weight: 0.8}
    - {name: leaves, kind: leaves, weight: 0.2}
tokenizer: {patch: 4, codes: 16, fit_frames: 64, width: 8, steps: 4}
ladder: {sizes: [t16], budgets_macs: [1e9], log2_lr: -6}
"""


def scaling(where: Path, *arguments: str, code: int = 0) -> str:
    with chdir(where):
        return shell.scaling(*arguments, code=code)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "clips").mkdir()
    for i in range(5):
        write_video(folder / "clips" / f"{i}.mp4", noise(i, 25))
    (folder / "clips" / "text.mp4").write_text("no video")
    (folder / "own.yaml").write_text(STUDY)
    return folder


def test_tokens_says_what_was_encoded(own: Path) -> None:
    assert "`scaling encode CONFIG` makes them" in scaling(own, "tokens", "own.yaml", code=2)
    scaling(own, "encode", "own.yaml")
    said = scaling(own, "tokens", "own.yaml")
    (folder,) = (own / "studies" / "own" / "data").glob("[!.]*")
    index = read_index(folder)
    sha256 = index["tokenizer"]["sha256"]
    assert f"codebook-4px-16, weights sha256 {sha256[:16]}" in said
    assert "2 frames of 16 px, 16 tokens a frame, 34 tokens with start and end" in said
    rows = {tuple(line.split()[i] for i in (0, 3)): line.split() for line in said.splitlines()
            if line.startswith(("clips ", "leaves "))}  # fmt: skip
    assert rows["leaves", "train"][7:] == ["0.000", "80", "40", f"{40 * 34:,}"]
    clips = rows["clips", "train"], rows["clips", "validation"]
    assert sum(int(row[4]) for row in clips) == 5 and sum(int(row[6]) for row in clips) == 1
    assert sum(int(row[8]) for row in clips) == 5 * 25
    assert "16 of 16 used in training (100.0%)" in said and "2-grams" in said and " dB" in said
    assert "text.mp4: error" in said
    for where in ("studies/own", f"studies/own/data/{folder.name}"):
        assert scaling(own, "tokens", where) == said


def test_convert_reads_whole_modules_without_their_code(own: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DVAE(16, 8, 2, 2, 8)
    for name in ("encoder", "decoder"):
        torch.save(getattr(model, name), tmp_path / f"{name}.pkl")
    made = tmp_path / "weights" / "out.safetensors"  # in a folder that is not there yet
    said = scaling(tmp_path, "tokenizer", "convert", "encoder.pkl", "decoder.pkl", str(made))
    assert "a DVAE of 16 codes, 2 px each" in said and " dB on pictures of leaves" in said
    for name, tensor in load(made).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    (tmp_path / "other").touch()
    assert made.stat().st_mode == (tmp_path / "other").stat().st_mode
    assert "no such file" in scaling(tmp_path, "tokenizer", "convert", "none", "o", code=2)


def test_train_sets_a_learned_tokenizer_beside_k_means(own: Path) -> None:
    said = scaling(own, "tokenizer", "train", "own.yaml", "v.safetensors", "--set",
                   "tokenizer.kind=vqgan")  # fmt: skip
    lines = {line.split()[0]: line for line in said.splitlines()}
    for kind in ("codebook", "vqgan"):
        assert "clips" in lines[kind] and "leaves" in lines[kind] and " dB" in lines[kind]
    assert "4 x 4 tokens a frame, 16 codes" in said
    study = (own / "own.yaml").read_text().replace("{patch", "{kind: vqgan, patch")
    (own / "given.yaml").write_text(study.replace("study: own", "study: given"))
    scaling(own, "encode", "given.yaml", "--set", "tokenizer.weights=v.safetensors")
    assert "vqgan-4px-16" in scaling(own, "tokens", "studies/given")
    assert "nothing to train" in scaling(own, "tokenizer", "train", "own.yaml", code=2)
