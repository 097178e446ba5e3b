"""The schema: every mistake at once, with line, value, rule and remedy."""

from pathlib import Path

import pytest

from scaling.config.run import RunConfig
from scaling.config.study_file import load_study
from scaling.errors import UserError

GOOD = """\
study: s
data:
  sources:
    - {name: leaves, kind: leaves}
  size: 16
tokenizer: {patch: 4}
lr:
  widths: [16, 32]
  log2_min: -8
ladder:
  sizes: [t16]
  budgets_macs: [1e9, 2.5e9]
"""


def problems(tmp_path: Path, text: str, *overrides: str) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_study(path, overrides)
    return str(caught.value).replace(str(tmp_path) + "/", "")


def test_good(tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    config = load_study(path, ["train.batch=16", "data.sources.leaves.weight=2"])
    assert config.ladder and config.ladder.budgets_macs == (1e9, 2.5e9)
    assert config.train.batch == 16
    assert config.data.sources[0].weight == 2.0


def test_every_mistake_at_once_with_its_line(tmp_path: Path) -> None:
    text = (
        GOOD.replace("log2_min", "log2_mn").replace("t16]", "t17]").replace("size: 16", "size: x")
    )
    said = problems(tmp_path, text)
    assert "bad.yaml:9: lr.log2_mn: unknown key; did you mean 'log2_min'?" in said
    assert "bad.yaml:11: ladder.sizes.0: unknown size 't17'; did you mean 't16'?" in said
    assert "bad.yaml:5: data.size: 'x': input should be a valid integer" in said


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[1e9, 2.5e9]", "[-1e9]", "bad.yaml:12: ladder.budgets_macs.0: -1000000000.0:"),
        ("[1e9, 2.5e9]", "[2e9, 1e9]", "must increase"),
        ("budgets_macs: [1e9, 2.5e9]", "seeds: 2", "budgets_macs: missing; list the sizes and"),
        ("budgets_macs:", "macs: 1e12\n  budgets_macs:", "both budgets_macs and macs"),
        ("budgets_macs:", "first_macs: 1e9\n  budgets_macs:", "first_macs is of a ladder with"),
        ("budgets_macs: [1e9, 2.5e9]", "macs: 1e12\n  seeds: 2", "the ladder decides how many"),
        (
            "sizes: [t16]\n  budgets_macs: [1e9, 2.5e9]",
            "sizes: [t16, t32-gpt2]\n  macs: 1e12",
            "sizes of several shapes (gpt2, toto)",
        ),
        (
            "budgets_macs: [1e9, 2.5e9]",
            "macs: 1e12\ntrain: {schedule: cosine}",
            "could not go on from the one before; use train.schedule: wsd",
        ),
        ("[t16]", "\n  - t16\n  - {d: 40, layer: 3}", "bad.yaml:13: ladder.sizes.1: layers: miss"),
        ("[t16]", "[{d: 4, layer: 3}]", "layer: unknown key; did you mean 'layers'?"),
        (
            "tokenizer:",
            "train: {optimizer: muon, parallel: fsdp}\ntokenizer:",
            "bad.yaml:6: train: optimizer muon with parallel fsdp: it orthogonalises whole",
        ),
        ("lr:", "train: {optimizer: moun}\nlr:", "did you mean 'muon'?"),
        ("[t16]", "[{d: 40, layers: 3}]", "bad.yaml:11: ladder.sizes.0: heads: missing; add it"),
        ("[t16]", "[{d: 40, layers: 3, heads: 3}]", "model 'd40l3h3': width 40 is not divisible"),
        ("[t16]", "[{d: 42, layers: 3, heads: 3}]", "width 42 is not a multiple of 4"),
        ("[t16]", "[16]", "bad.yaml:11: ladder.sizes.0: 16 is no size: give a name (t16) or"),
        ("[t16]", "[t16, {d: 16, layers: 2, heads: 2}]", "repeat; list each once"),
        ("[t16]", "[t16]\n  batch: {t17: 4}", "bad.yaml:12: ladder.batch.t17: unknown size 't17'"),
        ("[t16]", "[t16]\n  batch: {t24: 4}", "ladder: batch: 't24' is none of the ladder's sizes"),
        (
            "2.5e9]",
            "2.5e9]\n  batch: {t16: 6}\ntrain: {micro_batch: 4}",
            "micro_batch 4 does not divide ladder.batch 6 of t16",
        ),
        ("[16, 32]", "[16, 36]", "widths [36] do not divide into 4 heads"),
        ("patch: 4", "patch: 5", "is not a multiple of tokenizer.patch 5"),
        ("kind: leaves", "kind: leafs", "'leaves', 'video', 'images' or 'tokens'; did"),
        ("kind: leaves", "kind: video", "kind 'video' needs `path:`"),
        ("study: s", "study: ../s", "bad.yaml:1: study: '../s'"),
        ("study: s", "studdy: s", "bad.yaml:1: studdy: unknown key; did you mean 'study'?"),
        ("study: s", "study: s\nstudy: t", "bad.yaml:2: not valid YAML: key 'study' appears twice"),
        ("{patch: 4}", "{kind: vqgan, patch: 6}", "halves the side again and again"),
        ("{patch: 4}", "{kind: dvae, width: 12}", "takes multiples of 8; use 16"),
        ("lr:", "model: {inputs: patches}\nlr:", "set data.pixels: true"),
        ("data:", "data: [", "bad.yaml:4: not valid YAML: expected"),
        ("lr:", "lr: null\nlrx:", "unknown key; did you mean 'lr'?"),
        ("study: s", "study: s\nseed: 4294967296", "bad.yaml:2: seed: 4294967296: input should be"),
        ("study: s", "study: s\nseed: 010", "bad.yaml:2: not valid YAML: '010' is an octal number"),
        ("study: s", "study: s\nseed: 1:30", "bad.yaml:2: not valid YAML: '1:30' is a number to"),
        ("study: s", "study: no", "bad.yaml:1: study: False: input should be a valid string; YAML"),
        ("patch: 4", "patch: yes", "bad.yaml:6: tokenizer.patch: True: input should be a"),
        ("patch: 4", "kind: on", "not one of 'codebook', 'dvae', 'vqgan' or 'given'; YAML reads"),
        ("budgets_macs:", "seeds: 4294967296\n  budgets_macs:", "bad.yaml:12: ladder.seeds: 42949"),
        ("study: s", "study: s\n? [a, b]\n: c", "bad.yaml:2: not valid YAML: a key must be"),
        ("study: s", "study: s\n2: 3", "bad.yaml:2: not valid YAML: key '2' is read as int"),
        ("study: s", "study: s\x00", "bad.yaml:1: not valid YAML: special characters are not"),
        ("study: s", "study: 2020-13-45", "bad.yaml:1: not valid YAML: '2020-13-45' is not"),
    ],
)  # fmt: skip
def test_one_mistake(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert message in problems(tmp_path, GOOD.replace(old, new))


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    """One value in several places is several values: an override changes the one that it names."""
    text = (
        GOOD
        + """\
train: &train {batch: 4, grad_clip: 2.0}
variants:
  - {name: a, train: *train}
  - {name: b, train: {<<: *train, batch: 2}}
  - {name: c, train: {<<: [{evals: 3}, *train]}}
"""
    )
    text = text.replace("lr:\n  widths: [16, 32]\n  log2_min: -8\n", "")
    text = text.replace("2.5e9]", "2.5e9]\n  log2_lr: -6").replace("[1e9, 2.5e9]", "[1e9]")
    path = tmp_path / "merged.yaml"
    path.write_text(text)
    config = load_study(path, ["train.batch=16"])
    assert (config.train.batch, config.train.grad_clip) == (16, 2.0)
    assert [v.train for v in config.variants] == [
        {"batch": 4, "grad_clip": 2.0},
        {"batch": 2, "grad_clip": 2.0},
        {"batch": 4, "grad_clip": 2.0, "evals": 3},
    ]
    said = problems(tmp_path, text.replace("{<<: *train, batch: 2}", "{<<: &x {evals: -3}}"))
    assert said == (
        "bad.yaml:14: variants.1.train.evals: -3: input should be greater than or equal to 0"
    )


@pytest.mark.parametrize("word", ["off", "on", "auto", "'off'"])
def test_a_switch_is_written_as_it_is_named(tmp_path: Path, word: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"{GOOD}train: {{compile: {word}}}\n")
    assert load_study(path).train.compile == word.strip("'")
    path.write_text(GOOD)
    assert load_study(path, [f"train.compile={word}"]).train.compile == word.strip("'")


def test_overrides(tmp_path: Path) -> None:
    assert "no item named 'leafs'; did you mean 'leaves'" in problems(
        tmp_path, GOOD, "data.sources.leafs.weight=1"
    )
    assert "section.key=value" in problems(tmp_path, GOOD, "train.batch")
    assert "train.batch: 0" in problems(tmp_path, GOOD, "train.batch=0")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(GOOD.replace("kind: leaves", "kind: video, path: clips"))
    assert load_study(path).data.sources[0].path == tmp_path / "clips"
    path.write_text(GOOD.replace("{patch: 4}", "{kind: dvae, weights: dvae.safetensors}"))
    assert load_study(path).tokenizer.weights == tmp_path / "dvae.safetensors"


def test_run_id_is_the_hash_of_what_determines_the_numbers(run: RunConfig, tmp_path: Path) -> None:
    from dataclasses import replace

    assert (
        replace(run, data_dir="elsewhere", study="x", checkpoint_seconds=1.0).run_id == run.run_id
    )
    assert replace(run, lr=run.lr * 2).run_id != run.run_id
    assert replace(run, model=replace(run.model, layers=2)).run_id != run.run_id
    (tmp_path / "config.yaml").write_text(run.to_yaml())
    assert RunConfig.from_yaml(tmp_path / "config.yaml") == run
    (tmp_path / "config.yaml").write_text("model: 3\n")
    with pytest.raises(UserError, match="not a run configuration"):
        RunConfig.from_yaml(tmp_path / "config.yaml")


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_study(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="cannot be read as a YAML text file"):
        load_study(tmp_path / "binary.yaml")
