"""What tokens cost, against counts by hand; the page of the paper's scale, against the command."""

import shutil
from pathlib import Path

import pytest

from scaling.config.schema import TokenizerConfig
from scaling.config.study_file import load_study
from scaling.models.tokenizers.dvae import DVAE
from scaling.plan.cost import study_cost
from scaling.plan.token_cost import encoder_macs, lines
from scaling.storage import outputs
from tests.shell import answer

ROOT = Path(__file__).resolve().parents[2]
TOTO = "sweeps/toto_slurm.yaml"


def dvae_encoder_macs(size: int, width: int, codes: int) -> int:
    """Convolutions of DALL-E's encoder by hand: kernels 7; 3, 3, 3, 1 in two blocks a group."""
    total = 3 * width * 49 * size**2
    inputs = width
    for group in range(4):
        outputs, places = width * 2**group, (size // 2**group) ** 2
        for _ in range(2):
            hidden = outputs // 4
            total += (
                places * 9 * (inputs * hidden + 2 * hidden * hidden) + places * hidden * outputs
            )
            if inputs != outputs:
                total += places * inputs * outputs
            inputs = outputs
    return total + (size // 8) ** 2 * inputs * codes


def test_macs_of_the_encoders() -> None:
    published = TokenizerConfig(kind="dvae", patch=8, codes=8192, weights=Path("nowhere"))
    macs, what = encoder_macs(published, 128)
    assert macs == dvae_encoder_macs(128, 256, 8192) and "published dVAE" in what
    assert encoder_macs(published, 256)[0] == 4 * macs
    assert encoder_macs(TokenizerConfig(patch=8, codes=1024), 128)[0] == 256 * 1024 * 192
    small = TokenizerConfig(kind="vqgan", patch=4, codes=64, width=8)
    assert 0 < encoder_macs(small, 32)[0] < macs


def test_weights_that_are_here_are_read(tmp_path: Path) -> None:
    DVAE(64, 8, 4, 2, 8).save(tmp_path / "small.safetensors")
    config = TokenizerConfig(kind="dvae", patch=8, codes=64, weights=tmp_path / "small.safetensors")
    assert encoder_macs(config, 32) == (dvae_encoder_macs(32, 8, 64), "small.safetensors")


def test_the_papers_scale() -> None:
    config = load_study(ROOT / TOTO)
    costs, _ = study_cost(config, threads=1, measure=False)
    said = lines(config, costs)
    words = {line.split()[0]: line.split() for line in said}
    assert [words[name][1] for name in ("imagenet", "kinetics600", "ego4d", "howto100m")] == [
        "20.0%", "10.0%", "10.0%", "60.0%"
    ]  # fmt: skip
    sequences = 1e12 / 4097  # positions: the start token and the codes
    hours = 0.6 * sequences * 16 * 4 / 30 / 3600
    assert float(words["howto100m"][5].replace(",", "")) == pytest.approx(hours, abs=1)
    gigabytes = float(words["all:"][1].replace(",", ""))
    assert gigabytes == pytest.approx(sequences * 4098 * 2 / 1e9, rel=1e-3)
    speed = config.launch.gpu_macs_per_second
    assert speed is not None
    encoding = sequences * 16 * dvae_encoder_macs(128, 256, 8192) / (speed / 2) / 3600
    assert f"{encoding:,.0f} GPU-hours" in next(line for line in said if "encoding" in line)
    sizes = [line.split() for line in said if line.startswith("ladder")]
    assert [words[1] for words in sizes] == ["a1", "a2", "a3", "a4", "a5", "a6"]
    spent = {cost.size: cost.macs for cost in costs}
    for _, size, _, hours_of_runs, _ in sizes:
        expected = spent[size] / speed / 3600
        assert float(hours_of_runs.replace(",", "")) == pytest.approx(expected, abs=0.05)
    assert any("NVIDIA's data sheet" in line for line in said)


def test_the_page_is_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    monkeypatch.chdir(ROOT)
    answer("plan", TOTO, "--no-measure", "--page", str(page))  # its code: is the cluster here?
    kept = ROOT / "docs" / "paper_scale.md"
    made = page.read_text().replace(str(page), "docs/paper_scale.md")
    assert made.partition("\n")[2] == kept.read_text().partition("\n")[2]
    checkout = tmp_path / "docs"  # has the page alone: the record of what was made is in no git
    checkout.mkdir()
    shutil.copy(kept, checkout)
    outputs.claim("scaling plan", checkout / kept.name)
