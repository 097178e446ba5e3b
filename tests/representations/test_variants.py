"""A study of variants: its file alone says what is compared, and sets it beside the paper."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scaling.analysis.questions.paper_tables import PAPER, paper_table, title_of
from scaling.analysis.questions.quality import half_width
from scaling.config.schema import variant_studies
from scaling.config.study_file import load_study
from scaling.errors import UserError
from scaling.plan.cost import study_cost
from scaling.plan.runs import ladder_runs
from scaling.representations import finetune, probe
from scaling.representations.of_variants import read_variants
from scaling.results import read_learned
from scaling.study.pipeline import run_study
from scaling.study_folder import Study

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = """\
study: tiny
data:
  frames: 2
  size: 8
  stride: 1
  train_sequences: 128
  val_sequences: 8
  sources:
    - {name: leaves, kind: leaves}
tokenizer: {patch: 4, codes: 32, fit_frames: 200}
model: {base_width: 16}
train: {batch: 4, warmup_steps: 5, evals: 0}
ladder: {sizes: [t16], budgets_macs: [1e7], log2_lr: -6, seeds: 2}
launch: {cluster: debug}
probe: {head: average}
variants:
  - {name: LLaMA}
  - {name: other tokens, tokenizer: {codes: 16}}
  - {name: tuned, finetune: {px: 16, steps: 10, batch: 8}}
"""
PATCHES = """\
  - {name: patches, data: {pixels: true}, model: {inputs: patches, targets: patches}}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A study of three variants, trained and read."""
    folder = tmp_path_factory.mktemp("variants")
    (folder / "tiny.yaml").write_text(TINY)
    config = load_study(folder / "tiny.yaml")
    run_study(config, Study(folder / config.study), say=lambda _: None)
    read_variants(Study(folder / "tiny"), config, pictures, say=lambda _: None)
    return folder / "tiny"


@pytest.mark.parametrize(
    ("name", "title", "runs"),
    [
        ("tokenizers", "Input and target tokens (Table 3)", 30),
        ("resolution", "Token resolution (Table 4)", 10),
        ("pooling", "Pooling (Table 5)", 5),
        ("architecture", "Architecture (Table 6)", 15),
        ("attention", "Attention in fine-tuning (A.2)", 5),
    ],
)
def test_the_sweeps_that_ship(name: str, title: str, runs: int) -> None:
    """Each file plans, and its variants bear the names of one table of the paper."""
    config = load_study(ROOT / "sweeps" / f"{name}.yaml")
    assert title_of(list(variant_studies(config))) == title
    assert set(PAPER[title]) <= set(variant_studies(config))
    costs, left = study_cost(config, threads=1, measure=False)
    assert not left and sum(c.runs for c in costs) == runs


def test_architectures_are_equal_in_parameters_and_compute() -> None:
    config = load_study(ROOT / "sweeps" / "architecture.yaml")
    costs, _ = study_cost(config, threads=1, measure=False)
    params, macs = [c.params for c in costs], [c.macs for c in costs]
    assert max(params) / min(params) < 1.08 and max(macs) / min(macs) < 1.01


def test_a_variant_is_the_study_with_its_own_values(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(TINY)
    config = load_study(tmp_path / "s.yaml", ["variants.tuned.finetune.steps=7"])
    found = variant_studies(config)
    assert [one.tokenizer.codes for one in found.values()] == [32, 16, 32]
    assert [one.finetune and one.finetune.steps for one in found.values()] == [None, None, 7]
    assert all(one.probe.head == "average" and not one.variants for one in found.values())
    runs = [ladder_runs(one, 1.0, "key", Path())[0] for one in found.values()]
    ids = [[run.run_id for run in of_one] for of_one in runs]
    assert ids[0] == ids[2] and not set(ids[0]) & set(ids[1])  # runs of equal settings are shared


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("codes: 16}", "cods: 16}", "s.yaml:18: variants.1.tokenizer.cods: unknown key; did you"),
        ("codes: 16}", "codes: 1}", "s.yaml:18: variants.1.tokenizer.codes: 1: input should be gr"),
        ("tokenizer: {codes: 16}", "tokeniser: {}", "variants.1.tokeniser: unknown key; did you"),
        ("px: 16", "attention: full", "s.yaml:19: variants.2.finetune: attention full sees"),
        ("px: 16", "steps: 0", "appears twice"),
        ("tokenizer: {codes: 16}", "data: {size: 10}", "variants.1: data.size 10 is not"),
        ("tokenizer: {codes: 16}", "ladder: {sizes: [t16, t24]}", "variants.1.ladder: a vari"),
        ("other tokens", "LLaMA", "two variants share the name LLaMA"),
        ("log2_lr: -6, ", "", "s.yaml:1: study: no learning rate"),
        ("name: LLaMA", "ladder: {}", "s.yaml:17: variants.0.name: missing"),
        ("variants:", "lr: {widths: [16]}\nvariants:", "leave `lr:` and `transfer:` out"),
        ("budgets_macs: [1e7]", "budgets_macs: [1e7, 2e7]", "is one size at one budget"),
        ("{codes: 16}", "16", "s.yaml:18: variants.1.tokenizer: 16: input should be a valid dict"),
    ],
)  # fmt: skip
def test_mistakes_have_a_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TINY
    (tmp_path / "s.yaml").write_text(TINY.replace(old, new))
    with pytest.raises(UserError) as caught:
        load_study(tmp_path / "s.yaml")
    assert message in str(caught.value)


def test_what_reads_variants_needs_variants(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(TINY[: TINY.index("variants:")])
    with pytest.raises(UserError, match=r"s.yaml:15: probe: .* add `variants:`"):
        load_study(tmp_path / "s.yaml")


def test_a_mistake_of_the_study_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(TINY.replace("size: 8", "size: x"))
    with pytest.raises(UserError) as caught:
        load_study(tmp_path / "s.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_rows(done: Path) -> None:
    """Seed i is the i-th run, split and start; runs that variants share are trained once."""
    table = pd.read_csv(done / "variants.csv", keep_default_na=False)
    assert len(list((done / "runs").glob("*/rows.json"))) == 4
    assert table.groupby("variant").seed.unique().map(list).to_dict() == {
        "LLaMA": [0, 1], "other tokens": [0, 1], "tuned": [0, 1]
    }  # fmt: skip
    assert (table.groupby(["variant", "seed"]).run_id.nunique() == 1).all()
    llama, tuned = (table[table.variant == name] for name in ("LLaMA", "tuned"))
    assert set(llama.run_id) == set(tuned.run_id)
    assert set(llama.weights) == {"trained", "random"} and set(tuned.weights) == {"trained"}
    assert set(llama.tokens) == {4} and set(tuned.tokens) == {16} and set(tuned.px) == {16}
    assert set(tuned.tuned) == {"10 steps, causal, RoPE base 50,000"}
    assert set(table[table.variant == "other tokens"].tokenizer) == {"codebook-4px-16"}


def test_table_stands_beside_the_paper(done: Path) -> None:
    found = read_learned(done / "variants.csv")
    assert found is not None
    table = paper_table(found).set_index("choice")
    assert list(table.index) == ["LLaMA", "other tokens", "tuned"]
    assert table.paper["LLaMA"] == 53.2 and np.isnan(table.paper["tuned"])
    assert (table.low <= table.ours).all() and (table.ours <= table.high).all()
    assert table.difference["LLaMA"] == table.difference_low["LLaMA"] == 0
    rows = pd.read_csv(done / "variants.csv", keep_default_na=False)
    wide = rows[rows.weights == "trained"].pivot_table(
        index=["variant", "seed"], columns="layer", values="top1"
    )
    a, b = wide.loc["LLaMA"].to_numpy(), wide.loc["tuned"].to_numpy()
    # Of two seeds each is scored at the layer that the other likes best.
    scored = [np.array([v[0, v[1].argmax()], v[1, v[0].argmax()]]) for v in (a, b)]
    assert table.ours["tuned"] == pytest.approx(100 * scored[1].mean())
    apart = scored[1] - scored[0]
    assert table.difference["tuned"] == pytest.approx(100 * apart.mean())
    half = half_width(apart, 27, 9, "drawn", 0.0)
    assert table.difference_high["tuned"] == pytest.approx(100 * (apart.mean() + half))
    assert np.isnan(table.nats["LLaMA"]) and 0 < table.nats["tuned"] < np.log(36)
    assert "t16 (" in table.run_at["tuned"] and "fine-tuned: 10 steps" in table.run_at["tuned"]
    assert "10,0" not in table.run_at["LLaMA"]


def test_report_and_csv(done: Path) -> None:
    from scaling.commands.fitting import report

    report(done)
    page = (done / "report.html").read_text()
    assert "The choices compared" in page and "Architecture (Table 6): pictures0, 2 seeds" in page
    assert "The study compares choices" in page
    written = pd.read_csv(done / "paper_table.csv")
    assert written.choice.tolist() == ["LLaMA", "other tokens", "tuned"]


def test_folders_of_one_name_are_kept_apart(done: Path, pictures: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(done, tmp_path / "tiny"))
    other = Path(shutil.copytree(pictures, tmp_path / pictures.name))
    (other / "above" / "0.png").unlink()
    config = load_study(own / "study.yaml")
    for _ in range(2):  # and again nothing changes
        read_variants(Study(own), config, other, say=lambda _: None)
        read_variants(Study(own), config, pictures, say=lambda _: None)
        table = pd.read_csv(own / "variants.csv")
        first, second = table.data.unique()
        assert second == pictures.name or first == pictures.name
        assert any(name.startswith(f"{pictures.name} (") for name in (first, second))
        assert set(table.groupby("data").data_key.nunique()) == {1}
    assert set(paper_table(table).data) == {first, second}


def test_again_nothing_is_done_again(
    done: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "train_heads", None)
    monkeypatch.setattr(finetune, "tune", None)
    before = (done / "variants.csv").read_bytes()
    config = load_study(done / "study.yaml")
    read_variants(Study(done), config, pictures, say=lambda _: None)
    assert (done / "variants.csv").read_bytes() == before
    (done / "variants.json").rename(done / "away.json")
    with pytest.raises(UserError, match="run `scaling study` first"):
        read_variants(Study(done), config, pictures)
    (done / "away.json").rename(done / "variants.json")


def test_the_last_patch_is_read_too(tmp_path: Path, pictures: Path) -> None:
    """One frame of patches: its last one was never an input of the training."""
    text = TINY[: TINY.index("variants:")].replace("frames: 2", "frames: 1")
    (tmp_path / "tiny.yaml").write_text(text + "variants:\n" + PATCHES)
    config = load_study(tmp_path / "tiny.yaml")
    run_study(config, Study(tmp_path / config.study), say=lambda _: None)
    table = pd.read_csv(
        read_variants(Study(tmp_path / "tiny"), config, pictures, say=lambda _: None)
    )
    assert set(table.tokens) == {4} and table.top1.notna().all()
