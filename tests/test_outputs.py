"""Nothing that a command did not make is replaced: all commands, all files that they write."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scaling.cli import app, main
from scaling.errors import UserError
from scaling.models.tokenizers.codebook import Codebook
from scaling.representations.trained import trained_runs
from scaling.storage import outputs
from scaling.study_folder import Study
from tests.report.conftest import simulated_rows
from tests.representations.conftest import clips, study
from tests.test_study import TINY

assert clips and study  # fixtures

OTHER = b"somebody's own work, of many days\n"
TINYS, OWN = Study(Path("studies/tiny")), Study(Path("own"))
RUN_AGAIN = [*TINYS.own_files, *TINYS.state_files, TINYS.yaml]
REPLACED = {  # command: how it is called, and all that it would write
    "fit": ("fit rows.csv --figure law.html", ["law.html", "law.points.csv"]),
    "fit, law": ("fit rows.csv --save law.json", ["law.json"]),
    "predict": ("predict rows.csv rows.csv --out told.csv", ["told.csv"]),
    "fit, png": ("fit rows.csv --figure law.png", ["law.png", "law.points.csv"]),
    "compare": ("compare rows.csv --figure two.svg", ["two.svg", "two.points.csv"]),
    "transfer": ("transfer rows.csv --figure s.html", ["s.html", "s.points.csv"]),
    "isoflop": ("isoflop rows.csv --out t", ["t/size_laws.csv", "t/minima.csv"]),
    "targets": ("targets own --figure t.html", ["t.html", "t.points.csv"]),
    "coord-check": ("coord-check", ["coord_check.html", "coord_check.points.csv"]),
    "coord-check, out": ("coord-check --out c.html", ["c.html", "c.points.csv"]),
    "plan": ("plan tiny.yaml --page page.md", ["page.md"]),
    "convert": ("tokenizer convert book.safetensors to.safetensors", ["to.safetensors"]),
    "train tokenizer": (
        "tokenizer train tiny.yaml vq.safetensors --set tokenizer.kind=vqgan",
        ["vq.safetensors"],
    ),
    "permanence": ("permanence p", ["p/settings.json", "p/labels.csv", "p/000003.mp4"]),
    "generate": ("generate RUN --prompt clip.mp4 --out g.gif", ["g.gif", "g.png", "g.csv"]),
    "generate, there": (
        "generate RUN --prompt clip.mp4",
        [f"own/generated/RUN_ID-clip.{kind}" for kind in ("mp4", "png", "csv")],
    ),
    "study": ("study tiny.yaml", list(map(str, RUN_AGAIN))),
    "represent": (
        "represent tiny.yaml",
        list(map(str, [*RUN_AGAIN, *TINYS.probe_files])),
    ),
    "represent, prompt": (
        "represent own --prompt clip.mp4",
        [f"own/generated/RUN_ID-clip.{kind}" for kind in ("mp4", "png", "csv")],
    ),
    "represent, folder": ("represent own", [str(p) for p in (*OWN.report_files, *OWN.probe_files)]),
    "report": ("report own", [str(p) for p in OWN.report_files]),
    "probe": ("probe own --data labels", ["own/probes.csv"]),
    "davis": ("davis own --data davis", ["own/davis.csv"]),
    "anticipate": ("anticipate own", ["own/anticipation.csv"]),
    "finetune": ("finetune own --data labels", ["own/finetune.csv"]),
    "train": (
        "train run",
        [f"run/{n}" for n in ("metrics.jsonl", "checkpoint.pt", "points.json")],
    ),
}
# Write nothing, or only what is named by a hash of its content (encode) or MLflow's (sync).
OTHERS = {
    *("encode", "status", "logs", "cancel", "sync", "doctor", "choices", "next", "power"),
    *("models", "tokens", "ui", "audit", "score"),
}
EACH = [(call, file) for call, files in REPLACED.values() for file in files]
Say = Callable[..., tuple[int, str]]


@pytest.fixture
def folder(study: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with all that the commands read; the current one."""
    monkeypatch.chdir(tmp_path)
    simulated_rows().to_csv("rows.csv", index=False)
    Path("tiny.yaml").write_text(TINY)
    Codebook(np.arange(16 * 48, dtype=np.float32).reshape(16, 48), 4).save(Path("book.safetensors"))
    shutil.copy(clips / "left" / "0.mp4", "clip.mp4")
    shutil.copytree(study, "own")
    (own,) = trained_runs(Study(Path("own")))
    Path("run").mkdir()
    shutil.copy(own.folder / "config.yaml", "run")
    return tmp_path


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Exit code and words of a command line."""

    def command(line: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["scaling", *named(line).split()])
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code
        return code if isinstance(code, int) else 0, "".join(capsys.readouterr())

    return command


def named(text: str) -> str:
    if "RUN" not in text:
        return text
    (own,) = trained_runs(Study(Path("own")))
    return text.replace("RUN_ID", own.run_id).replace("RUN", str(own.folder))


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return {str(p): p.read_bytes() for p in files}


@pytest.mark.parametrize(("call", "file"), EACH, ids=[f"{c.split()[0]}-{f}" for c, f in EACH])
def test_what_is_in_the_way_is_named_and_kept(folder: Path, say: Say, call: str, file: str) -> None:
    there = Path(named(file))
    there.parent.mkdir(parents=True, exist_ok=True)
    there.write_bytes(OTHER)
    before = contents(folder)
    code, said = say(call)
    assert code == 2 and said.startswith("error: ")
    assert f"{there} is there and not as `scaling" in said
    assert "give another name, or move it away" in said
    assert contents(folder) == before, "and no work was begun"


def test_every_command_is_here() -> None:
    names = {c.name or (c.callback and c.callback.__name__) for c in app.registered_commands}
    names = {str(name).replace("_", "-") for name in names}
    assert names == {call.split()[0] for call, _ in REPLACED.values()} - {"tokenizer"} | OTHERS


def test_a_figure_is_drawn_again_until_somebody_changed_it(folder: Path, say: Say) -> None:
    data, rows = folder / "law.points.csv", (folder / "rows.csv").read_bytes()
    for figure in ("law.html", "rows.html"):  # whose data were once rows.csv
        for _ in range(2):
            assert say(f"fit rows.csv --figure {figure} --seed 1")[0] == 0
    assert (folder / "rows.csv").read_bytes() == rows
    code, said = say("compare rows.csv --figure law.html")
    assert code == 2 and "law.html is there and not as `scaling compare` made it" in said
    code, said = say("fit law.points.csv --figure law.html")
    assert code == 2 and "law.points.csv is read by this command and would be overwritten" in said
    data.write_text(data.read_text().replace("\n", "\n", 1) + "# mine\n")
    code, said = say("fit rows.csv --figure law.html")
    assert code == 2 and "law.points.csv is there" in said and data.read_text().endswith("mine\n")


def test_what_a_report_does_not_write_is_not_in_its_way(folder: Path, say: Say) -> None:
    """A table that was edited, which a study would write again."""
    (folder / "own" / "study.yaml").write_text(TINY)
    rows = folder / "own" / "rows.csv"
    rows.write_bytes(OTHER)
    code, said = say("report own")
    assert code == 0 and "report.html" in said, said
    assert rows.read_bytes() == OTHER


def test_a_clip_is_not_continued_over_itself(folder: Path, say: Say) -> None:
    clip = (folder / "clip.mp4").read_bytes()
    (folder / "link.mp4").symlink_to("clip.mp4")
    os.link(folder / "clip.mp4", folder / "hard.mp4")
    for prompt in ("clip.mp4", "./own/../clip.mp4", "link.mp4", "hard.mp4"):
        code, said = say(f"generate RUN --prompt {prompt} --out clip.mp4")
        assert code == 2 and "clip.mp4 is read by this command and would be overwritten" in said
    assert (folder / "clip.mp4").read_bytes() == clip


def test_a_study_keeps_a_users_own_words(folder: Path, say: Say) -> None:
    """A study.yaml written by hand in the study's folder, and one that is edited there later."""
    from scaling.config.study_file import load_study

    own = folder / "studies" / "tiny"
    own.mkdir(parents=True)
    (own / "study.yaml").write_text("# why I do this\n" + TINY)
    Study(own).claim_to_run(load_study(own / "study.yaml"))
    with pytest.raises(UserError, match=r"study\.yaml is there and not as `scaling study` made it"):
        Study(own).claim_to_run(load_study(own / "study.yaml", ["seed=7"]))


def test_a_study_that_was_broken_off_early_keeps_them_too(folder: Path) -> None:
    """Nothing of it was written yet but its lock."""
    from scaling.config.study_file import load_study
    from scaling.study.pipeline import run_study

    own = folder / "studies" / "tiny"
    own.mkdir(parents=True)
    own_words = "# why I do this\n" + TINY.replace("kind: leaves", "kind: video, path: nowhere")
    (own / "study.yaml").write_text(own_words)
    config = load_study(own / "study.yaml")
    with pytest.raises(UserError, match="nowhere does not exist"):
        run_study(config, Study(own))
    assert (own / "driver.lock").exists()
    with pytest.raises(UserError, match=r"study\.yaml is there and not as `scaling study` made it"):
        run_study(config.model_copy(update={"seed": 7}), Study(own))
    assert (own / "study.yaml").read_text() == own_words


def test_a_study_goes_on_without_its_lock(tmp_path: Path) -> None:
    """Somebody took it for a leftover: the journal is the study's all the same."""
    from scaling.config.study_file import describe, load_study

    (tmp_path / "tiny.yaml").write_text(TINY)
    config, own = load_study(tmp_path / "tiny.yaml"), tmp_path / "studies" / "tiny"
    outputs.write(outputs.STUDY, own / "study.yaml", describe(config))
    (own / "sweep.journal").write_text("trials")
    Study(own).claim_to_run(config)
    (own / outputs.RECORD).unlink()
    with pytest.raises(UserError, match=r"sweep\.journal is there"):
        Study(own).claim_to_run(config)


def test_a_record_among_media(clips: Path, tmp_path: Path) -> None:
    """A figure that was drawn there: neither listed as unusable nor read as a class."""
    from scaling.data.media import VIDEO_SUFFIXES, list_files
    from scaling.representations.labelled import read_labelled

    there = tmp_path / "clips"
    shutil.copytree(clips, there)
    known = read_labelled(there).key
    outputs.write("scaling fit", there / "law.html", "1")
    outputs.write("scaling fit", there / "left" / "law.html", "1")
    assert read_labelled(there).key == known
    left_out = [name for name, _ in list_files(there, VIDEO_SUFFIXES)[1]]
    assert "law.html" in left_out and not any(outputs.RECORD in name for name in left_out)


class TestRecord:
    def test_a_signed_page_is_its_makers_without_a_record(self, tmp_path: Path) -> None:
        path = tmp_path / "page.md"
        path.write_text(outputs.signed("x", "# A page\n"))
        outputs.claim("x", path)
        with pytest.raises(UserError, match=r"page\.md is there and not as `y` made it"):
            outputs.claim("y", path)
        outputs.write("x", path, outputs.signed("x", "# Another\n"))
        for edited in (path.read_text() + "mine\n", "mine\n" + path.read_text(), "# Another\n"):
            path.write_text(edited)
            with pytest.raises(UserError, match="not as `x` made it"):
                outputs.claim("x", path)
        path.unlink()
        path.symlink_to("elsewhere")
        with pytest.raises(UserError):
            outputs.claim("x", path)

    def test_what_is_ours(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "a.csv"
        outputs.write("x", path, "1")
        outputs.write("x", path, "2")
        with pytest.raises(UserError, match=r"a\.csv is there and not as `y` made it"):
            outputs.write("y", path, "3")
        os.link(path, tmp_path / "backup.csv")
        outputs.write("x", path, "3")
        assert (tmp_path / "backup.csv").read_text() == "2"
        path.write_text("1")  # as it was once: nothing is lost
        outputs.write("x", path, "4")
        path.write_text("mine")
        with pytest.raises(UserError):
            outputs.write("x", path, "5")
        with pytest.raises(UserError):
            outputs.remove("x", path)
        assert path.read_text() == "mine"

    @pytest.mark.parametrize("kind", ["folder", "link", "dangling", "hard link"])
    def test_what_is_not(self, tmp_path: Path, kind: str) -> None:
        path, mine = tmp_path / "a.csv", tmp_path / "mine.csv"
        mine.write_bytes(OTHER)
        if kind == "folder":
            path.mkdir()
        elif kind == "hard link":
            os.link(mine, path)
        else:
            path.symlink_to(mine if kind == "link" else tmp_path / "nowhere")
        for _ in range(2):
            with pytest.raises(UserError, match=r"a\.csv is there"):
                outputs.write("x", path, "1")
        assert mine.read_bytes() == OTHER and os.path.lexists(path)
        assert not (tmp_path / outputs.RECORD).exists()

    def test_a_torn_record(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        outputs.write("x", path, "1")
        with open(tmp_path / outputs.RECORD, "a") as file:
            file.write('["x", "a.c')
        outputs.write("x", path, "2")
        outputs.write("x", path, "3")
        assert path.read_text() == "3"

    def test_a_study_of_before_there_was_one(self, tmp_path: Path) -> None:
        for name in ("rows.csv", "report.html", "driver.lock", "mine.txt"):
            (tmp_path / name).write_text("old")
        with pytest.raises(UserError):
            outputs.claim("scaling fit", tmp_path / "report.html")
        outputs.write(outputs.STUDY, tmp_path / "rows.csv", "new")
        outputs.write(outputs.STUDY, tmp_path / "report.html", "new")
        (tmp_path / "probes.csv").write_text("mine")
        with pytest.raises(UserError, match=r"probes\.csv"):
            outputs.claim(outputs.STUDY, tmp_path / "probes.csv")

    def test_two_commands_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The other replaces the file while this one looks: it is its own at all times."""
        path = tmp_path / "a.csv"
        outputs.write("x", path, "1")
        read = outputs._lines

        def meanwhile(folder: Path) -> list[outputs.Line]:
            lines = list(read(folder))
            monkeypatch.undo()
            outputs.write("x", path, "2")
            return lines

        monkeypatch.setattr(outputs, "_lines", meanwhile)
        outputs.claim("x", path)
        assert path.read_text() == "2"

    def test_clips_of_before_there_was_one(self, tmp_path: Path) -> None:
        """In a study's folder, whichever of the two is written to first; later ones are not."""
        for name in ("first", "second"):
            study = tmp_path / name
            made = study / outputs.GENERATED / "r-clip.mp4"
            made.parent.mkdir(parents=True)
            for path in (study / "driver.lock", study / "rows.csv", made):
                path.write_text("old")
            if name == "first":
                outputs.write(outputs.STUDY, study / "rows.csv", "new")
            with pytest.raises(UserError):
                outputs.claim(outputs.STUDY, made)
            outputs.write(outputs.GENERATE, made, "new")
            outputs.write(outputs.STUDY, study / "rows.csv", "newer")
            other = made.with_name("other.mp4")
            other.write_text("mine")
            with pytest.raises(UserError, match=r"other\.mp4"):
                outputs.claim(outputs.GENERATE, other)

    def test_the_ball_of_before_there_was_one(self, tmp_path: Path) -> None:
        from scaling.representations.permanence import write_permanence

        given = {"clips": 12, "frames": 4, "size": 32}
        table = write_permanence(tmp_path / "p", **given)
        content = table.read_text()
        (tmp_path / "p" / outputs.RECORD).unlink()
        (tmp_path / "p" / "000003.mp4").unlink()  # it was broken off
        assert write_permanence(tmp_path / "p", **given).read_text() == content
        (tmp_path / "p" / "000003.mp4").write_bytes(OTHER)
        with pytest.raises(UserError, match=r"000003\.mp4"):
            write_permanence(tmp_path / "p", **given)

    def test_where_none_can_be(self, tmp_path: Path) -> None:
        file = tmp_path / "file"
        file.write_bytes(OTHER)
        for path in (file / "a.csv", file / "b" / "a.csv"):
            with pytest.raises(UserError, match="cannot be written"):
                outputs.write("x", path, "1")
        (tmp_path / outputs.RECORD).mkdir()
        with pytest.raises(UserError, match="Is a directory"):
            outputs.write("x", tmp_path / "a.csv", "1")
        with pytest.raises(UserError, match="cannot be read"):
            outputs.claim("x", file)

    def test_a_few_of_many_are_named(self, tmp_path: Path) -> None:
        paths = [tmp_path / f"{i}.csv" for i in range(outputs.MOST + 3)]
        for path in paths:
            path.write_text("mine")
        with pytest.raises(UserError) as refused:
            outputs.claim("x", *paths)
        assert len(str(refused.value).splitlines()) == outputs.MOST + 1
        assert str(refused.value).endswith("... and 3 more such files")
