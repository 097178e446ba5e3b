"""Two hundred broken inputs: each ends in a sentence and exit code 2, soon and in little memory.

Drawn by kind from a seed; SCALING_BAD_SEED draws others. All are small: guards have low limits.
"""

import gzip
import io
import json
import os
import random
import resource
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from scaling import cli
from scaling.analysis.tables import content as bytes_of
from scaling.analysis.tables import files
from scaling.config.study_file import describe, load_study
from scaling.data.shards import TokenData
from scaling.errors import UserError
from scaling.plan.runs import ladder_runs
from scaling.results import dumps
from scaling.study import pipeline as study
from scaling.study.rates import record
from scaling.study_folder import Study
from tests.jobs.test_mlflow_copy import row

SEED = int(os.environ.get("SCALING_BAD_SEED", "20"))
GOOD = """\
study: s
data:
  sources:
    - {name: leaves, kind: leaves}
  frames: 2
  size: 8
  train_sequences: 64
  val_sequences: 4
tokenizer: {patch: 4, codes: 16, fit_frames: 50}
train: {batch: 4, warmup_steps: 2}
ladder:
  sizes: [t16, t24]
  budgets_macs: [1e8, 2e8]
  log2_lr: -6
launch: {parallel: 1, threads: 1}
"""


class Bad(NamedTuple):
    kind: str
    command: list[str]
    files: dict[str, bytes | None]  # path in the folder -> content, or None for a folder there


# --------------------------------------------------------------------------------- studies in YAML

WORDS = ["x", "", "-1", "0", "1e400", ".nan", "-.inf", "[]", "{}", "[1, [2]]", "{a: 1}", "null",
         "9" * 6000, "-" + "9" * 290, "1" + "0" * 12, "2020-01-01", "!!binary aGk=", "!!set {a}",
         "yes", "0x_", "'\\0'", '"\\0"', "0o8", "1:90", "007"]  # fmt: skip
FIELDS = {  # a path, and which of the words are right there
    "data.frames": {"1000000000000"}, "data.size": set(), "data.stride": {"1000000000000"},
    "data.zoom": set(), "data.pixels": {"yes"}, "data.val_fraction": set(), "tokenizer.kind": set(),
    "tokenizer.codes": set(), "train.batch": {"1000000000000"}, "train.compile": {"yes"},
    "train.evals": {"0"}, "train.weight_decay": {"0", "1000000000000"}, "ladder.seeds": set(),
    "ladder.sizes": set(), "ladder.budgets_macs": set(), "ladder.log2_lr": {"-1", "0"},
    "launch.cluster": set(), "launch.gpus": {"0"}, "fit.form": set(),
    "fit.resamples": set(), "seed": {"0"}, "study": {"x"},
    "data.train_sequences": set(), "data.fps": {"", "null", "1000000000000"}, "lr": {"", "null"},
}  # fmt: skip


def yaml_texts(draw: random.Random) -> Iterator[Bad]:
    def bad(kind: str, text: str | bytes, *more: str) -> Bad:
        content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        return Bad(f"yaml {kind}", ["plan", "--no-measure", "b.yaml", *more], {"b.yaml": content})

    whole = [
        "a: &a [*a]", "&a {study: *a}", "study: &x {<<: *x}", "[" * 60, "{a: " * 60, "- " * 60,
        "? [a]\n: b", "? {a: b}\n: c", "1: 2", "null: 2", "a\n", "- a", "", "# no", "--- a\n--- b",
        "a: !!python/name:os.system", "a: !x y", "%YAML 9.9\n---\na", "study: \x00", "study: \x07",
        "a: 1\na: 1", "<<: 3", "<<: [1]", "a: *nobody", "a: 'open", "\t- x", "a: b: c", "&a &b c",
        "study: " + "x" * 1_100_000, "\n".join(f"k{i}: {i}" for i in range(21_000)),
    ]  # fmt: skip
    for text in whole:
        yield bad("document", text)
    rows = ["a0: &a0 [0, 0, 0, 0, 0, 0, 0, 0]"]
    rows += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 8)}]" for k in range(1, 5)]
    yield bad("aliases", "\n".join(rows))
    merged = [r.replace("[0,", "[{k: 0},").replace(", 0", ", {k: 0}") for r in rows[:1]]
    merged += [f"a{k}: &a{k} [{', '.join([f'{{<<: *a{k - 1}}}'] * 8)}]" for k in range(1, 5)]
    yield bad("aliases", "\n".join(merged))
    for raw in (b"\xff\xfe\x00", b"\xef\xbb\xbf\xff", bytes(range(128, 256))):
        yield bad("bytes", raw)
    for _ in range(12):
        cut = draw.randrange(20, len(GOOD) - 20)
        yield bad("spliced", GOOD[:cut] + draw.choice("{[:\"'&*?|>%@`") + GOOD[cut : cut + 9])
    for field, right in FIELDS.items():
        for word in draw.sample([w for w in WORDS if w not in right], 3):
            yield bad(f"{field}={word[:9]}", GOOD, "--set", f"{field}={word}")
    for million_millions in ("data.train_sequences=1000000000000", "data.val_sequences=10e11"):
        yield bad("sequences", GOOD, "--set", million_millions)
    huge: dict[str, bytes | None] = {"b.yaml": GOOD.encode()}
    options = ["--set", "data.train_sequences=10000000000", "--set", "data.size=256"]
    yield Bad("sequences", ["encode", "b.yaml", *options], huge)
    for wrong in ("=", "a", "a=[", "=1", "data.sources.x.weight=1", "study.x=1", ".=1", "a..b=1"):
        yield bad("set", GOOD, "--set", wrong)


# ------------------------------------------------------------------------------- folders of a study


def broken(draw: random.Random, content: bytes) -> bytes | None:
    """A file of somebody else in place of one of ours."""
    deep = b"[" * 100_000
    digits = b'{"runs": ' + b"9" * 6000 + b"}"
    at = draw.randrange(1, max(2, len(content) - 1))
    kinds = [b"", b"\0" * 99, b"null", b"3", b"[3]", b'{"runs": 3}', b"{}", b'"text"', deep, digits,
             content[:at], content[:at] + b"\x7f" + content[at + 1 :], b"[{}]", b'[{"run_id": 1}]',
             b'{"runs": [{}]}', b'{"runs": [3]}', b"\xff\xfe", None]  # fmt: skip
    return draw.choice(kinds)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two runs: tokens, plan, configurations and made-up rows."""
    root = tmp_path_factory.mktemp("ours")
    (root / "good.yaml").write_text(GOOD)
    config = load_study(root / "good.yaml")
    folder = root / "studies" / "s"
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(describe(config))
    data = TokenData.open(study.encode(config, Study(folder), print))
    runs, _ = ladder_runs(config, 2.0**-6, data.key, data.path)
    record(Study(folder), runs)
    for run in runs:
        run_dir = folder / "runs" / run.run_id
        run_dir.mkdir(parents=True)
        (run_dir / "config.yaml").write_text(run.to_yaml())
        rows = [row(run.run_id, 30 * k, decayed=True, budget_macs=k * 1e8) for k in (1, 2)]
        if run is not runs[-1]:  # that one is still to be trained
            (run_dir / "rows.json").write_text(dumps(rows))
    return root


def study_folders(draw: random.Random, ours: Path) -> Iterator[Bad]:
    base = ours / "studies" / "s"
    done = next((base / "runs").glob("*/rows.json")).parent
    run = next(p for p in (base / "runs").iterdir() if p != done)
    data = next((base / "data").glob("*/index.json")).parent
    shard = next(data.glob("*.bin"))
    readers = {
        done / "rows.json": [["fit"], ["report"]],
        base / "study.yaml": [["sync"], ["study"], ["plan", "--no-measure"]],
        base / "plan.json": [["status"], ["fit"]],
        run / "config.yaml": [["train"]],
        data / "index.json": [["tokens"], ["train"]],
        data / "manifest.csv": [],
        data / "tokenizer.safetensors": [["probe"]],
        shard: [["train"]],
        base / "mlflow.db": [["sync"]],
    }
    for path, commands in readers.items():
        content = path.read_bytes() if path.exists() else b""
        for command in commands:
            for _ in range(4):
                target = run if command == ["train"] else base
                given = [*command, str(target.relative_to(ours))]
                if command == ["probe"]:
                    given += ["--data", "good.yaml"]
                made = broken(draw, content)
                if path.name == "index.json" and draw.random() < 0.5:  # a key short
                    index = json.loads(content)
                    del index[draw.choice(["context", "sources", "key", "frames", "size"])]
                    made = json.dumps(index, separators=(",", ":")).encode()
                while harmless(path, made):
                    made = broken(draw, content)
                yield Bad(
                    f"{command[0]} of {path.name}", given, {str(path.relative_to(ours)): made}
                )


def swapped_parts(ours: Path) -> Iterator[Bad]:
    """A plan, an index or a manifest of which one word is another: its JSON is in order."""
    base = ours / "studies" / "s"
    index = next((base / "data").glob("*/index.json"))
    plan = json.loads((base / "plan.json").read_text())
    for name, value in (
        ("run_id", "../../x"), ("run_id", 7), ("run_id", "x" * 300), ("run_id", "\0"),
        ("steps", 0), ("steps", "many"), ("macs", None), ("size", {}), ("log2_lr", "x"),
        ("batch_tokens", []),
    ):  # fmt: skip
        runs = [plan["runs"][0] | {name: value}, *plan["runs"][1:]]
        made = json.dumps(plan | {"runs": runs}).encode()
        yield Bad(f"plan {name}", ["status", "studies/s"], {"studies/s/plan.json": made})
    for name, value in (("schema", "x"), ("later_macs", "x"), ("later_macs", None)):
        made = json.dumps(plan | {name: value}).encode()
        yield Bad(f"plan {name}", ["status", "studies/s"], {"studies/s/plan.json": made})
    done = next((base / "runs").glob("*/rows.json"))
    other = next(run for run in (base / "runs").iterdir() if run != done.parent)
    for command in ("fit", "report"):  # a folder with the rows of another
        yield Bad(f"{command} of a run twice", [command, "studies/s"], {
            str((other / done.name).relative_to(ours)): done.read_bytes()
        })  # fmt: skip
    rows = json.loads(done.read_text())
    cells: list[tuple[str, Any]] = [
        ("device", None), ("data_key", [[]]), ("vocab", -1e308), ("decayed", "x"),
    ]  # fmt: skip
    for name, value in cells:
        made = json.dumps([rows[0] | {name: value}, *rows[1:]]).encode()
        path = str(done.relative_to(ours))
        yield Bad(f"rows {name}", ["fit", "studies/s"], {path: made})
    held = json.loads(index.read_text())
    wrong: list[tuple[str, Any]] = [
        ("context", "8"), ("frames", -1), ("size", "x"), ("sources", []), ("sources", 3),
        ("sources", {"leaves": None}), ("sources", [{}]),
    ]  # fmt: skip
    for name, value in wrong:
        made = json.dumps(held | {name: value}).encode()
        path = str(index.relative_to(ours))
        yield Bad(f"index {name}", ["tokens", "studies/s"], {path: made})
    swapped: list[dict[str, Any]] = [  # of other tokens, or of these with another mixture
        {"key": "0" * 16}, {"key": None}, {"frames": 4}, {"sources": held["sources"] * 2},
        {"settings": held["settings"] | {"seed": 9}},
        {"sources": [held["sources"][0] | {"weight": 0.5}]},
    ]  # fmt: skip
    split = held["sources"][0]["train"]
    swapped += [
        {"sources": [held["sources"][0] | {"train": split | wrong}]}
        for wrong in (
            {"shards": 0}, {"shards": [3]}, {"sequences": "x"}, {"rows_per_shard": None},
            {"shards": [split["shards"][0] | {"file": "../x.bin"}]},
        )
    ]  # fmt: skip
    for change in swapped:
        made = json.dumps(held | change).encode()
        path = str(index.relative_to(ours))
        yield Bad(f"index {[*change]}", ["tokens", "studies/s"], {path: made})
    manifest = index.with_name("manifest.csv")
    for content in (manifest.read_bytes()[:-25], b"\xff\xfe\0", b"a,b\n1,2\n"):
        path = str(manifest.relative_to(ours))
        yield Bad("manifest", ["tokens", "studies/s"], {path: content})


def anothers_config(ours: Path) -> Iterator[Bad]:
    """The configuration of the other run in a run's folder, or of this one with another rate."""
    base = ours / "studies" / "s"
    done = next((base / "runs").glob("*/rows.json"))
    other = next(run for run in (base / "runs").iterdir() if run != done.parent)
    theirs = str((other / "config.yaml").relative_to(ours))
    for content in (  # of the finished run, of this one with another rate
        (done.parent / "config.yaml").read_bytes(),
        (other / "config.yaml").read_bytes().replace(b"lr: 0.015625", b"lr: 0.03125"),
    ):
        for command in (["train", str(other.relative_to(ours))], ["train", theirs]):
            yield Bad("train of another's config.yaml", command, {theirs: content})


# ------------------------------------------------------------------------------------------ weights


def harmless(path: Path, made: bytes | None) -> bool:
    """What is rightly taken: MLflow fills an empty database; an index whose text alone changed."""
    if path.name == "mlflow.db":
        return made is None or len(made) < 99
    return path.name == "index.json" and made is not None and made[:12] == path.read_bytes()[:12]


def weights(draw: random.Random) -> Iterator[Bad]:
    def bad(kind: str, name: str, content: bytes | None) -> Bad:
        text = GOOD.replace(
            "{patch: 4, codes: 16", f"{{kind: {kind}, weights: {name}, patch: 4, codes: 16"
        )
        return Bad(
            f"weights {kind}", ["encode", "w.yaml"], {"w.yaml": text.encode(), name: content}
        )

    right = save({"encoder.x": np.zeros((2, 2), np.float32)})
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)

    def header(text: bytes, size: int | None = None) -> bytes:
        return (len(text) if size is None else size).to_bytes(8, "little") + text

    for kind in ("dvae", "vqgan", "codebook"):
        contents = [
            right, b"", b"\0" * 8, right[:20], header(b"{}"), header(b"{}", 2**62), header(b"{", 9),
            header(b'{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}') + b"0000",
            header(b'{"x":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}') + b"0000",
            header(b"[" * 500), save({"centroids": np.zeros((3, 5), np.float32)}), None,
        ]  # fmt: skip
        for content in draw.sample(contents, 4):
            yield bad(kind, "w.safetensors", content)
        for content in draw.sample(
            [b"", buffer.getvalue(), buffer.getvalue()[:99], b"PK\3\4", None], 2
        ):
            yield bad(kind, "w.pt", content)


# ------------------------------------------------------------------------------------------- tables


def tables(draw: random.Random) -> Iterator[Bad]:
    """Of each kind of file what is none, or damaged; a cell of any kind in every row."""
    lines = [f"s{k},{10**k},{3 * 10**k},{4 - k / 10},{k}" for k in range(6, 10)]
    text = "\n".join(["size,params,tokens,val_loss,seed", *lines]).encode()
    packed, sheet = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("[Content_Types].xml", "<x")
    with zipfile.ZipFile(sheet, "w") as file:
        file.writestr("runs.txt", "size")
    contents = {
        "wide.csv": ",".join(f"c{k}" for k in range(20_000)).encode() + b"\n1",
        "same.csv": b"c,c\n1,2\n", "nul.csv": text.replace(b"3.3", b"\0"), "zeros.csv": b"\0" * 900,
        "digits.csv": text.replace(b",3.", b"," + b"9" * 6000), "names.csv": b"1,2,3\n4,5,6\n",
        "long.csv": b"a," * 50_000, "empty.csv": b"", "cut.csv.gz": gzip.compress(text)[:-9],
        "none.csv.gz": text, "none.csv.xz": b"\xfd7zXZ\0none", "deep.json": b"[" * 100_000,
        "cells.json": b'{"columns": [[1], {}], "data": [[1, 2]]}',
        "log.json": b'{"log_history": [1]}',
        "digits.json": b'[{"params": ' + b"9" * 6000 + b"}]", "none.parquet": b"PAR1none",
        "none.xlsx": sheet.getvalue(), "cut.xlsx": packed.getvalue(), "none.db": b"none",
        "cut.db": b"SQLite format 3\0" + b"\0" * 99, "none.md": b"| a |\n|---|\n",
        "folder.csv": None,
    }  # fmt: skip
    commands = [["fit"], ["isoflop"], ["audit"], ["choices"], ["transfer"], ["compare"]]
    for name, content in contents.items():
        command, *more = draw.choice(commands)
        yield Bad(f"table {name}", [command, name, *more], {name: content})
        yield Bad(f"law {name}", ["predict", name, "--at", "1e20"], {name: content})


def all_bad(ours: Path) -> list[Bad]:
    draw = random.Random(SEED)
    drawn = [*yaml_texts(draw), *study_folders(draw, ours), *weights(draw), *tables(draw)]
    return [*drawn, *swapped_parts(ours), *anothers_config(ours)]


def test_what_has_no_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    for name in ("pipe.csv", "zero.csv"):
        with pytest.raises(UserError, match="a pipe or a device"):
            files.load(tmp_path / name)
    for module in (bytes_of, files):
        monkeypatch.setattr(module, "LARGEST", 999)
    (tmp_path / "grows.csv.gz").write_bytes(gzip.compress(b"loss,n\n" + b"1,2\n" * 300))
    with zipfile.ZipFile(tmp_path / "grows.xlsx", "w") as file:
        file.writestr("sheet", b"1" * 1000)
    for name in ("grows.csv.gz", "grows.xlsx"):
        with pytest.raises(UserError, match="more than 999 bytes"):
            files.load(tmp_path / name)


def run_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """Exit code and what was said, of the real entry point in this process."""
    before, sys.argv = sys.argv, ["scaling", *arguments]
    try:
        cli.main()
        code: Any = 0
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        code = repr(error)[:300]
    finally:
        sys.argv = before
    return code, "".join(capsys.readouterr())


def test_each_is_one_sentence(
    ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ours)
    import mlflow  # noqa: F401  # seconds, which are no input's

    inputs = all_bad(ours)
    assert len(inputs) >= 200
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong = []
    for number, bad in enumerate(inputs):
        kept = tmp_path / "kept"
        for name, content in bad.files.items():
            path = ours / name
            if path.exists():
                shutil.copy2(path, kept)
                path.unlink()
            if content is None:
                path.mkdir()
            else:
                path.write_bytes(content)
        started = time.process_time()
        code, said = run_command(bad.command, capsys)
        seconds = time.process_time() - started
        for name in bad.files:
            path = ours / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            if kept.exists():
                shutil.copy2(kept, path)
                kept.unlink()
        if code != 2 or "Traceback" in said or len(said) > 3000 or not said or seconds > 5:
            wrong.append(
                (number, bad.kind, bad.command, str(bad.files)[:200], code, said[-400:], seconds)
            )
    for line in wrong:
        print(line)
    assert not wrong, f"{len(wrong)} of {len(inputs)}"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1e6, f"{grown} kB"
